"""A street's cross-section and what everything in it has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from drawing import CLASS, Light, Rng
from facades import Style, random_style
from plants import Plants, random_plants
from shadows import Shadows
from trajectory import Trajectory
from weather import Weather

AHEAD: Final = 170.0
"""Metres of street beyond where the camera ends up."""


@dataclass
class Street:
    """Metres; pairs are for the left and the right side.

    half      half the width of the road, parked vehicles included.
    parking   widths of the strips with parked vehicles, 0 if there are none.
    verge     widths of the strips of grass between road and sidewalk.
    front     distances of the sidewalks' outer borders from the road's middle.
    urban     0: few, low houses in gardens … 1: rows of high ones.
    crossing  z of the zebra crossing; negative: there is none.
    yards     classes of the ground beyond the sidewalks.
    """

    half: float
    parking: tuple[float, float]
    verge: tuple[float, float]
    front: tuple[float, float]
    urban: float
    crossing: float
    yards: tuple[int, int]
    style: Style
    plants: Plants
    trajectory: Trajectory
    light: Light

    def __post_init__(self) -> None:
        """x of the lanes' border and of both lanes; how far the street goes along z, and its ground along x."""
        self.middle = (self.parking[0] - self.parking[1]) / 2
        self.lane = (self.middle + self.half - self.parking[1]) / 2
        self.oncoming = (self.middle - self.half + self.parking[0]) / 2
        self.end = self.trajectory.travel + AHEAD
        self.reach = self.front[0] + self.front[1] + 8.0
        self.shadows = Shadows(self.reach, self.end, self.light)

    def layer(self, x: float) -> int:
        """Which strip is at x: they are drawn from the sides to the camera's lane."""
        if not -self.front[0] <= x <= self.front[1]:
            return 0
        if abs(x) > self.half:
            return 1
        if not -self.half + self.parking[0] <= x <= self.half - self.parking[1]:
            return 2
        return 3 if x < self.middle else 4


def random_street(rng: Rng, trajectory: Trajectory, weather: Weather) -> Street:
    half = rng.uniform(3.0, 7.0)
    parking = [2.2 if half > least and rng.random() < 0.8 else 0.0 for least in (4.6, 5.26)]
    verge = [rng.uniform(0.8, 2.0) if rng.random() < 0.3 else 0.0 for _ in (0, 1)]
    front = [half + v + rng.uniform(1.6, 4.0) for v in verge]
    urban = rng.random()
    crossing = rng.uniform(15, 60) if rng.random() < 0.6 else -1.0
    yards = [CLASS["terrain" if rng.random() > urban else "sidewalk"] for _ in (0, 1)]
    style = random_style(rng, weather, urban)
    plants = random_plants(rng, weather.light)
    return Street(
        half, (parking[0], parking[1]), (verge[0], verge[1]), (front[0], front[1]), urban, crossing,
        (yards[0], yards[1]), style, plants, trajectory, weather.light,
    )  # fmt: skip
