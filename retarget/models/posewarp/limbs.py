"""The ten limbs: where those of a reference are likely to be (§3.1), and moved to where a pose has them (§3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Pair
from .joints import LIMBS, scale_or

ENDS = (
    tuple((limb[: len(limb) // 2] * 2)[:2] for limb in LIMBS),
    tuple((limb[len(limb) // 2 :] * 2)[:2] for limb in LIMBS),
)
"""Both ends of each limb: the torso's two joints, any other's one, twice."""
ACROSS, ACROSS_TORSO, ALONG = 0.085, 0.1, 0.017
"""Sigma of a limb's prior across it, and the least along it, in metres: 11, 13 and √5 of the paper's pixels."""
LARGEST = 4.0
"""The most that a limb grows or shrinks."""


def limb_priors(joints: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the limbs of a reference are likely to be (§3.1): the logarithms of Gaussians around them, 0 in the middle.

    Args:
        joints: (B, 14, 3) in pixels of the picture; NaN: not found.
        size: (h, w) of the picture.

    Returns:
        (B, 10, h, w) float32; -1e4 for a limb that was not found.
    """
    metre = scale_or(joints, size[0])[:, None]
    ends = torch.stack([joints[:, end, :2].float().mean(2) for end in ENDS], 2)
    known = ends.isfinite().flatten(2).all(2)
    start, end = ends.nan_to_num(0.0).unbind(2)
    length = (end - start).norm(dim=-1)
    along = (end - start) / length.clamp_min(1e-6)[..., None]
    along = torch.where(length[..., None] > 1e-3, along, along.new_tensor([0.0, 1.0]))
    widths = metre * metre.new_tensor([ACROSS] * 9 + [ACROSS_TORSO])
    stretch = torch.maximum(length.square() / 1.5, (metre * ALONG).square())
    y = torch.arange(size[0], device=joints.device)[:, None] + 0.5 - ((start + end) / 2)[..., 1, None, None]
    x = torch.arange(size[1], device=joints.device)[None] + 0.5 - ((start + end) / 2)[..., 0, None, None]
    u, v = along[..., 0, None, None], along[..., 1, None, None]
    log = -0.5 * ((u * x + v * y).square() / stretch[..., None, None] + (u * y - v * x).square()
                  / widths.square()[..., None, None])  # fmt: skip
    return torch.where(known[..., None, None], log.clamp_min(-1e4), -1e4)


def similarities(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The transforms that carry the limbs of one pose onto another's (§3.2): of turning, scaling and shifting, the one
    that takes a limb's joints nearest to where they belong, by least squares.

    Args:
        target, source: (B, 14, 3) in pixels; NaN: not found.

    Returns:
        (B, 10, 2, 3): pixels of the target → pixels of the source; and (B, 10) bool: all joints were found.
    """
    # (B, 10, 4, 2)
    there, here = (torch.cat([joints[:, end, :2].float() for end in ENDS], 2) for joints in (target, source))
    known = there.isfinite().flatten(2).all(2) & here.isfinite().flatten(2).all(2)
    there, here = there.nan_to_num(0.0), here.nan_to_num(0.0)
    middle, origin = there.mean(2), here.mean(2)
    p, q = there - middle[:, :, None], here - origin[:, :, None]
    spread = p.square().sum((2, 3)).clamp_min(1e-6)
    cos = (p * q).sum((2, 3)) / spread
    sin = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(2) / spread
    size = torch.hypot(cos, sin)
    cos = torch.where(size > 0, cos, torch.ones_like(cos))
    wanted = size.clamp(1 / LARGEST, LARGEST) / torch.where(size > 0, size, torch.ones_like(size))
    cos, sin = cos * wanted, sin * wanted
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    offset = origin - (linear @ middle[..., None])[..., 0]
    return torch.cat([linear, offset[..., None]], -1), known


def moved_limbs(pair: Pair, masks: Tensor) -> Tensor:
    """The reference's masked limbs where the driving pose has them (§3.2).

    Args:
        masks: (B, 10, h, w), of the limbs.

    Returns:
        (B, 10, 4, h, w): red, green, blue in -1..1 times the mask, and the mask; bilinear, nothing from outside.
    """
    count, limbs, h, w = masks.shape
    with torch.autocast(masks.device.type, enabled=False):
        masks = masks.float()
        rgb = (2 * pair.source[:, None, :3].float() - 1) * masks[:, :, None]
        masked = torch.cat([rgb, masks[:, :, None]], 2).flatten(0, 1)
        theta, known = similarities(pair.driving, pair.known)
        # From pixels to the -1..1 of both pictures.
        to_pixels = theta.new_tensor([[w / 2, 0, w / 2], [0, h / 2, h / 2], [0, 0, 1]])
        linear = theta @ to_pixels
        linear = linear * theta.new_tensor([[2 / w], [2 / h]]) - theta.new_tensor([[0, 0, 1], [0, 0, 1]])
        grid = F.affine_grid(linear.flatten(0, 1), [count * limbs, 4, h, w], align_corners=False)
        moved = F.grid_sample(masked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return moved.unflatten(0, (count, limbs)) * known[..., None, None, None]
