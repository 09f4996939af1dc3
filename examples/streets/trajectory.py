"""How the camera moves along the street."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from drawing import Array, Camera, Rng


@dataclass
class Trajectory:
    """What the camera does in each frame.

    size         (width, height) of its pictures.
    distance     (frames,) metres that it went along the street.
    offset       (frames,) metres to the right of its lane's middle.
    yaw, pitch   (frames,) radians.
    height       metres above the ground.
    fov          its horizontal angle of view in radians.
    horizon      where it is if the pitch is 0: the share of the picture above it.
    """

    size: tuple[int, int]
    fps: float
    distance: Array
    offset: Array
    yaw: Array
    pitch: Array
    height: float
    fov: float
    horizon: float

    def __post_init__(self) -> None:
        self.travel = float(self.distance[-1])
        self.speed = self.travel / max(len(self.distance) / self.fps, 0.1)
        self.focal = self.size[0] / np.tan(self.fov / 2)

    def driven(self, time: float) -> float:
        """Metres until a time in seconds."""
        return float(np.interp(time, np.arange(len(self.distance)) / self.fps, self.distance))

    def texels(self, x: float, z: float) -> float:
        """Per metre for what stands there: what is seen at its nearest."""
        return float(np.clip(self.focal / max(abs(x) * 1.2, z - self.travel, 1), 5, 34))

    def camera(self, frame: int, lane: float) -> Camera:
        """The camera of a frame, whose pictures are twice as large; lane: x of its middle."""
        wide, high = self.size[0] * 2, self.size[1] * 2
        yaw, pitch = self.yaw[frame], self.pitch[frame]
        ahead = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        right = np.array([np.cos(yaw), 0, -np.sin(yaw)])
        position = np.array([lane + self.offset[frame], self.height, self.distance[frame]])
        axes = np.stack([right, np.cross(ahead, right), ahead])
        return Camera((wide, high), position, axes, self.focal, (wide / 2, high * self.horizon))


def random_trajectory(rng: Rng, frames: int, fps: float, size: tuple[int, int]) -> Trajectory:
    time = np.arange(frames) / fps
    mode = str(rng.choice(["steady", "steady", "steady", "slower", "faster", "standing"]))
    speed = np.full(frames, rng.uniform(2.5, 12))
    ramp = np.clip(time / max(time[-1], 0.1) * 1.4, 0, 1)
    speed *= {"slower": 1 - 0.8 * ramp, "faster": 0.3 + 0.7 * ramp}.get(mode, np.ones(frames))
    if mode == "standing":
        speed *= 0
    distance = np.concatenate([[0], np.cumsum(speed[:-1]) / fps])
    moving = 0.15 if mode == "standing" else 1.0

    def wander(amount: float) -> Array:
        turns = rng.uniform(0.05, 0.25, 3)[:, None] * time * 2 * np.pi + rng.uniform(0, 2 * np.pi, 3)[:, None]
        return np.asarray(np.sin(turns).mean(0) * amount * moving)

    yaw = wander(0.045) + rng.normal(0, 0.012)
    pitch = wander(0.012) + 0.002 * moving * rng.normal(0, 1, frames)
    offset = wander(0.3)
    height, fov, horizon = rng.uniform(1.25, 1.7), np.radians(rng.uniform(50, 75)), rng.uniform(0.44, 0.5)
    return Trajectory(size, fps, distance, offset, yaw, pitch, height, fov, horizon)
