"""Pose estimation with Ultralytics YOLO (the extra `retarget[yolo]`; AGPL-3.0): several people, tracked, one picked.

YOLO-pose gives COCO's 17 joints. The rest of our 33 are derived where the body tells them and carry visibility 0 where
it does not: hands go on along the forearm, feet hang on the shin, a joint that was not found hangs below its parent.
There is no depth (z = 0), no face mesh and no finger; `world` is the picture in metres, the torso 0.5 m long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import folders
from ..errors import UsageError, WeightsError
from ..skeleton import J
from ..types import Array, Image, PoseTrack, Progress
from .base import PoseOptions, empty_track, person_point

SIDES = ("left", "right")
MODEL = "yolo11m-pose.pt"
TORSO = 0.5
"""Metres from mid shoulder to mid hip, for `world`."""

COCO = (
    "nose",
    *(
        f"{side}_{name}"
        for name in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        for side in SIDES
    ),
)
"""COCO's 17 joints, by index."""


@dataclass(frozen=True)
class Person:
    """One detection.

    number  of its track; -1 without.
    box     (4,): x0, y0, x1, y1.
    joints  (17, 3): x, y, confidence; 0 where not found.
    """

    number: int
    box: Array
    joints: Array

    @property
    def area(self) -> float:
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


class UltralyticsEstimator:
    """`PoseEstimator` with YOLO-pose. Of several people it takes the largest over the clip, or the one at X,Y."""

    name = f"ultralytics-{MODEL}"
    overlap = 0

    def __init__(self, options: PoseOptions | None = None) -> None:
        """Raises UsageError when ultralytics is not installed or `options.person` cannot be understood."""
        options = options or PoseOptions()
        self._point, self._points = person_point(options.person), options.points
        try:
            import ultralytics
        except ImportError as error:
            raise UsageError(
                "The pose estimator 'ultralytics' is not installed.",
                'Install it with: pip install "retarget[yolo]" (AGPL-3.0), or use the built-in mediapipe.',
            ) from error
        self._make = ultralytics.YOLO

    def _model(self) -> Any:
        """A fresh model, without a tracker's memory. Raises WeightsError when its weights cannot be had."""
        path = folders.made(folders.cache_dir() / "ultralytics") / MODEL
        try:
            return self._make(str(path))
        except Exception as error:  # ultralytics raises whatever its download or torch raised
            raise WeightsError(
                f"The weights {MODEL} of ultralytics cannot be loaded: {error}",
                f"Connect to the internet once, or put the file at {path}.",
            ) from error

    def pieces(
        self, frames: Iterable[Image], *, fps: Fraction, progress: Progress, before: Array | None = None
    ) -> Iterator[tuple[PoseTrack, Array]]:
        """See `PoseEstimator.pieces`: all in one, since who is the largest person shows at the end only."""
        track = self.track(frames, fps=fps, progress=progress)
        yield track, track.body[:0]

    def strays(self, body: Array) -> npt.NDArray[np.bool_]:
        """See `PoseEstimator.strays`: none."""
        return np.zeros(len(body), bool)

    def track(self, frames: Iterable[Image], *, fps: Fraction, progress: Progress) -> PoseTrack:
        """See `PoseEstimator.track`."""
        model = self._model()
        people: list[list[Person]] = []
        size = (1, 1)
        for frame in frames:
            size = (frame.shape[1], frame.shape[0])
            people.append(_people(model.track(frame[..., ::-1], persist=True, verbose=False)))
            progress.advance()
        if not people:
            raise ValueError("no frames to track")
        return _track(_choose(people, self._point, patience=max(1, round(fps))), size, fps, self._points)

    def segment(self, frames: Sequence[Image]) -> list[tuple[PoseTrack, Array]]:
        """See `PoseEstimator.segment`. The mask is mediapipe's, taken in the person's box."""
        from .mediapipe import mask_in

        model = self._model()
        out = []
        for frame in frames:
            size = (frame.shape[1], frame.shape[0])
            chosen = _choose([_people(model.predict(frame[..., ::-1], verbose=False))], self._point, patience=1)
            mask = np.zeros(frame.shape[:2], np.float32) if chosen[0] is None else mask_in(frame, chosen[0].box)
            out.append((_track(chosen, size, Fraction(25), self._points), mask))
        return out


