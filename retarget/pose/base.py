"""What every pose estimator offers, and the few helpers they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..skeleton import FACE_POINTS, HAND_POINTS, JOINTS, REFINED_POINTS, J
from ..types import Array, Image, PoseTrack, Progress

LONG_SIDE = 960
"""Pictures with a longer side are scaled down to this for the estimation (pixels)."""


@dataclass(frozen=True)
class PoseOptions:
    """Options of the pose estimation.

    estimator  "mediapipe" or "ultralytics".
    person     "largest" (the most prominent person), or "X,Y": the person who stands at these pixels of the first
               picture.
    irises     face meshes of 478 points, of which the last ten are the irises. `ultralytics` finds no faces: all NaN.
    """

    estimator: str = "mediapipe"
    person: str = "largest"
    irises: bool = False

    @property
    def points(self) -> int:
        """Of a face mesh."""
        return REFINED_POINTS if self.irises else FACE_POINTS


class PoseEstimator(Protocol):
    """Finds one person's pose in pictures.

    name      identifies the estimator and its model; part of the cache key.
    overlap   pictures before the new ones that `pieces` looks at when it goes on.
    """

    name: str
    overlap: int

    def pieces(
        self, frames: Iterable[Image], *, fps: Fraction, progress: Progress, before: Array | None = None
    ) -> Iterator[tuple[PoseTrack, Array]]:
        """The pose in each of the consecutive `frames` (all of one size), some of them at a time, as they come.

        Behind any piece another run can go on, and then finds the same to the bit.

        Args:
            before: what came with the piece to go on behind; `frames` then begin `overlap` pictures before its end.
                None at the start.

        Yields tracks, NaN rows where nobody was found, and with each (N, 33, 4) poses to go on with.
        Reads `frames` as a stream and calls `progress.advance` once per new picture; the stage is opened by the caller.
        """

    def strays(self, body: Array) -> npt.NDArray[np.bool_]:
        """(T,) bool: which poses of the joined pieces, (T, 33, 4), are not the person's after all."""

    def track(self, frames: Iterable[Image], *, fps: Fraction, progress: Progress) -> PoseTrack:
        """The pose in each of the consecutive `frames` (all of one size); NaN rows and `missed` where nobody was found.

        Reads `frames` as a stream and calls `progress.advance` once per picture; the stage is opened by the caller.
        Raises ValueError when there are no frames.
        """

    def segment(self, frames: Sequence[Image]) -> list[tuple[PoseTrack, Array]]:
        """For each picture by itself (sizes may differ): a track of one picture and the soft mask of the person.

        The mask is (H, W) float32 in 0..1, of the picture's size; all zero when nobody was found.
        """


def person_point(person: str) -> tuple[float, float] | None:
    """(x, y) of `--person X,Y`; None for "largest".

    Raises UsageError for anything else.
    """
    if person == "largest":
        return None
    try:
        x, y = (float(v) for v in person.split(","))
    except ValueError:
        x = y = float("nan")
    if not (0 <= x < 1e5 and 0 <= y < 1e5):
        raise UsageError(
            f"--person {person!r} is neither 'largest' nor a place in the picture.",
            "Give the pixel at which the person stands in the first picture, for example --person 320,240.",
        )
    return x, y


def fitting(size: tuple[int, int], longest: int = LONG_SIDE) -> tuple[int, int]:
    """`size` (width, height), scaled down to a long side of at most `longest`, aspect kept; never enlarged."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def empty_track(
    length: int, size: tuple[int, int], fps: Fraction = Fraction(25), points: int = FACE_POINTS
) -> PoseTrack:
    """A track of `length` pictures in which nobody was found; its face meshes have so many points."""
    return PoseTrack(
        body=np.full((length, len(JOINTS), 4), np.nan, np.float32),
        world=np.full((length, len(JOINTS), 3), np.nan, np.float32),
        face=np.full((length, points, 3), np.nan, np.float32),
        hands=np.full((length, 2, HAND_POINTS, 3), np.nan, np.float32),
        size=size,
        fps=fps,
        missed=tuple(range(length)),
    )


def unknown(*shape: int) -> Array:
    """(*shape, 3) float32, all NaN, that takes no memory and cannot be written."""
    return np.broadcast_to(np.float32("nan"), (*shape, 3))


_FRAME = tuple(
    J[f"{side}_{name}"] for side in ("left", "right") for name in ("shoulder", "hip", "elbow", "knee", "ankle")
)


def seen(track: PoseTrack) -> npt.NDArray[np.floating]:
    """(T, 33) how well each joint is seen, 0..1: its visibility, 0 outside the picture."""
    xy = track.body[..., :2]
    inside = ((xy >= 0) & (xy <= np.array(track.size, np.float32))).all(axis=2)
    return np.where(inside, np.nan_to_num(track.body[..., 3]), 0.0)


def pixels_per_metre(track: PoseTrack) -> npt.NDArray[np.floating]:
    """(T,) the weak-perspective fit of the body to its world coordinates; unlike a 2D length it does not change with
    foreshortening. Joints count as far as they are seen. NaN where nobody was found."""
    weight = seen(track)[:, _FRAME, None] + 1e-3
    flat, world = track.body[:, _FRAME, :2].astype(np.float64), track.world[:, _FRAME, :2].astype(np.float64)
    total = weight.sum(axis=1, keepdims=True)
    flat = flat - (weight * flat).sum(axis=1, keepdims=True) / total
    world = world - (weight * world).sum(axis=1, keepdims=True) / total
    up: npt.NDArray[np.floating] = (weight * flat * world).sum(axis=(1, 2))
    return up / np.maximum((weight * world**2).sum(axis=(1, 2)), 1e-9)


_TRUNK = tuple(J[f"{side}_{name}"] for side in ("left", "right") for name in ("shoulder", "hip", "knee", "ankle"))


def teleports(body: Array, longest: int = 4) -> npt.NDArray[np.bool_]:
    """(T,) bool: pictures in which the pose has jumped elsewhere (another person, an object) and soon comes back.

    Rule: a run of at most `longest` found pictures is a teleport when the poses just before and just after it agree
    with each other, while each pose of the run lies further from both than a body's own spread (the rms distance of
    shoulders, hips, knees and ankles from their mean, about 0.45 m), or is larger or smaller than both by a factor of
    1.8. Nobody moves 0.45 m away and back between single pictures; a fast movement never has that shape.

    Args:
        body: (T, 33, 4); rows of NaN where nobody was found.
    """
    points = body[:, _TRUNK, :2]
    centre = points.mean(axis=1)
    spread = np.sqrt(((points - centre[:, None]) ** 2).sum(axis=2).mean(axis=1))
    out = np.zeros(len(body), bool)
    found = np.flatnonzero(np.isfinite(spread))

    def apart(a: int, b: int) -> bool:
        size = max(spread[a], spread[b])
        ratio = size / max(min(spread[a], spread[b]), 1e-6)
        return bool(np.hypot(*(centre[a] - centre[b])) > size or ratio > 1.8)

    i = 1
    while i < len(found):
        before, here = int(found[i - 1]), int(found[i])
        if here - before <= longest and apart(before, here):
            for j in range(i + 1, min(i + longest + 1, len(found))):
                after = int(found[j])
                run = found[i:j]
                if after - before > 2 * longest + 1:
                    break
                if not apart(before, after) and all(apart(before, int(r)) and apart(int(r), after) for r in run):
                    out[run] = True
                    i = j
                    break
        i += 1
    return out
