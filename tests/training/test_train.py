"""`train`: it learns, an interruption changes nothing, and what cannot be is refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from retarget import device, weights
from retarget.errors import InputError, OutOfMemory, StorageError, UsageError, WeightsError
from retarget.lessons import adapt
from retarget.models import build
from retarget.models.losses import DanceObjective, LossWeights
from retarget.training import run as runs
from retarget.training import train as module
from retarget.training.corpus import Corpus
from retarget.training.fit import FitOptions
from retarget.training.prepare import PrepareOptions, prepare
from retarget.training.run import Run, Trained
from retarget.training.tasks import TaskOptions, Tasks
from retarget.training.train import TrainOptions, check, load, train
from retarget.types import Silent

from .conftest import visible

SMALL: dict[str, Any] = {"density": 24, "width": 8, "depth": 2}
TINY = TrainOptions(
    "pretrain", config=SMALL, steps=8, batch=2, rate=2e-3, frames=(3,), inner=2, draws=1, side=64, device="cpu",
    precision="fp32",
)  # fmt: skip
META = replace(TINY, stage="meta", steps=4)
STAGES = pytest.mark.parametrize("options", [TINY, META], ids=["pretrain", "meta"])

pytestmark = pytest.mark.usefixtures("at_once")


class Interrupted(Exception):
    pass


class Listener(Silent):
    """Counts, and interrupts after so many steps."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.interrupt_at = interrupt_at
        self.stages: list[tuple[str, int | None]] = []
        self.steps = 0
        self.warnings: list[str] = []

    def stage(self, title: str, total: int | None = None) -> None:
        self.stages.append((title, total))

    def advance(self, steps: int = 1, **figures: float) -> None:
        if self.stages[-1][0] != "Drawing tasks":
            self.steps += steps
            if self.steps == self.interrupt_at:
                raise Interrupted

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def kept(folder: Path) -> dict[str, torch.Tensor]:
    return weights.load_file(folder / "weights.safetensors")[0]


def checkpoint(folder: Path) -> dict[str, Any]:
    return Run(folder, json.loads((folder / "options.json").read_text()), None, writes=False).resume() or {}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(int(line["step"]), line.get("loss", line.get("loss.loss", math.nan))) for line in log(folder)]


# ------------------------------------------------------------------------------------------------ it learns


def test_pretraining_lowers_the_loss(corpus_folder, tmp_path):
    done = train(corpus_folder, tmp_path / "run", replace(TINY, steps=80, rate=4e-3))
    assert done.finished
    found = [loss for _, loss in losses(tmp_path / "run")]
    assert len(found) == 80
    assert all(map(math.isfinite, found))
    # On all pairs as they are; the log's are varied, and others each time.
    kind = TaskOptions("pretrain", (3,), side=64)
    tasks = Tasks(Corpus(corpus_folder), "train", ("dance", SMALL), kind, corpus_folder / "drawn")
    model, objective = build("dance", SMALL), DanceObjective(0, LossWeights(w_rela=0))

    def mean() -> float:
        terms = []
        with torch.inference_mode():
            for pair in (pair for n in range(len(tasks)) for group in tasks[n] for pair in group):
                frame, _ = model(pair.condition, None, None)
                terms.append(float(sum(objective.generator_loss(frame, pair.truth, pair.condition).values())))
        return sum(terms) / len(terms)

    before = mean()
    model.load_state_dict(kept(tmp_path / "run"))
    assert mean() < 0.985 * before


