"""A small network for human parsing and pose estimation: the eyes of Eq. 7 of Dance Dance Generation.

The paper compares features of the pose encoder and of the parsing encoder of MuLA (Nie et al., ECCV 2018; its [19]),
whose weights are not public. This one has two encoders as well, and is trained with `retarget train parsing` on a
corpus's pictures, poses and mattes. It draws nothing; it is only needed while `dance-paper` is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError
from ..skeleton import PARENT, PARTS, J
from ..types import Array
from .base import Frame, Objective
from .layers import UNet

KEYPOINTS: Final[tuple[int, ...]] = tuple(
    J[name]
    for name in (
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    )
)  # fmt: skip
"""The joints that the paper's pose estimator (AlphaPose) knows: the 17 of COCO, in its order."""
TEN: Final = 10
"""The paper's body parts (§3.1): `skeleton.PARTS[:10]`; hands belong to lower arms, feet to lower legs."""


class Labels(NamedTuple):
    """What is to be seen in pictures (B, 3, H, W)."""

    joints: Tensor
    """(B, 17, 2): x, y in pixels; NaN where a joint was not found."""
    parts: Tensor
    """(B, H, W) int64: 0 is background, 1 to 10 are the parts."""


class Parsed(NamedTuple):
    """What is seen in pictures (B, 3, H, W)."""

    joints: Tensor
    """(B, 17, H, W) logits of each joint's heat map: how likely it is at which place."""
    parts: Tensor
    """(B, 11, H, W) logits: background, then the ten parts."""


class Parser(nn.Module):
    """Two U-Nets side by side: one finds joints, the other body parts.

    Args:
        width, depth, widest: of each, see `UNet`.

    Raises ValueError for sizes that cannot be.
    """

    def __init__(self, width: int = 24, depth: int = 4, widest: int = 64) -> None:
        super().__init__()
        if not (1 <= width <= widest <= 256 and 1 <= depth <= 6):
            raise ValueError("width is not from 1 to widest, or depth not from 1 to 6")
        self.config = {"width": width, "depth": depth, "widest": widest}
        self.joints = UNet(3, len(KEYPOINTS), width, depth, widest=widest, zero_last=False)
        self.parts = UNet(3, 1 + TEN, width, depth, widest=widest, zero_last=False)

    @classmethod
    def loaded(cls, tensors: Mapping[str, Tensor], config: Mapping[str, int]) -> Parser:
        """A trained one. Raises WeightsError when the weights are not a parser's."""
        try:
            parser = cls(**config)
            parser.load_state_dict(dict(tensors))
        except (TypeError, ValueError, RuntimeError) as error:
            raise WeightsError("The weights do not fit the parser.", "Use those of retarget train parsing.") from error
        return parser

    def forward(self, rgb: Tensor) -> Parsed:
        """(B, 3, H, W) in -1..1, any size."""
        return Parsed(self.joints(rgb).float(), self.parts(rgb).float())

    def features(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """φ_p and φ_s of Eq. 7: what the answers are read from, (B, width, h, w) each, at half the resolution."""
        return self.joints.features(rgb), self.parts.features(rgb)


def ten_parts(own: Array) -> Tensor:
    """Part mattes (14, H, W) of `parts.part_mattes` → the paper's ten, (10, H, W) in 0..1."""
    ten = own[:TEN].copy()
    for part in range(TEN, len(PARTS)):
        ten[PARENT[part]] += own[part]
    return torch.from_numpy(np.clip(ten, 0, 1))


def heat_maps(joints: Tensor, size: tuple[int, int]) -> Tensor:
    """Joints (B, N, 2), x, y in pixels → Gaussians (B, N, H, W) in 0..1 with a sigma of 1/64 of the short side.

    Zero where a joint is NaN.
    """
    rate = -0.5 / (min(size) / 64) ** 2
    x, y = (torch.arange(n, device=joints.device) + 0.5 for n in (size[1], size[0]))
    across, down = ((rate * (joints[..., i, None] - at).square()).exp().nan_to_num() for i, at in enumerate((x, y)))
    return down[..., :, None] * across[..., None, :]


class ParsingObjective(Objective):
    """What the parser is trained for: cross-entropy of each place's part, and of each joint's place.

    The heat maps are probabilities over all places (a mean over places would mostly see how empty they are). Joints
    that nobody found are left out. `joints` weighs the second term.
    """

    def __init__(self, joints: float = 0.2) -> None:
        super().__init__()
        self.joints = joints

    def generator_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        """`frame.extra` is `Parsed`, `truth.extra` is `Labels`."""
        parsed, labels = frame.extra, truth.extra
        places = heat_maps(labels.joints, (parsed.joints.shape[2], parsed.joints.shape[3])).flatten(2)
        total = places.sum(-1, keepdim=True)
        missed = -(places / total.clamp_min(1e-6) * parsed.joints.flatten(2).log_softmax(-1)).sum()
        return {
            "joints": self.joints * missed / (total > 0).sum().clamp_min(1),
            "parts": F.cross_entropy(parsed.parts, labels.parts),
        }

    def critic_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        return {}
