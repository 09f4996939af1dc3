"""Video and picture files in, video files out. The only module that starts ffmpeg (imageio-ffmpeg's binary, by pipes).

Frames are RGB uint8 (H, W, 3), upright (rotation applied), with square pixels (a sample aspect ratio within 0.5 % of
1 counts as square), 8 bit. Streams have back-pressure both ways: ffmpeg waits when nobody reads, `write` for ffmpeg.

Frame accuracy. `probe` lists the presentation time of every frame (from the packets of an intact MP4, MOV, Matroska or
WebM; by decoding for all else), and every frame comes exactly once: none is dropped or doubled for an even rate.

Colour. Y'CbCr becomes RGB by the matrix that the file names, as players do it; by that of BT.601, as `cv2.VideoCapture`
does it, where it names none. `VideoInfo.colour` says which, and `open_writer` goes back by the one it is told and names
it. High dynamic range (PQ, HLG) is tone-mapped to BT.709 first, standard-range BT.2020 converted to it. Interlaced
frames are deinterlaced, one for one.

Safety. Inputs are plain local files: protocols `file` and `pipe` only, common containers only (no playlists).
"""

from __future__ import annotations

import math
import os
import re
import secrets
import subprocess
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from . import folders
from .errors import InputError, RetargetError, StorageError, UsageError, VideoError
from .types import Image

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""How the names of pictures end."""
Colour = Literal["bt601", "bt709"]
_MATRIX: dict[Colour, str] = {"bt601": "smpte170m", "bt709": "bt709"}
MAX_PIXELS = 100_000_000
"""The largest picture that is opened, and the largest frame of a video."""
MAX_GAP = 600
"""Seconds: a frame that is shown for longer is a broken clock."""

_DEMUXERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mjpeg,h264,hevc,m4v,mxf,dv,nut,"
    "yuv4mpegpipe,ivf"
)
_COUNTABLE = {"h264", "hevc", "vp8", "vp9", "av1", "prores", "mjpeg"}  # one packet holds one shown frame
_NEARLY_SQUARE = Fraction(1, 200)
_FLATTEST = 8  # a wider or narrower pixel is a damaged header
_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
_COPY_AUDIO = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac"},
    ".webm": {"opus", "vorbis"},
    ".mkv": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "vorbis", "flac", "pcm_s16le"},
}
_COPY_AUDIO[".m4v"] = _COPY_AUDIO[".mov"] = _COPY_AUDIO[".mp4"]
_TONE_MAP = (
    "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=tonemap=mobius:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)  # white of ordinary pictures is 203 cd/m² (ITU-R BT.2408); mobius leaves what is darker than 0.3 of it alone
_WIDE_GAMUT = "zscale=p=bt709:t=bt709:m=bt709:r=tv,format=yuv420p"
_DEINTERLACE = "bwdif=mode=send_frame:deint=interlaced"
_TICKS = 90_000  # per second, for the times of a video with a variable rate
_EPSILON = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, as this module decodes it.

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
class _Audio:
    codec: str
    start: Fraction  # seconds on the container's clock


@dataclass(frozen=True)
class _Scan:
    """All that one look at a file tells; times are ticks of `tick` seconds on the container's clock, sorted."""

    info: VideoInfo
    times: tuple[int, ...]
    tick: Fraction
    start: Fraction  # where the container's clock starts, seconds
    audio: _Audio | None
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


# ------------------------------------------------------------------------------------------------ starting ffmpeg


@cache
def ffmpeg() -> str:
    """Path of the ffmpeg binary. Raises RetargetError when there is none."""
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise RetargetError("There is no ffmpeg.", "Run pip install --force-reinstall imageio-ffmpeg.") from error


def _arguments(*arguments: str, level: str = "error") -> list[str]:
    return [ffmpeg(), "-hide_banner", "-nostdin", "-nostats", "-loglevel", level, *arguments]


def _input(path: Path, *options: str) -> list[str]:
    """Options and `-i` for a local file; an absolute `file:` name is safe with dashes, colons, spaces."""
    guard = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _DEMUXERS]
    return [*guard, *options, "-i", f"file:{path.absolute()}"]


def _tail(messages: str) -> str:
    """The last telling line of what ffmpeg wrote, without its addresses and level marks."""
    lines = [re.sub(r"\[[^\]]*\]\s*|^Error opening input: ", "", line).strip() for line in messages.splitlines()]
    dull = ("Conversion failed", "Error opening input file", "Error opening output file", "Press [q]")
    lines = [line for line in lines if line and not line.startswith(dull) and "Last message repeated" not in line]
    return lines[-1].rstrip(".") if lines else "no message"


