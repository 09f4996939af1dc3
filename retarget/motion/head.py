"""A person's head: templates of its joints and face mesh, and how far it turns."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ..skeleton import FACE_JOINTS, FACE_POINTS
from ..types import Array, PoseTrack
from .base import EARS, Float
from .turning import rotations, yaw_pitch

SIDES: Final = (234, 454)
"""Points of the face mesh in front of the right and the left ear."""
NOSE_BASE, FOREHEAD, CHIN = 2, 10, 152
MARKS: Final = [*SIDES, FOREHEAD, CHIN]
"""Points of the face mesh that tell where it looks."""


def head_of(track: PoseTrack, size: Float) -> tuple[Array, Array | None, Array]:
    """Templates of the head's joints and of the face mesh, and the range of turns, from a track of found poses.

    size: (T,) factors that bring each picture to the body's median scale.
    """
    joints = head_joints(track) * size[:, None, None]
    faces = np.flatnonzero(np.isfinite(track.face).all(axis=(1, 2)))
    turn = np.zeros((2, 2), np.float32)
    if len(faces):
        mesh = _mesh(track)[faces] * size[faces, None, None]
        best = np.argsort(-facing(mesh[:, MARKS]))[: max(1, min(9, len(faces) // 3))]
        frontal = mesh[best[0]]
        rotation = rotations(frontal[firm_points(frontal)], mesh[:, firm_points(frontal)])
        back = rotation.transpose(0, 2, 1)  # each picture's attitude → the template's
        face = np.median(np.einsum("tij,tnj->tni", back[best], mesh[best]), axis=0)
        head = np.median(np.einsum("tij,tnj->tni", back[best], joints[faces][best]), axis=0)
        angles = np.stack(yaw_pitch(rotation), axis=1)
        turn = np.percentile(angles, [2, 98], axis=0).T.astype(np.float32)
        return head.astype(np.float32), face.astype(np.float32), turn
    return np.median(joints, axis=0).astype(np.float32), None, turn


def head_joints(track: PoseTrack) -> Float:
    """(T, 11, 3) the head's joints relative to mid ear."""
    joints = track.body[:, FACE_JOINTS, :3].astype(np.float64)
    return joints - joints[:, EARS].mean(axis=1, keepdims=True)


def _mesh(track: PoseTrack) -> Float:
    """(T, N, 3) the face mesh: x, y relative to the body's mid ear, z relative to the mesh's own sides."""
    mesh = track.face.astype(np.float64)
    ear = track.body[:, EARS, :3].astype(np.float64).mean(axis=1)
    ear[:, 2] = mesh[:, SIDES, 2].mean(axis=1)
    return mesh - ear[:, None]


def facing(marks: Float) -> Float:
    """(T,) how far face meshes, given by their `MARKS`, look into the camera: the cosine of the angle, 1 straight, -1
    away."""
    across, down = marks[:, 1] - marks[:, 0], marks[:, 3] - marks[:, 2]
    inward = np.cross(across, down)  # x right, y down, z away from the camera
    cosine: Float = inward[:, 2] / np.maximum(np.linalg.norm(inward, axis=1), 1e-9)
    return cosine


def firm_points(mesh: Float) -> npt.NDArray[np.intp]:
    """The points of a frontal mesh above the mouth, which speech and smiles hardly move; irises are none."""
    down = mesh[CHIN] - mesh[FOREHEAD]
    return np.flatnonzero((mesh[:FACE_POINTS] - mesh[NOSE_BASE]) @ down < 0)
