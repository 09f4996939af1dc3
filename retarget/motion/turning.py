"""Rotations: found from points, told as angles, kept within what can be shown."""

from __future__ import annotations

import numpy as np

from ..types import Array
from .base import Float, soft


def rotations(template: Float, points: Float) -> Float:
    """(T, 3, 3): the rotations that turn `template` (N, 3) into `points` (T, N, 3), about their means (Kabsch 1976)."""
    a = template - template.mean(axis=0)
    b = points - points.mean(axis=1, keepdims=True)
    bad = ~np.isfinite(b).all(axis=(1, 2))
    h = np.einsum("tni,nj->tij", np.where(bad[:, None, None], a, b), a)
    return nearest_rotation(h)


def nearest_rotation(matrices: Float) -> Float:
    """The rotation closest to each matrix (..., 3, 3)."""
    u, _, vt = np.linalg.svd(matrices)
    flip = np.linalg.det(u @ vt)
    u[..., :, 2] *= np.sign(flip)[..., None]
    nearest: Float = u @ vt
    return nearest


def yaw_pitch(rotation: Float) -> tuple[Float, Float]:
    """Yaw and pitch (degrees) of where rotations (T, 3, 3) turn the direction towards the camera (0, 0, -1)."""
    forward = -rotation[:, :, 2]
    yaw = np.degrees(np.arctan2(forward[:, 0], -forward[:, 2]))
    pitch = np.degrees(np.arcsin(np.clip(forward[:, 1], -1, 1)))
    return yaw, pitch


def _toward(yaw: Float, pitch: Float) -> Float:
    """(T, 3, 3): the rotation by pitch about x, then by yaw about y; `yaw_pitch` is its inverse."""
    a, b = np.radians(yaw), np.radians(pitch)
    forward = np.stack([np.sin(a) * np.cos(b), np.sin(b), -np.cos(a) * np.cos(b)], axis=1)
    right = np.stack([np.cos(a), np.zeros_like(a), np.sin(a)], axis=1)
    down = np.cross(-forward, right)
    return np.stack([right, down, -forward], axis=2)


def limited(rotation: Float, turn: Array, beyond: float = 35.0) -> Float:
    """Rotations with yaw and pitch kept within the range `turn` and `beyond` degrees more; roll is free.

    The last 15 degrees before the limit are compressed, so that a turning head slows down and does not stop dead.
    """
    yaw, pitch = yaw_pitch(rotation)
    roll = _toward(yaw, pitch).transpose(0, 2, 1) @ rotation  # what is left: a turn about the line of sight
    allowed = []
    for angle, (low, high) in zip((yaw, pitch), turn, strict=True):
        middle, half = (low + high) / 2, (high - low) / 2 + beyond
        allowed.append(middle + soft(angle - middle, half - 15, half + 10).clip(-half, half))
    return _toward(*allowed) @ roll
