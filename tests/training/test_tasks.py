"""Tasks: always the same, never taught what they know, and kept without a loss that shows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget import device
from retarget.errors import InputError, OutOfMemory, StorageError
from retarget.lessons import Lessons
from retarget.models import MODELS
from retarget.models.base import Batch
from retarget.models.dance import Dance, Moved
from retarget.references import arrays
from retarget.training import tasks as module
from retarget.training.corpus import Clip, Corpus
from retarget.training.prepare import PrepareOptions, prepare
from retarget.training.tasks import TaskOptions, Tasks, make
from retarget.types import Silent

from .conftest import Inline

SMALL: dict[str, Any] = {"density": 24, "width": 8, "depth": 2}
PRETRAIN, META = (TaskOptions(stage, (3,), side=64) for stage in ("pretrain", "meta"))


@pytest.fixture
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus(corpus_folder)


@pytest.fixture
def tasks(corpus, tmp_path) -> Any:
    def build(options: TaskOptions = PRETRAIN, split: Any = "train", config: Any = SMALL, **changes: Any) -> Tasks:
        return Tasks(corpus, split, ("dance", config), options, tmp_path / "drawn", **changes)

    return build


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What was drawn: `known`: (clip, frames) of each task, `truths`: (clip, frame) of each pair."""
    seen: dict[str, list[Any]] = {"known": [], "truths": []}
    read, pair = Corpus.clip, module._pair

    class Watched(Clip):
        def gathered(self, index):
            seen["known"].append((self.name, list(index)))
            return super().gathered(index)

    def clip(self: Corpus, name: str) -> Clip:
        found = read(self, name)
        watched = Watched(found.pictures, found.mattes, found.exact, found.plate, found.track)
        object.__setattr__(watched, "name", name)
        return watched

    def watched_pair(model: Any, clip: Any, i: int, identity: Any) -> Batch:
        seen["truths"].append((clip.name, i))
        return pair(model, clip, i, identity)

    monkeypatch.setattr(Corpus, "clip", clip)
    monkeypatch.setattr(module, "_pair", watched_pair)
    return seen


def tensors(pair: Batch) -> dict[str, torch.Tensor]:
    return {**pair.condition._asdict(), "rgb": pair.truth.rgb, "true": pair.truth.matte}


def every(task: list[list[Batch]]) -> Iterator[Batch]:
    for group in task:
        yield from group


def same(one: list[list[Batch]], two: list[list[Batch]], within: float = 0.0) -> bool:
    if [len(g) for g in one] != [len(g) for g in two]:
        return False
    for a, b in zip(every(one), every(two), strict=True):
        for x, y in zip(tensors(a).values(), tensors(b).values(), strict=True):
            if x.shape != y.shape or (x - y).abs().max() > within:
                return False
    return True


# ------------------------------------------------------------------------------------------------ always the same


@pytest.mark.parametrize("options", [PRETRAIN, META], ids=["pretrain", "meta"])
def test_a_number_is_always_the_same_task(tasks, corpus, options):
    one = [
        make(Dance(**SMALL), corpus, corpus.persons("train")[p], d, options) for d in (0, 1) for p in ("anna", "carl")
    ]
    torch.manual_seed(5)
    np.random.seed(5)
    two = [
        make(Dance(**SMALL), corpus, corpus.persons("train")[p], d, options) for d in (1, 0) for p in ("carl", "anna")
    ]
    for a, b in zip(one, reversed(two), strict=True):
        assert same(a, b)
    for i in range(4):
        for j in range(i):
            assert not same(one[i], one[j])
    other = make(Dance(**SMALL), corpus, corpus.persons("train")["anna"], 0, replace(options, seed=1))
    assert not same(one[0], other)


def test_each_person_has_as_many_tasks_as_draws(tasks):
    many = tasks(draws=3)
    assert len(many) == 9
    assert many.list == [(p, d) for d in range(3) for p in ("anna", "bert", "carl")]
    # More draws are more tasks: those that are there stay what they are.
    assert tasks(draws=1).list == many.list[:3]
    assert tasks(draws=1).folder == many.folder
    assert tasks(split="val").list == [("dora", 0)]


