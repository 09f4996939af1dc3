"""Jitter goes, movement stays where and when it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retarget.motion import smooth
from retarget.skeleton import J

from .conftest import dancer


def test_strength_0_is_the_same_object_and_constants_stay() -> None:
    track = dancer(still=True)
    assert smooth(track, 0.0) is track
    calm = smooth(track, 1.0)
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_allclose(getattr(calm, name), getattr(track, name), atol=1e-3)


@pytest.mark.parametrize(("strength", "most"), [(0.3, 0.7), (1.0, 0.45)])
def test_jitter_shrinks(strength: float, most: float) -> None:
    track = dancer(200, still=True)
    noise = np.random.default_rng(3).normal(0, 1.5, track.body[..., :3].shape).astype(np.float32)
    body = track.body.copy()
    body[..., :3] += noise
    calm = smooth(replace(track, body=body), strength)
    left = (calm.body - track.body)[..., :2].std()
    assert left < most * 1.5


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_fast_movement_has_no_lag(strength: float) -> None:
    track = dancer(61, still=True)
    ramp = 200 * np.clip((np.arange(61) - 28) / 4, 0, 1).astype(np.float32)  # 0.8 m in 4 pictures
    body = track.body.copy()
    wrist = J["left_wrist"]
    body[:, wrist, 0] += ramp
    moved = smooth(replace(track, body=body), strength).body[:, wrist, 0] - track.body[0, wrist, 0]
    middle = np.interp(100, moved, np.arange(61))
    assert abs(middle - 30) < 0.5
    assert moved[-1] == pytest.approx(200, abs=2)


def test_smoothing_is_the_same_backwards_in_time() -> None:
    track = dancer()
    back = np.arange(80)[::-1]
    np.testing.assert_allclose(smooth(track.select(back), 0.6).body, smooth(track, 0.6).select(back).body, atol=1e-3)


def test_smoothing_does_not_depend_on_the_resolution() -> None:
    track = dancer()
    small = smooth(track.scaled((320, 360)), 0.5)
    np.testing.assert_allclose(small.body, smooth(track, 0.5).scaled((320, 360)).body, atol=0.02)


def test_hands_that_come_and_go_are_smoothed_where_they_are() -> None:
    track = dancer()
    hands = track.hands.copy()
    hands[30:40, 0] = np.nan
    calm = smooth(replace(track, hands=hands), 0.5)
    assert np.isnan(calm.hands[30:40, 0]).all()
    assert np.isfinite(calm.hands[40:, 0]).all()
    assert np.abs(calm.hands - track.hands)[40:42, 0].max() < 8
