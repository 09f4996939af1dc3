"""Every frame once, and the right ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget.errors import UsageError, VideoError
from retarget.video import open_reader, probe, scan, timestamps

from .conftest import UNEVEN, ffmpeg, numbers, opencv

CLIPS = Path(__file__).parents[3] / "shared" / "clips"


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".avi", ("-c:v", "mpeg4", "-bf", 2, "-q:v", 2)),
        (".ts", ("-c:v", "libx264", "-qp", 5)),
        (".mkv", ("-c:v", "libx264", "-qp", 5, "-pix_fmt", "yuv420p10le")),
        (".mp4", ("-c:v", "libx265", "-x265-params", "log-level=none:open-gop=1:keyint=24", "-qp", 8)),
        (".webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8, "-crf", 10, "-b:v", 0)),
    ],
    ids=["avi with B-frames", "transport stream", "10 bit", "hevc", "vp9"],
)
def test_every_frame_once_whatever_the_kind(long_gop: Path, tmp_path: Path, suffix: str, options: tuple) -> None:
    path = tmp_path / f"kind{suffix}"
    ffmpeg("-i", long_gop, "-an", *options, path)
    assert probe(path).frames == 200
    assert numbers(path) == list(range(200))
    start, end = timestamps(path)[120], timestamps(path)[131]
    assert numbers(path, start=start, end=end) == list(range(120, 131))


def test_a_piece_cut_without_decoding_shows_what_its_edit_list_says(long_gop: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    ffmpeg("-ss", 3, "-i", long_gop, "-c", "copy", path)  # starts between two key frames
    seen = numbers(path)
    assert len(seen) == probe(path).frames == len(opencv(path))
    assert seen == list(range(seen[0], 200))


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not here")
@pytest.mark.parametrize("name", ["eval/f24_me", "eval/f17_drive", "eval/f11_drive", "train/f41", "heads/h17"])
def test_real_clips_read_as_opencv_reads_them(name: str) -> None:
    path = CLIPS / f"{name}.mp4"
    info, truth = probe(path), opencv(path)
    assert info.frames == len(truth)
    assert (info.width, info.height) == truth[0].shape[1::-1]
    with open_reader(path) as frames:
        for mine, theirs in zip(frames, truth, strict=True):
            # OpenCV takes the matrix of BT.601 for all.
            assert np.abs(mine.astype(np.int16) - theirs).max() <= (1 if info.colour == "bt601" else 40)


def test_any_piece_is_frame_accurate(long_gop: Path) -> None:
    rate = 24000 / 1001
    for first, last in [(0, 10), (47, 50), (48, 49), (96, 200), (130, 171), (199, 200)]:
        assert numbers(long_gop, start=first / rate, end=last / rate) == list(range(first, last))
    assert numbers(long_gop, start=100.4 / rate, end=103.6 / rate) == [101, 102, 103]
    assert numbers(long_gop, start=190 / rate) == list(range(190, 200))


def test_a_piece_of_a_variable_rate(uneven: Path) -> None:
    assert numbers(uneven, start=UNEVEN[10], end=UNEVEN[20]) == list(range(10, 20))
    assert timestamps(uneven, UNEVEN[10], UNEVEN[20]) == pytest.approx(
        [t - UNEVEN[10] for t in UNEVEN[10:20]], abs=1 / 45_000
    )


@pytest.mark.parametrize(
    ("start", "end"), [(-1, None), (3, 2), (2, 2), (100, None), (math.nan, None), (0, math.nan), (0.001, 0.002)]
)
def test_an_empty_piece_is_refused(example_me: Path, start: float, end: float | None) -> None:
    with pytest.raises(UsageError) as caught, open_reader(example_me, start=start, end=end):
        pass
    assert caught.value.remedy


def test_scaling_while_reading(example_me: Path) -> None:
    with open_reader(example_me, end=0.05, size=(120, 160)) as small, open_reader(example_me, end=0.05) as full:
        pairs = list(zip(small, full, strict=True))
    assert len(pairs) == 2
    for mine, whole in pairs:
        ideal = cv2.resize(whole, (120, 160), interpolation=cv2.INTER_AREA)
        assert np.abs(mine.astype(np.int16) - ideal).mean() < 2


def test_fewer_frames_than_promised_is_an_error_that_names_the_frame(long_gop: Path) -> None:
    true = scan.scanned(long_gop)
    key = next(k for k, v in scan._scans.items() if v is true)
    more = (*true.times, true.times[-1] + 1001, true.times[-1] + 2002)
    scan._scans[key] = replace(true, times=more)
    try:
        with pytest.raises(VideoError, match="damaged at frame 200 of 202"), open_reader(long_gop) as frames:
            list(frames)
    finally:
        scan._scans[key] = true