def _run(arguments: Sequence[str], *, feed: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ffmpeg to its end, in folder `cwd`, with `feed` as its stdin; killed when anything interrupts the wait."""
    return subprocess.run(
        arguments,
        input=feed,
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        start_new_session=True,
    )


class _Process:
    """A streaming ffmpeg. Leaving the `with` block ends it at once if it still runs, whatever the reason."""

    def __init__(self, arguments: Sequence[str], *, feed: bool) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__; a file never fills up
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if feed else subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                start_new_session=True,  # Ctrl-C goes to us alone; we end ffmpeg
            )
        except BaseException:
            self._log.close()
            raise
        self.pipe = cast("IO[bytes]", self._process.stdin if feed else self._process.stdout)
        with suppress(ImportError, AttributeError, OSError):
            import fcntl

            fcntl.fcntl(self.pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        with suppress(OSError):
            self.pipe.close()
        self._process.wait()
        self._log.close()

    def finish(self) -> int:
        """Close the pipe, wait for the end, return the exit status."""
        with suppress(OSError):
            self.pipe.close()
        return self._process.wait()

    def messages(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer; returns how many bytes came, fewer only at the end of the stream."""
        filled = 0
        while filled < len(buffer):
            got = cast("int", self.pipe.readinto(buffer[filled:]))  # type: ignore[attr-defined]
            if not got:
                break
            filled += got
        return filled

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            view = view[self.pipe.write(view) :]


# ------------------------------------------------------------------------------------------------ looking at a file

_scans: dict[tuple[Path, Path, int, int], _Scan] = {}


def probe(path: str | Path) -> VideoInfo:
    """Look at a video without decoding it (as far as its container can be trusted). Remembered until the file changes.

    Raises InputError when there is no such file, VideoError when it is no video or nothing of it can be decoded.
    """
    return _scan(path).info


def timestamps(path: str | Path, start: float = 0.0, end: float | None = None) -> list[float]:
    """Times in seconds of the frames with start <= time < end, counted from the first of them.

    Raises as `probe` does, and UsageError when there are none.
    """
    scan = _scan(path)
    chosen = scan.between(start, end)
    times: list[float] = []
    for i in chosen:
        time = float((scan.times[i] - scan.times[chosen[0]]) * scan.tick)
        times.append(max(time, times[-1] + 1 / _TICKS) if times else time)  # damaged files give one time to several
    return times


def _scan(path: str | Path) -> _Scan:
    path = Path(path)
    state = _check_file(path)
    key = (path, path.absolute(), state.st_mtime_ns, state.st_size)
    if key not in _scans:
        _scans[key] = _look(path)
    return _scans[key]


def _check_file(path: Path) -> os.stat_result:
    """Raises InputError for what cannot be a readable file."""
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"There is no file {path}.", "Check the name and the folder.") from error
    if not path.is_file():
        raise InputError(f"{path} is not a file.", "Give the name of a video or picture file.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} must not be read.", "Change its permissions, or copy it to a folder of yours.")
    if state.st_size == 0:
        raise InputError(f"{path} is empty.", "Copy or export the file again.")
    return state


def _look(path: Path) -> _Scan:
    """One run: packets of the first real video stream (0), its first decoded frame (1), packets of its sound (2)."""
    run = _run(
        _arguments(
            *_input(path),
            *("-copyts", "-map", "0:V:0", "-map", "0:V:0", "-map", "0:a:0?", "-c", "copy"),
            *("-c:v:1", "rawvideo", "-filter:v:1", "trim=end_frame=1", "-fps_mode:v:1", "passthrough"),
            *("-f", "framecrc", "pipe:1"),
            level="level+info",
        )
    )
    table = _Table.parse(run.stdout)
    if 0 not in table.rows or 1 not in table.rows:
        raise _unreadable(path, run.stderr)
    stream = _mapped_stream(run.stderr)
    complaints = [line for line in run.stderr.splitlines() if re.search(r"\[(error|fatal)\]|Packet corrupt", line)]
    packets = [row for row in table.rows[0] if not row.discarded]
    demuxer = re.search(r"Input #0, (\S+), from", run.stderr)
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
        tick, packets = _decode_times(path, tick)
        if not packets:
            raise _unreadable(path, run.stderr)
    times = _increasing(sorted(cast("int", row.pts) for row in packets))
    if len(times) == 1 and is_image(path):
        raise _unreadable(path, "")
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
    colour, before = _colour(stream)
    audio = None
    if 2 in table.rows and table.header[2].get("codec_id", "none") not in ("none", "unknown"):
        tick2 = Fraction(table.header[2]["tb"])
        start = min((row.pts for row in table.rows[2] if row.pts is not None and not row.discarded), default=0)
        audio = _Audio(table.header[2]["codec_id"], start * tick2)
    clock = re.search(r"Duration: .*?, start: (-?[\d.]+)", run.stderr)
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
        damage=f"{path.name} is damaged; {len(times)} frames of it can be read ({_tail(complaints[0])})."
        if complaints
        else "",
    )
    zero = Fraction(clock[1]) if clock else Fraction(0)
    interlaced = bool(re.search(r"\((?:[^()]*, )?(?:top|bottom) (?:coded )?first", stream)) and min(width, height) >= 4
    return _Scan(info, tuple(times), tick, zero, audio, interlaced, before, seekable)


def _increasing(times: list[int]) -> list[int]:
    """Sorted times, each at least a tick after the one before: damaged files give one time to several frames."""
    for i in range(1, len(times)):
        times[i] = max(times[i], times[i - 1] + 1)
    return times


@dataclass(frozen=True)
class _Row:
    pts: int | None
    duration: int
    key: bool
    discarded: bool


