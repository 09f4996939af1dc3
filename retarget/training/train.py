"""`retarget train`: pretraining, and Reptile on top of it (MetaPix, Algorithm 1).

    corpus ─ tasks ─┬─ pretrain: pairs of all persons, one after the other ─ weights
                    └─ meta: for each task, T steps of what `personalize` does; the weights move towards where they lead

Both run through the one optimiser loop, `fit`, resume exactly, and go parallel under `torchrun`. A third stage,
`parsing`, trains no model, but a network that one of them is judged by (`training.parsing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import weights
from ..errors import UsageError
from ..types import Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor

    from ..device import Compute
    from ..models.base import Batch, Objective, RetargetModel
    from .corpus import Corpus
    from .fit import FitState
    from .ranks import Ranks
    from .run import Run, Trained
    from .tasks import Group, Tasks


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    stage      `pretrain`, or `meta`: Reptile; or `parsing`: no model, but the network that `dance-paper` is judged by.
    model      which system of `models.MODELS`.
    config     what is different from the model's own configuration.
    init       weights to start from, a .safetensors file of another run; None: nothing learned.
    steps      of the optimiser when pretraining; meta-iterations of Reptile (MetaPix §3: 300).
    minutes    end after this time, too; None: when all steps are made.
    batch      pairs per step (MetaPix §3: 8).
    rate       Adam's learning rate (MetaPix §3: 0.0002); Reptile's inner one.
    frames     K, or several, of which each task draws one.
    inner      T, the inner steps of a task. Reptile only.
    epsilon    the meta learning rate of the first meta-iteration; it falls linearly to 0 (MetaPix §3: 1).
    tasks      tasks per meta-iteration, over all processes; the weights move by the mean.
    draws      tasks drawn of each person.
    critic     whether critics judge, too.
    freeze     Reptile: critics learn within a task, but are not meta-learned.
    side       short side of the pictures that Reptile's tasks are drawn at; pretraining takes the corpus's own.
    seed       of everything random.
    device, precision  see `device.choose`.
    """

    stage: Literal["pretrain", "meta", "parsing"] = "pretrain"
    model: str = "dance"
    config: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    steps: int = 300
    minutes: float | None = None
    batch: int = 8
    rate: float = 2e-4
    frames: tuple[int, ...] = (5,)
    inner: int = 20
    epsilon: float = 1.0
    tasks: int = 1
    draws: int = 2
    critic: bool = False
    freeze: bool = False
    side: int = 256
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"


def train(
    corpus: str | Path,
    out: str | Path,
    options: TrainOptions | None = None,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    workers: int = 0,
) -> Trained:
    """Train on a corpus; go on with what `out` holds.

    Args:
        corpus: a folder that `prepare` made.
        out: the run's folder, see `training.run`.
        options: how.
        restart: forget what `out` holds.
        progress: is told what happens.
        workers: processes that draw the tasks, and where a GPU computes, what is learned from, too; 0: one per core,
            and at most `feeding.MOST` beside a GPU.

    Raises:
        InputError: no corpus, or nobody in it; a file of weights that does not exist.
        UsageError: options that cannot be, or are not for such a corpus; a folder with a run with other options.
        WeightsError: weights that do not fit.
        StorageError: the folder cannot be written, or another process trains into it.
        DeviceError: a device that is not there.
    """
    options, progress = options or TrainOptions(), progress or Silent()
    check(options)
    if workers < 0:
        raise UsageError(f"--workers is {workers}.", "Give 1 or more, or 0 for one per core.")

    import torch

    from .. import device
    from .corpus import Corpus
    from .ranks import together
    from .run import Run, reserved
    from .tasks import TaskOptions, Tasks

    compute = device.choose(options.device, options.precision, progress=progress)
    packed, out = Corpus(corpus), Path(out)
    options = fitting(options, packed)
    begun = begin(options) if options.stage != "parsing" else None
    with torch.random.fork_rng([]), together(compute.device) as ranks, ExitStack() as stack:
        if ranks.rank == 0:
            stack.enter_context(reserved(out))
        else:
            ranks.wait()  # until the first has forgotten what there was
        said = asdict(replace(options, minutes=None)) | {"corpus": packed.digest, "world": ranks.world}
        run = Run(out, said, options.minutes, restart=restart, writes=ranks.rank == 0)
        if ranks.rank == 0:
            ranks.wait()
        memory = device.enough_memory("training", "Use a smaller --batch, a smaller model (--config) or --device cpu.")
        if begun is None:
            from .parsing import train_parser

            with memory:
                return train_parser(packed, run, options, compute, progress if ranks.rank == 0 else Silent())
        assert options.stage != "parsing"
        kind = TaskOptions(options.stage, options.frames, side=options.side, seed=options.seed)
        place, model = Path(corpus) / "drawn", (options.model, dict(options.config))
        own = Tasks(packed, "train", model, kind, place, options.draws)
        # Of the same frames: one to adapt to, the other to be measured on.
        support, query = (
            Tasks(packed, "val", model, replace(kind, stage=stage, frames=(5,)), place)
            for stage in ("meta", "pretrain")
        )
        if ranks.rank == 0:
            for tasks in (own, support, query):
                tasks.fill(progress, workers)
        ranks.wait()
        if ranks.rank != 0:
            progress = Silent()
        draw: Callable[[int], Any] = (
            _Pairs(own, options, ranks.rank) if options.stage == "pretrain" else _Turns(own, options.seed)
        )
        work = _Pretraining if options.stage == "pretrain" else _Reptile
        with memory:
            return work(options, compute, run, draw, support, query, ranks, progress, begun, workers).run_it()


