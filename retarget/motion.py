"""PoseTrack → PoseTrack: gaps filled, jitter smoothed, one body's motion fitted to another's body and place.

Pure functions of NumPy arrays. The fit follows one idea: a pose is a tree of bone vectors in pixels. Each vector keeps
its direction and its foreshortening and is multiplied by the ratio of the two people's true lengths of that bone; the
tree is then put where the avatar stands, its lowest point as high above the avatar's floor as the driver's is above
theirs. Nothing is an angle, so lying, crouching and standing on the hands are no special cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .pose import Motion
from .pose.base import pixels_per_metre, unknown
from .pose.base import seen as seen_of
from .skeleton import FACE_JOINTS, FACE_POINTS, HAND_POINTS, JOINTS, J
from .types import Array, PoseTrack, Progress, Silent

Float = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

WRISTS: Final = (J["left_wrist"], J["right_wrist"])
NOSE: Final = J["nose"]
HIPS: Final = (J["left_hip"], J["right_hip"])
SHOULDERS: Final = (J["left_shoulder"], J["right_shoulder"])
EARS: Final = (J["left_ear"], J["right_ear"])
FEET: Final = tuple(J[f"{side}_{name}"] for side in ("left", "right") for name in ("heel", "foot_index"))
CORE: Final = tuple(J[f"{s}_{n}"] for s in ("left", "right") for n in ("shoulder", "hip", "knee", "ankle", "ear"))

_Ends = tuple[tuple[int, ...], tuple[int, ...]]


def _both(a: str, b: str) -> tuple[_Ends, ...]:
    return tuple(((J[f"{s}_{a}"],), (J[f"{s}_{b}"],)) for s in ("left", "right"))


SEGMENTS: Final[dict[str, tuple[_Ends, ...]]] = {
    "hips": (((HIPS[1],), (HIPS[0],)),),
    "shoulders": (((SHOULDERS[1],), (SHOULDERS[0],)),),
    "spine": ((HIPS, SHOULDERS),),
    "neck": ((SHOULDERS, EARS),),
    "upper_arm": _both("shoulder", "elbow"),
    "lower_arm": _both("elbow", "wrist"),
    "upper_leg": _both("hip", "knee"),
    "lower_leg": _both("knee", "ankle"),
    "foot": _both("heel", "foot_index"),
}
"""Bones whose lengths are compared; each a line from the mean of some joints to the mean of others, left and right."""
BONE: Final = {name: i for i, name in enumerate(SEGMENTS)}


# ---------------------------------------------------------------------------------------------------------------- gaps


LONGEST: Final = 0.5
"""Seconds of a gap that is interpolated."""


def fill_gaps(track: PoseTrack, longest: float = LONGEST) -> PoseTrack:
    """`track` without gaps in the body: the pose is finite in every picture, provided it was found in one.

    Gaps of at most `longest` seconds between two poses are interpolated linearly; longer ones, and those at the ends,
    hold the nearest pose. Hands and face are filled, relative to wrist and nose, only where the gap is at most
    `longest`; else they stay NaN. `missed` is kept.
    """
    if not track.found.any() or not len(track):
        return track
    most = int(longest * track.fps)
    body, world = _filled(track.body, most, hold=True), _filled(track.world, most, hold=True)
    wrists = body[:, WRISTS, None, :3] * _XY
    hands = track.hands
    if np.isfinite(hands[:, :, 0, 0]).any():
        hands = np.stack([_attached(hands[:, i], wrists[:, i], most) for i in (0, 1)], axis=1)
    return replace(track, body=body, world=world, hands=hands, face=_attached(track.face, _nose(body), most))


_XY: Final = np.array([1, 1, 0], np.float32)


def _nose(body: Array) -> Array:
    """(T, 1, 3) what the face mesh is attached to."""
    return body[:, None, NOSE, :3] * _XY


def _attached(points: Array, anchor: Array, most: int) -> Array:
    """Points (T, N, 3) with gaps of at most `most` rows filled, relative to `anchor` (T, 1, 3)."""
    if not np.isfinite(points[:, 0, 0]).any():
        return points
    filled = _filled(points - anchor, most, hold=False) + anchor
    # What was found stays as it was to the bit.
    return np.where(np.isfinite(points), points, filled).astype(np.float32)


def _filled(values: Array, most: int, *, hold: bool) -> Array:
    """`values` (T, ...) with rows that hold a NaN filled from the rows around them, see `fill_gaps`.

    hold: whether gaps longer than `most` rows take the nearest row; else they stay NaN.
    """
    flat = values.reshape(len(values), -1)
    good = np.flatnonzero(np.isfinite(flat).all(axis=1))
    if len(good) in (0, len(flat)):
        return values
    rows = np.arange(len(flat))
    right = np.searchsorted(good, rows).clip(max=len(good) - 1)  # the first good row from here on
    left = (np.searchsorted(good, rows, side="right") - 1).clip(min=0)
    a, b = good[left], good[right]
    inside = (a <= rows) & (rows <= b)
    length = np.where(inside, b - a - 1, np.maximum(np.abs(rows - a), np.abs(rows - b)))
    ends = ~inside  # before the first or after the last good row: the gap is as long as that end
    length[rows < good[0]] = good[0]
    length[rows > good[-1]] = len(flat) - 1 - good[-1]
    share = np.where(b > a, (rows - a) / np.maximum(b - a, 1), 0.0)
    share = np.where((length > most) & ~ends, np.rint(share), share)[:, None]
    out, gaps = flat.copy(), np.setdiff1d(rows, good)
    out[gaps] = flat[a[gaps]] * (1 - share[gaps]) + flat[b[gaps]] * share[gaps]
    if not hold:
        out[length > most] = np.nan
    return out.reshape(values.shape)


# ----------------------------------------------------------------------------------------------------------- smoothing


def smooth(track: PoseTrack, strength: float) -> PoseTrack:
    """`track` without jitter: One-Euro filter (Casiez, Roussel, Vogel 2012) run forwards and backwards and averaged.

    Averaging both directions cancels the lag. Hands and face are filtered relative to wrist and nose, so that they stay
    attached. All thresholds are relative to the body's height and to seconds: neither the size of the picture nor the
    frame rate matters. Visibility stays as it is.

    Args:
        strength: 0 (untouched: the same object is returned) to 1 (strongest).
    """
    height = 1.65 * _scale(track)
    if strength <= 0 or len(track) < 2 or not np.isfinite(height) or height <= 0:
        return track

    def filtered(values: Array, size: float = height) -> Array:
        return _calmed(values, track.fps, strength, size)

    body = np.concatenate([filtered(track.body[..., :3]), track.body[..., 3:]], axis=2)
    wrists = track.body[:, WRISTS, None, :3] * _XY
    hands, face = track.hands, track.face
    if np.isfinite(hands[:, :, 0, 0]).any():
        hands = np.stack([filtered(hands[:, i] - wrists[:, i]) for i in (0, 1)], axis=1)
        hands += body[:, WRISTS, None, :3] * _XY
    if np.isfinite(face[:, 0, 0]).any():
        face = filtered(face - _nose(track.body)) + _nose(body)
    return replace(track, body=body, world=filtered(track.world, 1.65), hands=hands, face=face)


def _calmed(values: Array, fps: Fraction, strength: float, size: float) -> Array:
    """Points (T, ..., 3) of a body of height `size`, filtered over time."""
    strength = min(float(strength), 1.0)
    return _one_euro(values, float(fps), lowest=0.7 / strength, beta=7.0 / strength / size)


def _one_euro(values: Array, fps: float, lowest: float, beta: float, derivative_cutoff: float = 1.0) -> Array:
    """The One-Euro filter over time, forwards and backwards, averaged. `values`: (T, ..., D) points; NaN restarts it.

    The cut-off is `lowest` + `beta` · speed (eq. 5), in Hz; the speed is the point's, the same for its D coordinates.
    """
    there = _OneEuro(values.shape[1:], fps, lowest, beta, derivative_cutoff)
    back = copy(there)
    blocks, begun = list(_blocks(len(values), 1024)), []
    for rows in blocks:
        begun.append(copy(there))
        if rows != blocks[-1]:
            for now in values[rows]:
                there(now)
    out = np.empty(values.shape, np.float32)
    for rows, there in zip(reversed(blocks), reversed(begun), strict=True):  # forwards again, with little memory
        forwards = [there(now) for now in values[rows]]
        for i, one in zip(reversed(range(len(values))[rows]), reversed(forwards), strict=True):
            out[i] = (one + back(values[i])) / 2
    return out


class _OneEuro:
    """The filter in one direction, a picture at a time."""

    def __init__(
        self, shape: tuple[int, ...], fps: float, lowest: float, beta: float, derivative_cutoff: float
    ) -> None:
        self._fps, self._lowest, self._beta = fps, lowest, beta
        self._slow = _alpha(np.asarray(derivative_cutoff), fps)
        self._last: Float = np.full(shape, np.nan)
        self._slope: Float = np.zeros(shape)

    def __call__(self, values: Array) -> Float:
        now, last = values.astype(np.float64), self._last
        fresh = ~np.isfinite(last)
        step = np.where(fresh, 0.0, (now - np.where(fresh, 0.0, last)) * self._fps)
        slope = self._slope + self._slow * (np.nan_to_num(step) - self._slope)
        self._slope = np.where(fresh | ~np.isfinite(step), 0.0, slope)
        speed = np.linalg.norm(self._slope, axis=-1, keepdims=True)
        alpha = _alpha(self._lowest + self._beta * speed, self._fps)
        self._last = np.where(fresh | ~np.isfinite(now), now, last + alpha * (now - last))
        return self._last


def _alpha(cutoff: Float, fps: float) -> Float:
    """The smoothing factor of a cut-off frequency (eq. 6)."""
    return 1 / (1 + fps / (2 * np.pi * cutoff))


# ---------------------------------------------------------------------------------------------------------------- body


@dataclass(frozen=True)
class Body:
    """A person's body and place, measured over a track or some pictures; all lengths in pixels of `size`.

    size        (width, height) of the pictures.
    scale       pixels per metre of mediapipe's world coordinates (a person's median distance to the camera).
    lengths     (9,) true lengths of the bones in `SEGMENTS`, not foreshortened; NaN where too little of it was seen.
    floor       y of the floor: the lowest point of the body, robustly; NaN when the feet are not seen.
    centre      x of mid hip.
    shoulder    y of mid shoulder.
    lower       share of the pictures in which hips, knees, ankles are seen (3,).
    rest        (33, 4) the median pose, relative to mid hip, with visibility.
    head        (11, 3) the head's joints relative to mid ear, in the attitude of the face.
    face        (468 or 478, 3) the face mesh relative to mid ear, in the most frontal attitude seen; None: none was.
    turn        (2, 2) lowest and highest turn of the head seen, relative to `head`: yaw, pitch, in degrees.
    """

    size: tuple[int, int]
    scale: float
    lengths: Array
    floor: float
    centre: float
    shoulder: float
    lower: Array
    rest: Array
    head: Array
    face: Array | None
    turn: Array

    def scaled(self, size: tuple[int, int]) -> Body:
        """The body in pictures resized to `size` (same aspect)."""
        s = size[1] / self.size[1]
        return replace(
            self,
            size=size,
            scale=self.scale * s,
            lengths=self.lengths * np.float32(s),
            floor=self.floor * s,
            centre=self.centre * s,
            shoulder=self.shoulder * s,
            rest=self.rest * np.array([s, s, s, 1], np.float32),
            head=self.head * np.float32(s),
            face=None if self.face is None else self.face * np.float32(s),
        )


def body_of(track: PoseTrack) -> Body:
    """Measures a person: over a whole track, or over a few references, even one.

    Raises ValueError when nobody was found in any picture.
    """
    if not track.found.all():
        track = track.select(np.flatnonzero(track.found))
    if not len(track):
        raise ValueError("no pose to measure a body by")
    points = track.body[..., :3]
    seen = seen_of(track)
    scales = pixels_per_metre(track)
    scale = float(np.median(scales))
    middle = points[:, HIPS].astype(np.float64).mean(axis=1)
    low = points[..., 1].max(axis=1).astype(np.float64)
    pairs = [[J[f"left_{n}"], J[f"right_{n}"]] for n in ("hip", "knee", "ankle")]
    lower = np.array([(seen[:, pair].min(axis=1) > 0.5).mean() for pair in pairs], np.float32)
    standing = seen[:, FEET].max(axis=1) > 0.5
    rest = [np.median((points[:, j] - middle) * (scale / scales)[:, None], axis=0) for j in range(len(JOINTS))]
    head, face, turn = _head(track, scale / scales)
    return Body(
        size=track.size,
        scale=scale,
        lengths=_lengths(track, seen, scales, scale),
        floor=float(np.percentile(low[standing], 75)) if standing.mean() > 0.3 else float("nan"),
        centre=float(np.median(middle[:, 0])),
        shoulder=float(np.median(points[:, SHOULDERS, 1].astype(np.float64).mean(axis=1))),
        lower=lower,
        rest=np.c_[rest, np.median(track.body[..., 3], axis=0)].astype(np.float32),
        head=head,
        face=face,
        turn=turn,
    )


def _scale(track: PoseTrack) -> float:
    """The track's median of `pixels_per_metre`; NaN when nobody was found."""
    scales = pixels_per_metre(track)
    scales = scales[np.isfinite(scales)]
    return float(np.median(scales)) if len(scales) else float("nan")


