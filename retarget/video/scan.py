"""Looking at a video file: its size, rate, times, colours and sound.

`probe` lists the presentation time of every frame: from the packets of an intact MP4, MOV, Matroska or WebM, and by
decoding for all else.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import UsageError, VideoError
from .colour import Colour, colour_of
from .images import MAX_PIXELS, is_image
from .packets import Table, decode_times
from .process import check_file, command, guarded_input, run, tail

MAX_GAP = 600
"""Seconds: a frame that is shown for longer is a broken clock."""
TICKS = 90_000
"""Per second, for the times of a video with a variable rate."""
_EPSILON = Fraction(1, 1_000_000)
_COUNTABLE = {"h264", "hevc", "vp8", "vp9", "av1", "prores", "mjpeg"}  # one packet holds one shown frame
_NEARLY_SQUARE = Fraction(1, 200)
_FLATTEST = 8  # a wider or narrower pixel is a damaged header


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, as this package decodes it.

    width, height  upright, square pixels
    fps            frames per second, exact (24000/1001, not 23.98); of a variable rate: frames / duration
    frames         how many frames can be decoded
    duration       seconds from the first frame to the end of the last
    has_audio      there is a sound track that can be decoded
    variable       the frames are not evenly spaced: use `timestamps`
    colour         matrix tag to give to `open_writer`
    damage         "" or one sentence about what ffmpeg complained of; `frames` counts what can still be decoded
    """

    path: Path
    width: int
    height: int
    fps: Fraction
    frames: int
    duration: float
    has_audio: bool
    variable: bool
    colour: Colour = "bt601"
    damage: str = ""


@dataclass(frozen=True)
class Audio:
    codec: str
    start: Fraction  # seconds on the container's clock


@dataclass(frozen=True)
class Scan:
    """All that one look at a file tells; times are ticks of `tick` seconds on the container's clock, sorted."""

    info: VideoInfo
    times: tuple[int, ...]
    tick: Fraction
    start: Fraction  # where the container's clock starts, seconds
    audio: Audio | None
    interlaced: bool
    before: str  # filters that bring the frames to plain 8 bit Y'CbCr
    seekable: bool

    def seconds(self, index: int) -> Fraction:
        """Time of a frame after the first one."""
        return (self.times[index] - self.times[0]) * self.tick

    def between(self, start: float, end: float | None) -> range:
        """Numbers of the frames with start <= time < end. Raises UsageError when there are none."""
        piece = f"from {start:g} s" + ("" if end is None else f" to {end:g} s")
        if not 0 <= start < math.inf or (end is not None and not start < end < math.inf):
            raise UsageError(f"A piece {piece} of a video cannot be.", "Give a start of 0 or more and a later end.")

        def place(seconds: float) -> int:
            return bisect_left(self.times, self.times[0] + (Fraction(seconds) - _EPSILON) / self.tick)

        low, high = place(start), len(self.times) if end is None else place(end)
        if low >= high:
            raise UsageError(
                f"{self.info.path.name} has no frame {piece}; it is {self.info.duration:.2f} s long.",
                "Choose a start and an end inside the video.",
            )
        return range(low, high)


_scans: dict[tuple[Path, Path, int, int], Scan] = {}


def probe(path: str | Path) -> VideoInfo:
    """Look at a video without decoding it (as far as its container can be trusted). Remembered until the file changes.

    Raises InputError when there is no such file, VideoError when it is no video or nothing of it can be decoded.
    """
    return scanned(path).info


def timestamps(path: str | Path, start: float = 0.0, end: float | None = None) -> list[float]:
    """Times in seconds of the frames with start <= time < end, counted from the first of them.

    Raises as `probe` does, and UsageError when there are none.
    """
    scan = scanned(path)
    chosen = scan.between(start, end)
    times: list[float] = []
    for i in chosen:
        time = float((scan.times[i] - scan.times[chosen[0]]) * scan.tick)
        times.append(max(time, times[-1] + 1 / TICKS) if times else time)  # damaged files give one time to several
    return times


def scanned(path: str | Path) -> Scan:
    """All that `probe` finds out. Raises as that does."""
    path = Path(path)
    state = check_file(path)
    key = (path, path.absolute(), state.st_mtime_ns, state.st_size)
    if key not in _scans:
        _scans[key] = _look(path)
    return _scans[key]


