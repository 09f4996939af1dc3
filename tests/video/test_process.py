"""ffmpeg opens plain local files only, and no process and no file is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from reliability.fuzz import children

from retarget.errors import StorageError, VideoError
from retarget.video import open_reader, open_writer, probe
from retarget.video.process import unwritable

from .conftest import ffmpeg


@pytest.mark.parametrize("name", ["list.ffconcat", "list.m3u8", "list.mp4", "list.sdp", "list.mpd"])
def test_playlists_are_refused(tmp_path: Path, example_me: Path, name: str) -> None:
    ffmpeg("-i", example_me, "-c", "copy", "-t", 1, tmp_path / "part.ts")
    text = {
        "list.ffconcat": "ffconcat version 1.0\nfile part.ts\n",
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.ts\n#EXT-X-ENDLIST\n",
        "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.ts\n#EXT-X-ENDLIST\n",
        "list.sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    }
    (tmp_path / name).write_text(text[name])
    with pytest.raises(VideoError):
        probe(tmp_path / name)


@pytest.mark.parametrize("name", ["-dash.mp4", "a: b.mp4", "50 %d.mp4", "ü 漢字 '\".mp4", "http:x.mp4", "pipe:0.mp4"])
def test_odd_names(tmp_path: Path, example_dance: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    (tmp_path / "in" / name).symlink_to(example_dance)
    with (
        open_reader(Path("in") / name, end=0.1) as frames,
        open_writer(name, (480, 640), Fraction(30), audio_from=Path("in") / name, end=0.1) as write,
    ):
        for frame in frames:
            write(frame)
    assert probe(name).frames == 3
    assert probe(name).has_audio


def test_a_full_disk_is_said() -> None:
    error = unwritable(Path("out.mp4"), Path("out.mp4"), "av_interleaved_write_frame(): No space left on device")
    assert isinstance(error, StorageError)
    assert "disk is full" in error.message


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """No process and no file more after the test than before it; the old output is untouched."""
    before = children()
    (tmp_path / "out.mp4").write_bytes(b"old")
    yield
    assert children() == before
    assert os.listdir(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"old"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit, SystemExit])
def test_nothing_is_left_after_an_error(tmp_path: Path, example_dance: Path, error: type[BaseException]) -> None:
    idle = len(children())

    def interrupted() -> None:
        with (
            open_reader(example_dance) as frames,
            open_writer(tmp_path / "out.mp4", (480, 640), Fraction(30), audio_from=example_dance) as write,
        ):
            for number, frame in enumerate(frames):
                write(frame)
                if number == 20:
                    assert len(children()) == idle + 2
                    raise error

    with pytest.raises(error):
        interrupted()


@pytest.mark.usefixtures("nothing_left")
def test_leaving_a_reader_early_ends_ffmpeg_at_once(example_dance: Path) -> None:
    before = children()
    for count in (0, 1, 50):
        with open_reader(example_dance) as frames:
            for _ in range(count):
                next(frames)
            begin = time.monotonic()
        assert time.monotonic() - begin < 20  # at once, if nothing else runs; ffmpeg itself would wait for ever
        assert children() == before


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.reliability("2. Bad input", "ffmpeg dies meanwhile", "an error, nothing left")
def test_a_killed_ffmpeg_is_an_error(tmp_path: Path, example_dance: Path) -> None:
    before = children()

    def kill_at(number: int) -> None:
        if number == 20:
            os.kill((children() - before).pop(), signal.SIGKILL)

    def written() -> None:
        with open_writer(tmp_path / "out.mp4", (480, 640), Fraction(30)) as write:
            for number in range(200):
                write(np.full((640, 480, 3), number, np.uint8))
                kill_at(number)

    def read() -> None:
        with open_reader(example_dance) as frames:
            for number, _ in enumerate(frames):
                kill_at(number)

    with pytest.raises(VideoError, match="could not write"):
        written()
    with pytest.raises(VideoError, match="breaks off at frame"):
        read()


def test_nothing_runs_after_success(example_dance: Path, tmp_path: Path) -> None:
    before = children()
    probe(example_dance)
    with (
        open_reader(example_dance, end=1) as frames,
        open_writer(tmp_path / "out.mp4", (480, 640), Fraction(30), audio_from=example_dance) as write,
    ):
        for frame in frames:
            write(frame)
    assert children() == before
    assert os.listdir(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").stat().st_mode & 0o077 == 0o666 & ~_umask() & 0o077


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_reading_waits_when_nobody_takes_the_frames(example_dance: Path) -> None:
    before = children()
    with open_reader(example_dance) as frames:
        next(frames)
        (child,) = children() - before
        time.sleep(0.5)
        assert (Path("/proc") / str(child)).exists()  # 240 frames are 221 MB: it cannot have gone on
        assert sum(1 for _ in frames) == 239
