"""`drive` on an avatar and motions that are known: no pose estimator at work, but true videos in and out."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from reliability.fuzz import children

from retarget import device, video
from retarget import drive as public
from retarget.avatar import Avatar
from retarget.background import solid_colour
from retarget.drive import DriveOptions, load, marked, movement, tags
from retarget.errors import AvatarError, InputError, RetargetError, StorageError, UsageError, VideoError
from retarget.models.dance import Dance
from retarget.pose import Motion, save_motion
from retarget.pose.cache import packed
from retarget.rendering import pictures
from retarget.types import Image, PoseTrack, Silent
from retarget.video import open_reader, open_writer, probe, read_metadata, timestamps

RATE = Fraction(24000, 1001)
SIZE = (128, 160)
CPU = {"device": "cpu", "precision": "fp32"}
EXACT = CPU | {"align": "none", "smooth": 0.0}


# ------------------------------------------------------------------------------------------------ a cast


def dancing(puppet, count: int = 10) -> list[np.ndarray]:
    return [puppet.body((25 + 8 * i, 25 + 12 * i), (25, 20 + 5 * i), legs=6 + i, at=(60 + i, 76)) for i in range(count)]


@pytest.fixture(scope="module")
def cast(puppet, tmp_path_factory: pytest.TempPathFactory) -> Avatar:
    """An avatar of three poses of the puppet's dance, not fine-tuned."""
    module = importlib.import_module("retarget.personalize")
    home = tmp_path_factory.mktemp("drive")
    (home / "me.mp4").write_bytes(b"not looked into")
    bodies = dancing(puppet)
    gathered = puppet.gathered(bodies[0], bodies[4], bodies[9])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETARGET_HOME", str(home))
        patch.setattr(module, "gather", lambda *_: gathered)
        return module.personalize(home / "me.mp4", steps=0, init="random", device="cpu")


@pytest.fixture(scope="module")
def track(puppet) -> PoseTrack:
    return replace(puppet.track(*dancing(puppet)), fps=RATE)


@pytest.fixture
def motion(track, tmp_path) -> Path:
    return save_motion(track, tmp_path / "dance.npz")


@pytest.fixture(scope="module")
def loaded() -> dict[Path, Any]:
    return {}


