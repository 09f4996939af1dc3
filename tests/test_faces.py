from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retarget import faces
from retarget.errors import NobodyFound
from retarget.faces import (
    FIRM,
    GAP,
    LIDS,
    LIPS,
    MOUTH,
    boxes,
    calm,
    cut,
    fit,
    heads,
    neutral,
    paste,
    transferred,
    typical,
)
from retarget.pose import PoseOptions, estimate
from retarget.skeleton import IRISES
from retarget.types import PoseTrack

HEADS = Path(__file__).parent.parent.parent / "shared/clips/heads"


def a_face(seed: int = 0) -> np.ndarray:
    """(468, 3): a made-up face that looks straight into the camera, about 2 wide, with mouth and eyes; all faces have
    the same points in other proportions."""
    u, v = np.random.default_rng(99).uniform(-1.2, 1.2, (2, 468))
    rng = np.random.default_rng(seed)
    mesh = np.stack([np.sin(u), 1.3 * np.sin(v), -np.cos(u) * np.cos(v)], axis=1)
    mesh[[234, 454, 10, 2, 152]] = [(-1, 0, 0), (1, 0, 0), (0, -1.2, -0.5), (0, 0.2, -0.6), (0, 1.3, -0.3)]
    wide = rng.uniform(0.3, 0.4)
    for n, point in enumerate(LIPS):
        angle = 2 * np.pi * n / len(LIPS)
        mesh[point] = (wide * np.cos(angle), 0.6 + 0.1 * np.sin(angle), -0.8)
    mesh[MOUTH[0]], mesh[MOUTH[1]] = (-wide, 0.6, -0.75), (wide, 0.6, -0.75)
    mesh[GAP[0]], mesh[GAP[1]] = (0, 0.59, -0.85), (0, 0.61, -0.85)
    open_by = rng.uniform(0.06, 0.12)
    for side, (corners, (above, below), lids) in zip((-1, 1), LIDS, strict=True):
        for n, point in enumerate(lids):
            x = 0.4 * side + 0.25 * (n % 7 / 6 - 0.5)
            mesh[point] = (x, -0.2 + open_by * (-0.3 if n < 7 else 0.3), -0.8)
        mesh[above], mesh[below] = (0.4 * side, -0.2 - open_by / 2, -0.8), (0.4 * side, -0.2 + open_by / 2, -0.8)
        mesh[corners[0]], mesh[corners[1]] = (0.6 * side, -0.2, -0.75), (0.2 * side, -0.2, -0.75)
    return mesh * (rng.uniform(0.95, 1.05), rng.uniform(0.9, 1.1), 1)


def with_irises(face: np.ndarray, radius: float = 0.06) -> np.ndarray:
    """(478, 3): the face looking straight ahead; its irises lie before its eyes' corners."""
    rim = radius * np.array([(0, 0, 0), (1, 0, 0), (0, -1, 0), (-1, 0, 0), (0, 1, 0)])
    rim += (0, 0.01, -0.05)
    eyes = [face[list(corners)].mean(0) + rim for corners, _, _ in LIDS]
    return np.concatenate([face, *eyes])


def looking(face: np.ndarray, x: float, y: float = 0.0) -> np.ndarray:
    """The eyes turned by so many of their widths, to the person's left and down."""
    out = face.copy()
    for (corners, _, _), iris in zip(LIDS, IRISES, strict=True):
        out[list(iris), :2] += np.array([x, y]) * np.linalg.norm(face[corners[0]] - face[corners[1]])
    return out


def gaze(face: np.ndarray) -> np.ndarray:
    """(..., 2 eyes, 3): from the middle of an eye's corners to its iris in widths of the eye, of meshes (..., 478, 3)
    that look into the camera."""
    eyes = []
    for (corners, _, _), iris in zip(LIDS, IRISES, strict=True):
        a, b = face[..., corners[0], :], face[..., corners[1], :]
        eyes.append((face[..., iris[0], :] - (a + b) / 2) / np.linalg.norm(a - b, axis=-1, keepdims=True))
    return np.stack(eyes, axis=-2)


