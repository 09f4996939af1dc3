"""Building blocks: a small U-Net that is fast on a CPU, and the coarse-to-fine generator of Pix2PixHD.

All normalisation is per picture, so that a batch of one trains and draws like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1


def fit_sides(x: Tensor, multiple: int, least: int = 0) -> Tensor:
    """Repeat the right and bottom border of (B, C, H, W) until both sides are multiples of `multiple`, `least` or more.

    `least` is itself a multiple.
    """
    h, w = x.shape[-2:]
    down, right = max(h + -h % multiple, least) - h, max(w + -w % multiple, least) - w
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


def within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) shrunk, if need be, so that the short side has `side` pixels."""
    zoom = min(1.0, side / min(size))
    return max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) in another size (h, w): averaged by the whole factor, then bilinear; faster than `area`."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    factor = min(x.shape[2] // size[0], x.shape[3] // size[1])
    if factor > 1:
        x = F.avg_pool2d(x, factor)
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def averaged(x: Tensor, reach: int = 2) -> Tensor:
    """(B, C, H, W): the mean of what is up to `reach` pixels away in each direction, without what is outside.

    As `F.avg_pool2d` with `count_include_pad=False`, but several times faster on a CPU.
    """
    known = []
    for dim in (2, 3):
        count = x.shape[dim]
        sides = [0, 0, 0, 0]
        sides[2 * (3 - dim)] = sides[2 * (3 - dim) + 1] = reach
        padded = F.pad(x, sides)
        x = padded.narrow(dim, 0, count)
        for i in range(1, 2 * reach + 1):
            x = x + padded.narrow(dim, i, count)
        at = torch.arange(count, device=x.device)
        known.append((at.clamp_max(reach) + at.flip(0).clamp_max(reach) + 1).to(x.dtype))
    return x / (known[0][:, None] * known[1])


def warp(x: Tensor, flow: Tensor, padding: str = "zeros") -> Tensor:
    """Look each pixel up where the flow says: out(p) = x(p + flow(p)), bilinear, in float32.

    Args:
        x: (B, C, H, W).
        flow: (B, 2, H, W) to the right and down, in pixels.
        padding: what is outside of x: "zeros", or "border", its nearest pixel.
    """
    height, width = x.shape[2:]
    right = torch.arange(width, device=x.device, dtype=torch.float32) + 0.5
    down = torch.arange(height, device=x.device, dtype=torch.float32) + 0.5
    flow = flow.float()
    grid = torch.stack([(flow[:, 0] + right) * (2 / width), (flow[:, 1] + down[:, None]) * (2 / height)], -1) - 1
    return F.grid_sample(x.float(), grid, mode="bilinear", padding_mode=padding, align_corners=False)


def zero_(layer: nn.Conv2d) -> nn.Conv2d:
    """Make a convolution answer zero until it has learnt something."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv_block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 8) -> nn.Sequential:
    """Convolution, group normalisation, leaky ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, SLOPE)
    return nn.Sequential(conv, nn.GroupNorm(min(groups, outputs), outputs), nn.LeakyReLU(SLOPE, inplace=True))


class UNet(nn.Module):
    """A U-Net whose layers work at 1/`fold` of the picture's resolution.

    The first convolution folds `fold` × `fold` pixels into one place, the last one unfolds them, so that outputs are
    at full resolution while the work is 1/`fold`² of it.

    Args:
        inputs, outputs: channels.
        width: channels at the finest level; they double per level up to `widest`.
        depth: levels.
        fold: pixels per side of a place: a power of two.
        zero_last: the output is zero until trained.

    Shapes: (B, inputs, H, W) → (B, outputs, H, W), any H and W.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 24,
        depth: int = 4,
        *,
        widest: int = 96,
        fold: int = 2,
        zero_last: bool = True,
    ) -> None:
        super().__init__()
        widths = [min(width << level, widest) for level in range(depth)]
        self.multiple = fold << (depth - 1)
        self.stem = conv_block(inputs, width, kernel=4 if fold == 2 else max(3, 2 * fold - 1), stride=fold)
        self.down = nn.ModuleList(
            nn.Sequential(conv_block(a, b, stride=2), conv_block(b, b)) for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(conv_block(a + b, a) for a, b in reversed(list(pairwise(widths))))
        self.last = nn.Conv2d(width, outputs * fold * fold, 3, 1, 1)
        self.unfold = nn.PixelShuffle(fold)
        if zero_last:
            zero_(self.last)

    def features(self, x: Tensor) -> Tensor:
        """(B, width, h, w): what the last convolution reads; 1/`fold` of the padded picture's sides."""
        y: Tensor = self.stem(fit_sides(x, self.multiple))
        skips = []
        for down in self.down:
            skips.append(y)
            y = down(y)
        for up in self.up:
            y = up(torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), skips.pop()], 1))
        return y

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        out: Tensor = self.unfold(self.last(self.features(x)))
        return out[..., :h, :w]


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with reflected borders, added to their input (pix2pixHD)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y


