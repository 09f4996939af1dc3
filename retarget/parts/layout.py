"""Laying the parts out on a driving pose, over each other by depth, and drawing them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ..skeleton import PART, PARTS
from .choosing import TRUNK, Judge, choose, clues, cost, held
from .cutting import Cutouts
from .geometry import FRONT, HIPS, RADII, SKIRT, Float, Skeleton, affines, along, inverse


@dataclass(frozen=True)
class Piece:
    """One part of one reference, where it goes. Coordinates are pixels of the avatar's picture.

    part     index of the texture.
    ref      index of the reference.
    weight   its share in the part's cross-fade, 0..1.
    back     (2, 3) affine transform output → reference.
    box      (x0, y0, x1, y1) integers: what it can cover in the output.
    bend     (3, n, n) grid over the box: what is added to `back`, in the reference's pixels, and a factor of alpha; or
             None.
    """

    part: int
    ref: int
    weight: float
    back: Float
    box: tuple[int, int, int, int]
    bend: Float | None = None


Layout = tuple[tuple[Piece, ...], ...]
"""The layers of one output picture, back to front; the pieces of a layer are cross-faded."""


@dataclass(frozen=True)
class LayoutState:
    """What one frame's layout hands to the next: the mix of references and the depths of the parts."""

    mix: Float
    depth: Float


STICKY = 0.5
"""What it costs a part to change its reference from one frame to the next."""
FADE = 0.5
"""Share of a change of reference that happens in each frame."""
FAITH = np.array([0.5 if name == "torso" else 1.0 for name in PARTS])[:, None]
"""How much counts what a judge says of each part. Of torsos the learned one is surer than real ones bear out: of one
that leans forward like the driver's, but is torn or badly lit, it would never let go."""
SPREAD = {PART["head"]: (0.35, 0.15, 0.07), PART["left_hand"]: (0.2,), PART["right_hand"]: (0.2,)}
"""How far, in radii of the part, what its affine transform leaves at each point is spread; the next one spreads what
the one before has left."""
COARSE, FINE = 20, 48
"""Side of `Piece.bend`, and of the head's."""


def lay_out(
    cutouts: Cutouts, pose: Skeleton, state: LayoutState | None = None, judge: Judge | None = None
) -> tuple[Layout, LayoutState]:
    """Choose references, transforms and order for one driving pose (N = 1). What `judge` makes of the `clues` is added
    to what the parts cost."""
    refs = cutouts.skeleton
    moves = affines(refs, pose)[0]
    # A part that was not found has no preference.
    price = np.nan_to_num(cost(cutouts, pose))
    kept = np.zeros_like(price) if state is None else STICKY * state.mix
    said = 0.0 if judge is None else judge(clues(cutouts, pose, moves)) * FAITH
    # Head and torso first: what a limb is rather taken from, or was, is no reason for them to change.
    trunk = price.copy()
    trunk[list(TRUNK)] += (said - kept + cutouts.blame)[list(TRUNK)]
    price = price + said - kept + cutouts.blame
    chosen = choose(held(price, choose(trunk), TRUNK))
    mix = np.eye(len(refs))[chosen]
    if state is not None:
        mix = state.mix + FADE * (mix - state.mix)
        mix = np.where(mix < 0.02, 0, mix)
        mix /= mix.sum(1, keepdims=True)
    backs = inverse(moves)

    depth = pose.bones[0, :, :, 2].mean(1) / pose.scale[0] - np.array([FRONT[p] for p in PARTS])
    if state is not None:
        before = np.where(np.isfinite(state.depth), state.depth, depth)
        depth = before + 0.5 * (np.where(np.isfinite(depth), depth, before) - before)
    layers = []
    for part in (SKIRT, *np.argsort(-depth, kind="stable").tolist()):
        root = 1 if part == SKIRT else part
        pieces = []
        if part == SKIRT and not np.isfinite(pose.bones[0, HIPS, :, :2]).all():
            continue
        for k in np.nonzero(mix[root])[0].tolist():
            h, w = (n * cutouts.shrink for n in cutouts.textures[part].shape[2:])
            corners = np.array([[0, 0], [w, 0], [0, h], [w, h]], float) + cutouts.origins[part, k]
            corners = corners @ moves[k, root, :, :2].T + moves[k, root, :, 2]
            if part == SKIRT:
                margin = 0.25 * pose.scale[0]
                corners = np.concatenate([corners - margin, corners + margin])
            if not np.isfinite(corners).all():
                continue
            low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
            box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
            bend = bent(part, pose, refs, k, backs[k], box)
            pieces.append(Piece(part, k, float(mix[root, k]), backs[k, root], box, bend))
        layers.append(tuple(pieces))
    return tuple(layers), LayoutState(mix, depth)


