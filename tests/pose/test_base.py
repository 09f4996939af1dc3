"""The helpers that pose estimators share."""

from __future__ import annotations

import numpy as np
import pytest

from retarget.errors import UsageError
from retarget.pose.base import empty_track, fitting, person_point, pixels_per_metre, teleports


def walker(pictures: int = 60, step: float = 4.0) -> np.ndarray:
    """(T, 33, 4) a rigid body, 160 px tall, that moves `step` pixels per picture."""
    shape = np.random.default_rng(0).uniform((0, 0, 0, 1), (60, 160, 0, 1), (33, 4))
    shape[[11, 12, 23, 24, 25, 26, 27, 28], 1] = (0, 0, 60, 60, 110, 110, 160, 160)
    body = np.repeat(shape[None], pictures, axis=0)
    body[..., 0] += step * np.arange(pictures)[:, None]
    return body.astype(np.float32)


@pytest.mark.parametrize(("text", "point"), [("largest", None), ("12,40", (12.0, 40.0)), ("0.5, 7", (0.5, 7.0))])
def test_person_is_read(text: str, point: tuple[float, float] | None) -> None:
    assert person_point(text) == point


@pytest.mark.parametrize("text", ["", "left", "12", "1,2,3", "-4,10", "nan,1", "1;2", "inf,2"])
def test_a_person_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--person"):
        person_point(text)


@pytest.mark.parametrize(
    ("size", "want"),
    [((640, 480), (640, 480)), ((1920, 1080), (960, 540)), ((1080, 1920), (540, 960)), ((4000, 1), (960, 1))],
)
def test_large_pictures_are_scaled_down_and_small_ones_left(size: tuple[int, int], want: tuple[int, int]) -> None:
    assert fitting(size) == want


def test_fast_movement_is_no_teleport() -> None:
    assert not teleports(walker(step=30)).any()
    swing = walker(step=0)
    swing[..., 0] += 60 * np.sin(np.arange(60) * 0.6)[:, None]  # a violent sway: 120 px and back in ten pictures
    assert not teleports(swing).any()


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_pose_that_jumps_away_and_back_is_a_teleport(length: int) -> None:
    body = walker()
    body[30 : 30 + length, :, 0] += 250
    assert np.flatnonzero(teleports(body)).tolist() == list(range(30, 30 + length))


def test_a_pose_of_another_size_is_a_teleport() -> None:
    body = walker(step=0)
    middle = body[:, [11, 12, 23, 24], :2].mean(axis=1, keepdims=True)
    body[20:22, :, :2] = (middle + 0.4 * (body[..., :2] - middle))[20:22]
    assert np.flatnonzero(teleports(body)).tolist() == [20, 21]


def test_somebody_who_stays_elsewhere_is_no_teleport() -> None:
    body = walker()
    body[30:, :, 0] += 250  # a cut in the video
    assert not teleports(body).any()


def test_teleports_are_seen_beside_gaps() -> None:
    body = walker()
    body[[28, 33]] = np.nan
    body[30, :, 0] += 300
    assert np.flatnonzero(teleports(body)).tolist() == [30]


def test_pixels_per_metre_does_not_change_with_foreshortening() -> None:
    rng = np.random.default_rng(2)
    track = empty_track(5, (2000, 2000))
    track.world[:] = rng.normal(size=(5, 33, 3))
    track.world[..., 1] *= np.linspace(0.1, 1, 5)[:, None]  # lying down, bit by bit
    track.body[..., :2] = track.world[..., :2] * 210 + 1000
    track.body[..., 2:] = 1
    np.testing.assert_allclose(pixels_per_metre(track), 210, rtol=1e-4)