def _segment(points: Float, ends: _Ends) -> Float:
    """(T, 33, D) → (T, D): the bone's vector."""
    a, b = (points[:, joints].astype(np.float64).mean(axis=1) for joints in ends)
    vector: Float = b - a
    return vector


def _lengths(track: PoseTrack, seen: Float, scales: Float, scale: float) -> Array:
    """(9,) bone lengths in pixels at `scale`: 2D lengths with the foreshortening that the world coordinates tell taken
    out, the weighted 60 % quantile over time and both sides. Pictures count by visibility and by how little the bone is
    foreshortened."""
    flat, world = track.body[..., :2], track.world
    out = np.full(len(SEGMENTS), np.nan, np.float32)
    for n, sides in enumerate(SEGMENTS.values()):
        lengths, weights = [], []
        for ends in sides:
            tilted = _segment(world, ends)
            cosine = np.linalg.norm(tilted[:, :2], axis=1) / np.maximum(np.linalg.norm(tilted, axis=1), 1e-9)
            joints = [*ends[0], *ends[1]]
            lengths.append(np.linalg.norm(_segment(flat, ends), axis=1) / np.maximum(cosine, 0.1) / scales)
            weights.append(np.where(cosine > 0.4, cosine**4, 0) * np.where(seen[:, joints].min(axis=1) > 0.3, 1, 0))
        weight = np.concatenate(weights)
        if weight.sum() > 0.02 * len(weight):
            out[n] = _quantile(np.concatenate(lengths), weight, 0.6) * scale
    return out


