"""Which reference shows a part best: a learned choice among K (few-shot vid2vid §3, attention over the examples).

A net of 1400 weights reads, for each part of each reference, how its pose differs from the wanted one, what of
it is hidden, how far it has to be stretched (`parts.clues`), and says what is to be added to its cost (`parts.cost`).
Its last layer begins at zero: what has learned nothing chooses by the rule alone.

It learns from what came of each choice: every part of every reference was moved onto the truth and compared
(`parts.errors`). A soft choice (softmax over the references) shall lose little against the best one; at work the choice
is hard (`parts.choose`), for a mean of several pictures is blurred.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .. import parts
from ..parts.geometry import Float
from ..skeleton import PARTS

KINDS = tuple(dict.fromkeys(part.removeprefix("left_").removeprefix("right_") for part in PARTS))
"""What left and right parts have in common."""
SOFTNESS = 0.1
"""Costs that far apart (in units of feature distance) are e times less chosen while learning."""
FAR = 1e4
"""The cost of what cannot be chosen."""


class Choice(nn.Module):
    """(..., P, K, CLUES) clues → (..., P, K) what is added to the costs."""

    kind: Tensor

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.kinds = nn.Embedding(len(KINDS), width)
        self.first, self.second = nn.Linear(parts.CLUES, width), nn.Linear(width, width)
        self.last = nn.Linear(width, 1)
        nn.init.normal_(self.kinds.weight, 0, 0.3)
        for weight in self.last.parameters():
            nn.init.zeros_(weight)
        kind = [next(i for i, name in enumerate(KINDS) if part.endswith(name)) for part in PARTS]
        self.register_buffer("kind", torch.tensor(kind), persistent=False)

    @property
    def taught(self) -> bool:
        """Whether it has anything to say."""
        return any(bool(weight.any()) for weight in self.last.parameters())

    def forward(self, clues: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(clues) + self.kinds(self.kind)[:, None])
        out: Tensor = self.last(torch.tanh(self.second(hidden)))[..., 0]
        return out

    @torch.no_grad()
    def judge(self, clues: Float) -> Float:
        """The same in NumPy: a `parts` judge."""
        device = self.last.weight.device
        with torch.autocast(device.type, enabled=False):
            return np.asarray(self(torch.from_numpy(clues).to(device)).double().cpu().numpy())

    def regret(self, lesson: Tensor) -> Tensor:
        """How much worse a soft choice is than the best one, (B,): of each part, as a share of the references' mean
        error; the person's parts by their pixels."""
        table = lesson.unflatten(2, (len(PARTS), -1)).transpose(1, 2)  # (B, P, K, CLUES + 3)
        clues, (price, error, pixels) = table[..., : parts.CLUES], table[..., parts.CLUES :].unbind(-1)
        known = error > 0
        weight = torch.where(known.sum(-1) > 1, pixels.amax(-1), 0)
        price = (price + self(clues)).masked_fill(~known, FAR)
        expected = (torch.softmax(-price / SOFTNESS, -1) * error).sum(-1)
        mean = error.sum(-1) / known.sum(-1).clamp_min(1)
        lost = (expected - error.masked_fill(~known, 1).amin(-1)) / mean.clamp_min(1e-6)
        return (lost * weight).sum(-1) / weight.sum(-1).clamp_min(1e-6)


def lesson(cutouts: parts.Cutouts, pose: parts.Skeleton, truth: Tensor, matte: Tensor) -> Tensor:
    """What `Choice.regret` looks at: clues, cost, error (0: unknown) and pixels of each part of each reference.

    Args:
        cutouts: K references, on the CPU or a device.
        pose: the truth's (N = 1), in the references' pixels.
        truth: (3, H, W) in 0..1, as large as the references.
        matte: (H, W) in 0..1.

    Returns:
        (1, K, P · (CLUES + 3)) float32 on the CPU.
    """
    here = cutouts.to("cpu")
    own = torch.from_numpy(parts.part_mattes(pose, matte.cpu().numpy())[0])
    errors, pixels = parts.errors(here, pose, truth.cpu(), own)
    price = np.nan_to_num(parts.cost(here, pose)) + here.blame
    clues = parts.clues(here, pose, parts.affines(here.skeleton, pose)[0])
    known = np.isfinite(errors)
    said = np.stack([price, np.where(known, np.maximum(errors, 1e-4), 0), pixels[:, None] * np.ones_like(price)], -1)
    table = np.concatenate([clues, said], -1).astype(np.float32)
    return torch.from_numpy(table).transpose(0, 1).flatten(1)[None]