@dataclass(frozen=True)
class _Table:
    """What ffmpeg's `framecrc` format writes: facts and packets of each stream."""

    header: dict[int, dict[str, str]]
    rows: dict[int, list[_Row]]

    @staticmethod
    def parse(text: str) -> _Table:
        header: dict[int, dict[str, str]] = {}
        rows: dict[int, list[_Row]] = {}
        for line in text.splitlines():
            if line.startswith("#"):
                fact = re.match(r"#(\w+) (\d+): (.*)", line)
                if fact:
                    header.setdefault(int(fact[2]), {})[fact[1]] = fact[3]
                continue
            cells = [cell.strip() for cell in line.split(",")]
            flags = next((int(c[4:], 16) for c in cells[6:] if c.startswith("F=0x")), 1)
            pts = int(cells[2]) if cells[2] != "NOPTS" else None
            duration = int(cells[3])
            rows.setdefault(int(cells[0]), []).append(_Row(pts, duration, bool(flags & 1), bool(flags & 4)))
        return _Table(header, rows)


def _decode_times(path: Path, tick: Fraction) -> tuple[Fraction, list[_Row]]:
    """Times of all frames by decoding everything; a tiny crop keeps the pipe idle."""
    run = _run(
        _arguments(
            *_input(path, "-noautorotate"),
            *("-copyts", "-map", "0:V:0", "-vf", "crop=1:1:0:0:exact=1", "-fps_mode", "passthrough"),
            *("-enc_time_base", f"{tick.numerator}:{tick.denominator}", "-f", "framecrc", "pipe:1"),
        )
    )
    table = _Table.parse(run.stdout)
    rows = [row for row in table.rows.get(0, []) if row.pts is not None]
    return (Fraction(table.header[0]["tb"]) if rows else tick), rows


def _unreadable(path: Path, messages: str) -> VideoError:
    """The sentence for a file in which ffmpeg found no moving pictures."""
    if is_image(path):
        return VideoError(f"{path} is a picture, not a video.", "Give a video file here.")
    if "not on whitelist" in messages or "not in whitelist" in messages:
        return VideoError(f"{path} is of a kind that is not opened.", "Give a plain video file, such as .mp4.")
    if "matches no streams" in messages:
        return VideoError(f"{path} holds no pictures.", "Give a file with a video track.")
    return VideoError(
        f"{path} is no video, or it is broken ({_tail(messages)}).",
        "Check that it plays, or export it again as .mp4.",
    )


def _mapped_stream(messages: str) -> str:
    """ffmpeg's line about the input stream that was taken: "h264 (High) ..., yuv420p(tv, bt709), 640x360, ..."."""
    mapping = re.search(r"Stream #0:(\d+) -> #0:0", messages)
    number = mapping[1] if mapping else "0"
    line = re.search(rf"Stream #0:{number}\b.*?Video: (.*)", messages)
    return line[1] if line else ""


def _colour(stream: str) -> tuple[Colour, str]:
    """The tag to write again, and the filters that go before the plain conversion."""
    tags = re.search(r", \w+\(([^)]*)\), \d+x\d+", stream)
    names: list[str] = []
    for part in tags[1].split(", ") if tags else ():
        if "/" in part or re.fullmatch(r"(bt|smpte|arib|gbr|fcc|ycg)\S*", part):
            names = part.split("/") if "/" in part else [part] * 3
    if not names:
        return "bt601", ""
    matrix, primaries, transfer = names
    bright = transfer in ("smpte2084", "arib-std-b67")
    if (bright or matrix in ("bt2020nc", "bt2020c")) and _has_zscale():
        # zscale refuses what is not told, or told wrongly: then it is what such a video normally has.
        told = (
            f"setparams=colorspace={matrix if matrix in ('bt709', 'bt2020c', 'gbr') else 'bt2020nc'}"
            f":color_primaries={primaries if primaries in ('bt709', 'smpte431', 'smpte432') else 'bt2020'}"
            f":color_trc={transfer if bright or transfer == 'bt709' else 'bt2020-10'},"
        )
        return "bt709", told + (_TONE_MAP if bright else _WIDE_GAMUT)
    return ("bt709" if matrix == "bt709" else "bt601"), ""


@cache
def _has_zscale() -> bool:
    return " zscale " in _run(_arguments("-filters")).stdout


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


# ------------------------------------------------------------------------------------------------ reading


