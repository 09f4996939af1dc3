"""Cutting the references into parts, and completing what each part hides of another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ..cores import side_by_side
from ..skeleton import MIRROR, MIRROR_PART, PARENT, PART, PARTS
from ..types import Array, PoseTrack
from .clothes import hanging
from .geometry import FAR, FRONT, HIPS, JOINT, RADII, Float, Skeleton, affines, along, inverse, skeletons
from .registration import registered, within
from .thickness import slender

NECK = 0.5
"""How far the torso brings the head's surroundings along, a share of the joint: to the chin. A mouth on the torso would
stay behind where the head is bent or turned away."""
TOUCHED = 0.6
"""What a hand at the head takes from what its reference shows of the head, a share."""
TOUCHING = 1.3, 1.6
"""Distances from the head's bone, in its radii, at which a hand lies on what is cut out as the head, and beside it."""
FINGER = 0.015
"""Metres from a finger's joints to where the finger certainly ends: half its thickness, and the estimator's error."""
CROWDED = 1.5
"""Distance from a bone of head, torso or leg, in radii, up to which a hand is before it."""
FINGERS = tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21))
"""The bones of a hand, by its 21 joints."""
PALM = (0, 1, 5, 9, 13, 17)
"""The joints around it."""
CRUMB = 0.015
"""Share of a part below which a piece by itself is none."""
GAP = 0.2
"""The matte between two limbs at which they are apart."""
MIRRORED = 0.5
"""What it costs to take a part from a mirrored reference (units of feature distance)."""


def _distances(skeleton: Skeleton, height: int, width: int) -> tuple[Float, Float]:
    """For one pose: distance of every pixel to every part in radii (P, H, W), and the part's depth there in metres."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    scale = skeleton.scale[0]
    near = np.empty((len(PARTS), height, width), np.float32)
    depth = np.empty_like(near)
    for i, name in enumerate(PARTS):
        a, b = skeleton.bones[0, i]
        reach = 1.0
        if name.endswith("hand"):
            reach = 1.9  # the bone ends at the knuckles
        elif name.endswith("foot"):
            reach = 1.15
        b = a + (b - a) * reach
        s, far = along(x, y, a[:2], b[:2])
        depth[i] = (a[2] + s * (b[2] - a[2])) / scale
        if name == "torso":
            quad = skeleton.points[0, 1, [0, 1, 3, 2]]
            centre = quad.mean(0)
            quad = centre + (quad - centre) * (1.0, 1.05)
            near[i] = 0.9 + _outside(quad, x, y) / (RADII[i] * scale)
        else:
            near[i] = far / (RADII[i] * scale)
        depth[i] -= FRONT[name]
    # In the air a hand is all that is there; before the body it ends where its fingers do.
    body = (
        near[[i for i, name in enumerate(PARTS) if name in ("head", "torso") or name.endswith("leg")]].min(0) < CROWDED
    )
    for i in (PART["left_hand"], PART["right_hand"]):
        if np.isfinite(skeleton.points[0, i]).all():
            ys, xs = np.nonzero(body & (near[i] < FAR))
            near[i][ys, xs] = np.maximum(
                near[i][ys, xs], _from_fingers(skeleton.points[0, i], x[ys, xs], y[ys, xs]) / (FINGER * scale)
            )
    return near, depth


def _from_fingers(hand: Float, x: Array, y: Array) -> Array:
    """Distance of pixels to a hand's bones (21 joints); 0 on its palm."""
    bones = [along(x, y, hand[a], hand[b])[1] for a, b in FINGERS]
    return np.minimum(np.min(bones, 0), _outside(hand[list(PALM)], x, y))