def test_k_is_drawn_of_several(corpus, drawn):
    for draw in range(12):
        make(Dance(**SMALL), corpus, corpus.persons("train")["bert"], draw, replace(META, frames=(1, 2, 4)))
    assert {len(frames) for _, frames in drawn["known"]} == {1, 2, 4}
    assert all(len(set(frames)) == len(frames) for _, frames in drawn["known"])


# ------------------------------------------------------------------------------------------------ what is learned from


@pytest.mark.parametrize("person", ["anna", "bert", "carl"])
def test_what_is_known_is_never_among_the_truths(corpus, drawn, person):
    clips = corpus.persons("train")[person]
    for draw in range(4):
        drawn["known"].clear()
        drawn["truths"].clear()
        task = make(Dance(**SMALL), corpus, clips, draw, replace(PRETRAIN, targets=99))
        ((name, frames),) = drawn["known"]
        known = {(name, i) for i in frames}
        assert len(known) == 3
        assert len(task) == len(drawn["truths"]) == 8 * len(clips) - 3
        assert set(drawn["truths"]) == {(e.clip, i) for e in clips for i in range(8)} - known
        assert all(len(group) == 1 for group in task)


def test_there_are_no_more_truths_than_asked_for(corpus, drawn):
    clips = corpus.persons("train")["anna"]
    make(Dance(**SMALL), corpus, clips, 0, replace(PRETRAIN, targets=6))
    some = list(drawn["truths"])
    assert len(some) == len(set(some)) == 6
    drawn["truths"].clear()
    make(Dance(**SMALL), corpus, clips, 1, replace(PRETRAIN, targets=6))
    assert drawn["truths"] != some


def test_support_and_query_know_the_same_frames(corpus, drawn):
    clips = corpus.persons("val")["dora"]
    for draw in range(3):
        drawn["known"].clear()
        for options in (META, PRETRAIN):
            make(Dance(**SMALL), corpus, clips, draw, options)
        support, query = drawn["known"]
        assert support == query


def test_meta_pairs_are_what_personalize_learns_from(corpus, drawn):
    clips = corpus.persons("train")["carl"]
    task = make(Dance(**SMALL), corpus, clips, 2, META)
    ((name, frames),) = drawn["known"]
    gathered = corpus.clip(name).gathered(frames)
    model = Dance(**SMALL)
    lessons = Lessons(model, arrays(gathered), gathered, 64, device.choose("cpu", "fp32"), seed=2, validate=False)
    assert len(task) == 3
    assert same(task, lessons.pairs)


def test_in_another_clip_the_person_stands_before_its_scene(corpus, drawn, monkeypatch):
    asked = []
    before = Dance.before
    monkeypatch.setattr(Dance, "before", lambda self, i, plate: asked.append(plate) or before(self, i, plate))
    make(Dance(**SMALL), corpus, corpus.persons("train")["anna"], 0, replace(PRETRAIN, targets=99))
    ((name, _),) = drawn["known"]
    assert len(asked) == sum(clip != name for clip, _ in drawn["truths"]) == 8
    make(Dance(**SMALL), corpus, corpus.persons("train")["bert"], 0, PRETRAIN)
    assert len(asked) == 8


def test_exact_mattes_are_the_truth(corpus, monkeypatch):
    read = Corpus.clip
    clips = corpus.persons("train")["bert"]
    plain = make(Dance(**SMALL), corpus, clips, 0, PRETRAIN)
    exact = np.zeros((8, 80, 64), np.float32)
    monkeypatch.setattr(Corpus, "clip", lambda self, name: replace(read(self, name), exact=exact))
    for options in (PRETRAIN, META):
        task = make(Dance(**SMALL), corpus, clips, 0, options)
        assert all(pair.truth.matte.max() == 0 for pair in every(task))
        assert all(pair.condition.person[:, 3].max() > 0.9 for pair in every(task))
    known = make(Dance(**SMALL), corpus, clips, 0, PRETRAIN)
    assert torch.equal(known[0][0].condition.person, plain[0][0].condition.person)


