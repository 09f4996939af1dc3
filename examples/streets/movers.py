"""What moves, or could: people, cycles and vehicles, and the traffic that they are."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from drawing import CLASS, Array, Camera, Quad, Rng, Texture, Thing, quad
from figures import random_figure
from street import Street
from vehicles import vehicle

KINDS: Final = {"hatch": 0.27, "sedan": 0.23, "estate": 0.14, "suv": 0.18, "van": 0.1, "truck": 0.05, "bus": 0.03}
"""Of vehicles, and how frequent they are."""


def traffic(rng: Rng, street: Street) -> list[Thing]:
    """Vehicles, parked and driving, and those who ride on the road."""
    things: list[Thing] = []
    trajectory, standing = street.trajectory, street.trajectory.travel == 0
    for side, parking in zip((-1, 1), street.parking, strict=True):
        if parking:
            dense, z = rng.uniform(0.3, 0.95), -8.0
            while z < street.end - 20:
                if rng.random() < dense and abs(z - street.crossing - 2) > 7:
                    x = side * (street.half - 1.05 + rng.normal(0, 0.06))
                    things.append(_vehicle(rng, street, x, z, side, "parked"))
                z += rng.uniform(5.6, 7.5)
    z = rng.uniform(11, 45)
    stop = street.crossing if standing and street.crossing > 0 else np.inf
    while z < 120 and rng.random() < 0.75:
        if z + 4 < stop:
            things.append(_vehicle(rng, street, street.lane + rng.normal(0, 0.1), z, 1, "ahead"))
        z += rng.uniform(12, 35)
    z, speed = rng.uniform(8, 60), rng.uniform(4, 11)
    while z < trajectory.travel + 130 and rng.random() < 0.85:
        things.append(_vehicle(rng, street, street.oncoming + rng.normal(0, 0.1), z, -1, "driving", -speed))
        z += rng.uniform(13, 50)
    if rng.random() < 0.3:
        x = street.half - street.parking[1] - 0.5
        things.append(cycle(rng, x, rng.uniform(8, 20), max(trajectory.speed, 3.0), rider=True))
    if rng.random() < 0.3:
        x = -(street.half - street.parking[0] - 0.5)
        things.append(cycle(rng, x, rng.uniform(20, 70), -4.0, rider=True))
    return things


def person(rng: Rng, x: float, z: float, heading: float) -> Thing:
    """heading: angle from z to x."""
    figure = random_figure(rng)
    speed = rng.uniform(0.8, 1.7) if rng.random() < 0.85 else 0.0
    start, way = rng.uniform(0, 6), np.array([np.sin(heading), np.cos(heading)])

    def place(time: float) -> tuple[float, float]:
        return x + way[0] * speed * time, z + way[1] * speed * time

    def quads(camera: Camera, time: float) -> list[Quad]:
        px, pz = place(time)
        side = camera.facing(px, pz)
        art = figure.walking(start + time * speed * 4.2 if speed else 0.0, _turn(way, side))
        origin = np.array([px, 2.0, pz]) - side * 0.6
        return [quad(origin, side * 1.2, (0, -2, 0), Texture(art), CLASS["person"], "round")]

    return Thing(x, z, quads, place, (0.42, 0.35))


def cycle(rng: Rng, x: float, z: float, speed: float = 0.0, *, rider: bool = False) -> Thing:
    """A bicycle or motorcycle, which drives along the street with its rider, or stands."""
    figure = random_figure(rng)
    motor = rng.random() < 0.35
    heading = 0.0 if rider else rng.uniform(-1, 1) * np.pi / 2
    label = CLASS["motorcycle" if motor else "bicycle"]
    way = np.array([np.sin(heading), np.cos(heading) * (-1 if speed < 0 else 1)])

    def place(time: float) -> tuple[float, float]:
        return x, z + speed * time

    def quads(camera: Camera, time: float) -> list[Quad]:
        pz = z + speed * time
        side = camera.facing(x, pz)
        turn, origin = _turn(way, side), np.array([x, 2.0, pz]) - side
        arts = [(figure.cycle(turn, motor), label)]
        if rider:
            arts.append((figure.riding(time * abs(speed) * 2, turn), CLASS["rider"]))
        return [quad(origin, side * 2, (0, -2, 0), Texture(art), number, "round") for art, number in arts]

    return Thing(x, z, quads, place, (0.5, 1.0))


def _turn(way: Array, side: Array) -> float:
    """The angle from the line of sight, to whose right `side` (3,) is, to a way (2,) in x and z."""
    return float(np.arctan2(way[0] * side[0] + way[1] * side[2], way[1] * side[0] - way[0] * side[2]))


def _vehicle(
    rng: Rng, street: Street, x: float, z: float, way: int, motion: Literal["parked", "driving", "ahead"],
    speed: float = 0.0,
) -> Thing:  # fmt: skip
    """way: 1 away from the camera, −1 towards it; ahead: it keeps its distance from the camera."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if motion == "parked" and kind in ("bus", "truck"):
        kind = "van"
    mesh, length, width = vehicle(rng, kind, street.light)
    turn = np.array([way, 1, way])
    mesh = [Quad(q.origin * turn, q.u * turn, q.v * turn, q.texture, q.label) for q in mesh]
    trajectory = street.trajectory
    drift = rng.normal(0, 0.25) if motion == "ahead" else 0.0
    z += length / 2

    def place(time: float) -> tuple[float, float]:
        if motion == "ahead":
            return x, z + trajectory.driven(time) + drift * time * (trajectory.travel > 0)
        return x, z + speed * time

    def quads(camera: Camera, time: float) -> list[Quad]:
        at = np.array([x, 0, place(time)[1]])
        moved = [Quad(q.origin + at, q.u, q.v, q.texture, q.label) for q in mesh]
        return sorted(moved, key=lambda q: -float(np.linalg.norm(q.origin + (q.u + q.v) / 2 - camera.position)))

    return Thing(x, z, quads, place, (width / 2 + 0.3, length / 2 + 0.35))
