"""Pose maps: what a model is told about a pose (Dance Dance Generation §3.2). Torch; batched; on the poses' device.

Fifteen channels: ten solid limb maps, in the order of `skeleton.PARTS[:10]`, and five landmark maps (face, left hand,
right hand, left foot, right foot). The head is a disc, torso and limbs are rectangles on their bones; sizes come from
the key points. "Gaussian smoothed" is taken in closed form instead of by blurring a drawing: a Gaussian of a rectangle
is the product of two normal distribution functions Φ of the distance to its edges (exact but for shapes thinner than
a few sigma); for the disc the same Φ of the distance to the rim is its limit for small sigma.

Pixels have the origin in the picture's top left corner: the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from .skeleton import BONES, FACE_CONTOURS, FACE_JOINTS, IRISES, PARTS, REFINED_POINTS, J

POSE_CHANNELS: Final = 15
WINDOW: Final = 3
"""Poses stacked for temporal smoothness: K = 3 (DDG §4.2)."""
VISIBLE: Final = 0.2
"""Joints with less visibility count as not found."""

_C = FACE_CONTOURS
FACE_LINES: Final[tuple[tuple[tuple[float, float, float], tuple[tuple[int, ...], ...]], ...]] = (
    ((0, 1, 0), (_C["oval"][8:29],)),
    ((1, 0.5, 0), ((300, 293, 334, 296, 336), (70, 63, 105, 66, 107))),
    ((0, 0, 1), ((168, 6, 197, 195, 5, 4), (98, 97, 2, 326, 327))),
    ((1, 0, 0), (_C["left_eye"], _C["right_eye"])),
    ((1, 0, 1), (_C["lips_outer"],)),
    ((0, 1, 1), (_C["lips_inner"],)),
    ((1, 1, 1), tuple((*rim, rim[0]) for _, *rim in IRISES)),
)
"""A face drawn in lines, by colour (red, green, blue in 0..1): jaw, brows, nose, eyes, outer and inner lips, and of a
mesh of 478 points the irises. Both sides have the same colours, so that a drawing's mirror image is a drawing, too."""

_HANDS, _FEET = (
    [[J[f"{side}_{joint}"] for joint in joints] for side in ("left", "right")]
    for joints in (("wrist", "pinky", "index", "thumb"), ("ankle", "heel", "foot_index"))
)
# The nine rectangles: bones with their half width in metres of an adult's body.
_BARS = tuple(
    (bone, {"torso": 0.11, "upper_arm": 0.05, "lower_arm": 0.04, "upper_leg": 0.08, "lower_leg": 0.055}[
        part.removeprefix("left_").removeprefix("right_")
    ])
    for part, bone in zip(PARTS[1:10], BONES[1:10], strict=True)
)  # fmt: skip
# Bones that tell the body's scale, with their length in metres.
_RULERS = ((BONES[1], 0.5), (((11,), (12,)), 0.36), *((bone, 0.41) for bone in BONES[6:10]))
_HEAD_REACH = 0.08  # metres from the middle of the face's joints to the farthest of them
_HEAD_RADIUS = (0.08, 0.16)  # metres: the least and the most
_EDGE = 0.02  # sigma of the solid maps in metres
_FACE_DOT, _HAND_DOT, _FOOT_DOT = 0.012, 0.015, 0.03  # sigma of the landmark dots in metres
_NORM = 8  # dots are joined by the p-norm with this p: nearly the largest, and still one matrix product


class _Tables(NamedTuple):
    """Constants on a device. `bones` (9 rectangles + rulers, 2 ends, 2 joints): a single joint is named twice."""

    bones: Tensor
    half_width: Tensor
    metres: Tensor
    face: Tensor
    hands: Tensor
    feet: Tensor


@cache
def _tables(device: torch.device) -> _Tables:
    bones = [[(joints * 2)[:2] for joints in bone] for bone, _ in (*_BARS, *_RULERS)]
    return _Tables(
        bones=torch.tensor(bones, device=device),
        half_width=torch.tensor([width for _, width in _BARS], device=device),
        metres=torch.tensor([length for _, length in _RULERS], device=device),
        face=torch.tensor(list(dict.fromkeys(i for line in FACE_CONTOURS.values() for i in line)), device=device),
        hands=torch.tensor(_HANDS, device=device),
        feet=torch.tensor(_FEET, device=device),
    )


