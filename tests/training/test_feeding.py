"""`feeding`: what other processes draw comes in order, as it would have been drawn here."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retarget.errors import InputError, OutOfMemory
from retarget.models.base import Frame
from retarget.training import feeding
from retarget.training.feeding import drawers, fed
from retarget.training.train import train

from .test_sequences import SMALL as SEQUENCES
from .test_train import META, TINY, kept, same


def picture(number: int) -> Frame:
    """Later numbers are drawn faster."""
    time.sleep(0.05 / (1 + number))
    return Frame(torch.full((1, 3, 2, 2), float(number)), None, os.getpid())


def damaged(number: int) -> Frame:
    if number == 2:
        raise InputError("clip.npz is missing or damaged.", "Run retarget prepare again.")
    return picture(number)


def killed(number: int) -> Frame:
    if number == 1:
        os.kill(os.getpid(), 9)
    return picture(number)


def test_results_come_in_order_from_other_processes() -> None:
    with fed(picture, range(9), 2) as drawn:
        frames = list(drawn)
    assert [float(f.rgb.mean()) for f in frames] == list(range(9))
    assert os.getpid() not in {f.extra for f in frames}


def test_without_workers_nothing_is_drawn_before_it_is_asked_for() -> None:
    with fed(picture, itertools.count(), 0) as drawn:
        assert next(drawn).extra == os.getpid()


def test_numbers_may_be_endless_and_left() -> None:
    with fed(picture, itertools.count(3), 2) as drawn:
        assert float(next(drawn).rgb.mean()) == 3


def test_an_error_comes_where_its_turn_is() -> None:
    with fed(damaged, range(6), 2) as drawn:
        assert [float(next(drawn).rgb.mean()) for _ in range(2)] == [0, 1]
        with pytest.raises(InputError, match=r"clip\.npz"):
            next(drawn)


def test_a_process_ended_by_the_system_is_no_memory() -> None:
    with fed(killed, range(6), 2) as drawn, pytest.raises(OutOfMemory, match="drawing what to learn from"):
        list(drawn)


def test_only_a_gpu_is_fed() -> None:
    assert drawers(torch.device("cpu"), 3) == 0
    assert drawers(torch.device("cuda"), 3) == 3
    assert drawers(torch.device("cuda"), 9) == 9
    assert drawers(torch.device("cuda"), 0) == min(feeding.MOST, os.cpu_count() or 1)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("model", ["dance", "few-shot-vid2vid"])
@pytest.mark.parametrize("options", [TINY, META], ids=["pretrain", "meta"])
def test_the_same_is_learned(
    options: Any, model: str, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model != "dance":
        options = replace(options, model=model, config=SEQUENCES, steps=3)
    train(corpus_folder, tmp_path / "here", options)
    monkeypatch.setattr(feeding, "drawers", lambda *_: 2)
    train(corpus_folder, tmp_path / "there", options)
    assert same(kept(tmp_path / "here"), kept(tmp_path / "there")), asdict(options)
