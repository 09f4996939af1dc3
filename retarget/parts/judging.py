"""Judging the references: a part that shows the others badly is taken from less gladly. Learned from each person."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from ..cores import side_by_side
from ..skeleton import PART, PARTS
from .choosing import cost
from .cutting import Cutouts
from .geometry import Float, Skeleton, affines, inverse
from .layout import Piece, bent, sample

FEWEST = 3
"""References; of two, nobody knows which is the worse."""
RIDGE = 6.0
"""How many pairs it takes to believe half of what they say of a reference."""
PRICE = 20.0
"""What a mean error of 1 (black for white) costs, in units of feature distance."""
HIGHEST = 1.5
"""The most that a reference is blamed or praised for."""
SOLID = 0.6
"""Share of a pixel that has to be a part's own for it to be compared there."""
FREE = 0.3
"""The most of a pixel that may be other parts' for it to be seen whether a part reaches out where it should not."""
SMALLEST = 20
"""Pixels; what is smaller is not compared."""
BLAMED = tuple(i for i in range(len(PARTS)) if i != PART["head"])


def blame(cutouts: Cutouts, frames: torch.Tensor, own: torch.Tensor) -> Float:
    """`Cutouts.blame`, (P, K): how badly each reference's parts show the other references'; the head's is 0.

    Each part of each reference is moved onto each other reference and compared with what is to be seen there. Of the
    mean absolute errors, what the cost of the choice (`choosing.cost`) foresees is taken off; the rest is split, part
    by part, between who is drawn and who is drawn from (ridge regression): the latter's is its blame. The head
    is left alone: which way it looks matters more.

    Args:
        cutouts: of K references, without mirrored ones, at any resolution.
        frames: (K, 3, H, W) in 0..1, the references that they were cut from.
        own: (K, P, H, W) soft part mattes from `part_mattes`.
    """
    count = len(cutouts.skeleton)
    if count < FEWEST:
        return np.zeros((len(PARTS), count))
    errors, different = _errors(cutouts, frames, own)
    found = np.stack([_of_source(e - d / PRICE) for e, d in zip(errors, different, strict=True)])
    found[PART["head"]] = 0
    return np.asarray(np.clip(PRICE * found, -HIGHEST, HIGHEST), np.float64)


def _errors(cutouts: Cutouts, frames: torch.Tensor, own: torch.Tensor) -> tuple[Float, Float]:
    """(P, from, onto) mean absolute errors in 0..1, and costs; NaN where there is nothing to compare."""
    count = len(frames)
    found = np.full((len(PARTS), count, count), np.nan)
    different = np.full_like(found, np.nan)

    def compare(onto: int) -> None:
        pose = cutouts.skeleton.take([onto])
        different[:, :, onto] = cost(cutouts, pose)
        found[:, :, onto] = errors(cutouts, pose, frames[onto], own[onto], BLAMED)[0]
        found[:, onto, onto] = np.nan

    side_by_side(compare, range(count))
    return found, different


def errors(
    cutouts: Cutouts, pose: Skeleton, truth: torch.Tensor, own: torch.Tensor, which: Iterable[int] = range(len(PARTS))
) -> tuple[Float, Float]:
    """How badly each part of each reference, moved onto a pose, shows what is to be seen there.

    Args:
        cutouts: the references' parts, at any resolution.
        pose: where to (N = 1), in the references' pixels.
        truth: (3, H, W) in 0..1, what is to be seen.
        own: (P, H, W) soft part mattes of it, from `part_mattes`.
        which: the parts that are wanted.

    Returns:
        (P, K) mean absolute errors, NaN where there is nothing to compare: of the truth's own pixels of the part, in
        0..1, and what is drawn wrongly beside them, shared out among these; and how many these are, (P,).
    """
    shrink = cutouts.shrink
    size = (truth.shape[1] // shrink, truth.shape[2] // shrink)
    picture = F.interpolate(truth[None], size, mode="area")[0]
    small = F.interpolate(own[None], size, mode="area")[0]
    moves = affines(cutouts.skeleton, pose)[0]
    backs = inverse(moves)
    found = np.full((len(PARTS), len(backs)), np.nan)
    seen = np.zeros(len(PARTS))
    for part in which:
        solid = small[part] > SOLID
        ys, xs = np.nonzero(solid.numpy())
        if len(ys) < SMALLEST:
            continue
        seen[part] = len(ys)
        # What another part may hide is not to be seen for sure.
        free = small[[p for p in range(len(PARTS)) if p != part]].amax(0) < FREE
        here = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        for k, back in enumerate(backs):
            if not np.isfinite(back[part]).all():
                continue
            x0, y0, x1, y1 = _around(here, cutouts, part, k, moves[k, part], size)
            there, inside = picture[:, y0:y1, x0:x1], solid[y0:y1, x0:x1]
            y, x = torch.arange(y0, y1)[:, None] + 0.5, torch.arange(x0, x1)[None] + 0.5
            box = (shrink * x0, shrink * y0, shrink * x1, shrink * y1)
            bend = bent(part, pose, cutouts.skeleton, k, back, box)
            shown = sample(cutouts, Piece(part, k, 1.0, back[part], box, bend), x, y, 1 / shrink)
            # What is not drawn is as wrong as grey; beside the part, only what is drawn can be wrong.
            error = (shown[:3] + 0.5 * (1 - shown[3:]) - there).abs().mean(0)
            beside = (shown[:3] - shown[3:] * there).abs().mean(0) * (free[y0:y1, x0:x1] & ~inside)
            found[part, k] = float(error[inside].sum() + beside.sum()) / len(ys)
    return found, seen


def _around(
    here: tuple[int, int, int, int], cutouts: Cutouts, part: int, k: int, move: Float, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The box `here`, and around what a part of reference k covers when it is moved; pixels of `cutouts`."""
    h, w = cutouts.textures[part].shape[2:]
    corners = np.array([[0, 0], [w, 0], [0, h], [w, h]], float) + cutouts.origins[part, k] / cutouts.shrink
    corners = corners @ move[:, :2].T + move[:, 2] / cutouts.shrink
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    x0, y0 = np.clip(low, 0, here[:2]).tolist()
    x1, y1 = np.clip(high, here[2:], size[::-1]).tolist()
    return x0, y0, x1, y1


def _of_source(errors: Float) -> Float:
    """(K,): by how much each reference's errors (from, onto) are larger than those of the others; 0 when unknown."""
    count = len(errors)
    known = np.isfinite(errors)
    if known.sum() < count:
        return np.zeros(count)
    source, onto = np.nonzero(known)
    rows = np.arange(len(source))
    table = np.zeros((len(rows), 2 * count + 1))
    table[rows, source] = table[rows, count + onto] = table[:, -1] = 1
    ridge = np.diag([RIDGE] * count + [1e-3] * count + [0])
    found = np.linalg.solve(table.T @ table + ridge, table.T @ errors[known])[:count]
    return np.asarray(found - found.mean(), np.float64)