def _quantile(values: Float, weights: Float, share: float) -> float:
    """The weighted quantile, interpolated between the middles of the steps."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    middle = (np.cumsum(weights) - weights / 2) / weights.sum()
    return float(np.interp(share, middle, values))


# ---------------------------------------------------------------------------------------------------------------- head

SIDES: Final = (234, 454)
"""Points of the face mesh in front of the right and the left ear."""
NOSE_BASE, FOREHEAD, CHIN = 2, 10, 152
MARKS: Final = [*SIDES, FOREHEAD, CHIN]
"""Points of the face mesh that tell where it looks."""


def _head(track: PoseTrack, size: Float) -> tuple[Array, Array | None, Array]:
    """Templates of the head's joints and of the face mesh, and the range of turns, from a track of found poses.

    size: (T,) factors that bring each picture to the body's median scale.
    """
    joints = _head_joints(track) * size[:, None, None]
    faces = np.flatnonzero(np.isfinite(track.face).all(axis=(1, 2)))
    turn = np.zeros((2, 2), np.float32)
    if len(faces):
        mesh = _mesh(track)[faces] * size[faces, None, None]
        facing = _facing(mesh[:, MARKS])
        best = np.argsort(-facing)[: max(1, min(9, len(faces) // 3))]
        frontal = mesh[best[0]]
        rotation = rotations(frontal[_firm(frontal)], mesh[:, _firm(frontal)])
        back = rotation.transpose(0, 2, 1)  # each picture's attitude → the template's
        face = np.median(np.einsum("tij,tnj->tni", back[best], mesh[best]), axis=0)
        head = np.median(np.einsum("tij,tnj->tni", back[best], joints[faces][best]), axis=0)
        angles = np.stack(_yaw_pitch(rotation), axis=1)
        turn = np.percentile(angles, [2, 98], axis=0).T.astype(np.float32)
        return head.astype(np.float32), face.astype(np.float32), turn
    return np.median(joints, axis=0).astype(np.float32), None, turn


def _head_joints(track: PoseTrack) -> Float:
    """(T, 11, 3) the head's joints relative to mid ear."""
    joints = track.body[:, FACE_JOINTS, :3].astype(np.float64)
    return joints - joints[:, EARS].mean(axis=1, keepdims=True)


