"""Body parts: cut out of the references, moved onto a driving pose, laid over each other.

Dance Dance Generation §3.1: a person is cut into parts; each part is moved by the affine transform that carries its
bone in the reference onto its bone in the driving pose. Beyond the paper, which moves the parts of one input frame:

* every part is taken from the best of the K references (or a cross-fade of two), chosen jointly over the body's tree so
  that neighbours prefer one picture (`choose`);
* what a part hides behind another part in one reference is completed from the other references (`cut`);
* the parts are laid over each other by depth (`Layout.order`), not in a fixed order;
* the head also follows the face mesh, a hand its joints, by a smooth residual field (`Layout.bend`).

Geometry is NumPy on a handful of points; pictures are torch, on the model's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from .skeleton import BONES, MIRROR, MIRROR_PART, PARENT, PART, PARTS
from .types import Array, PoseTrack

Float = npt.NDArray[np.floating]

# Half thickness of each part in metres (an adult's; used relative to the body's own scale).
RADIUS = {
    "head": 0.11, "torso": 0.08, "left_upper_arm": 0.055, "right_upper_arm": 0.055, "left_lower_arm": 0.045,
    "right_lower_arm": 0.045, "left_upper_leg": 0.095, "right_upper_leg": 0.095, "left_lower_leg": 0.065,
    "right_lower_leg": 0.065, "left_hand": 0.045, "right_hand": 0.045, "left_foot": 0.055, "right_foot": 0.055,
}  # fmt: skip
RADII = np.array([RADIUS[p] for p in PARTS])
# How far in front of its joints' depth a part is drawn, in metres: settles ties the way bodies are built.
FRONT = dict.fromkeys(PARTS, 0.0) | {
    "head": 0.06, "torso": 0.05,
    "left_upper_arm": 0.06, "right_upper_arm": 0.06, "left_lower_arm": 0.10, "right_lower_arm": 0.10,
    "left_hand": 0.14, "right_hand": 0.14, "left_foot": 0.01, "right_foot": 0.01,
}  # fmt: skip
# Bones that tell the body's scale, and their length in metres.
RULERS = (
    (11, 12, 0.33), (11, 23, 0.50), (12, 24, 0.50), (23, 25, 0.40), (24, 26, 0.40), (25, 27, 0.37), (26, 28, 0.37),
)  # fmt: skip
# Points of the face mesh that steer the head: chin, forehead, cheeks, nose, mouth corners, eye corners.
MESH_ANCHORS = (152, 10, 234, 454, 1, 61, 291, 33, 263)
# Every third point of the mesh is enough for the residual field.
MESH_FIELD = np.arange(0, 468, 3)
# Radius (in radii of the part) around the upper end of its bone in which a part and the one it hangs on overlap.
JOINT = {"left_upper_leg": 1.7, "right_upper_leg": 1.7, "left_upper_arm": 0.8, "right_upper_arm": 0.8, "head": 0.9}
SKIRT = len(PARTS)
"""Index of the extra layer beneath all parts: torso and upper legs in one piece, bent smoothly, so that no skirt, hem
or crotch is torn between rigid parts."""
FAR = 4.0
"""Distance from its bone, in radii of the part, at which nothing belongs to it any more."""
HIPS = (PART["torso"], PART["left_upper_leg"], PART["right_upper_leg"])
LIMBS = tuple(i for i, p in enumerate(PARTS) if "arm" in p or "leg" in p)


@dataclass(frozen=True)
class Skeleton:
    """The geometry of N poses that the parts need, in pixels (NumPy float64).

    bones    (N, P, 2, 3): both ends of each part's bone, x, y, z.
    points   (N, P, 21, 2): control points of head, torso, hands and feet; NaN where a part has fewer or none was found.
    scale    (N,): pixels per metre of the body, free of foreshortening.
    features (N, P, 11): what a part looks like from here; references are compared by it.
    visible  (N, P): 0..1.
    face     (N, 156, 2): mesh points for the residual field; NaN where no face was found.
    """

    bones: Float
    points: Float
    scale: Float
    features: Float
    visible: Float
    face: Float

    def __len__(self) -> int:
        return len(self.bones)

    def joined(self, other: Skeleton) -> Skeleton:
        """These poses and then the other's."""
        return Skeleton(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def take(self, index: Sequence[int]) -> Skeleton:
        i = list(index)
        return Skeleton(
            self.bones[i], self.points[i], self.scale[i], self.features[i], self.visible[i], self.face[i]
        )  # fmt: skip


def _unit(v: Float) -> Float:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-6)


