"""A whole video's motion, brought into the avatar's picture a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from ..pose import Motion
from ..pose.base import unknown
from ..skeleton import HAND_POINTS, JOINTS
from ..types import Array, PoseTrack, Progress, Silent
from .attitude import Meshes
from .base import NOSE, WRISTS, XY, row_blocks
from .body import Body
from .expression import Expressions
from .fitting import fit_piecewise, scale_to
from .gaps import LONGEST, attached, fill_gaps
from .smoothing import calmed, scale_of, smooth

WINDOW: Final = 256
"""Pictures whose face meshes are made at a time."""
SAMPLE: Final = 600
"""The most pictures, or a few more, that tell what the driver's face is like at rest."""
SETTLED: Final = 4.0
"""Seconds after which the filter of `smooth` has forgotten what was before: to 2e-8 at its slowest cut-off, 0.7 Hz."""


class Movement:
    """A motion with its gaps filled, smoothed and brought into the avatar's picture, to be drawn picture by picture.

    The same as `fit` or `scale_to` of `smooth` of `fill_gaps`, but for what is held in memory: face meshes, most of the
    bytes, are made for `WINDOW` pictures at a time, from the raw ones around these.

    size  (width, height) of the picture that it is brought into.
    fps   pictures per second.
    """

    def __init__(
        self,
        motion: Motion,
        *,
        smoothness: float,
        body: Body | None,
        size: tuple[int, int] | None,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            smoothness: strength of `smooth`.
            body: the avatar's, see `fit`; None: `scale_to`.
            size: (width, height) of the avatar's picture; None: the driver's.
        """
        self.size, self.fps = size or motion.track.size, motion.track.fps
        self._faces, self._hands = motion.faces, motion.track.hands
        self._strength = smoothness if len(motion) > 1 else 0.0
        self._most = int(LONGEST * self.fps)
        filled = fill_gaps(replace(motion.track, hands=unknown(len(motion), 2, HAND_POINTS)))
        self._height = 1.65 * scale_of(filled)
        if not self._height > 0:
            self._strength = 0.0
        self._track = smooth(filled, self._strength)
        self._anchors = tuple(t.body[:, (NOSE, *WRISTS), :3] * XY for t in (filled, self._track))
        del motion, filled  # as much again as is needed from here on
        self._details: Callable[[slice, Array, Array], tuple[Array, Array]] | None = None
        if body is not None and self._track.found.any():
            body = body if body.size == self.size else body.scaled(self.size)
            fitted = fit_piecewise(self._track, *self._looked_at(body.face), body, progress or Silent())
            self._track, self._details = replace(self._track, body=fitted.body, size=self.size), fitted.details
        # No model looks at it.
        self._track = replace(self._track, world=unknown(len(self), len(JOINTS)))
        self._window: tuple[int, PoseTrack | None] = (-1, None)

    def __len__(self) -> int:
        return len(self._track)

    def _looked_at(self, template: Array | None) -> tuple[Meshes, Expressions | None]:
        """What the fit needs to know of the driver's faces, and what they express."""
        meshes, some = [], []
        for rows in row_blocks(len(self), WINDOW):
            face = self._driver_face(rows)
            meshes.append(Meshes.of(face, template))
            some.append(face[:: -(-len(self) // SAMPLE)].copy())  # a view would keep them all
        joined = Meshes(*(np.concatenate(column) for column in zip(*meshes, strict=True)))
        return joined, None if template is None else Expressions(template, np.concatenate(some))

    def _driver_face(self, rows: slice) -> Array:
        """(n, 468 or 478, 3) the driver's face meshes of some pictures, gaps filled, smoothed."""
        return self._driver(rows, 0, lambda around: self._faces(around.start, around.stop))

    def _driver_hands(self, rows: slice) -> Array:
        """(n, 2, 21, 3) the same for the hands."""
        return np.stack([self._driver(rows, i + 1, partial(self._hand, i)) for i in (0, 1)], axis=1)

    def _hand(self, side: int, around: slice) -> Array:
        return self._hands[around, side]

    def _driver(self, rows: slice, anchor: int, read: Callable[[slice], Array]) -> Array:
        """Points (n, N, 3), gaps filled, smoothed, relative to an anchor: 0 nose, 1 left wrist, 2 right wrist."""
        first, last, _ = rows.indices(len(self))
        reach = self._most + 1 + (math.ceil(SETTLED * self.fps) if self._strength > 0 else 0)
        around = slice(max(0, first - reach), min(len(self), last + reach))
        before, after = (points[around, anchor, None] for points in self._anchors)
        points = attached(read(around), before, self._most)
        if self._strength > 0 and np.isfinite(points[:, 0, 0]).any():
            points = calmed(points - before, self.fps, self._strength, self._height) + after
        return points[first - around.start : last - around.start]

    def _at(self, number: int) -> PoseTrack:
        """Window number `number`."""
        known, track = self._window
        if track is None or known != number:
            rows = slice(number * WINDOW, (number + 1) * WINDOW)
            track, face, hands = self._track.select(rows), self._driver_face(rows), self._driver_hands(rows)
            if self._details is not None:
                face, hands = self._details(rows, face, hands)
                track = replace(track, face=face, hands=hands)
            else:
                track = scale_to(replace(track, face=face, hands=hands), self.size)
            self._window = number, track
        return track

    def select(self, index: Sequence[int]) -> PoseTrack:
        """The poses of some pictures, in rising order; not to be written to."""
        rows = np.asarray(index)
        numbers = np.unique(rows // WINDOW).tolist()
        return PoseTrack.concatenate(self._at(n).select(rows[rows // WINDOW == n] - n * WINDOW) for n in numbers)
