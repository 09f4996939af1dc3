"""How thick this person's legs are: what hides one tells nothing of it, but the other pictures do."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ..skeleton import PART
from ..types import Array
from .geometry import Float, Skeleton, along

LIMBS = (
    (PART["left_upper_leg"], PART["right_upper_leg"], 0.40),
    (PART["left_lower_leg"], PART["right_lower_leg"], 0.37),
)
"""Left and right limb, and the length of an adult's in metres."""
PLACES = 16
"""Along a limb, at which its thickness is measured."""
MIDDLES = (np.arange(PLACES) + 0.5) / PLACES
STEP, WIDEST = 0.004, 0.25
"""Metres: how finely, and up to where."""
LEAST = 0.6
"""Share of its length that has to be seen of a limb: what points at the camera is as wide as it is long."""
FEWEST = 3
"""Borders at a place, without which nothing is known of it."""
ASKEW = 0.5
"""By how much of half its thickness a limb may lie beside its bone."""
SOFT = 0.01
"""Metres over which a limb ends."""


def slender(
    own: torch.Tensor, core: torch.Tensor, mattes: torch.Tensor, skeleton: Skeleton
) -> tuple[torch.Tensor, torch.Tensor]:
    """Legs that are completed no thicker than they are: `own` and `core`, (K, P, H, W) each.

    Beside another leg nothing is to be seen of a leg's own border, nor beyond a bent knee. It is as far from the bone
    as where the person ends beside either leg in any picture.

    Args:
        own, core: (K, P, H, W) from `part_mattes`.
        mattes: (K, 1, H, W) in 0..1.
        skeleton: of the K references.
    """
    own, core = own.clone(), core.clone()
    _, _, h, w = own.shape
    y, x = np.mgrid[:h, :w].astype(np.float32) + 0.5
    ends = {
        limb: [_borders(mattes[k, 0].numpy(), own[k, limb].numpy(), b[limb, :, :2], skeleton.scale[k], long)
               for k, b in enumerate(skeleton.bones)]
        for *pair, long in LIMBS for limb in pair
    }  # fmt: skip
    half = {limb: _typical([*ends[pair[0]], *ends[pair[1]]]) for *pair, _ in LIMBS for limb in pair}
    for k, scale in enumerate(skeleton.scale):
        inside = {}
        for limb, borders in ends.items():
            (a_x, a_y), (b_x, b_y) = bone = skeleton.bones[k, limb, :, :2]
            s, far = along(x, y, *bone)
            right = (y - a_y) * (b_x - a_x) > (x - a_x) * (b_y - a_y)
            limits = [np.interp(s, MIDDLES, limit) for limit in _limits(borders[k], half[limb])]
            room = (np.where(right, *limits) - far / scale) / SOFT
            inside[limb] = torch.from_numpy(np.asarray(np.clip(room + 1, 0, 1), np.float32))
        outside = {limb: own[k, limb] * (1 - there) for limb, there in inside.items()}
        for limb, there in inside.items():
            own[k, limb] -= outside[limb]
            core[k, limb] *= there
        for left in outside.values():
            for other, there in inside.items():
                if np.isfinite(half[other]).all():
                    own[k, other] = torch.maximum(own[k, other], left * there)
    return own, core


def _typical(borders: list[Float]) -> Float:
    """Half the thickness of a limb at each of `PLACES`, (PLACES,) metres; infinite where nothing is known.

    Args:
        borders: (2, PLACES) of each limb and picture. Single ones count where both are seen too rarely: a limb need not
            lie around its bone.
    """
    both = np.stack([b.mean(0) for b in borders])
    half = np.full(PLACES, np.inf)
    for found in (np.concatenate(borders), both):
        known = np.isfinite(found).sum(0) >= FEWEST
        half[known] = np.nanmedian(found[:, known], 0)
    return half


def _limits(borders: Float, half: Float) -> Float:
    """How far a limb reaches on both sides of its bone, (2, PLACES) metres: where one border is seen, the other is as
    far from it as the limb is thick.

    Args:
        borders: (2, PLACES) of this limb, NaN where it is not seen.
        half: (PLACES,) from `_typical`.
    """
    other = borders[::-1]
    hidden = np.where(np.isfinite(other), np.clip(2 * half - other, (1 - ASKEW) * half, (1 + ASKEW) * half), half)
    return np.where(np.isfinite(borders), np.maximum(borders, half), hidden)


def _borders(matte: Array, own: Array, bone: Float, scale: float, length: float) -> Float:
    """Metres from a bone to where the person ends on either side of it, (2, PLACES); NaN where another part does, and
    of a bone of which too little is seen.

    Args:
        matte, own: (H, W) of the person, and of the limb.
        bone: (2, 2) its ends.
        scale: pixels per metre.
        length: of an adult's, in metres.
    """
    axis = bone[1] - bone[0]
    seen = float(np.linalg.norm(axis))
    if not seen > LEAST * length * scale:
        return np.full((2, PLACES), np.nan)
    across = np.array([-axis[1], axis[0]]) / seen
    out = np.arange(0, WIDEST, STEP) * scale
    sides = []
    for side in (across, -across):
        at = bone[0] + MIDDLES[:, None, None] * axis + out[:, None] * side
        x, y = np.moveaxis(at, -1, 0).astype(np.float32) - 0.5
        there, mine = (cv2.remap(p, x, y, cv2.INTER_LINEAR) for p in (matte, own))
        end = np.argmax(there < 0.5, 1)
        before: npt.NDArray[np.intp] = np.maximum(end - 2, 0)
        sides.append(np.where((end > 2) & (mine[np.arange(PLACES), before] > 0.5), end * STEP, np.nan))
    return np.stack(sides)