def body_scale(body: Float) -> Float:
    """Pixels per metre of each pose (T, 33, 4), (T,): the lengths of trunk and legs in three dimensions against an
    adult's. Needs the calibrated z of `PoseTrack`; foreshortening then cancels."""
    length, metres = np.zeros(len(body)), 0.0
    for a, b, m in RULERS:
        length += np.linalg.norm(body[:, a, :3] - body[:, b, :3], axis=1)
        metres += m
    return np.maximum(length / metres, 1.0)


def skeletons(track: PoseTrack) -> Skeleton:
    """The skeletons of all poses of a track (whose bodies must be finite: fill gaps first)."""
    body = track.body.astype(np.float64)
    scale = body_scale(body)
    xyz, vis = body[..., :3], np.nan_to_num(body[..., 3])
    n = len(body)
    bones = np.stack([np.stack([xyz[:, a].mean(1), xyz[:, b].mean(1)], 1) for a, b in BONES], 1)
    visible = np.stack([vis[:, sorted({*a, *b})].mean(1) for a, b in BONES], 1)

    neck = xyz[:, [11, 12]].mean(1)
    # The head's bone: from the neck to the middle of the head, and as far again towards the crown.
    ears = xyz[:, [7, 8]].mean(1)
    bones[:, 0, 0] = neck + 0.35 * (ears - neck)
    bones[:, 0, 1] = ears + 0.35 * (ears - neck)

    points = np.full((n, len(PARTS), 21, 2), np.nan)
    points[:, 0, :11] = xyz[:, :11, :2]
    points[:, 0, 11] = neck[:, :2]
    points[:, 0, 12:21] = track.face[:, MESH_ANCHORS, :2]
    points[:, 1, :4] = xyz[:, [11, 12, 23, 24], :2]
    for side, (wrist, fingers) in enumerate(((15, (17, 19, 21)), (16, (18, 20, 22)))):
        hand = track.hands[:, side, :, :2].astype(np.float64)
        none = ~np.isfinite(hand).all((1, 2))
        hand[none] = np.nan
        hand[none, 0] = xyz[none, wrist, :2]
        # The joints of BlazePose that mean the same points of the hand: thumb, index and little finger.
        for f, at in zip(fingers, (17, 5, 2), strict=True):
            hand[none, at] = xyz[none][:, f, :2]
        points[:, PART["left_hand"] + side] = hand
    for side in (0, 1):
        points[:, PART["left_foot"] + side, :3] = xyz[:, [27 + side, 29 + side, 31 + side], :2]

    direction = _unit(bones[:, :, 1] - bones[:, :, 0])
    across = _unit(xyz[:, 11] - xyz[:, 12])
    features = np.zeros((n, len(PARTS), 11))
    features[:, :, 0:2] = 0.35 * direction[..., :2]
    features[:, :, 2] = direction[..., 2]
    features[:, :, 3:5] = 0.6 * across[:, None, [0, 2]]
    features[:, 1, 0:5] *= 1.5
    # A joint's folds depend on how it is bent: the limb's parent, for the torso the legs.
    features[:, 2:, 8:11] = 0.4 * direction[:, [PARENT[i] for i in range(2, len(PARTS))]]
    features[:, 1, 8:11] = 0.8 * direction[:, [PART["left_upper_leg"], PART["right_upper_leg"]]].mean(1)
    look = _unit(xyz[:, 0] - ears)  # where the nose points
    features[:, 0, 0:3] = 2.0 * look
    features[:, 0, 3:5] = 0.0
    features[:, 0, 5:7] = 0.5 * direction[:, 0, :2]
    return Skeleton(bones, points, scale, features, visible, track.face[:, MESH_FIELD, :2].astype(np.float64))