def test_a_short_clip_leaves_something_to_learn(film, tmp_path):
    """K may be as large as a clip, and clips of a person need not have one size."""
    paths = [film.shoot(tmp_path, "x_a", count=6), film.shoot(tmp_path, "y_a", 1, count=7)]
    paths.append(film.shoot(tmp_path, "y_b", 2, count=12, size=(160, 160)))
    prepare(paths, tmp_path / "corpus", PrepareOptions(side=64, fps=5, val=0))
    corpus = Corpus(tmp_path / "corpus")
    for person, clips in corpus.persons("train").items():
        for draw in range(3):
            for stage in ("pretrain", "meta"):
                task = make(Dance(**SMALL), corpus, clips, draw, TaskOptions(stage, (8,), targets=4, side=64))
                assert len(task) >= 1, (person, stage)


# ------------------------------------------------------------------------------------------------ kept


@pytest.mark.parametrize("options", [PRETRAIN, META], ids=["pretrain", "meta"])
def test_what_is_kept_differs_by_no_more_than_a_picture_shows(tasks, options):
    fresh = tasks(options)[1]
    kept = tasks(options)[1]
    assert same(fresh, kept, within=1.01 / 255)
    assert not same(fresh, kept)  # it came from the folder
    for pair in every(kept):
        assert isinstance(pair.condition, Moved)
        assert pair.identity is None
        assert pair.state is None
        assert pair.truth.rgb.min() >= -1
        assert all(t.dtype == torch.float32 for t in tensors(pair).values())


def test_a_task_is_drawn_once(tasks, drawn):
    made = tasks()
    made[0]
    count = len(drawn["truths"])
    assert count > 0
    tasks()[0]
    made[0]
    made.pair(0, np.random.default_rng(0))
    assert len(drawn["truths"]) == count


def test_a_random_pair_is_one_of_the_tasks(tasks):
    made = tasks(META)
    whole = made[0]
    assert [len(g) for g in whole] == [3, 3, 3]
    whole = made[0]
    seen = set()
    for seed in range(60):
        pair = made.pair(0, np.random.default_rng(seed))
        again = made.pair(0, np.random.default_rng(seed))
        assert torch.equal(pair.condition.maps, again.condition.maps)
        (place,) = [
            (g, v) for g, group in enumerate(whole) for v, p in enumerate(group) if same([[p]], [[pair]])
        ]  # fmt: skip
        seen.add(place)
    assert len(seen) == 9
    # Of a task that is not there yet, too.
    other = tasks(replace(META, seed=7))
    assert other.pair(1, np.random.default_rng(0)).truth.rgb.shape[1] == 3
    assert other._path(1).exists()


def test_other_tasks_lie_in_other_folders(tasks, film, tmp_path):
    folders = [
        tasks(options, config=config).folder
        for options in (PRETRAIN, META, replace(PRETRAIN, frames=(3, 5)), replace(PRETRAIN, seed=1),
                        replace(PRETRAIN, targets=3), replace(PRETRAIN, side=96))
        for config in (SMALL, SMALL | {"density": 30}, SMALL | {"window": 2})
    ]  # fmt: skip
    assert len(set(folders)) == len(folders)
    # What the parameters are does not matter.
    assert tasks(config=SMALL | {"width": 16, "fusion": 4}).folder == tasks().folder
    prepare([film.shoot(tmp_path, "x_a")], tmp_path / "corpus", PrepareOptions(side=64, fps=5, val=0))
    elsewhere = Tasks(Corpus(tmp_path / "corpus"), "train", ("dance", SMALL), PRETRAIN, tmp_path / "drawn")
    assert elsewhere.folder != tasks().folder


class Plain(Dance):
    """Draws nothing ahead."""

    Ahead = None

    def ahead(self, condition: Any, identity: Any, truth: Any) -> Any:
        return condition, identity, truth