def check(options: TrainOptions) -> None:
    """Raises UsageError for an option that cannot be."""
    if options.stage not in ("pretrain", "meta", "parsing"):
        raise UsageError(f"There is no stage “{options.stage}”.", "Use pretrain, meta or parsing.")
    for name, low in (("steps", 1), ("batch", 1), ("inner", 1), ("tasks", 1), ("draws", 1), ("side", 64)):
        if getattr(options, name) < low:
            raise UsageError(f"--{name} is {getattr(options, name)}.", f"Give {low} or more.")
    if not options.frames or min(options.frames) < 1:
        raise UsageError("K, --frames, must be 1 or more.", "Use --frames 5, or several: --frames 1,3,5.")
    if not 0 < options.rate < 1 or not 0 < options.epsilon <= 1:
        raise UsageError("A learning rate must lie between 0 and 1.", "Use --rate 0.0002 and --epsilon 1.")
    if options.minutes is not None and not options.minutes > 0:
        raise UsageError(f"--minutes is {options.minutes:g}.", "Give more than 0.")


def fitting(options: TrainOptions, packed: Corpus) -> TrainOptions:
    """The options for a corpus: a model that draws from label maps knows the classes of these.

    Raises UsageError for a model of people and a corpus of street scenes, and the other way round, and for too few
    classes.
    """
    from ..models import MODELS, configuration

    config, scene = dict(options.config), None
    if options.stage != "parsing":
        configuration(options.model, "small")  # whether there is such a model
        scene = MODELS[options.model]().SUBJECTS.get("scene")
    draws = scene is not None and scene.items() <= config.items()
    if draws and not packed.classes:
        raise UsageError(
            f"{packed.folder} is a corpus of people, without label maps.",
            "Pack street scenes (retarget prepare STREET --labels MAPS), or leave conditioning=labels out.",
        )
    if packed.classes and not draws:
        able = [name for name, find in MODELS.items() if "scene" in find().SUBJECTS]
        model = "" if scene else f"--model {' or '.join(able)} "
        what = f"{options.model}{' as configured' if scene else ''}" if options.stage != "parsing" else "the parser"
        raise UsageError(
            f"{packed.folder} is a corpus of street scenes, and {what} learns from people.",
            f"Use {model}--config conditioning=labels.",
        )
    if not draws:
        return options
    if isinstance(known := config.setdefault("classes", packed.classes), int) and known < packed.classes:
        raise UsageError(
            f"--config classes={known} is too few: the label maps in {packed.folder} take {packed.classes}.",
            f"Leave it out, or give {packed.classes} or more.",
        )
    return replace(options, config=config)