def affines(source: Skeleton, target: Skeleton) -> Float:
    """The affine transforms that carry each part of N source poses onto each of M target poses.

    Limbs: the bone onto the bone, exactly; across the bone the scale of the body (so that a limb that points at the
    camera gets shorter, not thinner). Head, torso, hands, feet: least squares over their control points, drawn towards
    a similarity where the points do not determine an affine transform.

    Returns:
        (M, N, P, 2, 3) float64, pixels → pixels.
    """
    m, n, p = len(target), len(source), len(PARTS)
    ratio = np.clip(target.scale[:, None] / source.scale[None], 0.1, 10.0)  # (M, N)
    a_s, b_s = source.bones[None, :, :, 0, :2], source.bones[None, :, :, 1, :2]
    a_t, b_t = target.bones[:, None, :, 0, :2], target.bones[:, None, :, 1, :2]
    v_s, v_t = b_s - a_s, b_t - a_t
    len_s = np.maximum(np.linalg.norm(v_s, axis=-1), 1e-3)
    len_t = np.maximum(np.linalg.norm(v_t, axis=-1), 1e-3)
    u_s, u_t = v_s / len_s[..., None], v_t / len_t[..., None]
    n_s, n_t = np.stack([-u_s[..., 1], u_s[..., 0]], -1), np.stack([-u_t[..., 1], u_t[..., 0]], -1)
    along = np.clip(len_t / len_s, 0.25 * ratio[..., None], 2.0 * ratio[..., None])
    linear = (
        along[..., None, None] * u_t[..., :, None] * u_s[..., None, :]
        + ratio[..., None, None, None] * n_t[..., :, None] * n_s[..., None, :]
    )
    linear = np.broadcast_to(linear, (m, n, p, 2, 2)).copy()
    offset = a_t - np.einsum("mnpij,mnpj->mnpi", linear, np.broadcast_to(a_s, (m, n, p, 2)))

    for i in range(p):
        if i in LIMBS:
            continue
        s, t = source.points[None, :, i], target.points[:, None, i]
        w = (np.isfinite(s).all(-1) & np.isfinite(t).all(-1)).astype(float)  # (M, N, 21)
        ridge = 0.15
        if i == 0:
            mesh = w[..., 12:].sum(-1, keepdims=True) > 5
            w[..., :11] *= np.where(mesh, 0.15, 1.0)
            w[..., 11] *= 0.35
        if PARTS[i].endswith("foot"):
            ridge = 1.0
        if PARTS[i].endswith("hand"):
            ridge = 0.6
        s, t = np.nan_to_num(s), np.nan_to_num(t)
        total = np.maximum(w.sum(-1), 1e-9)[..., None]
        c_s, c_t = (w[..., None] * s).sum(-2) / total, (w[..., None] * t).sum(-2) / total
        d_s, d_t = s - c_s[..., None, :], t - c_t[..., None, :]
        moment = np.einsum("mnc,mnci,mncj->mnij", w, d_t, d_s)
        spread = np.einsum("mnc,mnci,mncj->mnij", w, d_s, d_s)
        trace = np.maximum(spread[..., 0, 0] + spread[..., 1, 1], 1e-6)
        re = (moment[..., 0, 0] + moment[..., 1, 1]) / trace
        im = (moment[..., 1, 0] - moment[..., 0, 1]) / trace
        size = np.maximum(np.hypot(re, im), 1e-6)
        # A part seen from its other side would shrink to nothing: keep it near the body's own scale.
        wanted = np.clip(size, 0.7 * ratio, 1.4 * ratio)
        re, im = re * wanted / size, im * wanted / size
        prior = np.stack([np.stack([re, -im], -1), np.stack([im, re], -1)], -2)
        lam = (ridge * trace / 2)[..., None, None]
        eye = np.eye(2)
        fitted = np.einsum("mnij,mnjk->mnik", moment + lam * prior, _inverse2(spread + lam * eye))
        # Never mirrored, never squeezed to a line.
        det = fitted[..., 0, 0] * fitted[..., 1, 1] - fitted[..., 0, 1] * fitted[..., 1, 0]
        bad = (w.sum(-1) < 3) | (det < 0.35 * wanted**2)
        fitted = np.where(bad[..., None, None], prior, fitted)
        enough = w.sum(-1) >= 2
        linear[:, :, i] = np.where(enough[..., None, None], fitted, linear[:, :, i])
        moved = c_t - np.einsum("mnij,mnj->mni", fitted, c_s)
        offset[:, :, i] = np.where(enough[..., None], moved, offset[:, :, i])
    return np.concatenate([linear, offset[..., None]], -1)


