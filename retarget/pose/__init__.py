"""Poses of one person in videos and pictures: estimated once per file, then taken from the cache or a motion file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import NobodyFound, StorageError, UsageError
from ..types import Array, Image, PoseTrack, Progress, Silent
from . import cache
from .base import LONG_SIDE, PoseEstimator, PoseOptions, fitting, person_point
from .cache import load_motion, save_motion

__all__ = [
    "PoseEstimator",
    "PoseOptions",
    "estimate",
    "estimate_images",
    "load_motion",
    "make_estimator",
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
    progress: Progress | None = None,
) -> PoseTrack:
    """The pose in every picture of a video between `start` and `end` seconds, in pixels of the video.

    Raw: gaps are not filled and nothing is smoothed (see `motion`). Taken from the cache when the same content was
    estimated before with the same options. A motion file (.npz) may stand in for the video.

    Raises VideoError or InputError for a file that cannot be used, NobodyFound when no picture shows a person,
    UsageError for options that cannot be.
    """
    path, options, progress = Path(path), options or PoseOptions(), progress or Silent()
    if path.suffix == ".npz":
        track = _piece(load_motion(path), path, start, end)
    else:
        track = _from_video(path, options, start, end, progress)
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
    return track


def _piece(track: PoseTrack, path: Path, start: float, end: float | None) -> PoseTrack:
    """The pictures with start <= time < end, as `video.open_reader` counts them; UsageError when there are none."""
    if not (0 <= start < math.inf and (end is None or start < end < math.inf)):
        raise UsageError(
            f"A piece from {start:g} s to {end} s cannot be.", "Give a start of 0 or more and a later end."
        )
    first = math.ceil(start * track.fps - 1e-6)
    last = len(track) if end is None else math.ceil(end * track.fps - 1e-6)
    if first >= len(track):
        raise UsageError(
            f"{path.name} has no pose from {start:g} s on; it is {float(len(track) / track.fps):.2f} s long.",
            "Choose a start and an end inside the motion.",
        )
    return track.select(slice(first, last))


def _from_video(path: Path, options: PoseOptions, start: float, end: float | None, progress: Progress) -> PoseTrack:
    from .. import video

    estimator = make_estimator(options)
    name = cache.key(path, estimator.name, LONG_SIDE, options.person, float(start), end)
    info = video.probe(path)
    full = (info.width, info.height)
    if (kept := cache.fetch(name)) is not None and kept.size == full:
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
    length = info.frames if not start and end is None else round(((end or info.duration) - start) * info.fps)
    progress.stage(f"Poses of {path.name}", max(1, min(length, info.frames)))
    with video.open_reader(path, start=start, end=end, size=None if size == full else size) as frames:
        track = estimator.track(frames, fps=info.fps, progress=progress)
    track = track.scaled(full)
    try:
        cache.keep(name, track)
    except StorageError as error:
        progress.warn(f"The poses were not kept for the next time. {error}")
    return cache.rounded(track)


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
