"""Poses of one person in videos and pictures: estimated once per file, then taken from the cache or a motion file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import folders
from ..errors import NobodyFound, StorageError, UsageError
from ..types import Array, Image, PoseTrack, Progress, Silent
from . import cache
from .base import LONG_SIDE, PoseEstimator, PoseOptions, empty_track, fitting, person_point
from .cache import Motion, digest, load_motion, open_motion, save_motion

__all__ = [
    "Motion",
    "PoseEstimator",
    "PoseOptions",
    "crowded",
    "crowds",
    "digest",
    "estimate",
    "estimate_images",
    "estimated",
    "load_motion",
    "make_estimator",
    "remaining",
    "save_motion",
]

ESTIMATORS = ("mediapipe", "ultralytics")


def make_estimator(options: PoseOptions) -> PoseEstimator:
    """The estimator that `options` name. Raises UsageError for an unknown or missing one."""
    if options.estimator == "mediapipe":
        from .mediapipe import MediapipeEstimator

        return MediapipeEstimator(options)
    if options.estimator == "ultralytics":
        from .ultralytics import UltralyticsEstimator

        return UltralyticsEstimator(options)
    raise UsageError(f"There is no pose estimator {options.estimator!r}.", f"Choose one of: {', '.join(ESTIMATORS)}.")


def estimate(
    path: str | Path,
    options: PoseOptions | None = None,
    *,
    start: float = 0.0,
    end: float | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> PoseTrack:
    """The pose in every picture of a video between `start` and `end` seconds, in pixels of the video.

    Raw: gaps are not filled and nothing is smoothed (see `motion`). Taken from the cache when the same content was
    estimated before with the same options; goes on where an interrupted run stopped, unless `restart`. A motion file
    (.npz) may stand in for the video.

    Raises VideoError or InputError for a file that cannot be used, NobodyFound when no picture shows a person,
    UsageError for options that cannot be.
    """
    return estimated(path, options, start=start, end=end, restart=restart, progress=progress).whole()


def estimated(
    path: str | Path,
    options: PoseOptions | None = None,
    *,
    start: float = 0.0,
    end: float | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> Motion:
    """As `estimate`, for long videos: the face meshes are not held in memory."""
    path, options, progress = Path(path), options or PoseOptions(), progress or Silent()
    if path.suffix == ".npz":
        motion = _piece(open_motion(path), path, start, end)
    else:
        motion = _from_video(path, options, start, end, progress, restart)
    track = motion.track
    if not track.found.any():
        raise NobodyFound(
            f"No person was found in {path.name}.",
            "Use a video that shows one person, as large and as whole as can be.",
        )
    if track.missed:
        share = len(track.missed) / len(track)
        (progress.warn if share > 0.2 else progress.note)(
            f"Nobody was found in {len(track.missed)} of the {len(track)} pictures of {path.name}"
            f" ({ranges(track.missed)}); their poses are filled in."
        )
    if motion.crowd is not None:
        progress.warn(crowded(path.name, motion.crowd, "followed"))
    return motion


def _piece(motion: Motion, path: Path, start: float, end: float | None) -> Motion:
    """The pictures with start <= time < end, as `video.open_reader` counts them; UsageError when there are none."""
    if not (0 <= start < math.inf and (end is None or start < end < math.inf)):
        raise UsageError(
            f"A piece from {start:g} s to {end} s cannot be.", "Give a start of 0 or more and a later end."
        )
    fps = motion.track.fps
    first = math.ceil(start * fps - 1e-6)
    last = len(motion) if end is None else math.ceil(end * fps - 1e-6)
    if first >= len(motion):
        raise UsageError(
            f"{path.name} has no pose from {start:g} s on; it is {float(len(motion) / fps):.2f} s long.",
            "Choose a start and an end inside the motion.",
        )
    return motion.select(slice(first, last))


def remaining(
    path: Path, options: PoseOptions, *, start: float = 0.0, end: float | None = None, restart: bool = False
) -> int:
    """In how many pictures of a video the poses are neither in the cache nor, unless `restart`, left by an interrupted
    run. For a look only; raises as `estimate` does."""
    from .. import video

    length = len(video.timestamps(path, start, end))
    name = _key(path, make_estimator(options), options, start, end)
    if cache.has(name):
        return 0
    folder = None if restart else folders.unfinished("poses", {"key": name})
    return length if folder is None else max(0, length - cache.BLOCK * len(_unfinished(folder)))


def _key(path: Path, estimator: PoseEstimator, options: PoseOptions, start: float, end: float | None) -> str:
    irises = ("irises",) if options.irises else ()
    return cache.key(path, estimator.name, LONG_SIDE, options.person, float(start), end, *irises)


def _from_video(
    path: Path, options: PoseOptions, start: float, end: float | None, progress: Progress, restart: bool
) -> Motion:
    from .. import video

    estimator = make_estimator(options)
    info = video.probe(path)
    name = _key(path, estimator, options, start, end)
    full = (info.width, info.height)
    if (kept := cache.fetch(name)) is not None and kept.track.size == full:
        return kept

    size = fitting(full)
    if (point := person_point(options.person)) is not None:
        if point[0] >= full[0] or point[1] >= full[1]:
            raise UsageError(
                f"--person {options.person} lies outside the picture of {path.name}, which is {full[0]}x{full[1]}.",
                "Give the pixel at which the person stands in the first picture.",
            )
        scaled = f"{point[0] * size[0] / full[0]},{point[1] * size[1] / full[1]}"
        estimator = make_estimator(replace(options, person=scaled))
    length = len(video.timestamps(path, start, end))
    progress.stage(f"Poses of {path.name}", length)

    def read(skip: int) -> AbstractContextManager[Iterator[Image]]:
        return video.open_reader(path, start=start, end=end, size=None if size == full else size, skip=skip)

    with folders.work("poses", {"key": name}, restart=restart, patience=PATIENCE) as folder:
        if (kept := cache.fetch(name)) is not None:  # somebody else has made it meanwhile
            return kept
        parts = _unfinished(folder)
        done = cache.BLOCK * len(parts)
        if done:
            progress.note(f"Going on with the poses at frame {done} of {length}.")
            progress.advance(done)
        if done < length:
            with read(done - min(done, estimator.overlap)) as frames:
                before = cache.read(parts[-1], "before") if parts else None
                pieces = estimator.pieces(frames, fps=info.fps, progress=progress, before=before)
                for block, carried in _blocks(pieces):
                    parts.append(folder / f"{len(parts):06d}.npz")
                    arrays = cache.packed(block.scaled(full)) | {"before": carried}
                    cache.write(parts[-1], arrays.items())
        crowd = None
        if options.person == "largest" and hasattr(estimator, "bystanders"):  # not all can tell
            body = cache.bodies(parts, estimator.strays)
            crowd = _look_around(body, full, estimator.bystanders, read, size)
        return _kept(name, parts, estimator, crowd, progress)


PATIENCE = 24 * 3600.0
"""Seconds to wait for another process that estimates the same poses: then they are known."""


def _unfinished(folder: Path) -> list[Path]:
    """The whole blocks of poses that an interrupted run has finished, from the first one on."""
    parts: list[Path] = []
    while (path := folder / f"{len(parts):06d}.npz").exists():
        try:
            if len(cache.read(path, "face_steps_0")) != cache.BLOCK or len(cache.read(path, "before")) == 0:
                break
        except cache.BROKEN:
            break
        parts.append(path)
    return parts


def _kept(name: str, parts: list[Path], estimator: PoseEstimator, crowd: Array | None, progress: Progress) -> Motion:
    """The motion out of its parts, in the cache if that can be written."""
    try:
        cache.keep(name, cache.joined(parts, estimator.strays, crowd))
        if (motion := cache.fetch(name)) is not None:
            return motion
    except StorageError as error:
        progress.warn(f"The poses were not kept for the next time. {error}")
    return Motion.of(dict(cache.joined(parts, estimator.strays, crowd)).__getitem__)


def _blocks(pieces: Iterable[tuple[PoseTrack, Array]]) -> Iterator[tuple[PoseTrack, Array]]:
    """Pieces of poses, joined to blocks of `cache.BLOCK` pictures, but for the last."""
    waiting: list[PoseTrack] = []
    carried = np.empty(0, np.float32)
    for piece, carried in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= cache.BLOCK:
            yield PoseTrack.concatenate(waiting), carried
            waiting = []
    if waiting:
        yield PoseTrack.concatenate(waiting), carried


def _look_around(
    body: Array,
    full: tuple[int, int],
    bystanders: Callable[[Sequence[Image], PoseTrack], Sequence[Sequence[tuple[float, float]]]],
    read: Callable[[int], AbstractContextManager[Iterator[Image]]],
    size: tuple[int, int],
) -> Array | None:
    """`Motion.crowd`, when most of three pictures, looked at in `size`, show somebody beside the person.

    Args:
        body: (T, 33, 4) in pixels of a picture of the size `full`.
        read: opens the pictures, in `size`, from one on.
    """
    wanted = sorted({0, len(body) // 2, 9 * len(body) // 10})
    few = [i for i in wanted if np.isfinite(body[i, 0, 0])]
    pictures = []
    for i in few:
        with read(i) as frames:
            pictures.append(next(frames))
    some = replace(empty_track(len(few), full), body=body[few]).scaled(size)
    beside = bystanders(pictures, some)
    if 2 * sum(map(bool, beside)) <= len(wanted):
        return None
    first = next(i for i, found in enumerate(beside) if found)
    return _pair(some.body[first], beside[first]) * np.divide(full, size, dtype=np.float32)


def _pair(body: Array, beside: Sequence[tuple[float, float]]) -> Array:
    """(2, 2) float32: mid hip of a pose (33, 4), and of the first one `beside` it."""
    return np.array([body[23:25, :2].mean(axis=0), beside[0]], np.float32)


def crowded(name: str, crowd: Array, done: str) -> str:
    """Who was taken, and how to choose the other."""
    (x, y), (other_x, other_y) = crowd
    place = f"{other_x:.0f},{other_y:.0f}"
    return (
        f"{name} shows more than one person. The one at {x:.0f},{y:.0f} is {done}, another is at {place}: choose with"
        f" --person {place}."
    )


def crowds(photos: Sequence[Image], track: PoseTrack) -> list[Array | None]:
    """Who stands beside the person that was found in each of some photos; see `Motion.crowd`.

    Args:
        photos: of the same size, that of the track.
        track: a pose for each of them.
    """
    estimator = make_estimator(PoseOptions())
    if not hasattr(estimator, "bystanders"):
        return [None] * len(photos)
    found = zip(track.body, estimator.bystanders(photos, track), strict=True)
    return [_pair(body, beside) if beside else None for body, beside in found]


def estimate_images(images: Sequence[Image], options: PoseOptions | None = None) -> list[tuple[PoseTrack, Array]]:
    """For each picture by itself: a track of one picture and the person's soft mask, (H, W) float32 in 0..1.

    A picture that shows nobody gives a track whose `found` is False and an empty mask. Sizes may differ.
    """
    return make_estimator(options or PoseOptions()).segment(images)


def ranges(numbers: Sequence[int], most: int = 8) -> str:
    """Rising numbers in short: "3, 7-12, 40"; from `most` groups on, "..."."""
    groups = np.split(np.asarray(numbers), np.flatnonzero(np.diff(numbers) > 1) + 1)
    shown = [f"{g[0]}" if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups if len(g)]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")