def bent(
    part: int, pose: Skeleton, refs: Skeleton, k: int, backs: Float, box: tuple[int, int, int, int]
) -> Float | None:
    """`Piece.bend`: the smooth field over `box` that is added to a piece's affine transform.

    Head and hands: what is left between the points of the mesh or the joints after the affine transform, spread by
    Gaussians, for the head ever finer ones: its lips and lids follow, too. Only as much as does not bend a face out of
    shape that is seen from elsewhere. The skirt: the transforms of torso and upper legs, blended by the distance to
    their bones; far from them it fades.
    """
    n = FINE if part == PART["head"] else COARSE
    gx = box[0] + (np.arange(n) + 0.5) * (box[2] - box[0]) / n
    gy = box[1] + (np.arange(n) + 0.5) * (box[3] - box[1]) / n
    if part == SKIRT:
        x, y = np.meshgrid(gx, gy)
        weight, value = [], []
        for i in HIPS:
            a, b = pose.bones[0, i, 0, :2], pose.bones[0, i, 1, :2]
            far = along(x, y, a, b)[1] / pose.scale[0]
            weight.append(np.exp(-((far / (0.16 if i == 1 else 0.12)) ** 2)) + 1e-6)
            value.append(np.einsum("ij,jyx->iyx", backs[i, :, :2], np.stack([x, y])) + backs[i, :, 2][:, None, None])
        w = np.stack(weight)
        gate = np.clip((w.max(0) - 0.15) / 0.15, 0, 1)
        w /= w.sum(0)
        return np.concatenate([np.einsum("pyx,pdyx->dyx", w, np.stack(value)) - value[0], gate[None]])
    if part not in SPREAD:
        return None
    there = pose.face[0] if part == PART["head"] else pose.points[0, part]
    here = refs.face[k] if part == PART["head"] else refs.points[k, part]
    ok = np.isfinite(there).all(1) & np.isfinite(here).all(1)
    if ok.sum() < 15:
        return None
    there, here = there[ok], here[ok]
    left = here - (there @ backs[part, :, :2].T + backs[part, :, 2])
    radius, far = RADII[part] * refs.scale[k], np.linalg.norm(left, axis=1, keepdims=True)
    left *= np.minimum(1, 0.25 * radius / np.maximum(far, 1e-6))
    left *= min(1.0, 0.15 * radius / max(float(np.sqrt((left**2).mean() * 2)), 1e-6))
    field = np.zeros((2, n, n))
    # In single precision: most of the time of laying out goes here.
    across, down = ((g[:, None] - there[:, i]).astype(np.float32) for i, g in enumerate((gx, gy)))
    left = left.astype(np.float32)
    x, y = ((there - box[:2]) * n / (np.array(box[2:]) - box[:2]) - 0.5).T.astype(np.float32)
    for share in SPREAD[part]:
        narrow = np.float32(-0.5 / (share * RADII[part] * pose.scale[0]) ** 2)
        ex, ey = np.exp(narrow * across**2), np.exp(narrow * down**2)
        near, *pulled = _product(np.stack([ey, ey * left[:, 0], ey * left[:, 1]]), ex.T)
        spread = np.stack(pulled) / (near + 0.3)  # far from all points, nothing
        field += spread
        left -= np.stack([cv2.remap(s, x, y, cv2.INTER_LINEAR)[:, 0] for s in spread], 1)
    return np.concatenate([field, np.ones((1, n, n))])


def _product(a: Float, b: Float) -> Float:
    """a @ b in their precision, by torch: NumPy's threads would wait for those that draw (`rendering`)."""
    with torch.autocast("cpu", enabled=False):
        return np.asarray((torch.from_numpy(a) @ torch.from_numpy(b)).numpy())


