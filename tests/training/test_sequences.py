"""Training on frames in a row (`RetargetModel.sequence`): what is drawn, how long it is, that a run goes through."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from retarget.models import base, build
from retarget.models.base import frame_count
from retarget.models.few_shot_vid2vid import FewShotObjective
from retarget.training import tasks as module
from retarget.training.corpus import Corpus
from retarget.training.prepare import PrepareOptions, prepare
from retarget.training.run import measure
from retarget.training.tasks import TaskOptions, Tasks, begun, in_a_row, make
from retarget.training.train import TrainOptions, train

from .test_fit import Cpu

NAME = "few-shot-vid2vid"
SMALL: dict[str, Any] = {
    "width": 4, "widest": 8, "levels": 2, "adaptive": 2, "grid": 2, "keys": 1, "flow_width": 4, "flow_downs": 1,
    "flow_blocks": 1, "critic": 4, "sequence": 3,
}  # fmt: skip
OPTIONS = TaskOptions("pretrain", (3,), side=64)

pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture
def corpus(corpus_folder) -> Corpus:
    return Corpus(corpus_folder)


def test_frames_in_a_row():
    everywhere = set(range(10))
    assert in_a_row(2, 1, everywhere.__contains__) == [2]
    assert in_a_row(2, 4, everywhere.__contains__) == [2, 3, 4, 5]
    assert in_a_row(8, 5, everywhere.__contains__) == [8, 9, 8, 7, 6]  # turns round at the end
    assert in_a_row(4, 5, (everywhere - {6}).__contains__) == [4, 5, 4, 3, 2]
    assert in_a_row(4, 5, (everywhere - {3, 6}).__contains__) == [4, 5, 4, 5, 4]
    assert in_a_row(4, 3, (everywhere - {3, 5}).__contains__) == [4, 4, 4]  # nowhere to go


@pytest.mark.parametrize("person", ["anna", "bert"])
def test_sequences_are_frames_in_a_row_and_never_what_is_known(corpus, monkeypatch, person):
    drawn: list[tuple[Any, int]] = []
    pair = module._pair
    monkeypatch.setattr(module, "_pair", lambda m, c, i, who: drawn.append((c, i)) or pair(m, c, i, who))
    model = build(NAME, SMALL)
    task = begun(model, corpus, corpus.persons("train")[person], 0, OPTIONS)
    assert len(task.unknown) == 8 * len(corpus.persons("train")[person]) - 3
    for number, (name, start) in enumerate(task.truths):
        drawn.clear()
        batch = task.pair(model, corpus, number)
        clip = corpus.clip(name)
        frames = [i for _, i in drawn]
        assert all(c is clip for c, _ in drawn)
        assert len(frames) == frame_count(batch.truth) == 3
        assert frames[0] == start
        assert all(abs(a - b) <= 1 for a, b in pairwise(frames))
        assert {(name, i) for i in frames} <= task.unknown
        assert batch.condition.maps.shape == (1, 3, 15, 80, 64)
        assert batch.truth.matte.shape == (1, 3, 1, 80, 64)
        for t, i in enumerate(frames):
            shown = torch.from_numpy(clip.pictures[i]).movedim(-1, 0).float() / 127.5 - 1
            torch.testing.assert_close(batch.truth.rgb[0, t], shown)
            assert torch.equal(batch.condition.maps[:, t], pair(model, clip, i, None).condition.maps)
        assert batch.identity.pictures.shape[1] == 3  # the examples have no time


def test_a_single_pair_is_drawn_without_its_task(corpus, tmp_path, monkeypatch):
    tasks = Tasks(corpus, "train", (NAME, SMALL), OPTIONS, tmp_path / "drawn")
    whole = tasks[1]
    drawn = []
    pair = module._pair
    monkeypatch.setattr(module, "_pair", lambda *args: drawn.append(1) or pair(*args))
    known = []
    encode = type(tasks.model).encode
    monkeypatch.setattr(type(tasks.model), "encode", lambda self, r: known.append(1) or encode(self, r))
    seen = set()
    for seed in range(20):
        drawn.clear()
        one = tasks.pair(1, np.random.default_rng(seed))
        assert len(drawn) == 3
        (number,) = [n for n, (p,) in enumerate(whole) if torch.equal(p.truth.rgb, one.truth.rgb)]
        assert torch.equal(one.condition.maps, whole[number][0].condition.maps)
        assert torch.equal(one.identity.pictures, whole[number][0].identity.pictures)
        seen.add(number)
    assert seen <= set(range(5))  # all frames but the three that are known
    assert len(seen) > 2
    assert len(known) == 1  # the person is known from the first time on
    assert not (tmp_path / "drawn").exists()


def test_fine_tuning_learns_from_single_frames(corpus):
    task = make(build(NAME, SMALL), corpus, corpus.persons("train")["carl"], 0, replace(OPTIONS, stage="meta"))
    assert all(frame_count(p.truth) is None for group in task for p in group)


def test_a_batch_is_of_people_filmed_in_one_size(film, tmp_path, monkeypatch):
    """The corpus holds upright pictures beside wide ones."""
    (clips := tmp_path / "clips").mkdir()
    for number, name in enumerate("abcd"):
        film.shoot(clips, name, number, size=(128, 160) if name in "ab" else (176, 160))
    (tmp_path / "table.csv").write_text("clip,split\na,val\nb,train\nc,train\nd,train\n")
    prepare([clips], tmp_path / "corpus", PrepareOptions(side=64, fps=5, table=str(tmp_path / "table.csv")))
    seen = []
    monkeypatch.setattr("retarget.training.run.measure", lambda *_: {"fg_psnr": 20.0})
    monkeypatch.setattr(base, "stacked", lambda pairs: seen.append([p.truth.rgb.shape[-1] for p in pairs]) or pairs[0])
    options = TrainOptions(
        "pretrain", model=NAME, config=SMALL | {"side": 32, "sequence": 1}, steps=6, batch=3, frames=(2,), draws=1,
        side=64, device="cpu", precision="fp32",
    )  # fmt: skip
    train(tmp_path / "corpus", tmp_path / "run", options)
    assert {len(set(widths)) for widths in seen} == {1}
    assert {widths[0] for widths in seen} == {64, 70}


@pytest.mark.slow
def test_a_run_on_growing_sequences(corpus_folder, tmp_path, monkeypatch):
    lengths = []
    loss = FewShotObjective.generator_loss
    monkeypatch.setattr(
        FewShotObjective, "generator_loss",
        lambda self, frame, *args: lengths.append(frame_count(frame)) or loss(self, frame, *args),
    )  # fmt: skip
    monkeypatch.setattr("retarget.training.run.measure", lambda *_: {"fg_psnr": 20.0})  # ten times: takes long
    options = TrainOptions(
        "pretrain", model=NAME, config=SMALL, steps=10, batch=2, rate=1e-3, frames=(1, 3), draws=1, side=64,
        device="cpu", precision="fp32", critic=True,
    )  # fmt: skip
    done = train(corpus_folder, tmp_path / "run", options)
    assert lengths == [1] * 5 + [2] + [3] * 4  # K differs within a batch, too
    assert done.finished
    assert (tmp_path / "run" / "samples.png").exists()
    again = train(corpus_folder, tmp_path / "meta", replace(options, stage="meta", steps=1, inner=2,
                                                            init=str(done.weights)))  # fmt: skip
    assert again.finished


def test_a_sequence_is_measured_by_its_last_frame(corpus):
    torch.manual_seed(0)
    model = build(NAME, SMALL)
    batch = begun(model, corpus, corpus.persons("train")["anna"], 0, OPTIONS).pair(model, corpus, 0)
    figures = measure(model, [batch], Cpu())
    spoilt = batch.truth.rgb.clone()
    spoilt[:, :-1] = 0
    assert measure(model, [batch._replace(truth=batch.truth._replace(rgb=spoilt))], Cpu()) == figures
    spoilt = batch.truth.rgb.clone()
    spoilt[:, -1] = 0
    assert measure(model, [batch._replace(truth=batch.truth._replace(rgb=spoilt))], Cpu()) != figures
    shorter = begun(model, corpus, corpus.persons("train")["anna"], 0, OPTIONS).pair(model, corpus, 0, 2)
    assert measure(model, [shorter], Cpu()) != figures


def test_the_beginning_of_a_sequence_is_drawn_alone(corpus, tmp_path, monkeypatch):
    """As the whole begins, random numbers included."""
    tasks = Tasks(corpus, "train", (NAME, SMALL), OPTIONS, tmp_path / "drawn")
    drawn = []
    pair = module._pair
    monkeypatch.setattr(module, "_pair", lambda *args: drawn.append(1) or pair(*args))
    whole, some = (tasks.pair(1, np.random.default_rng(5), length) for length in (None, 2))
    assert len(drawn) == 3 + 2
    assert frame_count(some.truth) == 2
    assert torch.equal(some.truth.rgb, whole.truth.rgb[:, :2])
    assert torch.equal(some.condition.maps, whole.condition.maps[:, :2])
