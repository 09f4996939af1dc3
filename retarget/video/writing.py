"""Frames into a video file, as a stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from .. import folders
from ..errors import StorageError, UsageError
from ..types import Image
from .colour import Colour
from .encoding import Encoder, Film
from .joining import join, temporary
from .matroska import Spacing
from .scan import scanned
from .sound import check_sound

_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


@contextmanager
def open_writer(
    out: str | Path,
    size: tuple[int, int],
    fps: Fraction,
    *,
    audio_from: str | Path | None = None,
    start: float = 0.0,
    end: float | None = None,
    metadata: Mapping[str, str] | None = None,
    alpha: bool = False,
    crf: int = 14,
    timestamps: Sequence[float] | None = None,
    colour: Colour = "bt601",
) -> Iterator[Callable[[Image], None]]:
    """A function that appends one frame: (H, W, 3) uint8 RGB, or (H, W, 4) with straight alpha when `alpha`.

    The video appears under its name only when the block ends well; otherwise nothing is left behind.

    .mp4 .m4v .mov .mkv  H.264 yuv420p (x264 `veryfast`), MP4 and MOV with the index in front
    .mov with alpha      ProRes 4444
    .webm                VP9; with alpha yuva420p
    An odd width or height is made even by repeating the last column or row.

    Args:
        size: (width, height) of the frames.
        fps: exact rate; ignored for the spacing when `timestamps` are given.
        audio_from: video whose sound between `start` and `end` is laid under, in sync with its first chosen frame and
            cut at the end of this video. Copied (then a shorter sound stays shorter) when nothing is cut from its start
            and the container can hold it, else AAC 192 kbit/s (Opus in WebM), filled up with silence. A video without
            sound gives none.
        metadata: tags of the file; any keys, read back by `read_metadata`.
        crf: quality of x264, 0 (best) to 51; of VP9 on its own scale, 12 added.
        timestamps: seconds of each frame after the first, increasing; kept to 1/90000 s.
        colour: matrix of Y'CbCr, and its tag, normally `VideoInfo.colour` of the video the pixels come from.

    Raises UsageError for a suffix that cannot be, StorageError when the folder is missing or cannot be written or the
    disk is full, VideoError when ffmpeg fails or no frame was written.
    """
    film = make_film(out, size, fps, audio_from, start, end, metadata, alpha, crf, timestamps, colour)
    with temporary(film.out) as silent:
        with Encoder(film, silent, 0) as encoder:
            yield encoder.write
            encoder.finish()
        if encoder.count:
            folders.flush(silent)
        join(film, [silent], [encoder.count])


def make_film(
    out: str | Path,
    size: tuple[int, int],
    fps: Fraction,
    audio_from: str | Path | None = None,
    start: float = 0.0,
    end: float | None = None,
    metadata: Mapping[str, str] | None = None,
    alpha: bool = False,
    crf: int = 14,
    timestamps: Sequence[float] | None = None,
    colour: Colour = "bt601",
) -> Film:
    """The film that the arguments of `open_writer` describe. Raises as that does, when they cannot be."""
    out = Path(out)
    check_out(out, alpha)
    sound = None
    if audio_from is not None:
        source = scanned(audio_from)
        if source.audio is not None:
            sound = (source, source.between(start, end))
            check_sound(source.info.path)
    if min(size) < 1:
        raise ValueError(f"size must be positive, not {size}")
    spaced = None if timestamps is None else Spacing.of(timestamps, fps)
    return Film(out, size, fps, sound, {} if metadata is None else metadata, alpha, crf, spaced, colour)


def check_out(out: Path, alpha: bool = False) -> None:
    """Raises UsageError or StorageError for a name under which no video can be written."""
    suffix = out.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(f"{out.name} does not end in a known kind of video.", f"Use one of {' '.join(_SUFFIXES)}.")
    if alpha and suffix not in (".mov", ".webm"):
        raise UsageError(f"{suffix} cannot hold transparency.", "Name the output .mov or .webm.")
    if not out.parent.is_dir():
        raise StorageError(f"There is no folder {out.parent} for {out.name}.", "Create it, or choose another one.")
    if out.is_dir():
        raise StorageError(f"{out} is a folder.", "Give the name of a file.")
    if not os.access(out.parent, os.W_OK):
        raise StorageError(f"The folder {out.parent} cannot be written.", "Choose another folder.")
