"""What flows between the modules: tracks of poses and the progress that long operations tell. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .skeleton import FACE_POINTS, HAND_POINTS, JOINTS, REFINED_POINTS

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
"""One RGB picture: (H, W, 3) uint8, upright, square pixels."""


@dataclass(frozen=True)
class PoseTrack:
    """The poses of one person in T consecutive pictures. NaN stands for what was not found.

    body    (T, 33, 4) float32: x, y in pixels (origin: top left corner of the picture), z in pixels of the same scale
            (origin: mid hip; smaller is closer to the camera), visibility in 0..1. Joints in `skeleton.JOINTS` order.
    world   (T, 33, 3) float32: metres, origin mid hip.
    face    (T, 468, 3) or (T, 478, 3) float32: the face mesh, x, y, z in pixels; the last ten of 478 points are the
            irises (`skeleton.IRISES`), which only a mesh has that was asked for them.
    hands   (T, 2, 21, 3) float32: left, right hand of the person, x, y, z in pixels.
    size    (width, height) of the pictures in pixels.
    fps     pictures per second.
    missed  indices of the pictures in which nobody was found by the estimator (kept when gaps are filled later).
    """

    body: Array
    world: Array
    face: Array
    hands: Array
    size: tuple[int, int]
    fps: Fraction = Fraction(25)
    missed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        t = len(self.body)
        points = REFINED_POINTS if self.face.shape[1:2] == (REFINED_POINTS,) else FACE_POINTS
        for name, shape in (
            ("body", (t, len(JOINTS), 4)),
            ("world", (t, len(JOINTS), 3)),
            ("face", (t, points, 3)),
            ("hands", (t, 2, HAND_POINTS, 3)),
        ):
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(f"PoseTrack.{name} has shape {got}, expected {shape}")

    def __len__(self) -> int:
        return len(self.body)

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """(T,) bool: pictures that have a body pose (finite hips)."""
        return np.isfinite(self.body[:, 23:25, :2]).all(axis=(1, 2))

    def select(self, index: Sequence[int] | slice | npt.NDArray[np.integer]) -> PoseTrack:
        """The track of some pictures only, in the given order; `missed` is recomputed for them."""
        numbers = np.arange(len(self))[index]
        lost = set(self.missed)
        return replace(
            self,
            body=self.body[index],
            world=self.world[index],
            face=self.face[index],
            hands=self.hands[index],
            missed=tuple(i for i, n in enumerate(numbers.tolist()) if n in lost),
        )

    def scaled(self, size: tuple[int, int]) -> PoseTrack:
        """The track in pictures resized to `size` (width, height): x and z by the width's ratio, y by the height's."""
        sx, sy = size[0] / self.size[0], size[1] / self.size[1]
        s = np.array([sx, sy, sx], np.float32)
        return replace(
            self,
            body=self.body * np.append(s, 1).astype(np.float32),
            face=self.face * s,
            hands=self.hands * s,
            size=size,
        )

    @staticmethod
    def concatenate(tracks: Iterable[PoseTrack]) -> PoseTrack:
        """One track after the other (all of one picture size, their face meshes of one kind).

        Raises ValueError when there is none or these differ.
        """
        parts = list(tracks)
        if not parts or any(p.size != parts[0].size for p in parts):
            raise ValueError("concatenate needs tracks of one picture size")
        starts = np.cumsum([0] + [len(p) for p in parts])
        return replace(
            parts[0],
            body=np.concatenate([p.body for p in parts]),
            world=np.concatenate([p.world for p in parts]),
            face=np.concatenate([p.face for p in parts]),
            hands=np.concatenate([p.hands for p in parts]),
            missed=tuple(int(s) + m for s, p in zip(starts, parts, strict=False) for m in p.missed),
        )


class Progress(Protocol):
    """What long operations tell about themselves. `Silent` ignores it; `console` shows it."""

    def stage(self, title: str, total: int | None = None) -> None:
        """A new stage begins; the one before is over. `total` is its number of steps, None when unknown."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """`steps` more of the running stage are done; `figures` (e.g. loss=0.12) are shown beside it."""

    def note(self, message: str) -> None:
        """One sentence worth reading that is no problem."""

    def warn(self, message: str) -> None:
        """One sentence about a problem that does not stop the work, with the remedy."""


class Silent:
    """A `Progress` that says nothing."""

    def stage(self, title: str, total: int | None = None) -> None: ...

    def advance(self, steps: int = 1, **figures: float) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...