@STAGES
@pytest.mark.parametrize("critic", [False, True], ids=["alone", "judged"])
def test_what_a_run_leaves(corpus_folder, tmp_path, options, critic):
    listener = Listener()
    options = replace(options, critic=critic)
    out = tmp_path / "deep" / "run"
    done = train(corpus_folder, out, options, progress=listener)
    title = "Pretraining" if options.stage == "pretrain" else "Meta-learning"
    assert listener.stages[-1] == (title, options.steps)
    assert listener.steps == options.steps
    assert listener.warnings == []
    assert done == Trained(out / "weights.safetensors", options.steps, True, done.figures)
    assert visible(out) == [
        "checkpoint.safetensors", "curves.png", "log.jsonl", "options.json", "samples.png", "weights.safetensors",
    ]  # fmt: skip
    # Options.
    said = json.loads((out / "options.json").read_text())
    assert said["config"] == SMALL
    assert said["corpus"] == Corpus(corpus_folder).digest
    assert said["frames"] == [3]
    assert said["version"]
    # Log.
    lines = log(out)
    assert [line["step"] for line in lines] == list(range(1, options.steps + 1))
    terms = {k for line in lines for k in line}
    if options.stage == "pretrain":
        assert {"loss.loss", "loss.pixel", "rate", "fg_psnr", "fg_ssim", "sharpness"} <= terms | {"loss.loss"}
        assert ("loss.critic" in terms) == critic
        names = {"fg_psnr", "fg_ssim", "sharpness"}
    else:
        names = {f"{f}.T={t}" for f in ("fg_psnr", "fg_ssim", "sharpness") for t in (0, 2)}
        assert {"loss", "epsilon"} | names <= terms
    assert set(done.figures) == names
    assert all(math.isfinite(v) for k, v in done.figures.items() if "sharpness" not in k)
    # Pictures.
    for name in ("curves.png", "samples.png"):
        picture = cv2.imread(str(out / name))
        assert picture is not None
        assert picture.std() > 10
    # Weights: as few bytes as half precision needs, and what the checkpoint holds.
    tensors, name, config = weights.load_file(out / "weights.safetensors")
    assert (name, config) == ("dance", asdict(build("dance", SMALL).config))
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    own = {k: t.float() for k, t in tensors.items() if not k.startswith(weights.CRITICS)}
    model = build(name, config)
    model.load_state_dict(own)
    assert bool(set(tensors) - set(own)) == critic
    assert not model.untrained
    state = checkpoint(out)
    names = list(model.state_dict())
    prefix = "meta"
    if options.stage == "pretrain":  # buffers come last
        parameters = [name for name, _ in model.named_parameters()]
        names, prefix = parameters + [n for n in names if n not in parameters], "generator.moving"
    for i, key in enumerate(names):
        torch.testing.assert_close(own[key], state[f"{prefix}.{i}"], atol=1e-3, rtol=1e-2)


def test_the_same_run_again_gives_the_same(corpus_folder, tmp_path):
    for name in ("one", "two"):
        torch.manual_seed(len(name))
        train(corpus_folder, tmp_path / name, TINY)
    train(corpus_folder, tmp_path / "other", replace(TINY, seed=1))
    assert same(kept(tmp_path / "one"), kept(tmp_path / "two"))
    assert not same(kept(tmp_path / "one"), kept(tmp_path / "other"))


def test_random_numbers_of_the_caller_are_left_alone(corpus_folder, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(corpus_folder, tmp_path / "run", replace(TINY, steps=1))
    assert torch.equal(torch.rand(3), expected)


# ------------------------------------------------------------------------------------------------ interrupted, resumed


@STAGES
@pytest.mark.parametrize("critic", [False, True], ids=["alone", "judged"])
def test_interrupted_and_resumed_is_the_same_as_uninterrupted(corpus_folder, tmp_path, monkeypatch, options, critic):
    options = replace(options, critic=critic)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(corpus_folder, whole, options)
    monkeypatch.setattr(runs, "EVERY", -1.0)  # a checkpoint after each step
    with pytest.raises(Interrupted):
        train(corpus_folder, parts, options, progress=Listener(3))
    assert checkpoint(parts)["step"] in (2, 3)
    assert not same(kept(parts), kept(whole))
    monkeypatch.setattr(runs, "EVERY", 1e9)
    listener = Listener()
    done = train(corpus_folder, parts, options, progress=listener)
    assert done.finished
    assert done.steps == listener.steps == options.steps
    assert same(kept(parts), kept(whole))
    one, two = checkpoint(parts), checkpoint(whole)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key], key
    assert losses(parts) == losses(whole)  # each step once


