"""What a video is: sizes, rates and times, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget.errors import InputError, VideoError
from retarget.video import open_reader, open_writer, probe, scan, timestamps

from .conftest import UNEVEN, bars, ffmpeg, numbers


def test_probe_of_the_examples(example_me: Path, example_dance: Path) -> None:
    me, dance = probe(example_me), probe(example_dance)
    assert (me.width, me.height, me.fps, me.frames, me.has_audio) == (480, 640, 24, 249, False)
    assert (dance.width, dance.height, dance.fps, dance.frames, dance.has_audio) == (480, 640, 30, 240, True)
    assert me.duration == pytest.approx(249 / 24)
    assert not me.variable
    assert me.damage == ""


def test_probe_gives_the_exact_rate(long_gop: Path) -> None:
    info = probe(long_gop)
    assert info.fps == Fraction(24000, 1001)
    assert info.frames == 200
    assert not info.variable


def test_a_rate_rounded_to_milliseconds_is_still_constant(long_gop: Path, tmp_path: Path) -> None:
    ffmpeg("-i", long_gop, "-c", "copy", tmp_path / "ms.mkv")
    info = probe(tmp_path / "ms.mkv")
    assert (info.fps, info.variable, info.frames) == (Fraction(24000, 1001), False, 200)


def test_variable_rate(uneven: Path) -> None:
    info = probe(uneven)
    assert info.variable
    assert info.frames == 40
    assert float(info.fps) == pytest.approx(40 / info.duration, rel=1e-4)
    assert timestamps(uneven) == pytest.approx(UNEVEN, abs=1 / 90_000)
    assert numbers(uneven) == list(range(40))


def test_probe_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x64:d=0.2", path)
    first = probe(path)
    with monkeypatch.context() as patch:
        patch.setattr(scan, "run", lambda *_: pytest.fail("looked twice"))
        assert probe(path) is first
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:d=0.4", path)
    assert probe(path).width == 96


@pytest.mark.parametrize(
    ("sar", "width"), [("2304/2303", 96), ("4/3", 128), ("3/4", 72)], ids=["nearly square", "wide", "narrow"]
)
@pytest.mark.reliability("3. Odd clocks and geometry", "pixels that are not square", "frames of square pixels")
def test_pixels_become_square(tmp_path: Path, sar: str, width: int) -> None:
    path = tmp_path / "sar.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:d=0.2", "-vf", f"setsar={sar}", path)
    assert (probe(path).width, probe(path).height) == (width, 64)
    with open_reader(path) as frames:
        assert next(frames).shape == (64, width, 3)


def test_rotation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:20] = 255  # white on top
    with open_writer(tmp_path / "flat.mp4", (96, 64), Fraction(25)) as write:
        write(picture)
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
    info = probe(tmp_path / "turned.mp4")
    with open_reader(tmp_path / "turned.mp4") as frames:
        frame = next(frames)
    assert (info.width, info.height) == (64, 96)
    assert frame.shape == (96, 64, 3)
    assert frame[:, :10].mean() > 240  # 90 degrees against the clock: the top is on the left
    assert frame[:, 30:].mean() < 10


def test_what_is_no_video_is_refused_in_a_sentence(tmp_path: Path, example_dance: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    (tmp_path / "cut.mp4").write_bytes((example_dance.read_bytes())[-300_000:])
    cv2.imwrite(str(tmp_path / "photo.png"), bars())
    cv2.imwrite(str(tmp_path / "photo.jpg"), bars())
    ffmpeg("-i", example_dance, "-vn", "-t", 1, tmp_path / "sound.m4a")
    for name, kind, words in [
        ("missing.mp4", InputError, "no file"),
        (".", InputError, "not a file"),
        ("empty.mp4", InputError, "empty"),
        ("text.mp4", VideoError, "no video"),
        ("noise.mp4", VideoError, "no video"),
        ("cut.mp4", VideoError, "no video"),
        ("photo.png", VideoError, "a picture, not a video"),
        ("photo.jpg", VideoError, "a picture, not a video"),
        ("sound.m4a", VideoError, "no pictures"),
    ]:
        with pytest.raises(kind, match=words) as caught:
            probe(tmp_path / name)
        assert caught.value.remedy
        assert name == "." or name in caught.value.message
        assert "\n" not in str(caught.value)


def test_a_truncated_file_gives_what_it_has(tmp_path: Path, example_dance: Path) -> None:
    ffmpeg("-i", example_dance, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    path = tmp_path / "half.mp4"
    path.write_bytes((tmp_path / "whole.mp4").read_bytes()[:500_000])
    info = probe(path)
    assert "damaged" in info.damage
    assert 100 < info.frames < 130
    with open_reader(path) as frames:
        assert sum(1 for _ in frames) == info.frames
