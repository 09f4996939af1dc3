"""A scene: a street and all that is in it, seen from the camera in each frame."""

from __future__ import annotations

from typing import Final

import numpy as np
from drawing import CLASS, Camera, Canvas, Quad, Texture, Thing, flat, quad
from ground import Ground
from houses import houses
from movers import traffic
from sidewalks import sidewalks
from street import random_street
from textures import contact_shadow
from trajectory import random_trajectory
from weather import random_exposure, random_weather

from retarget.labels import NONE, Classes
from retarget.types import Image

FAR: Final = 1e4
"""Metres to the sky."""


class Scene:
    """All about it comes from its number. size: (width, height) of its pictures."""

    def __init__(self, number: int, frames: int, fps: float, size: tuple[int, int]) -> None:
        rng = np.random.default_rng([number, 7])
        self.number, self.size, self.fps = number, size, fps
        self.trajectory = random_trajectory(rng, frames, fps, size)
        self.weather = random_weather(rng)
        self.exposure = random_exposure(rng)
        self.street = random_street(rng, self.trajectory, self.weather)
        self.things = houses(rng, self.street) + sidewalks(rng, self.street) + traffic(rng, self.street)
        self.street.shadows.finish()
        self.ground = Ground(rng, self.street)
        self.contact = Texture(contact_shadow())
        self.mirrored = rng.random() < 0.3

    def frame(self, number: int) -> tuple[Image, Classes]:
        """A picture (H, W, 3) and its classes (H, W)."""
        camera, time = self.trajectory.camera(number, self.street.lane), number / self.fps
        wide, high = camera.size
        colours, labels = np.zeros((high, wide, 3), np.uint8), np.full((high // 2, wide // 2), NONE, np.uint8)
        canvas = Canvas(colours, labels, camera, self.weather.light)
        canvas.draw(self._sky(camera))
        self.ground.draw(canvas)
        for thing in self.things:
            if thing.place is not None:
                thing.x, thing.z = x, z = thing.place(time)
                half, long = thing.footprint
                canvas.draw(flat(x - half, x + half, z - long, z + long, self.contact, None))
        for thing in sorted(self.things, key=self._order):
            shadow = self._shadow(thing)
            for q in thing.quads(camera, time):
                canvas.draw(q, shadow)
        noise = np.random.default_rng([self.number, number, 11])
        picture = self.exposure.taken(canvas.colours, self.size, noise)
        if self.mirrored:
            return np.ascontiguousarray(picture[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])
        return picture, labels

    def _sky(self, camera: Camera) -> Quad:
        corner = camera.position + np.array([-2.5 * FAR, 1.3 * FAR, FAR])
        return quad(corner, (5 * FAR, 0, 0), (0, -1.34 * FAR, 0), self.weather.sky, CLASS["sky"], "unlit")

    def _order(self, thing: Thing) -> tuple[int, float]:
        """Strip by strip from the sides to the camera's lane, in each the farthest first."""
        return self.street.layer(thing.x) if thing.layer is None else thing.layer, -thing.z

    def _shadow(self, thing: Thing) -> float:
        """The share of sunlight that what is on the road lacks, or beside it."""
        if thing.place is None or abs(thing.x) >= self.street.half + 3:
            return 0.0
        return self.street.shadows.at(thing.x, thing.z)