@STAGES
@pytest.mark.parametrize("critic", [False, True], ids=["alone", "judged"])
def test_time_ends_a_run_that_can_go_on(corpus_folder, tmp_path, monkeypatch, options, critic):
    options = replace(options, critic=critic)  # critics use random numbers
    train(corpus_folder, tmp_path / "whole", options)
    out = tmp_path / "parts"
    steps = 0
    for _ in range(options.steps):
        asked = iter([False, False, True])
        with monkeypatch.context() as patch:
            patch.setattr(Run, "over", property(lambda _, asked=asked: next(asked)))
            done = train(corpus_folder, out, replace(options, minutes=7.0))
        assert done.steps == min(steps + 2, options.steps)
        steps = done.steps
        assert done.weights.exists()
        assert done.finished == (steps == options.steps)
        if done.finished:
            break
    assert same(kept(out), kept(tmp_path / "whole"))
    assert losses(out) == losses(tmp_path / "whole")


@STAGES
def test_too_little_time_for_a_single_step(corpus_folder, tmp_path, options):
    done = train(corpus_folder, tmp_path / "run", replace(options, minutes=1e-9))
    assert (done.steps, done.finished) == (0, False)
    # What it names is there: nothing learned yet.
    assert done.weights.exists()
    model = build("dance", SMALL)
    model.load_state_dict({k: t.float() for k, t in kept(tmp_path / "run").items()})
    assert model.untrained
    train(corpus_folder, tmp_path / "run", options)
    train(corpus_folder, tmp_path / "whole", options)
    assert same(kept(tmp_path / "run"), kept(tmp_path / "whole"))