def _outside(quad: Float, x: Array, y: Array) -> Array:
    """Distance of each pixel to a quadrilateral; 0 inside."""
    distance = np.full(x.shape, np.inf, np.float32)
    crossings = np.zeros(x.shape, bool)
    for a, b in zip(quad, np.roll(quad, -1, 0), strict=True):
        d = b - a
        distance = np.minimum(distance, along(x, y, a, b)[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            crossings ^= ((a[1] > y) != (b[1] > y)) & (x < d[0] * (y - a[1]) / d[1] + a[0])
    distance[crossings] = 0
    return distance


def part_mattes(skeleton: Skeleton, matte: Array) -> tuple[Array, Array, Float]:
    """Who owns which pixel of a reference.

    Args:
        skeleton: one pose (N = 1) in the reference's pixels.
        matte: (H, W) float32 in 0..1.

    Returns:
        own    (P, H, W) float32: soft part mattes; neighbours overlap around their joint, so that bending tears no gap.
        core   (P, H, W) float32: where the part may be, seen or hidden: what others hide of it is completed there.
        alone  (P,) in 0..1: how much of the part's surroundings is background. A hand before the chest cannot be cut
               out as cleanly as a hand in the air.
    """
    h, w = matte.shape
    own = np.zeros((len(PARTS), h, w), np.float32)
    core = np.zeros_like(own)
    ys, xs = np.nonzero(matte > 0.01)
    if len(ys) == 0:
        return own, core, np.zeros(len(PARTS))
    y0, y1, x0, x1 = int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1
    shifted = Skeleton(
        skeleton.bones - (x0, y0, 0), skeleton.points - (x0, y0), skeleton.scale,
        skeleton.features, skeleton.visible, skeleton.face - (x0, y0),
    )  # fmt: skip
    near, depth = _distances(shifted, y1 - y0, x1 - x0)
    covers = near < 1.1
    front = np.where(covers, depth, np.inf).min(0)
    behind = np.clip((depth - front) / 0.25, 0, 1)
    score = near + 0.9 * np.where(np.isfinite(behind), behind, 0)
    small = np.array([not (p == "torso" or p.endswith("leg")) for p in PARTS])[:, None, None]
    # Loose clothes hang on torso and legs, where these are near.
    score += small * 2.0 * np.clip(near - 1.5, 0, None) * (near[~small[:, 0, 0]].min(0) < 2.2)
    weight = np.exp(-(score - score.min(0)) / 0.10)
    weight /= weight.sum(0)
    y, x = np.mgrid[0 : y1 - y0, 0 : x1 - x0].astype(np.float32) + 0.5
    joined = weight.copy()
    for i, parent in enumerate(PARENT):
        if parent < 0:
            continue
        joint = shifted.bones[0, i, 0, :2]
        size = JOINT.get(PARTS[i], 1.0) * RADII[i] * shifted.scale[0]
        around = (x - joint[0]) ** 2 + (y - joint[1]) ** 2
        joined[i] += weight[parent] * np.exp(-((around / size**2) ** 2))
        if PARTS[i] == "head":
            size *= NECK
        joined[parent] += weight[i] * np.exp(-((around / size**2) ** 2))
    box = (slice(y0, y1), slice(x0, x1))
    alone = np.zeros(len(PARTS))
    for i in range(len(PARTS)):
        ring = (near[i] > 1.0) & (near[i] < 1.8)
        alone[i] = 1 - matte[box][ring].mean() if ring.any() else 0
        # What is far from every bone is no part of the person.
        own[i][box] = matte[box] * np.clip((joined[i] - 0.3) / 0.3, 0, 1) * np.clip(FAR - near[i], 0, 1)
        limit = 1.35 if i == 1 else 1.25 if i in HIPS else 1.0
        core[i][box] = np.clip((limit - near[i]) / 0.15, 0, 1)
        if PARTS[i].endswith(("arm", "leg")):
            # What goes on beyond the knee hides nothing of the upper leg, but continues it.
            along_it = along(x, y, *shifted.bones[0, i, :, :2])[0]
            beyond = (along_it >= 1) | ((along_it <= 0) & ("lower" in PARTS[i]))
            further = matte[box] * core[i][box]
            if PARTS[i].endswith("leg"):
                kin = weight[[i, PARENT[i], *(j for j, parent in enumerate(PARENT) if parent == i)]].sum(0)
                further *= np.clip((kin - 0.3) / 0.3, 0, 1)
            own[i][box] = np.where(beyond, np.maximum(own[i][box], further), own[i][box])
        if PARTS[i].endswith("leg"):
            reached = _reached(shifted.bones[0, i, :, :2], matte[box], FAR * RADII[i] * shifted.scale[0])
            own[i][box] *= reached
            core[i][box] *= reached
    return own, core, alone


def _reached(bone: Float, matte: Array, far: float) -> Array:
    """Whether the person goes on from a limb's bone to each pixel, (H, W) in 0..1: beyond a gap is another limb.

    Args:
        bone: (2, 2) its ends.
        matte: (H, W) in 0..1.
        far: how far from the bone the limb can be, pixels.
    """
    h, w = matte.shape
    start, axis = bone[0], bone[1] - bone[0]
    length = float(np.linalg.norm(axis))
    if not 1 < length < 4 * max(h, w):
        return np.ones_like(matte)
    axis = axis / length
    # Rows are places along the bone, columns those across it.
    half = int(np.ceil(far)) + 1
    tall = int(np.ceil(length)) + 2 * half
    across = np.array([-axis[1], axis[0]])
    there = np.stack([across, axis], 1)
    back = np.column_stack([there, start - half * across - half * axis]).astype(np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    straight = cv2.warpAffine(matte, back, (2 * half + 1, tall), flags=flags)
    reached = np.empty_like(straight)
    for side in (slice(half, None), slice(half, None, -1)):
        ray = straight[:, side]
        entered = np.maximum.accumulate(ray > 0.5, axis=1)
        lowest = np.minimum.accumulate(np.where(entered, ray, 1), axis=1)
        # A matte that falls is the limb's own border; what rises behind it is another limb.
        reached[:, side] = 1 - np.clip((ray - lowest) / GAP, 0, 1) * np.clip((0.5 - lowest) / (0.5 - GAP), 0, 1)
    found = cv2.warpAffine(reached, back, (w, h), borderMode=cv2.BORDER_CONSTANT, borderValue=(1.0,))
    return np.asarray(found, np.float32)


@dataclass(frozen=True)
class Cutouts:
    """Every part of every reference as a small picture.

    textures  per part and for the `SKIRT`, (K, 4, h, w) float: R, G, B in 0..1 continued past the border, and alpha.
    origins   (P + 1, K, 2): the pixel of the reference that a texture's top left corner is.
    shrink    textures are the reference reduced by this factor.
    skeleton  the K references' skeletons, in the references' full pixels.
    shown     (K, P): share of the part that the reference really shows.
    handicap  (K,): what it costs to take anything from a reference, in units of feature distance.
    blame     (P, K): what it costs to take a part from a reference that shows the others badly (`judging`).
    """

    textures: tuple[torch.Tensor, ...]
    origins: Float
    shrink: int
    skeleton: Skeleton
    shown: Float
    handicap: Float
    blame: Float

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Cutouts:
        return replace(self, textures=tuple(t.to(device, dtype) for t in self.textures))

    def halved(self) -> Cutouts:
        """The same at half the resolution."""
        textures = []
        for t in self.textures:
            pad = (0, t.shape[3] % 2, 0, t.shape[2] % 2)
            textures.append(F.avg_pool2d(F.pad(t, pad, mode="replicate"), 2))
        return replace(self, textures=tuple(textures), shrink=self.shrink * 2)

    def with_mirrored(self, track: PoseTrack) -> Cutouts:
        """Twice the references: these, and each as the mirror shows it, its left parts serving as right ones.

        The far arm of somebody filmed from the side is nowhere to be seen, and a face filmed from the left must turn
        right: the mirror knows. Lettering would be reversed, so mirrored references have a handicap.

        Args:
            track: the poses that `skeleton` was made of.
        """
        width = track.size[0]
        body = track.body[:, MIRROR].copy()
        body[..., 0] = width - body[..., 0]
        hands = track.hands[:, ::-1].copy()
        hands[..., 0] = width - hands[..., 0]
        # The mesh's points have no simple mirror images; the face's joints will do.
        other = skeletons(replace(track, body=body, hands=hands, face=np.full_like(track.face, np.nan)))
        textures, origins = [], []
        for p in range(len(self.textures)):
            q = MIRROR_PART[p] if p < len(PARTS) else p
            mine, theirs = self.textures[p], self.textures[q].flip(3)
            h, w = max(mine.shape[2], theirs.shape[2]), max(mine.shape[3], theirs.shape[3])
            padded = [F.pad(t, (0, w - t.shape[3], 0, h - t.shape[2]), mode="replicate") for t in (mine, theirs)]
            textures.append(torch.cat(padded))
            corner = self.origins[q].copy()
            corner[:, 0] = width - corner[:, 0] - theirs.shape[3] * self.shrink
            origins.append(np.concatenate([self.origins[p], corner]))
        return Cutouts(
            tuple(textures),
            np.stack(origins),
            self.shrink,
            self.skeleton.joined(other),
            np.concatenate([self.shown, self.shown[:, list(MIRROR_PART)]]),
            np.concatenate([self.handicap, self.handicap + MIRRORED]),
            np.concatenate([self.blame, self.blame[list(MIRROR_PART)]], 1),
        )


def _crispness(frames: torch.Tensor, own: torch.Tensor) -> Float:
    """How much fine detail each part of each reference shows, (K, P): motion blurs parts, not pictures."""
    grey = frames.mean(1, keepdim=True)
    fine = (grey - torch.cat([_blur(g[None], 1.0) for g in grey])).abs()
    inside = (own > 0.8).float()
    found = (fine * inside).sum((2, 3)) / inside.sum((2, 3)).clamp_min(1)
    return found.numpy().astype(np.float64)


def _touched(skeleton: Skeleton) -> Float:
    """How near a hand is to the head, (K,) in 0..1: what is cut out with a head shows in every frame."""
    head = PART["head"]
    a, b = (skeleton.bones[:, head, None, end, :2] for end in (0, 1))
    hands = skeleton.bones[:, [PART["left_hand"], PART["right_hand"]], :, :2].reshape(len(skeleton), 4, 2)
    far = along(hands[..., 0], hands[..., 1], a, b)[1] / (RADII[head] * skeleton.scale[:, None])
    near, apart = TOUCHING
    return np.asarray(np.clip((apart - np.nan_to_num(far, nan=np.inf)) / (apart - near), 0, 1).max(1), np.float64)


def _blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (1, C, h, w), borders repeated. OpenCV: many times faster than a convolution on a CPU."""
    picture = np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())
    blurred = cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return torch.from_numpy(blurred.reshape(picture.shape)).permute(2, 0, 1)[None]


def _extend(rgb: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Continue colours (1, 3, h, w) from where `known` (1, 1, h, w) is 1 to everywhere."""
    out, done = rgb * known, known
    for sigma in (1.0, 2.0, 4.0, 8.0, 16.0):
        if sigma * 3 >= min(rgb.shape[2:]):
            break
        weight = _blur(known, sigma)
        colour = _blur(rgb * known, sigma) / weight.clamp_min(1e-5)
        fresh = (weight > 0.01).to(rgb.dtype) * (1 - done)
        out, done = out + fresh * colour, (done + fresh).clamp_max(1)
    mean = (rgb * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1e-5)
    return out + (1 - done) * mean


def cut(
    frames: torch.Tensor,
    own: torch.Tensor,
    core: torch.Tensor,
    mattes: torch.Tensor,
    alone: Float,
    skeleton: Skeleton,
) -> Cutouts:
    """Cut K references into parts and complete what each hides.

    Args:
        frames: (K, 3, H, W) float32 in 0..1, the person's own colours under the matte (`background.unmix`).
        own, core, alone: (K, P, H, W), (K, P, H, W), (K, P) from `part_mattes`.
        mattes: (K, 1, H, W) float32 in 0..1.
        skeleton: the K references' skeletons.
    """
    k, _, h, w = frames.shape
    moves = affines(skeleton, skeleton)  # (to, from, P, 2, 3)
    shown = (own.sum((2, 3)) / (0.6 * core.sum((2, 3)) + 1)).clamp_max(1).numpy().astype(np.float64)
    outside = np.stack([((b[..., :2] < 0) | (b[..., :2] > (w, h))).any(-1).mean(-1) for b in skeleton.bones])
    shown = shown * (1 - 0.5 * outside) * (0.3 + 0.7 * skeleton.visible)
    crisp = _crispness(frames, own)
    shown = np.clip(shown - 0.35 * (1 - crisp / np.maximum(crisp.max(0), 1e-6)), 0, 1)
    limbs = np.array([0.0 if p in ("head", "torso") else 0.35 for p in PARTS])
    shown = np.clip(shown - limbs * (alone.max(0) - alone), 0, 1)
    shown[:, PART["head"]] *= 1 - TOUCHED * _touched(skeleton)
    hangs = hanging(frames, own, core, skeleton)
    skirt = hangs * own[:, HIPS].sum(1, keepdim=True).clamp_max(1), hangs * core[:, HIPS].amax(1, keepdim=True)
    own, core = (torch.cat(both, 1) for both in zip(slender(own, core, mattes, skeleton), skirt, strict=True))
    own = torch.stack(side_by_side(lambda one: torch.stack([_whole(part) for part in one]), own))
    moves = np.concatenate([moves, moves[:, :, 1:2]], 2)

    corners, sizes = zip(
        *side_by_side(
            lambda p: _framed((torch.maximum(own[:, p], core[:, p] * mattes[:, 0]) > 0.02).numpy()),
            range(len(PARTS) + 1),
        ),
        strict=True,
    )
    textures = tuple(torch.zeros(k, 4, *size) for size in sizes)
    origins = np.nan_to_num(np.stack(corners))

    def complete(job: tuple[int, int]) -> None:
        p, i = job
        (x0, y0), (bh, bw) = origins[p, i].astype(int).tolist(), sizes[p]

        def crop(picture: torch.Tensor) -> torch.Tensor:
            left, top = max(0, -x0), max(0, -y0)
            right, bottom = max(0, x0 + bw - w), max(0, y0 + bh - h)
            inner = picture[..., max(0, y0) : y0 + bh - bottom, max(0, x0) : x0 + bw - right]
            return F.pad(inner, (left, right, top, bottom))

        alpha = crop(own[i, p][None, None])
        colour = crop(frames[i][None])
        solid = (alpha > 0.6).float()
        hidden = (crop(mattes[i][None]) - alpha).clamp_min(0)
        hidden = hidden * crop(core[i, p][None, None])
        root = p if p < len(PARTS) else 1
        others = [j for j in sorted(range(k), key=lambda j: -shown[j, root]) if j != i and shown[j, root] >= 0.3]
        backs = {j: inverse(moves[i, j, p]) for j in others}
        if p == PART["torso"] and float(hidden.max()) > 0.5:
            fits = {}
            for j, back in backs.items():
                grid = _grid(torch.from_numpy(back).float(), x0, y0, bw, bh, w, h)
                picture, theirs = (
                    F.grid_sample(x[None], grid, align_corners=False) for x in (frames[j], own[j, p][None])
                )
                fits[j] = registered(picture, theirs, colour, alpha)
            backs |= {j: within(backs[j], fit, (x0, y0)) for j, fit in fits.items() if fit is not None}
            others.sort(key=lambda j: fits[j] is None)
        for j in others:
            if float(hidden.max()) < 0.05:
                break
            grid = _grid(torch.from_numpy(backs[j]).float(), x0, y0, bw, bh, w, h)
            # Two samplings: putting the pictures together would copy them whole for each part.
            theirs = F.grid_sample(own[j, p][None, None], grid, align_corners=False)
            add = torch.minimum(theirs, hidden)
            if not bool(add.any()):
                continue
            share = add / (alpha + add).clamp_min(1e-3)
            colour = colour * (1 - share) + F.grid_sample(frames[j][None], grid, align_corners=False) * share
            alpha, hidden = alpha + add, hidden - add
            solid = (alpha > 0.6).float()
        inside = torch.minimum(crop(core[i, p][None, None]), hidden)
        if float(solid.sum()) > 8:
            if p == PART["head"]:  # colours that are continued make no face
                inside = torch.zeros_like(inside)
            colour = torch.where(solid > 0, colour, _extend(colour, solid))
            alpha = alpha + inside
        alpha[..., :2, :] = alpha[..., -2:, :] = 0
        alpha[..., :2] = alpha[..., -2:] = 0
        textures[p][i] = torch.cat([colour, alpha], 1)[0]

    side_by_side(
        complete, [(p, i) for p in range(len(PARTS) + 1) for i in range(k) if np.isfinite(corners[p][i]).all()]
    )
    return Cutouts(textures, origins, 1, skeleton, shown, np.zeros(k), np.zeros((len(PARTS), k)))


def _whole(part: torch.Tensor) -> torch.Tensor:
    """A part's matte (H, W) without crumbs: what is no piece of it, but small and by itself."""
    _, which, stats, _ = cv2.connectedComponentsWithStats((part.numpy() > 0.02).astype(np.uint8), connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]
    crumbs = 1 + np.flatnonzero(area < CRUMB * area.sum())
    return part * torch.from_numpy(~np.isin(which, crumbs)) if len(crumbs) else part


def _framed(there: npt.NDArray[np.bool_]) -> tuple[Float, tuple[int, int]]:
    """Equal boxes around a part in each reference: top left corners (K, 2), NaN where it is not, and the size (h, w).

    Args:
        there: (K, H, W) where it is.
    """
    corners = np.full((len(there), 2, 2), np.nan)
    for found, one in zip(corners, there, strict=True):
        ys, xs = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        if len(ys):
            found[:] = (xs[0], ys[0]), (xs[-1] + 1, ys[-1] + 1)
    sizes = np.nan_to_num(corners[:, 1] - corners[:, 0], nan=1).astype(int)
    w, h = (int(n) + 8 for n in sizes.max(0))
    return corners[:, 0] - ((w, h) - sizes) // 2, (h, w)


def _grid(back: torch.Tensor, x0: int, y0: int, bw: int, bh: int, w: int, h: int) -> torch.Tensor:
    """Sampling grid (1, bh, bw, 2) of the box at (x0, y0), mapped by `back` (2, 3) into a picture of w x h pixels."""
    y = torch.arange(y0, y0 + bh, device=back.device, dtype=back.dtype)[:, None] + 0.5
    x = torch.arange(x0, x0 + bw, device=back.device, dtype=back.dtype)[None] + 0.5
    u = back[0, 0] * x + back[0, 1] * y + back[0, 2]
    v = back[1, 0] * x + back[1, 1] * y + back[1, 2]
    return torch.stack([u * (2 / w) - 1, v * (2 / h) - 1], -1)[None]
