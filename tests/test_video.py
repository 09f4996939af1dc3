"""Reading and writing video: every frame once, colours, sound in sync, no process and no file left behind."""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget import video
from retarget.errors import InputError, RetargetError, StorageError, UsageError, VideoError
from retarget.types import Image
from retarget.video import is_image, open_reader, open_writer, probe, read_image, read_metadata, timestamps

CLIPS = Path(__file__).parents[2] / "shared" / "clips"
COLOURS = [
    *((191, 191, 191), (191, 191, 0), (0, 191, 191), (0, 191, 0), (191, 0, 191), (191, 0, 0), (0, 0, 191)),
    *((255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 150, 130), (90, 60, 40)),
]


# ------------------------------------------------------------------------------------------------ helpers


def ffmpeg(*arguments: object) -> bytes:
    """Run ffmpeg to make or look into a file of a test."""
    command = [video.ffmpeg(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def numbered(number: int, size: tuple[int, int] = (96, 64)) -> Image:
    """A grey picture that carries its number as ten black or white columns."""
    image = np.full((size[1], size[0], 3), 128, np.uint8)
    for bit in range(10):
        image[:, bit * size[0] // 10 : (bit + 1) * size[0] // 10] = 235 if number >> bit & 1 else 20
    return image


def number_of(image: Image) -> int:
    wide = image.shape[1]
    middle = [image[:, int((bit + 0.3) * wide / 10) : int((bit + 0.7) * wide / 10)].mean() for bit in range(10)]
    return sum(1 << bit for bit, grey in enumerate(middle) if grey > 128)


def numbers(path: Path, **options: float) -> list[int]:
    with open_reader(path, **options) as frames:  # type: ignore[arg-type]
        return [number_of(frame) for frame in frames]


def write_numbered(path: Path, count: int, **options: object) -> None:
    with open_writer(path, (96, 64), Fraction(25), **options) as write:  # type: ignore[arg-type]
        for i in range(count):
            write(numbered(i))


def bars() -> Image:
    return np.repeat(np.repeat(np.array([COLOURS], np.uint8), 32, axis=1), 48, axis=0)


def opencv(path: Path) -> list[Image]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        good, frame = capture.read()
        if not good:
            return frames
        frames.append(frame[..., ::-1])


def children() -> set[int]:
    """Processes that this one has started and that have not been waited for, zombies included."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if int(parent) == os.getpid():
                found.add(int(folder.name))
    return found


@pytest.fixture(scope="module")
def long_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 numbered frames at 24000/1001 frames/s, B-frames, a key frame every 2 s, sound from 0.1 s earlier on."""
    folder = tmp_path_factory.mktemp("gop")
    with open_writer(folder / "raw.mp4", (96, 64), Fraction(24000, 1001), crf=1) as write:
        for i in range(200):
            write(numbered(i))
    out = folder / "gop.mp4"
    ffmpeg(
        *("-itsoffset", "0.1", "-i", folder / "raw.mp4", "-f", "lavfi", "-i", "sine=d=8"),
        *("-c:v", "libx264", "-g", 48, "-sc_threshold", 0, "-bf", 3, "-qp", 5, "-c:a", "aac", out),
    )
    return out


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 numbered frames of a variable rate."""
    out = tmp_path_factory.mktemp("vfr") / "vfr.mp4"
    with open_writer(out, (96, 64), Fraction(20), timestamps=UNEVEN, crf=1) as write:
        for i in range(40):
            write(numbered(i))
    return out


UNEVEN = [i * 0.04 + 0.04 * (i // 3) + 0.01 * (i // 7) for i in range(40)]


# ------------------------------------------------------------------------------------------------ probe


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
    run = video._run
    monkeypatch.setattr(video, "_run", lambda *_: pytest.fail("looked twice"))
    assert probe(path) is first
    monkeypatch.setattr(video, "_run", run)
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


# ------------------------------------------------------------------------------------------------ what cannot be opened


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


def test_a_truncated_file_gives_what_it_has(tmp_path: Path, example_dance: Path) -> None:
    ffmpeg("-i", example_dance, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    path = tmp_path / "half.mp4"
    path.write_bytes((tmp_path / "whole.mp4").read_bytes()[:500_000])
    info = probe(path)
    assert "damaged" in info.damage
    assert 100 < info.frames < 130
    with open_reader(path) as frames:
        assert sum(1 for _ in frames) == info.frames


def test_fewer_frames_than_promised_is_an_error_that_names_the_frame(long_gop: Path) -> None:
    scan = video._scan(long_gop)
    key = next(k for k, v in video._scans.items() if v is scan)
    more = (*scan.times, scan.times[-1] + 1001, scan.times[-1] + 2002)
    video._scans[key] = replace(scan, times=more)
    try:
        with pytest.raises(VideoError, match="damaged at frame 200 of 202"), open_reader(long_gop) as frames:
            list(frames)
    finally:
        video._scans[key] = scan


# ------------------------------------------------------------------------------------------------ pieces


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


# ------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("colour", ["bt601", "bt709"])
@pytest.mark.reliability("3. Odd clocks and geometry", "colour bars through reader and writer", "the same colours")
def test_colours_survive_for_us_and_for_opencv(tmp_path: Path, colour: video.Colour) -> None:
    path, picture = tmp_path / "bars.mp4", bars()
    with open_writer(path, (picture.shape[1], picture.shape[0]), Fraction(25), colour=colour) as write:
        for _ in range(3):
            write(picture)
    with open_reader(path) as frames:
        mine = next(frames)
    inner = np.r_[tuple(slice(i * 32 + 6, i * 32 + 26) for i in range(len(COLOURS)))]
    # OpenCV takes the matrix of BT.601 for all.
    for seen in (mine, opencv(path)[0]) if colour == "bt601" else (mine,):
        assert np.abs(seen.astype(np.int16) - picture)[6:-6, inner].max() <= 2
    assert probe(path).colour == colour


def test_a_copy_of_a_copy_does_not_drift(example_me: Path, tmp_path: Path) -> None:
    with open_reader(example_me, end=0.2) as frames:
        first = list(frames)
    with open_writer(tmp_path / "copy.mp4", (480, 640), Fraction(24), crf=1) as write:
        for frame in first:
            write(frame)
    with open_reader(tmp_path / "copy.mp4") as frames:
        change = np.array([b.astype(float) - a for a, b in zip(first, frames, strict=True)])
    assert abs(change.mean()) < 0.4
    assert (change**2).mean() < 1.5


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


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_metadata_survives(tmp_path: Path, suffix: str, example_dance: Path) -> None:
    path = tmp_path / f"tags{suffix}"
    tags = {"comment": "synthetic media; a=b # ü\nsecond \\ line", "retarget_avatar": "me 1", "title": "dance"}
    with open_writer(path, (96, 64), Fraction(25), metadata=tags, audio_from=example_dance) as write:
        write(numbered(0))
    assert tags.items() <= read_metadata(path).items()


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


# ------------------------------------------------------------------------------------------------ sound


def beeps(path: Path) -> list[float]:
    """Times at which a beep begins, after the first frame of the video."""
    raw = ffmpeg(
        "-copyts", "-i", path, "-map", "0:a", "-af", "aresample=48000:async=1:first_pts=0", "-ac", 1, "-f", "s16le", "-"
    )
    loud = np.flatnonzero(np.abs(np.frombuffer(raw, np.int16).astype(int)) > 3000)
    begins = loud[np.r_[True, np.diff(loud) > 4800]] / 48000
    scan = video._scan(path)
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


# ------------------------------------------------------------------------------------------------ wrong outputs


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


def test_a_full_disk_is_said() -> None:
    error = video._failed(Path("out.mp4"), Path("out.mp4"), "av_interleaved_write_frame(): No space left on device")
    assert isinstance(error, StorageError)
    assert "disk is full" in error.message


# ------------------------------------------------------------------------------------------------ nothing is left


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


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    cv2.imwrite(str(path), bars()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_WEBP_QUALITY, 101])
    renamed = path.rename(tmp_path / "picture.dat")
    assert is_image(renamed)
    seen = read_image(renamed)
    assert seen.dtype == np.uint8
    assert seen.shape == bars().shape
    assert np.abs(seen.astype(int) - bars())[:, 12:20].max() <= 4
    assert video.picture_size(renamed.read_bytes()) == (bars().shape[1], 48)


def test_is_image_looks_inside(tmp_path: Path, example_me: Path) -> None:
    (tmp_path / "text.png").write_text("BM and nothing")
    assert not is_image(example_me)
    assert not is_image(tmp_path / "text.png")
    assert not is_image(tmp_path / "missing.png")
    assert not is_image(tmp_path)


def test_grey_16_bit_and_alpha(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 8, axis=0)
    cv2.imwrite(str(tmp_path / "grey16.png"), ramp)
    grey = read_image(tmp_path / "grey16.png")
    assert grey.shape == (8, 256, 3)
    assert (grey == np.arange(256)[None, :, None]).all()
    for depth, name in ((np.uint8, "a8.png"), (np.uint16, "a16.png")):
        top = np.iinfo(depth).max
        clear = np.zeros((4, 3, 4), depth)
        clear[:, 1] = (0, 0, top, top // 2 + 1)  # half red (BGRA)
        clear[:, 2] = (0, 0, top, top)
        cv2.imwrite(str(tmp_path / name), clear)
        seen = read_image(tmp_path / name)[0].astype(int)
        assert np.abs(seen - [[255, 255, 255], [255, 127, 127], [255, 0, 0]]).max() <= 1


def test_exif_rotation(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:10] = 255  # the top is white
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)  # to be turned 90 degrees with the clock
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + b"\0\0\0\0"
    (tmp_path / "turned.jpg").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    seen = read_image(tmp_path / "turned.jpg")
    assert seen.shape == (60, 40, 3)
    assert seen[:, -8:].min() > 230
    assert seen[:, :28].max() < 25


def test_cmyk_and_animations(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(bars()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - bars())[:, 12:20].max() <= 8
    flat = [pillow.new("RGB", (32, 24), colour) for colour in ("red", "lime")]
    for name in ("moving.gif", "moving.webp"):
        flat[0].save(tmp_path / name, save_all=True, append_images=flat[1:])
        assert np.abs(read_image(tmp_path / name).astype(int) - (255, 0, 0)).max() <= 8


def test_pictures_that_cannot_be(tmp_path: Path, example_me: Path) -> None:
    good = cv2.imencode(".png", bars())[1].tobytes()
    (tmp_path / "broken.png").write_bytes(good[:60])
    (tmp_path / "half.png").write_bytes(good[: len(good) // 2])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    (tmp_path / "half.jpg").write_bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:3000])
    (tmp_path / "half.gif").write_bytes(b"GIF89a" + bytes(20))
    (tmp_path / "empty.png").touch()
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(bomb + bytes(64))
    for path, words in [
        *((tmp_path / name, "broken") for name in ("broken.png", "half.png", "half.jpg", "half.gif")),
        (tmp_path / "empty.png", "empty"),
        (tmp_path / "missing.png", "no file"),
        (tmp_path / "phone.heic", "HEIC"),
        (tmp_path / "bomb.png", "100 megapixels"),
        (example_me, "not a picture"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            read_image(path)
        assert caught.value.remedy
        assert path.name in caught.value.message
