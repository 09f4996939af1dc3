"""A long movement, picture by picture, is what its steps give at once."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from retarget.motion import Movement, body_of, fill_gaps, fit, movement, scale_to, smooth
from retarget.pose import Motion
from retarget.pose.cache import packed
from retarget.types import PoseTrack

from .conftest import dancer


def long_motion(count: int) -> Motion:
    """A dancer with gaps in face and hands, short and long, some of them where windows meet."""
    track = dancer(count)
    face, hands = track.face.copy(), track.hands.copy()
    for first, length in ((3, 4), (25, 14), (60, 3), (100, 9), (count - 5, 5)):
        face[first : first + length] = np.nan
        hands[first + 1 : first + length, 0] = np.nan
    return Motion.of(packed(replace(track, face=face, hands=hands)).__getitem__)


def with_irises(track: PoseTrack) -> PoseTrack:
    """Eyes that look to and fro."""
    to_and_fro = np.sin(np.arange(len(track)))[:, None, None] * np.array([1.5, 0.5, 0])
    eyes = track.face[:, 300:310] + to_and_fro
    return replace(track, face=np.concatenate([track.face, eyes], axis=1).astype(np.float32))


@pytest.mark.parametrize("window", [1, 7, 32, 1000])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_movement_is_what_the_steps_one_by_one_give(
    monkeypatch: pytest.MonkeyPatch, window: int, strength: float, aligned: bool
) -> None:
    known, size = long_motion(130), (320, 360)
    calm = smooth(fill_gaps(known.whole()), strength)
    body = body_of(dancer(40)) if aligned else None
    wanted = scale_to(calm, size) if body is None else fit(calm, body, size=size)
    monkeypatch.setattr(movement, "WINDOW", window)
    found = Movement(known, smoothness=strength, body=body, size=size)
    assert (len(found), found.size, found.fps) == (130, size, known.track.fps)
    for rows in ([0], [31], range(5, 9), range(130)):
        part = found.select(rows)
        for name in ("body", "face", "hands"):
            np.testing.assert_allclose(getattr(part, name), getattr(wanted, name)[list(rows)], atol=2e-4)
    assert np.isnan(calm.face).any()


def test_face_meshes_are_read_around_what_is_asked_for() -> None:
    """Four seconds, after which nothing is remembered, and a gap's length before and behind; not more."""
    known = long_motion(2000)
    read: list[tuple[int, int]] = []

    class Watched:
        def __call__(self, first: int, last: int) -> np.ndarray:
            read.append((first, last))
            return known.faces(first, last)

    watched = Motion(known.track, Watched())  # type: ignore[arg-type]
    found = Movement(watched, smoothness=0.3, body=None, size=(320, 360))
    assert read == []
    part = found.select([1000])
    around = 4 * float(known.track.fps) + 0.5 * float(known.track.fps) + 2
    ((first, last),) = read
    assert 768 - around <= first <= 768
    assert 1024 <= last <= 1024 + around
    wanted = scale_to(smooth(fill_gaps(known.whole()), 0.3), (320, 360))
    np.testing.assert_allclose(part.face, wanted.face[1000:1001], atol=1e-4)
    found.select([1001])
    assert len(read) == 1


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("theirs", [True, False])
def test_irises_change_nothing_else(aligned: bool, mine: bool, theirs: bool) -> None:
    """A driver with or without, fitted to a body with or without: gaze turns no head."""
    driver, avatar = long_motion(60).whole(), dancer(40)
    known, body = (with_irises(driver) if mine else driver), body_of(with_irises(avatar) if theirs else avatar)
    assert body.face is not None
    np.testing.assert_array_equal(body.face[:468], body_of(avatar).face)
    made, plain = (
        Movement(Motion.of(packed(t).__getitem__), smoothness=0.3, body=b if aligned else None, size=(320, 360)).select(
            range(60)
        )
        for t, b in ((known, body), (driver, body_of(avatar)))
    )
    points = 478 if (theirs if aligned else mine) else 468
    assert made.face.shape == (60, points, 3)
    # Meshes are packed in steps of the largest extent, and around their mean, which the irises are part of.
    np.testing.assert_allclose(made.face[:, :468], plain.face, atol=0.02)
    np.testing.assert_allclose(made.body, plain.body, atol=0.02)
    np.testing.assert_array_equal(np.isnan(made.face[:, -1]), np.isnan(plain.face[:, -1]))


def test_irises_are_filled_and_smoothed_like_the_rest() -> None:
    track = with_irises(dancer(40))
    gappy = track.face.copy()
    gappy[10:13] = np.nan
    out = smooth(fill_gaps(replace(track, face=gappy)), 0.3)
    assert out.face.shape == (40, 478, 3)
    assert np.isfinite(out.face).all()
    size = (track.size[0] * 2, track.size[1] * 2)
    np.testing.assert_allclose(scale_to(out, size).face, 2 * out.face, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.reliability("6. Length", "a motion three times as long", "a fraction of its face meshes more memory")
def test_a_long_movement_takes_little_memory() -> None:
    """Face meshes alone would take 5616 bytes for each picture."""
    body = body_of(dancer(40))

    def measured(count: int) -> tuple[int, int]:
        """Bytes at most while it is made, and while it is drawn."""
        known = long_motion(count)
        tracemalloc.start()
        try:
            found = Movement(known, smoothness=0.3, body=body, size=(320, 360))
            _, making = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for i in range(0, count, 200):
                found.select([i])
            return making, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    (a, b), (c, d) = measured(600), measured(1800)
    assert c - a < 1200 * 5616 / 2
    assert d - b < 1200 * 5616 / 3