def begin(options: TrainOptions) -> tuple[RetargetModel, RetargetModel, Objective]:
    """The model as a run begins with it, one that has learned nothing, and the objective with its critics.

    Raises UsageError for a model that cannot be, and what `load` raises.
    """
    import torch

    from ..lessons import features
    from ..models import build

    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        model = build(options.model, options.config)
        objective = model.objective(critics=options.critic, **features(model))
        untrained = build(options.model, options.config).eval()
    if options.init is not None:
        load(Path(options.init), options, model, objective)
    return model, untrained, objective


class _Training:
    """What both stages share."""

    def __init__(
        self,
        options: TrainOptions,
        compute: Compute,
        run: Run,
        draw: Callable[[int], Any],
        support: Tasks,
        query: Tasks,
        ranks: Ranks,
        progress: Progress,
        begun: tuple[RetargetModel, RetargetModel, Objective],
        workers: int,
    ) -> None:
        import numpy as np

        from .feeding import drawers

        self.options, self.compute, self.run, self.ranks, self.progress = options, compute, run, ranks, progress
        self.draw, self.support, self.query = draw, support, query
        self.drawers = drawers(compute.device, workers)
        self.model, self.untrained, self.objective = begun
        for module in (self.model, self.untrained, self.objective):
            module.to(compute.device)
        self.notes: set[str] = set()
        """What went wrong in the tasks of the present step, and what was done about it."""
        rng = np.random.default_rng(options.seed)
        self.shown = [query.pair(i % len(query), rng) for i in range(32)]

    def going_on(self, step: int) -> None:
        """Say where, if not at the start."""
        if step:
            self.progress.note(f"Going on at step {step} of {self.options.steps}.")
            self.progress.advance(step)

    @property
    def config(self) -> dict[str, Any]:
        """Of the network, complete: defaults may change."""
        return asdict(self.model.config)

    def result(self) -> dict[str, Tensor]:
        """All weights by the names that a file of weights has."""
        critics = {k: t for k, t in self.objective.state_dict().items() if k.startswith(weights.CRITICS)}
        return self.model.state_dict() | critics


@dataclass(frozen=True)
class _Pairs:
    """The batch of a pretraining step of a process, on the CPU: decided by seed, step and rank."""

    tasks: Tasks
    options: TrainOptions
    rank: int

    def __call__(self, step: int) -> Batch:
        import numpy as np
        import torch

        from ..models.base import stacked

        tasks, options, model = self.tasks, self.options, self.tasks.model
        rng = np.random.default_rng([options.seed, step, self.rank])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        chosen = rng.integers(len(tasks), size=options.batch)
        if model.Ahead is None:  # whole pictures cannot be continued to a common size
            alike = [i for i, size in enumerate(tasks.sizes) if size == tasks.sizes[chosen[0]]]
            chosen = np.array(alike)[chosen % len(alike)]
        length = model.length(step / options.steps)
        batch: Batch = stacked([model.varied(tasks.pair(int(i), rng, length), generator) for i in chosen])
        return batch


@dataclass(frozen=True)
class _Turns:
    """The task of a turn, on the CPU: all tasks in random order, again and again."""

    tasks: Tasks
    seed: int

    def which(self, number: int) -> int:
        import numpy as np

        turn, place = divmod(number, len(self.tasks))
        return int(np.random.default_rng([self.seed, turn]).permutation(len(self.tasks))[place])

    def __call__(self, number: int) -> list[Group]:
        return self.tasks[self.which(number)]