@pytest.fixture(autouse=True)
def _loaded_once(loaded: dict[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding the person takes longer than all the rest: once for all tests."""

    def once(avatar: Avatar, compute: Any) -> Any:
        if avatar.path not in loaded:
            loaded[avatar.path] = load(avatar, compute)
        return loaded[avatar.path]

    monkeypatch.setattr(importlib.import_module("retarget.drive"), "load", once)


def ffmpeg(*arguments: object) -> bytes:
    command = [video.ffmpeg(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def filmed(puppet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dance as a video of another puppet in another place, twice as large, with sound."""
    folder = tmp_path_factory.mktemp("filmed")
    plate = cv2.resize(puppet.cloth(50, sigma=4.0), (256, 320), interpolation=cv2.INTER_CUBIC)
    with open_writer(folder / "mute.mp4", (256, 320), RATE, crf=8) as write:
        for body in dancing(puppet):
            small = puppet.picture(body, puppet.cloth(50, sigma=4.0), seed=7)
            large = cv2.resize(small, (256, 320), interpolation=cv2.INTER_CUBIC)
            matte = cv2.resize(puppet.matte(body), (256, 320))[..., None]
            write(np.round(large * matte + plate * (1 - matte)).astype(np.uint8))
    out = folder / "dance.mp4"
    ffmpeg("-i", folder / "mute.mp4", "-f", "lavfi", "-i", "sine=440", "-shortest", "-c:v", "copy", "-c:a", "aac", out)
    return out


@pytest.fixture
def estimated(track, puppet, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the pose estimator by one that knows the dance; returns how it was called."""
    calls: list[dict[str, Any]] = []

    def estimate(path, options, *, start=0.0, end=None, restart=False, progress=None) -> Motion:
        calls.append({"path": path, "person": options.person, "start": start, "end": end})
        info = probe(path)
        times = np.arange(len(track)) / float(RATE)
        chosen = np.flatnonzero((times >= start - 1e-6) & (times < (1e9 if end is None else end) - 1e-6))
        piece = replace(track.select(chosen).scaled((info.width, info.height)), fps=info.fps)
        return Motion.of(packed(piece).__getitem__)

    def estimate_images(images, options=None):
        # Every step-th frame of the dance, in another size.
        found = []
        for i, image in enumerate(images):
            mask = cv2.resize(puppet.matte(dancing(puppet)[i * (len(track) // len(images))]), image.shape[1::-1])
            found.append((track.select([i]), mask))
        return found

    monkeypatch.setattr("retarget.pose.estimated", estimate)
    monkeypatch.setattr("retarget.pose.estimate_images", estimate_images)
    return calls


def read(path: Path) -> list[Image]:
    with open_reader(path) as frames:
        return list(frames)


def visible(folder: Path) -> list[str]:
    """All files of a folder, hidden ones too; but not the home of avatars and caches."""
    return sorted(p.name for p in folder.iterdir() if p.name != "home")


def psnr(a: np.ndarray, b: np.ndarray, inside: np.ndarray | None = None) -> float:
    error = (a.astype(float) - b) ** 2
    return float(10 * np.log10(255**2 / max(1e-3, float((error if inside is None else error[inside]).mean()))))


@pytest.fixture(autouse=True)
def _no_process_survives() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


# ------------------------------------------------------------------------------------------------ the result


def test_as_many_frames_at_the_same_rate_in_the_avatars_size(cast, motion, tmp_path):
    out = public(cast, motion, tmp_path / "out.mp4", **CPU)
    assert out == tmp_path / "out.mp4"
    info = probe(out)
    assert (info.width, info.height) == SIZE
    assert info.frames == 10
    assert info.fps == RATE
    assert not info.has_audio
    stream = ffmpeg_says(out)
    assert "h264" in stream
    assert "yuv420p" in stream
    assert visible(tmp_path) == ["dance.npz", "out.mp4"]


def ffmpeg_says(path: Path) -> str:
    run = subprocess.run([video.ffmpeg(), "-hide_banner", "-i", str(path)], capture_output=True, text=True, check=False)
    return next(line for line in run.stderr.splitlines() if "Video:" in line)


def test_the_own_poses_give_the_own_pictures(cast, motion, puppet, tmp_path):
    frames = read(public(cast, motion, tmp_path / "out.mp4", **EXACT))
    bodies, plate = dancing(puppet), puppet.cloth(99, sigma=3.0)
    for reference, i in enumerate((0, 4, 9)):
        # Frame 0 has no past; later ones may still fade from the reference before.
        truth = puppet.picture(bodies[i], plate, seed=reference)
        assert psnr(frames[i], truth) > (24 if i == 0 else 18)
    # Where the person stands is the person: frame by frame the silhouette moves as the motion says.
    for body, frame in zip(bodies, frames, strict=True):
        outside = puppet.matte(body) == 0
        assert psnr(frame, plate, outside) > 24
        inside = puppet.matte(body) == 1
        assert psnr(frame, plate, inside) < 17


def test_the_same_again_is_the_same(cast, motion, tmp_path):
    one, two = (read(public(cast, motion, tmp_path / f"{n}.mp4", **CPU)) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_the_avatar_can_be_named_or_left_out(cast, motion, tmp_path, monkeypatch):
    by_folder = read(public(cast.path, motion, tmp_path / "1.mp4", **CPU))
    with pytest.raises(AvatarError, match="no avatar yet"):
        public(None, motion, tmp_path / "2.mp4", **CPU)
    with pytest.raises(AvatarError, match="no avatar called nobody"):
        public("nobody", motion, tmp_path / "2.mp4", **CPU)
    monkeypatch.setenv("RETARGET_HOME", str(cast.path.parent.parent))
    np.testing.assert_array_equal(read(public(None, motion, tmp_path / "3.mp4", **CPU)), by_folder)
    np.testing.assert_array_equal(read(public("me", motion, tmp_path / "4.mp4", **CPU)), by_folder)
    assert not (tmp_path / "2.mp4").exists()


@pytest.mark.parametrize(("short", "size"), [(64, (64, 80)), (255, (256, 318))])
def test_another_size_keeps_the_aspect(cast, motion, tmp_path, short, size):
    out = public(cast, motion, tmp_path / "out.mp4", size=short, end=0.1, **EXACT)
    info = probe(out)
    assert (info.width, info.height) == size
    whole = read(public(cast, motion, tmp_path / "whole.mp4", end=0.1, **EXACT))
    assert psnr(cv2.resize(read(out)[0], (32, 40), interpolation=cv2.INTER_AREA),
                cv2.resize(whole[0], (32, 40), interpolation=cv2.INTER_AREA)) > 24  # fmt: skip


def test_a_piece_of_a_motion(cast, motion, puppet, tmp_path):
    options = EXACT | {"background": "#000000"}
    piece = read(public(cast, motion, tmp_path / "piece.mp4", start=0.12, end=0.25, **options))
    assert len(piece) == 3
    mattes = [puppet.matte(body) for body in dancing(puppet)]
    shown = [int(np.argmin([np.abs((frame.max(2) > 40) - m).mean() for m in mattes])) for frame in piece]
    assert shown == [3, 4, 5]  # of 24000/1001 per second


def test_metadata_tells_that_it_is_synthetic(cast, motion, tmp_path):
    for name in ("out.mp4", "out.mkv", "out.webm"):
        found = read_metadata(public(cast, motion, tmp_path / name, end=0.1, **CPU))
        assert found["synthetic_media"] == "true"
        assert found["retarget_avatar"] == cast.id
        assert "Synthetic media" in found["comment"]
        assert cast.id in found["comment"]
        assert found["retarget_version"] == tags(cast)["retarget_version"]


def test_a_watermark_is_written_into_the_corner_only(cast, motion, tmp_path):
    plain, signed = (read(public(cast, motion, tmp_path / f"{w}.mp4", watermark=w, end=0.1, **CPU)) for w in (0, 1))
    change = np.abs(plain[0].astype(int) - signed[0]).max(2)
    assert change[-22:, 40:].max() > 80
    assert change[:-40].max() < 30  # the encoder's


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(128, 160), (1280, 720)])
def test_the_mark_lies_in_the_lower_right_corner(size, channels):
    picture = np.full((size[1], size[0], channels), 128, np.uint8)
    picture[..., 3:] = 0
    before = picture.copy()
    ys, xs = np.nonzero((marked(picture) != before).any(2))
    assert ys.min() > 0.8 * size[1]
    assert ys.max() < size[1]
    assert xs.min() > 0.15 * size[0]
    assert len(xs) > 200
    if channels == 4:
        assert marked(before)[..., 3].max() == 255


# ------------------------------------------------------------------------------------------------ the motion


def test_unaligned_poses_stay_where_they_are(cast, motion, track):
    _, _, stored = load(cast, device.choose("cpu"))
    found = movement(motion, cast, stored, DriveOptions(align="none", smooth=0.0), Silent()).select(range(10))
    np.testing.assert_allclose(found.body, track.body, atol=1e-3)
    twice = save_motion(track.scaled((256, 320)), motion.with_name("twice.npz"))
    found = movement(twice, cast, stored, DriveOptions(align="none", smooth=0.0), Silent()).select(range(10))
    assert found.size == SIZE
    np.testing.assert_allclose(found.body, track.body, atol=1e-2)


def test_aligned_poses_have_the_avatars_size_and_place(cast, motion, track, puppet):
    _, _, stored = load(cast, device.choose("cpu"))
    # A smaller dancer in the upper left corner of a larger picture.
    small = [puppet.body((25 + 8 * i, 25 + 12 * i), legs=6, at=(60 + i, 60), scale=50) for i in range(10)]
    strange = save_motion(puppet.track(*small, size=(400, 300)), motion.with_name("strange.npz"))
    found = movement(strange, cast, stored, DriveOptions(align="auto", smooth=0.0), Silent()).select(range(10))
    assert found.size == SIZE
    height = np.ptp(found.body[:, :, 1], axis=1).mean()
    assert height == pytest.approx(np.ptp(track.body[:, :, 1], axis=1).mean(), rel=0.1)
    assert found.body[:, 27:, 1].max() == pytest.approx(track.body[:, 27:, 1].max(), abs=10)
    assert abs(found.body[:, 23:25, 0].mean() - track.body[:, 23:25, 0].mean()) < 20


def test_smoothing_calms_a_trembling_motion(cast, motion, track):
    _, _, stored = load(cast, device.choose("cpu"))
    noise = np.random.default_rng(0).normal(0, 1.5, (10, 33, 2)).astype(np.float32)
    body = track.body.copy()
    body[..., :2] += noise
    shaky = save_motion(replace(track, body=body), motion.with_name("shaky.npz"))
    speed = []
    for smooth in (0.0, 0.5, 1.0):
        found = movement(shaky, cast, stored, DriveOptions(align="none", smooth=smooth), Silent()).select(range(10))
        speed.append(np.abs(np.diff(found.body[..., :2], 2, axis=0)).mean())
    assert speed[0] > speed[1] > speed[2]


# ------------------------------------------------------------------------------------------------ the scene


def behind(puppet, frame: int = 0) -> np.ndarray:
    """Where nobody is, and a bit away from where somebody is."""
    body = dancing(puppet)[frame]
    far = cv2.dilate(puppet.matte(body), np.ones((9, 9))) == 0
    far[120:] = False  # where feet shade the floor
    return far


def test_a_colour_behind(cast, motion, puppet, tmp_path):
    (frame, *_) = read(public(cast, motion, tmp_path / "o.mp4", background="#20c040", end=0.1, **EXACT))
    np.testing.assert_allclose(frame[behind(puppet)].mean(0), (0x20, 0xC0, 0x40), atol=6)
    plain = read(public(cast, motion, tmp_path / "p.mp4", end=0.1, **EXACT))[0]
    inside = cv2.erode(puppet.matte(dancing(puppet)[0]), np.ones((5, 5))) == 1
    assert psnr(frame, plain, inside) > 22  # the person is the same


def test_a_picture_behind(cast, motion, puppet, tmp_path):
    y, x = np.mgrid[:160, :256]
    scene = np.stack([x // 2, y, 255 - x // 2], 2).astype(np.uint8)  # twice as wide: cropped on both sides
    cv2.imwrite(str(tmp_path / "scene.png"), cv2.cvtColor(scene, cv2.COLOR_RGB2BGR))
    out = public(cast, motion, tmp_path / "o.mp4", background=str(tmp_path / "scene.png"), end=0.1, **EXACT)
    assert np.abs(read(out)[0].astype(int) - scene[:, 64:192])[behind(puppet)].mean() < 5


def test_a_video_behind_begins_again_at_its_end(cast, motion, puppet, tmp_path):
    colours = ["#a02020", "#20a020", "#2020a0"]
    with open_writer(tmp_path / "scene.mp4", (64, 80), Fraction(25), crf=1) as write:
        for colour in colours:
            write(solid_colour(colour, (64, 80)))
    frames = read(public(cast, motion, tmp_path / "o.mp4", background=str(tmp_path / "scene.mp4"), **EXACT))
    assert len(frames) == 10
    for i, frame in enumerate(frames):
        wanted = solid_colour(colours[i % 3], (1, 1))[0, 0]
        np.testing.assert_allclose(frame[behind(puppet, i)].mean(0), wanted, atol=14)


def test_the_drivers_scene_behind(cast, filmed, estimated, puppet, tmp_path):
    frames = read(public(cast, filmed, tmp_path / "o.mp4", background="source", **EXACT))
    scene = puppet.cloth(50, sigma=4.0)
    assert psnr(frames[0], scene, behind(puppet)) > 22
    assert psnr(frames[0], puppet.cloth(99, sigma=3.0), behind(puppet)) < 15


def rgba(path: Path) -> np.ndarray:
    """(T, H, W, 4) of a video with alpha."""
    decoder = ["-c:v", "libvpx-vp9"] if path.suffix == ".webm" else []
    data = ffmpeg(*decoder, "-i", path, "-f", "rawvideo", "-pix_fmt", "rgba", "pipe:1")
    return np.frombuffer(data, np.uint8).reshape(-1, SIZE[1], SIZE[0], 4)


@pytest.mark.parametrize("suffix", [".mov", ".webm"])
def test_nothing_behind(cast, motion, puppet, tmp_path, suffix):
    out = public(cast, motion, tmp_path / f"o{suffix}", background="transparent", end=0.1, **EXACT)
    frames = rgba(out)
    assert len(frames) == 3
    matte = puppet.matte(dancing(puppet)[0])
    alpha = frames[0, ..., 3] / 255
    assert np.abs(alpha - matte).mean() < 0.03
    assert alpha[behind(puppet)].max() < 0.05
    solid = cv2.erode(matte, np.ones((7, 7))) == 1
    assert alpha[solid].min() > 0.9
    plain = read(public(cast, motion, tmp_path / "p.mp4", end=0.1, **EXACT))[0]
    assert psnr(frames[0, ..., :3], plain, solid) > 20
    # Straight alpha: at the rim the colours are the person's, not darkened by what is not there.
    rim = (alpha > 0.3) & (alpha < 0.7)
    assert abs(frames[0, rim][:, :3].mean() - frames[0, solid][:, :3].mean()) < 25
    assert frames[0, ..., :3][solid].mean() > 90


def test_comparing_puts_source_and_result_side_by_side(cast, filmed, estimated, tmp_path):
    both = public(cast, filmed, tmp_path / "both.mp4", compare=True, **EXACT)
    alone = public(cast, filmed, tmp_path / "alone.mp4", **EXACT)
    info = probe(both)
    assert (info.width, info.height) == (2 * SIZE[0], SIZE[1])
    assert info.frames == 10
    for pair, source, result in zip(read(both), read(filmed), read(alone), strict=True):
        small = cv2.resize(source, SIZE, interpolation=cv2.INTER_AREA)
        assert psnr(pair[:, : SIZE[0]], small) > 25
        assert psnr(pair[:, SIZE[0] :], result) > 25


# ------------------------------------------------------------------------------------------------ sound, time


def test_the_sound_is_taken_along(cast, filmed, estimated, tmp_path):
    out = public(cast, filmed, tmp_path / "o.mp4", person="5,6", **CPU)
    info = probe(out)
    assert info.has_audio
    assert (info.frames, info.fps) == (10, RATE)
    assert estimated == [{"path": filmed, "person": "5,6", "start": 0.0, "end": None}]
    sound = np.frombuffer(ffmpeg("-i", out, "-f", "s16le", "-ac", 1, "-ar", 8000, "pipe:1"), np.int16)
    assert len(sound) / 8000 == pytest.approx(10 / float(RATE), abs=0.1)
    assert np.abs(sound.astype(int)).max() > 1000
    assert not probe(public(cast, filmed, tmp_path / "mute.mp4", audio=False, **CPU)).has_audio


def test_a_piece_of_a_video_with_its_sound(cast, filmed, estimated, tmp_path):
    out = public(cast, filmed, tmp_path / "o.mp4", start=0.12, end=0.25, compare=True, **EXACT)
    info = probe(out)
    assert info.frames == 3
    assert info.has_audio
    assert estimated[0]["start"] == 0.12
    assert estimated[0]["end"] == 0.25
    source = read(filmed)[3]
    assert psnr(read(out)[0][:, : SIZE[0]], cv2.resize(source, SIZE, interpolation=cv2.INTER_AREA)) > 25


def test_a_variable_rate_is_kept(cast, puppet, estimated, tmp_path):
    times = [0, 0.04, 0.08, 0.2, 0.24, 0.28, 0.45, 0.5, 0.55, 0.6]
    with open_writer(tmp_path / "vfr.mp4", SIZE, Fraction(20), timestamps=times) as write:
        for body in dancing(puppet):
            write(puppet.picture(body, puppet.cloth(50)))
    out = public(cast, tmp_path / "vfr.mp4", tmp_path / "o.mp4", **CPU)
    assert probe(out).variable
    assert probe(out).frames == 10
    np.testing.assert_allclose(timestamps(out), times, atol=1e-3)


# ------------------------------------------------------------------------------------------------ pictures


def test_smoothing_over_time_calms_what_is_coarse(cast, track):
    model, identity, _ = load(cast, device.choose("cpu", "fp32"))
    compute = device.choose("cpu", "fp32")
    still = track.select([0] * 6)

    def lamps() -> Iterator[Image]:
        for i in range(100):
            yield np.full((160, 128, 3), 100 + 40 * (i % 2), np.uint8)  # a flickering scene

    found = {
        c: [p.astype(int) for p in pictures(model, identity, still, SIZE, compute, lamps(), calm=c)] for c in (0, 1)
    }
    flicker = {c: np.abs(np.diff(frames, axis=0))[:, :30, :30].mean() for c, frames in found.items()}
    assert flicker[0] == pytest.approx(40, abs=1)
    assert flicker[1] < 0.6 * flicker[0]
    np.testing.assert_array_equal(found[0][0], found[1][0])  # the first frame has no past
    # A scene at rest is not touched.
    plain, calm = (list(pictures(model, identity, still, SIZE, compute, calm=c)) for c in (0.0, 0.7))
    assert np.abs(np.array(plain, int) - calm).max() <= 1


def test_what_has_nothing_behind_can_be_laid_over_anything(cast, track):
    compute = device.choose("cpu", "fp32")
    model, identity, _ = load(cast, compute)
    scene = np.full((160, 128, 3), (250, 10, 90), np.uint8)
    scenes = iter([scene] * len(track))
    laid = pictures(model, identity, track, SIZE, compute, scenes)
    for cut, wanted in zip(pictures(model, identity, track, SIZE, compute, transparent=True), laid, strict=True):
        assert cut.shape == (160, 128, 4)
        alpha = cut[..., 3:] / 255
        assert 0.05 < alpha.mean() < 0.5
        np.testing.assert_allclose(cut[..., :3] * alpha + scene * (1 - alpha), wanted, atol=2.5)


def test_shading_the_scene_leaves_nothing_on_a_person_without_one(cast, track):
    compute = device.choose("cpu", "fp32")
    _, identity, _ = load(cast, compute)
    shown = []
    for shade in (0.0, -1.0, 1.0):
        model = Dance(density=24, width=8, depth=2).eval()
        model.synthesis.last.bias.data[6 * 4 :] = shade
        model.synthesis.last.bias.data[2 * 4 : 3 * 4] = 0.1  # that it is asked even when it shades nothing
        shown.append(next(pictures(model, identity, track, SIZE, compute, transparent=True)).astype(int))
    plain, *shaded = shown
    seen = plain[..., 3] > 10
    assert ((plain[..., 3] > 10) & (plain[..., 3] < 200)).sum() > 50  # a soft rim
    for picture in shaded:
        assert np.abs(picture - plain)[seen].max() <= 1


def test_pictures_come_one_by_one(cast, track):
    compute = device.choose("cpu", "fp32")
    model, identity, _ = load(cast, compute)
    stream = pictures(model, identity, track, (64, 80), compute)
    first = next(stream)
    assert first.shape == (80, 64, 3)
    assert first.dtype == np.uint8
    stream.close()


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "out", "message"),
    [
        ({"align": "left"}, "o.mp4", "no alignment “left”"),
        ({"smooth": 1.5}, "o.mp4", "--smooth is 1.5"),
        ({"output_smooth": -0.1}, "o.mp4", "--output-smooth is -0.1"),
        ({"start": -1.0}, "o.mp4", "--start is -1"),
        ({"start": 2.0, "end": 1.0}, "o.mp4", "from 2 to 1 s is empty"),
        ({"size": 10}, "o.mp4", "10 pixels is too small"),
        ({"background": "transparent"}, "o.mp4", r"o\.mp4 cannot hold transparency"),
        ({"background": "transparent", "compare": True}, "o.mov", "--compare does not go with"),
        ({"background": "#12345"}, "o.mp4", "“#12345” is no colour"),
        ({"background": "#12345g"}, "o.mp4", "“#12345g” is no colour"),
        ({"compare": True}, "o.mp4", r"dance\.npz holds a motion without pictures"),
        ({"background": "source"}, "o.mp4", r"dance\.npz holds a motion without pictures"),
        ({"speed": 2}, "o.mp4", "no option “speed”"),
        ({"start": 5.0}, "o.mp4", r"dance\.npz has no pose from 5 s on"),
        ({}, "o.avi", r"o\.avi"),
    ],
)
def test_options_that_cannot_be(cast, motion, tmp_path, changes, out, message):
    with pytest.raises(UsageError, match=message) as e:
        public(cast, motion, tmp_path / out, **CPU | changes)
    assert e.value.remedy
    assert visible(tmp_path) == ["dance.npz"]


def test_files_that_cannot_be(cast, motion, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 100)
    cases: list[tuple[type[RetargetError], dict[str, Any]]] = [
        (InputError, {"source": tmp_path / "missing.mp4"}),
        (InputError, {"source": tmp_path / "missing.npz"}),
        (VideoError, {"source": text}),
        (StorageError, {"out": tmp_path / "missing" / "o.mp4"}),
        (InputError, {"background": str(tmp_path / "missing.jpg")}),
        (VideoError, {"background": str(text)}),
    ]
    for error, changes in cases:
        arguments: dict[str, Any] = {"source": motion, "out": tmp_path / "o.mp4"} | changes
        with pytest.raises(error) as e:
            public(cast, arguments.pop("source"), arguments.pop("out"), **CPU, **arguments)
        assert e.value.remedy, changes
        assert ("missing" if "missing" in str(changes) else "text.mp4") in e.value.message
    assert visible(tmp_path) == ["dance.npz", "text.mp4"]


def test_the_source_is_never_written_over(cast, filmed, estimated, motion, tmp_path):
    before = filmed.read_bytes()
    with pytest.raises(UsageError, match="is read and cannot be written"):
        public(cast, filmed, filmed, **CPU)
    with pytest.raises(UsageError, match="is read and cannot be written"):
        public(cast, motion, filmed, background=str(filmed), **CPU)
    assert filmed.read_bytes() == before


def test_a_damaged_avatar_is_told(cast, motion, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(cast.path, broken)
    tensors = load_file(broken / "references.safetensors")
    del tensors["mattes"]
    save_file(tensors, broken / "references.safetensors")
    with pytest.raises(AvatarError, match="broken is damaged") as e:
        public(broken, motion, tmp_path / "o.mp4", **CPU)
    assert "personalize again" in e.value.remedy


@pytest.fixture
def stumbling(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes the model fail at the fourth frame."""

    def arm(error: BaseException) -> None:
        forward, count = Dance.forward, 0

        def stumble(self, *args):
            nonlocal count
            count += 1
            if count > 3:
                raise error
            return forward(self, *args)

        monkeypatch.setattr(Dance, "forward", stumble)

    return arm


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_failure_in_the_middle_leaves_nothing_behind(cast, filmed, estimated, stumbling, tmp_path, suffix, error):
    stumbling(error)
    with open_writer(tmp_path / "scene.mp4", (64, 80), Fraction(25)) as write:
        write(solid_colour("#808080", (64, 80)))
    out = tmp_path / f"o{suffix}"
    out.write_bytes(b"what was there before")
    with pytest.raises(type(error)):
        public(cast, filmed, out, background=str(tmp_path / "scene.mp4"), compare=True, **CPU)
    assert out.read_bytes() == b"what was there before"
    assert visible(tmp_path) == [out.name, "scene.mp4"]
