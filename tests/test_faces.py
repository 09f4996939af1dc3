from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_faces import a_face, gaze, looking, seen, talking, track, turned, with_irises

from retarget import faces
from retarget.errors import NobodyFound
from retarget.faces import FIRM, boxes, calm, cut, fit, heads, paste, typical
from retarget.motion.expression import GAP
from retarget.pose import PoseOptions, estimate

HEADS = Path(__file__).parent.parent.parent / "shared/clips/heads"


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


# ------------------------------------------------------------------------------------------------ fitting


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


def test_the_body_is_still_as_that_of_the_most_usual_reference():
    driver, avatar = (track(*(seen(a_face(), None, 30, (64, 64, 0)) for _ in range(5))) for _ in range(2))
    avatar.body[..., 0] = np.array([10, 20, 30, 40, 90])[:, None]
    assert (faces.Talk(driver, avatar, (128, 128)).select([0, 3]).body == avatar.body[2]).all()
    lost = np.full_like(avatar.body[:1], np.nan)
    still = np.concatenate([lost, avatar.body[[4, 1]]])
    assert (faces.Talk(driver, avatar, (128, 128), still).select([0, 3]).body == still[2]).all()


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
