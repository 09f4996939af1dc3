"""`drive` that is interrupted and run again: the same video, whatever ended the runs before."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget import drive, folders, pose, video
from retarget.avatar import Avatar
from retarget.background import solid_colour
from retarget.errors import StorageError
from retarget.models import MODELS, build
from retarget.models.dance import Dance
from retarget.pose import estimate, save_motion
from retarget.types import Silent
from retarget.video import open_reader, open_segments, open_writer, probe, read_metadata, reading, segments, timestamps
from retarget.video.encoding import Encoder
from retarget.video.process import unwritable

FRAMES, SEGMENT = 22, 6
CPU = {"device": "cpu", "precision": "fp32", "size": 64}


def read(path: Path) -> np.ndarray:
    with open_reader(path) as frames:
        return np.stack(list(frames))


def work(kind: str = "*") -> list[Path]:
    """Folders with unfinished work."""
    return [p for p in (folders.cache_dir() / "work").glob(f"{kind}-*") if p.is_dir()]


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps = 0

    def stage(self, title: str, total: int | None = None) -> None:
        self.steps = 0

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.steps += steps

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def loaded() -> dict[int, Any]:
    return {}


@pytest.fixture(autouse=True)
def _loaded_once(loaded: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding the person takes longer than all the rest: once for all tests."""
    module = importlib.import_module("retarget.drive")
    load = module.load

    def once(avatar: Avatar, compute: Any) -> Any:
        known = hash((str(avatar.meta.config), avatar.tensors()["frames"].tobytes(), len(avatar.state())))
        if known not in loaded:
            loaded[known] = load(avatar, compute)
        return loaded[known]

    monkeypatch.setattr(module, "load", once)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short videos have many segments."""
    monkeypatch.setattr(segments, "SEGMENT", SEGMENT)


@pytest.fixture
def motion(puppet, tmp_path: Path) -> Path:
    bodies = [puppet.body((25 + 3 * i, 25 + 5 * i), (25, 20 + 2 * i), legs=6, at=(60 + i, 76)) for i in range(FRAMES)]
    return save_motion(replace(puppet.track(*bodies, details=True), fps=Fraction(24000, 1001)), tmp_path / "dance.npz")


@pytest.fixture
def filmed(motion: Path, tmp_path: Path, example_dance: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video with sound whose frames differ, and whose poses are those of `motion`."""
    out = tmp_path / "dance.mp4"
    rng = np.random.default_rng(0)
    with open_writer(out, (64, 80), Fraction(25), crf=6, audio_from=example_dance) as write:
        for _ in range(FRAMES):
            write(np.kron(rng.integers(0, 255, (5, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8))
    known = pose.cache.open_motion(motion)
    monkeypatch.setattr(pose, "_from_video", lambda path, _, start, end, *__: pose._piece(known, path, start, end))
    return out


class Stumbling:
    """Ends a run at its n-th frame, as Ctrl-C does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after, self.count = 1 << 30, 0
        forward = Dance.forward

        def stumble(model: Dance, *arguments: Any) -> Any:
            self.count += 1
            if self.count > self.after:
                raise KeyboardInterrupt
            return forward(model, *arguments)

        monkeypatch.setattr(Dance, "forward", stumble)

    def at(self, frame: int) -> None:
        self.after, self.count = frame, 0


@pytest.fixture
def stumbling(monkeypatch: pytest.MonkeyPatch) -> Stumbling:
    return Stumbling(monkeypatch)


def in_pieces(stumbling: Stumbling, frames: list[int], *arguments: Any, **options: Any) -> list[str]:
    """Runs `drive` until it ends well, interrupted after so many frames; returns what the last run noted."""
    for frame in frames:
        stumbling.at(frame)
        with pytest.raises(KeyboardInterrupt):
            drive(*arguments, **CPU | options)
    stumbling.at(1 << 30)
    listener = Listener()
    drive(*arguments, progress=listener, **CPU | options)
    return listener.notes


# ------------------------------------------------------------------------------------------------ one frame to the next


@pytest.mark.reliability("1. Resume", "drive interrupted twice, then run again", "the same frames to the bit")
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", {}),
        (".mp4", {"output_smooth": 1.0, "smooth": 0.0, "align": "none"}),
        (".mkv", {"background": "loop.mp4", "watermark": True}),
        (".mp4", {"compare": True, "start": 0.1}),
        (".webm", {"background": "transparent"}),
        (".mov", {"background": "transparent"}),
    ],
)
def test_a_run_in_pieces_gives_the_same_frames(tuned_avatar, filmed, stumbling, short, tmp_path, suffix, options):
    with open_writer(tmp_path / "loop.mp4", (64, 80), Fraction(25), crf=1) as write:
        for i in range(5):
            write(solid_colour(f"#{40 * i + 20:02x}80{200 - 30 * i:02x}", (64, 80)))
    if options.get("background") == "loop.mp4":
        options = options | {"background": str(tmp_path / "loop.mp4")}
    whole = drive(tuned_avatar, filmed, tmp_path / f"whole{suffix}", **CPU | options)
    out = tmp_path / f"out{suffix}"
    notes = in_pieces(stumbling, [8, 9], tuned_avatar, filmed, out, **options)
    total = probe(whole).frames
    assert f"Going on at frame 12 of {total}." in notes  # 8 frames make one segment, 9 more after it another
    assert total == (FRAMES if "start" not in options else FRAMES - 3)
    np.testing.assert_array_equal(read(out), read(whole))
    assert timestamps(out) == timestamps(whole)
    assert probe(out).has_audio == probe(whole).has_audio is True
    assert read_metadata(out) == read_metadata(whole)
    assert out.stat().st_size == pytest.approx(whole.stat().st_size, rel=0.001)
    assert work() == []
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_window_of_poses_is_known_again(tuned_avatar, motion, stumbling, short, tmp_path):
    """A model that looks at three poses finds those before the frame where it goes on."""
    model = Dance(window=3, density=24, width=8, depth=2)
    torch.nn.init.normal_(model.synthesis.last.weight, 0, 0.3, generator=torch.Generator().manual_seed(0))
    tensors = {k: v.numpy() for k, v in model.state_dict().items()}
    meta = replace(tuned_avatar.meta, config=vars(model.config))
    avatar = Avatar(meta, tuned_avatar.path)

    class Windowed(type(avatar)):
        def opened(self):
            return replace(avatar, held=(tuned_avatar.tensors(), tensors))

    windowed = Windowed(meta, tuned_avatar.path)
    whole = drive(windowed, motion, tmp_path / "whole.mp4", **CPU)
    in_pieces(stumbling, [14], windowed, motion, tmp_path / "out.mp4")
    np.testing.assert_array_equal(read(tmp_path / "out.mp4"), read(whole))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_packs_its_state(name, puppet):
    from retarget.references import references

    model = build(name).eval()
    stored = _stored(puppet)
    with torch.inference_mode():
        identity = model.encode(references(stored))
        state = None
        for angle in (10, 40, 70):
            condition = model.condition(_poses(puppet.track(puppet.body((angle, angle)))), (160, 128))
            _, state = model(condition, identity, state)
        packed = model.packed(state)
        assert all(isinstance(v, torch.Tensor) for v in packed.values())
        again = model.unpacked({k: v.clone() for k, v in packed.items()})
        condition = model.condition(_poses(puppet.track(puppet.body((80, 90)))), (160, 128))
        one, two = (model(condition, identity, s)[0].rgb for s in (state, again))
        assert torch.equal(one, two)
        assert model.unpacked(model.packed(None)) is None


def _poses(track):
    from retarget.references import poses

    return poses(track)


def _stored(puppet):
    from retarget.references import arrays

    return arrays(puppet.gathered(puppet.body(), puppet.body((60, 60)), details=True))


# ------------------------------------------------------------------------------------------------ nothing is mixed


def test_other_options_begin_anew(tuned_avatar, motion, stumbling, short, tmp_path):
    out = tmp_path / "out.mp4"
    stumbling.at(14)
    with pytest.raises(KeyboardInterrupt):
        drive(tuned_avatar, motion, out, **CPU)
    assert len(work("drive")) == 1
    listener = Listener()
    stumbling.at(1 << 30)
    drive(tuned_avatar, motion, out, progress=listener, **CPU | {"background": "#ff0000"})
    assert listener.notes == []
    assert listener.steps == FRAMES
    assert len(work("drive")) == 1  # the other one's is still there
    drive(tuned_avatar, motion, out, progress=listener, **CPU)
    assert listener.notes == [f"Going on at frame 12 of {FRAMES}."]


def test_a_changed_background_or_avatar_begins_anew(tuned_avatar, motion, stumbling, short, tmp_path):
    scene, out = tmp_path / "scene.mp4", tmp_path / "out.mp4"
    for colour in ("#102030", "#605040"):
        with open_writer(scene, (64, 80), Fraction(25), crf=1) as write:
            write(solid_colour(colour, (64, 80)))
        stumbling.at(14)
        with pytest.raises(KeyboardInterrupt):
            drive(tuned_avatar, motion, out, **CPU | {"background": str(scene)})
    other = replace(tuned_avatar.opened(), path=tuned_avatar.path)
    arrays = {k: v.copy() for k, v in other.held[0].items()}
    arrays["frames"][..., 0] ^= 1

    class Changed(Avatar):
        def opened(self):
            return replace(other, held=(arrays, other.held[1]))

    stumbling.at(14)
    with pytest.raises(KeyboardInterrupt):
        drive(Changed(other.meta, other.path), motion, out, **CPU | {"background": str(scene)})
    assert len(work("drive")) == 3


def test_restart_forgets(tuned_avatar, motion, stumbling, short, tmp_path):
    out = tmp_path / "out.mp4"
    whole = read(drive(tuned_avatar, motion, out, **CPU))
    assert in_pieces(stumbling, [14], tuned_avatar, motion, out) == [f"Going on at frame 12 of {FRAMES}."]
    stumbling.at(14)
    with pytest.raises(KeyboardInterrupt):
        drive(tuned_avatar, motion, out, **CPU)
    stumbling.at(1 << 30)
    listener = Listener()
    drive(tuned_avatar, motion, out, progress=listener, restart=True, **CPU)
    assert listener.notes == []
    np.testing.assert_array_equal(read(out), whole)


@pytest.mark.parametrize(
    "damage", ["memory cut short", "memory of zeros", "no memory", "no first segment", "no segment"]
)
def test_what_is_left_damaged_is_made_anew(tuned_avatar, motion, stumbling, short, tmp_path, damage):
    out = tmp_path / "out.mp4"
    whole = read(drive(tuned_avatar, motion, out, **CPU))
    stumbling.at(14)
    with pytest.raises(KeyboardInterrupt):
        drive(tuned_avatar, motion, out, **CPU)
    (folder,) = work("drive")
    memory = folder / "memory.safetensors"
    if damage == "memory cut short":
        memory.write_bytes(memory.read_bytes()[:-8])
    elif damage == "memory of zeros":
        memory.write_bytes(bytes(memory.stat().st_size))
    elif damage == "no memory":
        memory.unlink()
    elif damage == "no first segment":
        (folder / "000000000.mp4").unlink()
    else:
        for segment in folder.glob("*.mp4"):
            segment.unlink()
    stumbling.at(1 << 30)
    listener = Listener()
    drive(tuned_avatar, motion, out, progress=listener, **CPU)
    assert listener.notes == []
    np.testing.assert_array_equal(read(out), whole)


def test_what_was_drawn_for_want_of_memory_is_remembered(tuned_avatar, motion, stumbling, short, tmp_path, monkeypatch):
    """A run that had to draw smaller goes on so, and the video says it."""
    out, whole = tmp_path / "out.mp4", tmp_path / "whole.mp4"
    condition, count = Dance.condition, 0

    def scarce(model, poses, size, previous=None):
        nonlocal count
        count += 1
        if count > 3 and size[0] > 40:
            raise MemoryError
        return condition(model, poses, size, previous)

    monkeypatch.setattr(Dance, "condition", scarce)
    drive(tuned_avatar, motion, whole, **CPU)
    count = 0
    in_pieces(stumbling, [14], tuned_avatar, motion, out)
    np.testing.assert_array_equal(read(out), read(whole))
    assert "half the size" in read_metadata(out)["retarget_notes"]
    assert read_metadata(out) == read_metadata(whole)


# ------------------------------------------------------------------------------------------------ segments


UNEVEN = [0.0, *np.cumsum(np.random.default_rng(1).choice([0.02, 1 / 30, 0.05, 0.1], FRAMES - 1)).round(4).tolist()]


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mov alpha", ".webm alpha"])
@pytest.mark.parametrize("clock", [Fraction(30), Fraction(30000, 1001), Fraction(29973, 1009), "uneven"])
def test_joints_neither_add_nor_lose_nor_shift_a_frame(tmp_path, short, suffix, clock, example_dance):
    suffix, _, alpha = suffix.partition(" ")
    rng = np.random.default_rng(0)
    size = (96, 64)
    frames = [np.kron(rng.integers(0, 255, (8, 12, 4 if alpha else 3)), np.ones((8, 8, 1))) for _ in range(FRAMES)]
    options: dict[str, Any] = {"alpha": bool(alpha), "metadata": {"a": "b"}, "audio_from": example_dance, "crf": 8}
    fps = Fraction(25) if clock == "uneven" else clock
    if clock == "uneven":
        options["timestamps"] = UNEVEN
    (tmp_path / "work").mkdir()
    one, many = tmp_path / f"one{suffix}", tmp_path / f"many{suffix}"
    with open_writer(one, size, fps, **options) as write:
        for frame in frames:
            write(frame.astype(np.uint8))
    with open_segments(tmp_path / "work", many, size, fps, **options) as segments:
        for frame in frames:
            segments.write(frame.astype(np.uint8))
            if segments.full:
                segments.cut()
    assert len(list((tmp_path / "work").iterdir())) == 4
    a, b = probe(one), probe(many)
    assert (a.frames, a.fps, a.variable) == (b.frames, b.fps, b.variable) == (FRAMES, b.fps, clock == "uneven")
    assert timestamps(many) == timestamps(one)
    assert b.duration == pytest.approx(a.duration, abs=0.005)
    assert b.has_audio
    for pair in zip(read(one), read(many), frames, strict=True):
        x, y, truth = (p[..., :3].astype(int) for p in pair)
        assert np.abs(y - truth).mean() < np.abs(x - truth).mean() + 2
    assert read_metadata(many)["a"] == "b"


def test_an_encoder_that_fails_is_told_and_leaves_what_is_finished(tmp_path, short, monkeypatch):
    picture = np.zeros((64, 64, 3), np.uint8)
    finish, calls = Encoder.finish, 0

    def fail(self):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise unwritable(self.path, self.film.out, "No space left on device")
        finish(self)

    monkeypatch.setattr(Encoder, "finish", fail)
    done: list[int] = []

    def run() -> None:
        with open_segments(tmp_path, tmp_path / "out.mp4", (64, 64), Fraction(25)) as segments:
            for i in range(30):
                segments.write(picture)
                if segments.full:
                    segments.cut(partial(done.append, i + 1))

    with pytest.raises(StorageError, match="The disk is full"):
        run()
    assert done == [SEGMENT]
    assert (tmp_path / "000000000.mp4").exists()
    assert not (tmp_path / "out.mp4").exists()
    with open_segments(tmp_path, tmp_path / "out.mp4", (64, 64), Fraction(25), first=SEGMENT) as segments:
        assert segments.first == SEGMENT
        segments.write(picture)
    assert probe(tmp_path / "out.mp4").frames == SEGMENT + 1


def test_parts_of_killed_processes_are_swept(tmp_path):
    old, new, foreign = (tmp_path / f".{n}.part" for n in ("retarget-a-1", "retarget-b-1", "somebody"))
    for path in (old, new, foreign):
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    os.utime(new)
    with open_writer(tmp_path / "o.mp4", (64, 64), Fraction(25)) as write:
        write(np.zeros((64, 64, 3), np.uint8))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([new.name, foreign.name, "o.mp4"])


# ------------------------------------------------------------------------------------------------ poses


@pytest.mark.slow
@pytest.mark.parametrize("person", ["largest", "48,64"])
def test_poses_go_on_behind_the_last_block(example_dance, tmp_path, monkeypatch, person):
    """As estimated in one go, to the bit."""
    from retarget.pose import mediapipe

    monkeypatch.setattr(pose.cache, "BLOCK", 60)
    monkeypatch.setattr(mediapipe, "FOLLOWED", 60)
    small = tmp_path / "small.mp4"
    with (
        open_reader(example_dance, size=(96, 128), end=5.0) as frames,
        open_writer(small, (96, 128), Fraction(30), crf=8) as write,
    ):
        for frame in frames:
            write(frame)
    options = pose.PoseOptions(person=person)
    whole = estimate(small, options)
    for path in (folders.cache_dir() / "poses").iterdir():
        path.unlink()
    store, stored = pose.cache.write, 0

    def stumble(path, arrays):
        nonlocal stored
        stored += 1
        if stored in (2, 4):
            raise KeyboardInterrupt
        store(path, arrays)

    monkeypatch.setattr(pose.cache, "write", stumble)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            estimate(small, options)
    listener = Listener()
    again = estimate(small, options, progress=listener)
    assert "Going on with the poses at frame 120 of 150." in listener.notes
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert again.missed == whole.missed
    assert work() == []


def test_a_piece_is_read_without_decoding_all_before(example_dance, tmp_path, monkeypatch):
    """ffmpeg is told to seek, and reads from the key frame before."""
    long = tmp_path / "long.mp4"
    subprocess.run(
        [video.ffmpeg(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=120", "-g", "50", str(long)],
        check=True,
    )
    started: list[list[str]] = []
    process = reading.Process

    def watched(arguments, *, feed):
        started.append(list(arguments))
        return process(arguments, feed=feed)

    monkeypatch.setattr(reading, "Process", watched)
    with open_reader(long, start=100.0, skip=50) as frames:
        first = next(frames)
    with open_reader(long) as frames:
        for _ in range(2551):
            truth = next(frames)
    np.testing.assert_array_equal(first, truth)
    seek = started[0].index("-ss")
    assert float(started[0][seek + 1]) == pytest.approx(101.5, abs=0.1)
    # What is decoded before the first frame that is wanted, at most a group of pictures:
    command = [*started[0][: started[0].index("-vf")], "-frames:v", "1", "-f", "framecrc", "pipe:1"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = next(line for line in out.splitlines() if not line.startswith("#"))
    tick = Fraction(next(line for line in out.splitlines() if line.startswith("#tb")).split()[-1])
    assert float(int(row.split(",")[2]) * tick) >= 98


# ------------------------------------------------------------------------------------------------ kill -9

RUN = """
import sys
from retarget import cli
from retarget.pose import cache, mediapipe
from retarget.video import segments
segments.SEGMENT, cache.BLOCK, mediapipe.CHUNK = 12, 40, 20
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command, with short segments, so that a short video has many."""


class Command:
    """`retarget drive` as a process of its own."""

    def __init__(self, avatar: Path, source: Path, out: Path, home: Path) -> None:
        self.arguments = [sys.executable, "-c", RUN, "drive", "--avatar", str(avatar), "--source", str(source)]
        self.arguments += ["--out", str(out), "--yes", "--device", "cpu", "--size", "64"]
        self.environment = os.environ | {"RETARGET_HOME": str(home)}
        self.log = home.parent / "log.txt"

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.arguments, env=self.environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def finish(self) -> None:
        process = self.start()
        assert process.wait(300) == 0, self.said()

    def until(self, process: subprocess.Popen[bytes], stage: str) -> float:
        """Wait until it says that a stage has begun, or has ended; returns when that was."""
        limit = time.monotonic() + 300
        while process.poll() is None and stage not in self.said() and time.monotonic() < limit:
            time.sleep(0.02)
        return time.monotonic()


@pytest.fixture
def clip(example_dance: Path, tmp_path: Path) -> Path:
    """150 frames with sound."""
    out = tmp_path / "clip.mp4"
    with (
        open_reader(example_dance, size=(120, 160), end=5.0) as frames,
        open_writer(out, (120, 160), Fraction(30), audio_from=example_dance, end=5.0) as write,
    ):
        for frame in frames:
            write(frame)
    return out


@pytest.fixture
def command(tuned_avatar: Avatar, clip: Path, tmp_path: Path) -> Command:
    home = tmp_path / "own" / "home"
    home.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    return Command(tuned_avatar.path, clip, tmp_path / "out" / "out.mp4", home)


def sound(path: Path) -> bytes:
    command = [video.ffmpeg(), "-v", "error", "-i", str(path), "-map", "0:a", "-f", "framecrc", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.reliability("1. Resume", "drive killed at 20 random moments", "the same frames to the bit, nothing left")
def test_drive_killed_at_random_moments(command: Command, tmp_path: Path) -> None:
    seed = int(os.environ.get("RETARGET_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    chance = random.Random(seed)
    out, home = tmp_path / "out" / "out.mp4", tmp_path / "own" / "home"
    process = command.start()
    begun = [command.until(process, stage) for stage in ("Poses of", "Rendering", "Written")]
    assert process.wait(60) == 0, command.said()
    truth, heard, told = read(out), sound(out), read_metadata(out)
    assert len(truth) == 150
    (poses,) = (home / "cache" / "poses").iterdir()
    known = poses.read_bytes()

    def check() -> None:
        np.testing.assert_array_equal(read(out), truth, f"seed {seed}")
        assert sound(out) == heard
        assert read_metadata(out) == told

    def kill(stage: str, longest: float) -> bool:
        """Whether the run that was killed had gone on with an earlier one."""
        process = command.start()
        if chance.random() < 0.9:  # else at any moment, while it starts too
            command.until(process, stage)
        time.sleep(chance.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():  # killed after it was moved into place, or not at all
            check()
            out.unlink()
        return "Going on" in command.said()

    def last() -> None:
        out.unlink(missing_ok=True)
        command.finish()
        check()
        time.sleep(1)  # an encoder that outlived its process is done by then
        assert [p.name for p in out.parent.iterdir()] == [out.name]
        assert [p for p in (home / "cache" / "work").iterdir() if p.is_dir()] == []
        out.unlink()

    out.unlink()
    poses.unlink()
    in_poses = [kill("Poses of", 0.8 * (begun[1] - begun[0])) for _ in range(7)]
    last()
    assert poses.read_bytes() == known
    in_render = [kill("Rendering", 0.8 * (begun[2] - begun[1])) for _ in range(13)]
    last()
    assert any(in_poses), f"seed {seed}"
    assert sum(in_render) >= 3, f"seed {seed}"


@pytest.mark.slow
@pytest.mark.reliability("1. Resume", "Ctrl-C during drive", "exit code 130, no output; the same command goes on")
def test_ctrl_c_and_again(command: Command, tmp_path: Path) -> None:
    out, home = tmp_path / "out" / "out.mp4", tmp_path / "own" / "home"
    process = command.start()
    limit = time.monotonic() + 120
    while not list(home.glob("cache/work/drive-*/memory.safetensors")) and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, command.said()
    assert list(out.parent.iterdir()) == []
    command.finish()
    assert "Going on at frame" in command.said()
    assert probe(out).frames == 150


@pytest.mark.slow
@pytest.mark.reliability(
    "7. Concurrency", "the same drive twice at once", "one whole video; the second waits, or exit 6"
)
def test_the_same_command_twice_at_once(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out" / "out.mp4"
    first = command.start()
    second = subprocess.Popen(command.arguments, env=command.environment, stderr=subprocess.PIPE, text=True)
    said = second.communicate(timeout=600)[1]
    assert first.wait(600) == 0, command.said()
    # A minute's wait is enough on most machines.
    assert second.returncode == 0 or (second.returncode == 6 and "in use by another retarget" in said), said
    assert probe(out).frames == 150
    assert [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.mark.slow
@pytest.mark.reliability("7. Concurrency", "two different drives of one source at once", "poses are estimated once")
def test_two_commands_share_the_poses(command: Command, tmp_path: Path) -> None:
    other = [*command.arguments, "--background", "#20c040"]
    other[other.index("--out") + 1] = str(tmp_path / "out" / "green.mp4")
    first = command.start()
    second = subprocess.Popen(other, env=command.environment, stderr=subprocess.DEVNULL)
    assert [first.wait(600), second.wait(600)] == [0, 0], command.said()
    assert [probe(tmp_path / "out" / n).frames for n in ("out.mp4", "green.mp4")] == [150, 150]
    assert len(list((tmp_path / "own" / "home" / "cache" / "poses").iterdir())) == 1