@torch.no_grad()
def pose_maps(
    body: Tensor, face: Tensor, hands: Tensor, size: tuple[int, int], *, picture: tuple[float, float]
) -> Tensor:
    """Draw poses as maps.

    Args:
        body: (B, 33, 4) x, y, z in pixels of the picture, visibility; as in `PoseTrack`. NaN: not found.
        face: (B, 468 or more, 3) x, y, z in pixels of the picture.
        hands: (B, 2, 21, 3) left, right; x, y, z in pixels of the picture.
        size: (height, width) of the maps.
        picture: (height, width) of the picture that the coordinates belong to.

    Returns:
        (B, 15, height, width) float32 in 0..1. The map of a part of which a joint was not found (NaN, or visibility
        below `VISIBLE`) is zero; the head needs two joints. Landmarks that were not found are left out; a hand none of
        whose 21 joints was found is drawn from the body's four hand joints.
    """
    with torch.autocast(body.device.type, enabled=False):
        tables = _tables(body.device)
        zoom = body.new_tensor([size[1] / picture[1], size[0] / picture[0], size[1] / picture[1]]).float()
        xyz, found = _clean(body[..., :3] * zoom, body[..., 3] >= VISIBLE)
        ends = xyz[:, tables.bones].mean(3)
        known = found[:, tables.bones].flatten(2).all(2)
        middle, reach, head = _head(xyz, found)
        scale = _scale(ends[:, 9:], known[:, 9:], tables.metres)
        scale = torch.where(scale.isfinite(), scale, torch.where(head, reach / _HEAD_REACH, size[0] / 2)).clamp(min=1)

        y = torch.arange(size[0], device=body.device, dtype=torch.float32) + 0.5
        x = torch.arange(size[1], device=body.device, dtype=torch.float32) + 0.5
        maps = body.new_empty((len(body), POSE_CHANNELS, *size), dtype=torch.float32)
        radius = (1.5 * reach).clamp(_HEAD_RADIUS[0] * scale, _HEAD_RADIUS[1] * scale)
        _disc(maps[:, 0], middle, radius, _EDGE * scale, head, y, x)
        shoulders = (xyz[:, 11, :2] - xyz[:, 12, :2]).norm(dim=-1)
        half_width = scale[:, None] * tables.half_width
        _bars(maps[:, 1:10], ends[:, :9, :, :2], half_width, shoulders / 2, _EDGE * scale, known[:, :9], y, x)

        mesh, met = _clean(face[:, None, tables.face] * zoom)
        _dots(maps[:, 10:11], mesh, met, _FACE_DOT * scale, y, x)
        points, met = _clean(hands * zoom)
        alone = ~met.any(-1, keepdim=True)
        points = torch.cat([points, xyz[:, tables.hands]], 2)
        met = torch.cat([met, found[:, tables.hands] & alone], 2)
        _dots(maps[:, 11:13], points, met, _HAND_DOT * scale, y, x)
        _dots(maps[:, 13:15], xyz[:, tables.feet], found[:, tables.feet], _FOOT_DOT * scale, y, x)
        return maps


@torch.no_grad()
def face_lines(face: Tensor, size: tuple[int, int], *, picture: tuple[float, float], width: float = 2.0) -> Tensor:
    """Draw face meshes as coloured lines (Few-Shot Adversarial Talking Heads §3.1: landmarks "rasterized into
    three-channel images using a predefined set of colors to connect certain landmarks with line segments").

    Args:
        face: (B, 468 or 478, 2 or more) x, y in pixels of the picture; NaN: not found.
        size: (height, width) of the drawing.
        picture: (height, width) of the picture that the coordinates belong to.
        width: of the lines, in pixels of the drawing: about that of their half strength.

    Returns:
        (B, 3, height, width) float32 in 0..1; black where no face was found. Lines of different colours that cross show
        the larger of each channel.
    """
    with torch.autocast(face.device.type, enabled=False):
        ends, colours = _lines(face.device, face.shape[1] == REFINED_POINTS)
        zoom = face.new_tensor([size[1] / picture[1], size[0] / picture[0]]).float()
        xy = face[..., :2].float() * zoom
        found = xy.isfinite().all(-1)
        xy = xy.nan_to_num(0.0, 0.0, 0.0)
        # Lines are rows of dots; groups that have fewer segments repeat their last one.
        along = torch.linspace(0, 1, _DOTS, device=face.device)[:, None]
        a, b = (xy[:, ends[..., i], None] for i in (0, 1))
        points = torch.lerp(a, b, along).flatten(2, 3)
        known = (found[:, ends[..., 0]] & found[:, ends[..., 1]]).repeat_interleave(_DOTS, 2)
        y = torch.arange(size[0], device=face.device, dtype=torch.float32) + 0.5
        x = torch.arange(size[1], device=face.device, dtype=torch.float32) + 0.5
        masks = xy.new_empty((len(face), len(colours), *size))
        # A Gaussian is at half its height 1.18 sigma from its middle.
        _dots(masks, points, known, xy.new_full((len(face),), width / 2.35), y, x)
        return (masks[:, :, None] * colours[:, :, None, None]).amax(1)


_DOTS = 16  # per segment: no gaps as long as a segment is shorter than some 16 pixels


@cache
def _lines(device: torch.device, irises: bool) -> tuple[Tensor, Tensor]:
    """The segments of each colour, (G, N, 2 ends), and the colours, (G, 3)."""
    drawn = FACE_LINES if irises else FACE_LINES[:-1]
    groups = [[pair for line in lines for pair in pairwise(line)] for _, lines in drawn]
    most = max(map(len, groups))
    ends = [group + group[-1:] * (most - len(group)) for group in groups]
    return torch.tensor(ends, device=device), torch.tensor([c for c, _ in drawn], device=device)


