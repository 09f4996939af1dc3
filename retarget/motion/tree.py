"""The tree of bone vectors, stretched; legs that the driver does not show."""

from __future__ import annotations

from typing import Final

import numpy as np

from ..skeleton import FACE_JOINTS, J
from .base import EARS, HIPS, SHOULDERS, Float
from .body import BONE, Body

_LEG = tuple(J[f"{s}_{n}"] for s in ("left", "right") for n in ("ankle", "heel", "foot_index"))
LOWER: Final = {
    "hips": [*HIPS],
    "knees": [J["left_knee"], J["right_knee"]],
    "feet": [*_LEG],
}
"""Joints of the lower body, grouped as `Body.lower` is."""


def tree_of(points: Float, ratio: Float, grow: Float) -> Float:
    """(T, 33, 3) poses, relative to mid hip, with each bone vector multiplied by its ratio and by `grow` (T, 1, 1)."""
    r = {name: ratio[i] for name, i in BONE.items()}
    out = np.zeros_like(points)
    hip, shoulder, ear = (points[:, pair].mean(axis=1) for pair in (HIPS, SHOULDERS, EARS))
    chest = (shoulder - hip) * r["spine"]
    for pair, middle, start, width in ((HIPS, hip, 0.0, "hips"), (SHOULDERS, shoulder, chest, "shoulders")):
        for joint in pair:
            out[:, joint] = start + (points[:, joint] - middle) * r[width]
    top = chest + (ear - shoulder) * r["neck"]
    for joint in FACE_JOINTS:
        out[:, joint] = top + (points[:, joint] - ear) * r["neck"]

    def hang(joint: str, parent: str, bone: str) -> None:
        for side in ("left", "right"):
            a, b = J[f"{side}_{parent}"], J[f"{side}_{joint}"]
            out[:, b] = out[:, a] + (points[:, b] - points[:, a]) * r[bone]

    hang("elbow", "shoulder", "upper_arm")
    hang("wrist", "elbow", "lower_arm")
    for finger in ("pinky", "index", "thumb"):
        hang(finger, "wrist", "lower_arm")
    hang("knee", "hip", "upper_leg")
    hang("ankle", "knee", "lower_leg")
    for end in ("heel", "foot_index"):
        hang(end, "ankle", "foot")
    return out * grow


def made_up(posed: Float, body: Body, hidden: list[str], shown: Float) -> Float:
    """`posed` with the avatar's resting legs where the driver's are hidden; without hips, also its resting trunk."""
    rest = body.rest[None, :, :3].astype(np.float64) * shown
    out = posed.copy()
    if "hips" in hidden:  # the shoulders lead: hips hang below them as the avatar's do
        out += (rest[:, SHOULDERS] - posed[:, SHOULDERS]).mean(axis=1, keepdims=True)
        out[:, HIPS] = rest[:, HIPS]
    for part, parent in (("knees", "hip"), ("feet", "knee")):
        if part in hidden:
            for joint in LOWER[part]:
                anchor = HIPS if parent == "hip" else tuple(LOWER["knees"])
                side = anchor[0] if joint % 2 else anchor[1]  # left joints have odd numbers
                out[:, joint] = out[:, side] + rest[:, joint] - rest[:, side]
    return out