def _inverse2(m: Float) -> Float:
    """Inverses of (..., 2, 2); written out, since LAPACK's calls cost more than the arithmetic."""
    det = m[..., 0, 0] * m[..., 1, 1] - m[..., 0, 1] * m[..., 1, 0]
    det = np.where(np.abs(det) < 1e-12, 1e-12, det)
    out = np.stack([np.stack([m[..., 1, 1], -m[..., 0, 1]], -1), np.stack([-m[..., 1, 0], m[..., 0, 0]], -1)], -2)
    return np.asarray(out / det[..., None, None])


def inverse(matrix: Float) -> Float:
    """The inverses of affine transforms (..., 2, 3)."""
    linear = _inverse2(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], -1)


# --------------------------------------------------------------------------------------------------------------------
# Cutting the references


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
        d = b[:2] - a[:2]
        s = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(float(d @ d), 1e-6), 0, 1)
        depth[i] = (a[2] + s * (b[2] - a[2])) / scale
        if name == "torso":
            quad = skeleton.points[0, 1, [0, 1, 3, 2]]
            centre = quad.mean(0)
            quad = centre + (quad - centre) * (1.0, 1.05)
            near[i] = 0.9 + _outside(quad, x, y) / (RADII[i] * scale)
        else:
            near[i] = np.hypot(x - a[0] - s * d[0], y - a[1] - s * d[1]) / (RADII[i] * scale)
        depth[i] -= FRONT[name]
    return near, depth


def _outside(quad: Float, x: Array, y: Array) -> Array:
    """Distance of each pixel to a quadrilateral; 0 inside."""
    distance = np.full(x.shape, np.inf, np.float32)
    crossings = np.zeros(x.shape, bool)
    for a, b in zip(quad, np.roll(quad, -1, 0), strict=True):
        d = b - a
        s = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(float(d @ d), 1e-6), 0, 1)
        distance = np.minimum(distance, np.hypot(x - a[0] - s * d[0], y - a[1] - s * d[1]))
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
        disc = np.exp(-((((x - joint[0]) ** 2 + (y - joint[1]) ** 2) / size**2) ** 2))
        joined[i] += weight[parent] * disc
        joined[parent] += weight[i] * disc
    box = (slice(y0, y1), slice(x0, x1))
    alone = np.zeros(len(PARTS))
    for i in range(len(PARTS)):
        ring = (near[i] > 1.0) & (near[i] < 1.8)
        alone[i] = 1 - matte[box][ring].mean() if ring.any() else 0
        # What is far from every bone is no part of the person.
        own[i][box] = matte[box] * np.clip((joined[i] - 0.3) / 0.3, 0, 1) * np.clip(FAR - near[i], 0, 1)
        limit = 1.35 if i == 1 else 1.25 if i in HIPS else 1.0
        core[i][box] = np.clip((limit - near[i]) / 0.15, 0, 1)
    return own, core, alone


@dataclass(frozen=True)
class Cutouts:
    """Every part of every reference as a small picture.

    textures  per part and for the `SKIRT`, (K, 4, h, w) float: R, G, B in 0..1 continued past the border, and alpha.
    origins   (P + 1, K, 2): the pixel of the reference that a texture's top left corner is.
    shrink    textures are the reference reduced by this factor.
    skeleton  the K references' skeletons, in the references' full pixels.
    shown     (K, P): share of the part that the reference really shows.
    handicap  (K,): what it costs to take anything from a reference, in units of feature distance.
    """

    textures: tuple[torch.Tensor, ...]
    origins: Float
    shrink: int
    skeleton: Skeleton
    shown: Float
    handicap: Float

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
        )


