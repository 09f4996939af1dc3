"""Frames of a video file, as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import VideoError
from ..types import Image
from .colour import MATRIX
from .packets import decode_times
from .process import Process, command, guarded_input, tail
from .scan import Scan, scanned

_DEINTERLACE = "bwdif=mode=send_frame:deint=interlaced"


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
    scan = scanned(path)
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
        f"setparams=colorspace={MATRIX[scan.info.colour]}",
        f"scale={width}:{height}:flags={'area' if shrink else 'bicubic'}",
        "format=rgb24",
    ]
    arguments = command(
        *guarded_input(scan.info.path, *seek),
        *("-copyts", "-map", "0:V:0", "-vf", ",".join(filters), "-fps_mode", "passthrough"),
        *("-f", "rawvideo", "pipe:1"),
    )
    with Process(arguments, feed=False) as process:
        yield _frames(process, scan, chosen, width, height)


def _frames(process: Process, scan: Scan, chosen: range, width: int, height: int) -> Iterator[Image]:
    for number in chosen:
        frame = np.empty((height, width, 3), np.uint8)
        if process.read_into(frame.data.cast("B")) < frame.nbytes:
            process.finish()
            raise _shortage(scan, chosen, number, process.messages())
        yield frame


def _shortage(scan: Scan, chosen: range, number: int, messages: str) -> VideoError:
    """The error for too few frames: names the first that cannot be decoded, or else where the stream ended."""
    path = scan.info.path
    decoded = {(cast("int", row.pts) - scan.times[0]) * scan.tick for row in decode_times(path, scan.tick)[1]}
    lost = next((i for i in chosen if scan.seconds(i) not in decoded), None)
    place = number if lost is None else lost
    return VideoError(
        f"{path} {'breaks off' if lost is None else 'is damaged'} at frame {place} of {len(scan.times)}"
        f" ({tail(messages)}).",
        f"Export the file again, or stop before that place with --end {float(scan.seconds(place)):.2f}.",
    )