def render(
    cutouts: Cutouts,
    layout: Layout,
    size: tuple[int, int],
    *,
    zoom: float = 1.0,
    flow: torch.Tensor | None = None,
    per_part: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Draw the moved parts over each other.

    Args:
        cutouts: the references' parts.
        layout: for this pose, in pixels of the avatar's picture.
        size: (H, W) of what is drawn.
        zoom: output pixels per pixel of the avatar's picture.
        flow: (2, H, W) output pixels; each output pixel shows what would stand at its place plus the flow.
            Differentiable.
        per_part: also return each part's alpha as it ends up visible, (P, H, W).

    Returns:
        rgb (3, H, W) in 0..1, premultiplied by alpha; alpha (1, H, W); per-part alphas or None.
    """
    h, w = size
    like = cutouts.textures[0]
    picture = like.new_zeros(4, h, w, dtype=torch.float32)  # premultiplied rgb, alpha
    shares = like.new_zeros(len(PARTS) + 1, h, w, dtype=torch.float32) if per_part else None
    margin = 0 if flow is None else int(np.ceil(float(flow.detach().abs().max())))
    for pieces in layout:
        if not pieces:
            continue
        boxes = np.array([p.box for p in pieces], float) * zoom
        x0, y0 = np.maximum(np.floor(boxes[:, :2].min(0)).astype(int) - margin, 0).tolist()
        x1, y1 = np.minimum(np.ceil(boxes[:, 2:].max(0)).astype(int) + margin, (w, h)).tolist()
        if x1 <= x0 or y1 <= y0:
            continue
        y = torch.arange(y0, y1, device=like.device, dtype=torch.float32)[:, None] + 0.5
        x = torch.arange(x0, x1, device=like.device, dtype=torch.float32)[None] + 0.5
        if flow is not None:
            x, y = x + flow[0, y0:y1, x0:x1], y + flow[1, y0:y1, x0:x1]
        layer: torch.Tensor | None = None
        for piece in pieces:
            layer_piece = sample(cutouts, piece, x, y, zoom)
            layer = layer_piece if layer is None else layer + layer_piece
        assert layer is not None
        part = pieces[0].part
        box = (slice(None), slice(y0, y1), slice(x0, x1))
        if layer.requires_grad:
            layer = F.pad(layer, (x0, w - x1, y0, h - y1))
            picture = picture * (1 - layer[3:]) + layer
        else:
            picture[box] = picture[box] * (1 - layer[3:]) + layer
        if shares is not None:
            alpha = (
                layer.detach()[3, y0:y1, x0:x1] if layer.shape[1] == h and layer.shape[2] == w else layer.detach()[3]
            )
            shares[box] *= 1 - alpha
            shares[part, y0:y1, x0:x1] += alpha
    return picture[:3], picture[3:], None if shares is None else shares[: len(PARTS)]


def sample(cutouts: Cutouts, piece: Piece, x: torch.Tensor, y: torch.Tensor, zoom: float) -> torch.Tensor:
    """A piece at output pixels x, y (they broadcast to h, w): (4, h, w), premultiplied by alpha and by its weight."""
    texture = cutouts.textures[piece.part]
    h, w = (n * cutouts.shrink for n in texture.shape[2:])
    origin, back = cutouts.origins[piece.part, piece.ref], piece.back
    grid = _grid(x, y, back[:, :2] / zoom, back[:, 2] - origin, (w, h))
    gate: torch.Tensor | float = 1.0
    if piece.bend is not None:
        bend = torch.from_numpy(piece.bend * np.array([2 / w, 2 / h, 1])[:, None, None]).to(grid)[None]
        px0, py0, px1, py1 = piece.box
        at = _grid(x, y, np.eye(2) / zoom, -np.array([px0, py0]), (px1 - px0, py1 - py0))
        bent = F.grid_sample(bend, at, mode="bilinear", padding_mode="border", align_corners=False)
        grid = grid + bent[:, :2].permute(0, 2, 3, 1)
        gate = bent[0, 2:]
    out = F.grid_sample(
        texture[piece.ref][None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    alpha = out[3:] * (gate * piece.weight)
    return torch.cat([out[:3] * alpha, alpha])


def _grid(x: torch.Tensor, y: torch.Tensor, linear: Float, shift: Float, size: tuple[int, int]) -> torch.Tensor:
    """Where `linear` (2, 2) and `shift` (2) move pixels x, y to, as `F.grid_sample` wants it of a picture of `size`
    (width, height): (1, h, w, 2). All that is constant is worked out before, for the pictures are large."""
    (a, b), (c, d) = (linear * (2 / np.array(size))[:, None]).tolist()
    e, f = (shift * 2 / np.array(size) - 1).tolist()
    return torch.stack([a * x + (b * y + e), c * x + (d * y + f)], -1)[None]


def contact(pose: Skeleton, size: tuple[int, int], zoom: float, like: torch.Tensor) -> torch.Tensor:
    """Where the feet shade the floor, (1, H, W) in 0..1: a soft ellipse under each foot of one pose.

    Args:
        size: (H, W) of the picture.
        zoom: its pixels per pixel of the pose.
        like: gives device and dtype.
    """
    height, width = size
    y = torch.arange(height, device=like.device, dtype=like.dtype)[:, None] + 0.5
    x = torch.arange(width, device=like.device, dtype=like.dtype)[None] + 0.5
    shade = like.new_zeros(1, height, width)
    metre = float(pose.scale[0]) * zoom
    for foot in (PART["left_foot"], PART["right_foot"]):
        points = pose.points[0, foot, :3] * zoom
        if not np.isfinite(points).all():
            continue
        left, right = points[:, 0].min() - 0.06 * metre, points[:, 0].max() + 0.06 * metre
        cx, cy = (left + right) / 2, points[1:, 1].max() + 0.02 * metre
        rx, ry = (right - left) / 2 + 0.05 * metre, 0.055 * metre
        ellipse = torch.exp(-(((x - cx) / rx) ** 2)) * torch.exp(-(((y - cy) / ry) ** 2))
        shade = torch.maximum(shade, ellipse[None])
    return shade
