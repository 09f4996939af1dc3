"""Odd clocks and geometry: every frame goes out once, upright, in its colours, in time with its sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from reliability.conftest import number_of, numbered

from retarget.types import Image
from retarget.video import VideoInfo, colour, open_reader, open_writer, probe, timestamps
from retarget.video.packets import Table

SECTION = "3. Odd clocks and geometry"
COLOURS = [
    (191, 191, 191),
    (191, 191, 0),
    (0, 191, 191),
    (0, 191, 0),
    (191, 0, 191),
    (191, 0, 0),
    (0, 0, 191),
    (64, 64, 64),
]


def through(source: Path, out: Path) -> tuple[VideoInfo, list[Image]]:
    """Read and write as `drive` does: frames as they were, times, sound and colour tag of the source."""
    info = probe(source)
    with (
        open_reader(source) as frames,
        open_writer(
            out, (info.width, info.height), info.fps, audio_from=source if info.has_audio else None,
            timestamps=timestamps(source) if info.variable else None, colour=info.colour,
        ) as write,
    ):  # fmt: skip
        for frame in frames:
            write(frame)
    with open_reader(out) as frames:
        return probe(out), list(frames)


def odd(case: str, expected: str, *options: str, suffix: str = ".mp4", before: tuple[str, ...] = ()) -> object:
    """A case: options of ffmpeg that make the file of the counted one."""
    mark = pytest.mark.reliability(SECTION, case, expected)
    return pytest.param(before, options, suffix, marks=mark, id=case)


SAME = "same frames, upright, same times"
X264 = ("-c:v", "libx264", "-qp", "4")


@pytest.mark.parametrize(
    ("before", "options", "suffix"),
    [
        odd("23.976 frames/s", SAME, "-r", "24000/1001", *X264, before=("-r", "24000/1001")),
        odd("29.97 frames/s", SAME, "-r", "30000/1001", *X264, before=("-r", "30000/1001")),
        odd("59.94 frames/s in Matroska (whole milliseconds)", SAME, *X264, before=("-r", "60000/1001"), suffix=".mkv"),
        odd("variable rate", SAME, "-vf", "setpts=(N+floor(N/3)+floor(N/7))/(25*TB)", "-fps_mode", "vfr", *X264),
        odd("first timestamp of 5 s", SAME, *X264, "-output_ts_offset", "5", suffix=".ts"),
        odd("first timestamp of 5 s", SAME, *X264, "-output_ts_offset", "5", suffix=".mkv"),
        odd("interlaced", SAME, "-vf", "setfield=tff", *X264, "-flags", "+ildct+ilme"),
        odd("interlaced", SAME, "-c:v", "mpeg2video", "-q:v", "2", "-flags", "+ildct+ilme", suffix=".ts"),
        odd("10 bit", SAME, "-pix_fmt", "yuv420p10le", *X264),
        odd("GIF", SAME, suffix=".gif"),
        odd("MJPEG in AVI", SAME, "-c:v", "mjpeg", "-q:v", "2", suffix=".avi"),
        odd("WebM with alpha", SAME, "-c:v", "libvpx-vp9", "-crf", "5", "-pix_fmt", "yuva420p", suffix=".webm"),
        odd("odd sizes", SAME, "-vf", "scale=97:65", "-pix_fmt", "yuv444p", *X264),
        odd("pixels that are not square", SAME, "-vf", "scale=48:64,setsar=2", *X264),
        odd("nonsensical shape of pixels", SAME, "-vf", "setsar=500", *X264),
        odd("one packet per hour of clock ticks", SAME, *X264, "-video_track_timescale", "1000000"),
        *(odd(f"rotated by {a}°", SAME, "-c", "copy", before=("-display_rotation", str(a))) for a in (0, 90, 180, 270)),
    ],
)  # fmt: skip
def test_every_frame_once_and_upright(
    counted: Path, make: Callable[..., bytes], tmp_path: Path, before: tuple, options: tuple, suffix: str
) -> None:
    source = tmp_path / f"source{suffix}"
    if "-display_rotation" in before:  # stored lying, shown upright
        turns = int(before[1]) // 90
        with open_writer(
            tmp_path / "lying.mp4", (96, 64) if turns % 2 == 0 else (64, 96), Fraction(25), crf=1
        ) as write:
            for i in range(30):
                write(np.ascontiguousarray(np.rot90(numbered(i), -turns)))
        make(*before, "-i", tmp_path / "lying.mp4", *options, source)
    else:
        make(*before, "-i", counted, *options, source)
    info = probe(source)
    assert not info.damage
    made, frames = through(source, tmp_path / "out.mp4")
    assert [number_of(frame) for frame in frames] == list(range(30))
    assert (made.width, made.height) == (info.width + info.width % 2, info.height + info.height % 2)
    assert abs(made.width / made.height - 1.5) < 0.04
    assert made.fps == info.fps or info.variable
    assert timestamps(tmp_path / "out.mp4") == pytest.approx(timestamps(source), abs=1 / 1000)


@pytest.mark.reliability(SECTION, "interlaced", "the lines of both fields are brought together")
def test_combs_go(make: Callable[..., bytes], tmp_path: Path) -> None:
    """A bar that moves 8 pixels between the two fields of a frame is torn into teeth when nothing is done."""
    bar = "color=gray:s=96x64:r=50:d=1,geq=lum='if(lt(mod(X-8*N+800,96),16),235,80)':cb=128:cr=128,interlace=lowpass=0"
    make("-f", "lavfi", "-i", bar, *X264, "-flags", "+ildct+ilme", tmp_path / "i.mp4")
    with open_reader(tmp_path / "i.mp4") as frames:
        seen = [frame.astype(int).mean(2) for frame in frames]
    assert len(seen) == 25

    def teeth(frame: np.ndarray) -> float:
        return float(np.abs(2 * frame[1:-1] - frame[:-2] - frame[2:]).mean())

    raw = np.frombuffer(make("-i", tmp_path / "i.mp4", "-f", "rawvideo", "-pix_fmt", "gray", "pipe:1"), np.uint8)
    combed = np.mean([teeth(f) for f in raw.reshape(-1, 64, 96).astype(int)])
    assert combed > 5
    assert np.mean([teeth(f) for f in seen[1:-1]]) < combed / 4


# ------------------------------------------------------------------------------------------------ sound


@pytest.mark.parametrize(
    ("inputs", "maps", "heard"),
    [
        pytest.param(
            (), ("-map", "0:v"), 0.0, id="none",
            marks=pytest.mark.reliability(SECTION, "no sound", "none in the result"),
        ),
        pytest.param(
            ("-f", "lavfi", "-i", "sine=440:d=1.2", "-f", "lavfi", "-i", "sine=2000:d=1.2"),
            ("-map", "0:v", "-map", "1:a", "-map", "2:a"), 1.2, id="several",
            marks=pytest.mark.reliability(SECTION, "several sound tracks", "the first is taken"),
        ),
        pytest.param(
            ("-f", "lavfi", "-i", "sine=440:d=3"), ("-map", "0:v", "-map", "1:a"), 1.2, id="longer",
            marks=pytest.mark.reliability(SECTION, "sound longer than the pictures", "cut at the last frame's end"),
        ),
        pytest.param(
            ("-f", "lavfi", "-i", "sine=440:d=0.5"), ("-map", "0:v", "-map", "1:a"), 0.5, id="shorter",
            marks=pytest.mark.reliability(SECTION, "sound shorter than the pictures", "all frames; the sound as it is"),
        ),
    ],
)  # fmt: skip
def test_sound_tracks(
    counted: Path, make: Callable[..., bytes], tmp_path: Path, inputs: tuple, maps: tuple, heard: float
) -> None:
    make("-i", counted, *inputs, *maps, "-c:v", "copy", "-c:a", "aac", tmp_path / "s.mp4")
    made, frames = through(tmp_path / "s.mp4", tmp_path / "out.mp4")
    assert [number_of(frame) for frame in frames] == list(range(30))
    assert made.has_audio == bool(heard)
    assert made.duration == pytest.approx(1.2, abs=0.001)
    if heard:
        raw = make("-i", tmp_path / "out.mp4", "-map", "0:a", "-ac", 1, "-ar", 8000, "-f", "s16le", "pipe:1")
        sound = np.frombuffer(raw, np.int16).astype(float)
        loud = np.flatnonzero(np.abs(sound) > 500)
        assert loud[-1] / 8000 == pytest.approx(heard, abs=0.05)
        assert len(sound) / 8000 < 1.2 + 0.05
        tone = np.abs(np.fft.rfft(sound[:4000])).argmax() * 8000 / 4000
        assert tone == pytest.approx(440, abs=5)
        streams = make("-i", tmp_path / "out.mp4", "-map", "0", "-c", "copy", "-f", "framecrc", "-").decode()
        assert streams.count("#media_type") == 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.reliability(SECTION, "10 minutes at 29.97 frames/s", "sound and pictures drift by less than a frame")
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])  # the sound is copied, or encoded anew
def test_ten_minutes_without_drift(make: Callable[..., bytes], tmp_path: Path, suffix: str) -> None:
    rate, minutes = Fraction(30_000, 1001), 10
    source, out = tmp_path / "long.mp4", tmp_path / f"out{suffix}"
    flash = "color=black:s=32x32:r=30000/1001:d=600,drawbox=c=white:t=fill:enable='lt(mod(t,60),0.5)'"
    click = "aevalsrc='if(lt(mod(t,60),0.5),sin(2*PI*1000*t),0)':s=44100:d=600"
    make("-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", click, *X264, "-preset", "ultrafast", "-c:a", "aac", source)

    def lag(path: Path) -> np.ndarray:
        """For each minute, by how much the sound begins after the flash, in seconds."""
        with open_reader(path, size=(2, 2)) as frames:
            bright = np.array([frame.mean() > 100 for frame in frames])
        times = np.array(timestamps(path))
        shown = times[np.flatnonzero(bright & ~np.r_[False, bright[:-1]])]
        raw = make("-i", path, "-map", "0:a", "-af", "aresample=8000:first_pts=0", "-ac", 1, "-f", "s16le", "pipe:1")
        loud = np.flatnonzero(np.abs(np.frombuffer(raw, np.int16).astype(int)) > 3000)
        heard = loud[np.r_[True, np.diff(loud) > 8000]] / 8000
        assert len(shown) == len(heard) == minutes
        return heard - shown

    info = probe(source)
    with (
        open_reader(source) as frames,
        open_writer(out, (32, 32), info.fps, audio_from=source, crf=30) as write,
    ):
        for frame in frames:
            write(frame)
    assert info.fps == probe(out).fps == rate
    assert probe(out).frames == info.frames == 17_983
    before, after = lag(source), lag(out)
    assert np.abs(after - before).max() < 1 / rate
    assert np.ptp(after - after.mean()) < 1 / rate


# ------------------------------------------------------------------------------------------------ colours


def bars(colours: np.ndarray) -> Image:
    return np.repeat(np.repeat(colours[None].astype(np.uint8), 16, axis=1), 48, axis=0)


def as_players_show(path: Path, make: Callable[..., bytes]) -> Image:
    """The middle of each bar, by the tags of the file."""
    info = probe(path)
    filters = "scale=in_range=auto:in_color_matrix=auto:out_range=pc:flags=accurate_rnd+full_chroma_int+full_chroma_inp"
    raw = make("-i", path, "-frames:v", 1, "-vf", f"{filters},format=rgb24", "-f", "rawvideo", "pipe:1")
    picture = np.frombuffer(raw, np.uint8).reshape(info.height, info.width, 3)
    return picture[24, 8::16].astype(int)


def coloured(case: str, *options: str, expected: str = "colours within 2 levels") -> object:
    return pytest.param(options, id=case, marks=pytest.mark.reliability(SECTION, case, expected))


BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")


@pytest.mark.parametrize(
    "options",
    [
        coloured("limited range", "-pix_fmt", "yuv420p", "-color_range", "tv"),
        coloured("full range", "-pix_fmt", "yuvj420p", "-color_range", "pc"),
        coloured("10 bit", "-pix_fmt", "yuv420p10le"),
        coloured("BT.709", "-pix_fmt", "yuv420p", *BT709),
    ],
)  # fmt: skip
def test_colours_of_a_round_trip(make: Callable[..., bytes], tmp_path: Path, options: tuple[str, ...]) -> None:
    picture = tmp_path / "bars.rgb"
    picture.write_bytes(bars(np.array(COLOURS)).tobytes() * 3)
    matrix = "bt709" if "bt709" in options else "smpte170m"
    wanted = "pc" if "pc" in options else "tv"
    make(
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "128x48", "-i", picture),
        *(
            "-vf",
            f"scale=out_color_matrix={matrix}:out_range={wanted}:flags=accurate_rnd+full_chroma_inp+full_chroma_int",
        ),
        *(*options, "-c:v", "libx264", "-qp", 1, tmp_path / "s.mp4"),
    )
    source = as_players_show(tmp_path / "s.mp4", make)
    assert np.abs(source - COLOURS).max() <= 3  # the file is what it should be
    out = tmp_path / "out.mp4"
    info = probe(tmp_path / "s.mp4")
    assert info.colour == ("bt709" if matrix == "bt709" else "bt601")
    with (
        open_reader(tmp_path / "s.mp4") as frames,
        open_writer(out, (128, 48), Fraction(25), colour=info.colour, crf=1) as write,
    ):
        for frame in frames:
            write(frame)
    assert np.abs(as_players_show(out, make) - source).max() <= 2


@pytest.mark.skipif(not colour._has_zscale(), reason="this ffmpeg has no zscale")
@pytest.mark.reliability(
    SECTION, "high dynamic range (BT.2020, PQ or HLG), tags partly missing", "grey stays grey, in order"
)
@pytest.mark.parametrize("primaries", ["bt2020", "unknown"])
@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67", "bt2020-10", "unknown"])
def test_high_dynamic_range(make: Callable[..., bytes], tmp_path: Path, primaries: str, transfer: str) -> None:
    ramp = np.repeat(np.repeat(np.arange(16, 256, 32, dtype=np.uint8)[None, :, None], 16, 1), 3, 2).repeat(48, 0)
    (tmp_path / "ramp.rgb").write_bytes(ramp.tobytes() * 5)
    tags = f"setparams=colorspace=bt2020nc:color_primaries={primaries}:color_trc={transfer}"
    make(
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "128x48", "-i", tmp_path / "ramp.rgb"),
        *("-vf", f"scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le,{tags}"),
        *("-c:v", "libx264", "-qp", 4, tmp_path / "h.mp4"),
    )
    made, frames = through(tmp_path / "h.mp4", tmp_path / "out.mp4")
    assert made.frames == 5
    assert made.colour == "bt709"
    steps = frames[2][24, 8::16].astype(int)
    assert np.ptp(steps, axis=1).max() <= 3  # no tint
    assert (np.diff(steps.mean(1)) > 1).all()
    with open_reader(tmp_path / "h.mp4") as read:
        assert np.abs(steps - next(read)[24, 8::16].astype(int)).max() <= 2


# ------------------------------------------------------------------------------------------------ end to end


@pytest.mark.usefixtures("stand", "avatar")
@pytest.mark.reliability(SECTION, "variable rate with sound, rotated, through `drive`", SAME)
def test_through_drive(
    counted: Path, make: Callable[..., bytes], tmp_path: Path, retarget: Callable, files: dict[str, Path]
) -> None:
    make(
        *("-i", counted, "-f", "lavfi", "-i", "sine=d=2", "-vf", "setpts=(N+floor(N/3))/(25*TB)", "-fps_mode", "vfr"),
        *("-frames:v", 12, "-c:v", "libx264", "-c:a", "aac", "-shortest", tmp_path / "v.mp4"),
    )
    make("-display_rotation", 90, "-i", tmp_path / "v.mp4", "-map", 0, "-c", "copy", tmp_path / "source.mov")
    said = retarget(
        "drive", "--source", tmp_path / "source.mov", "--out", tmp_path / "o.mp4", "--compare", "--device", "cpu"
    )
    assert said.code == 0, said
    made = probe(tmp_path / "o.mp4")
    assert made.frames == 12
    assert made.has_audio
    assert timestamps(tmp_path / "o.mp4") == pytest.approx(timestamps(tmp_path / "source.mov"), abs=1 / 1000)


@pytest.mark.reliability(SECTION, "one time for several frames (damaged files)", "every frame, times that increase")
def test_times_that_do_not_increase(counted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Table.parse

    def damaged(text: str) -> Table:
        table = true(text)
        for row in (7, 8, 9):
            table.rows[0][row] = replace(table.rows[0][row], pts=table.rows[0][6].pts)
        return table

    source = tmp_path / "source.mp4"
    source.write_bytes(counted.read_bytes())
    monkeypatch.setattr(Table, "parse", staticmethod(damaged))
    info = probe(source)
    monkeypatch.setattr(Table, "parse", staticmethod(true))
    assert info.frames == 30
    assert info.variable
    times = timestamps(source)
    assert (np.diff(times) > 0).all()
    made, frames = through(source, tmp_path / "out.mp4")
    assert made.frames == 30
    assert [number_of(frame) for frame in frames] == list(range(30))