def test_a_model_that_draws_nothing_ahead_is_asked_each_time(corpus, tmp_path, monkeypatch, at_once):
    monkeypatch.setitem(MODELS, "plain", lambda: Plain)
    made = Tasks(corpus, "train", ("plain", SMALL), META, tmp_path / "drawn")
    made.fill(Silent())
    pair = made.pair(0, np.random.default_rng(0))
    assert pair.identity is not None
    assert pair.truth.rgb.shape == (1, 3, 80, 64)
    frame, _ = made.model.eval()(pair.condition, pair.identity, None)
    assert frame.rgb.shape == pair.truth.rgb.shape
    assert len(made[1]) == 3
    assert not (tmp_path / "drawn").exists()


# ------------------------------------------------------------------------------------------------ filling


def test_all_tasks_are_drawn_by_other_processes(tasks, tmp_path, counting):
    made = tasks(META, split="val", draws=2)
    seen = counting()
    made.fill(seen, workers=1)
    assert (seen.total, seen.done) == (2, 2)
    names = sorted(p.name for p in made.folder.iterdir())
    assert names == ["dora-0.safetensors", "dora-1.safetensors"]
    here = make(Dance(**SMALL), made.corpus, made.persons["dora"], 1, META)
    assert same(made[1], here, within=1.01 / 255)


def test_only_what_is_missing_is_drawn(tasks, drawn, at_once, counting):
    made = tasks(META)
    made[1]
    drawn["known"].clear()
    seen = counting()
    made.fill(seen)
    assert (seen.total, seen.done) == (2, 2)
    assert {name[:4] for name, _ in drawn["known"]} == {"anna", "carl"}
    again = counting()
    made.fill(again)
    assert (again.total, again.done) == (None, 0)
    assert len(drawn["known"]) == 2


@pytest.mark.reliability("1. Resume", "a drawn task is damaged", "drawn again")
def test_what_is_damaged_is_drawn_again(tasks, drawn, at_once, counting):
    made = tasks(META)
    made.fill(Silent())
    whole = [made[n] for n in range(len(made))]
    for path, damage in zip(sorted(made.folder.iterdir()), (b"", b"no numbers"), strict=False):
        path.write_bytes(damage or path.read_bytes()[:-7])
    drawn["known"].clear()
    seen = counting()
    made.fill(seen)
    assert (seen.total, seen.done) == (2, 2)
    assert len(drawn["known"]) == 2
    assert all(same(made[n], whole[n]) for n in range(len(made)))
    assert [p for p in made.folder.iterdir() if p.suffix != ".safetensors"] == []


def test_a_damaged_clip_ends_it_with_a_sentence(film, tmp_path, at_once):
    prepare([film.shoot(tmp_path, "x_a")], tmp_path / "corpus", PrepareOptions(side=64, fps=5, val=0))
    (tmp_path / "corpus" / "x_a.npz").write_bytes(b"no numbers")
    made = Tasks(Corpus(tmp_path / "corpus"), "train", ("dance", SMALL), META, tmp_path / "drawn")
    with pytest.raises(InputError, match=r"x_a\.npz is missing or damaged"):
        made.fill(Silent())


def test_a_full_disk_is_told_and_leaves_no_rest(tasks, at_once, monkeypatch):
    def full(kept: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"a little")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    made = tasks(META)
    with pytest.raises(StorageError, match="cannot be written") as e:
        made.fill(Silent())
    assert e.value.remedy
    assert list(made.folder.iterdir()) == []


def test_a_split_with_nobody_in_it(film, tmp_path):
    prepare([film.shoot(tmp_path, "x_a")], tmp_path / "corpus", PrepareOptions(side=64, fps=5, val=0))
    with pytest.raises(InputError, match="nobody in its split “val”") as e:
        Tasks(Corpus(tmp_path / "corpus"), "val", ("dance", SMALL), META, tmp_path / "drawn")
    assert e.value.remedy


class Killed(Inline):
    """A pool whose processes the system ends."""

    def submit(self, function: Any, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool())
        return future


def test_a_process_ended_by_the_system_is_no_memory(tasks, monkeypatch):
    monkeypatch.setattr(module, "ProcessPoolExecutor", Killed)
    with pytest.raises(OutOfMemory, match="drawing the tasks"):
        tasks().fill(Silent())
