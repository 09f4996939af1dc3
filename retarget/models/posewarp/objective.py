"""What it learns by (§3.6): L_VGG, and in the second stage a critic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import Frame, Objective
from ..losses import VGG19, content_loss, matte_loss
from .networks import PairCritic

GAN = 0.1
"""λ: how much the critic counts (§3.6)."""
CONVOLUTIONS = (1, 3, 6, 8, 11, 13, 15, 17, 20, 22, 24, 26)
"""Indices of VGG19's first twelve activations, relu1_1 to relu4_4."""
FLOOR = 0.1 / 57
"""What is added to a channel's standard deviation: 0.1 in the paper, whose VGG19 sees about 57 times larger inputs."""


class PosewarpObjective(Objective):
    """§3.6: L_VGG, and in the second stage, with a critic, L_VGG + λ L_GAN: λ = 0.1, binary cross entropy.

    L_VGG: the mean absolute difference of VGG19's activations, each channel divided by its standard deviation, averaged
    over twelve layers; with averages for VGG's maxima. The paper's deviations are those of its corpus; here they are
    those of the true pictures of the batch. Without VGG19 `content_loss` takes its place. The matte is told the true
    one, which the paper does not know.

    The critic judges conditions that `Posewarp.ahead` made: it looks at both poses.
    """

    def __init__(self, critics: PairCritic | None, vgg: VGG19 | None) -> None:
        super().__init__()
        self.critics, self.vgg = critics, vgg

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critics.parameters()) if self.critics else []

    def generator_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        x, y = frame.rgb.float(), truth.rgb.float()
        terms = {"perceptual": vgg_loss(self.vgg, x, y)} if self.vgg else {"content": content_loss(x, y)}
        if frame.matte is not None and truth.matte is not None:
            terms["matte"] = matte_loss(frame.matte, truth.matte)
        if self.critics:
            terms["adversarial"] = GAN * _judged(self.critics(x, condition.maps), 1.0)
        return terms

    def critic_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        if not self.critics:
            return {}
        maps = condition.maps
        real, fake = (self.critics(f.rgb.detach().float(), maps) for f in (truth, frame))
        return {"critic": 0.5 * (_judged(real, 1.0) + _judged(fake, 0.0))}


def vgg_loss(vgg: VGG19, x: Tensor, y: Tensor) -> Tensor:
    """L_VGG of `PosewarpObjective`: drawn x and true y, (B, 3, H, W) in -1..1."""
    with torch.no_grad():
        real = vgg(y, CONVOLUTIONS, average=True)
    terms = []
    for true, drawn in zip(real, vgg(x, CONVOLUTIONS, average=True), strict=True):
        deviation = true.float().std((0, 2, 3), keepdim=True, correction=0) + FLOOR
        terms.append(((true.float() - drawn.float()) / deviation).abs().mean())
    return torch.stack(terms).mean()


def _judged(logits: Tensor, label: float) -> Tensor:
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