def _mesh(track: PoseTrack) -> Float:
    """(T, N, 3) the face mesh: x, y relative to the body's mid ear, z relative to the mesh's own sides."""
    mesh = track.face.astype(np.float64)
    ear = track.body[:, EARS, :3].astype(np.float64).mean(axis=1)
    ear[:, 2] = mesh[:, SIDES, 2].mean(axis=1)
    return mesh - ear[:, None]


def _facing(marks: Float) -> Float:
    """(T,) how far face meshes, given by their `MARKS`, look into the camera: the cosine of the angle, 1 straight, -1
    away."""
    across, down = marks[:, 1] - marks[:, 0], marks[:, 3] - marks[:, 2]
    inward = np.cross(across, down)  # x right, y down, z away from the camera
    cosine: Float = inward[:, 2] / np.maximum(np.linalg.norm(inward, axis=1), 1e-9)
    return cosine


def _firm(mesh: Float) -> npt.NDArray[np.intp]:
    """The points of a frontal mesh above the mouth, which speech and smiles hardly move; irises are none."""
    down = mesh[CHIN] - mesh[FOREHEAD]
    return np.flatnonzero((mesh[:FACE_POINTS] - mesh[NOSE_BASE]) @ down < 0)


def rotations(template: Float, points: Float) -> Float:
    """(T, 3, 3): the rotations that turn `template` (N, 3) into `points` (T, N, 3), about their means (Kabsch 1976)."""
    a = template - template.mean(axis=0)
    b = points - points.mean(axis=1, keepdims=True)
    bad = ~np.isfinite(b).all(axis=(1, 2))
    h = np.einsum("tni,nj->tij", np.where(bad[:, None, None], a, b), a)
    return _nearest_rotation(h)


def _nearest_rotation(matrices: Float) -> Float:
    """The rotation closest to each matrix (..., 3, 3)."""
    u, _, vt = np.linalg.svd(matrices)
    flip = np.linalg.det(u @ vt)
    u[..., :, 2] *= np.sign(flip)[..., None]
    nearest: Float = u @ vt
    return nearest


def _yaw_pitch(rotation: Float) -> tuple[Float, Float]:
    """Yaw and pitch (degrees) of where rotations (T, 3, 3) turn the direction towards the camera (0, 0, -1)."""
    forward = -rotation[:, :, 2]
    yaw = np.degrees(np.arctan2(forward[:, 0], -forward[:, 2]))
    pitch = np.degrees(np.arcsin(np.clip(forward[:, 1], -1, 1)))
    return yaw, pitch


def _toward(yaw: Float, pitch: Float) -> Float:
    """(T, 3, 3): the rotation by pitch about x, then by yaw about y; `_yaw_pitch` is its inverse."""
    a, b = np.radians(yaw), np.radians(pitch)
    forward = np.stack([np.sin(a) * np.cos(b), np.sin(b), -np.cos(a) * np.cos(b)], axis=1)
    right = np.stack([np.cos(a), np.zeros_like(a), np.sin(a)], axis=1)
    down = np.cross(-forward, right)
    return np.stack([right, down, -forward], axis=2)


def _limited(rotation: Float, turn: Array, beyond: float = 35.0) -> Float:
    """Rotations with yaw and pitch kept within the range `turn` and `beyond` degrees more; roll is free.

    The last 15 degrees before the limit are compressed, so that a turning head slows down and does not stop dead.
    """
    yaw, pitch = _yaw_pitch(rotation)
    roll = _toward(yaw, pitch).transpose(0, 2, 1) @ rotation  # what is left: a turn about the line of sight
    allowed = []
    for angle, (low, high) in zip((yaw, pitch), turn, strict=True):
        middle, half = (low + high) / 2, (high - low) / 2 + beyond
        allowed.append(middle + soft(angle - middle, half - 15, half + 10).clip(-half, half))
    return _toward(*allowed) @ roll


def soft(values: Float, free: float | Float, limit: float | Float) -> Float:
    """`values` untouched within ±`free`, beyond compressed smoothly towards ±`limit`."""
    room = np.maximum(limit - free, 1e-6)
    over = np.abs(values) - free
    return np.where(over <= 0, values, np.sign(values) * (free + room * np.tanh(np.maximum(over, 0) / room)))


class _Meshes(NamedTuple):
    """What the fit needs to know of the driver's face meshes.

    found   (T,) bool: the pictures that have one.
    turn    (T, 3, 3) rotations relative to the avatar's template.
    middle  (T, 3) mean of the firm points, float64.
    spread  (T,) root of their summed squared distances from it.
    """

    found: Mask
    turn: Float
    middle: Float
    spread: Float

    @staticmethod
    def of(face: Array, template: Array | None) -> _Meshes:
        found = np.isfinite(face).all(axis=(1, 2))
        if template is None:
            none = np.full((len(face), 3), np.nan)
            return _Meshes(found, np.broadcast_to(np.eye(3), (len(face), 3, 3)), none, none[:, 0])
        firm = _firm(template.astype(np.float64))
        mesh = face[:, firm].astype(np.float64)
        middle = mesh.mean(axis=1)
        spread = np.sqrt(((mesh - middle[:, None]) ** 2).sum(axis=(1, 2)))
        return _Meshes(found, rotations(template[firm].astype(np.float64), mesh), middle, spread)


