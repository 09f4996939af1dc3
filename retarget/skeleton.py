"""The skeleton: joints, bones and body parts.

Joints are the 33 body landmarks of BlazePose (the order of every pose estimator's output after conversion). Parts are
the ten body parts of Dance Dance Generation §3.1 (head, torso, upper and lower arms and legs) and hands and feet: one
that does not follow its own joints is what the eye notices first (§3.2, "Enhancing local details").
"""

from __future__ import annotations

from typing import Final

JOINTS: Final[tuple[str, ...]] = (
    "nose",
    "left_eye_inner",
    "left_eye",
    "left_eye_outer",
    "right_eye_inner",
    "right_eye",
    "right_eye_outer",
    "left_ear",
    "right_ear",
    "mouth_left",
    "mouth_right",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_pinky",
    "right_pinky",
    "left_index",
    "right_index",
    "left_thumb",
    "right_thumb",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "left_heel",
    "right_heel",
    "left_foot_index",
    "right_foot_index",
)
"""Names of the 33 joints, by index. Left and right are the person's own."""

J: Final[dict[str, int]] = {name: i for i, name in enumerate(JOINTS)}
"""Joint name → index."""

MIRROR: Final[tuple[int, ...]] = tuple(
    J[n.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")] for n in JOINTS
)
"""Index of each joint's mirror image (for horizontal flips)."""

FACE_JOINTS: Final[tuple[int, ...]] = tuple(range(11))
FACE_POINTS: Final = 468
IRISES: Final[tuple[tuple[int, ...], ...]] = (tuple(range(468, 473)), tuple(range(473, 478)))
"""Per eye, right and left: points of the face mesh that are the iris, its middle and four of its rim."""
REFINED_POINTS: Final = 478
"""Points of a face mesh with irises."""
HAND_POINTS: Final = 21

PARTS: Final[tuple[str, ...]] = (
    "head",
    "torso",
    "left_upper_arm",
    "right_upper_arm",
    "left_lower_arm",
    "right_lower_arm",
    "left_upper_leg",
    "right_upper_leg",
    "left_lower_leg",
    "right_lower_leg",
    "left_hand",
    "right_hand",
    "left_foot",
    "right_foot",
)
"""Body parts; the first ten are those of Dance Dance Generation §3.1, in the order of the pose map's channels."""

PART: Final[dict[str, int]] = {name: i for i, name in enumerate(PARTS)}

BONES: Final[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = (
    ((J["left_shoulder"], J["right_shoulder"]), (J["nose"],)),
    ((J["left_shoulder"], J["right_shoulder"]), (J["left_hip"], J["right_hip"])),
    ((J["left_shoulder"],), (J["left_elbow"],)),
    ((J["right_shoulder"],), (J["right_elbow"],)),
    ((J["left_elbow"],), (J["left_wrist"],)),
    ((J["right_elbow"],), (J["right_wrist"],)),
    ((J["left_hip"],), (J["left_knee"],)),
    ((J["right_hip"],), (J["right_knee"],)),
    ((J["left_knee"],), (J["left_ankle"],)),
    ((J["right_knee"],), (J["right_ankle"],)),
    ((J["left_wrist"],), (J["left_index"], J["left_pinky"])),
    ((J["right_wrist"],), (J["right_index"], J["right_pinky"])),
    ((J["left_heel"], J["left_ankle"]), (J["left_foot_index"],)),
    ((J["right_heel"], J["right_ankle"]), (J["right_foot_index"],)),
)
"""Per part, the line segment it hangs on: the mean of the first joints → the mean of the second joints."""

MIRROR_PART: Final[tuple[int, ...]] = tuple(
    PART[p.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")] for p in PARTS
)
"""Index of each part's mirror image."""

PARENT: Final[tuple[int, ...]] = (1, -1, 1, 1, 2, 3, 1, 1, 6, 7, 4, 5, 8, 9)
"""Per part, the part it is joined to; -1 for the torso, the root."""

FACE_CONTOURS: Final[dict[str, tuple[int, ...]]] = {
    "oval": (
        10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
        152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10,
    ),
    "lips_outer": (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185, 61),
    "lips_inner": (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191, 78),
    "left_eye": (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466, 263),
    "right_eye": (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246, 33),
    "left_brow_lower": (276, 283, 282, 295, 285),
    "left_brow_upper": (300, 293, 334, 296, 336),
    "right_brow_lower": (46, 53, 52, 65, 55),
    "right_brow_upper": (70, 63, 105, 66, 107),
}  # fmt: skip
"""Polylines of the face mesh that outline the face and its features; closed ones repeat their first point."""
