"""What E, V and G are made of (§3.4, A.4)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .config import DRAWING, TalkingHeadConfig

POOLED = 4
"""Sides of the places that E and V sum over: 4 × 4 for the paper's 256 pixels and six halvings."""


class Conv2d(nn.Conv2d):
    """A convolution with borders repeated by zeros, whose weight is normalised in float32 under autocast, too."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight = self.weight  # power iteration happens here
        return self._conv_forward(input, weight, self.bias)


class Linear(nn.Linear):
    """Likewise."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight = self.weight
        return F.linear(input, weight, self.bias)


def _conv(inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Module:
    """Spectral normalisation is everywhere (§3.4)."""
    return spectral_norm(Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=bias))


def _widths(width: int, widest: int, count: int) -> list[int]:
    return [min(width << i, widest) for i in range(count)]


class SelfAttention(nn.Module):
    """Non-local block of Self-Attention GAN as in BigGAN: keys and values at half the size; starts as identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, values = max(1, channels // 8), max(1, channels // 2)
        self.query, self.key = _conv(channels, inner, 1, bias=False), _conv(channels, inner, 1, bias=False)
        self.value, self.out = _conv(channels, values, 1, bias=False), _conv(values, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)
        key, value = (F.max_pool2d(f(x), 2, ceil_mode=True).flatten(2).transpose(1, 2) for f in (self.key, self.value))
        share = torch.softmax((query @ key.transpose(1, 2)).float(), -1).to(value.dtype)
        seen = (share @ value).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        y: Tensor = x + self.gain.to(x.dtype) * self.out(seen)
        return y


class Down(nn.Module):
    """A residual block (A.4, following BigGAN): pre-activated unless it is the first; halves by average pooling."""

    def __init__(
        self, inputs: int, outputs: int, *, first: bool = False, normed: bool = False, halve: bool = True
    ) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        norm = (lambda c: nn.InstanceNorm2d(c, affine=True)) if normed else (lambda c: nn.Identity())
        self.before = nn.Identity() if first else norm(inputs)
        self.one, self.between, self.two = _conv(inputs, outputs), norm(outputs), _conv(outputs, outputs)
        self.skip = _conv(inputs, outputs, 1) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.first else F.relu(self.before(x))
        y = self.two(F.relu(self.between(self.one(y))))
        if self.halve:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        out: Tensor = y + self.skip(x)
        return out


class Adaptive(nn.Module):
    """A residual block with adaptive instance normalisation; doubles the sides in the end, if asked to (A.4)."""

    def __init__(self, inputs: int, outputs: int, *, double: bool = False) -> None:
        super().__init__()
        self.enlarges = double
        self.coefficients = (2 * inputs, 2 * outputs)
        self.one, self.two = _conv(inputs, outputs), _conv(outputs, outputs)
        self.skip = _conv(inputs, outputs, 1) if double else nn.Identity()

    def forward(self, x: Tensor, before: Tensor, between: Tensor) -> Tensor:
        y = self.two(F.relu(adain(self.one(F.relu(adain(x, before))), between)))
        y = y + self.skip(x)
        return F.interpolate(y, scale_factor=2.0, mode="nearest") if self.enlarges else y


def adain(x: Tensor, coefficients: Tensor) -> Tensor:
    """(B, C, H, W) normalised per picture and channel, times 1 + γ, plus β; coefficients (B, 2 C): γ, then β."""
    gain, shift = coefficients.to(x.dtype)[:, :, None, None].chunk(2, 1)
    return F.instance_norm(x) * (1 + gain) + shift


class Trunk(nn.Module):
    """What E and V share (A.4): residual blocks that halve, self-attention at a quarter of 128 or an eighth of 256
    pixels (that is 32), ReLU, and the sum over places.

    Args:
        last: with a residual block more at the lowest resolution, as V has (§3.4).

    Shapes: (B, 6, H, W) → (B, `embedding`), and the outputs of all residual blocks.
    """

    def __init__(self, config: TalkingHeadConfig, *, last: bool) -> None:
        super().__init__()
        widths = [*_widths(config.width, config.widest, config.halvings - 1), config.embedding]
        pairs = zip([3 + DRAWING, *widths[:-1]], widths, strict=True)
        self.blocks = nn.ModuleList(Down(a, b, first=i == 0) for i, (a, b) in enumerate(pairs))
        if last:
            self.blocks.append(Down(widths[-1], widths[-1], halve=False))
        self.place = max(0, config.halvings - 4)
        self.attention = SelfAttention(widths[self.place])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            outputs.append(x)
            if i == self.place:
                x = self.attention(x)
        return F.relu(x).float().mean((2, 3)) * POOLED**2, outputs


class Generator(nn.Module):
    """G(y; ψ, ψ̂): (B, 3, H, W) and AdaIN coefficients (B, `coefficients`) → colours in -1..1, and matte logits.

    H and W must be multiples of 2 ** downs. Self-attention stands before the last block that halves (32 × 32) and after
    two that double (64 × 64).
    """

    def __init__(self, config: TalkingHeadConfig) -> None:
        super().__init__()
        down = [*_widths(config.width, config.widest, config.downs - 1), config.widest]
        pairs = list(zip([DRAWING, *down[:-1]], down, strict=True))
        self.down = nn.ModuleList(Down(a, b, first=i == 0, normed=True) for i, (a, b) in enumerate(pairs))
        self.looks_down = SelfAttention(pairs[-1][0])
        self.middle = nn.ModuleList(Adaptive(config.widest, config.widest) for _ in range(config.blocks))
        up = [down[-1], *reversed(down)]
        self.up = nn.ModuleList(Adaptive(a, b, double=True) for a, b in pairwise(up))
        self.looks_up = SelfAttention(up[2])
        self.last = _conv(up[-1], 4)
        blocks = [*self.middle, *self.up]
        self.sizes = [n for block in blocks for n in block.coefficients] + [2 * up[-1]]

    @property
    def coefficients(self) -> int:
        """How many adaptive parameters a person has."""
        return sum(self.sizes)

    def forward(self, y: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
        own = list(person.split(self.sizes, 1))
        for i, block in enumerate(self.down):
            y = block(self.looks_down(y) if i and i == len(self.down) - 1 else y)
        for block in self.middle:
            y = block(y, own.pop(0), own.pop(0))
        for i, block in enumerate(self.up):
            y = block(y, own.pop(0), own.pop(0))
            if i == 1:
                y = self.looks_up(y)
        answer = self.last(F.relu(adain(y, own.pop(0)))).float()
        return torch.tanh(answer[:, :3]), answer[:, 3:]
