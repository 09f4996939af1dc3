"""Gaps in a track, filled from the poses around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from ..types import Array, PoseTrack
from .base import NOSE, WRISTS, XY

LONGEST: Final = 0.5
"""Seconds of a gap that is interpolated."""


def fill_gaps(track: PoseTrack, longest: float = LONGEST) -> PoseTrack:
    """`track` without gaps in the body: the pose is finite in every picture, provided it was found in one.

    Gaps of at most `longest` seconds between two poses are interpolated linearly; longer ones, and those at the ends,
    hold the nearest pose. Hands and face are filled, relative to wrist and nose, only where the gap is at most
    `longest`; else they stay NaN. `missed` is kept.
    """
    if not track.found.any() or not len(track):
        return track
    most = int(longest * track.fps)
    body, world = fill(track.body, most, hold=True), fill(track.world, most, hold=True)
    wrists = body[:, WRISTS, None, :3] * XY
    hands = track.hands
    if np.isfinite(hands[:, :, 0, 0]).any():
        hands = np.stack([attached(hands[:, i], wrists[:, i], most) for i in (0, 1)], axis=1)
    return replace(track, body=body, world=world, hands=hands, face=attached(track.face, nose_of(body), most))


def nose_of(body: Array) -> Array:
    """(T, 1, 3) what the face mesh is attached to."""
    return body[:, None, NOSE, :3] * XY


def attached(points: Array, anchor: Array, most: int) -> Array:
    """Points (T, N, 3) with gaps of at most `most` rows filled, relative to `anchor` (T, 1, 3)."""
    if not np.isfinite(points[:, 0, 0]).any():
        return points
    filled = fill(points - anchor, most, hold=False) + anchor
    # What was found stays as it was to the bit.
    return np.where(np.isfinite(points), points, filled).astype(np.float32)


def fill(values: Array, most: int, *, hold: bool) -> Array:
    """`values` (T, ...) with rows that hold a NaN filled from the rows around them, see `fill_gaps`.

    hold: whether gaps longer than `most` rows take the nearest row; else they stay NaN.
    """
    flat = values.reshape(len(values), -1)
    good = np.flatnonzero(np.isfinite(flat).all(axis=1))
    if len(good) in (0, len(flat)):
        return values
    rows = np.arange(len(flat))
    right = np.searchsorted(good, rows).clip(max=len(good) - 1)  # the first good row from here on
    left = (np.searchsorted(good, rows, side="right") - 1).clip(min=0)
    a, b = good[left], good[right]
    inside = (a <= rows) & (rows <= b)
    length = np.where(inside, b - a - 1, np.maximum(np.abs(rows - a), np.abs(rows - b)))
    ends = ~inside  # before the first or after the last good row: the gap is as long as that end
    length[rows < good[0]] = good[0]
    length[rows > good[-1]] = len(flat) - 1 - good[-1]
    share = np.where(b > a, (rows - a) / np.maximum(b - a, 1), 0.0)
    share = np.where((length > most) & ~ends, np.rint(share), share)[:, None]
    out, gaps = flat.copy(), np.setdiff1d(rows, good)
    out[gaps] = flat[a[gaps]] * (1 - share[gaps]) + flat[b[gaps]] * share[gaps]
    if not hold:
        out[length > most] = np.nan
    return out.reshape(values.shape)
