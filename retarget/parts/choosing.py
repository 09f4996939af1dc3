"""Choosing which reference shows which part: by rule, and by what a net makes of the same clues (`models.choice`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from ..skeleton import PARENT, PART
from .cutting import Cutouts
from .geometry import Float, Skeleton

TRUNK = (PART["head"], PART["torso"])
JOINED = 0.6
"""What it costs two joined parts to come from different references (units of feature distance)."""
AT_THE_NECK = 0.3
"""The same between head and torso: which way a face looks matters more than a seam under the chin."""
CLUES: Final = 25
"""How many numbers `clues` tells of a part of a reference."""
Judge = Callable[[Float], Float]
"""(P, K, CLUES) → (P, K): what is added to each cost."""


def choose(cost: Float) -> npt.NDArray[np.intp]:
    """The reference of each part, jointly: least sum of `cost` (P, K) plus `JOINED` for each joint whose two parts come
    from different references, or `AT_THE_NECK`. Exact, by dynamic programming over the body's tree. Returns (P,)."""
    total, best = cost.copy(), {}
    children = sorted((i for i, parent in enumerate(PARENT) if parent >= 0), key=lambda i: -_depth_in_tree(i))
    for i in children:
        stay, leave = total[i], total[i].min() + (AT_THE_NECK if i == PART["head"] else JOINED)
        best[i] = (stay <= leave, int(total[i].argmin()))
        total[PARENT[i]] = total[PARENT[i]] + np.minimum(stay, leave)
    chosen = np.zeros(len(PARENT), np.intp)
    root = PARENT.index(-1)
    chosen[root] = total[root].argmin()
    for i in reversed(children):
        stays, other = best[i]
        chosen[i] = chosen[PARENT[i]] if stays[chosen[PARENT[i]]] else other
    return chosen


def held(cost: Float, chosen: npt.NDArray[np.intp], which: Iterable[int]) -> Float:
    """Costs (P, K) by which some parts stay with the reference that was chosen for them."""
    out = cost.copy()
    for part in which:
        out[part] = np.where(np.arange(cost.shape[1]) == chosen[part], 0, np.inf)
    return out


def _depth_in_tree(i: int) -> int:
    return 0 if PARENT[i] < 0 else 1 + _depth_in_tree(PARENT[i])


def cost(cutouts: Cutouts, pose: Skeleton) -> Float:
    """What it costs to take each part from each reference, (P, K), for one pose; NaN where a part was not found.

    How different both look (`Skeleton.features`), what the reference does not show, what has to be stretched, and the
    reference's handicap; without `Cutouts.blame`.
    """
    refs = cutouts.skeleton
    difference = pose.features[0][None] - refs.features  # (K, P, 11)
    price = np.linalg.norm(difference, axis=-1).T + cutouts.handicap
    price += 1.5 * (1 - cutouts.shown.T) + 4.0 * np.clip(0.5 - cutouts.shown.T, 0, None)
    stretch = np.log((_bones(pose)[0] + 0.03) / (_bones(refs)[0] + 0.03)).T  # (P, K)
    price += 0.8 * np.clip(stretch, 0, None) + 0.3 * np.clip(-stretch, 0, None)
    return np.asarray(price, np.float64)


def clues(cutouts: Cutouts, pose: Skeleton, moves: Float) -> Float:
    """What there is to judge a reference's part by before it is drawn, (P, K, CLUES) float32 of about -1 to 3.

    In this order: how different each feature of both looks (`Skeleton.features`), and all of them; by how much the bone
    is longer, or shorter (logarithms); what is not shown, and how much less than half; whether it is mirrored; by how
    much the body is larger, or smaller (logarithms); how visible the part is in the reference, and in the pose; the
    angle between the bones (1 - cosine); how far the part is stretched along its two axes (logarithms); blame. What is
    not known is 0.

    Args:
        moves: (K, P, 2, 3) from `affines`.
    """
    refs = cutouts.skeleton
    apart = np.abs(pose.features[0][None] - refs.features).transpose(1, 0, 2)
    like = np.ones(apart.shape[:2])
    (length, along), (refs_length, refs_along) = _bones(pose), _bones(refs)
    stretch = np.log((length[0][:, None] + 0.03) / (refs_length.T + 0.03))
    ratio = np.log(pose.scale[0] / refs.scale)[None] * like
    turned = 1 - np.einsum("pi,kpi->pk", along[0], refs_along)
    linear = moves[..., :2] / np.exp(ratio.T)[..., None, None]
    axes = np.linalg.svd(np.nan_to_num(linear, nan=1.0), compute_uv=False).transpose(1, 0, 2)
    hidden = 1 - cutouts.shown.T
    found = (
        apart, np.linalg.norm(apart, axis=-1), np.clip(stretch, 0, None), np.clip(-stretch, 0, None), hidden,
        np.clip(hidden - 0.5, 0, None), (cutouts.handicap > 0) * like, np.clip(ratio, 0, 2), np.clip(-ratio, 0, 2),
        refs.visible.T, pose.visible[0][:, None] * like, turned, np.log(np.clip(axes, 0.05, 20)), cutouts.blame,
    )  # fmt: skip
    return np.nan_to_num(np.concatenate([f if f.ndim == 3 else f[..., None] for f in found], -1)).astype(np.float32)


def _bones(skeleton: Skeleton) -> tuple[Float, Float]:
    """Lengths in metres as seen, (N, P), and directions in the picture, (N, P, 2)."""
    bone = skeleton.bones[:, :, 1, :2] - skeleton.bones[:, :, 0, :2]
    length = np.linalg.norm(bone, axis=-1)
    return length / skeleton.scale[:, None], bone / np.maximum(length, 1e-6)[..., None]
