"""Where a body's parts are, and the transforms that carry them from one pose to another. NumPy on a few points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ..skeleton import BONES, FACE_POINTS, PARENT, PART, PARTS
from ..types import PoseTrack

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
# Radius (in radii of the part) around the upper end of its bone in which a part and the one it hangs on overlap.
JOINT = {"left_upper_leg": 1.7, "right_upper_leg": 1.7, "left_upper_arm": 0.8, "right_upper_arm": 0.8, "head": 0.9}
SKIRT = len(PARTS)
"""Index of the extra layer beneath all parts: torso and upper legs in one piece, bent smoothly, so that no skirt, hem
or crotch is torn between rigid parts."""
FAR = 4.0
"""Distance from its bone, in radii of the part, at which nothing belongs to it any more."""
HIPS = (PART["torso"], PART["left_upper_leg"], PART["right_upper_leg"])
HAND = 1.15
"""How much larger than the body a hand gets, at most: a fist is no open hand when it is drawn twice as large."""
LIMBS = tuple(i for i, p in enumerate(PARTS) if "arm" in p or "leg" in p)


@dataclass(frozen=True)
class Skeleton:
    """The geometry of N poses that the parts need, in pixels (NumPy float64).

    bones    (N, P, 2, 3): both ends of each part's bone, x, y, z.
    points   (N, P, 21, 2): control points of head, torso, hands and feet; NaN where a part has fewer or none was found.
    scale    (N,): pixels per metre of the body, free of foreshortening.
    features (N, P, 11): what a part looks like from here; references are compared by it.
    visible  (N, P): 0..1.
    face     (N, 468, 2): the face mesh, for the residual field; NaN where no face was found.
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


def along(x: Float, y: Float, a: Float, b: Float) -> tuple[Float, Float]:
    """Where points lie beside the line segments from `a` to `b` (..., 2): how far along, 0..1, and at what distance."""
    d = b - a
    a_x, a_y, d_x, d_y = a[..., 0], a[..., 1], d[..., 0], d[..., 1]
    s = np.clip(((x - a_x) * d_x + (y - a_y) * d_y) / np.maximum(d_x * d_x + d_y * d_y, 1e-6), 0, 1)
    return s, np.hypot(x - a_x - s * d_x, y - a_y - s * d_y)


def _unit(v: Float) -> Float:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-6)


def body_scale(body: Float) -> Float:
    """Pixels per metre of each pose (T, 33, 4), (T,): the lengths of trunk and legs in three dimensions against an
    adult's. Needs the calibrated z of `PoseTrack`; foreshortening then cancels. What was not found (NaN) is left out;
    NaN where nothing was."""
    length, metres = np.zeros(len(body)), np.zeros(len(body))
    for a, b, m in RULERS:
        found = np.linalg.norm(body[:, a, :3] - body[:, b, :3], axis=1)
        known = np.isfinite(found)
        length += np.where(known, found, 0.0)
        metres += np.where(known, m, 0.0)
    return np.maximum(np.where(metres > 0, length / np.maximum(metres, 1e-9), np.nan), 1.0)


SEEN = 0.5
"""The visibility above which an estimator's wrist is believed where its elbow is outside of the picture."""


def skeletons(track: PoseTrack) -> Skeleton:
    """The skeletons of all poses of a track (whose bodies must be finite: fill gaps first)."""
    body = track.body.astype(np.float64)
    scale = body_scale(body)
    xyz, vis = _with_arms_outside(body, track), np.nan_to_num(body[..., 3])
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
    return Skeleton(bones, points, scale, features, visible, track.face[:, :FACE_POINTS, :2].astype(np.float64))


def _with_arms_outside(body: Float, track: PoseTrack) -> Float:
    """Joints (N, 33, 3) of bodies (N, 33, 4). Of an arm that leaves the picture at the elbow, estimators make the rest
    up, inside of it as often as not: where neither a hand was found nor the wrist is likely to be seen, it is straight.
    """
    xyz = body[..., :3].copy()
    for side in (0, 1):
        shoulder, elbow, *rest = range(11 + side, 23, 2)
        outside = ((xyz[:, elbow, :2] < 0) | (xyz[:, elbow, :2] > track.size)).any(1)
        unseen = ~(body[:, rest[0], 3] > SEEN) & ~np.isfinite(track.hands[:, side]).all((1, 2))
        rows = np.flatnonzero(outside & unseen)[:, None]
        straight = 2 * xyz[rows, elbow] - xyz[rows, shoulder]
        xyz[rows, rest] += straight - xyz[rows, rest[0]]
    return xyz


def affines(source: Skeleton, target: Skeleton) -> Float:
    """The affine transforms that carry each part of N source poses onto each of M target poses.

    Limbs: the bone onto the bone, exactly; across the bone the scale of the body (so that a limb that points at the
    camera gets shorter, not thinner). Head, torso, hands, feet: least squares over their control points, drawn towards
    a similarity where the points do not determine an affine transform; hands grow by `HAND` against the body at most.

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
        if PARTS[i].endswith("hand"):
            fitted = _no_larger(fitted, HAND * ratio)
        enough = w.sum(-1) >= 2
        linear[:, :, i] = np.where(enough[..., None, None], fitted, linear[:, :, i])
        moved = c_t - np.einsum("mnij,mnj->mni", fitted, c_s)
        offset[:, :, i] = np.where(enough[..., None], moved, offset[:, :, i])
    return np.concatenate([linear, offset[..., None]], -1)


def _no_larger(linear: Float, limit: Float) -> Float:
    """Linear maps (..., 2, 2) that stretch nothing by more than `limit` (...); NaN stays NaN."""
    known = np.isfinite(linear).all((-2, -1))[..., None, None] & np.isfinite(limit)[..., None, None]
    left, stretch, right = np.linalg.svd(np.where(known, linear, 0))
    return np.where(known, left * np.minimum(stretch, limit[..., None])[..., None, :] @ right, linear)


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