def _stem(inputs: int, width: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(3), nn.Conv2d(inputs, width, 7), nn.InstanceNorm2d(width), nn.ReLU(inplace=True)]


def _halve(channels: int) -> list[nn.Module]:
    """Half the sides, twice the channels."""
    return [
        nn.Conv2d(channels, 2 * channels, 3, 2, 1),
        nn.InstanceNorm2d(2 * channels),
        nn.ReLU(inplace=True),
    ]


def _double(channels: int) -> list[nn.Module]:
    """Twice the sides, half the channels."""
    return [
        nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1),
        nn.InstanceNorm2d(channels // 2),
        nn.ReLU(inplace=True),
    ]


def _paint(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, outputs, 7), nn.Tanh())


class GlobalGenerator(nn.Module):
    """The global generator G1 of Pix2PixHD; g of Dance Dance Generation §4.2.

    `width` 64 is the original: 182.5 M parameters (182,546,755 with 36 input channels). DDG halves the activation
    maps of every layer: `width` 32. Without `outputs` it has only features, for an enhancer around it.

    Shapes: (B, inputs, H, W) → (B, outputs, H, W) in -1..1, any H and W.
    """

    def __init__(self, inputs: int, outputs: int = 3, width: int = 64, downs: int = 4, blocks: int = 9) -> None:
        super().__init__()
        self.width, self.multiple = width, 1 << downs
        widths = [width << i for i in range(downs)]
        self.body = nn.Sequential(
            *_stem(inputs, width),
            *(layer for w in widths for layer in _halve(w)),
            *(ResidualBlock(width << downs) for _ in range(blocks)),
            *(layer for w in reversed(widths) for layer in _double(2 * w)),
        )
        self.paint = _paint(width, outputs) if outputs else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """(B, width, H, W): what `paint` turns into a picture."""
        h, w = x.shape[-2:]
        # Two pixels at the least where they are fewest: of a single one there is no reflection and no variance.
        features: Tensor = self.body(fit_sides(x, self.multiple, 2 * self.multiple))[..., :h, :w]
        return features

    def forward(self, x: Tensor) -> Tensor:
        picture: Tensor = self.paint(self.features(x))
        return picture


class LocalEnhancer(nn.Module):
    """The local enhancer of Pix2PixHD around a generator of half its resolution: G = (g, g̃) of DDG §4.2.

    Additional convolutions and residual blocks stand before and after g and are trained jointly with it. g sees the
    input at half resolution; its features, not its picture, are added (as in Pix2PixHD). Train g by itself first.

    Args:
        coarse: g, or an enhancer around it (Pix2PixHD §3.1: "additional local enhancer networks"); its width is twice
            this one's, so it must be even.
        inputs, outputs: as of `coarse`.
        blocks: residual blocks of g̃.

    Shapes: (B, inputs, H, W) → (B, outputs, H, W) in -1..1, any H and W.
    """

    def __init__(self, coarse: GlobalGenerator | LocalEnhancer, inputs: int, outputs: int = 3, blocks: int = 3) -> None:
        super().__init__()
        width: int = coarse.width // 2
        self.width: int = width
        self.multiple: int = 2 * coarse.multiple
        self.coarse = coarse
        self.before = nn.Sequential(*_stem(inputs, width), *_halve(width))
        self.after = nn.Sequential(*(ResidualBlock(2 * width) for _ in range(blocks)), *_double(2 * width))
        self.paint = _paint(width, outputs) if outputs else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """(B, width, H, W): what `paint` turns into a picture."""
        h, w = x.shape[-2:]
        x = fit_sides(x, self.multiple)
        half = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        features: Tensor = self.after(self.before(x) + self.coarse.features(half))
        return features[..., :h, :w]

    def forward(self, x: Tensor) -> Tensor:
        picture: Tensor = self.paint(self.features(x))
        return picture
