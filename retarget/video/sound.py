"""The sound of one video under another one."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import cast

from ..errors import VideoError
from .encoding import Film
from .process import Done, command, guarded_input, run, tail, unwritable
from .scan import Audio

_COPY_AUDIO = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac"},
    ".webm": {"opus", "vorbis"},
    ".mkv": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "vorbis", "flac", "pcm_s16le"},
}
_COPY_AUDIO[".m4v"] = _COPY_AUDIO[".mov"] = _COPY_AUDIO[".mp4"]


def check_sound(path: Path) -> None:
    """Raises VideoError now rather than after all frames are made when the sound cannot be decoded."""
    done = run(command(*guarded_input(path), "-map", "0:a:0", "-t", "0.2", "-f", "null", "-"))
    if done.returncode != 0:
        raise _no_sound(path, done.stderr)


def with_sound(film: Film, length: Fraction, pieces: list[str], keep: list[str], mux: Callable[..., Done]) -> None:
    """Join the silent video, ffmpeg's input `pieces`, and the sound of the source from its first chosen frame on.

    Args:
        length: of the video, in seconds, where the sound ends, too.
        keep: ffmpeg's options that copy the silent video.
        mux: runs ffmpeg with its arguments, but those about the output, which it adds.

    Raises VideoError when the sound cannot be decoded, StorageError when the disk is full.
    """
    assert film.sound is not None
    source, chosen = film.sound
    audio = cast("Audio", source.audio)
    zero = source.times[chosen.start] * source.tick  # the container's time that becomes 0
    keep = [*keep, "-map", "1:a:0"]
    limit = ["-t", f"{float(length):.6f}"]
    messages = ""
    if chosen.start == 0 and audio.start - zero > -Fraction(1, 50) and audio.codec in _COPY_AUDIO[film.suffix]:
        shift = ["-itsoffset", f"{-float(zero):.6f}"]
        done = mux("-copyts", *pieces, *guarded_input(source.info.path, *shift), *keep, "-c:a", "copy", *limit)
        if done.returncode == 0:
            return
        messages = done.stderr
    seek = zero - source.start
    encoder = ["-c:a", "libopus", "-ac", "2"] if film.suffix == ".webm" else ["-c:a", "aac"]
    done = mux(
        *pieces,
        *guarded_input(source.info.path, *(["-ss", f"{float(seek):.6f}"] if seek > 0 else [])),
        *keep,
        *("-af", f"aresample=async=1:first_pts=0,apad,atrim=end={float(length):.6f}"),
        *(*encoder, "-b:a", "192k"),
        *limit,
    )
    if done.returncode != 0:
        messages = done.stderr or messages
        if "No space left" in messages:
            raise unwritable(film.out, film.out, messages)
        raise _no_sound(source.info.path, messages)


def _no_sound(path: Path, messages: str) -> VideoError:
    return VideoError(f"The sound of {path} cannot be read ({tail(messages)}).", "Leave it out with --no-audio.")
