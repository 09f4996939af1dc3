"""References as arrays that an avatar stores, as what a checkpoint keeps, and as tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from retarget.background import Plate
from retarget.references import (
    arrays,
    check_stored,
    contact_shadow,
    has_irises,
    packed,
    pixels,
    references,
    stored_track,
    unpacked,
    working_size,
)

# ------------------------------------------------------------------------------------------------ sizes and tensors


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((1920, 1080), 540, (960, 540)),
        ((1080, 1920), 512, (512, 910)),
        ((480, 640), 512, (480, 640)),  # never enlarged
        ((481, 641), 4000, (480, 640)),
        ((333, 777), 100, (100, 234)),
        ((5, 3), 512, (4, 4)),
    ],
)
def test_working_size(size, short, expected):
    assert working_size(*size, short) == expected


def test_working_sizes_are_even_and_keep_the_aspect():
    rng = np.random.default_rng(0)
    for width, height, short in rng.integers(64, 2000, (200, 3)).tolist():
        w, h = working_size(width, height, short)
        assert w % 2 == h % 2 == 0
        assert min(w, h) <= short + 1
        assert w <= width + 1
        assert h <= height + 1
        scale = min(1.0, short / min(width, height))
        assert abs(w - scale * width) <= 1
        assert abs(h - scale * height) <= 1


def test_pixels_become_tensors_from_minus_one_to_one():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 1] = (0, 255, 51)
    tensor = pixels(image)
    assert tensor.shape == (3, 2, 3)
    torch.testing.assert_close(tensor[:, 0, 1], torch.tensor([-1.0, 1.0, -0.6]))
    assert pixels(image[:, ::-1]).shape == (3, 2, 3)  # views, too


def test_what_is_stored_comes_back(puppet):
    gathered = puppet.gathered(puppet.body(), puppet.body((80, 80)), puppet.body((150, 120)), details=True)
    stored = arrays(gathered)
    known = references(stored)
    assert known.rgb.shape == (1, 3, 3, 160, 128)
    assert known.matte.shape == (1, 3, 1, 160, 128)
    assert known.plate.shape == (1, 3, 160, 128)
    assert known.poses.picture == (160, 128)
    for k in range(3):
        torch.testing.assert_close(known.rgb[0, k], pixels(gathered.frames[k]))
        np.testing.assert_allclose(known.matte[0, k, 0], gathered.mattes[k], atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(known.plate[0], pixels(gathered.plate.image))
    np.testing.assert_array_equal(known.poses.body[0], gathered.poses.body)
    np.testing.assert_array_equal(known.poses.face[0], gathered.poses.face)
    np.testing.assert_array_equal(known.poses.hands[0], gathered.poses.hands)
    track = stored_track(stored, "track")
    assert track.size == gathered.size == (128, 160)
    np.testing.assert_array_equal(track.body, gathered.track.body)
    assert known.shadow == pytest.approx(contact_shadow(gathered))


def test_irises_are_stored_kept_and_read(puppet):
    gathered = puppet.gathered(puppet.body(), puppet.body((80, 80)), details=True)
    assert not has_irises(arrays(gathered))
    assert not has_irises({"labels": np.zeros((2, 4, 4), np.uint8)})
    looking = replace(
        gathered, track=puppet.with_irises(gathered.track), windows=tuple(map(puppet.with_irises, gathered.windows))
    )
    again = unpacked(packed(looking))
    np.testing.assert_array_equal(again.track.face, looking.track.face)
    stored = arrays(again)
    assert has_irises(stored)
    check_stored(stored, (128, 160), 2)
    np.testing.assert_array_equal(stored_track(stored, "pose").face, looking.poses.face)
    some = references(stored, [1], (64, 80)).poses.face
    assert some.shape == (1, 1, 478, 3)
    torch.testing.assert_close(some[0, 0], torch.from_numpy(looking.poses.face[1] / 2))


def test_some_references_in_another_size(puppet):
    stored = arrays(puppet.gathered(puppet.body(), puppet.body((80, 80)), puppet.body((150, 120)), details=True))
    whole, some = references(stored), references(stored, [2, 0], (64, 80))
    assert some.rgb.shape == (1, 2, 3, 80, 64)
    assert some.matte.shape == (1, 2, 1, 80, 64)
    assert some.plate.shape == (1, 3, 80, 64)
    assert some.poses.picture == (80, 64)
    for mine, theirs in enumerate((2, 0)):
        torch.testing.assert_close(some.poses.body[0, mine, :, :3], whole.poses.body[0, theirs, :, :3] / 2)
        torch.testing.assert_close(some.poses.face[0, mine], whole.poses.face[0, theirs] / 2)
        small = torch.nn.functional.interpolate(whole.rgb[0, theirs][None], (80, 64), mode="area")[0]
        torch.testing.assert_close(some.rgb[0, mine], small, atol=0.01, rtol=0)  # rounded to 8 bits
    assert references(stored, [1], (128, 160)).rgb.shape == (1, 1, 3, 160, 128)


def test_missing_faces_stay_missing(puppet):
    stored = arrays(puppet.gathered(puppet.body()))
    assert references(stored, size=(64, 80)).poses.face.isnan().all()
    assert np.isnan(stored_track(stored, "pose").hands).all()


# ------------------------------------------------------------------------------------------------ the feet's shadow


def darkened(puppet, factor: float):
    """The puppet, with the floor around its feet darkened in soft ellipses."""
    gathered = puppet.gathered(*(puppet.body(legs=n) for n in (6, 20)))
    y, x = np.mgrid[:160, :128] + 0.5
    pictures = []
    for body, matte in zip(gathered.poses.body, gathered.mattes, strict=True):
        shade = np.zeros((160, 128))
        for foot in (29, 30):
            cx, cy = body[[foot, foot + 2], :2].mean(0)
            shade = np.maximum(shade, np.hypot((x - cx) / 16, (y - cy) / 9) < 1)
        floor = gathered.plate.image * (1 - (1 - factor) * shade[..., None])
        pictures.append(np.round(puppet.cloth() * matte[..., None] + floor * (1 - matte[..., None])))
    return replace(gathered, pictures=np.clip(pictures, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("factor", [1.0, 0.8, 0.6])
def test_the_shadow_under_the_feet_is_measured(puppet, factor):
    assert contact_shadow(darkened(puppet, factor)) == pytest.approx(1 - factor, abs=0.04)


def test_a_bright_floor_casts_no_shadow_and_a_black_one_not_all(puppet):
    assert contact_shadow(darkened(puppet, 1.2)) == 0
    assert contact_shadow(darkened(puppet, 0.1)) == 0.5


def test_no_shadow_where_the_floor_was_never_seen(puppet):
    gathered = darkened(puppet, 0.6)
    hidden = Plate(gathered.plate.image, np.zeros_like(gathered.plate.seen), 0.0)
    assert contact_shadow(replace(gathered, plate=hidden)) == 0
