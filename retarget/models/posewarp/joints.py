"""The paper's fourteen joints, their heat maps (§3.1), and how large a person is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...heatmaps import VISIBLE
from ...skeleton import FACE_JOINTS, J

JOINTS = (
    "head", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
)  # fmt: skip
"""The paper's fourteen; "head" is its top."""
MIRRORED = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10)
"""The joint that is seen in a mirror where each joint is."""
LIMBS = ((0, 1), (2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (2, 5, 8, 11))
"""The joints of the ten limbs: head, arms, legs, and the torso's four."""
RULERS = (((2, 5), (8, 11), 0.5), ((2,), (5,), 0.36), *(((a,), (b,), 0.41) for a, b in LIMBS[5:9]))
"""What tells the body's scale: from the middle of joints to the middle of joints, and an adult's metres."""
DOT = 0.027
"""Sigma of a joint's heat map in metres: 7 / 4 of the paper's pixels at half its resolution."""


def joints_of(body: Tensor) -> Tensor:
    """(..., 33, 4) as in `Poses` → (..., 14, 3): `JOINTS`; NaN: not found, or less visible than `VISIBLE`."""
    xyz = body[..., :3].masked_fill(~(body[..., 3:] >= VISIBLE), torch.nan)
    neck = xyz[..., [J["left_shoulder"], J["right_shoulder"]], :].mean(-2)
    # The middle between the ears does not move when the head turns.
    ears, face = (xyz[..., joints, :].nanmean(-2) for joints in ([J["left_ear"], J["right_ear"]], list(FACE_JOINTS)))
    middle = torch.where(ears.isnan(), face, ears)
    top = middle + 0.55 * (middle - neck)
    return torch.cat([top[..., None, :], neck[..., None, :], xyz[..., [J[name] for name in JOINTS[2:]], :]], -2)


def body_scale(joints: Tensor) -> Tensor:
    """(..., 14, 3) → (...): pixels per metre, the median over `RULERS` measured in three dimensions; NaN: unknown."""
    lengths = [
        (joints[..., list(a), :].mean(-2) - joints[..., list(b), :].mean(-2)).norm(dim=-1) / metres
        for a, b, metres in RULERS
    ]
    return torch.stack(lengths, -1).nanmedian(-1).values.clamp_min(1)


def heat_maps(joints: Tensor, half: tuple[int, int]) -> Tensor:
    """Gaussians around the joints (§3.1), at half the resolution that the joints' pixels belong to.

    Args:
        joints: (B, 14, 3); NaN: not found.
        half: (h, w) of the maps.

    Returns:
        (B, 14, h, w) float32 in 0..1; zero for what was not found.
    """
    sigma = (DOT * scale_or(joints, 2 * half[0]) / 2).clamp_min(0.7)[:, None, None]
    x, y = (joints[..., i : i + 1].float() / 2 for i in (0, 1))
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(n, device=joints.device) + 0.5 - at) / sigma) ** 2)
        for n, at in zip(half, (y, x), strict=True)
    )
    # Numbers next to nothing would make a CPU slow.
    rows, columns = (F.threshold(axis.nan_to_num(0.0), 1e-5, 0.0) for axis in (rows, columns))
    return rows[..., :, None] * columns[..., None, :]


def scaled(joints: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Joints (..., 3) of a picture of `size` (height, width) in one of another: z follows the width."""
    x, y = to[1] / size[1], to[0] / size[0]
    return joints * joints.new_tensor([x, y, x])


def scale_or(joints: Tensor, height: int) -> Tensor:
    """(B,): pixels per metre; of an unknown body, half of the picture's height."""
    return body_scale(joints.float()).nan_to_num(height / 2)


def halved(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)
