"""Parts laid over each other: pixels that stay as they are, and what changes over frames."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retarget import parts
from retarget.parts import affines, inverse, lay_out, render, skeletons
from retarget.parts import layout as laying_out
from retarget.skeleton import PART, PARTS

from .conftest import ARM, CROSSED, TORSO, cut_puppet, cutouts_of, drawn, middle_of_arm, paint, random_bodies

# ------------------------------------------------------------------------------------------------ drawing


def inner(matte: np.ndarray, pixels: int = 2) -> torch.Tensor:
    solid = torch.from_numpy(matte)[None, None] >= 0.999
    return F.max_pool2d((~solid).float(), 2 * pixels + 1, 1, pixels)[0, 0] == 0


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize(
    "pose", [{}, {"left": (85, 85), "right": (150, 170)}, CROSSED], ids=["stand", "wave", "crossed"]
)
def test_driving_a_reference_with_its_own_pose_leaves_its_pixels_as_they_are(puppet, pose, details):
    body = puppet.body(**pose)
    made = cut_puppet(puppet, body, details=details)
    rgb, alpha, none = drawn(made, made.skeleton)
    assert none is None
    assert rgb.shape == (3, 160, 128)
    assert alpha.shape == (1, 160, 128)
    matte = puppet.matte(body)
    assert (alpha[0][inner(matte)] > 0.95).float().mean() > 0.99
    assert alpha[0][torch.from_numpy(matte) == 0].max() < 1e-4
    assert (alpha[0] - torch.from_numpy(matte)).abs().mean() < 0.01
    truth = torch.from_numpy(puppet.cloth(0)).permute(2, 0, 1) / 255
    error = ((rgb / alpha.clamp_min(1e-3) - truth) ** 2)[:, inner(matte)].mean()
    assert -10 * error.log10() > 35


def test_among_several_references_the_one_in_the_same_pose_is_shown(puppet):
    bodies = [
        puppet.body((85, 20), (20, 85), legs=3, scale=66, turn=-20),
        puppet.body((150, 160), (140, 150), legs=28, scale=66),
        puppet.body((20, 100), (85, 60), legs=14, scale=66, turn=25),
    ]
    made = cut_puppet(puppet, *bodies)
    for k, body in enumerate(bodies):
        layout, state = lay_out(made, made.skeleton.take([k]))
        assert state.mix.argmax(1).tolist() == [k] * len(PARTS)
        rgb, alpha, _ = render(made, layout, (160, 128))
        truth = torch.from_numpy(puppet.cloth(k)).permute(2, 0, 1) / 255
        error = ((rgb / alpha.clamp_min(1e-3) - truth) ** 2)[:, inner(puppet.matte(body))].mean()
        assert -10 * error.log10() > 30


def test_a_person_moved_by_whole_pixels_is_the_same_person_there(puppet):
    made = cut_puppet(puppet, puppet.body((50, 70)))
    moved = skeletons(puppet.track(puppet.body((50, 70), at=(64 + 9, 76 - 5))))
    here, there = drawn(made, made.skeleton), drawn(made, moved)
    for a, b in zip(here[:2], there[:2], strict=True):
        torch.testing.assert_close(b[:, 1:-10, 12:], a[:, 6:-5, 3:-9], atol=0.02, rtol=0)


@pytest.mark.parametrize(("depth", "front"), [(-0.4, "arm"), (0.4, "torso")])
def test_what_is_nearer_covers_what_is_farther(puppet, depth, front):
    body = puppet.body((85, 85))
    made = cutouts_of([paint(puppet, body, TORSO | ARM)], [puppet.matte(body)], skeletons(puppet.track(body)))
    pose = skeletons(puppet.track(puppet.body((10, -115), reach=(depth, 0))))
    rgb, alpha, shares = drawn(made, pose, per_part=True)
    y, x = middle_of_arm(pose, 0.7)
    red, _, blue = rgb[:, y, x]
    assert alpha[0, y, x] > 0.95
    assert (red > blue + 0.5) if front == "arm" else (blue > red + 0.5)
    assert shares is not None
    assert shares.shape == (len(PARTS), 160, 128)
    seen = {"arm": PART["left_lower_arm"], "torso": PART["torso"]}
    assert shares[seen.pop(front), y, x] > 0.9
    assert shares[seen.popitem()[1], y, x] < 0.1
    # Shares are what is visible: together no more than all there is.
    assert (shares.sum(0) <= alpha[0] + 1e-4).all()


@pytest.mark.parametrize("shift", [(3, 0), (0, -4), (-5, 2)])
def test_flow_shows_what_would_stand_so_many_pixels_away(puppet, shift):
    made = cut_puppet(puppet, puppet.body((60, 20)), details=True)
    pose = skeletons(puppet.track(puppet.body((100, 40)), details=True))
    flow = torch.tensor(shift, dtype=torch.float32)[:, None, None].expand(2, 160, 128)
    still, moved = drawn(made, pose), drawn(made, pose, flow=flow)
    for a, b in zip(still[:2], moved[:2], strict=True):
        # Away from the borders of the picture, where the flow points outside.
        torch.testing.assert_close(
            b[:, 8:-8, 8:-8], a.roll((-shift[1], -shift[0]), (1, 2))[:, 8:-8, 8:-8], atol=2e-3, rtol=0
        )
    assert (still[0] - moved[0]).abs().max() > 0.1


def test_flow_carries_gradients(puppet):
    made = cut_puppet(puppet, puppet.body((60, 20)))
    flow = torch.zeros(2, 160, 128, requires_grad=True)
    rgb, alpha, _ = drawn(made, made.skeleton, flow=flow)
    plain = drawn(made, made.skeleton)
    torch.testing.assert_close(rgb.detach(), plain[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(alpha.detach(), plain[1], atol=1e-4, rtol=0)
    with_shares = drawn(made, made.skeleton, flow=flow, per_part=True)[2]
    torch.testing.assert_close(with_shares, drawn(made, made.skeleton, per_part=True)[2], atol=1e-4, rtol=0)
    # A step down the gradient brings the picture closer to one that was shifted.
    with torch.no_grad():
        wanted = drawn(made, made.skeleton, flow=torch.full((2, 160, 128), 0.5))[0]
    before = ((rgb - wanted) ** 2).sum()
    before.backward()
    assert flow.grad is not None
    assert flow.grad.isfinite().all()
    step = flow.detach() - 0.3 * flow.grad / flow.grad.abs().max()
    assert ((drawn(made, made.skeleton, flow=step)[0] - wanted) ** 2).sum() < 0.99 * before.detach()


@pytest.mark.parametrize("zoom", [0.5, 2.0])
def test_zoom_shows_the_same_in_another_size(puppet, zoom):
    made = cut_puppet(puppet, puppet.body((60, 20)), details=True)
    pose = skeletons(puppet.track(puppet.body((100, 40)), details=True))
    size = (round(160 * zoom), round(128 * zoom))
    rgb, alpha, _ = drawn(made.halved() if zoom < 1 else made, pose, size, zoom=zoom)
    full, matte, _ = drawn(made, pose)
    assert rgb.shape[1:] == size
    shrink = min(size, (160, 128))
    for a, b in ((rgb, full), (alpha, matte)):
        difference = F.interpolate(a[None], shrink, mode="area") - F.interpolate(b[None], shrink, mode="area")
        assert difference.abs().mean() < 0.012
        assert b.mean() > 0.05


def test_nothing_is_drawn_of_a_person_outside_of_the_picture(puppet):
    made = cut_puppet(puppet, puppet.body())
    for at in ((-400, 76), (64, 900)):
        rgb, alpha, _ = drawn(made, skeletons(puppet.track(puppet.body(at=at))))
        assert not rgb.any()
        assert not alpha.any()


def head_field(puppet, moved):
    """What is added to a head's affine transform where its mesh is displaced, `moved`: (N, 2) of (N, 2), in head radii.

    Returns (at the points of the mesh (N, 2), what would be right (N, 2)), in head radii.
    """
    track = puppet.track(puppet.body(scale=800, at=(600, 900)), size=(1200, 1800), details=True)
    radius, middle = 0.11 * skeletons(track).scale[0], track.face[0, :, :2].mean(0)
    face = track.face.copy()
    face[0, :, :2] += radius * moved((face[0, :, :2] - middle) / radius)
    here, there = skeletons(track), skeletons(replace(track, face=face))
    back = inverse(affines(here, there)[0])[0]
    corner = track.face[0, :, :2].min(0) - 20
    box = (*corner.astype(int), *(track.face[0, :, :2].max(0) + 20).astype(int))
    field = laying_out.bent(PART["head"], there, here, 0, back, box)
    assert field.shape[0] == 3
    x, y = there.face[0].T
    cells = [
        (v - low) * field.shape[1] / (high - low) - 0.5 for v, low, high in ((x, box[0], box[2]), (y, box[1], box[3]))
    ]
    at = np.stack([cv2.remap(f, *(c.astype(np.float32) for c in cells), cv2.INTER_LINEAR)[:, 0] for f in field[:2]], 1)
    right = here.face[0] - (there.face[0] @ back[0, :, :2].T + back[0, :, 2])
    return at / radius, right / radius


def test_a_head_follows_its_mesh_down_to_the_lips(puppet):
    mouth = np.array([0, 0.3])
    at, right = head_field(puppet, lambda p: [0, 0.1] * np.exp(-((p - mouth) ** 2).sum(1, keepdims=True) / 2 / 0.15**2))
    assert np.abs(right).max() > 0.08
    assert np.abs(at - right).max() < 0.3 * np.abs(right).max()


def test_no_face_is_bent_out_of_shape(puppet):
    at, right = head_field(puppet, lambda p: 0.5 * np.cos(5 * p))
    assert np.sqrt((right**2).sum(1).mean()) > 0.3
    assert np.sqrt((at**2).sum(1).mean()) < 0.16


# ------------------------------------------------------------------------------------------------ over time


def test_the_same_pose_is_laid_out_alike(puppet):
    made = cut_puppet(puppet, *random_bodies(puppet, 3), details=True)
    pose = skeletons(puppet.track(puppet.body((90, 30)), details=True))
    (a, first), (b, second) = lay_out(made, pose), lay_out(made, pose)
    np.testing.assert_array_equal(first.mix, second.mix)
    np.testing.assert_array_equal(first.depth, second.depth)
    for x, y in zip(render(made, a, (160, 128))[:2], render(made, b, (160, 128))[:2], strict=True):
        assert torch.equal(x, y)


def test_a_change_of_reference_is_faded_over_frames(puppet):
    bodies = [
        puppet.body((85, 20), (20, 85), turn=-20, scale=66),
        puppet.body((150, 160), (140, 150), turn=25, scale=66),
    ]
    made = cut_puppet(puppet, *bodies)
    _, state = lay_out(made, made.skeleton.take([0]))
    assert (state.mix == np.eye(2)[np.zeros(len(PARTS), int)]).all()
    share = [1.0]
    for _ in range(12):
        layout, state = lay_out(made, made.skeleton.take([1]), state)
        np.testing.assert_allclose(state.mix.sum(1), 1)
        assert (state.mix >= 0).all()
        for layer in layout:
            assert sum(piece.weight for piece in layer) == pytest.approx(1)
        share.append(state.mix[PART["torso"], 0])
    assert 0 < share[1] < 1
    assert share == sorted(share, reverse=True)
    assert share[-1] == 0


def test_a_cross_fade_mixes_the_colours_of_both_references(puppet):
    body = puppet.body((85, 85))
    plain = [np.full((160, 128, 3), grey, np.uint8) for grey in (50, 200)]
    made = cutouts_of(plain, [puppet.matte(body)] * 2, skeletons(puppet.track(body, body)))
    layout, _ = lay_out(made, made.skeleton.take([0]))
    mixed = tuple(
        tuple(replace(layer[0], ref=k, weight=w) for k, w in ((0, 0.25), (1, 0.75))) for layer in layout if layer
    )
    rgb, alpha, _ = render(made, mixed, (160, 128))
    inside = inner(puppet.matte(body), 4)
    inside &= alpha[0] > 0.999
    assert inside.sum() > 500
    # But where one reference completes the other.
    assert ((rgb[0][inside] * 255 - (0.25 * 50 + 0.75 * 200)).abs() < 1).float().mean() > 0.98


def test_between_equal_references_a_part_stays_with_the_one_it_shows(puppet):
    made = cut_puppet(puppet, puppet.body(), puppet.body())
    _, fresh = lay_out(made, made.skeleton.take([0]))
    assert (fresh.mix[:, 0] == 1).all()
    other = replace(fresh, mix=fresh.mix[:, ::-1].copy())
    _, after = lay_out(made, made.skeleton.take([0]), other)
    np.testing.assert_array_equal(after.mix, other.mix)


def test_depths_follow_over_frames_rather_than_jump(puppet):
    made = cut_puppet(puppet, puppet.body())
    near, far = (skeletons(puppet.track(puppet.body(**CROSSED | {"reach": (z, 0)}))) for z in (-0.4, 0.4))
    arm = PART["left_lower_arm"]
    _, before = lay_out(made, near)
    _, jumped = lay_out(made, far)
    _, after = lay_out(made, far, before)
    assert before.depth[arm] < after.depth[arm] < jumped.depth[arm]


# ------------------------------------------------------------------------------------------------ the feet's shadow


def test_the_shade_lies_under_the_feet(puppet):
    pose = skeletons(puppet.track(puppet.body(legs=20)))
    shade = parts.contact(pose, (160, 128), 1.0, torch.zeros(1))
    assert shade.shape == (1, 160, 128)
    assert shade.min() >= 0
    assert shade.max() <= 1
    for foot in ("left_foot", "right_foot"):
        x, y = pose.points[0, PART[foot], 1:3].mean(0)
        assert shade[0, round(float(y)), round(float(x))] > 0.5
    assert shade[0, :100].max() < 0.01
    half = parts.contact(pose, (80, 64), 0.5, torch.zeros(1))
    torch.testing.assert_close(F.avg_pool2d(shade, 2), half, atol=0.05, rtol=0)


def test_feet_that_were_not_found_shade_nothing(puppet):
    pose = skeletons(puppet.track(puppet.body()))
    lost = replace(pose, points=np.full_like(pose.points, np.nan))
    assert not parts.contact(lost, (160, 128), 1.0, torch.zeros(1)).any()
