"""Sound in sync, copied where it can be, silence where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retarget.video import open_reader, open_writer, probe
from retarget.video.scan import scanned

from .conftest import ffmpeg, numbered


def beeps(path: Path) -> list[float]:
    """Times at which a beep begins, after the first frame of the video."""
    raw = ffmpeg(
        "-copyts", "-i", path, "-map", "0:a", "-af", "aresample=48000:async=1:first_pts=0", "-ac", 1, "-f", "s16le", "-"
    )
    loud = np.flatnonzero(np.abs(np.frombuffer(raw, np.int16).astype(int)) > 3000)
    begins = loud[np.r_[True, np.diff(loud) > 4800]] / 48000
    scan = scanned(path)
    return [float(t) for t in begins - float(scan.times[0] * scan.tick)]


@pytest.fixture(scope="module")
def beeping(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float, float], Path]:
    """Makes a video of 4 s at 25 frames/s with a beep at every full second of its sound, either stream delayed."""
    folder = tmp_path_factory.mktemp("beep")
    sound = "aevalsrc='if(lt(mod(t,1),0.03),sin(2*PI*1000*t),0)':s=48000:d=4"
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=4", "-f", "lavfi", "-i", sound),
        *("-c:a", "aac", "-g", 50, folder / "plain.mp4"),
    )

    def make(video_delay: float, audio_delay: float) -> Path:
        out = folder / f"{video_delay}-{audio_delay}.mp4"
        inputs = (f"-itsoffset {video_delay} -i @ -itsoffset {audio_delay} -i @").split()
        inputs = [str(folder / "plain.mp4") if part == "@" else part for part in inputs]
        ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c", "copy", out)
        return out

    return make


@pytest.mark.parametrize(("video_delay", "audio_delay"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize(("start", "end"), [(0.0, None), (0.0, 2.5), (1.1, 3.5)])
@pytest.mark.reliability(
    "3. Odd clocks and geometry", "pictures or sound that begin late, pieces", "sound stays in sync"
)
def test_sound_stays_in_sync(
    beeping: Callable[[float, float], Path],
    tmp_path: Path,
    video_delay: float,
    audio_delay: float,
    start: float,
    end: float | None,
) -> None:
    source, out = beeping(video_delay, audio_delay), tmp_path / "out.mp4"
    before = beeps(source)
    with (
        open_reader(source, start=start, end=end) as frames,
        open_writer(out, (96, 64), Fraction(25), audio_from=source, start=start, end=end) as write,
    ):
        for frame in frames:
            write(frame)
    first = math.ceil(start * 25 - 1e-6) / 25
    length = probe(out).duration
    wanted = [t - first for t in before if 0 <= t - first < length - 0.05]
    assert len(wanted) >= 2
    assert beeps(out) == pytest.approx(wanted, abs=0.004)


def test_whole_sound_is_copied_and_silence_follows_a_cut_one(example_dance: Path, tmp_path: Path) -> None:
    def packets(path: Path) -> list[bytes]:
        rows = ffmpeg("-i", path, "-map", "0:a", "-c", "copy", "-f", "framecrc", "-").splitlines()
        return [row.split(b",")[5] for row in rows if not row.startswith(b"#")]

    def write_all(out: Path, count: int, start: float) -> None:
        with open_writer(out, (96, 64), Fraction(30), audio_from=example_dance, start=start) as write:
            for i in range(count):
                write(numbered(i))

    write_all(tmp_path / "copied.mp4", 240, 0)
    assert packets(tmp_path / "copied.mp4")[:300] == packets(example_dance)[:300]
    write_all(tmp_path / "padded.mp4", 90, 7.0)  # 1 s of sound is left for 3 s of pictures
    raw = ffmpeg("-i", tmp_path / "padded.mp4", "-map", "0:a", "-ac", 1, "-ar", 48000, "-f", "s16le", "-")
    sound = np.abs(np.frombuffer(raw, np.int16).astype(int))
    assert len(sound) / 48000 == pytest.approx(3.0, abs=0.03)
    assert sound[:48000].max() > 1000
    assert sound[57600:].max() < 50


def test_a_silent_source_gives_a_silent_video(example_me: Path, tmp_path: Path) -> None:
    with open_writer(tmp_path / "out.mp4", (96, 64), Fraction(25), audio_from=example_me) as write:
        write(numbered(0))
    assert not probe(tmp_path / "out.mp4").has_audio
