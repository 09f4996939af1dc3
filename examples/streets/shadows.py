"""The shadows that trees, poles and houses cast on the ground."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from drawing import Array, Light

CELLS: Final = (8, 6)
"""Per metre, across and along."""
BEHIND: Final = 20.0
"""Metres of the map before z = 0."""


class Shadows:
    """A map (h, w) float32 of the share of sunlight that is missing, x from −reach to reach."""

    def __init__(self, reach: float, end: float, light: Light) -> None:
        self.reach, self.light = reach, light
        self.map = np.zeros((int((end + (BEHIND + 10)) * CELLS[1]), int(2 * reach * CELLS[0])), np.float32)

    def ellipse(self, x: float, z: float, radius: float, height: float) -> None:
        """Of something round at a height."""
        dx, dz = self._cast(height)
        centre = (round((x + dx + self.reach) * CELLS[0]), round((z + dz + BEHIND) * CELLS[1]))
        axes = (max(1, round(radius * CELLS[0])), max(1, round(radius * CELLS[1])))
        cv2.ellipse(self.map, centre, axes, 0, 0, 360, (0.85,), -1)

    def block(self, x0: float, x1: float, z0: float, z1: float, height: float) -> None:
        """Of a house."""
        dx, dz = self._cast(height)
        feet = [(x0, z0), (x0, z1), (x1, z1), (x1, z0)]
        points = np.array([p for a, b in feet for p in ((a, b), (a + dx, b + dz))])
        cells = np.round((points + np.array([self.reach, BEHIND])) * CELLS).clip(-9e3, 9e3).astype(np.int32)
        cv2.fillConvexPoly(self.map, cv2.convexHull(cells), (0.9,))

    def _cast(self, height: float) -> tuple[float, float]:
        """How far along x and z."""
        sun = self.light.sun
        return -sun[0] / sun[1] * height, -sun[2] / sun[1] * height

    def finish(self) -> None:
        """Soften the shadows' borders; there are none without sun."""
        self.map = cv2.GaussianBlur(self.map, (0, 0), 1.2) * (0.0 if self.light.overcast else 1.0)

    def at(self, x: float, z: float) -> float:
        row, column = int((z + BEHIND) * CELLS[1]), int((x + self.reach) * CELLS[0])
        inside = 0 <= row < self.map.shape[0] and 0 <= column < self.map.shape[1]
        return float(self.map[row, column]) if inside else 0.0

    def sampled(self, x: Array, z: Array) -> Array:
        """At many places (h, w)."""
        u, v = (x + self.reach) * CELLS[0], (z + BEHIND) * CELLS[1]
        return np.asarray(cv2.remap(self.map, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
