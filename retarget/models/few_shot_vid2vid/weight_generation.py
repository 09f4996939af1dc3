"""E (Eq. 7): what the modulation branches of H do (Eqs. 8-10), made from examples of the person."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import FewShotConfig
from .networks import SLOPE, convolution


class WeightGenerator(nn.Module):
    """E_P^l: a multi-layer perceptron that makes filters of one channel of q^l each.

    Args:
        filters: (outputs, inputs, bias) of each convolution: its bias begins there. There are at most `rows` outputs.
        rows: channels of q^l.
        grid: q^l is pooled to grid × grid.
        generated: False: the filters are the bias of the last layer alone, the same for everybody.
    """

    def __init__(self, filters: Sequence[tuple[int, int, float]], rows: int, grid: int, generated: bool) -> None:
        super().__init__()
        self.sizes = [(outputs, inputs + 1) for outputs, inputs, _ in filters]
        self.bias = nn.ParameterList()
        for outputs, inputs, bias in filters:
            own = torch.randn(outputs, inputs + 1) / inputs**0.5
            own[:, -1] = bias
            self.bias.append(nn.Parameter(own))
        self.mlp: nn.Sequential | None = None
        if generated:
            last = nn.Linear(rows, sum(size for _, size in self.sizes), bias=False)
            nn.init.normal_(last.weight, 0, 0.3 / (rows * max(inputs for _, inputs, _ in filters)) ** 0.5)
            hidden = (nn.Linear(grid * grid, rows), nn.LeakyReLU(SLOPE), nn.Linear(rows, rows), nn.LeakyReLU(SLOPE))
            self.mlp = nn.Sequential(*hidden, last)

    def forward(self, q: Tensor) -> list[Tensor]:
        """(B, rows, N) → for each convolution (B, outputs, inputs + 1), the bias last."""
        if self.mlp is None:
            return [own.expand(len(q), -1, -1) for own in self.bias]
        made = self.mlp(q).split([size for _, size in self.sizes], 2)
        return [own + new[:, : len(own)] for own, new in zip(self.bias, made, strict=True)]


class WeightGeneration(nn.Module):
    """E (Eq. 7): E_F reads the examples, E_A says what of them matters for a frame, E_P makes θ_H of it."""

    def __init__(self, c: FewShotConfig, modulated: Sequence[Sequence[int]]) -> None:
        super().__init__()
        widths = c.channels
        self.grid, self.rows = c.grid, widths[1 : c.adaptive + 1]
        self.features = nn.ModuleList(  # E_F: q^l has the channels of what comes into H^l
            nn.Sequential(*([] if level else [convolution(c, c.layers, widths[0])]), convolution(c, a, b, stride=2))
            for level, (a, b) in enumerate(zip(widths, self.rows, strict=False))
        )
        self.keys = nn.Sequential(  # E_A
            convolution(c, c.maps, widths[0]),
            *(convolution(c, a, b, stride=2) for a, b in pairwise(widths[: c.keys + 1])),
        )
        self.perceptrons = nn.ModuleList()
        for level, width in enumerate(widths[: c.levels]):
            filters = [(width, widths[level - 1] if level else c.maps, 0.0)]
            filters += [(n, width, bias) for n in modulated[level] for bias in (1.0, 0.0)]
            self.perceptrons.append(WeightGenerator(filters, widths[level + 1], c.grid, level < c.adaptive))

    def appearance(self, pictures: Tensor) -> Tensor:
        """q of all levels, pooled: (B, K, layers, h, w) → (B, K, R, N)."""
        x, found = pictures.flatten(0, 1), []
        for layer in self.features:
            x = layer(x)
            found.append(F.adaptive_avg_pool2d(x.float(), self.grid).flatten(2))
        return torch.cat(found, 1).unflatten(0, pictures.shape[:2])

    def key(self, maps: Tensor) -> Tensor:
        """a: (B, C, h, w) → (B, C', N)."""
        return F.adaptive_avg_pool2d(self.keys(maps).float(), self.grid).flatten(2)

    def attention(self, keys: Tensor, query: Tensor, known: Tensor) -> Tensor:
        """α = a_kᵀ ⊗ a_t, as shares: of all places of all examples, for each place of the frame.

        Args:
            keys: (B, K, C', N); query: (B, C', N); known: (B, K) 1 or 0.

        Returns:
            (B, K, N, N), whose sum over the examples and their places is 1.
        """
        energy = torch.einsum("bkcn,bcm->bknm", keys, query).float() / keys.shape[2] ** 0.5
        energy = energy.masked_fill(known[:, :, None, None] == 0, -torch.inf)
        return energy.flatten(1, 2).softmax(1).unflatten(1, energy.shape[1:3])

    def weights(self, q: Tensor) -> list[list[Tensor]]:
        """θ_H of q (B, R, N), level by level, fine to coarse."""
        parts: list[Tensor] = list(q.split(self.rows, 1)) if self.rows else []
        parts += [q] * (len(self.perceptrons) - len(parts))  # not looked at
        return [perceptron(part) for perceptron, part in zip(self.perceptrons, parts, strict=True)]
