"""Frames into a silent piece of a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..types import Image
from .colour import MATRIX, Colour
from .matroska import Spacing, matroska_head
from .process import Process, command, unwritable
from .scan import TICKS, Scan

MUXERS = {".mp4": "mp4", ".m4v": "ipod", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Suffix → what ffmpeg calls its container."""


@dataclass(frozen=True)
class Film:
    """All about a video to write but its frames; see `open_writer`."""

    out: Path
    size: tuple[int, int]
    fps: Fraction
    sound: tuple[Scan, range] | None
    metadata: Mapping[str, str]
    alpha: bool
    crf: int
    spaced: Spacing | None
    colour: Colour

    @property
    def suffix(self) -> str:
        return self.out.suffix.lower()

    @property
    def piece(self) -> str:
        """The suffix of a piece: MP4 and MOV keep times exactly, but cannot hold VP9's alpha."""
        return ".webm" if self.suffix == ".webm" else ".mov" if self.alpha else ".mp4"

    @property
    def padded(self) -> tuple[int, int]:
        """(width, height) of what is encoded."""
        width, height = self.size
        return self.size if self.piece == ".mov" else (width + width % 2, height + height % 2)

    def time(self, frame: int) -> Fraction:
        """When a frame is shown, in seconds; of one beyond the last, where the video ends."""
        if self.spaced is None:
            return frame / self.fps
        return Fraction(self.spaced.ticks[frame], 1_000_000) if frame < len(self.spaced.ticks) else self.spaced.length


class Encoder:
    """An ffmpeg that writes frame number `first` of a film and what follows into `path`.

    In MP4 and MOV the piece begins at time 0. WebM keeps whole milliseconds, so there it begins when it does in the
    film: times are rounded once.
    """

    def __init__(self, film: Film, path: Path, first: int) -> None:
        self.film, self.path, self.first, self.count = film, path, first, 0
        width, height = film.padded
        if film.spaced is None:
            feed = ["-f", "rawvideo", "-pixel_format", "rgba" if film.alpha else "rgb24"]
            feed += ["-video_size", f"{width}x{height}", "-framerate", str(film.fps), "-i", "pipe:0"]
            clock = []
        else:
            feed = ["-probesize", "32", "-analyzeduration", "0", "-f", "matroska", "-i", "pipe:0"]
            feed += ["-fps_mode", "passthrough", "-enc_time_base", f"1:{TICKS}"]
            clock = [] if film.piece == ".webm" else ["-video_track_timescale", str(TICKS)]
        if film.piece == ".webm":
            feed = ["-itsoffset", f"{micros(film.time(first))}us", *feed]
        codec = _codec(film.suffix, film.alpha, film.crf, film.colour)
        end = ["-f", MUXERS[film.piece], "-y", f"file:{path.absolute()}"]
        self._process = Process(command(*feed, *codec, *clock, *end), feed=True)

    def write(self, frame: Image) -> None:
        (width, height), (wide, high) = self.film.size, self.film.padded
        shape = (height, width, 4 if self.film.alpha else 3)
        if frame.shape != shape or frame.dtype != np.uint8:
            raise ValueError(f"expected {shape} uint8, got {frame.shape} {frame.dtype}")
        if (wide, high) != (width, height):
            frame = np.pad(frame, ((0, high - height), (0, wide - width), (0, 0)), mode="edge")
        if self.film.spaced and not self.count:
            self._send(matroska_head(wide, high, b"RGBA" if self.film.alpha else b"RGB\x18"))
        if self.film.spaced:
            self._send(self.film.spaced.block(self.first, self.first + self.count, frame.nbytes))
        self._send(np.ascontiguousarray(frame).data.cast("B"))
        self.count += 1

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._process.write(data)
        except OSError as error:
            self._process.finish()
            raise unwritable(self.path, self.film.out, self._process.messages()) from error

    def finish(self) -> None:
        """Wait until all is written."""
        if self._process.finish() != 0 and self.count:
            raise unwritable(self.path, self.film.out, self._process.messages())

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()


def _codec(suffix: str, alpha: bool, crf: int, colour: Colour) -> list[str]:
    """Conversion by the matrix of `colour`, its tag, encoder."""
    if suffix == ".webm":
        kind = "yuva420p" if alpha else "yuv420p"
        codec = ["-c:v", "libvpx-vp9", "-crf", str(min(63, crf + 12)), "-b:v", "0", "-row-mt", "1"]
        codec += ["-deadline", "good", "-cpu-used", "5", *(["-auto-alt-ref", "0"] if alpha else [])]
    elif alpha:
        kind = "yuva444p10le"
        codec = ["-c:v", "prores_ks", "-profile:v", "4444", "-vendor", "apl0", "-alpha_bits", "16"]
    else:
        kind = "yuv420p"
        codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", str(crf)]
    # Decoding repeats each chroma sample, so taking means inverts it; and it rounds down, by about one step of Y'.
    step = 4 if kind.endswith("p10le") else 1
    filters = (
        f"scale=out_color_matrix={MATRIX[colour]}:out_range=tv:flags=area+accurate_rnd+full_chroma_inp,"
        f"format={kind},lutyuv=y='if(lte(val,minval),val,min(val+{step},maxval))',"
        f"setparams=range=tv:colorspace={MATRIX[colour]}:color_primaries=bt709:color_trc=bt709"
    )
    return ["-vf", filters, *codec]


def micros(time: Fraction) -> int:
    """Seconds in microseconds."""
    return round(time * 1_000_000)
