"""Made-up face meshes: with mouth, eyes and irises, speaking, looking aside, turned, in pictures."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from retarget.motion.expression import GAP, LIDS, LIPS, MOUTH
from retarget.skeleton import IRISES
from retarget.types import PoseTrack


def a_face(seed: int = 0) -> np.ndarray:
    """(468, 3): a made-up face that looks straight into the camera, about 2 wide, with mouth and eyes; all faces have
    the same points in other proportions."""
    u, v = np.random.default_rng(99).uniform(-1.2, 1.2, (2, 468))
    rng = np.random.default_rng(seed)
    mesh = np.stack([np.sin(u), 1.3 * np.sin(v), -np.cos(u) * np.cos(v)], axis=1)
    mesh[[234, 454, 10, 2, 152]] = [(-1, 0, 0), (1, 0, 0), (0, -1.2, -0.5), (0, 0.2, -0.6), (0, 1.3, -0.3)]
    wide = rng.uniform(0.3, 0.4)
    for n, point in enumerate(LIPS):
        angle = 2 * np.pi * n / len(LIPS)
        mesh[point] = (wide * np.cos(angle), 0.6 + 0.1 * np.sin(angle), -0.8)
    mesh[MOUTH[0]], mesh[MOUTH[1]] = (-wide, 0.6, -0.75), (wide, 0.6, -0.75)
    mesh[GAP[0]], mesh[GAP[1]] = (0, 0.59, -0.85), (0, 0.61, -0.85)
    open_by = rng.uniform(0.06, 0.12)
    for side, (corners, (above, below), lids) in zip((-1, 1), LIDS, strict=True):
        for n, point in enumerate(lids):
            x = 0.4 * side + 0.25 * (n % 7 / 6 - 0.5)
            mesh[point] = (x, -0.2 + open_by * (-0.3 if n < 7 else 0.3), -0.8)
        mesh[above], mesh[below] = (0.4 * side, -0.2 - open_by / 2, -0.8), (0.4 * side, -0.2 + open_by / 2, -0.8)
        mesh[corners[0]], mesh[corners[1]] = (0.6 * side, -0.2, -0.75), (0.2 * side, -0.2, -0.75)
    return mesh * (rng.uniform(0.95, 1.05), rng.uniform(0.9, 1.1), 1)


def with_irises(face: np.ndarray, radius: float = 0.06) -> np.ndarray:
    """(478, 3): the face looking straight ahead; its irises lie before its eyes' corners."""
    rim = radius * np.array([(0, 0, 0), (1, 0, 0), (0, -1, 0), (-1, 0, 0), (0, 1, 0)])
    rim += (0, 0.01, -0.05)
    eyes = [face[list(corners)].mean(0) + rim for corners, _, _ in LIDS]
    return np.concatenate([face, *eyes])


def looking(face: np.ndarray, x: float, y: float = 0.0) -> np.ndarray:
    """The eyes turned by so many of their widths, to the person's left and down."""
    out = face.copy()
    for (corners, _, _), iris in zip(LIDS, IRISES, strict=True):
        out[list(iris), :2] += np.array([x, y]) * np.linalg.norm(face[corners[0]] - face[corners[1]])
    return out


def gaze(face: np.ndarray) -> np.ndarray:
    """(..., 2 eyes, 3): from the middle of an eye's corners to its iris in widths of the eye, of meshes (..., 478, 3)
    that look into the camera."""
    eyes = []
    for (corners, _, _), iris in zip(LIDS, IRISES, strict=True):
        a, b = face[..., corners[0], :], face[..., corners[1], :]
        eyes.append((face[..., iris[0], :] - (a + b) / 2) / np.linalg.norm(a - b, axis=-1, keepdims=True))
    return np.stack(eyes, axis=-2)


def turned(yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
    a, b, c = np.radians([yaw, pitch, roll])
    x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return y @ x @ z


def talking(face: np.ndarray, opened: float) -> np.ndarray:
    """The mouth open by so much more."""
    out = face.copy()
    out[GAP[0], 1] -= opened / 2
    out[GAP[1], 1] += opened / 2
    return out


def track(*meshes: np.ndarray, size=(200, 240), fps: int = 25) -> PoseTrack:
    n = len(meshes)
    body = np.full((n, 33, 4), 100, np.float32)
    return PoseTrack(
        body, body[..., :3], np.stack(meshes).astype(np.float32), np.full((n, 2, 21, 3), np.nan, np.float32), size,
        Fraction(fps),
    )  # fmt: skip


def seen(mesh: np.ndarray, rotation: np.ndarray | None = None, scale: float = 40, at=(100, 120, 0)) -> np.ndarray:
    return scale * mesh @ (np.eye(3) if rotation is None else rotation).T + at