def _people(results: Any) -> list[Person]:
    """The detections of one picture from what `YOLO.track` or `YOLO.predict` returns for it."""
    result = results[0]
    if result.boxes is None or result.keypoints is None or len(result.boxes.xyxy) == 0:
        return []
    boxes, xy = _numpy(result.boxes.xyxy), _numpy(result.keypoints.xy)
    confidence = np.ones(xy.shape[:2], np.float32) if result.keypoints.conf is None else _numpy(result.keypoints.conf)
    confidence = np.where((xy == 0).all(axis=2), 0, confidence)  # ultralytics puts joints it does not see at (0, 0)
    numbers = np.full(len(boxes), -1) if result.boxes.id is None else _numpy(result.boxes.id).astype(int)
    joints = np.concatenate([xy, confidence[..., None]], axis=2).astype(np.float32)
    return [Person(int(n), b, j) for n, b, j in zip(numbers, boxes, joints, strict=True)]


def _numpy(tensor: Any) -> Array:
    """A torch tensor on any device, or an array, as float32."""
    with contextlib.suppress(AttributeError):
        tensor = tensor.cpu().numpy()
    return np.asarray(tensor, np.float32)


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""
    w, h = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = float(max(w, 0) * max(h, 0))
    return both / max(float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - both, 1e-6)


def _choose(people: list[list[Person]], point: tuple[float, float] | None, *, patience: int) -> list[Person | None]:
    """One person per picture: the chosen one's track number, and where the tracker loses it, the box that goes on.

    `patience` is the number of pictures after which a new number overlapping the last box is no longer the same person.
    """
    seen = [p for here in people for p in here]
    if not seen:
        return [None] * len(people)
    start = 0
    if point is None:
        totals: dict[int, float] = {}
        for person in seen:
            totals[person.number] = totals.get(person.number, 0.0) + person.area
        number = max(totals, key=lambda n: totals[n])
        start = next(i for i, here in enumerate(people) if any(p.number == number for p in here))
        current = max((p for p in people[start] if p.number == number), key=lambda p: p.area)
    else:
        start = next(i for i, here in enumerate(people) if here)
        x, y = point

        def away(p: Person) -> tuple[bool, float]:
            x0, y0, x1, y1 = p.box
            return not (x0 <= x <= x1 and y0 <= y <= y1), float(np.hypot((x0 + x1) / 2 - x, (y0 + y1) / 2 - y))

        current = min(people[start], key=away)

    def walk(order: Iterable[int], last: Person) -> None:
        gap, others = 0, {p.number for p in people[start]} - {last.number, -1}
        for i in order:
            here = [p for p in people[i] if p.number == last.number and p.number >= 0]
            if not here and gap < patience:
                here = [p for p in people[i] if p.number not in others and _overlap(p.box, last.box) > 0.3]
            if here:
                last, gap = max(here, key=lambda p: _overlap(p.box, last.box)), 0
                out[i] = last
            else:
                gap += 1
            others |= {p.number for p in people[i]} - {last.number, -1}

    out: list[Person | None] = [None] * len(people)
    out[start] = current
    walk(range(start + 1, len(people)), current)
    walk(range(start - 1, -1, -1), current)
    return out


def _track(people: Sequence[Person | None], size: tuple[int, int], fps: Fraction, points: int) -> PoseTrack:
    """A track from one person per picture; face meshes of so many points, all NaN."""
    track = empty_track(len(people), size, fps, points)
    for i, person in enumerate(people):
        if person is not None and (person.joints[[5, 6, 11, 12], 2] > 0).sum() >= 2:
            track.body[i] = to_joints(person.joints)
    middle = track.body[:, [J["left_hip"], J["right_hip"]], :2].mean(axis=1)
    torso = np.hypot(*(track.body[:, [J["left_shoulder"], J["right_shoulder"]], :2].mean(axis=1) - middle).T)
    if np.isfinite(torso).any():
        metre = max(float(np.nanpercentile(torso, 90)), 1.0) / TORSO  # the least foreshortened torso
        track.world[..., :2] = (track.body[..., :2] - middle[:, None]) / metre
        track.world[..., 2] = np.where(np.isfinite(middle[:, :1]), 0, np.nan)
    return replace(track, missed=tuple(np.flatnonzero(~track.found).tolist()))


