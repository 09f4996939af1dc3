"""`prepare` and `train`, killed (SIGKILL) at random moments: the same command goes on, to the same result."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retarget import checkpoint, weights

from .conftest import visible

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
KILLS = 3


# ------------------------------------------------------------------------------------------------ prepare


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small clips of the example, 16 frames each."""
    from retarget.video import open_reader, open_writer

    example = Path(__file__).parents[2] / "examples" / "me.mp4"
    folder = tmp_path_factory.mktemp("clips")
    with open_reader(example, size=(120, 160)) as frames:
        pictures = [frame for i, frame in enumerate(frames) if i % 5 == 0]
    for n in range(3):
        with open_writer(folder / f"me_{n}.mp4", (120, 160), Fraction(5), crf=8) as write:
            for picture in pictures[16 * n : 16 * n + 16]:
                write(picture)
    return folder


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    found = [int(n) for n in path.read_text().split()] if path.exists() else []
    return [*found, *(n for child in found for n in children(child))]


def alive(process: int) -> bool:
    path = Path(f"/proc/{process}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.reliability("1. Resume", f"prepare killed at {KILLS} random moments", "same corpus; no process is left")
def test_prepare_killed_at_random_moments_packs_the_same(clips, tmp_path, monkeypatch):
    def run(out: Path, kill_after: float | None = None) -> tuple[int, str]:
        monkeypatch.setenv("RETARGET_HOME", str(out / "home"))
        command = [
            sys.executable,
            "-m",
            "retarget",
            "prepare",
            str(clips),
            "--out",
            str(out / "corpus"),
            "--workers",
            "1",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                said, _ = process.communicate(timeout=kill_after)
            except subprocess.TimeoutExpired:
                workers = children(process.pid)
                process.kill()
                said, _ = process.communicate()
                until = time.monotonic() + 60
                while any(map(alive, workers)) and time.monotonic() < until:
                    time.sleep(0.1)
                assert [n for n in workers if alive(n)] == []
            return process.returncode, said

    begun = time.monotonic()
    code, said = run(tmp_path / "whole")
    assert code == 0, said
    length = time.monotonic() - begun
    rng, kills = random.Random(1), 0
    for _ in range(3 * KILLS):
        code, said = run(tmp_path / "parts", rng.uniform(0.2 * length, 0.9 * length) if kills < KILLS else None)
        if code == 0:
            if kills == KILLS:
                break
            shutil.rmtree(tmp_path / "parts")
        kills += code == -9
        assert code in (0, -9), said
    assert kills == KILLS
    whole, parts = tmp_path / "whole" / "corpus", tmp_path / "parts" / "corpus"
    assert visible(parts) == visible(whole) == ["index.json", *(f"me_{n}.npz" for n in range(3))]
    assert (parts / "index.json").read_bytes() == (whole / "index.json").read_bytes()
    for n in range(3):
        with np.load(whole / f"me_{n}.npz") as one, np.load(parts / f"me_{n}.npz") as two:
            assert one.files == two.files
            for key in one.files:
                np.testing.assert_array_equal(one[key], two[key])


# ------------------------------------------------------------------------------------------------ train

TRAIN = """
import os
from concurrent.futures import ThreadPoolExecutor
os.environ["RETARGET_HOME"] = {home!r}
import torch
from retarget.training import run, tasks
from retarget.training.train import TrainOptions, train
from retarget.types import Silent

torch.set_num_threads(1)
run.EVERY = 0.0
tasks.ProcessPoolExecutor = lambda *_: ThreadPoolExecutor(1)
tasks.alone = lambda: None

class Listener(Silent):
    def note(self, message):
        print(message, flush=True)

small = {{"density": 24, "width": 8, "depth": 2}}
options = TrainOptions(
    {stage!r}, config=small, steps={steps}, batch=2, rate=2e-3, frames=(3,), inner=2, draws=1, side=64, device="cpu",
    precision="fp32", critic=True,
)
train({corpus!r}, {out!r}, options, progress=Listener())
"""


def result(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Checkpoint, weights, and the log without times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return (
        checkpoint.load(folder / "checkpoint.safetensors") or {},
        weights.load_file(folder / "weights.safetensors")[0],
        log,
    )


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(np.asarray(a[k]), np.asarray(b[k])) for k in a)


@pytest.mark.parametrize(("stage", "steps"), [("pretrain", 12), ("meta", 6)])
@pytest.mark.reliability("1. Resume", f"train killed at {KILLS} random moments", "same weights, checkpoint and log")
def test_train_killed_at_random_moments_learns_the_same(nursery, corpus_folder, tmp_path, stage, steps):
    def run(folder: Path, kill_after: float | None = None) -> int:
        if not folder.exists():
            shutil.copytree(corpus_folder, folder / "corpus", ignore=shutil.ignore_patterns("drawn"))
        code = TRAIN.format(
            home=str(folder / "home"), stage=stage, steps=steps, corpus=str(folder / "corpus"), out=str(folder / "run")
        )
        return nursery.run(code, kill_after)

    begun = time.monotonic()
    assert run(tmp_path / "whole") == 0, nursery.said
    length = time.monotonic() - begun
    expected = result(tmp_path / "whole" / "run")
    assert [line["step"] for line in expected[2]] == [*range(1, steps + 1)]
    rng, kills, went_on = random.Random(2), 0, 0
    for _ in range(3 * KILLS):
        status = run(tmp_path / "parts", rng.uniform(0.05, 0.9 * length) if kills < KILLS else None)
        went_on += "Going on at step" in nursery.said
        assert status in (0, -9), nursery.said
        kills += status == -9
        if status == 0:
            found = result(tmp_path / "parts" / "run")
            assert same(found[0], expected[0])
            assert same(found[1], expected[1])
            assert found[2] == expected[2]
            assert visible(tmp_path / "parts" / "run") == visible(tmp_path / "whole" / "run")
            if kills == KILLS:
                break
            shutil.rmtree(tmp_path / "parts")
    assert kills == KILLS
    assert status == 0
    assert went_on
