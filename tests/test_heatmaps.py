from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from retarget.heatmaps import FACE_CONTOURS, FACE_LINES, POSE_CHANNELS, WINDOW, face_lines, pose_maps, stack_poses
from retarget.skeleton import BONES, IRISES, PART, PARTS, J

PICTURE = (200, 160)
METRE = 60.0  # pixels per metre of `standing`


def standing() -> torch.Tensor:
    """(1, 33, 4): somebody facing the camera, 60 pixels per metre, middle of the hips at (80, 110)."""
    metres = {
        "hip": (0.1, 0.0),
        "shoulder": (0.18, -0.5),
        "elbow": (0.48, -0.5),
        "wrist": (0.73, -0.5),
        "pinky": (0.82, -0.48),
        "index": (0.83, -0.5),
        "thumb": (0.78, -0.54),
        "knee": (0.1, 0.41),
        "ankle": (0.1, 0.82),
        "heel": (0.1, 0.86),
        "foot_index": (0.16, 0.9),
        "eye": (0.03, -0.75),
        "eye_inner": (0.02, -0.75),
        "eye_outer": (0.045, -0.75),
        "ear": (0.08, -0.73),
        "mouth": (0.025, -0.67),
    }
    body = torch.zeros(33, 4)
    body[:, 3] = 1.0
    for name, index in J.items():
        left = "left" in name
        x, y = metres.get(
            name.replace("left_", "").replace("right_", "").replace("_left", "").replace("_right", ""), (0, -0.7)
        )
        body[index, :2] = torch.tensor([80 + METRE * (x if left else -x), 110 + METRE * y])
    return body[None]


def draw(body: torch.Tensor, face=None, hands=None, size=PICTURE, picture=PICTURE) -> torch.Tensor:
    b = len(body)
    face = torch.full((b, 468, 3), torch.nan) if face is None else face
    hands = torch.full((b, 2, 21, 3), torch.nan) if hands is None else hands
    return pose_maps(body, face, hands, size, picture=picture)


def value(maps: torch.Tensor, channel: int, x: float, y: float) -> float:
    return maps[0, channel, int(y), int(x)].item()


def test_limbs_are_where_their_bones_are():
    maps = draw(standing())
    assert maps.shape == (1, POSE_CHANNELS, *PICTURE)
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    body = standing()[0, :, :2]
    for part in PARTS[1:10]:
        a, b = BONES[PART[part]]
        x, y = ((body[list(a)].mean(0) + body[list(b)].mean(0)) / 2).tolist()
        assert value(maps, PART[part], x, y) > 0.9, part
        others = [i for i in range(2, 10) if i != PART[part]]
        assert max(value(maps, i, x, y) for i in others) < 0.2, part
    assert value(maps, PART["head"], 80, 110 - 0.72 * METRE) > 0.95