@contextmanager
def open_reader(
    path: str | Path,
    *,
    start: float = 0.0,
    end: float | None = None,
    size: tuple[int, int] | None = None,
    skip: int = 0,
) -> Iterator[Iterator[Image]]:
    """The frames with start <= time < end (seconds after the first frame), each once, as they are decoded.

    Args:
        skip: leave out so many of them (fewer than there are); what lies before is not decoded where it can be seeked.
        size: (width, height) to scale to (area when smaller, bicubic when larger); None keeps `probe`'s size.

    Raises InputError or VideoError as `probe` does, UsageError when the piece holds no frame, and VideoError, naming
    the frame, when the file gives fewer frames than `probe` found. ffmpeg ends with the `with` block, whatever happens.
    """
    scan = _scan(path)
    chosen = scan.between(start, end)[skip:]
    width, height = size or (scan.info.width, scan.info.height)
    if width < 1 or height < 1:
        raise ValueError(f"size must be positive, not {size}")
    shrink = width * height < scan.info.width * scan.info.height
    seek: list[str] = []
    if scan.seekable and scan.seconds(chosen.start) > 2:
        # To the key frame before; -seek_timestamp counts on the container's own clock.
        at = scan.times[chosen.start] * scan.tick
        seek = ["-noaccurate_seek", "-seek_timestamp", "1", "-ss", f"{float(at) - 0.5:.6f}"]

    def cut(index: int) -> str:
        """A time well between a frame and the one before, even after rounding to ticks one frame long."""
        return f"{float((scan.times[index - 1] + 3 * scan.times[index]) * scan.tick / 4):.6f}"

    filters = [
        *([_DEINTERLACE] if scan.interlaced else []),
        *([f"trim=start={cut(chosen.start)}"] if chosen.start > 0 else []),
        *([f"trim=end={cut(chosen.stop)}"] if chosen.stop < len(scan.times) else []),
        *([scan.before] if scan.before else []),
        f"setparams=colorspace={_MATRIX[scan.info.colour]}",
        f"scale={width}:{height}:flags={'area' if shrink else 'bicubic'}",
        "format=rgb24",
    ]
    arguments = _arguments(
        *_input(scan.info.path, *seek),
        *("-copyts", "-map", "0:V:0", "-vf", ",".join(filters), "-fps_mode", "passthrough"),
        *("-f", "rawvideo", "pipe:1"),
    )
    with _Process(arguments, feed=False) as process:
        yield _frames(process, scan, chosen, width, height)


def _frames(process: _Process, scan: _Scan, chosen: range, width: int, height: int) -> Iterator[Image]:
    for number in chosen:
        frame = np.empty((height, width, 3), np.uint8)
        if process.read_into(frame.data.cast("B")) < frame.nbytes:
            process.finish()
            raise _shortage(scan, chosen, number, process.messages())
        yield frame


def _shortage(scan: _Scan, chosen: range, number: int, messages: str) -> VideoError:
    """The error for too few frames: names the first that cannot be decoded, or else where the stream ended."""
    path = scan.info.path
    decoded = {(cast("int", row.pts) - scan.times[0]) * scan.tick for row in _decode_times(path, scan.tick)[1]}
    lost = next((i for i in chosen if scan.seconds(i) not in decoded), None)
    place = number if lost is None else lost
    return VideoError(
        f"{path} {'breaks off' if lost is None else 'is damaged'} at frame {place} of {len(scan.times)}"
        f" ({_tail(messages)}).",
        f"Export the file again, or stop before that place with --end {float(scan.seconds(place)):.2f}.",
    )


# ------------------------------------------------------------------------------------------------ writing