class _Pretraining(_Training):
    """All frames of all persons (MetaPix §3: before meta-learning). Data-parallel."""

    def run_it(self) -> Trained:
        from .feeding import fed
        from .fit import FitOptions, fit
        from .run import Trained, measure, on

        options, run = self.options, self.run
        figures: dict[str, float] = {}
        kept = run.resume()
        first = int(kept["step"]) if kept else 0
        how = FitOptions(options.steps, options.rate, options.batch, decay=0.5, seed=options.seed)
        self.progress.stage("Pretraining", options.steps)
        self.going_on(first)
        every = max(1, min(200, options.steps // 20))

        def batches(drawn: Iterator[Batch]) -> Iterator[Batch]:
            while not self.ranks.agree(run.over, self.compute.device) and (batch := next(drawn, None)) is not None:
                yield on(batch, self.compute.device)
            for state in last:
                self.save(state)

        def on_step(step: int, losses: dict[str, float]) -> None:
            line = {f"loss.{k}" if k not in ("rate",) else k: v for k, v in losses.items()}
            if step % every == 0 or step == options.steps:
                figures.update(measure(self.model, self.shown, self.compute))
                line |= {k: v for k, v in figures.items()}
            run.log(step, line)
            self.progress.advance(loss=losses["loss"])

        last: list[FitState] = []

        def checkpoint(state: FitState) -> None:
            # Saved only while `fit` runs: its random numbers belong to the checkpoint.
            last[:] = [state]
            if run.due or state.step == options.steps or state.failures >= how.patience:
                self.save(state)

        share = self.ranks.mean if self.ranks.world > 1 else None
        with fed(self.draw, range(first, options.steps), self.drawers) as drawn:
            done = fit(
                self.model, self.objective, batches(drawn), parameters=list(self.model.parameters()),
                compute=self.compute, options=how, on_step=on_step, checkpoint=checkpoint, resume=kept, share=share,
            )  # fmt: skip
        for note in done.notes:
            self.progress.warn(note)
        if done.notes and done.steps > first:
            run.log(done.steps, {}, done.notes)
        if not last and kept is None:
            run.keep(self.result(), options.model, self.config)
        return Trained(run.folder / "weights.safetensors", done.steps, done.steps >= options.steps, figures)

    def save(self, state: FitState) -> None:
        kept = state.state_dict()
        self.model.eval()
        self.run.draw({"before": self.untrained, "model": self.model}, self.shown[:8], self.compute)
        self.model.train()
        self.run.save(kept, self.result(), self.options.model, self.config)


class _Reptile(_Training):
    """MetaPix, Algorithm 1: θ ← θ + ε (θ' - θ), θ' being where T steps on K frames of one person lead.

    For generator and critics alike; ε falls linearly to 0. Task-parallel: each process has its own persons, the updates
    are averaged.
    """

    def run_it(self) -> Trained:
        from .feeding import fed

        options, world = self.options, self.ranks.world
        if options.tasks % world:
            raise UsageError(
                f"{options.tasks} tasks per meta-iteration do not divide among {world} processes.",
                f"Use --tasks {world}.",
            )
        kept = self.run.resume()
        first = int(kept["step"]) if kept else 0
        mine = options.tasks // world
        numbers = (
            step * options.tasks + self.ranks.rank * mine + n
            for step in range(first, options.steps)
            for n in range(mine)
        )
        with fed(self.draw, numbers, self.drawers) as drawn:
            return self.learn(kept, drawn)

    def learn(self, kept: Mapping[str, Any] | None, drawn: Iterator[list[Group]]) -> Trained:
        """From a checkpoint on, or from the start; `drawn` are this process's tasks."""
        import torch

        from .run import Trained

        options, run = self.options, self.run
        step, mine = int(kept["step"]) if kept else 0, options.tasks // self.ranks.world
        meta = self.moving()
        if kept:
            for i, t in enumerate(meta):
                t.data.copy_(kept[f"meta.{i}"])
        every = max(1, min(25, options.steps // 4))  # each costs six tasks
        figures: dict[str, float] = {}
        told: set[str] = set()
        self.progress.stage("Meta-learning", options.steps)
        self.going_on(step)
        while step < options.steps and not self.ranks.agree(run.over, self.compute.device):
            epsilon = options.epsilon * (1 - step / options.steps)
            start = [t.detach().clone() for t in meta]
            moved = [torch.zeros_like(t) for t in meta]
            losses: list[float] = []
            for n in range(mine):
                for t, s in zip(meta, start, strict=True):
                    t.data.copy_(s)
                number = step * options.tasks + self.ranks.rank * mine + n
                losses.append(self.adapt(next(drawn), seed=number))
                for m, t, s in zip(moved, meta, start, strict=True):
                    m += (t.detach() - s) / mine
            self.ranks.mean(moved)
            for t, s, m in zip(meta, start, moved, strict=True):
                t.data.copy_(s + epsilon * m)
            step += 1
            line = {"loss": sum(losses) / len(losses), "epsilon": epsilon}
            if step % every == 0 or step == options.steps:
                figures = self.validate()
                line |= figures
            run.log(step, line, self.notes)
            for note in self.notes - told:
                self.progress.warn(note)
            told |= self.notes
            self.notes = set()
            self.progress.advance(loss=line["loss"])
            if run.due:
                self.save(step)
        self.save(step)
        return Trained(run.folder / "weights.safetensors", step, step >= options.steps, figures)

    def moving(self) -> list[Tensor]:
        """What is meta-learned: all parameters and buffers of the model, and of the critics unless these are frozen."""
        judges = {} if self.options.freeze else self.objective.state_dict(keep_vars=True)
        features = tuple(f"{name}." for name in self.model.FEATURES)
        critics = [t for key, t in judges.items() if not key.startswith(features)]
        return [*self.model.state_dict(keep_vars=True).values(), *critics]

    def adapt(self, task: list[Group], seed: int) -> float:
        """T steps on one task, with what `personalize` runs; the mean loss."""
        from ..lessons import adapt
        from .fit import FitOptions
        from .run import on

        options = self.options
        pairs = [[on(b, self.compute.device) for b in group] for group in task]
        how = FitOptions(options.inner, options.rate, options.batch, seed=seed)
        losses: list[float] = []
        critics = [t.detach().clone() for t in self.objective.state_dict().values()] if options.freeze else []
        done = adapt(
            self.model, self.objective, pairs, how, self.compute, parameters=list(self.model.parameters()),
            on_step=lambda _, f: losses.append(f["loss"]),
        )  # fmt: skip
        self.notes |= set(done.notes)
        if options.freeze:
            for t, before in zip(self.objective.state_dict(keep_vars=True).values(), critics, strict=True):
                t.data.copy_(before)
        return sum(losses) / len(losses)

    @cached_property
    def known(self) -> list[tuple[list[Group], list[Batch]]]:
        """Of some persons that are not trained on: a task, and pairs of other frames."""
        return [(self.support[n], [group[0] for group in self.query[n]][:8]) for n in range(min(6, len(self.query)))]

    def validate(self) -> dict[str, float]:
        """Figures on other frames of persons that are not trained on, before and after T steps on K frames."""
        import numpy as np

        from .run import measure

        found: list[dict[str, float]] = []
        everything = [
            *self.model.state_dict(keep_vars=True).values(),
            *self.objective.state_dict(keep_vars=True).values(),
        ]
        start = [t.detach().clone() for t in everything]
        for n, (task, pairs) in enumerate(self.known):
            before = measure(self.model, pairs, self.compute)
            self.adapt(task, seed=n)
            after = measure(self.model, pairs, self.compute)
            for t, s in zip(everything, start, strict=True):
                t.data.copy_(s)
            found.append(
                {f"{k}.T=0": v for k, v in before.items()}
                | {f"{k}.T={self.options.inner}": v for k, v in after.items()}
            )
        return {key: float(np.mean([f[key] for f in found])) for key in found[0]}

    def save(self, step: int) -> None:
        state = {f"meta.{i}": t.detach().cpu().contiguous().clone() for i, t in enumerate(self.moving())}
        self.model.eval()
        self.run.draw({"before": self.untrained, "model": self.model}, self.shown[:8], self.compute)
        self.run.save(state | {"step": step}, self.result(), self.options.model, self.config)


def load(path: Path, options: TrainOptions, model: RetargetModel, objective: Objective) -> None:
    """Start from the weights of another run, or of a smaller network (`RetargetModel.grown`), whose critics are left
    behind. Raises WeightsError when they do not fit."""
    from ..errors import WeightsError
    from ..models import build

    tensors, name, config = weights.load_file(path)
    own = {k: t for k, t in tensors.items() if not k.startswith(weights.CRITICS)}
    critics = {k: t for k, t in tensors.items() if k.startswith(weights.CRITICS)}
    if name == options.model and (before := build(name, config).config) != model.config:
        grown = model.grown(own, before)
        own, critics = ({**model.state_dict(), **grown}, {}) if grown else ({}, {})
    if name != options.model or not own:
        raise WeightsError(
            f"{path} holds weights of {name} with {config or 'its own configuration'}.",
            "Use the --model and --config that it was made with.",
        )
    try:
        model.load_state_dict(own)
        if critics and objective.critic_parameters():
            objective.load_state_dict(critics, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the model {name}.", "Use the file of another run.") from error


__all__: Sequence[str] = ("TrainOptions", "check", "load", "train")
