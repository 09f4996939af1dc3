"""The U-Net of all three tasks (§3.1), and the critic (§3.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import fit_sides
from .joints import JOINTS, heat_maps


class PoseUNet(nn.Module):
    """The U-Net of all three tasks (§3.1): eleven convolutions down to 1/32, the pose joining at 1/2, and five up.

    Without normalisation; leaky ReLU of 0.2. `width` 64 is the paper's.

    Shapes: (B, inputs, H, W) and joints (B, 14, 3) → (B, outputs, H, W), any H and W.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        a, b, joints = width, 2 * width, len(JOINTS)
        self.first = _conv(inputs, a, 7)
        self.second = _conv(a, a, stride=2)
        self.keep = nn.ModuleList([_conv(a + joints, b), *(_conv(b, b) for _ in range(3))])
        self.halve = nn.ModuleList(_conv(b, b, stride=2) for _ in range(4))
        self.bottom = _conv(b, b)
        self.up = nn.ModuleList([*(_conv(2 * b, b) for _ in range(4)), _conv(b + a, outputs)])

    def forward(self, x: Tensor, joints: Tensor) -> Tensor:
        h, w = x.shape[2:]
        x = self.first(fit_sides(x, 32))
        skips = [x]
        maps = heat_maps(joints, (x.shape[2] // 2, x.shape[3] // 2))
        y = torch.cat([self.second(x), maps.to(x.dtype)], 1)
        for keep, halve in zip(self.keep, self.halve, strict=True):
            skips.append(keep(y))
            y = halve(skips[-1])
        y = self.bottom(y)
        for up in self.up:
            y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
            y = up(torch.cat([y, skips.pop()], 1))
        return y[..., :h, :w]


class PairCritic(nn.Module):
    """The critic (§3.6): a picture and both poses → one logit.

    `width` 64 is the paper's. The paper's pictures of 256 × 256 pixels end in 8 × 8; others are averaged to that.

    Shapes: (B, 3, H, W) in -1..1 and (B, poses, ⌈H / 2⌉, ⌈W / 2⌉) → (B, 1), H and W of at least 32.
    """

    def __init__(self, poses: int, width: int) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.first = _conv(3, a, 5)
        self.rest = nn.Sequential(
            _conv(a + poses, b, 5), nn.MaxPool2d(2), _conv(b, c), nn.MaxPool2d(2), _conv(c, c), nn.MaxPool2d(2),
            _conv(c, c), nn.MaxPool2d(2), _conv(c, c), nn.AdaptiveAvgPool2d(8), nn.Flatten(),
            nn.Linear(64 * c, c), nn.ReLU(), nn.Linear(c, c), nn.ReLU(), nn.Linear(c, 1),
        )  # fmt: skip
        glorot(self)

    def forward(self, rgb: Tensor, maps: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(rgb), 2, ceil_mode=True)
        logit: Tensor = self.rest(torch.cat([x, maps.to(x.dtype)], 1))
        return logit


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.LeakyReLU(0.2))


def glorot(net: nn.Module) -> None:
    """Fresh weights as the paper's library draws them (Glorot, uniform)."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
