"""What is on the sidewalks: trees, lamps, traffic signs and lights, people and cycles."""

from __future__ import annotations

import numpy as np
from drawing import CLASS, Rng, Shading, Texture, Thing, across, fixed
from figures import POLE_TEXELS, pole, traffic_light, traffic_sign
from movers import cycle, person
from plants import plant
from street import Street

Board = tuple[float, float, Texture, int]
"""What hangs on a pole: its upper border and height in metres, its texture and class."""


def sidewalks(rng: Rng, street: Street) -> list[Thing]:
    things: list[Thing] = []
    colour = np.full(3, rng.uniform(50, 160)) * rng.uniform(0.9, 1.1, 3)
    lamp = Texture(pole(rng.uniform(5.5, 8.5), colour, rng.uniform(1, 2)))
    plain = Texture(pole(3.2, np.full(3, 150.0)))
    signs = [Texture(traffic_sign(rng)) for _ in range(4)]
    crowd = rng.uniform(0, 1)
    travel, crossing, end = street.trajectory.travel, street.crossing, street.end
    trees, shadows = street.plants.trees, street.shadows

    def sign(top: float, tall: float) -> Board:
        return top, tall, signs[rng.integers(len(signs))], CLASS["traffic sign"]

    for side, front in zip((-1, 1), street.front, strict=True):
        kerb, wall = street.half + 0.5, front - 0.4
        if rng.random() < 0.65:
            step, tall, first = rng.uniform(7, 16), rng.uniform(5, 10), int(rng.integers(4))
            for z in np.arange(-5 + rng.uniform(0, 8), end, step):
                if rng.random() < 0.85:
                    tree = trees[first if rng.random() < 0.7 else int(rng.integers(4))]
                    at = side * (kerb + 0.3), z + rng.normal(0, 0.6)
                    things.append(plant(*at, tall * rng.uniform(0.8, 1.15), tree, shadows))
        if rng.random() < 0.8:
            for z in np.arange(rng.uniform(0, 20), end, rng.uniform(22, 35)):
                things.append(_pole(street, side * kerb, z, lamp, mirrored=side > 0))
        z = rng.uniform(8, 30)
        while z < end:
            boards = [sign(3.15, 0.62)]
            if rng.random() < 0.3:
                boards.append(sign(2.45, 0.55))
            things.append(_pole(street, side * kerb, z, plain, boards))
            z += rng.uniform(12, 45)
        if crossing > 0:
            board = 3.35, 0.95, Texture(traffic_light(0 if travel == 0 else 2)), CLASS["traffic light"]
            things.append(_pole(street, side * kerb, crossing + 2, plain, [board]))
        for _ in range(rng.poisson(10 * crowd)):
            at = side * rng.uniform(kerb + 0.2, wall), rng.uniform(6, travel + 70)
            things.append(person(rng, *at, np.pi * rng.integers(2)))
        for _ in range(rng.poisson(1.2)):
            things.append(cycle(rng, side * rng.uniform(kerb + 0.1, wall), rng.uniform(6, travel + 50)))
    if crossing > 0 and (travel == 0 or crossing > travel + 8):
        for _ in range(rng.poisson(2)):
            heading = np.pi / 2 * rng.choice([-1, 1])
            x, z = rng.uniform(-street.half, street.half), crossing + rng.uniform(-1.2, 1.2)
            things.append(person(rng, x, z, heading))
    return things


def _pole(
    street: Street, x: float, z: float, texture: Texture, boards: list[Board] | None = None, *, mirrored: bool = False
) -> Thing:
    """A pole, its arm to the right unless it is mirrored, with boards, and its shadow."""
    wide, high = (n / POLE_TEXELS for n in texture.size)
    if mirrored:
        texture = Texture(texture.pixels[:, ::-1])
    left = x + 0.15 - wide if mirrored else x - 0.15
    quads = [across(left, left + wide, 0, high, z, texture, CLASS["pole"])]
    for top, tall, board, label in boards or ():
        half = tall * board.size[0] / board.size[1] / 2
        shading: Shading = "unlit" if label == CLASS["traffic light"] else "flat"
        quads.append(across(x - half, x + half, top - tall, top, z - 0.05, board, label, shading))
    street.shadows.ellipse(x, z, 0.15, 0.2)
    return fixed(x, z, quads)