def _crispness(frames: torch.Tensor, own: torch.Tensor) -> Float:
    """How much fine detail each part of each reference shows, (K, P): motion blurs parts, not pictures."""
    grey = frames.mean(1, keepdim=True)
    fine = (grey - torch.cat([_blur(g[None], 1.0) for g in grey])).abs()
    inside = (own > 0.8).float()
    found = (fine * inside).sum((2, 3)) / inside.sum((2, 3)).clamp_min(1)
    return found.numpy().astype(np.float64)


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
    textures, origins = [], np.zeros((len(PARTS) + 1, k, 2))
    own = torch.cat([own, own[:, HIPS].sum(1, keepdim=True).clamp_max(1)], 1)
    core = torch.cat([core, core[:, HIPS].amax(1, keepdim=True)], 1)
    moves = np.concatenate([moves, moves[:, :, 1:2]], 2)
    for p in range(len(PARTS) + 1):
        boxes = []
        for i in range(k):
            ys, xs = torch.nonzero(torch.maximum(own[i, p], core[i, p] * mattes[i, 0]) > 0.02, as_tuple=True)
            boxes.append((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if len(ys) else None)
        real = [b for b in boxes if b]
        bw = max([b[2] - b[0] for b in real], default=1) + 8
        bh = max([b[3] - b[1] for b in real], default=1) + 8
        sheet = torch.zeros(k, 4, bh, bw)
        for i in range(k):
            box = boxes[i]
            if box is None:
                continue
            x0, y0 = box[0] - (bw - (box[2] - box[0])) // 2, box[1] - (bh - (box[3] - box[1])) // 2
            origins[p, i] = x0, y0

            def crop(picture: torch.Tensor, x0: int = x0, y0: int = y0, bw: int = bw, bh: int = bh) -> torch.Tensor:
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
            order = sorted((j for j in range(k) if j != i), key=lambda j: -shown[j, root])
            filled = torch.zeros_like(alpha)
            for j in order:
                if shown[j, root] < 0.3 or float(hidden.max()) < 0.05:
                    continue
                back = torch.from_numpy(inverse(moves[i, j, p])).float()
                grid = _grid(back, x0, y0, bw, bh, w, h)
                other = F.grid_sample(torch.cat([frames[j], own[j, p][None]])[None], grid, align_corners=False)
                add = torch.minimum(other[:, 3:], hidden) * (1 - filled)
                colour = colour * (1 - add) + other[:, :3] * add
                solid = torch.maximum(solid * (1 - add), (add > 0.6).float())
                alpha = torch.maximum(alpha, add)
                filled = torch.maximum(filled, add)
                hidden = hidden * (1 - add)
            inside = torch.minimum(crop(core[i, p][None, None]), hidden)
            if float(solid.sum()) > 8:
                inside = inside * (p in (*HIPS, SKIRT))
                colour = torch.where(solid > 0, colour, _extend(colour, solid))
                alpha = torch.maximum(alpha, inside)
            alpha[..., :2, :] = alpha[..., -2:, :] = 0
            alpha[..., :2] = alpha[..., -2:] = 0
            sheet[i] = torch.cat([colour, alpha], 1)[0]
        textures.append(sheet)
    return Cutouts(tuple(textures), origins, 1, skeleton, shown, np.zeros(k))


def _grid(back: torch.Tensor, x0: int, y0: int, bw: int, bh: int, w: int, h: int) -> torch.Tensor:
    """Sampling grid (1, bh, bw, 2) of the box at (x0, y0), mapped by `back` (2, 3) into a picture of w x h pixels."""
    y = torch.arange(y0, y0 + bh, device=back.device, dtype=back.dtype)[:, None] + 0.5
    x = torch.arange(x0, x0 + bw, device=back.device, dtype=back.dtype)[None] + 0.5
    u = back[0, 0] * x + back[0, 1] * y + back[0, 2]
    v = back[1, 0] * x + back[1, 1] * y + back[1, 2]
    return torch.stack([u * (2 / w) - 1, v * (2 / h) - 1], -1)[None]


# --------------------------------------------------------------------------------------------------------------------
# Laying them out on a driving pose


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


JOINED = 0.6
"""What it costs two joined parts to come from different references (units of feature distance)."""
MIRRORED = 0.5
"""What it costs to take a part from a mirrored reference (units of feature distance)."""
STICKY = 0.10
"""What it costs a part to change its reference from one frame to the next."""
FADE = 0.7
"""Share of a change of reference that happens in each frame."""


def choose(cost: Float) -> npt.NDArray[np.intp]:
    """The reference of each part, jointly: least sum of `cost` (P, K) plus `JOINED` for each joint whose two parts come
    from different references. Exact, by dynamic programming over the body's tree. Returns (P,)."""
    total, best = cost.copy(), {}
    children = sorted((i for i, parent in enumerate(PARENT) if parent >= 0), key=lambda i: -_depth_in_tree(i))
    for i in children:
        stay, leave = total[i], total[i].min() + JOINED
        best[i] = (stay <= leave, int(total[i].argmin()))
        total[PARENT[i]] = total[PARENT[i]] + np.minimum(stay, leave)
    chosen = np.zeros(len(PARENT), np.intp)
    root = PARENT.index(-1)
    chosen[root] = total[root].argmin()
    for i in reversed(children):
        stays, other = best[i]
        chosen[i] = chosen[PARENT[i]] if stays[chosen[PARENT[i]]] else other
    return chosen


def _depth_in_tree(i: int) -> int:
    return 0 if PARENT[i] < 0 else 1 + _depth_in_tree(PARENT[i])


def lay_out(cutouts: Cutouts, pose: Skeleton, state: LayoutState | None = None) -> tuple[Layout, LayoutState]:
    """Choose references, transforms and order for one driving pose (N = 1)."""
    refs = cutouts.skeleton
    difference = pose.features[0][None] - refs.features  # (K, P, 11)
    cost = np.linalg.norm(difference, axis=-1).T + cutouts.handicap
    cost += 1.5 * (1 - cutouts.shown.T) + 4.0 * np.clip(0.5 - cutouts.shown.T, 0, None)
    length = np.linalg.norm(pose.bones[0, :, 1, :2] - pose.bones[0, :, 0, :2], axis=-1) / pose.scale[0]
    shown_length = np.linalg.norm(refs.bones[:, :, 1, :2] - refs.bones[:, :, 0, :2], axis=-1) / refs.scale[:, None]
    stretch = np.log((length[None] + 0.03) / (shown_length + 0.03)).T  # (P, K)
    cost += 0.8 * np.clip(stretch, 0, None) + 0.3 * np.clip(-stretch, 0, None)
    if state is not None:
        cost = cost - STICKY * state.mix
    chosen = choose(cost)
    mix = np.eye(len(refs))[chosen]
    if state is not None:
        mix = state.mix + FADE * (mix - state.mix)
        mix = np.where(mix < 0.02, 0, mix)
        mix /= mix.sum(1, keepdims=True)
    moves = affines(refs, pose)[0]
    backs = inverse(moves)

    depth = pose.bones[0, :, :, 2].mean(1) / pose.scale[0] - np.array([FRONT[p] for p in PARTS])
    if state is not None:
        depth = state.depth + 0.5 * (depth - state.depth)
    layers = []
    for part in (SKIRT, *np.argsort(-depth, kind="stable").tolist()):
        root = 1 if part == SKIRT else part
        pieces = []
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
            bend = _bend(part, pose, refs, k, backs[k], box)
            pieces.append(Piece(part, k, float(mix[root, k]), backs[k, root], box, bend))
        layers.append(tuple(pieces))
    return tuple(layers), LayoutState(mix, depth)


def _bend(
    part: int, pose: Skeleton, refs: Skeleton, k: int, backs: Float, box: tuple[int, int, int, int]
) -> Float | None:
    """`Piece.bend`: the smooth field over `box` that is added to a piece's affine transform.

    Head and hands: what is left between the points of the mesh or the joints after the affine transform, spread by
    Gaussians. The skirt: the transforms of torso and upper legs, blended by the distance to their bones; far from
    them it fades.
    """
    n = 20
    gx = box[0] + (np.arange(n) + 0.5) * (box[2] - box[0]) / n
    gy = box[1] + (np.arange(n) + 0.5) * (box[3] - box[1]) / n
    if part == SKIRT:
        x, y = np.meshgrid(gx, gy)
        weight, value = [], []
        for i in HIPS:
            a, b = pose.bones[0, i, 0, :2], pose.bones[0, i, 1, :2]
            d = b - a
            s = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(float(d @ d), 1e-6), 0, 1)
            far = np.hypot(x - a[0] - s * d[0], y - a[1] - s * d[1]) / pose.scale[0]
            weight.append(np.exp(-((far / (0.16 if i == 1 else 0.12)) ** 2)) + 1e-6)
            value.append(np.einsum("ij,jyx->iyx", backs[i, :, :2], np.stack([x, y])) + backs[i, :, 2][:, None, None])
        w = np.stack(weight)
        gate = np.clip((w.max(0) - 0.15) / 0.15, 0, 1)
        w /= w.sum(0)
        return np.concatenate([np.einsum("pyx,pdyx->dyx", w, np.stack(value)) - value[0], gate[None]])
    if part not in (PART["head"], PART["left_hand"], PART["right_hand"]):
        return None
    there = pose.face[0] if part == 0 else pose.points[0, part]
    here = refs.face[k] if part == 0 else refs.points[k, part]
    ok = np.isfinite(there).all(1) & np.isfinite(here).all(1)
    if ok.sum() < 15:
        return None
    residual = here[ok] - (there[ok] @ backs[part, :, :2].T + backs[part, :, 2])
    limit = 0.25 * RADII[part] * refs.scale[k]
    residual *= np.minimum(1, limit / np.maximum(np.linalg.norm(residual, axis=1, keepdims=True), 1e-6))
    sigma = (0.35 if part == 0 else 0.2) * RADII[part] * pose.scale[0]
    ex = np.exp(-0.5 * ((gx[:, None] - there[ok][None, :, 0]) / sigma) ** 2)
    ey = np.exp(-0.5 * ((gy[:, None] - there[ok][None, :, 1]) / sigma) ** 2)
    both = ey[:, None] * ex[None]  # (n, n, C)
    field = (both @ residual).transpose(2, 0, 1) / (both.sum(-1) + 0.5)
    return np.concatenate([field, np.ones((1, n, n))])


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
            layer_piece = _sample(cutouts, piece, x, y, (x0, y0, x1, y1), zoom)
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


