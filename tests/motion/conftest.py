"""A dancer on paper: a synthetic skeleton with face and hands, whose every measure is known exactly."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from retarget.skeleton import JOINTS, J
from retarget.types import PoseTrack

SIZE = (640, 720)


HEAD = np.array(
    [(0, 0.01, -0.1)]
    + [(x, -0.03, -0.085) for x in (0.015, 0.03, 0.045, -0.015, -0.03, -0.045)]
    + [(0.075, 0, 0), (-0.075, 0, 0), (0.025, 0.06, -0.085), (-0.025, 0.06, -0.085)]
)


def turned(yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """(T, 3, 3) rotations about the vertical, then sideways axis, written down independently of the code under test."""
    a, b, o, one = np.radians(yaw), np.radians(pitch), np.zeros_like(yaw), np.ones_like(yaw)
    y = np.stack([np.cos(a), o, np.sin(a), o, one, o, -np.sin(a), o, np.cos(a)], -1).reshape(-1, 3, 3)
    x = np.stack([one, o, o, o, np.cos(b), -np.sin(b), o, np.sin(b), np.cos(b)], -1).reshape(-1, 3, 3)
    return y @ x


def face_mesh() -> np.ndarray:
    """(468, 3) metres: points on the front half of an ellipsoid around mid ear, the named ones where they belong."""
    rng = np.random.default_rng(7)
    u, v = rng.uniform(-1.4, 1.4, (2, 468))
    mesh = np.stack([0.075 * np.sin(u) * np.cos(v), 0.02 + 0.1 * np.sin(v), -0.1 * np.cos(u) * np.cos(v)], axis=1)
    named = {234: (-0.075, 0, 0), 454: (0.075, 0, 0), 10: (0, -0.08, -0.08), 152: (0, 0.12, -0.08), 2: (0, 0.03, -0.1)}
    for index, point in named.items():
        mesh[index] = point
    return mesh


def dancer(
    pictures: int = 80,
    *,
    scale: float = 250.0,
    place: tuple[float, float] = (320.0, 660.0),
    leg: float = 1.0,
    arm: float = 1.0,
    jump: np.ndarray | None = None,
    walk: np.ndarray | None = None,
    yaw: np.ndarray | None = None,
    size: tuple[int, int] = SIZE,
    still: bool = False,
) -> PoseTrack:
    """Somebody who dances, seen from far away (exact weak perspective).

    scale: pixels per metre; place: x of the start and y of the floor; leg, arm: length factors; jump: (T,) metres off
    the floor; walk: (T,) metres to the right; yaw: (T,) degrees of the head.
    """
    t = np.arange(pictures) / 25
    swing = 0.0 if still else 1.0
    zero = np.zeros(pictures)
    jump, walk, yaw = (zero if v is None else v for v in (jump, walk, yaw))
    p = np.zeros((pictures, len(JOINTS), 3))

    def hang(joint: str, parent: str, length: float, side: np.ndarray, front: np.ndarray) -> None:
        """A bone that hangs down, swung sideways and to the front by angles (T,)."""
        d = np.stack([np.sin(side) * np.cos(front), np.cos(side) * np.cos(front), -np.sin(front)], axis=1)
        p[:, J[joint]] = p[:, J[parent]] + length * d

    chest = np.stack([0.08 * swing * np.sin(2 * t), -0.5 + 0 * t, 0.04 * swing * np.cos(2 * t)], axis=1)
    for side, sign in (("left", 1), ("right", -1)):
        p[:, J[f"{side}_hip"]] = (sign * 0.1, 0, 0)
        p[:, J[f"{side}_shoulder"]] = chest + np.array((sign * 0.17, 0, 0))
        phase = 0.0 if side == "left" else 1.3
        raise_ = sign * (0.3 + swing * (0.9 + 0.9 * np.sin(3 * t + phase)))
        hang(f"{side}_elbow", f"{side}_shoulder", 0.28 * arm, raise_, swing * 0.5 * np.sin(2 * t + phase))
        hang(f"{side}_wrist", f"{side}_elbow", 0.25 * arm, raise_ * 1.4, swing * 0.6 * np.cos(2 * t + phase))
        for finger, length in (("pinky", 0.08), ("index", 0.09), ("thumb", 0.05)):
            hang(f"{side}_{finger}", f"{side}_wrist", length * arm, raise_ * 1.4, zero)
        bend = swing * (0.25 + 0.25 * np.sin(2 * t + 2 * phase))
        hang(f"{side}_knee", f"{side}_hip", 0.4 * leg, sign * (0.05 + 0.3 * bend), bend)
        hang(f"{side}_ankle", f"{side}_knee", 0.4 * leg, sign * (0.05 - 0.1 * bend), -bend)
        p[:, J[f"{side}_heel"]] = p[:, J[f"{side}_ankle"]] + (0, 0.06, 0.03)
        p[:, J[f"{side}_foot_index"]] = p[:, J[f"{side}_ankle"]] + (sign * 0.04, 0.07, -0.15)
    ear = chest + np.array((0, -0.22, 0))
    attitude = turned(np.asarray(yaw, float), np.asarray(zero, float))
    p[:, :11] = ear[:, None] + np.einsum("tij,nj->tni", attitude, HEAD)
    face = ear[:, None] + np.einsum("tij,nj->tni", attitude, face_mesh())

    shift = np.stack([place[0] + scale * walk, place[1] - scale * (p[:, :, 1].max(axis=1) + jump), zero], axis=1)
    body = np.concatenate([p * scale + shift[:, None], np.full((pictures, 33, 1), 0.99)], axis=2)
    fingers = np.linspace(0, 1, 21)[:, None] * np.array([0.02, 0.08, 0.01]) * arm
    wrists = p[:, [J["left_wrist"], J["right_wrist"]]] * (1, 1, 0)
    hands = (wrists[:, :, None] + fingers) * scale + shift[:, None, None]
    return PoseTrack(
        body=body.astype(np.float32),
        world=p.astype(np.float32),
        face=((face - (0, 0, 0.2)) * scale + shift[:, None]).astype(np.float32),  # the mesh's z has its own origin
        hands=hands.astype(np.float32),
        size=size,
        fps=Fraction(25),
    )


def lowest(track: PoseTrack) -> np.ndarray:
    return track.body[..., 1].max(axis=1)
