"""Forecasts: what they say, when they refuse, and what they learn from a run."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget import device, folders, forecast
from retarget.avatar import Avatar, AvatarMeta, save_avatar
from retarget.cli import main
from retarget.doctor import PICTURE
from retarget.drive import DriveOptions
from retarget.errors import DeviceError, InputError, StorageError
from retarget.evaluate import EvaluateOptions
from retarget.forecast import FIRST, Need, Stopwatch, announced, check, free_memory, read_rates
from retarget.personalize import PersonalizeOptions
from retarget.training.prepare import PrepareOptions
from retarget.training.train import TrainOptions
from retarget.types import Silent
from retarget.video import open_writer

CPU = device.choose("cpu")
SECTION = "8. Forecast"


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.steps.append(steps)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """64x80, 3 seconds."""
    with open_writer(tmp_path / "clip.mp4", (64, 80), Fraction(10)) as write:
        for i in range(30):
            write(np.full((80, 64, 3), 8 * i, np.uint8))
    return tmp_path / "clip.mp4"


@pytest.fixture
def avatar() -> Avatar:
    meta = AvatarMeta(name="", model="dance", size=(480, 640), frames=5)
    return save_avatar("me", meta, {"x": np.zeros(3)}, None, np.zeros((4, 4, 3), np.uint8))


def need(where: Path, **changes: Any) -> Need:
    made = Need("drive", {"pose": (10, 1.0), "picture": (10, 0.5)}, 1e6, 1e6, where, "here")
    return replace(made, **changes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only passes by hand."""
    now = [100.0]
    monkeypatch.setattr(forecast.time, "monotonic", lambda: now[0])
    return now


# ------------------------------------------------------------------------------------------------------ what it says


def test_a_line(tmp_path: Path) -> None:
    seconds = FIRST["drive"] + 10 * FIRST["pose"] + 5 * FIRST["picture"]
    assert need(tmp_path).seconds == pytest.approx(seconds)
    assert need(tmp_path).line() == f"This takes about {seconds:.1f} s, up to 1.0 MB of memory and 1.0 MB on disk."


@pytest.mark.reliability(SECTION, "drive", "time, memory and disk follow frames, size and options")
def test_drive(avatar: Avatar, clip: Path, example_dance: Path, tmp_path: Path) -> None:
    def of(out: str = "out.mp4", **changes: Any) -> Need:
        return forecast.drive(avatar, clip, tmp_path / out, DriveOptions(**changes), CPU)

    whole = of()
    assert whole.stages == {"pose": (30.0, 1.0), "picture": (30.0, pytest.approx(0.3072))}
    assert of(start=1.0, end=2.0).stages["pose"] == (10.0, 1.0)
    assert of(end=99.0).stages == whole.stages
    larger = of(size=960)
    assert larger.stages["picture"] == (30.0, pytest.approx(4 * 0.3072))
    assert whole.seconds < larger.seconds
    assert whole.memory < larger.memory
    assert whole.disk < larger.disk < of("out.mov", size=960, background="transparent").disk
    assert of(compare=True).disk > whole.disk
    assert whole.where == tmp_path
    # What was measured for README's run of examples/dance.mp4: 30.6 s, 1.1 GB (and ffmpeg).
    real = forecast.drive(avatar, example_dance, tmp_path / "out.mp4", DriveOptions(), CPU)
    assert 20 < real.seconds < 45
    assert 0.9e9 < real.memory < 2e9