def test_a_limb_is_a_gaussian_smoothed_rectangle():
    body = standing()
    body[0, J["left_elbow"], :2] = torch.tensor([107.3, 101.7])
    got = draw(body)[0, PART["left_upper_arm"]].numpy()
    a, b = (body[0, J[n], :2].numpy() for n in ("left_shoulder", "left_elbow"))
    along = (b - a) / np.linalg.norm(b - a)
    across = np.array([-along[1], along[0]])
    width, zoom = 0.05 * METRE, 16
    corners = [p + s * across * width for p, s in ((a - along * width / 2, 1), (b + along * width / 2, 1))]
    corners += [p - across * width for p in (b + along * width / 2, a - along * width / 2)]
    drawn = np.zeros((PICTURE[0] * zoom, PICTURE[1] * zoom), np.float32)
    cv2.fillPoly(drawn, [np.round(np.array(corners) * zoom - 0.5).astype(np.int32)], 1.0)
    blurred = cv2.GaussianBlur(drawn, (0, 0), 0.02 * METRE * zoom)
    want = cv2.resize(blurred, PICTURE[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(got - want).max() < 0.03


def test_sizes_follow_the_body():
    small, large = (
        draw(standing()),
        draw(standing() * torch.tensor([2.0, 2, 2, 1]), size=(400, 320), picture=(400, 320)),
    )
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (halved[:, :10] - small[:, :10]).abs().max() < 0.06


def test_drawing_size_is_independent_of_the_picture():
    maps = draw(standing(), size=(100, 160))
    body = standing()[0]
    x, y = body[[J["left_hip"], J["left_knee"]], :2].mean(0).tolist()
    assert value(maps, PART["left_upper_leg"], x, y / 2) > 0.9
    rows = (maps[0, PART["left_upper_leg"]].amax(1) > 0.5).nonzero()
    assert rows.max() - rows.min() == pytest.approx(0.41 * METRE / 2, abs=3)


@pytest.mark.parametrize("how", ["nan", "unseen"])
def test_what_was_not_found_is_empty(how):
    body = standing()
    if how == "nan":
        body[0, J["left_knee"]] = torch.nan
    else:
        body[0, J["left_knee"], 3] = 0.19
    maps = draw(body)
    assert maps.isfinite().all()
    empty = [c for c in range(POSE_CHANNELS) if maps[0, c].max() == 0]
    assert empty == [PART["left_upper_leg"], PART["left_lower_leg"], 10]  # no face was given


def test_nobody_and_fragments():
    assert draw(torch.full((1, 33, 4), torch.nan)).abs().max() == 0
    body = torch.full((1, 33, 4), torch.nan)
    body[0, :11] = standing()[0, :11]  # only a head
    maps = draw(body)
    assert maps[0, 0].max() > 0.9
    assert maps[0, 1:].abs().max() == 0


def test_a_limb_towards_the_camera_stays_small():
    body = standing()
    body[0, J["left_elbow"], :2] = body[0, J["left_shoulder"], :2]
    arm = draw(body)[0, PART["left_upper_arm"]]
    assert arm.max() > 0.5
    assert 5 < arm.sum() < (0.2 * METRE) ** 2


def test_pictures_of_a_batch_do_not_mix():
    bodies = torch.cat([standing(), standing() + 9, standing() * 1.2])
    bodies[1, 23, 0] = torch.nan
    together = draw(bodies)
    for i in range(3):
        assert torch.allclose(together[i], draw(bodies[i : i + 1])[0], atol=1e-5)


def test_dots():
    hands = torch.full((1, 2, 21, 3), torch.nan)
    hands[0, 0, 0] = torch.tensor([30.5, 40.5, 0.0])
    face = torch.full((1, 468, 3), torch.nan)
    face[0, 10] = face[0, 338] = torch.tensor([70.5, 50.5, 0.0])  # two points in one place are one dot
    face[0, 2] = 10.5  # not a point of the contours
    maps = draw(standing(), face, hands)
    y, x = (maps[0, 11] == maps[0, 11].max()).nonzero()[0].tolist()
    assert (x, y) == (30, 40)
    assert maps[0, 11, 40, 30].item() == pytest.approx(1)
    sigma = 0.015 * METRE
    assert maps[0, 11, 41, 31].item() == pytest.approx(np.exp(-1 / sigma**2), rel=1e-3)
    assert maps[0, 11, 40, 60] == 0
    assert maps[0, 10, 50, 70].item() == 1
    assert maps[0, 10, 10, 10] == 0


def test_hand_falls_back_to_the_body():
    body = standing()
    maps = draw(body)
    x, y = body[0, J["right_index"], :2].tolist()
    assert value(maps, 12, x, y) > 0.8
    hands = torch.full((1, 2, 21, 3), torch.nan)
    hands[0, 1] = 5.0
    assert value(draw(body, hands=hands), 12, x, y) == 0


def test_feet_are_left_and_right():
    maps = draw(standing())
    columns = torch.arange(PICTURE[1]) + 0.5
    left, right = ((maps[0, c].sum(0) * columns).sum() / maps[0, c].sum() for c in (13, 14))
    assert left > 80 > right


def test_half_precision_and_autocast_do_not_matter():
    with torch.autocast("cpu", torch.bfloat16):
        maps = draw(standing())
    assert torch.equal(maps, draw(standing()))


def test_contours_are_those_of_the_mesh():
    from mediapipe.python.solutions.face_mesh_connections import FACEMESH_CONTOURS

    edges = {frozenset(e) for line in FACE_CONTOURS.values() for e in pairwise(line)}
    assert edges == {frozenset(e) for e in FACEMESH_CONTOURS}


def test_stack_poses():
    maps = [torch.full((2, 15, 4, 4), float(i)) for i in range(5)]
    stacked = stack_poses(maps)
    assert stacked.shape == (2, 15 * WINDOW, 4, 4)
    assert stacked[0, ::15, 0, 0].tolist() == [2, 3, 4]
    assert stack_poses(maps[:2])[0, ::15, 0, 0].tolist() == [0, 0, 1]
    assert stack_poses(maps[:1])[0, ::15, 0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("count", "stacked"), [(1, [4]), (2, [3, 4]), (7, [0, 0, 0, 1, 2, 3, 4])])
def test_as_many_poses_are_stacked_as_asked_for(count, stacked):
    maps = [torch.full((2, 15, 4, 4), float(i)) for i in range(5)]
    assert stack_poses(maps, count)[0, ::15, 0, 0].tolist() == stacked
    assert stack_poses(maps, count).shape == (2, 15 * count, 4, 4)
    assert len(maps) == 5  # what was given is left alone


# ------------------------------------------------------------------------------------------------ faces in lines


def a_face(seed: int = 0, count: int = 468) -> torch.Tensor:
    """(1, count, 3): each line a piece of a circle, an iris a small square, in a picture of 64 × 48."""
    rng = np.random.default_rng(seed)
    face = torch.zeros(1, count, 3)
    for _, lines in FACE_LINES:
        for line in lines:
            if max(line) >= count:
                continue
            angle = torch.arange(len(set(line))) * (2 * np.pi / max(16, len(set(line))))
            centre = torch.from_numpy(rng.uniform((14, 14), (34, 50))).float()
            points = centre + 10 * torch.stack([angle.cos(), angle.sin()], 1)
            if len(line) == 5 and line[0] == line[-1]:
                points = centre + 3 * torch.tensor([(0.0, 1), (1, 0), (0, -1), (-1, 0)])
            face[0, list(dict.fromkeys(line)), :2] = points
    return face


def test_faces_are_drawn_in_lines_of_their_colours():
    """Against OpenCV's lines, one colour at a time."""
    face = a_face(count=478)
    drawn = face_lines(face, (256, 192), picture=(64, 48), width=3)
    for colour, lines in FACE_LINES:
        alone = np.zeros((256, 192), np.uint8)
        for line in lines:
            points = np.round(face[0, list(line), :2].numpy() * 4 * 16 - 8).astype(np.int32)
            cv2.polylines(alone, [points], False, 255, 1, cv2.LINE_AA, 4)
        on = alone > 200
        assert on.sum() > 80
        for channel, strength in enumerate(colour):
            # What crosses it can only add light.
            assert (drawn[0, channel].numpy()[on] > 0.75 * strength - 1e-6).mean() > 0.98
    lit = (drawn[0].amax(0) > 0.5).float().mean()
    assert 0.01 < lit < 0.9


def test_irises_are_drawn_where_there_are_some():
    face = a_face(count=478)
    bare, whole = (face_lines(f, (128, 96), picture=(64, 48)) for f in (face[:, :468], face))
    assert (whole >= bare - 1e-6).all()
    added = (whole - bare).amax(1)[0] > 0.3
    y, x = (n.float() / 2 + 0.25 for n in added.nonzero(as_tuple=True))
    irises = [face[0, list(iris[1:]), :2] for iris in IRISES]
    near = torch.stack([x, y], 1)[:, None] - torch.cat(irises)
    reach = max(float((a[:, None] - a[None]).norm(dim=-1).amax()) for a in irises)
    assert added.sum() > 20
    assert (near.norm(dim=-1).amin(1) < reach).all()
    # A colour of their own, and nobody else's.
    assert (whole[0, :, added].amin(0) > 0.3).all()
    assert [colour for colour, _ in FACE_LINES].count((1, 1, 1)) == 1
    lost = face.clone()
    lost[:, 468:] = torch.nan
    torch.testing.assert_close(face_lines(lost, (128, 96), picture=(64, 48)), bare)
    body = torch.from_numpy(np.full((1, 33, 4), 20, np.float32))
    hands = torch.full((1, 2, 21, 3), torch.nan)
    maps = (pose_maps(body, f, hands, (64, 48), picture=(64, 48)) for f in (face, face[:, :468]))
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("count", [468, 478])
def test_left_and_right_look_alike_in_lines(count):
    face = a_face(count=count)
    mirrored = face.clone()
    mirrored[..., 0] = 48 - face[..., 0]
    there, back = (face_lines(f, (64, 48), picture=(64, 48)) for f in (face, mirrored))
    torch.testing.assert_close(back, there.flip(3), atol=1e-4, rtol=1e-3)


def test_faces_in_lines_are_batched_and_lost_ones_black():
    faces = torch.cat([a_face(0), torch.full((1, 468, 3), torch.nan), a_face(1)])
    drawn = face_lines(faces, (32, 32), picture=(64, 48))
    assert drawn.isfinite().all()
    assert not drawn[1].any()
    torch.testing.assert_close(drawn[2:], face_lines(a_face(1), (32, 32), picture=(64, 48)))
    half = faces[:1].clone()
    half[:, FACE_CONTOURS["lips_inner"][0]] = torch.nan  # the segments at one lost point are left out, no more
    assert 0 < (face_lines(half, (32, 32), picture=(64, 48)) - drawn[:1]).abs().amax() <= 1
