"""Cloth laid over cloth: what bones leave between two pictures of one torso."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ..types import Array
from .geometry import Float

SIDE = 160
"""Pixels of the height at which pictures are compared."""
FEWEST = 200
"""Pixels, at that height, that both have to show."""
REACH = 0.08
"""How far cloth is shifted at most, as a share of what both show of the torso's height."""
GAIN, SURE = 0.92, 0.8
"""The largest share of the difference that may be left, unless they correlate as well as that."""
STEPS, CLOSE = 40, 1e-4
"""Of the search: its most steps, and the gain in correlation that is none any more."""


def registered(picture: torch.Tensor, theirs: torch.Tensor, target: torch.Tensor, mine: torch.Tensor) -> Float | None:
    """By which affine transform the cloth in one picture meets that in another, after the bones have met.

    Cloth does not follow the bones to the pixel, and a print that is continued from another picture would stand there
    twice. Found by enhanced correlation (Evangelidis and Psarakis 2008), which does not mind other light.

    Args:
        picture, target: (1, 3, h, w) in 0..1, to be moved and to be met.
        theirs, mine: (1, 1, h, w) in 0..1, where they show the torso.

    Returns:
        (2, 3), from places in the target to those in the picture, in pixels from the left upper corner; None where it
        is not clear.
    """
    fine = min(1.0, SIDE / picture.shape[2])
    there, here, both = (
        cv2.resize(x, None, fx=fine, fy=fine, interpolation=cv2.INTER_AREA)
        for x in (_grey(picture), _grey(target), torch.minimum(theirs, mine)[0, 0].numpy())
    )
    common = cv2.erode((both > 0.6).astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=(0,))
    if common.sum() < FEWEST:
        return None
    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, CLOSE)
    try:
        start = np.eye(2, 3, dtype=np.float32)
        alike, found = cv2.findTransformECC(here, there, start, cv2.MOTION_AFFINE, until, common, 5)
    except cv2.error:  # nothing to hold on to, or nothing found
        return None
    found = np.asarray(found, np.float64)
    ys, xs = np.nonzero(common)
    far = np.linalg.norm((found - np.eye(2, 3)) @ np.stack([xs, ys, np.ones(len(xs))]), axis=0)
    if not far.max() <= REACH * np.ptp(ys):
        return None

    def apart(way: npt.NDArray[Any]) -> float:
        moved = cv2.warpAffine(there, way, here.shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return float(np.abs(moved - here)[common > 0].mean())

    if alike < SURE and apart(found) > GAIN * apart(np.eye(2, 3)):
        return None
    # OpenCV counts from the middle of the first pixel.
    linear = found[:, :2]
    return np.concatenate([linear, (found[:, 2] + 0.5 - linear @ np.full(2, 0.5))[:, None] / fine], 1)


def within(back: Float, onto: Float, corner: tuple[int, int]) -> Float:
    """`onto`, as `registered` gives it for a box at `corner` of a picture, and after it `back`, of the picture."""
    linear = back[:, :2] @ onto[:, :2]
    return np.concatenate([linear, (back[:, :2] @ (onto[:, 2] + corner) + back[:, 2] - linear @ corner)[:, None]], 1)


def _grey(picture: torch.Tensor) -> Array:
    return np.asarray(cv2.cvtColor(picture[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY), np.float32)