def _attitude(track: PoseTrack, meshes: _Meshes, body: Body, fps: float) -> tuple[Float, Float, Mask]:
    """How the driver's head is turned and where it is.

    Returns:
        (T, 3, 3) the rotation relative to the avatar's templates; (T, 3) the place of mid ear in the driver's picture;
        (T,) bool: whether the face can be seen.

    From the face mesh where it is found, which is steadier than the body's ears; else from the head's joints, corrected
    by how the two differ nearby in time, so that nothing jumps where the mesh comes and goes.
    """
    head = body.head.astype(np.float64)
    joints = _head_joints(track)
    coarse, ear = rotations(head, joints), track.body[:, EARS, :3].astype(np.float64).mean(axis=1)
    has_mesh, fine = meshes.found, meshes.turn
    if body.face is None or not has_mesh.any():
        return coarse, ear, has_mesh
    template = body.face[_firm(body.face.astype(np.float64))].astype(np.float64)
    size = np.nanmedian(meshes.spread) / np.sqrt(((template - template.mean(axis=0)) ** 2).sum())
    steady = meshes.middle - size * fine @ template.mean(axis=0)
    steady[:, 2] = ear[:, 2]

    trust = np.exp(-_distance(np.arange(len(track)), np.flatnonzero(has_mesh)) / (0.3 * fps))
    turn_off = _patched(np.where(has_mesh[:, None, None], fine @ coarse.transpose(0, 2, 1), np.nan), trust)
    turned = np.where(has_mesh[:, None, None], fine, _nearest_rotation(turn_off) @ coarse)
    place_off = _patched(np.where(has_mesh[:, None], steady - ear, np.nan), trust)
    place = np.where(has_mesh[:, None], steady, ear + place_off)
    # The mesh of a face that was not found is shown only where it must be visible.
    front = _facing(np.einsum("tij,nj->tni", turned, body.face[MARKS].astype(np.float64)))
    return turned, place, has_mesh | (front > np.cos(np.radians(50)))


def _patched(values: Float, trust: Float) -> Float:
    """`values` (T, ...) with rows of NaN filled: near known rows like these (`trust` (T,) 1), far away their median."""
    usual = np.nanmedian(values, axis=0)
    near = _filled(values.astype(np.float32), len(values), hold=True).astype(np.float64)
    weight = trust.reshape(-1, *[1] * (values.ndim - 1))
    patched: Float = weight * near + (1 - weight) * usual
    return patched


