"""`personalize`, killed (SIGKILL) at any moment: the same call goes on, and ends with the same avatar."""

from __future__ import annotations

import random
import shutil
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retarget import checkpoint, folders
from retarget.avatar import Avatar, save_avatar

KILLS = 20
STEPS = 16

RUN = """
import importlib, os, shutil
os.environ["RETARGET_HOME"] = {home!r}
import torch
from retarget import checkpoint, gathering, tuning
torch.set_num_threads(1)  # less depends on what else runs
gathering.PLATE_FRAMES = 8
from retarget.types import Silent
module = importlib.import_module("retarget.personalize")
tuning.EVERY = 0.0
save = checkpoint.save

def watched(path, state):
    save(path, state)
    if path.name.startswith("fit"):
        shutil.copy(path, {last!r})

checkpoint.save = watched

class Listener(Silent):
    def note(self, message):
        print(message, flush=True)

options = module.PersonalizeOptions(frames=3, steps={steps}, name="me", init="pretrain", seed=1, device="cpu")
module.personalize({clip!r}, options, progress=Listener())
"""


@pytest.fixture(scope="module")
def tiny_me(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tenth frame of the example: 150x200, 25 frames."""
    from retarget.video import open_reader, open_writer

    example = Path(__file__).parents[1] / "examples" / "me.mp4"
    out = tmp_path_factory.mktemp("clips") / "me.mp4"
    with (
        open_reader(example, size=(150, 200)) as frames,
        open_writer(out, (150, 200), Fraction(5, 2), crf=8) as write,
    ):
        for i, frame in enumerate(frames):
            if i % 10 == 0:
                write(frame)
    return out


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether states agree to the bit."""
    return a.keys() == b.keys() and all(
        np.array_equal(np.asarray(a[k]), np.asarray(b[k]), equal_nan=np.asarray(a[k]).dtype.kind == "f") for k in a
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
@pytest.mark.reliability("1. Resume", f"personalize killed at {KILLS} random moments", "same avatar, bit for bit")
def test_killed_at_random_moments_it_makes_the_same_avatar(nursery, tiny_me, tmp_path, monkeypatch):
    def run(home: Path, kill_after: float | None = None) -> int:
        last = home.with_suffix(".fit")
        return nursery.run(RUN.format(home=str(home), clip=str(tiny_me), steps=STEPS, last=str(last)), kill_after)

    whole = tmp_path / "whole"
    begun = time.monotonic()
    assert run(whole) == 0, nursery.said
    length = time.monotonic() - begun
    monkeypatch.setenv("RETARGET_HOME", str(whole))
    expected = Avatar.load("me").opened()
    final = checkpoint.load(whole.with_suffix(".fit"))
    assert final is not None
    assert final["step"] == STEPS
    assert expected.meta.quality["best_step"] > 0  # it learned: there is something to lose

    home = tmp_path / "home"
    monkeypatch.setenv("RETARGET_HOME", str(home))
    old: Avatar | None = None
    rng = random.Random(0)
    kills = finished = went_on = in_a_row = 0
    while kills < KILLS or old is not None:
        if old is None:  # from the start, with another avatar of the same name
            shutil.rmtree(home, ignore_errors=True)
            old = save_avatar(
                "me", expected.meta, {"frames": np.arange(9)}, None, np.zeros((8, 6, 3), np.uint8)
            ).opened()
        status = run(home, rng.uniform(0.05, 0.8 * length) if kills < KILLS and in_a_row < 4 else None)
        went_on += "Going on" in nursery.said
        now = Avatar.load("me").opened()  # at every moment
        true = old if now.id == old.id else expected
        assert same(now.tensors(), true.tensors())
        assert same(now.state(), true.state())
        if status == -9:
            kills, in_a_row = kills + 1, in_a_row + 1
            continue
        assert status == 0, nursery.said
        finished, in_a_row = finished + 1, 0
        # The new one, and nothing is left of the work.
        assert now.id != old.id
        assert now.preview.read_bytes() == (whole / "avatars" / "me" / "preview.png").read_bytes()
        assert now.meta.quality == expected.meta.quality
        assert same(checkpoint.load(home.with_suffix(".fit")) or {}, final)
        assert [p.name for p in folders.avatars_dir().iterdir()] == ["me"]
        assert [p for p in (folders.cache_dir() / "work").iterdir() if p.suffix != ".lock"] == []
        old = None
    assert finished >= KILLS // 4
    assert went_on >= finished
    print(f"{kills} kills, {finished} finished, {went_on} went on; undisturbed {length:.1f} s")
