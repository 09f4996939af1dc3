"""Starting ffmpeg (imageio-ffmpeg's binary, by pipes), which nobody else does, and understanding what it says.

Inputs are plain local files: protocols `file` and `pipe` only, common containers only (no playlists).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, cast

from ..errors import InputError, RetargetError, StorageError, VideoError

_DEMUXERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mjpeg,h264,hevc,m4v,mxf,dv,nut,"
    "yuv4mpegpipe,ivf"
)
Done = subprocess.CompletedProcess[str]
"""An ffmpeg that has ended: its status, and what it said."""


@cache
def ffmpeg() -> str:
    """Path of the ffmpeg binary. Raises RetargetError when there is none."""
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise RetargetError("There is no ffmpeg.", "Run pip install --force-reinstall imageio-ffmpeg.") from error


def command(*arguments: str, level: str = "error") -> list[str]:
    """ffmpeg with these arguments. It asks nothing, and says only what is as grave as `level`."""
    return [ffmpeg(), "-hide_banner", "-nostdin", "-nostats", "-loglevel", level, *arguments]


def guarded_input(path: Path, *options: str) -> list[str]:
    """Options and `-i` for a local file; an absolute `file:` name is safe with dashes, colons, spaces."""
    guard = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _DEMUXERS]
    return [*guard, *options, "-i", f"file:{path.absolute()}"]


def check_file(path: Path) -> os.stat_result:
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


def run(arguments: Sequence[str], *, feed: str = "", cwd: Path | None = None) -> Done:
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


def output(arguments: Sequence[str]) -> bytes:
    """Run ffmpeg to its end, and return the bytes it wrote, none when it failed at once."""
    return subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, check=False, start_new_session=True
    ).stdout


class Process:
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

    def __enter__(self) -> Process:
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


def tail(messages: str) -> str:
    """The last telling line of what ffmpeg wrote, without its addresses and level marks."""
    lines = [re.sub(r"\[[^\]]*\]\s*|^Error opening input: ", "", line).strip() for line in messages.splitlines()]
    dull = ("Conversion failed", "Error opening input file", "Error opening output file", "Press [q]")
    lines = [line for line in lines if line and not line.startswith(dull) and "Last message repeated" not in line]
    return lines[-1].rstrip(".") if lines else "no message"


def unwritable(path: Path, out: Path, messages: str) -> RetargetError:
    """The error for an ffmpeg that could not write `path`, which is or becomes a part of `out`."""
    if "No space left" in messages:
        where = path if path.parent == out.parent else path.parent
        return StorageError(f"The disk is full ({where}); {out} could not be written.", "Free some space first.")
    if "Permission denied" in messages or "Read-only file system" in messages:
        return StorageError(f"{out} cannot be written ({tail(messages)}).", "Choose another folder.")
    if encoder := re.search(r"Unknown encoder '(\w+)'", messages):
        return RetargetError(
            f"The ffmpeg in use ({ffmpeg()}) lacks the encoder {encoder[1]}.",
            "Unset IMAGEIO_FFMPEG_EXE, and run pip install --force-reinstall imageio-ffmpeg.",
        )
    return VideoError(f"ffmpeg could not write {out} ({tail(messages)}).", "Run `retarget doctor` to check it.")