def _distance(rows: npt.NDArray[np.integer], known: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """How far each row is from the nearest known one; both rising."""
    right = np.searchsorted(known, rows).clip(max=len(known) - 1)
    left = (right - 1).clip(min=0)
    return np.minimum(np.abs(known[left] - rows), np.abs(known[right] - rows))


# ----------------------------------------------------------------------------------------------------------------- fit


def fit(track: PoseTrack, body: Body, *, size: tuple[int, int], progress: Progress | None = None) -> PoseTrack:
    """The driver's motion danced by the avatar's body in the avatar's place (`--align auto`).

    - Bones get the avatar's lengths; directions and foreshortening stay the driver's. The head is the avatar's own
      (joints and face mesh), turned like the driver's, as far as the avatar was seen to turn and 35 degrees more.
    - The lowest point of the body is as high above the avatar's floor, in leg lengths, as the driver's above theirs.
      Without the avatar's feet the shoulders take the floor's place.
    - Steps sideways keep their length in body sizes; the travel is shifted or compressed when the body would leave
      the picture. Walking nearer or farther changes the size by at most a third.
    - Legs that the driver's pictures do not show are the avatar's own, standing.

    Args:
        track: the driver's, gaps filled; rows of NaN stay NaN.
        body: the avatar's.
        size: (width, height) of the avatar's picture in the result.
        progress: told what had to be made up.
    """
    body = body if body.size == size else body.scaled(size)
    if not track.found.any():
        return replace(track, size=size)
    fitted = _fitted(track, _Meshes.of(track.face, body.face), body, progress or Silent())
    face, hands = fitted.details(slice(None), track.hands)
    return replace(track, body=fitted.body, world=fitted.world(track.world), face=face, hands=hands, size=size)


class _Fitted(NamedTuple):
    """What `fit` makes of a track: small at once, large a piece at a time.

    body     (T, 33, 4).
    details  some pictures, and the driver's hands there (n, 2, 21, 3) → face meshes, as the avatar's, and hands.
    world    the driver's world coordinates (T, 33, 3) → the fitted ones.
    """

    body: Array
    details: Callable[[slice, Array], tuple[Array, Array]]
    world: Callable[[Array], Array]


def _fitted(track: PoseTrack, meshes: _Meshes, body: Body, say: Progress) -> _Fitted:
    """See `fit`; of the track the body and the world coordinates are looked at."""
    mine, fps = body_of(replace(track, face=unknown(len(track), FACE_POINTS))), float(track.fps)
    ratio = _ratios(body, mine)
    points = track.body[..., :3]
    hidden = _hidden(mine, body)
    if hidden:
        say.warn(f"The driving video hardly shows the {' and '.join(hidden)}; there the avatar keeps its own pose.")

    nearer = np.log(np.maximum(_calm(pixels_per_metre(track), fps), 1e-6) / mine.scale)
    if "hips" in hidden:
        nearer[:] = 0  # a head and shoulders do not tell it
    near = _nearest(body)
    kept = np.where(nearer > 0, soft(nearer, 0.6 * near, near), soft(nearer, 0.18, 0.3))
    grow = np.exp(kept - nearer)[:, None, None]  # 1 while the distance hardly changes
    shown = np.exp(kept)[:, None, None]
    own = track.body.copy()
    posed = own[..., :3]
    for rows in _blocks(len(track)):
        tree = _tree(points[rows].astype(np.float64), ratio, grow[rows])
        posed[rows] = _made_up(tree, body, hidden, shown[rows])

    turned, pivot, visible = _attitude(track, meshes, body, fps)
    turned = _limited(turned, body.turn)
    shoulders = points[:, SHOULDERS].astype(np.float64).mean(axis=1, keepdims=True)
    neck = (pivot[:, None] - shoulders) * ratio[BONE["neck"]] * grow
    ear = posed[:, SHOULDERS].astype(np.float64).mean(axis=1, keepdims=True) + neck
    posed[:, FACE_JOINTS] = ear + shown * np.einsum("tij,nj->tni", turned, body.head.astype(np.float64))

    leg = (ratio[BONE["upper_leg"]] + ratio[BONE["lower_leg"]]) / 2 * grow[:, 0, 0]
    place = _place(points, posed, body, mine, leg, kept, hidden, fps)
    posed[..., :2] += place[:, None]
    ear[..., :2] += place[:, None]

    for name in hidden:
        own[:, _PARTS[name], 3] = body.rest[_PARTS[name], 3]
    before, after = (xyz[:, WRISTS, None].astype(np.float64) * _XY for xyz in (points, posed))

    def details(rows: slice, hands: Array) -> tuple[Array, Array]:
        hand = ratio[BONE["lower_arm"]] * grow[rows, None]
        hands = ((hands - before[rows]) * hand + after[rows]).astype(np.float32)
        if body.face is None:
            return np.full((len(hands), FACE_POINTS, 3), np.nan, np.float32), hands
        mesh = shown[rows] * np.einsum("tij,nj->tni", turned[rows], body.face.astype(np.float64)) + ear[rows] * _XY
        return np.where(visible[rows, None, None], mesh, np.nan).astype(np.float32), hands

    def world(metres: Array) -> Array:
        tree = _tree(metres.astype(np.float64), ratio * mine.scale / body.scale, np.ones((1, 1, 1)))
        return tree.astype(np.float32)

    return _Fitted(own, details, world)


def _blocks(count: int, size: int = 4096) -> Iterator[slice]:
    """Rows, a block at a time: what is made in between stays small for tracks of any length."""
    yield from (slice(i, i + size) for i in range(0, count, size))


def _ratios(body: Body, mine: Body) -> Float:
    """(9,) avatar's bone lengths over the driver's; where one was not seen, the median of the others."""
    ratio = (body.lengths / np.maximum(mine.lengths, 1e-3)).astype(np.float64)
    known = ratio[np.isfinite(ratio)]
    whole = float(np.median(known)) if len(known) else _extent(body) / max(_extent(mine), 1e-3)
    ratio[~np.isfinite(ratio)] = whole
    return ratio.clip(0.7 * whole, 1.4 * whole)


def _extent(body: Body) -> float:
    """The size of a head, pixels."""
    points = body.head
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


_LEG = tuple(J[f"{s}_{n}"] for s in ("left", "right") for n in ("ankle", "heel", "foot_index"))
_PARTS: Final = {
    "hips": [*HIPS],
    "knees": [J["left_knee"], J["right_knee"]],
    "feet": [*_LEG],
}


def _hidden(mine: Body, body: Body) -> list[str]:
    """Which of hips, knees and feet the driver lacks though the avatar has them."""
    shares = zip(_PARTS, mine.lower, body.lower, strict=True)
    return [name for name, driver, avatar in shares if driver < 0.25 and avatar >= 0.25]


def _nearest(body: Body) -> float:
    """How far the avatar may come nearer, as the logarithm of its growth: standing, it should fit into the picture."""
    head = float(body.rest[FACE_JOINTS, 1].min())
    if not np.isfinite(body.floor):
        return 0.3
    tall = (float(body.rest[:, 1].max()) - head) * 1.08  # and the skull above the eyes
    return float(np.clip(np.log((body.floor + 0.5 * _room(body)) / max(tall, 1.0)), 0.05, 0.3))


def _room(body: Body) -> float:
    """Pixels that the floor line may move down, towards the camera: to the picture's edge."""
    return max(body.size[1] - body.floor, 0.04 * body.size[1])


def _calm(values: Float, fps: float, window: float = 0.5) -> Float:
    """(T,) the slow part of values over time: running median, then Gaussian, `window` seconds wide. NaN is held."""
    values = _filled(values[:, None].astype(np.float32), 0, hold=True)[:, 0].astype(np.float64)
    reach = round(window * fps)
    if reach < 1 or len(values) < 3:
        return np.full(len(values), np.median(values))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)
    return _gauss(np.median(windows, axis=1), window * fps)


