"""Where a fitted pose goes in the avatar's picture."""

from __future__ import annotations

from typing import Final

import numpy as np

from ..skeleton import FACE_JOINTS, J
from .base import EARS, HIPS, SHOULDERS, Float, soft
from .body import Body
from .gaps import fill
from .smoothing import gauss

CORE: Final = tuple(J[f"{s}_{n}"] for s in ("left", "right") for n in ("shoulder", "hip", "knee", "ankle", "ear"))


def place_of(
    points: Float, posed: Float, body: Body, mine: Body, leg: Float, near: Float, hidden: list[str], fps: float
) -> Float:
    """(T, 2) where mid hip goes in the avatar's picture.

    Args:
        points: (T, 33, 3) the driver's pose. posed: the fitted one, relative to mid hip.
        leg: (T,) the avatar's leg length over the driver's.
        near: (T,) how much nearer the avatar is shown than it was, as the logarithm of its size.
        hidden: which of `tree.LOWER` the driver lacks though the avatar has them.
    """
    width, height = body.size
    rest = _rest(body)
    shoulders_seen = body.rest[SHOULDERS, 3].min() > 0.5 and rest[SHOULDERS, 1].max() < height
    standing = bool(np.isfinite(body.floor))
    anchor = HIPS if standing and "hips" not in hidden else SHOULDERS if standing or shoulders_seen else EARS
    start, mean = rest[anchor, :2].mean(axis=0), posed[:, anchor, :2].astype(np.float64).mean(axis=1)
    moved = points[:, anchor, :2].astype(np.float64).mean(axis=1)
    origin = np.array([mine.centre, 0.0]) if anchor is HIPS else np.nanmedian(moved, axis=0)
    moved = (moved - origin) * leg[:, None]
    if standing:
        low, reach = points[..., 1].max(axis=1).astype(np.float64), posed[..., 1].max(axis=1).astype(np.float64)
        y = body.floor - reach
        if not hidden and np.isfinite(mine.floor):  # else there is no floor to jump from
            ground = _ground(low, fps)
            # The floor line follows steps towards and away from the camera, as a camera 1.5 m above the floor sees
            # them, and not beyond the picture's edge.
            bound = body.scale * (1.5 * np.abs(np.exp(near) - 1) + 0.05)
            drift = (ground - mine.floor) * leg
            drift = soft(drift, 0.6 * bound, bound)
            drift = np.where(drift > 0, soft(drift, 0.5 * _room(body), _room(body)), drift)
            y = y + drift - (ground - low) * leg
    else:
        y = start[1] + soft(moved[:, 1], 0.05 * height, 0.12 * height) - mean[:, 1]
    stand = body.centre if anchor is HIPS else start[0] - mean[:, 0]
    core = posed[:, _core(body), 0] + np.reshape(stand, (-1, 1))
    margin = 0.1 * body.scale
    travel = _travel(moved[:, 0], core.min(axis=1) - margin, core.max(axis=1) + margin, width)
    return np.stack([stand + travel, y], axis=1)


def _rest(body: Body) -> Float:
    """(33, 3) the resting pose where it stands in the picture."""
    place = np.array([body.centre, body.shoulder - body.rest[SHOULDERS, 1].mean(), 0])
    rest: Float = body.rest[:, :3] + place
    return rest


def _core(body: Body) -> list[int]:
    """The joints that should stay inside the picture: head, trunk and legs, as far as they are in the avatar's."""
    y = _rest(body)[:, 1]
    return [j for j in CORE if j in EARS or (body.rest[j, 3] > 0.5 and y[j] < body.size[1])]


def _ground(low: Float, fps: float) -> Float:
    """(T,) the driver's floor line (y): the lowest point within half a second, smoothed. A jump does not lift it, for
    nobody stays in the air that long; steps towards the camera and away do."""
    low = fill(low[:, None].astype(np.float32), 0, hold=True)[:, 0].astype(np.float64)
    reach = max(1, round(0.5 * fps))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(low, reach, mode="edge"), 2 * reach + 1)
    return gauss(np.percentile(windows, 85, axis=1), 0.2 * fps)


def _travel(travel: Float, left: Float, right: Float, width: int) -> Float:
    """(T,) the way sideways, shifted and, if it must, compressed so that the body's core stays inside the picture.

    Args:
        travel: (T,) wanted displacement.
        left, right: (T,) the core's edges without it.
    """
    ok = np.isfinite(travel)
    if not ok.any():
        return travel

    def range_of(share: float) -> tuple[float, float]:
        """Between which shifts everything fits, 2 % of the pictures aside."""
        low = np.percentile(-left[ok] - share * travel[ok], 98)
        high = np.percentile(width - right[ok] - share * travel[ok], 2)
        return float(low), float(high)

    share = 1.0
    if (now := range_of(1.0))[0] > now[1]:
        a, b = 0.0, 1.0
        for _ in range(20):
            share = (a + b) / 2
            low, high = range_of(share)
            a, b = (share, b) if low <= high else (a, share)
        share = a
        now = range_of(share)
    low, high = now
    shift = (low + high) / 2 if low > high else float(np.clip(0.0, low, high))
    return share * travel + shift


def nearest(body: Body) -> float:
    """How far the avatar may come nearer, as the logarithm of its growth: standing, it should fit into the picture."""
    head = float(body.rest[FACE_JOINTS, 1].min())
    if not np.isfinite(body.floor):
        return 0.3
    tall = (float(body.rest[:, 1].max()) - head) * 1.08  # and the skull above the eyes
    return float(np.clip(np.log((body.floor + 0.5 * _room(body)) / max(tall, 1.0)), 0.05, 0.3))


def _room(body: Body) -> float:
    """Pixels that the floor line may move down, towards the camera: to the picture's edge."""
    return max(body.size[1] - body.floor, 0.04 * body.size[1])
