"""Gaps in tracks whose whole is known."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from retarget.motion import fill_gaps
from retarget.types import PoseTrack

from .conftest import SIZE, dancer


def linear(pictures: int = 50) -> PoseTrack:
    t = np.arange(pictures, dtype=np.float32)[:, None, None]
    body = np.concatenate([np.broadcast_to(t * (2, -1, 3), (pictures, 33, 3)), np.ones((pictures, 33, 1))], axis=2)
    return PoseTrack(
        body=body.astype(np.float32),
        world=np.broadcast_to(t * 0.01, (pictures, 33, 3)).astype(np.float32),
        face=np.broadcast_to(t * (2, -1, 1), (pictures, 468, 3)).astype(np.float32),
        hands=np.broadcast_to(t[..., None] * (2, -1, 1), (pictures, 2, 21, 3)).astype(np.float32),
        size=SIZE,
        fps=Fraction(10),
    )


def without(track: PoseTrack, *rows: int) -> PoseTrack:
    arrays = {name: getattr(track, name).copy() for name in ("body", "world", "face", "hands")}
    for array in arrays.values():
        array[list(rows)] = np.nan
    return replace(track, **arrays, missed=tuple(rows))


def test_short_gaps_are_interpolated_exactly() -> None:
    whole = linear()
    filled = fill_gaps(without(whole, 7, 20, 21, 22, 23, 24), longest=0.5)
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_allclose(getattr(filled, name), getattr(whole, name), atol=1e-4)
    assert filled.missed == (7, 20, 21, 22, 23, 24)


def test_long_gaps_hold_the_nearest_pose_and_show_no_hands_and_face() -> None:
    whole = linear()
    gap = range(20, 32)
    filled = fill_gaps(without(whole, *gap), longest=0.5)
    np.testing.assert_array_equal(filled.body[21], whole.body[19])
    np.testing.assert_array_equal(filled.body[30], whole.body[32])
    assert np.isnan(filled.face[20:32]).all()
    assert np.isnan(filled.hands[20:32]).all()


def test_the_ends_hold_the_nearest_pose() -> None:
    whole = linear()
    filled = fill_gaps(without(whole, 0, 1, 49), longest=0.5)
    np.testing.assert_array_equal(filled.body[:2], whole.body[[2, 2]])
    np.testing.assert_array_equal(filled.body[49], whole.body[48])
    assert np.isfinite(filled.face[[0, 1, 49]]).all()
    late = fill_gaps(without(whole, *range(10)), longest=0.5)
    np.testing.assert_array_equal(late.body[0], whole.body[10])
    assert np.isnan(late.face[:10]).all()


def test_a_missing_hand_alone_follows_its_wrist() -> None:
    whole = linear()
    hands = whole.hands.copy()
    hands[20:24, 1] = np.nan
    filled = fill_gaps(replace(whole, hands=hands))
    np.testing.assert_allclose(filled.hands, whole.hands, atol=1e-4)


def test_what_was_found_is_untouched_and_nothing_found_stays_nothing() -> None:
    track = dancer()
    filled = fill_gaps(without(track, 5, 6))
    keep = np.delete(np.arange(80), [5, 6])
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_array_equal(getattr(filled, name)[keep], getattr(track, name)[keep])
    nobody = without(track, *range(80))
    assert fill_gaps(nobody) is nobody