def to_joints(coco: Array) -> Array:
    """COCO's joints (17, 3: x, y, confidence, 0 = not found) as our (33, 4): all finite, visibility 0 where made up.

    At least two of the four shoulders and hips must have been found.
    """
    out = np.zeros((33, 4), np.float32)
    for name, (x, y, confidence) in zip(COCO, coco, strict=True):
        out[J[name]] = x, y, 0, confidence

    def has(name: str) -> bool:
        return bool(out[J[name], 3] > 0)

    def put(name: str, place: Array, visibility: float = 0.0) -> None:
        out[J[name]] = *place, 0, visibility

    def at(name: str) -> Array:
        return out[J[name], :2].copy()

    for pair in ("shoulder", "hip"):  # one of a pair stands for both
        for side, other in (SIDES, SIDES[::-1]):
            if not has(f"{side}_{pair}") and has(f"{other}_{pair}"):
                put(f"{side}_{pair}", at(f"{other}_{pair}"))
    tops, hips = [J[f"{s}_shoulder"] for s in SIDES], [J[f"{s}_hip"] for s in SIDES]
    shoulders, hip = out[tops, :2].mean(axis=0), out[hips, :2].mean(axis=0)
    found = [bool(out[i, 3].any()) for i in (tops, hips)]
    if not all(found):  # upright, the torso 1.4 shoulder widths long
        left, right = out[tops if found[0] else hips, :2]
        drop = np.array([0, 1.4 * max(float(np.hypot(*(left - right))), 8.0)], np.float32)
        for side in SIDES:
            if found[0]:
                put(f"{side}_hip", at(f"{side}_shoulder") + drop)
            else:
                put(f"{side}_shoulder", at(f"{side}_hip") - drop)
        shoulders, hip = out[tops, :2].mean(axis=0), out[hips, :2].mean(axis=0)
    down = hip - shoulders
    for side in SIDES:
        for name, parent, share in (
            ("elbow", "shoulder", 0.6),
            ("wrist", "elbow", 0.5),
            ("knee", "hip", 0.85),
            ("ankle", "knee", 0.8),
        ):
            if not has(f"{side}_{name}"):
                put(f"{side}_{name}", at(f"{side}_{parent}") + share * down)
        fore = at(f"{side}_wrist") - at(f"{side}_elbow")
        across = np.array([fore[1], -fore[0]], np.float32) * (0.12 if side == "left" else -0.12)
        put(f"{side}_index", at(f"{side}_wrist") + 0.36 * fore + 0.5 * across)
        put(f"{side}_pinky", at(f"{side}_wrist") + 0.32 * fore - across)
        put(f"{side}_thumb", at(f"{side}_wrist") + 0.18 * fore + across)
        shin = at(f"{side}_ankle") - at(f"{side}_knee")
        put(f"{side}_heel", at(f"{side}_ankle") + 0.1 * shin)
        put(f"{side}_foot_index", at(f"{side}_ankle") + 0.25 * shin)

    if not has("nose"):
        put("nose", shoulders - 0.45 * down)
    width = 0.15 * float(np.hypot(*down))
    for side, sign in (("left", 1), ("right", -1)):  # the person's left is right of the nose when they face us
        if not has(f"{side}_eye"):
            put(f"{side}_eye", at("nose") + np.array([sign * 0.5 * width, -0.5 * width], np.float32))
        if not has(f"{side}_ear"):
            put(f"{side}_ear", at(f"{side}_eye") + (at(f"{side}_eye") - at("nose")) * 0.8)
    eyes = at("left_eye") - at("right_eye")
    below = at("nose") - (at("left_eye") + at("right_eye")) / 2
    for side, sign in (("left", 1), ("right", -1)):
        seen = float(min(out[J[f"{side}_eye"], 3], out[J["nose"], 3]))
        put(f"{side}_eye_inner", at(f"{side}_eye") - sign * 0.22 * eyes, seen)
        put(f"{side}_eye_outer", at(f"{side}_eye") + sign * 0.22 * eyes, seen)
        put(f"mouth_{side}", at("nose") + 0.9 * below + sign * 0.38 * eyes, seen)
    return out
