"""Multi-scale PatchGAN critics (Pix2PixHD §3.2; Dance Dance Generation §3.5, §4.2)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchCritic(nn.Module):
    """Says of every 70×70 patch (with three strided layers) how real it looks.

    Shapes: (B, inputs, H, W) → the outputs of all layers, first to last: features, then scores (B, 1, h, w).
    """

    def __init__(self, inputs: int, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        widths = [min(width << i, 8 * width) for i in range(layers + 1)]
        steps = [nn.Sequential(nn.Conv2d(inputs, width, 4, 2, 2), nn.LeakyReLU(0.2))]
        for i, (a, b) in enumerate(pairwise(widths)):
            stride = 2 if i < layers - 1 else 1
            steps.append(nn.Sequential(nn.Conv2d(a, b, 4, stride, 2), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2)))
        steps.append(nn.Sequential(nn.Conv2d(widths[-1], 1, 4, 1, 2)))
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for step in self.steps:
            x = step(x)
            outputs.append(x)
        return outputs


class Critics(nn.Module):
    """One PatchGAN critic per scale; each scale is half the one before. Two for 256, three for 512 pixels (DDG §4.2).

    Args:
        channels: of the pose maps that the picture is judged with; 0: the picture is judged by itself.
        width: channels of the first layer: 32 is half the original's 64, as in DDG.
    """

    def __init__(self, channels: int, scales: int = 2, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.critics = nn.ModuleList(PatchCritic(3 + channels, width, layers) for _ in range(scales))

    def forward(self, rgb: Tensor, maps: Tensor | None = None) -> list[list[Tensor]]:
        """Judge pictures.

        Args:
            rgb: (B, 3, H, W) in -1..1.
            maps: (B, channels, h, w) pose maps; brought to the picture's size.

        Returns:
            Per scale, fine to coarse, the outputs of the critic's layers: features first, scores (B, 1, ., .) last.
        """
        x = rgb
        if self.channels:
            if maps is None:
                raise ValueError("these critics judge a picture together with its pose maps")
            if maps.shape[-2:] != rgb.shape[-2:]:
                maps = F.interpolate(maps, rgb.shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([rgb, maps.to(rgb.dtype)], 1)
        outputs = []
        for i, critic in enumerate(self.critics):
            if i:
                x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
            outputs.append(critic(x))
        return outputs
