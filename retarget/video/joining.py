"""Silent pieces and sound into the whole video, which appears under its name at once or not at all."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

from .. import folders
from ..errors import StorageError, VideoError
from .encoding import MUXERS, Film, micros
from .process import Done, command, guarded_input, run, unwritable
from .scan import TICKS
from .sound import with_sound


def join(film: Film, pieces: list[Path], counts: list[int], token: str = "") -> None:
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
        source = guarded_input(pieces[0])
    else:
        # Names of ours only, in our own folder. Each piece begins where it is told, not where the one before ends.
        lines, frame, tick = ["ffconcat version 1.0"], 0, Fraction(1, 1000 if film.piece == ".webm" else 1_000_000)
        for piece, number in zip(pieces, counts, strict=True):
            begin, frame = round(film.time(frame) / tick), frame + number
            lasts = (round(film.time(frame) / tick) - begin) * tick
            lines.append(f"file 'file:{piece.name}'\nduration {micros(lasts)}us")
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
        finish += ["-video_track_timescale", str(TICKS), *(["-bsf:v", last] if len(pieces) > 1 else [])]
    finish += ["-f", MUXERS[film.suffix]]

    with temporary(film.out, token) as whole:

        def mux(*arguments: str) -> Done:
            return run(command(*arguments, *finish, "-y", f"file:{whole}"), feed=shown, cwd=cwd)

        keep = ["-map", "0:v:0", "-map_metadata", "-1", "-c:v", "copy"]
        if film.sound:
            with_sound(film, film.time(count), source, keep, mux)
        else:
            done = mux(*source, *keep)
            if done.returncode != 0:
                raise unwritable(film.out, film.out, done.stderr)
        try:
            folders.flush(whole)
            os.replace(whole, film.out)
        except OSError as error:
            raise StorageError(f"{film.out} cannot be written ({error.strerror}).", "Choose another name.") from error


@contextmanager
def temporary(out: Path, token: str = "") -> Iterator[Path]:
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