def turned(yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
    a, b, c = np.radians([yaw, pitch, roll])
    x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return y @ x @ z


def talking(face: np.ndarray, opened: float) -> np.ndarray:
    """The mouth open by so much more."""
    out = face.copy()
    out[GAP[0], 1] -= opened / 2
    out[GAP[1], 1] += opened / 2
    return out


def track(*meshes: np.ndarray, size=(200, 240), fps: int = 25) -> PoseTrack:
    n = len(meshes)
    body = np.full((n, 33, 4), 100, np.float32)
    return PoseTrack(
        body, body[..., :3], np.stack(meshes).astype(np.float32), np.full((n, 2, 21, 3), np.nan, np.float32), size,
        Fraction(fps),
    )  # fmt: skip


def seen(mesh: np.ndarray, rotation: np.ndarray | None = None, scale: float = 40, at=(100, 120, 0)) -> np.ndarray:
    return scale * mesh @ (np.eye(3) if rotation is None else rotation).T + at


# ------------------------------------------------------------------------------------------------ heads


def test_a_head_is_taken_apart_and_put_together():
    face = a_face()
    turns = [turned(), turned(20), turned(-15, 10), turned(5, -20, 30)]
    sizes, places = (40, 50, 30, 45), ((100, 120, 0), (90, 130, 5), (110, 100, -5), (100, 120, 0))
    meshes = np.stack([seen(face, r, s, p) for r, s, p in zip(turns, sizes, places, strict=True)])
    meshes = np.concatenate([meshes, np.full((1, 468, 3), np.nan)])
    found = heads(meshes, typical(meshes))
    assert all(np.isnan(values[4]).all() for values in found)
    for t in range(4):
        np.testing.assert_allclose(found.rotation[t] @ found.rotation[0].T, turns[t], atol=1e-6)
        assert found.size[t] / found.size[0] == pytest.approx(sizes[t] / sizes[0])
        np.testing.assert_allclose(found.shape[t], found.shape[0], atol=1e-6)
        again = found.size[t] * found.shape[t] @ found.rotation[t].T + found.place[t]
        np.testing.assert_allclose(again, meshes[t], atol=1e-6)
    assert np.abs(found.rotation[0] - np.eye(3)).max() < 0.15  # the made-up nose is not quite below the forehead
    firm = found.shape[0][list(FIRM)]
    assert np.sqrt((firm**2).sum(1).mean()) == pytest.approx(1)
    with pytest.raises(ValueError, match="no face"):
        typical(meshes[4:])


def test_speech_does_not_turn_the_head():
    face = a_face()
    meshes = np.stack([seen(talking(face, x)) for x in (0, 0, 0.4)])
    found = heads(meshes, typical(meshes))
    np.testing.assert_allclose(found.rotation[2], found.rotation[0], atol=1e-9)


def test_the_neutral_face_is_the_one_that_is_silent():
    face = a_face()
    shapes = np.stack([talking(face, x) for x in (0.3, 0.01, 0.4, 0.0, 0.5, 0.3, 0.02, 0.35)])
    shapes[3, LIDS[0][1][0], 1] += 0.05  # a blink
    shapes = np.concatenate([shapes, np.full((1, 468, 3), np.nan)])
    np.testing.assert_allclose(neutral(shapes), talking(face, 0.01), atol=1e-9)
    np.testing.assert_allclose(neutral(shapes[:1]), shapes[0])


# ------------------------------------------------------------------------------------------------ fitting


def test_expressions_on_ones_own_face_stay_what_they_are():
    face = a_face()
    shapes = face + np.random.default_rng(1).normal(0, 0.02, (5, 468, 3))
    np.testing.assert_allclose(transferred(shapes, face, face), shapes, atol=1e-12)


def test_mouths_and_eyes_of_other_sizes():
    mine, theirs = a_face(1), a_face(2)
    shut = mine.copy()
    for corners, _, lids in LIDS:
        shut[list(lids), 1] = mine[list(corners), 1].mean()
    out = transferred(np.stack([shut, talking(mine, 0.2)]), mine, theirs)
    for _, (above, below), _ in LIDS:
        assert out[0, below, 1] == pytest.approx(out[0, above, 1], abs=1e-9)
        assert theirs[below, 1] - theirs[above, 1] > 0.05
    width = [np.linalg.norm(f[MOUTH[0]] - f[MOUTH[1]]) for f in (theirs, mine)]
    gap, rest = (face[GAP[1], 1] - face[GAP[0], 1] for face in (out[1], theirs))
    assert gap - rest == pytest.approx(0.2 * width[0] / width[1])
    other = [n for n in range(468) if n not in LIPS]
    np.testing.assert_allclose(out[1][other], theirs[other])


def test_irises_of_ones_own_stay_where_they_are():
    face = with_irises(a_face())
    shapes = face + np.random.default_rng(1).normal(0, 0.02, (5, 478, 3))
    np.testing.assert_allclose(transferred(shapes, face, face), shapes, atol=1e-12)


@pytest.mark.parametrize("x", [-0.3, 0.2])
@pytest.mark.parametrize("aside", [0.0, 0.25])
def test_eyes_look_as_far_in_other_eyes(x, aside):
    """By shares of their width, wherever the avatar's pictures look; the iris keeps its own size."""
    mine, theirs = with_irises(a_face(1), 0.06), with_irises(a_face(2), 0.04)
    theirs[[33, 263], 0] *= 1.3  # wider eyes
    out = transferred(looking(mine, x, 0.1)[None], mine, looking(theirs, aside))
    assert out.shape == (1, 478, 3)
    np.testing.assert_allclose(gaze(out)[0], gaze(looking(mine, x, 0.1)), atol=1e-9)
    for iris in IRISES:
        np.testing.assert_allclose(np.ptp(out[0, list(iris), 0]), 0.08, atol=1e-9)
    rest = [n for n in range(468) if n not in LIPS]
    np.testing.assert_allclose(out[0][rest], theirs[rest])


def test_eyes_that_shut_go_on_looking():
    mine, theirs = with_irises(a_face(1)), with_irises(a_face(2))
    shut = looking(mine, 0.3)
    for corners, _, lids in LIDS:
        shut[list(lids), 1] = mine[list(corners), 1].mean()
    out = transferred(shut[None], mine, theirs)
    bare = transferred(shut[None, :468], mine[:468], theirs[:468])
    np.testing.assert_allclose(out[0, :468], bare[0])
    np.testing.assert_allclose(gaze(out)[0] - gaze(mine), [(0.3, 0, 0)] * 2, atol=1e-9)


def test_irises_on_one_side_only():
    """A driver without leaves the avatar's at rest; an avatar without gets none."""
    mine, theirs = with_irises(a_face(1)), with_irises(a_face(2))
    said = talking(mine, 0.2)
    out = transferred(said[None, :468], mine[:468], looking(theirs, 0.1))
    assert out.shape == (1, 478, 3)
    np.testing.assert_allclose(gaze(out)[0], gaze(looking(theirs, 0.1)), atol=1e-9)
    none = transferred(said[None], mine, theirs[:468])
    np.testing.assert_allclose(none, out[:, :468])


def test_gaze_does_not_depend_on_where_the_head_turns():
    mine, theirs = with_irises(a_face(3)), with_irises(a_face(4))
    turns = [turned(), turned(20), turned(-20, 10), turned(0, -15, 20)] * 4
    ahead = [0.0] * 4 + [0.3] * 4 + [-0.3] * 4 + [0.0] * 4
    driver = track(*(seen(looking(mine, x), r, 60, (150, 150, 0)) for x, r in zip(ahead, turns, strict=True)))
    avatar = track(seen(theirs, None, 30, (60, 70, 0)), size=(128, 128))
    out = fit(driver, avatar, (128, 128))
    assert out.face.shape == (16, 478, 3)
    # In the head's own frame, in which neither turns.
    shapes = [heads(t.face, typical(t.face)).shape for t in (driver, out)]
    left = [gaze(s)[:, :, 0] - gaze(s)[0, :, 0] for s in shapes]
    np.testing.assert_allclose(left[0], np.repeat(np.array(ahead)[:, None], 2, 1), atol=0.02)
    np.testing.assert_allclose(left[1], left[0], atol=0.02)
    # Looking away turns no head.
    straight = fit(replace(driver, face=np.stack([looking(f, 0) for f in driver.face])), avatar, (128, 128))
    ahead_too = track(*(seen(mine, r, 60, (150, 150, 0)) for r in turns))
    np.testing.assert_allclose(fit(ahead_too, avatar, (128, 128)).face[:, :468], straight.face[:, :468], atol=1e-3)


@pytest.mark.parametrize(("mine", "theirs"), [(478, 468), (468, 478)])
def test_avatars_and_drivers_of_both_kinds(mine, theirs):
    face, other = with_irises(a_face(3)), with_irises(a_face(4))
    shown = [seen(looking(talking(face, 0.1 * (t % 3)), 0.1 * t), turned(5 * t)) for t in range(6)]
    avatar = track(seen(other[:theirs], None, 30, (64, 64, 0)), size=(128, 128))
    out = fit(track(*(m[:mine] for m in shown)), avatar, (128, 128))
    bare = fit(track(*(m[:468] for m in shown)), replace(avatar, face=avatar.face[:, :468]), (128, 128))
    assert out.face.shape == (6, theirs, 3)
    np.testing.assert_allclose(out.face[:, :468], bare.face, atol=1e-3)
    if theirs == 478:  # at rest, whatever the head does
        found = heads(out.face, typical(out.face)).shape
        np.testing.assert_allclose(gaze(found)[:, :, :2], gaze(found)[:1, :, :2].repeat(6, 0), atol=0.01)
        assert np.abs(gaze(found)).max() < 0.3


def test_driving_oneself_changes_nothing():
    face = with_irises(a_face())
    shapes = [looking(talking(face, 0.1 * (t % 3)), 0.2 * np.sin(t)) for t in range(12)]
    meshes = [seen(shape, turned(5 * np.sin(t), 3 * np.cos(t))) for t, shape in enumerate(shapes)]
    # The middle of the firm points is what the head turns about.
    place = np.array([100, 120, 0])
    meshes = [m - m[list(FIRM)].mean(0) + place for m in meshes]
    one = track(*meshes)
    out = fit(one, one, one.size)
    np.testing.assert_allclose(out.face, one.face, atol=0.05)
    assert out.size == one.size
    assert out.fps == one.fps


def test_the_avatars_shape_with_the_drivers_expression_and_pose():
    mine, theirs = a_face(3), a_face(4)
    turns = [turned(), turned(10), turned(-10), turned(), turned()]
    opened = (0, 0, 0, 0.3, 0)
    driver = track(*(seen(talking(mine, o), r, 60, (150, 150, 0)) for o, r in zip(opened, turns, strict=True)))
    avatar = track(seen(theirs, None, 30, (60, 70, 0)), size=(128, 128))
    out = fit(driver, avatar, (128, 128))
    # At rest it is the avatar, but for depth and how both faces' axes lie to each other.
    assert np.abs(out.face[0, :, :2] - avatar.face[0, :, :2]).mean() < 3
    lips = out.face[:, GAP[1], 1] - out.face[:, GAP[0], 1]
    assert lips[3] > lips[0] + 5
    assert np.ptp(lips[[0, 1, 2, 4]]) < 1
    nose = out.face[:, 2, 0] - out.face[:, [234, 454], 0].mean(1)
    assert nose[1] * nose[2] < 0  # left and right
    assert abs(nose[0]) < abs(nose[1])


def test_the_head_stays_in_the_picture():
    face = a_face()
    driver = track(*(seen(face, None, 40, (100 + 60 * np.sin(t / 3), 120, 0)) for t in range(40)))
    avatar = track(seen(face, None, 40, (60, 64, 0)), size=(128, 128))
    out = fit(driver, avatar, (128, 128))
    assert out.face[..., 0].min() >= -1e-3
    assert out.face[..., 0].max() <= 128 + 1e-3
    assert np.ptp(out.face[:, 2, 0]) > 10
    # A slow drift is the camera's business: the square follows it.
    slow = track(*(seen(face, None, 40, (100 + 0.5 * t, 120, 0)) for t in range(200)))
    assert np.ptp(fit(slow, avatar, (128, 128)).face[50:150, 2, 0]) < 1


def test_faces_that_were_not_found():
    face = a_face()
    driver = track(*(seen(talking(face, 0.05 * t)) for t in range(8)))
    driver.face[[0, 1, 4, 7]] = np.nan
    avatar = track(seen(a_face(1), None, 30, (64, 64, 0)), size=(128, 128))
    out = fit(driver, avatar, (128, 128))
    assert np.isfinite(out.face).all()
    lips = out.face[:, GAP[1], 1] - out.face[:, GAP[0], 1]
    np.testing.assert_allclose(lips[[0, 1]], lips[2], atol=0.5)
    np.testing.assert_allclose(lips[7], lips[6], atol=0.5)
    nobody = replace(avatar, face=np.full_like(avatar.face, np.nan))
    with pytest.raises(NobodyFound, match="avatar"):
        fit(driver, nobody, (128, 128))
    with pytest.raises(NobodyFound, match="driving") as e:
        fit(nobody, avatar, (128, 128))
    assert e.value.remedy


def test_pieces_are_those_of_the_whole(monkeypatch):
    face = a_face()
    driver = track(*(seen(talking(face, 0.1 * (t % 4)), turned(t)) for t in range(20)))
    driver.face[9] = np.nan
    avatar = track(seen(a_face(1), None, 30, (64, 64, 0)), size=(128, 128))
    whole = fit(driver, avatar, (128, 128))
    monkeypatch.setattr(faces, "WINDOW", 6)
    talk = faces.Talk(driver, avatar, (128, 128))
    assert len(talk) == 20
    for rows in ([0], [19], [8, 9, 10], range(3, 15)):
        piece = talk.select(rows)
        np.testing.assert_allclose(piece.face, whole.face[list(rows)], atol=1e-3)
        assert piece.body.shape == (len(rows), 33, 4)


@pytest.mark.skipif(not (HEADS / "h02.mp4").exists(), reason="the real clips are not on this machine")
def test_a_real_driver_on_a_real_face():
    how = PoseOptions(irises=True)
    driver, avatar = (estimate(HEADS / f"{name}.mp4", how, end=1.2) for name in ("h02", "h01"))
    out = fit(driver, avatar, avatar.size)
    assert out.face.shape == (len(driver), 478, 3)
    looks = [gaze(heads(t.face, typical(t.face)).shape)[:, :, 0] for t in (driver, out)]
    assert np.ptp(looks[1], axis=0).min() > 0.03
    for eye in (0, 1):
        assert np.corrcoef(looks[0][:, eye], looks[1][:, eye])[0, 1] > 0.95
    assert np.isfinite(out.face).all()
    gaps = [np.linalg.norm(t.face[:, GAP[0], :2] - t.face[:, GAP[1], :2], axis=1) for t in (driver, out)]
    assert np.ptp(gaps[1]) > 3
    assert np.corrcoef(gaps)[0, 1] > 0.95
    # The jaw is as wide as the avatar's, not as the driver's.
    width = [np.median(np.linalg.norm(t.face[:, 234, :2] - t.face[:, 454, :2], axis=1)) for t in (out, avatar)]
    assert width[0] == pytest.approx(width[1], rel=0.04)


# ------------------------------------------------------------------------------------------------ squares


def test_a_head_that_stays_has_one_square():
    face = a_face()
    one = track(*(seen(face, None, 20, (100 + 3 * np.sin(t), 120, 0)) for t in range(20)))
    found = boxes(one)
    assert found.shape == (20, 3)
    assert (found == found[0]).all()
    low, high = np.nanmin(one.face[..., :2], (0, 1)), np.nanmax(one.face[..., :2], (0, 1))
    assert (found[0, :2] - found[0, 2] / 2 < low).all()
    assert (found[0, :2] + found[0, 2] / 2 > high).all()
    assert 1.8 * np.ptp(one.face[0, :, 1]) <= found[0, 2] < 2.2 * np.ptp(one.face[0, :, 1])


def test_a_head_that_walks_is_followed_smoothly():
    face = a_face()
    rng = np.random.default_rng(0)
    one = track(*(seen(face, None, 10, (40 + t, 100 + rng.normal(0, 1), 0)) for t in range(120)))
    one.face[50:60] = np.nan
    found = boxes(one)
    steps = np.diff(found[20:100, 0])
    assert (steps > 0.2).all()
    assert (steps < 3).all()
    assert found[20:100, 1].std() < 0.5
    with pytest.raises(NobodyFound):
        boxes(replace(one, face=np.full_like(one.face, np.nan)))


def test_squares_lie_in_the_picture():
    one = track(seen(a_face(), None, 60, (100, 60, 0)))
    ((x, y, side),) = boxes(one)
    assert side == 200  # the picture is not larger
    assert x == 100
    assert y == 100


def test_smoothing_keeps_what_is_constant():
    np.testing.assert_allclose(calm(np.full((30, 2), 3.0), 25), 3)
    noisy = np.random.default_rng(0).normal(0, 1, 200)
    assert calm(noisy, 25).std() < 0.35


def picture(width: int = 120, height: int = 90) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 2 * y, 128 + 60 * np.sin(x / 9) * np.cos(y / 7)], -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [64, 32, 120])
def test_a_square_goes_back_where_it_was(side):
    photo = picture()
    box = np.array([70.0, 40, 64])
    square = cut(photo, box, side)
    assert square.shape == (side, side, 3)
    if side == 64:
        np.testing.assert_array_equal(square, photo[8:72, 38:102])
    back = paste(photo, square, box)
    assert np.abs(back.astype(int) - photo).mean() < 1.5
    red = paste(photo, np.full_like(square, (255, 0, 0)), box)
    outside = np.ones(photo.shape[:2], bool)
    outside[7:73, 37:103] = False
    assert (red[outside] == photo[outside]).all()
    assert (red[20:60, 50:90] == (255, 0, 0)).all()


def test_no_seam_where_the_square_ends_with_the_photo():
    photo = picture()
    red = paste(photo, np.full((64, 64, 3), (255, 0, 0), np.uint8), np.array([32.0, 32, 64]))
    assert (red[:2, :50] == (255, 0, 0)).all()
    assert (red[:50, :2] == (255, 0, 0)).all()
    assert not (red[62, 62] == (255, 0, 0)).all()