@STAGES
def test_before_the_first_checkpoint_it_begins_again(corpus_folder, tmp_path, options):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(corpus_folder, out, options, progress=Listener(2))
    assert not (out / "checkpoint.safetensors").exists()
    assert len(log(out)) == 2
    with (out / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a line that was not finished
    train(corpus_folder, out, options)
    assert [step for step, _ in losses(out)] == list(range(1, options.steps + 1))


@STAGES
def test_a_finished_run_stays_as_it_is(corpus_folder, tmp_path, options):
    first = train(corpus_folder, tmp_path / "run", options)
    before = kept(tmp_path / "run")
    again = train(corpus_folder, tmp_path / "run", options)
    assert (again.steps, again.finished) == (first.steps, True)
    assert same(kept(tmp_path / "run"), before)
    assert len(log(tmp_path / "run")) == options.steps


@pytest.mark.parametrize(
    "change", [{"rate": 1e-3}, {"steps": 9}, {"seed": 1}, {"frames": (3, 2)}, {"config": SMALL | {"width": 16}},
               {"critic": True}, {"stage": "meta"}],
)  # fmt: skip
def test_other_options_are_refused(corpus_folder, tmp_path, change):
    out = tmp_path / "run"
    out.mkdir()
    said = {"version": "0.0.1"} | json.loads(json.dumps(runs.json.loads(json.dumps(vars(replace(TINY, minutes=None))))))
    (out / "options.json").write_text(json.dumps(said | {"corpus": Corpus(corpus_folder).digest, "world": 1}))
    before = (out / "options.json").read_bytes()
    with pytest.raises(UsageError, match=f"other options .*{next(iter(change))}") as e:
        train(corpus_folder, out, replace(TINY, **change))
    assert "--restart" in e.value.remedy
    assert visible(out) == ["options.json"]
    assert (out / "options.json").read_bytes() == before


def test_another_corpus_is_refused(corpus_folder, film, tmp_path):
    said = tmp_path / "t.csv"
    said.write_text("clip,person,split\nx_a,x,train\ny_a,y,val")
    paths = [film.shoot(tmp_path, name) for name in ("x_a", "y_a")]
    prepare(paths, tmp_path / "corpus", PrepareOptions(side=64, fps=5, table=str(said)))
    train(corpus_folder, tmp_path / "run", replace(TINY, steps=1))
    with pytest.raises(UsageError, match=r"other options \(corpus\)"):
        train(tmp_path / "corpus", tmp_path / "run", replace(TINY, steps=1))


@STAGES
def test_restarting_forgets(corpus_folder, tmp_path, options):
    out = tmp_path / "run"
    train(corpus_folder, out, replace(options, seed=3))
    train(corpus_folder, out, options, restart=True)
    train(corpus_folder, tmp_path / "fresh", options)
    assert same(kept(out), kept(tmp_path / "fresh"))
    assert losses(out) == losses(tmp_path / "fresh")
    train(corpus_folder, out, options)  # and goes on as usual


@pytest.mark.reliability("1. Resume", "train --restart killed while it forgets", "what it forgets is never mixed in")
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_killed_while_it_forgets_nothing_is_mixed(corpus_folder, tmp_path, monkeypatch, count):
    out, other = tmp_path / "run", replace(TINY, steps=2, seed=3)
    train(corpus_folder, out, replace(TINY, steps=2))
    unlink, left = Path.unlink, [count]

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.parent == out and left[0] == 0:
            raise Interrupted
        left[0] -= path.parent == out
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Interrupted):
            train(corpus_folder, out, other, restart=True)
    if count < 3:  # the options are still there
        with pytest.raises(UsageError, match=r"other options \(seed\)"):
            train(corpus_folder, out, other)
        train(corpus_folder, out, other, restart=True)
    else:
        train(corpus_folder, out, other)
    train(corpus_folder, tmp_path / "fresh", other)
    assert same(kept(out), kept(tmp_path / "fresh"))
    assert losses(out) == losses(tmp_path / "fresh")


def test_a_damaged_run_is_told(corpus_folder, tmp_path):
    out = tmp_path / "run"
    train(corpus_folder, out, replace(TINY, steps=1))
    for name in ("checkpoint.safetensors", "options.json", "log.jsonl"):
        before = (out / name).read_bytes()
        (out / name).write_bytes(b"{ no numbers\n")
        with pytest.raises((WeightsError, UsageError), match=f"{name} is damaged") as e:
            train(corpus_folder, out, replace(TINY, steps=1))
        assert "--restart" in e.value.remedy
        (out / name).write_bytes(before)
    (out / "options.json").write_bytes(b"{")
    assert train(corpus_folder, out, replace(TINY, steps=1), restart=True).finished


# ------------------------------------------------------------------------------------------------ starting from weights


def test_a_run_starts_from_another(corpus_folder, tmp_path):
    first = train(corpus_folder, tmp_path / "first", replace(TINY, critic=True))
    # A step so small that half precision does not notice.
    options = replace(META, steps=1, init=str(first.weights), epsilon=1e-6, critic=True)
    train(corpus_folder, tmp_path / "second", options)
    for key, t in kept(tmp_path / "first").items():
        torch.testing.assert_close(kept(tmp_path / "second")[key], t, atol=1e-3, rtol=1e-3)
    # Critics that are not asked for are left behind, and new ones are made when there are none.
    alone = replace(META, steps=1, init=str(first.weights))
    train(corpus_folder, tmp_path / "third", alone)
    assert not any(k.startswith(weights.CRITICS) for k in kept(tmp_path / "third"))
    train(corpus_folder, tmp_path / "fourth", replace(options, init=str(tmp_path / "third" / "weights.safetensors")))
    assert any(k.startswith(weights.CRITICS) for k in kept(tmp_path / "fourth"))


