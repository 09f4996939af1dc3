"""A person's body and place, measured: true lengths of the bones, floor, resting pose, head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ..pose.base import pixels_per_metre
from ..pose.base import seen as seen_of
from ..skeleton import JOINTS, J
from ..types import Array, PoseTrack
from .base import EARS, HIPS, SHOULDERS, Float
from .head import head_of

_Ends = tuple[tuple[int, ...], tuple[int, ...]]


def _both(a: str, b: str) -> tuple[_Ends, ...]:
    return tuple(((J[f"{s}_{a}"],), (J[f"{s}_{b}"],)) for s in ("left", "right"))


SEGMENTS: Final[dict[str, tuple[_Ends, ...]]] = {
    "hips": (((HIPS[1],), (HIPS[0],)),),
    "shoulders": (((SHOULDERS[1],), (SHOULDERS[0],)),),
    "spine": ((HIPS, SHOULDERS),),
    "neck": ((SHOULDERS, EARS),),
    "upper_arm": _both("shoulder", "elbow"),
    "lower_arm": _both("elbow", "wrist"),
    "upper_leg": _both("hip", "knee"),
    "lower_leg": _both("knee", "ankle"),
    "foot": _both("heel", "foot_index"),
}
"""Bones whose lengths are compared; each a line from the mean of some joints to the mean of others, left and right."""
BONE: Final = {name: i for i, name in enumerate(SEGMENTS)}
FEET: Final = tuple(J[f"{side}_{name}"] for side in ("left", "right") for name in ("heel", "foot_index"))


@dataclass(frozen=True)
class Body:
    """A person's body and place, measured over a track or some pictures; all lengths in pixels of `size`.

    size        (width, height) of the pictures.
    scale       pixels per metre of mediapipe's world coordinates (a person's median distance to the camera).
    lengths     (9,) true lengths of the bones in `SEGMENTS`, not foreshortened; NaN where too little of it was seen.
    floor       y of the floor: the lowest point of the body, robustly; NaN when the feet are not seen.
    centre      x of mid hip.
    shoulder    y of mid shoulder.
    lower       share of the pictures in which hips, knees, ankles are seen (3,).
    rest        (33, 4) the median pose, relative to mid hip, with visibility.
    head        (11, 3) the head's joints relative to mid ear, in the attitude of the face.
    face        (468 or 478, 3) the face mesh relative to mid ear, in the most frontal attitude seen; None: none was.
    turn        (2, 2) lowest and highest turn of the head seen, relative to `head`: yaw, pitch, in degrees.
    """

    size: tuple[int, int]
    scale: float
    lengths: Array
    floor: float
    centre: float
    shoulder: float
    lower: Array
    rest: Array
    head: Array
    face: Array | None
    turn: Array

    def scaled(self, size: tuple[int, int]) -> Body:
        """The body in pictures resized to `size` (same aspect)."""
        s = size[1] / self.size[1]
        return replace(
            self,
            size=size,
            scale=self.scale * s,
            lengths=self.lengths * np.float32(s),
            floor=self.floor * s,
            centre=self.centre * s,
            shoulder=self.shoulder * s,
            rest=self.rest * np.array([s, s, s, 1], np.float32),
            head=self.head * np.float32(s),
            face=None if self.face is None else self.face * np.float32(s),
        )


def body_of(track: PoseTrack) -> Body:
    """Measures a person: over a whole track, or over a few references, even one.

    Raises ValueError when nobody was found in any picture.
    """
    if not track.found.all():
        track = track.select(np.flatnonzero(track.found))
    if not len(track):
        raise ValueError("no pose to measure a body by")
    points = track.body[..., :3]
    seen = seen_of(track)
    scales = pixels_per_metre(track)
    scale = float(np.median(scales))
    middle = points[:, HIPS].astype(np.float64).mean(axis=1)
    low = points[..., 1].max(axis=1).astype(np.float64)
    pairs = [[J[f"left_{n}"], J[f"right_{n}"]] for n in ("hip", "knee", "ankle")]
    lower = np.array([(seen[:, pair].min(axis=1) > 0.5).mean() for pair in pairs], np.float32)
    standing = seen[:, FEET].max(axis=1) > 0.5
    rest = [np.median((points[:, j] - middle) * (scale / scales)[:, None], axis=0) for j in range(len(JOINTS))]
    head, face, turn = head_of(track, scale / scales)
    return Body(
        size=track.size,
        scale=scale,
        lengths=_lengths(track, seen, scales, scale),
        floor=float(np.percentile(low[standing], 75)) if standing.mean() > 0.3 else float("nan"),
        centre=float(np.median(middle[:, 0])),
        shoulder=float(np.median(points[:, SHOULDERS, 1].astype(np.float64).mean(axis=1))),
        lower=lower,
        rest=np.c_[rest, np.median(track.body[..., 3], axis=0)].astype(np.float32),
        head=head,
        face=face,
        turn=turn,
    )


def _segment(points: Float, ends: _Ends) -> Float:
    """(T, 33, D) → (T, D): the bone's vector."""
    a, b = (points[:, joints].astype(np.float64).mean(axis=1) for joints in ends)
    vector: Float = b - a
    return vector


def _lengths(track: PoseTrack, seen: Float, scales: Float, scale: float) -> Array:
    """(9,) bone lengths in pixels at `scale`: 2D lengths with the foreshortening that the world coordinates tell taken
    out, the weighted 60 % quantile over time and both sides. Pictures count by visibility and by how little the bone is
    foreshortened."""
    flat, world = track.body[..., :2], track.world
    out = np.full(len(SEGMENTS), np.nan, np.float32)
    for n, sides in enumerate(SEGMENTS.values()):
        lengths, weights = [], []
        for ends in sides:
            tilted = _segment(world, ends)
            cosine = np.linalg.norm(tilted[:, :2], axis=1) / np.maximum(np.linalg.norm(tilted, axis=1), 1e-9)
            joints = [*ends[0], *ends[1]]
            lengths.append(np.linalg.norm(_segment(flat, ends), axis=1) / np.maximum(cosine, 0.1) / scales)
            weights.append(np.where(cosine > 0.4, cosine**4, 0) * np.where(seen[:, joints].min(axis=1) > 0.3, 1, 0))
        weight = np.concatenate(weights)
        if weight.sum() > 0.02 * len(weight):
            out[n] = _quantile(np.concatenate(lengths), weight, 0.6) * scale
    return out


def _quantile(values: Float, weights: Float, share: float) -> float:
    """The weighted quantile, interpolated between the middles of the steps."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    middle = (np.cumsum(weights) - weights / 2) / weights.sum()
    return float(np.interp(share, middle, values))