SEGMENT = 120
"""Frames in each finished piece of a long video."""
_MUXERS = {".mp4": "mp4", ".m4v": "ipod", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


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
    film = _film(out, size, fps, audio_from, start, end, metadata, alpha, crf, timestamps, colour)
    with _part(film.out) as silent:
        with _Encoder(film, silent, 0) as encoder:
            yield encoder.write
            encoder.finish()
        if encoder.count:
            folders.flush(silent)
        _join(film, [silent], [encoder.count])


@contextmanager
def open_segments(
    folder: Path, out: str | Path, size: tuple[int, int], fps: Fraction, *, first: int = 0, **options: Any
) -> Iterator[Segments]:
    """As `open_writer`, for long videos: finished segments are kept in `folder`, from which another run can go on.

    When the block ends well, the segments are joined without being encoded again. As they always begin at the same
    frames, a video that was made in several runs has the same frames to the bit as one made in one go.

    Args:
        folder: of the unfinished work; nobody else may use it at the same time.
        out, size, fps: as for `open_writer`.
        first: frames that the segments in `folder` should hold already, a multiple of `SEGMENT`; what goes beyond is
            deleted. When they do not hold them, everything is: see `Segments.first`.
        options: the others of `open_writer`; `metadata` may change until the block ends.

    Raises as `open_writer` does.
    """
    film = _film(out, size, fps, **options)
    segments = Segments(folder, film, first)
    with segments:
        yield segments
    _join(film, *segments.finished(), token=folder.name)


class Segments:
    """Writes a video as segments, each by an encoder of its own; while one ends, the next takes frames already.

    first  the frame to go on with: all before it are there.
    """

    def __init__(self, folder: Path, film: _Film, first: int) -> None:
        self._folder, self._film = folder, film
        self._encoder: _Encoder | None = None
        self._ending: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        here = {int(path.stem): path for path in folder.glob(f"[0-9]*{film.piece}")}
        if first % SEGMENT or not here.keys() >= set(range(0, first, SEGMENT)):
            first = 0
        self.first = self._next = first
        self._starts = list(range(0, first, SEGMENT))
        for start, path in here.items():
            if start >= first:
                path.unlink()

    def _path(self, start: int) -> Path:
        return self._folder / f"{start:09d}{self._film.piece}"

    @property
    def full(self) -> bool:
        """Whether the running segment has all its `SEGMENT` frames, so that it has to be cut."""
        return self._encoder is not None and self._encoder.count >= SEGMENT

    def write(self, frame: Image) -> None:
        """Append one frame."""
        if self._encoder is None:
            self._encoder = _Encoder(self._film, self._folder / f".{self._next:09d}.part", self._next).__enter__()
        self._encoder.write(frame)

    def cut(self, done: Callable[[], object] = lambda: None) -> None:
        """End the running segment, if there is one. `done` is called, in another thread, when it is safely on the disk.

        Raises what went wrong with the segment before this one.
        """
        self._settle()
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        path = self._path(self._next)
        self._starts.append(self._next)
        self._next += encoder.count

        def end() -> None:
            with encoder:
                encoder.finish()
                folders.flush(encoder.path)
                os.replace(encoder.path, path)
            done()

        self._ending = self._pool.submit(end)

    def _settle(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.result()

    def finished(self) -> tuple[list[Path], list[int]]:
        """The segments, and how many frames each has."""
        counts = [b - a for a, b in pairwise([*self._starts, self._next])]
        return [self._path(start) for start in self._starts], counts

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.cut()
                self._settle()
        finally:
            if self._encoder is not None:
                self._encoder.__exit__()
            self._pool.shutdown()


@dataclass(frozen=True)
class _Film:
    """All about a video to write but its frames; see `open_writer`."""

    out: Path
    size: tuple[int, int]
    fps: Fraction
    sound: tuple[_Scan, range] | None
    metadata: Mapping[str, str]
    alpha: bool
    crf: int
    spaced: _Spacing | None
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


def _film(
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
) -> _Film:
    out = Path(out)
    check_out(out, alpha)
    sound = None
    if audio_from is not None:
        source = _scan(audio_from)
        if source.audio is not None:
            sound = (source, source.between(start, end))
            _check_sound(source.info.path)
    if min(size) < 1:
        raise ValueError(f"size must be positive, not {size}")
    spaced = None if timestamps is None else _Spacing.of(timestamps, fps)
    return _Film(out, size, fps, sound, {} if metadata is None else metadata, alpha, crf, spaced, colour)


class _Encoder:
    """An ffmpeg that writes frame number `first` of a film and what follows into `path`.

    In MP4 and MOV the piece begins at time 0. WebM keeps whole milliseconds, so there it begins when it does in the
    film: times are rounded once.
    """

    def __init__(self, film: _Film, path: Path, first: int) -> None:
        self.film, self.path, self.first, self.count = film, path, first, 0
        width, height = film.padded
        if film.spaced is None:
            feed = ["-f", "rawvideo", "-pixel_format", "rgba" if film.alpha else "rgb24"]
            feed += ["-video_size", f"{width}x{height}", "-framerate", str(film.fps), "-i", "pipe:0"]
            clock = []
        else:
            feed = ["-probesize", "32", "-analyzeduration", "0", "-f", "matroska", "-i", "pipe:0"]
            feed += ["-fps_mode", "passthrough", "-enc_time_base", f"1:{_TICKS}"]
            clock = [] if film.piece == ".webm" else ["-video_track_timescale", str(_TICKS)]
        if film.piece == ".webm":
            feed = ["-itsoffset", f"{_micros(film.time(first))}us", *feed]
        codec = _codec(film.suffix, film.alpha, film.crf, film.colour)
        end = ["-f", _MUXERS[film.piece], "-y", f"file:{path.absolute()}"]
        self._process = _Process(_arguments(*feed, *codec, *clock, *end), feed=True)

    def write(self, frame: Image) -> None:
        (width, height), (wide, high) = self.film.size, self.film.padded
        shape = (height, width, 4 if self.film.alpha else 3)
        if frame.shape != shape or frame.dtype != np.uint8:
            raise ValueError(f"expected {shape} uint8, got {frame.shape} {frame.dtype}")
        if (wide, high) != (width, height):
            frame = np.pad(frame, ((0, high - height), (0, wide - width), (0, 0)), mode="edge")
        if self.film.spaced and not self.count:
            self._send(_matroska_head(wide, high, b"RGBA" if self.film.alpha else b"RGB\x18"))
        if self.film.spaced:
            self._send(self.film.spaced.block(self.first, self.first + self.count, frame.nbytes))
        self._send(np.ascontiguousarray(frame).data.cast("B"))
        self.count += 1

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._process.write(data)
        except OSError as error:
            self._process.finish()
            raise _failed(self.path, self.film.out, self._process.messages()) from error

    def finish(self) -> None:
        """Wait until all is written."""
        if self._process.finish() != 0 and self.count:
            raise _failed(self.path, self.film.out, self._process.messages())

    def __enter__(self) -> _Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()


def _join(film: _Film, pieces: list[Path], counts: list[int], token: str = "") -> None:
    """The pieces one after the other, with the sound, under the film's name.

    Args:
        token: names the temporary file, so that the one that a killed run left is found and deleted.
    """
    count = sum(counts)
    if not count:
        raise VideoError(f"There was no frame to write to {film.out}.", "Check that the source video has frames.")
    if film.spaced and count != len(film.spaced.ticks):
        raise ValueError(f"{len(film.spaced.ticks)} timestamps for {count} frames")
    shown, cwd = "", pieces[0].parent
    if len(pieces) == 1:
        source = _input(pieces[0])
    else:
        # Names of ours only, in our own folder. Each piece begins where it is told, not where the one before ends.
        lines, frame, tick = ["ffconcat version 1.0"], 0, Fraction(1, 1000 if film.piece == ".webm" else 1_000_000)
        for piece, number in zip(pieces, counts, strict=True):
            begin, frame = round(film.time(frame) / tick), frame + number
            lasts = (round(film.time(frame) / tick) - begin) * tick
            lines.append(f"file 'file:{piece.name}'\nduration {_micros(lasts)}us")
        shown = "\n".join(lines)
        source = ["-protocol_whitelist", "file,pipe", "-format_whitelist", "concat,mov,mp4,matroska,webm"]
        source += ["-f", "concat", "-safe", "0", "-auto_convert", "0", "-i", "pipe:0"]
    front = film.suffix in (".mp4", ".m4v", ".mov")
    tags = [part for key, value in film.metadata.items() for part in ("-metadata", f"{key}={value}")]
    finish = [*tags, *(["-movflags", "+faststart+use_metadata_tags"] if front else [])]
    if front and film.spaced:
        # Decoding times of pieces overlap by as much as their first frames' spacing differs; the end is where it was.
        ends = f"max(1,round({float(film.time(count)):.6f}/TB)+STARTDTS-DTS)"
        last = f"setts=pts=PTS:dts=DTS:duration='if(eq(N,{count - 1}),{ends},DURATION)'"
        finish += ["-video_track_timescale", str(_TICKS), *(["-bsf:v", last] if len(pieces) > 1 else [])]
    finish += ["-f", _MUXERS[film.suffix]]

    with _part(film.out, token) as whole:

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return _run(_arguments(*arguments, *finish, "-y", f"file:{whole}"), feed=shown, cwd=cwd)

        keep = ["-map", "0:v:0", "-map_metadata", "-1", "-c:v", "copy"]
        if film.sound:
            _with_sound(film, film.time(count), source, keep, run)
        else:
            done = run(*source, *keep)
            if done.returncode != 0:
                raise _failed(film.out, film.out, done.stderr)
        try:
            folders.flush(whole)
            os.replace(whole, film.out)
        except OSError as error:
            raise StorageError(f"{film.out} cannot be written ({error.strerror}).", "Choose another name.") from error


def _micros(time: Fraction) -> int:
    return round(time * 1_000_000)


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


def _check_sound(path: Path) -> None:
    """Raises VideoError now rather than after all frames are made when the sound cannot be decoded."""
    run = _run(_arguments(*_input(path), "-map", "0:a:0", "-t", "0.2", "-f", "null", "-"))
    if run.returncode != 0:
        raise _no_sound(path, run.stderr)


def _no_sound(path: Path, messages: str) -> VideoError:
    return VideoError(f"The sound of {path} cannot be read ({_tail(messages)}).", "Leave it out with --no-audio.")


@contextmanager
def _part(out: Path, token: str = "") -> Iterator[Path]:
    """A temporary name beside `out`, gone at the end unless it was moved.

    What killed processes left there goes first: at once when it has the same token, which belongs to one process at a
    time (its ffmpeg may still be writing, so the name is new), else when nobody has written to it for long.
    """
    folder = out.absolute().parent
    for old in folder.glob(".retarget-*.part"):
        with suppress(OSError):
            own = token and old.name.startswith(f".retarget-{token}-")
            if own or time.time() - old.stat().st_mtime > folders.LEFT_BEHIND:
                old.unlink()
    part = folder / f".retarget-{token}-{secrets.token_hex(6)}.part"
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _failed(path: Path, out: Path, messages: str) -> RetargetError:
    """The error for an ffmpeg that could not write `path`, which is or becomes a part of `out`."""
    if "No space left" in messages:
        where = path if path.parent == out.parent else path.parent
        return StorageError(f"The disk is full ({where}); {out} could not be written.", "Free some space first.")
    if "Permission denied" in messages or "Read-only file system" in messages:
        return StorageError(f"{out} cannot be written ({_tail(messages)}).", "Choose another folder.")
    if encoder := re.search(r"Unknown encoder '(\w+)'", messages):
        return RetargetError(
            f"The ffmpeg in use ({ffmpeg()}) lacks the encoder {encoder[1]}.",
            "Unset IMAGEIO_FFMPEG_EXE, and run pip install --force-reinstall imageio-ffmpeg.",
        )
    return VideoError(f"ffmpeg could not write {out} ({_tail(messages)}).", "Run `retarget doctor` to check it.")


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
        f"scale=out_color_matrix={_MATRIX[colour]}:out_range=tv:flags=area+accurate_rnd+full_chroma_inp,"
        f"format={kind},lutyuv=y='if(lte(val,minval),val,min(val+{step},maxval))',"
        f"setparams=range=tv:colorspace={_MATRIX[colour]}:color_primaries=bt709:color_trc=bt709"
    )
    return ["-vf", filters, *codec]


def _with_sound(
    film: _Film,
    length: Fraction,
    pieces: list[str],
    keep: list[str],
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Join the silent video, ffmpeg's input `pieces`, and the sound of the source from its first chosen frame on."""
    assert film.sound is not None
    source, chosen = film.sound
    audio = cast("_Audio", source.audio)
    zero = source.times[chosen.start] * source.tick  # the container's time that becomes 0
    keep = [*keep, "-map", "1:a:0"]
    limit = ["-t", f"{float(length):.6f}"]
    messages = ""
    if chosen.start == 0 and audio.start - zero > -Fraction(1, 50) and audio.codec in _COPY_AUDIO[film.suffix]:
        shift = ["-itsoffset", f"{-float(zero):.6f}"]
        done = run("-copyts", *pieces, *_input(source.info.path, *shift), *keep, "-c:a", "copy", *limit)
        if done.returncode == 0:
            return
        messages = done.stderr
    seek = zero - source.start
    encoder = ["-c:a", "libopus", "-ac", "2"] if film.suffix == ".webm" else ["-c:a", "aac"]
    done = run(
        *pieces,
        *_input(source.info.path, *(["-ss", f"{float(seek):.6f}"] if seek > 0 else [])),
        *keep,
        *("-af", f"aresample=async=1:first_pts=0,apad,atrim=end={float(length):.6f}"),
        *(*encoder, "-b:a", "192k"),
        *limit,
    )
    if done.returncode != 0:
        messages = done.stderr or messages
        if "No space left" in messages:
            raise _failed(film.out, film.out, messages)
        raise _no_sound(source.info.path, messages)


# A raw Matroska stream (RFC 9559, V_UNCOMPRESSED) carries frames with their own times into ffmpeg, in microseconds.


@dataclass(frozen=True)
class _Spacing:
    """Times of frames in microseconds, and how long all of them are shown."""

    ticks: tuple[int, ...]
    length: Fraction

    @staticmethod
    def of(timestamps: Sequence[float], fps: Fraction) -> _Spacing:
        ticks = tuple(round(t * 1_000_000) for t in timestamps)
        gaps = [b - a for a, b in pairwise(ticks)]
        if not ticks or ticks[0] != 0 or any(gap <= 0 for gap in gaps):
            raise ValueError("timestamps must start at 0 and increase")
        # The last frame lasts so long that the mean rate comes out, if that is plausible, else as long as most.
        last = round(len(ticks) / fps * 1_000_000) - ticks[-1]
        if gaps and not min(gaps) * 0.9 <= last <= max(gaps) * 1.1:
            last = sorted(gaps)[len(gaps) // 2]
        return _Spacing(ticks, Fraction(ticks[-1] + last, 1_000_000))

    def block(self, first: int, index: int, size: int) -> bytes:
        """What stands before the `size` bytes of a frame: a cluster with one block; frame `first` is at time 0."""
        if index >= len(self.ticks):
            raise ValueError(f"more frames than the {len(self.ticks)} timestamps")
        here = self.ticks[index]
        after = self.ticks[index + 1] if index + 1 < len(self.ticks) else round(self.length * 1_000_000)
        head = b"\x81\0\0\0"
        length = _element(b"\x9b", _number(after - here))
        block = b"\xa1" + _size(len(head) + size) + head
        group = b"\xa0" + _size(len(length) + len(block) + size) + length + block
        time = _element(b"\xe7", _number(here - self.ticks[first]))
        return b"\x1f\x43\xb6\x75" + _size(len(time) + len(group) + size) + time + group


def _size(value: int) -> bytes:
    return (value | 1 << 56).to_bytes(8, "big")


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _element(name: bytes, content: bytes) -> bytes:
    return name + _size(len(content)) + content


def _matroska_head(width: int, height: int, fourcc: bytes) -> bytes:
    picture = _element(b"\xb0", _number(width)) + _element(b"\xba", _number(height)) + _element(b"\x2e\xb5\x24", fourcc)
    track = (
        *(_element(b"\xd7", b"\x01"), _element(b"\x73\xc5", b"\x01"), _element(b"\x83", b"\x01")),
        *(_element(b"\x9c", b"\x00"), _element(b"\x86", b"V_UNCOMPRESSED"), _element(b"\xe0", picture)),
    )
    kind = _element(b"\x42\x82", b"matroska") + _element(b"\x42\x87", b"\x04") + _element(b"\x42\x85", b"\x02")
    facts = b"".join(
        (
            _element(b"\x2a\xd7\xb1", _number(1000)),
            _element(b"\x4d\x80", b"retarget"),
            _element(b"\x57\x41", b"retarget"),
        )
    )
    return (
        _element(b"\x1a\x45\xdf\xa3", kind)
        + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff"  # a segment of unknown length
        + _element(b"\x15\x49\xa9\x66", facts)
        + _element(b"\x16\x54\xae\x6b", _element(b"\xae", b"".join(track)))
    )


def read_metadata(path: str | Path) -> dict[str, str]:
    """The tags of a video file; keys in lower case (Matroska and WebM do not keep the case).

    Raises InputError when there is no such file, VideoError when it is no video.
    """
    path = Path(path)
    _check_file(path)
    run = _run(_arguments(*_input(path), "-f", "ffmetadata", "pipe:1"))
    if run.returncode != 0:
        raise _unreadable(path, run.stderr)
    tags: dict[str, str] = {}
    text = re.split(r"^\[(?:STREAM|CHAPTER)\]$", run.stdout, maxsplit=1, flags=re.MULTILINE)[0]
    for entry in re.finditer(r"^((?:\\.|[^\\=\n;#])(?:\\.|[^\\=\n])*)=((?:\\(?:.|\n)|[^\\\n])*)$", text, re.MULTILINE):
        key, value = (re.sub(r"\\(.|\n)", r"\1", part) for part in entry.groups())
        tags[key.lower()] = value
    return tags


# ------------------------------------------------------------------------------------------------ pictures


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, by their suffixes, in order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)


def is_image(path: str | Path) -> bool:
    """Whether the file is a picture, by its first bytes (JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, HEIC)."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            head = file.read(32)
    except (OSError, ValueError):
        return False
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (head[:2] == b"BM" and head[14:18] in (b"\x28\0\0\0", b"\x0c\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or _is_heif(head)
    )


def _is_heif(head: bytes) -> bool:
    brands = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
    return head[4:8] == b"ftyp" and head[8:12] in brands


def read_image(path: str | Path) -> Image:
    """A picture as RGB uint8 (H, W, 3): upright by its EXIF tag, 16 bit brought to 8, transparency laid over white.

    Of an animation the first picture. Raises InputError for what is missing, no picture, broken or above MAX_PIXELS.
    """
    import cv2

    path = Path(path)
    _check_file(path)
    if not is_image(path):
        raise InputError(f"{path} is not a picture.", "Give a JPEG, PNG, WebP, BMP or TIFF file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).", "Copy the file again.") from error
    if _is_heif(data[:32]):
        raise InputError(f"{path} is a HEIC or AVIF picture, which is not supported.", "Save it as JPEG or PNG first.")
    broken = InputError(f"{path} is a broken picture.", "Open and save it again, or take another one.")
    size = picture_size(data)
    if size is None:  # then nobody knows how much memory it would take
        raise broken
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"{path} has {size[0]} x {size[1]} pixels, more than {MAX_PIXELS // 1_000_000} megapixels.",
            "Scale the picture down first.",
        )
    if _is_cut_short(data):  # OpenCV would fill the rest with grey
        raise broken
    if data.startswith(b"GIF8"):  # OpenCV is often built without it
        one = _arguments(*_input(path, "-f", "gif"), "-frames:v", "1", "-c:v", "png", "-f", "image2pipe", "pipe:1")
        data = subprocess.run(
            one, stdin=subprocess.DEVNULL, capture_output=True, check=False, start_new_session=True
        ).stdout
    raw = np.frombuffer(data, np.uint8)
    try:
        if not raw.size:
            raise broken
        upright = cv2.imdecode(raw, cv2.IMREAD_COLOR)
        full = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise broken from error
    if upright is None or full is None:
        raise broken
    image = np.ascontiguousarray(upright[..., ::-1])
    if full.ndim == 3 and full.shape[2] == 4 and full.shape[:2] == image.shape[:2]:
        top = {1: 255.0, 2: 65535.0}.get(full.dtype.itemsize, 1.0)
        cover = full[..., 3:].astype(np.float32) / top
        colour = full[..., 2::-1].astype(np.float32) * (255.0 / top)
        image = np.round(colour * cover + 255.0 * (1 - cover)).clip(0, 255).astype(np.uint8)
    return cast("Image", image)


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) by the header of a JPEG, PNG, GIF, BMP, WebP or TIFF, before any rotation; None if unclear."""

    def number(at: int, length: int, order: Literal["big", "little"]) -> int:
        return int.from_bytes(data[at : at + length], order)

    if data.startswith(b"\x89PNG"):
        return number(16, 4, "big"), number(20, 4, "big")
    if data.startswith(b"GIF8"):
        return number(6, 2, "little"), number(8, 2, "little")
    if data.startswith(b"BM"):
        top = number(22, 4, "little")
        return number(18, 4, "little"), min(top, 2**32 - top)
    if data.startswith(b"RIFF"):
        if data[12:16] == b"VP8X":
            return number(24, 3, "little") + 1, number(27, 3, "little") + 1
        if data[12:16] == b"VP8L":
            bits = number(21, 4, "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return number(26, 2, "little") & 0x3FFF, number(28, 2, "little") & 0x3FFF
    if data.startswith((b"II", b"MM")):
        order: Literal["big", "little"] = "little" if data.startswith(b"II") else "big"
        table = number(4, 4, order)
        sides = {}
        for i in range(number(table, 2, order)):
            at = table + 2 + 12 * i
            sides[number(at, 2, order)] = number(at + 8, 2 if number(at + 2, 2, order) == 3 else 4, order)
        return (sides[256], sides[257]) if {256, 257} <= sides.keys() else None
    frame = _jpeg_frame(data)
    return (number(frame + 7, 2, "big"), number(frame + 5, 2, "big")) if frame else None


def _jpeg_frame(data: bytes) -> int:
    """Where the frame header (SOFn) of a JPEG begins; 0 when there is none."""
    at = 2
    while data.startswith(b"\xff\xd8") and at + 9 < len(data) and data[at] == 0xFF:
        mark = data[at + 1]
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            return at
        lone = mark == 0x01 or 0xD0 <= mark <= 0xD8
        at += 1 if mark == 0xFF else 2 if lone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _is_cut_short(data: bytes) -> bool:
    """Whether the end mark of a JPEG (behind the frame header: thumbnails have one too) or PNG is missing."""
    frame = _jpeg_frame(data)
    return (frame > 0 and data.find(b"\xff\xd9", frame) < 0) or (data.startswith(b"\x89PNG") and b"IEND" not in data)