def _sample(
    cutouts: Cutouts, piece: Piece, x: torch.Tensor, y: torch.Tensor, box: tuple[int, int, int, int], zoom: float
) -> torch.Tensor:
    """A piece at output pixels x, y (inside `box`): (4, h, w) premultiplied by alpha and by the piece's weight."""
    texture = cutouts.textures[piece.part]
    h, w = (n * cutouts.shrink for n in texture.shape[2:])
    origin, back = cutouts.origins[piece.part, piece.ref], piece.back
    u = (back[0, 0] / zoom) * x + (back[0, 1] / zoom) * y + float(back[0, 2] - origin[0])
    v = (back[1, 0] / zoom) * x + (back[1, 1] / zoom) * y + float(back[1, 2] - origin[1])
    grid = torch.stack([u * (2 / w) - 1, v * (2 / h) - 1], -1)[None]
    gate: torch.Tensor | float = 1.0
    if piece.bend is not None:
        bend = torch.from_numpy(piece.bend).to(grid)[None] * grid.new_tensor([2 / w, 2 / h, 1])[:, None, None]
        px0, py0, px1, py1 = piece.box
        across = (torch.arange(box[0], box[2], device=grid.device, dtype=grid.dtype) + 0.5) / zoom
        down = (torch.arange(box[1], box[3], device=grid.device, dtype=grid.dtype) + 0.5) / zoom
        at_x = (across - px0) * (2 / (px1 - px0)) - 1
        at_y = (down - py0) * (2 / (py1 - py0)) - 1
        at = torch.stack([at_x.expand(len(at_y), -1), at_y[:, None].expand(-1, len(at_x))], -1)[None]
        bent = F.grid_sample(bend, at, mode="bilinear", padding_mode="border", align_corners=False)
        grid = grid + bent[:, :2].permute(0, 2, 3, 1)
        gate = bent[0, 2:]
    out = F.grid_sample(
        texture[piece.ref][None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    return torch.cat([out[:3] * out[3:], out[3:]]) * (gate * piece.weight)


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