def _look(path: Path) -> Scan:
    """One run: packets of the first real video stream (0), its first decoded frame (1), packets of its sound (2)."""
    done = run(
        command(
            *guarded_input(path),
            *("-copyts", "-map", "0:V:0", "-map", "0:V:0", "-map", "0:a:0?", "-c", "copy"),
            *("-c:v:1", "rawvideo", "-filter:v:1", "trim=end_frame=1", "-fps_mode:v:1", "passthrough"),
            *("-f", "framecrc", "pipe:1"),
            level="level+info",
        )
    )
    table = Table.parse(done.stdout)
    if 0 not in table.rows or 1 not in table.rows:
        raise unreadable(path, done.stderr)
    stream = _mapped_stream(done.stderr)
    complaints = [line for line in done.stderr.splitlines() if re.search(r"\[(error|fatal)\]|Packet corrupt", line)]
    packets = [row for row in table.rows[0] if not row.discarded]
    demuxer = re.search(r"Input #0, (\S+), from", done.stderr)
    seekable = bool(demuxer and re.search(r"\b(mov|matroska)\b", demuxer[1]))
    trusted = (
        seekable
        and not complaints
        and table.header[0].get("codec_id") in _COUNTABLE
        and bool(packets)
        and packets[0].key
        and all(row.pts is not None and row.pts >= cast("int", packets[0].pts) for row in packets)
        and len({row.pts for row in packets}) == len(packets)
    )
    tick = Fraction(table.header[0]["tb"])
    if not trusted:
        # Packets and frames may differ (damage, leading pictures without a reference, odd containers): decode.
        tick, packets = decode_times(path, tick)
        if not packets:
            raise unreadable(path, done.stderr)
    times = _increasing(sorted(cast("int", row.pts) for row in packets))
    if len(times) == 1 and is_image(path):
        raise unreadable(path, "")
    jump = next((i for i, (a, b) in enumerate(pairwise(times), 1) if (b - a) * tick > MAX_GAP), None)
    if jump is not None:
        raise VideoError(
            f"The clock of {path} jumps by {float((times[jump] - times[jump - 1]) * tick):.0f} s at frame {jump}.",
            "Export it again as .mp4.",
        )
    span = times[-1] - times[0]
    whole = sum(row.duration for row in packets)  # a packet's own duration may be that of another one in decoding order

    width, height = (int(v) for v in table.header[1]["dimensions"].split("x"))
    over, under = (int(v) for v in table.header[1].get("sar", "0/1").split("/"))
    sar = Fraction(over, under) if over > 0 < under else Fraction(1)
    if abs(sar - 1) > _NEARLY_SQUARE and Fraction(1, _FLATTEST) <= sar <= _FLATTEST:
        width = max(1, round(width * sar))
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{path} has frames of {width} x {height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels.",
            "Scale it down first.",
        )
    rate = _constant_rate(times, tick, stream)
    if rate is None:
        gaps = sorted(b - a for a, b in pairwise(times))
        duration = (whole if gaps[0] <= whole - span <= gaps[-1] else span + gaps[len(gaps) // 2]) * tick
        fps = (len(times) / duration).limit_denominator(100_000)
    else:
        fps, duration = rate, len(times) / rate
    colour, before = colour_of(stream)
    audio = None
    if 2 in table.rows and table.header[2].get("codec_id", "none") not in ("none", "unknown"):
        tick2 = Fraction(table.header[2]["tb"])
        start = min((row.pts for row in table.rows[2] if row.pts is not None and not row.discarded), default=0)
        audio = Audio(table.header[2]["codec_id"], start * tick2)
    clock = re.search(r"Duration: .*?, start: (-?[\d.]+)", done.stderr)
    info = VideoInfo(
        path=path,
        width=width,
        height=height,
        fps=fps,
        frames=len(times),
        duration=float(duration),
        has_audio=audio is not None,
        variable=rate is None,
        colour=colour,
        damage=f"{path.name} is damaged; {len(times)} frames of it can be read ({tail(complaints[0])})."
        if complaints
        else "",
    )
    zero = Fraction(clock[1]) if clock else Fraction(0)
    interlaced = bool(re.search(r"\((?:[^()]*, )?(?:top|bottom) (?:coded )?first", stream)) and min(width, height) >= 4
    return Scan(info, tuple(times), tick, zero, audio, interlaced, before, seekable)


def _increasing(times: list[int]) -> list[int]:
    """Sorted times, each at least a tick after the one before: damaged files give one time to several frames."""
    for i in range(1, len(times)):
        times[i] = max(times[i], times[i - 1] + 1)
    return times


def _mapped_stream(messages: str) -> str:
    """ffmpeg's line about the input stream that was taken: "h264 (High) ..., yuv420p(tv, bt709), 640x360, ..."."""
    mapping = re.search(r"Stream #0:(\d+) -> #0:0", messages)
    number = mapping[1] if mapping else "0"
    line = re.search(rf"Stream #0:{number}\b.*?Video: (.*)", messages)
    return line[1] if line else ""


def _constant_rate(times: list[int], tick: Fraction, stream: str) -> Fraction | None:
    """The exact frame rate when the times are an even grid rounded to ticks, else None."""
    if len(times) == 1:
        hint = re.search(r"([\d.]+) fps", stream)
        return Fraction(hint[1]) if hint and float(hint[1]) > 0 else Fraction(25)
    gaps = {b - a for a, b in pairwise(times)}
    if len(gaps) == 1:
        gap = gaps.pop()
        return 1 / (gap * tick) if gap > 0 else None
    if max(gaps) - min(gaps) > 2 or min(gaps) <= 0:
        return None
    mean = Fraction(len(times) - 1, times[-1] - times[0]) / tick
    for rate in (
        Fraction(round(mean)),
        Fraction(round(mean * 1001 / 1000) * 1000, 1001),
        mean.limit_denominator(100),
        mean.limit_denominator(1001),
    ):
        if rate <= 0:
            continue
        step = float(1 / (rate * tick))
        rest = np.asarray(times, np.float64) - np.arange(len(times)) * step
        if rest.max() - rest.min() <= 1 + 1e-6:  # all rounded, or all cut, to a tick
            return rate
    return None


def unreadable(path: Path, messages: str) -> VideoError:
    """The sentence for a file in which ffmpeg found no moving pictures."""
    if is_image(path):
        return VideoError(f"{path} is a picture, not a video.", "Give a video file here.")
    if "not on whitelist" in messages or "not in whitelist" in messages:
        return VideoError(f"{path} is of a kind that is not opened.", "Give a plain video file, such as .mp4.")
    if "matches no streams" in messages:
        return VideoError(f"{path} holds no pictures.", "Give a file with a video track.")
    return VideoError(
        f"{path} is no video, or it is broken ({tail(messages)}).",
        "Check that it plays, or export it again as .mp4.",
    )
