"""People and cycles, drawn as they are seen from the camera, and poles, traffic signs and traffic lights."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from drawing import Array, Colour, Rng
from textures import disc, ellipse, hue, line, polygon, solid

TEXELS: Final = 108
"""Per metre, of people and cycles."""
POLE_TEXELS: Final = 40
Point = tuple[float, float, float]


class Figure:
    """Somebody, with the cycle they may have. Metres: x to their right, y up, z ahead.

    turn   angle from the line of sight to where they look.
    phase  of steps or pedals, in radians.
    """

    def __init__(self, rng: Rng, tall: float) -> None:
        self.tall = tall
        self.skin = np.array([225, 175, 145]) * rng.uniform(0.4, 1.05)
        self.top, self.legs = hue(rng, (0, 0.9), (0.15, 0.9)), hue(rng, (0, 0.6), (0.1, 0.55))
        self.hair = np.array([70, 48, 32]) * rng.uniform(0.2, 2.2)
        self.wide, self.coat, self.bag = rng.uniform(0.85, 1.2), rng.random() < 0.3, rng.random() < 0.3

    def walking(self, phase: float, turn: float) -> Array:
        """RGBA (216, 130, 4) of 2 m by 1.2 m."""
        return self._person(phase, turn, None)

    def riding(self, phase: float, turn: float) -> Array:
        """RGBA (216, 216, 4) of 2 m by 2 m."""
        return cv2.copyMakeBorder(self._person(phase, turn, 0.86), 0, 0, 43, 43, cv2.BORDER_CONSTANT)

    def _person(self, phase: float, turn: float, seat: float | None) -> Array:
        """seat: its height, if they ride."""
        art, k = np.zeros((216, 130, 4), np.uint8), TEXELS * self.tall / 1.75
        ahead, aside = np.sin(turn), np.cos(turn)

        def spot(x: float, y: float, z: float) -> tuple[int, int]:
            return round(65 + k * (x * aside + z * ahead)), round(215 - k * y)

        def limb(points: list[Point], thick: float, colour: Colour) -> None:
            for a, b in pairwise(points):
                line(art, spot(*a), spot(*b), colour, max(1, round(thick * k)))

        walks = seat is None
        swing = np.sin(phase) * 0.5 if walks else 0.0
        hip = 0.88 if seat is None else seat
        lean, shoulder = (0.05, hip + 0.54) if walks else (0.3, hip + 0.5)
        far, near = (-1, 1) if ahead >= 0 else (1, -1)
        for side in (far, near):
            s, shade = swing * side, 1.0 if side == near else 0.75
            if walks:
                bend = max(0.0, np.cos(phase) * side) * 0.5
                knee = (0.09 * side, 0.47, np.sin(s) * 0.42)
                foot = (0.09 * side, 0.05 + 0.25 * bend**2, np.sin(s) * 0.42 + np.sin(s - bend) * 0.42)
            else:
                turned = phase + (np.pi if side > 0 else 0)
                foot = (0.1 * side, 0.3 + 0.15 * np.sin(turned), 0.05 + 0.15 * np.cos(turned))
                knee = (0.13 * side, (hip + foot[1]) / 2 + 0.1, 0.33)
            limb([(0.08 * side, hip, 0), knee, foot], 0.13 * self.wide, self.legs * shade)
            limb([foot, (foot[0], foot[1] - 0.02, foot[2] + 0.14)], 0.09, self.legs * 0.35)
        for side in (far, near):
            s = -swing * side * 0.8
            hand = (0.24 * side, hip - 0.05, np.sin(s) * 0.45 + 0.1) if walks else (0.25 * side, hip + 0.12, 0.62)
            elbow = (0.25 * side, (shoulder + hand[1]) / 2 - 0.04, (lean + hand[2]) / 2 - 0.06)
            if side == near:
                half = 0.17 * self.wide
                low = hip - (0.3 if self.coat and walks else 0.06)
                for x in np.linspace(-half, half, 5):
                    limb([(x * 0.85, low, 0), (x, shoulder - 0.05, lean * 0.8)], 0.2, self.top * (0.95 + 0.3 * x))
                if self.bag and walks:
                    limb([(0.2, hip - 0.05, 0), (0.2, hip + 0.15, 0)], 0.18, self.hair)
            limb([(0.2 * side * self.wide, shoulder, lean), elbow, hand], 0.095, self.top * 0.85)
            limb([hand, hand], 0.09, self.skin)
        head = shoulder + 0.22
        limb([(0, shoulder, lean), (0, head, lean + 0.03)], 0.1, self.skin * 0.8)
        ellipse(art, spot(0, head, lean + 0.03), (round(0.095 * k), round(0.125 * k)), self.skin)
        hair = (round(0.105 * k), round((0.13 if aside > 0 else 0.085) * k))
        ellipse(art, spot(0, head + 0.05, lean - 0.02), hair, self.hair)
        return art

    def cycle(self, turn: float, motor: bool) -> Array:
        """RGBA (216, 216, 4) of a bicycle or motorcycle, 2 m by 2 m."""
        art = np.zeros((216, 216, 4), np.uint8)
        ahead, aside = np.sin(turn), np.cos(turn)
        thick = 4 if motor else 1

        def spots(points: list[Point] | Array) -> Array:
            """(N, 3) → (N, 2) pixels."""
            x, y, z = np.asarray(points, float).T
            flat = np.stack([108 + TEXELS * (x * aside + z * ahead), 215 - TEXELS * y], 1)
            return np.asarray(np.round(flat).astype(np.int32))

        def tube(points: list[Point] | Array, colour: Colour, width: int, *, closed: bool = False) -> None:
            cv2.polylines(art, [spots(points)], closed, solid(colour), width, cv2.LINE_AA)

        angle = np.linspace(0, 2 * np.pi, 25)
        rear, front, crank, saddle = (0, 0.33, -0.55), (0, 0.33, 0.55), (0, 0.33, 0.0), (0, 0.85, -0.2)
        for z in (-0.55, 0.55):
            wheel = np.stack([0 * angle, 0.33 + 0.32 * np.sin(angle), z + 0.32 * np.cos(angle)], 1)
            tube(wheel, (22, 22, 24), 4 + 3 * thick, closed=True)
        tube([rear, saddle, (0, 0.85, 0.42), crank, saddle, rear, crank], self.top, 5 + 8 * (thick - 1))
        tube([front, (0, 1.0, 0.4)], self.top, 5 + thick)
        tube([(-0.28, 1.02, 0.36), (0.28, 1.02, 0.36)], (40, 40, 42), 4 + thick)
        tube([(0, 0.92, -0.32), (0, 0.92, -0.08)], (25, 25, 25), 9 + 2 * thick)
        if motor:
            x, y = spots([(0, 0.75, -0.7)])[0].tolist()
            disc(art, (x, y), 6, (190, 25, 25))
        return art


def random_figure(rng: Rng) -> Figure:
    return Figure(np.random.default_rng(rng.integers(2**32)), rng.uniform(1.55, 1.9))


def pole(height: float, colour: Array, arm: float = 0.0) -> Array:
    """RGBA of a pole (and a lamp's arm to the right), 0.3 m + arm wide; the pole is 0.15 m from the left border."""
    k = POLE_TEXELS
    w, h = round((0.3 + arm) * k), round(height * k)
    art = np.zeros((h, w, 4), np.uint8)
    x = round(0.15 * k)
    line(art, (x, h), (x, 6), colour, 5)
    line(art, (x + 1, h), (x + 1, 6), (colour * 1.3).clip(0, 255), 2)
    line(art, (x, h), (x, h - k), colour * 0.9, 7, smooth=False)
    if arm:
        line(art, (x, 14), (w - 4, 5), colour, 4)
        line(art, (w - 26, 8), (w - 4, 6), (215, 215, 215), 8)
    return art


def traffic_sign(rng: Rng) -> Array:
    """RGBA (64, 64, 4)."""
    art, kind = np.zeros((64, 64, 4), np.uint8), int(rng.integers(6))
    red, blue, white, black, yellow = (190, 20, 30), (20, 70, 170), (240, 240, 236), (20, 20, 20), (245, 200, 30)

    def write(text: str, at: tuple[int, int], size: float, colour: Colour, thick: int) -> None:
        cv2.putText(art, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, solid(colour), thick, cv2.LINE_AA)

    if kind == 0:
        disc(art, (32, 32), 30, red)
        disc(art, (32, 32), 23, white)
        write(str(rng.choice(["30", "50", "40"])), (15, 41), 0.9, black, 3)
    elif kind == 1:
        disc(art, (32, 32), 30, blue)
        cv2.arrowedLine(art, (32, 52), (32, 14), solid(white), 6, cv2.LINE_AA, tipLength=0.4)
    elif kind < 4:
        up = 1 if kind == 2 else -1
        outer = np.array([(32, 32 - 28 * up), (62, 32 + 26 * up), (2, 32 + 26 * up)], np.float64)
        polygon(art, outer, red)
        polygon(art, np.trunc((outer - outer.mean(0)) * 0.64 + outer.mean(0)), white)
        if up > 0:
            line(art, (32, 28), (32, 44), black, 5, smooth=False)
    elif kind == 4:
        polygon(art, [(32, 2), (62, 32), (32, 62), (2, 32)], white)
        polygon(art, [(32, 12), (52, 32), (32, 52), (12, 32)], yellow)
    else:
        art[4:60, 8:56] = solid(blue)
        write("P", (18, 48), 1.5, white, 5)
    return art


def traffic_light(state: int) -> Array:
    """RGBA (72, 28, 4); state: 0 red, 1 amber, 2 green."""
    art = np.zeros((72, 28, 4), np.uint8)
    art[:] = solid((24, 26, 26))
    for i, colour in enumerate([(255, 50, 40), (255, 180, 40), (60, 240, 140)]):
        disc(art, (14, 13 + 23 * i), 9, np.array(colour) * (1.0 if i == state else 0.2))
    return art
