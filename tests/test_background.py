"""Mattes and plates on scenes that are known exactly."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget import background
from retarget.background import (
    Plate,
    camera_motion,
    cover,
    guided_filter,
    make_plate,
    refine_matte,
    seen_from,
    solid_colour,
    unmix,
)
from retarget.types import Image

SYNTHETIC = Path(__file__).parents[2] / "shared" / "synthetic"


def texture(seed: int, height: int = 96, width: int = 128, sigma: float = 1.0) -> Image:
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    noise = cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def walk(scene: Image, places: list[int], shifts: list[tuple[int, int]] | None = None) -> tuple[list, list]:
    """Frames in which a square stands at these x, seen by a camera at these places of the scene, and their masks."""
    body = texture(77)[:40, :24]
    shifts = shifts or [(0, 0)] * len(places)
    margin = max(abs(n) for shift in shifts for n in shift)
    height, width = scene.shape[0] - 2 * margin, scene.shape[1] - 2 * margin
    frames, masks = [], []
    for x, (dx, dy) in zip(places, shifts, strict=True):
        frame = scene[margin + dy :, margin + dx :][:height, :width].copy()
        mask = np.zeros((height, width), np.float32)
        frame[30:70, x : x + 24] = body
        mask[30:70, x : x + 24] = 1
        frames.append(frame)
        masks.append(mask)
    return frames, masks


def psnr(a: Image, b: Image) -> float:
    return float(10 * np.log10(255**2 / max(1e-3, float(np.mean((a.astype(float) - b) ** 2)))))


def iou(matte: np.ndarray, truth: np.ndarray) -> float:
    a, b = matte > 0.5, truth > 0.5
    return float((a & b).sum() / (a | b).sum())


# ------------------------------------------------------------------------------------------------ the plate


def test_the_scene_behind_a_walker_is_recovered_exactly():
    scene = texture(1)
    frames, masks = walk(scene, [2, 40, 80, 100, 60, 20])
    plate = make_plate(frames, masks)
    np.testing.assert_array_equal(plate.image, scene)
    assert plate.image.dtype == np.uint8
    assert plate.seen.min() > 0
    assert plate.seen[0].min() == 1
    assert 0.5 < plate.seen[50, 52] < 1
    assert plate.motion < background.SHAKE
    assert not plate.camera_moves


def test_what_only_a_few_frames_show_is_forgotten():
    scene = texture(1)
    frames, masks = walk(scene, [2, 100, 60, 20, 80, 40, 10])
    for frame in frames[:2]:
        frame[80:90] //= 2  # a passing shadow
    np.testing.assert_array_equal(make_plate(frames, masks).image, scene)


def test_with_an_even_number_of_frames_the_middle_two_are_averaged():
    frames = [np.full((40, 40, 3), value, np.uint8) for value in (10, 100, 104, 250)]
    plate = make_plate(frames, [np.zeros((40, 40), np.float32)] * 4)
    assert (plate.image == 102).all()


def test_what_was_never_seen_is_filled_from_around():
    y, x = np.mgrid[:96, :128]
    scene = np.stack([x, y, 200 - x], 2).astype(np.uint8)  # smooth: what is hidden can be told
    frames, masks = walk(scene, [50] * 4)
    plate = make_plate(frames, masks)
    assert plate.seen[50, 60] == 0
    hidden = plate.seen == 0
    assert np.abs(plate.image.astype(int) - scene)[hidden].mean() < 8
    np.testing.assert_array_equal(plate.image[:, :30], scene[:, :30])


def test_a_person_who_fills_the_picture_leaves_a_grey_plate():
    plate = make_plate([texture(1)] * 3, [np.ones((96, 128), np.float32)] * 3)
    assert (plate.image == 127).all()
    assert not plate.seen.any()


SHAKES = [(0, 0), (2, -1), (-3, 1), (1, 3), (0, -2), (3, 2), (-1, -3)]


def test_shake_is_taken_out_and_the_scene_stands_as_it_did_last():
    scene = texture(3, 240, 300, 1.5)
    frames, masks = walk(scene, [10, 60, 120, 180, 220, 160, 30], SHAKES)
    plate = make_plate(frames, masks)
    dx, dy = SHAKES[-1]
    still = scene[3 + dy : 3 + dy + 234, 3 + dx : 3 + dx + 294]
    inside = (slice(8, -8), slice(8, -8))
    blurred = np.median(frames, axis=0).astype(np.uint8)
    assert psnr(plate.image[inside], still[inside]) > 30
    assert psnr(plate.image[inside], still[inside]) > psnr(blurred[inside], still[inside]) + 8
    dx, dy = SHAKES[len(SHAKES) // 2]
    far = max(max(abs(x - dx), abs(y - dy)) for x, y in SHAKES) / np.hypot(234, 294)
    assert 0.6 * far < plate.motion < 1.05 * far
    assert not plate.camera_moves


def test_a_moving_camera_is_noticed():
    scene = texture(3, 240, 300, 1.5)
    shifts = [(n, 0) for n in (-24, -16, -8, 0, 8, 16, 24)]
    frames, masks = walk(scene, [20, 60, 100, 140, 180, 200, 220], shifts)
    plate = make_plate(frames, masks)
    assert plate.camera_moves
    assert plate.motion == pytest.approx(24 / np.hypot(*frames[0].shape[:2]), rel=0.35)


@pytest.mark.parametrize(("angle", "size", "shift"), [(0, 1, (4, -3)), (2, 1.03, (1, 2))])
def test_camera_motion_is_measured_beside_the_person(angle, size, shift):
    scene = texture(4, 180, 220, 1.5)
    matrix = cv2.getRotationMatrix2D((110, 90), angle, size)
    matrix[:, 2] += shift
    moved = cv2.warpAffine(scene, cv2.invertAffineTransform(matrix), (220, 180), borderMode=cv2.BORDER_REPLICATE)
    person = np.zeros((180, 220), bool)
    person[60:150, 80:130] = True
    moved[60:150, 80:130] = 90  # the person does not move with the scene
    found, lost = camera_motion(scene, moved, person)
    assert found is not None
    assert not lost
    corners = np.array([[0, 0, 1], [220, 0, 1], [0, 180, 1], [220, 180, 1]])
    np.testing.assert_allclose(corners @ found.T, corners @ matrix.T, atol=0.5)


def test_without_anything_to_follow_no_camera_motion_is_claimed():
    plain = np.full((90, 120, 3), 80, np.uint8)
    assert camera_motion(plain, plain, np.zeros((90, 120), bool)) == (None, False)
    assert camera_motion(texture(1), texture(2), np.ones((96, 128), bool)) == (None, False)
    assert not make_plate([plain] * 3, [np.zeros((90, 120), np.float32)] * 3).camera_moves


def test_a_shadow_in_a_bare_room_is_not_the_camera():
    frames = []
    for n in range(5):
        frame = np.full((180, 220, 3), 120, np.uint8)
        spots = np.random.default_rng(0).integers((0, 0), (70, 16), (40, 2)) + np.array([40 + 12 * n, 140 + n])
        for x, y in spots.tolist():
            cv2.circle(frame, (x, y), 2, (60, 60, 60), -1)
        frames.append(frame)
    nobody = np.zeros((180, 220), bool)
    assert camera_motion(frames[0], frames[3], nobody) == (None, False)
    assert make_plate(frames, [nobody.astype(np.float32)] * 5).motion == 0


def test_a_scene_that_is_lost_is_told_from_one_that_has_nothing_to_follow():
    first, other = (texture(seed, 180, 220, 1.5) for seed in (1, 2))
    assert camera_motion(first, other, np.zeros((180, 220), bool)) == (None, True)
    assert make_plate([first, first, other], [np.zeros((180, 220), np.float32)] * 3).camera_moves


def test_a_plate_is_seen_from_where_a_frame_was_taken():
    scene = texture(3, 240, 300, 1.5)
    frames, masks = walk(scene, [10, 60, 120, 180, 220, 160, 30], SHAKES)
    plate = make_plate(frames, masks)
    inside = (slice(8, -8), slice(8, -8))
    for frame, mask, (dx, dy) in zip(frames, masks, SHAKES, strict=True):
        still = scene[3 + dy : 3 + dy + 234, 3 + dx : 3 + dx + 294]
        seen = seen_from(plate, frame, mask)
        assert psnr(seen.image[inside], still[inside]) > 28
        assert seen.seen.shape == plate.seen.shape
    assert seen_from(plate, frames[-1], masks[-1]) is plate
    nothing = np.full_like(frames[0], 80)
    assert seen_from(plate, nothing, masks[0]) is plate


# ------------------------------------------------------------------------------------------------ mattes


def test_the_guided_filter_keeps_constants_and_sums():
    guide = texture(5).astype(np.float32) / 255
    for value in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(
            guided_filter(guide, np.full((96, 128), value, np.float32), 4, 1e-3), value, atol=1e-4
        )
    a, b = (texture(seed)[..., 0].astype(np.float32) / 255 for seed in (6, 7))
    both = guided_filter(guide, 0.25 * a + 0.75 * b, 4, 1e-3)
    apart = 0.25 * guided_filter(guide, a, 4, 1e-3) + 0.75 * guided_filter(guide, b, 4, 1e-3)
    np.testing.assert_allclose(both, apart, atol=1e-4)


def test_the_guided_filter_smooths_but_not_across_edges():
    guide = np.zeros((60, 80, 3), np.float32)
    guide[:, 40:] = (0.8, 0.6, 0.3)
    rng = np.random.default_rng(0)
    noisy = (guide[..., 0] > 0) + rng.normal(0, 0.1, (60, 80)).astype(np.float32)
    out = guided_filter(guide, noisy, 5, 1e-4)
    assert out[10:-10, 10:39].std() < 0.05
    assert out[10:-10, 39].mean() < 0.1
    assert out[10:-10, 40].mean() > 0.9


@pytest.fixture(scope="module")
def scene(puppet) -> tuple[Image, np.ndarray, np.ndarray, Plate]:
    """A person twice as large as usual before a plate: picture, exact matte, coarse matte, plate."""
    size = (256, 320)
    body = puppet.body((70, 40), (30, 100), at=(128, 152), scale=168)
    plate = puppet.cloth(99, size, 6.0) // 3
    exact = puppet.matte(body, size)
    picture = np.round((puppet.cloth(0, size, 2.0) // 3 + 160) * exact[..., None] + plate * (1 - exact[..., None]))
    small = cv2.resize(exact, (40, 50), interpolation=cv2.INTER_AREA)
    coarse = cv2.GaussianBlur(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR), (0, 0), 3)
    return picture.astype(np.uint8), exact, coarse, Plate(plate, np.ones(exact.shape, np.float32), 0.0)


def test_a_coarse_mask_snaps_to_the_persons_edges(scene):
    picture, exact, coarse, _ = scene
    matte = refine_matte(picture, coarse)
    assert matte.shape == exact.shape
    assert matte.dtype == np.float32
    assert matte.min() >= 0
    assert matte.max() <= 1
    assert iou(matte, exact) > iou(coarse, exact) + 0.005
    assert np.abs(matte - exact).mean() < 0.6 * np.abs(coarse - exact).mean()
    assert not matte[:20].any()


def test_the_empty_scene_tells_what_the_mask_has_cut_off(scene):
    picture, exact, coarse, plate = scene
    thin = cv2.erode(coarse, np.ones((7, 7)))
    alone, with_plate = refine_matte(picture, thin), refine_matte(picture, thin, plate)
    assert iou(with_plate, exact) > iou(alone, exact) + 0.02
    assert iou(with_plate, exact) > iou(thin, exact) + 0.02
    # Where the plate was never seen it tells nothing.
    unseen = Plate(255 - plate.image, np.zeros_like(plate.seen), 0.0)
    np.testing.assert_allclose(refine_matte(picture, coarse, unseen), refine_matte(picture, coarse), atol=1e-4)


def test_no_person_has_no_matte(scene):
    assert not refine_matte(scene[0], np.full(scene[1].shape, 0.3, np.float32)).any()


def test_islands_are_taken_for_mistakes(scene):
    picture, _, coarse, _ = scene
    with_island = coarse.copy()
    with_island[285:295, 8:18] = 1
    assert refine_matte(picture, with_island)[275:, :30].max() < 0.35
    assert refine_matte(picture, coarse).max() > 0.95


def test_a_person_at_the_border_stays_whole():
    picture = np.full((80, 60, 3), 40, np.uint8)
    picture[30:, 10:50] = (210, 180, 160)
    coarse = np.zeros((80, 60), np.float32)
    coarse[30:, 10:50] = 1
    matte = refine_matte(picture, cv2.GaussianBlur(coarse, (0, 0), 2))
    assert matte[-1, 14:46].min() > 0.95
    assert iou(matte, coarse) > 0.93


def test_unmixing_keeps_solid_pixels_and_takes_the_background_out_of_the_rim():
    person, behind = np.array([200.0, 60, 60]), np.array([20.0, 220, 20])
    y, x = np.mgrid[:80, :80] + 0.5
    matte = np.clip((25 - np.hypot(x - 40, y - 40)) / 6 + 0.5, 0, 1).astype(np.float32)
    noise = np.random.default_rng(0).integers(-9, 10, (80, 80, 3))
    colour = matte[..., None] * (person + noise) + (1 - matte[..., None]) * behind
    picture = np.round(colour).astype(np.uint8)
    own = unmix(picture, matte)
    assert own.dtype == np.uint8
    np.testing.assert_array_equal(own[matte > 0.95], picture[matte > 0.95])
    rim = (matte > 0.05) & (matte < 0.6)
    assert np.abs(own[rim] - person).mean() < 6
    assert np.abs(picture[rim] - person).mean() > 60
    outside = (matte == 0) & (np.hypot(x - 40, y - 40) < 32)
    assert np.abs(own[outside] - person).mean() < 12


def test_without_anything_solid_nothing_is_unmixed():
    picture = texture(8)
    np.testing.assert_array_equal(unmix(picture, np.full((96, 128), 0.5, np.float32)), picture)


# ------------------------------------------------------------------------------------------------ other scenes


@pytest.mark.parametrize(("code", "colour"), [("#00ff00", (0, 255, 0)), ("#0A10fE", (10, 16, 254))])
def test_solid_colour(code, colour):
    plate = solid_colour(code, (30, 20))
    assert plate.shape == (20, 30, 3)
    assert plate.dtype == np.uint8
    assert (plate == colour).all()
    plate[0, 0] = 7  # a copy of its own


@pytest.mark.parametrize("size", [(60, 20), (20, 60), (100, 50), (31, 17), (300, 150)])
def test_covering_keeps_the_aspect_and_the_middle(size):
    y, x = np.mgrid[:80, :120].astype(np.float32)
    image = np.stack([x * 2, y * 3, 0 * x], 2).astype(np.uint8)
    covered = cover(image, size)
    assert covered.shape == (size[1], size[0], 3)
    scale = max(size[0] / 120, size[1] / 80)
    # The middle stays in the middle, and colours run as fast as the scale says, both ways.
    middle = covered[size[1] // 2, size[0] // 2].astype(float)
    np.testing.assert_allclose(middle[:2], (120, 120), atol=3 + 3 / scale)
    run_x = (covered[5, -3, 0].astype(float) - covered[5, 2, 0]) / (size[0] - 5)
    run_y = (covered[-3, 5, 1].astype(float) - covered[2, 5, 1]) / (size[1] - 5)
    assert run_x == pytest.approx(2 / scale, rel=0.15)
    assert run_y == pytest.approx(3 / scale, rel=0.15)


def test_covering_a_picture_of_the_same_size_changes_nothing():
    image = texture(9)
    np.testing.assert_array_equal(cover(image, (128, 96)), image)


# ------------------------------------------------------------------------------------------------ true masks


@pytest.mark.skipif(not SYNTHETIC.is_dir(), reason="the synthetic people are not here")
def test_refined_mattes_are_closer_to_the_exact_masks_than_the_estimators():
    from retarget.pose import estimate_images
    from retarget.video import open_reader

    coarse_scores, refined_scores = [], []
    for name in ("s000", "s003"):
        stored = np.load(SYNTHETIC / f"{name}_a.npz")
        t, h, w = stored["mask_shape"]
        exact = np.unpackbits(stored["mask_bits"], axis=1)[:, : h * w].reshape(t, h, w)
        with open_reader(SYNTHETIC / f"{name}_a.mp4") as frames:
            some = {i: frame for i, frame in enumerate(frames) if i in (5, 40)}
        empty = cv2.cvtColor(cv2.imread(str(SYNTHETIC / f"{name}_plate.jpg")), cv2.COLOR_BGR2RGB)
        plate = Plate(empty, np.ones((h, w), np.float32), 0.0)
        for (i, frame), (_, mask) in zip(some.items(), estimate_images(list(some.values())), strict=True):
            coarse_scores.append(iou(mask, exact[i]))
            refined_scores.append([iou(refine_matte(frame, mask, p), exact[i]) for p in (None, plate)])
    without, with_plate = np.mean(refined_scores, axis=0)
    assert without > np.mean(coarse_scores)
    assert with_plate > np.mean(coarse_scores)
