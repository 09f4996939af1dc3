"""What is written, and what cannot be."""

from __future__ import annotations

import os
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retarget import video
from retarget.errors import RetargetError, StorageError, UsageError, VideoError
from retarget.video import open_reader, open_writer, probe, timestamps

from .conftest import UNEVEN, ffmpeg, numbered, numbers


def test_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with open_writer(path, (96, 64), Fraction(30000, 1001), crf=5) as write:
        for i in range(30):
            write(numbered(i))
    info = probe(path)
    assert (info.width, info.height, info.fps, info.frames) == (96, 64, Fraction(30000, 1001), 30)
    assert numbers(path) == list(range(30))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index in front: plays while loading
    banner = subprocess.run([video.ffmpeg(), "-i", path], capture_output=True, check=False).stderr.decode()
    assert "h264" in banner
    assert "yuv420p(tv, smpte170m/bt709/bt709" in banner
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_one_frame(tmp_path: Path) -> None:
    with open_writer(tmp_path / "one.mp4", (96, 64), Fraction(25)) as write:
        write(numbered(7))
    assert probe(tmp_path / "one.mp4").frames == 1
    assert numbers(tmp_path / "one.mp4") == [7]


def test_odd_sizes_grow_by_a_repeated_row_and_column(tmp_path: Path) -> None:
    picture = np.zeros((65, 97, 3), np.uint8)
    picture[-3:], picture[:, -3:] = 200, 200
    with open_writer(tmp_path / "odd.mp4", (97, 65), Fraction(25), crf=1) as write:
        write(picture)
    with open_reader(tmp_path / "odd.mp4") as frames:
        frame = next(frames)
    assert frame.shape == (66, 98, 3)
    assert frame[-1].min() > 190
    assert frame[:, -1].min() > 190


@pytest.mark.parametrize("suffix", [".mov", ".webm"])
def test_alpha_is_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"alpha{suffix}"
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[..., :3] = (200, 100, 50)
    picture[:, 32:64, 3], picture[:, 64:, 3] = 128, 255
    with open_writer(path, (96, 64), Fraction(25), alpha=True) as write:
        for _ in range(5):
            write(picture)
    decoder = ("-c:v", "libvpx-vp9") if suffix == ".webm" else ()
    raw = ffmpeg(*decoder, "-i", path, "-vf", "extractplanes=a,format=gray", "-f", "rawvideo", "-")
    seen = np.frombuffer(raw, np.uint8).reshape(5, 64, 96)[2].astype(int)
    for part, value in ((slice(4, 28), 0), (slice(36, 60), 128), (slice(68, 92), 255)):
        assert np.abs(seen[8:-8, part] - value).max() <= 4


def test_times_of_a_variable_rate_are_kept_with_sound(uneven: Path, example_dance: Path, tmp_path: Path) -> None:
    info = probe(uneven)
    for suffix, exact in ((".mp4", 1 / 45_000), (".mkv", 1 / 500)):
        out = tmp_path / f"again{suffix}"
        with (
            open_reader(uneven) as frames,
            open_writer(out, (96, 64), info.fps, audio_from=example_dance, timestamps=timestamps(uneven)) as write,
        ):
            for frame in frames:
                write(frame)
        assert timestamps(out) == pytest.approx(UNEVEN, abs=exact)
        assert probe(out).duration == pytest.approx(info.duration, abs=2 * exact)
        assert probe(out).has_audio


@pytest.mark.parametrize(
    ("name", "alpha", "kind", "words"),
    [
        ("out.gif", False, UsageError, "known kind"),
        ("out", False, UsageError, "known kind"),
        ("out.mp4", True, UsageError, "transparency"),
        ("no/such/out.mp4", False, StorageError, "no folder"),
        ("folder.mp4", False, StorageError, "is a folder"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, name: str, alpha: bool, kind: type[RetargetError], words: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with (
        pytest.raises(kind, match=words) as caught,
        open_writer(tmp_path / name, (96, 64), Fraction(25), alpha=alpha) as write,
    ):
        write(numbered(0))
    assert caught.value.remedy
    assert os.listdir(tmp_path) == ["folder.mp4"]


def test_no_frames_no_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no frame"), open_writer(tmp_path / "out.mp4", (96, 64), Fraction(25)):
        pass
    assert os.listdir(tmp_path) == []


def write_numbered(path: Path, count: int, **options: object) -> None:
    with open_writer(path, (96, 64), Fraction(25), **options) as write:  # type: ignore[arg-type]
        for i in range(count):
            write(numbered(i))


def test_wrong_frames_are_our_own_mistake(tmp_path: Path) -> None:
    for frame in (numbered(0, (64, 64)), numbered(0).astype(np.float32), np.zeros((64, 96, 4), np.uint8)):
        with (
            pytest.raises(ValueError, match="expected"),
            open_writer(tmp_path / "out.mp4", (96, 64), Fraction(25)) as write,
        ):
            write(frame)
    for times in ([0.0, 0.0], [0.1, 0.2], []):
        with (
            pytest.raises(ValueError, match="timestamps"),
            open_writer(tmp_path / "out.mp4", (96, 64), Fraction(25), timestamps=times),
        ):
            pass
    for count in (1, 3):
        with pytest.raises(ValueError, match="timestamps"):
            write_numbered(tmp_path / "out.mp4", count, timestamps=[0.0, 0.1])
    assert os.listdir(tmp_path) == []