def test_weights_that_do_not_fit(corpus_folder, tmp_path):
    path = tmp_path / "w.safetensors"
    state = build("dance", SMALL).state_dict()
    out = tmp_path / "run"

    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message) as e:
            train(corpus_folder, out, replace(TINY, init=str(path)))
        assert e.value.remedy
        assert not (out / "weights.safetensors").exists()

    refused(InputError, r"no file .*w\.safetensors")
    path.write_bytes(b"numbers, honestly")
    refused(WeightsError, "does not hold weights")
    weights.save_file(path, state, "dance", SMALL | {"width": 16})
    refused(WeightsError, "holds weights of dance with")
    weights.save_file(path, state, "cyclegan", SMALL)
    refused(WeightsError, "holds weights of cyclegan")
    weights.save_file(path, {k: t for k, t in state.items() if "last" not in k}, "dance", SMALL)
    refused(WeightsError, "does not fit")
    weights.save_file(path, {k: torch.zeros(3) for k in state}, "dance", SMALL)
    refused(WeightsError, "does not fit")
    # A mistake in --init can be mended without --restart: nothing was begun.
    weights.save_file(path, state, "dance", SMALL)
    assert train(corpus_folder, out, replace(TINY, steps=1, init=str(path))).finished


def test_critics_come_back(tmp_path):
    torch.manual_seed(0)
    model, objective = build("dance", SMALL), DanceObjective(15, LossWeights())
    critics = {k: t for k, t in objective.state_dict().items() if k.startswith(weights.CRITICS)}
    assert critics
    path = tmp_path / "w.safetensors"
    weights.save_file(path, model.state_dict() | critics, "dance", SMALL)
    other, others = build("dance", SMALL), DanceObjective(15, LossWeights())
    load(path, TINY, other, others)
    for key, t in objective.state_dict().items():
        torch.testing.assert_close(others.state_dict()[key], t, atol=1e-3, rtol=1e-3)
    with pytest.raises(WeightsError, match="does not fit"):
        load(path, TINY, other, DanceObjective(0, LossWeights()))


