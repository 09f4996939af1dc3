"""H, which paints (Eqs. 8-10), and W and M, which move what is known already (Eqs. 3, 4 and 11)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..layers import resized, zero_
from .config import FewShotConfig

SLOPE = 0.2
REACH = 20.0
"""Pixels of flow for an answer of 1 (the published code's multiplier)."""


def _conv(
    c: FewShotConfig, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, SLOPE)
    return spectral_norm(conv) if c.spectral else conv


def convolution(c: FewShotConfig, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation (of the whole picture, so that what tells its channels apart stays), leaky ReLU."""
    norm = nn.BatchNorm2d(outputs) if c.norm == "batch" else nn.GroupNorm(1, outputs)
    return nn.Sequential(_conv(c, inputs, outputs, stride=stride), norm, nn.LeakyReLU(SLOPE))


def _free(c: FewShotConfig, channels: int) -> nn.Module:
    """Normalisation without parameters of its own: p̂ of Eq. 10."""
    kind = nn.BatchNorm2d if c.norm == "batch" else nn.InstanceNorm2d
    return kind(channels, affine=False)


def pointwise(x: Tensor, filters: Tensor) -> Tensor:
    """⊛ of Eqs. 8 and 9: a 1×1 convolution with filters of its own for every picture.

    Args:
        x: (B, C, h, w).
        filters: (B, outputs, C + 1), the bias last.
    """
    b, c, h, w = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
    y = torch.baddbmm(filters[:, None, :, c].to(x.dtype), flat, filters[..., :c].transpose(1, 2).to(x.dtype))
    return y.reshape(b, h, w, -1).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions with the normalisation of the configuration, added to their input."""

    def __init__(self, c: FewShotConfig, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(c, channels, channels), convolution(c, channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y


class FlowNetwork(nn.Module):
    """W and M (Eqs. 3 and 4): where a known picture's pixels went, and where they are not to be seen.

    Shapes: (B, inputs, h, w) → flow (B, 2, h, w) in pixels of its own resolution, m̃ (B, 1, h, w) in 0..1.
    """

    def __init__(self, c: FewShotConfig, inputs: int, new: float) -> None:
        super().__init__()
        widths = [min(c.flow_width << level, c.widest) for level in range(c.flow_downs + 1)]
        self.down = nn.Sequential(
            convolution(c, inputs, widths[0]),
            *(convolution(c, a, b, stride=2) for a, b in pairwise(widths)),
            *(ResidualBlock(c, widths[-1]) for _ in range(c.flow_blocks)),
        )
        self.up = nn.ModuleList(convolution(c, a, b) for a, b in pairwise(reversed(widths)))
        self.head = zero_(nn.Conv2d(widths[0], 3, 3, 1, 1))
        self.new = new

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.down(x)
        for up in self.up:
            y = up(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        answer = self.head(y).float()
        return REACH * answer[:, :2], torch.sigmoid(answer[:, 2:] + self.new)


class SpadeBlock(nn.Module):
    """A residual block of the SPADE generator (Park et al. 2019, Fig. 4), whose modulation is given.

    Shapes: (B, inputs, h, w) → (B, outputs, h, w).
    """

    def __init__(self, c: FewShotConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.first, self.second = _conv(c, inputs, middle), _conv(c, middle, outputs)
        self.shortcut = _conv(c, inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.norm_in, self.norm_middle = _free(c, inputs), _free(c, middle)

    def forward(self, x: Tensor, gammas: Sequence[Tensor], betas: Sequence[Tensor]) -> Tensor:
        """γ and β of the normalisations before the first and the second convolution and, where the number of channels
        changes, before the shortcut's: (B, C, h, w) each."""
        normal = self.norm_in(x)
        y = self.first(F.leaky_relu(gammas[0] * normal + betas[0], SLOPE))
        y = self.second(F.leaky_relu(gammas[1] * self.norm_middle(y) + betas[1], SLOPE))
        if self.shortcut is not None:
            x = self.shortcut(gammas[2] * normal + betas[2])
        out: Tensor = x + y
        return out


class Synthesis(nn.Module):
    """H: the SPADE generator whose modulation branches have the weights θ_H (Eqs. 8-10).

    Shapes: maps (B, C, h, w), both sides multiples of 2 ** (levels - 1) → (B, layers, h · fold, w · fold).
    """

    def __init__(self, c: FewShotConfig) -> None:
        super().__init__()
        widths = c.channels
        self.start = _conv(c, c.maps, widths[-1])
        self.blocks = nn.ModuleList(SpadeBlock(c, b, a) for a, b in pairwise(widths))
        # Channels of each block's modulated normalisations.
        self.modulated = [[b, min(a, b), *([b] if a != b else [])] for a, b in pairwise(widths)]
        self.last = zero_(nn.Conv2d(widths[0], c.layers * c.fold**2, 3, 1, 1))
        self.unfold = nn.PixelShuffle(c.fold)

    def forward(self, maps: Tensor, weights: Sequence[Sequence[Tensor]]) -> Tensor:
        """`weights`: θ_H^l of each level, fine to coarse: θ_S, then θ_γ and θ_β of each modulated normalisation."""
        shared, modulations = maps, []
        for level, (own, *others) in enumerate(weights):
            shared = F.avg_pool2d(shared, 2) if level else shared
            shared = F.leaky_relu(pointwise(shared, own), SLOPE)
            made = pointwise(shared, torch.cat(others, 1)).split([w.shape[1] for w in others], 1)
            modulations.append((made[::2], made[1::2]))
        x = self.start(resized(maps, shared.shape[2:]))
        for level in reversed(range(len(weights))):
            x = self.blocks[level](x, *modulations[level])
            if level:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        out: Tensor = self.unfold(self.last(F.leaky_relu(x, SLOPE)))
        return out.float()