def stack_poses(window: Sequence[Tensor], count: int = WINDOW) -> Tensor:
    """Stack the maps of the last poses along the channels (DDG §3.2, "Temporal smoothing").

    Args:
        window: maps (B, C, H, W) of at least one pose, oldest first, the current one last. At the start of a clip there
            are fewer than `count`: the first is repeated; of more, the last ones count.
        count: how many poses are stacked.

    Returns:
        (B, count * C, H, W).
    """
    last = list(window)[-count:]
    return torch.cat([last[0]] * (count - len(last)) + last, dim=1)


def _clean(xyz: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Coordinates (..., 3) with zeros where nothing was found, and (...) bool where something was."""
    found = xyz[..., :2].isfinite().all(-1)
    if known is not None:
        found &= known
    return xyz.float().nan_to_num(0.0, 0.0, 0.0) * found[..., None], found


def _scale(ends: Tensor, known: Tensor, metres: Tensor) -> Tensor:
    """(B,) pixels per metre: the median over the rulers, measured in three dimensions; NaN when none was found."""
    lengths = (ends[:, :, 0] - ends[:, :, 1]).norm(dim=-1) / metres
    return lengths.masked_fill(~known, torch.nan).nanmedian(1).values


def _head(xyz: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Middle (B, 2) of the face's joints, distance (B,) of the farthest, and (B,) bool: the head was found."""
    points, known = xyz[:, : len(FACE_JOINTS), :2], found[:, : len(FACE_JOINTS)].float()
    count = known.sum(1)
    middle = points.sum(1) / count.clamp(min=1)[:, None]
    reach = ((points - middle[:, None]).norm(dim=-1) * known).amax(1)
    return middle, reach, count >= 2


def _disc(out: Tensor, middle: Tensor, radius: Tensor, sigma: Tensor, known: Tensor, y: Tensor, x: Tensor) -> None:
    """Draw smoothed solid circles (B, H, W)."""
    soft = (1 / (sigma * 2**0.5))[:, None, None]
    torch.add(((x - middle[:, :1]) ** 2)[:, None, :], ((y - middle[:, 1:]) ** 2)[:, :, None], out=out)
    out.sqrt_().sub_(radius[:, None, None]).mul_(-soft).erf_().add_(1).mul_((known * 0.5)[:, None, None])


def _bars(
    out: Tensor, ends: Tensor, half_width: Tensor, shoulders: Tensor, sigma: Tensor, known: Tensor, y: Tensor, x: Tensor
) -> None:
    """Draw smoothed solid rectangles (B, 9, H, W): the torso, at least as wide as the shoulders, and the limbs."""
    start, end = ends.unbind(2)
    length = (end - start).norm(dim=-1)
    # A limb that points at the camera has no length: it is still drawn half as long as wide, in any direction.
    half_length = (length + half_width) / 2
    half_width = torch.cat([torch.maximum(half_width[:, :1], shoulders[:, None]), half_width[:, 1:]], 1)
    along = torch.where(length[..., None] > 1e-3, (end - start) / length[..., None], torch.ones_like(start) * 0.5**0.5)
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    middle, soft = (start + end) / 2, (1 / (sigma * 2**0.5))[:, None]
    _slab(out, along, middle, half_length, soft, y, x)
    out *= _slab(torch.empty_like(out), across, middle, half_width, soft, y, x)
    out *= (known * 0.25)[..., None, None]


def _slab(out: Tensor, axis: Tensor, middle: Tensor, half: Tensor, soft: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """2 Φ of the distance inside the strip that reaches `half` to both sides of `middle` along `axis`: (B, N, H, W)."""
    n = axis * soft[..., None]
    offset = (n * middle).sum(-1, keepdim=True)
    torch.add((n[..., :1] * x)[:, :, None, :], (n[..., 1:] * y - offset)[..., None], out=out)
    return out.abs_().neg_().add_((half * soft)[..., None, None]).erf_().add_(1)


def _dots(out: Tensor, points: Tensor, found: Tensor, sigma: Tensor, y: Tensor, x: Tensor) -> None:
    """Draw Gaussian dots (B, G, H, W) of G groups of points (B, G, N, 2 or more), at least 0.6 pixels wide.

    The dots are joined by their p-norm: a p-th power of a Gaussian is a Gaussian, which is a column times a row, so
    that the sum over the points is a matrix product. Dots end at 3 sigma: products stay clear of slow tiny numbers.
    """
    rate = (-0.5 * _NORM / sigma.clamp(min=0.6) ** 2)[:, None, None, None]
    columns, rows = (
        torch.threshold_(((points[..., i : i + 1] - axis) ** 2 * rate).clamp_(min=-60).exp_(), 1e-16, 0.0)
        for i, axis in enumerate((x, y))
    )
    joined = ((rows * found[..., None]).transpose(-1, -2) @ columns).clamp_(1e-32, 1)  # a root of 0 is slow, too
    out.copy_(torch.threshold_(joined.sqrt_().sqrt_().sqrt_(), 1.01e-4, 0.0))