def test_a_network_grows_out_of_a_smaller_one(tmp_path):
    """`dance-paper`: g is trained first, then G around it (Dance Dance Generation §4.2)."""
    small = {"side": 32, "width": 4, "downs": 1, "blocks": 1, "enhancer": 0, "scales": 1}
    first, path = build("dance-paper", small), tmp_path / "first.safetensors"
    judged = {k: t for k, t in first.objective().state_dict().items() if k.startswith(weights.CRITICS)}
    weights.save_file(path, first.state_dict() | judged, "dance-paper", asdict(first.config))
    torch.manual_seed(1)
    whole = build("dance-paper", small | {"side": 64, "enhancer": 1, "scales": 2})
    objective = whole.objective()
    before = [p.clone() for p in (*whole.synthesis.before.parameters(), *objective.parameters())]
    load(path, replace(TINY, model="dance-paper"), whole, objective)
    for key, t in first.synthesis.body.state_dict().items():
        torch.testing.assert_close(whole.synthesis.coarse.body.state_dict()[key], t, atol=1e-3, rtol=1e-3)
    # What is new stays as it was.
    after = (*whole.synthesis.before.parameters(), *objective.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(WeightsError, match="holds weights of dance-paper"):
        load(path, replace(TINY, model="dance-paper"), build("dance-paper", small | {"width": 8}), objective)


# ------------------------------------------------------------------------------------------------ Reptile


def start(options: TrainOptions) -> tuple[Any, DanceObjective]:
    """Model and critics as a run begins with them."""
    torch.manual_seed(options.seed)
    model = build("dance", options.config)
    return model, DanceObjective(model.maps, LossWeights() if options.critic else LossWeights(w_rela=0))


def adapted(corpus_folder: Path, options: TrainOptions, task: int, seed: int) -> list[torch.Tensor]:
    """Where T steps on a task lead: what `personalize` does."""
    kind = TaskOptions("meta", options.frames, side=64, seed=options.seed)
    tasks = Tasks(Corpus(corpus_folder), "train", ("dance", SMALL), kind, corpus_folder / "drawn")
    tasks[task]
    model, objective = start(options)
    adapt(
        model, objective, tasks[task], FitOptions(options.inner, options.rate, options.batch, seed=seed),
        device.choose("cpu", "fp32"), parameters=list(model.parameters()),
    )  # fmt: skip
    return [t.detach() for t in (*model.state_dict().values(), *objective.state_dict().values())]


@pytest.mark.parametrize("critic", [False, True], ids=["alone", "judged"])
def test_a_whole_step_leads_where_adapting_leads(corpus_folder, tmp_path, monkeypatch, critic):
    monkeypatch.setattr(module._Turns, "which", lambda self, number: 1)
    options = replace(META, steps=1, inner=1, epsilon=1.0, critic=critic)
    train(corpus_folder, tmp_path / "run", options)
    state = checkpoint(tmp_path / "run")
    there = adapted(corpus_folder, options, 1, seed=0)
    model, objective = start(options)
    here = [*model.state_dict().values(), *objective.state_dict().values()]
    assert len(there) == sum(k.startswith("meta.") for k in state)
    for i, t in enumerate(there):
        torch.testing.assert_close(state[f"meta.{i}"], t, atol=1e-6, rtol=1e-5)
    assert sum(not torch.equal(t, s) for t, s in zip(there, here, strict=True)) >= (10 if critic else 2)


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_part_of_a_step_leads_a_part_of_the_way(corpus_folder, tmp_path, tasks):
    options = replace(META, steps=1, inner=2, epsilon=0.25, tasks=tasks)
    numbers: list[int] = []
    which = module._Turns.which

    def seen(self: Any, number: int) -> int:
        numbers.append(which(self, number))
        return numbers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Turns, "which", seen)
        train(corpus_folder, tmp_path / "run", options)
    assert len(numbers) == tasks
    there = [adapted(corpus_folder, options, task, seed=n) for n, task in enumerate(numbers)]
    model, _ = start(options)
    state = checkpoint(tmp_path / "run")
    for i, s in enumerate(model.state_dict().values()):
        mean = torch.stack([t[i] for t in there]).mean(0)
        torch.testing.assert_close(state[f"meta.{i}"], s + 0.25 * (mean - s), atol=1e-6, rtol=1e-5)


def test_epsilon_falls_linearly(corpus_folder, tmp_path):
    train(corpus_folder, tmp_path / "run", replace(META, steps=5, inner=1, epsilon=0.5))
    assert [line["epsilon"] for line in log(tmp_path / "run")] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_critics_stay_as_they_were(corpus_folder, tmp_path, freeze):
    options = replace(META, steps=2, critic=True, freeze=freeze)
    train(corpus_folder, tmp_path / "run", options)
    _, objective = start(options)
    critics = {k: t for k, t in kept(tmp_path / "run").items() if k.startswith(weights.CRITICS)}
    assert critics.keys() == objective.state_dict().keys()
    assert freeze == all(torch.equal(t, objective.state_dict()[k].half()) for k, t in critics.items())


def test_frozen_critics_judge_and_learn_within_a_task(corpus_folder, tmp_path, monkeypatch):
    found: list[bool] = []

    def watched(model: Any, objective: Any, *args: Any, **how: Any) -> Any:
        before = [t.clone() for t in objective.state_dict().values()]
        result = adapt(model, objective, *args, **how)
        found.append(all(map(torch.equal, before, objective.state_dict().values())))
        return result

    monkeypatch.setattr("retarget.lessons.adapt", watched)
    train(corpus_folder, tmp_path / "run", replace(META, steps=2, critic=True, freeze=True))
    assert found
    assert not any(found)


