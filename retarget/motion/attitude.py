"""How the driver's head is turned and where it is, out of face meshes that come and go."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..types import Array, PoseTrack
from .base import EARS, Float, Mask
from .body import Body
from .gaps import fill
from .head import MARKS, facing, firm_points, head_joints
from .turning import nearest_rotation, rotations


class Meshes(NamedTuple):
    """What the fit needs to know of the driver's face meshes.

    found   (T,) bool: the pictures that have one.
    turn    (T, 3, 3) rotations relative to the avatar's template.
    middle  (T, 3) mean of the firm points, float64.
    spread  (T,) their root mean square distance from it.
    """

    found: Mask
    turn: Float
    middle: Float
    spread: Float

    @staticmethod
    def of(face: Array, template: Array | None) -> Meshes:
        found = np.isfinite(face).all(axis=(1, 2))
        if template is None:
            none = np.full((len(face), 3), np.nan)
            return Meshes(found, np.broadcast_to(np.eye(3), (len(face), 3, 3)), none, none[:, 0])
        firm = firm_points(template.astype(np.float64))
        mesh = face[:, firm].astype(np.float64)
        middle = mesh.mean(axis=1)
        spread = np.sqrt(((mesh - middle[:, None]) ** 2).sum(axis=2).mean(axis=1))
        return Meshes(found, rotations(template[firm].astype(np.float64), mesh), middle, spread)


def attitude(track: PoseTrack, meshes: Meshes, body: Body, fps: float) -> tuple[Float, Float, Mask]:
    """How the driver's head is turned and where it is.

    Returns:
        (T, 3, 3) the rotation relative to the avatar's templates; (T, 3) the place of mid ear in the driver's picture;
        (T,) bool: whether the face can be seen.

    From the face mesh where it is found, which is steadier than the body's ears; else from the head's joints, corrected
    by how the two differ nearby in time, so that nothing jumps where the mesh comes and goes.
    """
    head = body.head.astype(np.float64)
    joints = head_joints(track)
    coarse, ear = rotations(head, joints), track.body[:, EARS, :3].astype(np.float64).mean(axis=1)
    has_mesh, fine = meshes.found, meshes.turn
    if body.face is None or not has_mesh.any():
        return coarse, ear, has_mesh
    template = body.face[firm_points(body.face.astype(np.float64))].astype(np.float64)
    size = np.nanmedian(meshes.spread) / np.sqrt(((template - template.mean(axis=0)) ** 2).sum(axis=1).mean())
    steady = meshes.middle - size * fine @ template.mean(axis=0)
    steady[:, 2] = ear[:, 2]

    trust = np.exp(-_distance(np.arange(len(track)), np.flatnonzero(has_mesh)) / (0.3 * fps))
    turn_off = _patched(np.where(has_mesh[:, None, None], fine @ coarse.transpose(0, 2, 1), np.nan), trust)
    turned = np.where(has_mesh[:, None, None], fine, nearest_rotation(turn_off) @ coarse)
    place_off = _patched(np.where(has_mesh[:, None], steady - ear, np.nan), trust)
    place = np.where(has_mesh[:, None], steady, ear + place_off)
    # The mesh of a face that was not found is shown only where it must be visible.
    front = facing(np.einsum("tij,nj->tni", turned, body.face[MARKS].astype(np.float64)))
    return turned, place, has_mesh | (front > np.cos(np.radians(50)))


def _patched(values: Float, trust: Float) -> Float:
    """`values` (T, ...) with rows of NaN filled: near known rows like these (`trust` (T,) 1), far away their median."""
    usual = np.nanmedian(values, axis=0)
    near = fill(values.astype(np.float32), len(values), hold=True).astype(np.float64)
    weight = trust.reshape(-1, *[1] * (values.ndim - 1))
    patched: Float = weight * near + (1 - weight) * usual
    return patched


def _distance(rows: npt.NDArray[np.integer], known: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """How far each row is from the nearest known one; both rising."""
    right = np.searchsorted(known, rows).clip(max=len(known) - 1)
    left = (right - 1).clip(min=0)
    return np.minimum(np.abs(known[left] - rows), np.abs(known[right] - rows))
