"""Holes in pictures of which the hidden part is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from retarget import inpainting
from retarget.inpainting import detailed, fill_holes, interpolated, shift_map
from retarget.types import Image


def noise(seed: int, height: int, width: int, sigma: float = 1.0) -> Image:
    rough = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    rough = cv2.GaussianBlur(rough, (0, 0), sigma)
    return np.clip(128 + 45 * rough / rough.std(), 0, 255).astype(np.uint8)


def wall(height: int = 240, width: int = 300) -> Image:
    """Wallpaper whose pattern comes back every 60 pixels."""
    tile = noise(5, 60, 60, 2.0)
    return np.tile(tile, (height // 60 + 1, width // 60 + 1, 1))[:height, :width]


def a_hole(height: int = 240, width: int = 300) -> np.ndarray:
    hole = np.zeros((height, width), np.uint8)
    cv2.ellipse(hole, (width // 2, height // 2), (28, 70), 0, 0, 360, 1, -1)
    return hole > 0


def error(a: Image, b: Image, where: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b)[where].mean())


def test_nothing_is_changed_without_holes_nor_far_from_them():
    image = noise(2, 96, 128)
    assert fill_holes(image, np.zeros((96, 128), bool)) is image
    hole = np.zeros((96, 128), bool)
    hole[40:60, 50:80] = True
    filled = fill_holes(image, hole)
    assert filled.dtype == np.uint8
    far = cv2.dilate(hole.astype(np.uint8), np.ones((25, 25))) == 0
    np.testing.assert_array_equal(filled[far], image[far])


def test_of_a_picture_that_is_all_hole_nothing_is_known():
    assert (fill_holes(noise(2, 40, 50), np.ones((40, 50), bool)) == 127).all()


def test_a_pattern_goes_on():
    truth, hole = wall(), a_hole()
    image = np.where(hole[..., None], 0, truth).astype(np.uint8)
    filled = fill_holes(image, hole)
    assert error(filled, truth, hole) < 6
    assert error(interpolated(image, hole), truth, hole) > 25
    np.testing.assert_array_equal(fill_holes(image, hole), filled)  # nothing is left to chance


def test_a_large_picture_keeps_its_detail():
    """Shifts are found on a small copy and applied to the picture itself."""
    truth = cv2.resize(wall(), (1200, 960), interpolation=cv2.INTER_CUBIC)
    rough = np.tile(np.random.default_rng(0).normal(0, 12, (240, 240, 1)), (4, 5, 1))
    truth = np.clip(truth + rough, 0, 255).astype(np.uint8)
    hole = cv2.resize(a_hole().astype(np.uint8), (1200, 960), interpolation=cv2.INTER_NEAREST) > 0
    filled = fill_holes(np.where(hole[..., None], 0, truth).astype(np.uint8), hole)

    def sharpness(image: Image) -> float:
        inside = cv2.erode(hole.astype(np.uint8), np.ones((9, 9))) > 0
        return float(np.abs(cv2.Laplacian(image.astype(np.float32), cv2.CV_32F))[inside].mean())

    assert sharpness(filled) == pytest.approx(sharpness(truth), rel=0.15)


def test_tones_are_those_around_and_no_seam_shows():
    """The pattern comes from where it is lighter; copied as it is, it would stand out by up to 40."""
    slope = np.linspace(-60, 60, 300)[None, :, None]
    pattern = np.tile(noise(5, 60, 60, 2.0), (5, 6, 1))[:240, :300].astype(float)
    truth = np.clip(128 + 0.4 * (pattern - 128) + slope, 0, 255).astype(np.uint8)
    hole = a_hole()
    image = np.where(hole[..., None], 0, truth).astype(np.uint8)
    filled = fill_holes(image, hole)
    smooth = [cv2.GaussianBlur(x.astype(np.float32), (0, 0), 8) for x in (filled, truth)]
    assert error(*smooth, hole) < 5
    rim = cv2.morphologyEx(hole.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    jumps = [np.abs(np.diff(x.astype(float), axis=1))[rim[:, 1:]].mean() for x in (filled, truth)]
    assert jumps[0] < 1.4 * jumps[1]


def test_shifts_are_those_of_the_pattern():
    hole = a_hole()
    found = shift_map(np.where(hole[..., None], 0, wall()).astype(np.uint8), hole)
    assert found is not None
    assert found.which.shape == (240, 300)
    assert all(dy % 60 == 0 and dx % 60 == 0 for dy, dx in found.shifts)


def test_what_a_shift_does_not_reach_keeps_its_tones():
    """A shift that leads out of the picture, or into the hole, says nothing."""
    truth, hole = noise(1, 120, 160), np.zeros((120, 160), bool)
    hole[40:80, 60:100] = True
    calm = interpolated(truth, hole)
    for shift in ((0, 10_000), (0, 1)):
        found = inpainting.ShiftMap(np.zeros((120, 160), np.uint8), [shift])
        middle = detailed(calm, hole, found)[50:70, 65:90].astype(float)
        assert np.abs(middle - calm[50:70, 65:90]).max() < 25


def test_tones_are_all_there_is_without_contrib(monkeypatch):
    image, hole = wall(), a_hole()
    monkeypatch.delattr(cv2, "xphoto")
    assert shift_map(image, hole) is None
    np.testing.assert_array_equal(fill_holes(image, hole), interpolated(image, hole))


def test_of_a_plain_wall_there_is_nothing_to_copy():
    image, hole = np.full((120, 160, 3), 200, np.uint8), a_hole(120, 160)
    filled = fill_holes(np.where(hole[..., None], 0, image).astype(np.uint8), hole)
    assert np.abs(filled.astype(int) - 200).max() <= 1


def test_a_hole_that_the_small_copy_does_not_show():
    """OpenCV's shift map does not survive a picture in which nothing is missing."""
    image, hole = noise(3, 2, 4000), np.zeros((2, 4000), bool)
    image, hole = np.repeat(image, 1500, 0), np.repeat(hole, 1500, 0)
    hole[1500, 2000] = True
    assert shift_map(image, hole) is None
    assert fill_holes(image, hole).shape == image.shape


@pytest.mark.parametrize("seed", range(4))
def test_holes_of_any_shape_in_small_pictures(seed):
    rng = np.random.default_rng(seed)
    for _ in range(8):
        height, width = rng.integers(4, 80, 2).tolist()
        image, hole = noise(seed, height, width), rng.random((height, width)) < rng.random()
        filled = fill_holes(image, hole)
        assert filled.shape == image.shape
        assert filled.dtype == np.uint8


def test_a_hole_at_the_border():
    truth, hole = wall(), np.zeros((240, 300), bool)
    hole[150:, 120:180] = True
    image = np.where(hole[..., None], 0, truth).astype(np.uint8)
    assert error(fill_holes(image, hole), truth, hole) < 0.6 * error(interpolated(image, hole), truth, hole)


def test_the_correction_solves_its_equation():
    rng, inside = np.random.default_rng(0), a_hole(90, 110)
    inside[:, :2] = False
    wanted = cv2.GaussianBlur(rng.normal(0, 1, (90, 110, 3)).astype(np.float32), (0, 0), 3) * 50 * inside[..., None]
    padded = np.pad(wanted, ((1, 1), (1, 1), (0, 0)), mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * wanted
    found = inpainting.solved(np.where(inside[..., None], laplacian, 0).astype(np.float32), inside)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