def test_every_task_has_its_turn():
    which = module._Turns(range(7), seed=4).which  # type: ignore[arg-type]
    turns = [[which(7 * turn + n) for n in range(7)] for turn in range(5)]
    assert all(sorted(t) == list(range(7)) for t in turns)
    assert len({tuple(t) for t in turns}) > 1


def test_validation_changes_nothing_and_is_on_other_people(corpus_folder, tmp_path, monkeypatch):
    asked: list[tuple[str, int]] = []
    read = Tasks.__getitem__
    monkeypatch.setattr(Tasks, "__getitem__", lambda self, n: asked.append((self.list[n][0], n)) or read(self, n))
    train(corpus_folder, tmp_path / "run", META)
    learned = [person for person, _ in asked if person != "dora"]
    assert len(learned) == META.steps
    assert "dora" in {person for person, _ in asked}
    # Without any validation in between it ends at the same weights.
    monkeypatch.setattr(module._Reptile, "validate", lambda self: {})
    train(corpus_folder, tmp_path / "other", META)
    assert same(kept(tmp_path / "run"), kept(tmp_path / "other"))


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps is 0"), ({"batch": 0}, "--batch is 0"), ({"inner": 0}, "--inner is 0"),
        ({"tasks": 0}, "--tasks is 0"), ({"draws": 0}, "--draws is 0"), ({"side": 32}, "--side is 32"),
        ({"frames": ()}, "must be 1 or more"), ({"frames": (5, 0)}, "must be 1 or more"),
        ({"rate": 0.0}, "between 0 and 1"), ({"rate": 1.0}, "between 0 and 1"), ({"rate": math.nan}, "between 0 and 1"),
        ({"epsilon": 0.0}, "between 0 and 1"), ({"epsilon": 1.1}, "between 0 and 1"),
        ({"minutes": 0.0}, "--minutes is 0"), ({"minutes": -1.0}, "--minutes is -1"),
        ({"minutes": math.nan}, "--minutes is nan"), ({"model": "cyclegan"}, "no model called 'cyclegan'"),
        ({"config": {"wdith": 3}}, "wdith"), ({"stage": "finetune"}, "no stage “finetune”"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(corpus_folder, tmp_path, change, message):
    with pytest.raises(UsageError, match=message) as e:
        train(corpus_folder, tmp_path / "run", replace(TINY, **change))
    assert e.value.remedy
    assert not (tmp_path / "run").exists()


def test_the_defaults_can_be():
    check(TrainOptions())
    check(TrainOptions("meta"))


def test_workers_that_cannot_be(corpus_folder, tmp_path):
    with pytest.raises(UsageError, match="--workers is -1"):
        train(corpus_folder, tmp_path / "run", TINY, workers=-1)


def test_folders_that_cannot_be(corpus_folder, tmp_path):
    with pytest.raises(InputError, match="is not a corpus"):
        train(tmp_path, tmp_path / "run", TINY)
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError, match="cannot be written") as e:
            train(corpus_folder, out, TINY)
        assert e.value.remedy


def test_a_corpus_without_anybody_to_validate_with(film, tmp_path):
    prepare([film.shoot(tmp_path, "x_a")], tmp_path / "corpus", PrepareOptions(side=64, fps=5, val=0))
    with pytest.raises(InputError, match="nobody in its split “val”"):
        train(tmp_path / "corpus", tmp_path / "run", TINY)


def test_a_full_disk_is_told(corpus_folder, tmp_path, monkeypatch):
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retarget.checkpoint.save_file", full)
    with pytest.raises(StorageError, match="cannot be written") as e:
        train(corpus_folder, tmp_path / "run", replace(TINY, steps=1))
    assert e.value.remedy
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "curves.png", "log.jsonl", "options.json", "samples.png", "weights.safetensors",
    }  # fmt: skip