def test_poses_with_irises_are_others(
    avatar: Avatar, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head's avatar is not driven by the poses of whole people that may be known already."""
    monkeypatch.setattr("retarget.pose.remaining", lambda path, options, **_: 30 if options.irises else 0)
    for points, left in ((468, 0), (478, 30)):
        tensors = {"track_face": np.zeros((1, points, 3), np.float32)}
        head = save_avatar("head", avatar.meta, tensors, None, np.zeros((4, 4, 3), np.uint8))
        need = forecast.drive(head, clip, tmp_path / "out.mp4", DriveOptions(), CPU)
        assert need.stages["pose"] == (left, 1.0)


@pytest.mark.reliability(SECTION, "poses in the cache, unfinished runs", "take no time")
def test_what_is_done_takes_no_time(
    avatar: Avatar, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retarget.checkpoint import save
    from retarget.drive import everything
    from retarget.personalize import deciding
    from retarget.pose import PoseOptions, cache, make_estimator
    from retarget.pose import _key as pose_key

    def of(**changes: Any) -> Need:
        return forecast.drive(avatar, clip, tmp_path / "out.mp4", DriveOptions(**changes), CPU)

    def made(**changes: Any) -> Need:
        return forecast.personalize([clip], PersonalizeOptions(**changes), CPU)

    fresh = of()
    folders.made(folders.cache_dir() / "poses")
    name = pose_key(clip, make_estimator(PoseOptions()), PoseOptions(), 0.0, None)
    (cache._folder() / f"{name}.npz").touch()
    assert of().stages["pose"] == made().stages["pose"] == (0, 1.0)
    assert of().memory < fresh.memory
    assert of(end=1.0).stages["pose"] == of(person="3,4", end=1.0).stages["pose"] == (10, 1.0)

    what = everything(avatar, clip, tmp_path / "out.mp4", DriveOptions(), CPU)
    with suppress(ZeroDivisionError), folders.work("drive", what) as folder:
        save(folder / "memory.safetensors", {"frame": 20, "shrink": 1})
        raise ZeroDivisionError
    assert of().stages["picture"][0] == 10
    assert of().disk < fresh.disk
    assert of().seconds < fresh.seconds
    assert (
        of(restart=True).stages["picture"] == of(size=480, watermark=True).stages["picture"] == fresh.stages["picture"]
    )

    what = {"name": "me", "start": [None, {}]} | deciding([clip], PersonalizeOptions(), CPU)
    with suppress(ZeroDivisionError), folders.work("personalize", what) as folder:
        save(folder / "fit-256.safetensors", {"step": 150})
        raise ZeroDivisionError
    assert made().stages["step"] == (50, 1.0)
    assert made(restart=True).stages["step"] == made(steps=200, seed=1).stages["step"] == (200, 1.0)


@pytest.mark.reliability(SECTION, "personalize", "time, memory and disk follow K, T, size and length")
def test_personalize(clip: Path, example_me: Path) -> None:
    def of(path: Path = clip, **changes: Any) -> Need:
        return forecast.personalize([path], PersonalizeOptions(**changes), CPU)

    assert of().stages == {"pose": (30.0, 1.0), "step": (200, 1.0)}
    assert of(size=64).memory == of(size=512).memory  # never enlarged
    assert of(example_me, frames=5).memory < of(example_me, frames=10).memory
    assert of(pick=(1, 2, 3)).memory == of(frames=3).memory
    real = of(example_me, frames=5, steps=20)  # README: 25.8 s, 1.9 GB
    assert 15 < real.seconds < 40
    assert 1.4e9 < real.memory < 2.4e9
    assert of(PICTURE).stages["pose"] == (0.0, 1.0)


@pytest.mark.reliability(
    SECTION, "prepare, train, evaluate", "time, memory and disk follow clips, workers, batch, runs"
)
def test_the_others(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (forecast.prepare([clip], tmp_path / "corpus", PrepareOptions(workers=n)) for n in (1, 2))
    assert one is not None
    assert two is not None
    assert forecast.prepare([tmp_path / "no.mp4"], tmp_path, PrepareOptions()) is None
    assert one.stages["clip"] == (1, pytest.approx(3.0))
    assert one.memory == two.memory  # there is one clip only
    shutil.copy(clip, tmp_path / "other.mp4")
    both = forecast.prepare([tmp_path], tmp_path / "corpus", PrepareOptions(workers=2))
    assert both is not None
    assert both.memory > one.memory
    assert both.disk > one.disk

    class Packed:
        entries = [None] * 7

    monkeypatch.setattr("retarget.training.corpus.Corpus", lambda _: Packed)
    pretrain, meta = (
        forecast.train(tmp_path, tmp_path / "run", TrainOptions(stage, steps=10, batch=4, inner=5, tasks=3), CPU)
        for stage in ("pretrain", "meta")
    )
    assert pretrain is not None
    assert meta is not None
    # Beside a GPU processes draw, and remember more of what is not kept on the disk.
    monkeypatch.setattr(forecast, "machine", lambda *_: "a GPU")
    gpu = device.Compute(torch.device("cuda"), torch.float32)
    fed, fuller = (
        forecast.train(tmp_path, tmp_path / "run", TrainOptions("pretrain", model, batch=4), gpu, workers=3)
        for model in ("dance", "few-shot-vid2vid")
    )
    assert fed is not None
    assert fuller is not None
    assert pretrain.memory + 1e9 < fed.memory < fuller.memory - 3e9
    assert (pretrain.stages, meta.stages) == ({"pretrain": (10, 4)}, {"meta": (10, 60)})

    small = forecast.evaluate([clip], EvaluateOptions(frames=3, steps=5), CPU)
    large = forecast.evaluate([clip], EvaluateOptions(frames=(3, 9), steps=(5, 10)), CPU)
    assert small.stages["step"][0] == 5
    assert large.stages["step"][0] == 30
    assert large.seconds > small.seconds
    assert large.memory > small.memory


@pytest.mark.reliability(SECTION, "a forecast's own time", "less than 0.2 s (here: 2 s on a busy machine)")
def test_it_costs_next_to_nothing(avatar: Avatar, example_dance: Path, tmp_path: Path) -> None:
    from retarget.video import probe

    probe(example_dance)  # which the command does in any case, and remembers
    began = time.process_time()  # others may keep the machine busy
    with announced(
        lambda: forecast.drive(avatar, example_dance, tmp_path / "out.mp4", DriveOptions(), CPU), Told(), yes=False
    ):
        took = time.process_time() - began
    assert took < 2  # 2 ms on an idle machine


# ------------------------------------------------------------------------------------------------- when it refuses


@pytest.mark.reliability(SECTION, "the disk cannot suffice", "StorageError before any work, exit code 6")
def test_too_little_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"needs about 1\.0 TB on the disk of .*, and .* is free") as error:
        check(need(tmp_path / "not" / "there" / "yet", disk=1e12 * 1.0, memory=1))
    assert "--yes" in error.value.remedy
    assert error.value.exit_code == 6


@pytest.mark.reliability(SECTION, "the memory cannot suffice", "DeviceError before any work, exit code 5")
def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_memory", lambda: 10**9)
    check(need(tmp_path, memory=1.2e9))  # within what the forecast is sure of
    with pytest.raises(DeviceError, match=r"needs about 1\.3 GB of memory, and 1\.0 GB is free") as error:
        check(need(tmp_path, memory=1.3e9))
    assert "--yes" in error.value.remedy
    assert error.value.exit_code == 5
    monkeypatch.setattr(forecast, "free_memory", lambda: None)
    check(need(tmp_path, memory=1e15))  # nobody tells


@pytest.mark.reliability(SECTION, "--yes", "begins all the same")
@pytest.mark.parametrize("yes", [False, True])
def test_yes_overrides(
    avatar: Avatar, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], yes: bool
) -> None:
    monkeypatch.setattr(forecast, "free_memory", lambda: 1)
    called = []
    module = importlib.import_module("retarget.drive")  # the name is also the function's
    monkeypatch.setattr(module, "drive", lambda *words, **named: called.append(words) or words[2])
    words = ["drive", "--source", str(clip), "--out", str(clip.with_name("out.mp4")), "--json"]
    assert main([*words, "--yes"] if yes else words) == (0 if yes else 5)
    assert len(called) == yes
    got = capsys.readouterr()
    assert "This takes about" in got.err
    if not yes:
        assert json.loads(got.out)["error"]["type"] == "DeviceError"


def test_what_cannot_be_read_is_left_to_the_command(tmp_path: Path) -> None:
    def broken() -> Need:
        raise InputError("There is no file.")

    told = Told()
    for make in (broken, lambda: None):
        with announced(make, told, yes=False) as progress:
            assert progress is told
    assert told.notes == []
    assert not (folders.cache_dir() / forecast.RATES).exists()


def machine_with(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal: 9000 kB\nMemAvailable:    4000 kB\nSwapFree:    1000 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "nonsense"}, None),
        ({"proc/meminfo": MEMINFO}, 5000 * 1024),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "3000000\n",  # the limit of the group above counts, too
                "sys/fs/cgroup/a/memory.current": "1500000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 400000\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "1\n",
                "sys/fs/cgroup/a/b/memory.stat": "inactive_file 0\n",
            },
            1_900_000,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2000000\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1500000\n",
                "sys/fs/cgroup/memory/x/memory.stat": "total_inactive_file 100000\n",
            },
            600_000,
        ),
    ],
)
def test_free_memory(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    assert free_memory(machine_with(tmp_path, files)) == free


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux only")
def test_free_memory_of_this_machine() -> None:
    left = free_memory()
    assert left is not None
    assert 10**6 < left < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + 2**44


# ---------------------------------------------------------------------------------------------------- what it learns


@pytest.mark.reliability(SECTION, "a run that ends well", "its measured rates correct the next forecast")
def test_a_run_corrects_the_next_forecast(tmp_path: Path, clock: list[float]) -> None:
    told, mine = Told(), need(tmp_path)

    def run(seconds: float) -> None:
        with announced(lambda: mine, told, yes=True) as progress:
            clock[0] += 3  # whatever comes before
            progress.stage("Poses of x.mp4", 10)
            for _ in range(10):
                clock[0] += seconds
                progress.advance()
            progress.stage("Fitting the body")  # not timed
            clock[0] += 1
            progress.stage("Rendering", 10)
            for _ in range(5):
                clock[0] += 2 * seconds
                progress.advance(1)

    run(1.0)
    assert read_rates() == {"here": {"pose": 1.0, "picture": 4.0, "drive": 4.0}}
    assert mine.seconds == pytest.approx(10 + 5 * 4.0 + 4)
    run(2.0)
    assert read_rates()["here"] == {"pose": 1.5, "picture": 6.0, "drive": 4.0}
    assert replace(mine, machine="another").seconds != mine.seconds
    assert told.steps == [1] * 30  # all is passed on


def test_what_an_earlier_run_did_is_not_timed(tmp_path: Path, clock: list[float]) -> None:
    watch = Stopwatch(Silent(), need(tmp_path, stages={"step": (200, 1.0)}))
    watch.stage("Fine-tuning", 200)
    clock[0] += 5
    watch.advance(150)
    for _ in range(50):
        clock[0] += 0.5
        watch.advance()
    assert watch.measured() == {"step": 0.5, "drive": 0.1}


def test_a_run_that_fails_teaches_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with announced(lambda: need(tmp_path), Silent(), yes=True) as progress:
            progress.stage("Rendering", 10)
            progress.advance()
            raise InputError("No.")

    with pytest.raises(InputError):
        fail()
    assert read_rates() == {}


@pytest.mark.parametrize("text", ["", "[]", '{"here": 3}', '{"here": {"pose": "x"}}', "\x00"])
def test_damaged_rates_are_forgotten(tmp_path: Path, text: str) -> None:
    folders.made(folders.cache_dir()).joinpath(forecast.RATES).write_text(text)
    assert read_rates() == {}
    Stopwatch(Silent(), need(tmp_path)).keep()
    assert set(read_rates()["here"]) == {"drive"}


def test_rates_that_cannot_be_are_left_out() -> None:
    rates = {"here": {"pose": 0.5, "picture": -1, "step": float("inf"), "unknown": 2.0}}
    folders.made(folders.cache_dir()).joinpath(forecast.RATES).write_text(json.dumps(rates))
    assert read_rates() == {"here": {"pose": 0.5}}


def test_rates_that_cannot_be_kept_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RETARGET_HOME", str(tmp_path / "file"))
    with announced(lambda: need(tmp_path), Silent(), yes=True):
        pass