def _gauss(values: Float, sigma: float) -> Float:
    """(T,) Gaussian smoothing, the ends held."""
    reach = max(1, round(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")


def _tree(points: Float, ratio: Float, grow: Float) -> Float:
    """(T, 33, 3) poses, relative to mid hip, with each bone vector multiplied by its ratio and by `grow` (T, 1, 1)."""
    r = {name: ratio[i] for name, i in BONE.items()}
    out = np.zeros_like(points)
    hip, shoulder, ear = (points[:, pair].mean(axis=1) for pair in (HIPS, SHOULDERS, EARS))
    chest = (shoulder - hip) * r["spine"]
    for pair, middle, start, width in ((HIPS, hip, 0.0, "hips"), (SHOULDERS, shoulder, chest, "shoulders")):
        for joint in pair:
            out[:, joint] = start + (points[:, joint] - middle) * r[width]
    top = chest + (ear - shoulder) * r["neck"]
    for joint in FACE_JOINTS:
        out[:, joint] = top + (points[:, joint] - ear) * r["neck"]

    def hang(joint: str, parent: str, bone: str) -> None:
        for side in ("left", "right"):
            a, b = J[f"{side}_{parent}"], J[f"{side}_{joint}"]
            out[:, b] = out[:, a] + (points[:, b] - points[:, a]) * r[bone]

    hang("elbow", "shoulder", "upper_arm")
    hang("wrist", "elbow", "lower_arm")
    for finger in ("pinky", "index", "thumb"):
        hang(finger, "wrist", "lower_arm")
    hang("knee", "hip", "upper_leg")
    hang("ankle", "knee", "lower_leg")
    for end in ("heel", "foot_index"):
        hang(end, "ankle", "foot")
    return out * grow


def _made_up(posed: Float, body: Body, hidden: list[str], shown: Float) -> Float:
    """`posed` with the avatar's resting legs where the driver's are hidden; without hips, also its resting trunk."""
    rest = body.rest[None, :, :3].astype(np.float64) * shown
    out = posed.copy()
    if "hips" in hidden:  # the shoulders lead: hips hang below them as the avatar's do
        out += (rest[:, SHOULDERS] - posed[:, SHOULDERS]).mean(axis=1, keepdims=True)
        out[:, HIPS] = rest[:, HIPS]
    for part, parent in (("knees", "hip"), ("feet", "knee")):
        if part in hidden:
            for joint in _PARTS[part]:
                anchor = HIPS if parent == "hip" else tuple(_PARTS["knees"])
                side = anchor[0] if joint % 2 else anchor[1]  # left joints have odd numbers
                out[:, joint] = out[:, side] + rest[:, joint] - rest[:, side]
    return out


def _place(
    points: Float, posed: Float, body: Body, mine: Body, leg: Float, near: Float, hidden: list[str], fps: float
) -> Float:
    """(T, 2) where mid hip goes in the avatar's picture.

    Args:
        points: (T, 33, 3) the driver's pose. posed: the fitted one, relative to mid hip.
        leg: (T,) the avatar's leg length over the driver's.
        near: (T,) how much nearer the avatar is shown than it was, as the logarithm of its size.
        hidden: see `_hidden`.
    """
    width, height = body.size
    rest = _rest(body)
    shoulders_seen = body.rest[SHOULDERS, 3].min() > 0.5 and rest[SHOULDERS, 1].max() < height
    standing = bool(np.isfinite(body.floor))
    anchor = HIPS if standing and "hips" not in hidden else SHOULDERS if standing or shoulders_seen else EARS
    start, mean = rest[anchor, :2].mean(axis=0), posed[:, anchor, :2].astype(np.float64).mean(axis=1)
    moved = points[:, anchor, :2].astype(np.float64).mean(axis=1)
    origin = np.array([mine.centre, 0.0]) if anchor is HIPS else np.nanmedian(moved, axis=0)
    moved = (moved - origin) * leg[:, None]
    if standing:
        low, reach = points[..., 1].max(axis=1).astype(np.float64), posed[..., 1].max(axis=1).astype(np.float64)
        y = body.floor - reach
        if not hidden and np.isfinite(mine.floor):  # else there is no floor to jump from
            ground = _ground(low, fps)
            # The floor line follows steps towards and away from the camera, as a camera 1.5 m above the floor sees
            # them, and not beyond the picture's edge.
            bound = body.scale * (1.5 * np.abs(np.exp(near) - 1) + 0.05)
            drift = (ground - mine.floor) * leg
            drift = soft(drift, 0.6 * bound, bound)
            drift = np.where(drift > 0, soft(drift, 0.5 * _room(body), _room(body)), drift)
            y = y + drift - (ground - low) * leg
    else:
        y = start[1] + soft(moved[:, 1], 0.05 * height, 0.12 * height) - mean[:, 1]
    stand = body.centre if anchor is HIPS else start[0] - mean[:, 0]
    core = posed[:, _core(body), 0] + np.reshape(stand, (-1, 1))
    margin = 0.1 * body.scale
    travel = _travel(moved[:, 0], core.min(axis=1) - margin, core.max(axis=1) + margin, width)
    return np.stack([stand + travel, y], axis=1)


def _rest(body: Body) -> Float:
    """(33, 3) the resting pose where it stands in the picture."""
    place = np.array([body.centre, body.shoulder - body.rest[SHOULDERS, 1].mean(), 0])
    rest: Float = body.rest[:, :3] + place
    return rest


def _core(body: Body) -> list[int]:
    """The joints that should stay inside the picture: head, trunk and legs, as far as they are in the avatar's."""
    y = _rest(body)[:, 1]
    return [j for j in CORE if j in EARS or (body.rest[j, 3] > 0.5 and y[j] < body.size[1])]


def _ground(low: Float, fps: float) -> Float:
    """(T,) the driver's floor line (y): the lowest point within half a second, smoothed. A jump does not lift it, for
    nobody stays in the air that long; steps towards the camera and away do."""
    low = _filled(low[:, None].astype(np.float32), 0, hold=True)[:, 0].astype(np.float64)
    reach = max(1, round(0.5 * fps))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(low, reach, mode="edge"), 2 * reach + 1)
    return _gauss(np.percentile(windows, 85, axis=1), 0.2 * fps)


def _travel(travel: Float, left: Float, right: Float, width: int) -> Float:
    """(T,) the way sideways, shifted and, if it must, compressed so that the body's core stays inside the picture.

    Args:
        travel: (T,) wanted displacement.
        left, right: (T,) the core's edges without it.
    """
    ok = np.isfinite(travel)
    if not ok.any():
        return travel

    def range_of(share: float) -> tuple[float, float]:
        """Between which shifts everything fits, 2 % of the pictures aside."""
        low = np.percentile(-left[ok] - share * travel[ok], 98)
        high = np.percentile(width - right[ok] - share * travel[ok], 2)
        return float(low), float(high)

    share = 1.0
    if (now := range_of(1.0))[0] > now[1]:
        a, b = 0.0, 1.0
        for _ in range(20):
            share = (a + b) / 2
            low, high = range_of(share)
            a, b = (share, b) if low <= high else (a, share)
        share = a
        now = range_of(share)
    low, high = now
    shift = (low + high) / 2 if low > high else float(np.clip(0.0, low, high))
    return share * travel + shift


def scale_to(track: PoseTrack, size: tuple[int, int]) -> PoseTrack:
    """The poses where they stand in the source picture, that picture scaled to `size` (`--align none`).

    With equal aspects (within 2 %) this is plain resizing. Otherwise the aspect is kept: the whole source picture is
    scaled to fit inside `size` and centred.
    """
    (w, h), (width, height) = track.size, size
    if abs(w * height / (h * width) - 1) <= 0.02:
        return track.scaled(size)
    s = min(width / w, height / h)
    shift = np.array([(width - s * w) / 2, (height - s * h) / 2, 0], np.float32)
    factor = np.float32(s)
    body = track.body.copy()
    body[..., :3] = body[..., :3] * factor + shift
    return replace(track, body=body, face=track.face * factor + shift, hands=track.hands * factor + shift, size=size)


# ---------------------------------------------------------------------------------------------------- a long movement

WINDOW: Final = 256
"""Pictures whose face meshes are made at a time."""
SETTLED: Final = 4.0
"""Seconds after which the filter of `smooth` has forgotten what was before: to 2e-8 at its slowest cut-off, 0.7 Hz."""


class Movement:
    """A motion with its gaps filled, smoothed and brought into the avatar's picture, to be drawn picture by picture.

    The same as `fit` or `scale_to` of `smooth` of `fill_gaps`, but for what is held in memory: face meshes, most of the
    bytes, are made for `WINDOW` pictures at a time, from the raw ones around these.

    size  (width, height) of the picture that it is brought into.
    fps   pictures per second.
    """

    def __init__(
        self,
        motion: Motion,
        *,
        smoothness: float,
        body: Body | None,
        size: tuple[int, int] | None,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            smoothness: strength of `smooth`.
            body: the avatar's, see `fit`; None: `scale_to`.
            size: (width, height) of the avatar's picture; None: the driver's.
        """
        self.size, self.fps = size or motion.track.size, motion.track.fps
        self._faces, self._hands = motion.faces, motion.track.hands
        self._strength = smoothness if len(motion) > 1 else 0.0
        self._most = int(LONGEST * self.fps)
        filled = fill_gaps(replace(motion.track, hands=unknown(len(motion), 2, HAND_POINTS)))
        self._height = 1.65 * _scale(filled)
        if not self._height > 0:
            self._strength = 0.0
        self._track = smooth(filled, self._strength)
        self._anchors = tuple(t.body[:, (NOSE, *WRISTS), :3] * _XY for t in (filled, self._track))
        del motion, filled  # as much again as is needed from here on
        self._details: Callable[[slice, Array], tuple[Array, Array]] | None = None
        if body is not None and self._track.found.any():
            body = body if body.size == self.size else body.scaled(self.size)
            meshes = [_Meshes.of(self._driver_face(rows), body.face) for rows in _blocks(len(self), WINDOW)]
            joined = _Meshes(*(np.concatenate(column) for column in zip(*meshes, strict=True)))
            fitted = _fitted(self._track, joined, body, progress or Silent())
            self._track, self._details = replace(self._track, body=fitted.body, size=self.size), fitted.details
        # No model looks at it.
        self._track = replace(self._track, world=unknown(len(self), len(JOINTS)))
        self._window: tuple[int, PoseTrack | None] = (-1, None)

    def __len__(self) -> int:
        return len(self._track)

    def _driver_face(self, rows: slice) -> Array:
        """(n, 468 or 478, 3) the driver's face meshes of some pictures, gaps filled, smoothed."""
        return self._driver(rows, 0, lambda around: self._faces(around.start, around.stop))

    def _driver_hands(self, rows: slice) -> Array:
        """(n, 2, 21, 3) the same for the hands."""
        return np.stack([self._driver(rows, i + 1, partial(self._hand, i)) for i in (0, 1)], axis=1)

    def _hand(self, side: int, around: slice) -> Array:
        return self._hands[around, side]

    def _driver(self, rows: slice, anchor: int, read: Callable[[slice], Array]) -> Array:
        """Points (n, N, 3), gaps filled, smoothed, relative to an anchor: 0 nose, 1 left wrist, 2 right wrist."""
        first, last, _ = rows.indices(len(self))
        reach = self._most + 1 + (math.ceil(SETTLED * self.fps) if self._strength > 0 else 0)
        around = slice(max(0, first - reach), min(len(self), last + reach))
        before, after = (points[around, anchor, None] for points in self._anchors)
        points = _attached(read(around), before, self._most)
        if self._strength > 0 and np.isfinite(points[:, 0, 0]).any():
            points = _calmed(points - before, self.fps, self._strength, self._height) + after
        return points[first - around.start : last - around.start]

    def _at(self, number: int) -> PoseTrack:
        """Window number `number`."""
        known, track = self._window
        if track is None or known != number:
            rows = slice(number * WINDOW, (number + 1) * WINDOW)
            track, hands = self._track.select(rows), self._driver_hands(rows)
            if self._details is not None:
                face, hands = self._details(rows, hands)
                track = replace(track, face=face, hands=hands)
            else:
                track = scale_to(replace(track, face=self._driver_face(rows), hands=hands), self.size)
            self._window = number, track
        return track

    def select(self, index: Sequence[int]) -> PoseTrack:
        """The poses of some pictures, in rising order; not to be written to."""
        rows = np.asarray(index)
        numbers = np.unique(rows // WINDOW).tolist()
        return PoseTrack.concatenate(self._at(n).select(rows[rows // WINDOW == n] - n * WINDOW) for n in numbers)