def test_a_loss_that_is_not_finite_is_told(corpus_folder, tmp_path, monkeypatch):
    pairs = module._Pairs.__call__

    def poisoned(self: Any, step: int) -> Any:
        batch = pairs(self, step)
        return batch._replace(truth=batch.truth._replace(rgb=batch.truth.rgb * math.nan)) if step == 2 else batch

    monkeypatch.setattr(module._Pairs, "__call__", poisoned)
    listener = Listener()
    done = train(corpus_folder, tmp_path / "run", TINY, progress=listener)
    assert done.finished
    assert [w for w in listener.warnings if "Step 3" in w and "discarded" in w]
    assert all(t.isfinite().all() for t in kept(tmp_path / "run").values())


# ------------------------------------------------------------------------------------------------ the training machine

ABSENT = ("mediapipe", "imageio_ffmpeg", "typer", "rich", "huggingface_hub", "platformdirs", "ultralytics", "skimage",
          "scipy", "matplotlib", "jax")  # fmt: skip


def test_it_trains_where_only_torch_numpy_opencv_and_safetensors_are(corpus_folder, tmp_path):
    """And without any package that the command line needs."""
    corpus = tmp_path / "corpus"
    shutil.copytree(corpus_folder, corpus, ignore=lambda *_: ["drawn"])
    script = tmp_path / "elsewhere.py"
    script.write_text(f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Absent())

if __name__ == "__main__":
    from retarget import lessons, models
    from retarget.training import corpus, fit, player, prepare, ranks, run, tasks, train
    from retarget.training.train import TrainOptions
    for stage in ("pretrain", "meta"):
        options = TrainOptions(
            stage, config={SMALL!r}, steps=2, batch=2, frames=(3,), inner=1, draws=1, side=64, device="cpu",
            critic=True,
        )
        done = train.train({str(corpus)!r}, {str(tmp_path)!r} + "/" + stage, options, workers=1)
        assert done.finished and done.weights.exists()
    assert not {{m.split(".")[0] for m in sys.modules}} & set({ABSENT!r})
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------ out of memory


def memory_for(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training steps have memory for so many pairs at once."""
    model = type(build("dance", SMALL))
    real = model.forward

    def forward(self, condition, identity, state):
        if self.training and len(condition.person) > count:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, condition, identity, state)

    monkeypatch.setattr(model, "forward", forward)


@pytest.mark.reliability("5. Out of memory and NaN", "train: inner and outer steps", "smaller batches; said, logged")
@STAGES
def test_training_with_little_memory(corpus_folder, tmp_path, monkeypatch, options):
    said = "Memory ran out while learning: going on with the batch in 2 pieces."
    train(corpus_folder, tmp_path / "whole", options)
    memory_for(1, monkeypatch)
    listener = Listener()
    done = train(corpus_folder, tmp_path / "run", options, progress=listener)
    assert done.finished
    assert listener.warnings == [said]
    assert said in [note for line in log(tmp_path / "run") for note in line.get("notes", [])]
    # The same but for rounding, of which Adam makes much where a gradient is next to nothing.
    ends = ({k: t.float() for k, t in kept(tmp_path / name).items()} for name in ("run", "whole"))
    far = torch.cat([(x - y).abs().flatten() for x, y in zip(*(e.values() for e in ends), strict=True)])
    assert far.mean() < 5e-4
    assert far.max() < 0.02
    # Whoever is already there adds nothing.
    lines = log(tmp_path / "run")
    train(corpus_folder, tmp_path / "run", options)
    assert log(tmp_path / "run") == lines


@pytest.mark.reliability("5. Out of memory and NaN", "train: not one pair fits", "OutOfMemory with a remedy")
@STAGES
def test_training_without_memory(corpus_folder, tmp_path, monkeypatch, options):
    memory_for(0, monkeypatch)
    with pytest.raises(OutOfMemory, match="Memory ran out while learning") as error:
        train(corpus_folder, tmp_path / "run", options)
    assert error.value.exit_code == 5
