"""What training draws from a corpus: tasks, each one person, or scene, known by K frames and pairs to learn from.

A task's pairs are drawn as far as no parameter changes it (`RetargetModel.ahead`), once, and kept in a folder: moving
the parts costs more than the network.

    pretrain  K frames of a clip give the person; the truths are other frames of all the person's clips, or as many in a
              row as the model learns from (`RetargetModel.sequence`)
    meta      K frames give leave-one-out pairs: exactly what `personalize` learns from (`lessons.Lessons`)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..device import Compute, no_memory
from ..errors import InputError, StorageError
from ..folders import replaced, sweep
from ..lessons import Lessons
from ..models import build
from ..models.base import Batch, Frame, RetargetModel, series
from ..references import arrays, pixels, references, seen_in
from ..types import Progress
from .corpus import Clip, Corpus, Entry, Split
from .prepare import alone

Stage = Literal["pretrain", "meta"]
Group = list[Batch]
"""One truth, drawn once or several times."""
SCHEMA: Final = 12
"""Part of the folder's name: to be raised when what is drawn changes, in `parts` or `RetargetModel.ahead`."""


@dataclass(frozen=True)
class TaskOptions:
    """What decides a task, beside model and corpus.

    stage    see the module.
    frames   K: each task draws one of these.
    targets  the most truths of a pretraining task.
    side     short side of the pictures.
    seed     of what is drawn.
    """

    stage: Stage
    frames: tuple[int, ...] = (5,)
    targets: int = 20
    side: int = 256
    seed: int = 0


RECENT: Final = 32
"""Tasks whose encoded persons are remembered where pairs are drawn one by one."""


class Tasks:
    """The tasks of one split: number i belongs to a person and a draw, and is always the same.

    Args:
        corpus: where from.
        split: whose persons.
        model: its registered name, and its configuration.
        folder: where drawn pairs are kept.
        draws: tasks per person.

    Those of another process can be pickled for it: there the corpus is read again.

    model  the network that they are drawn with, as it is built, on the CPU.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: Split,
        model: tuple[str, dict[str, Any]],
        options: TaskOptions,
        folder: Path,
        draws: int = 1,
    ) -> None:
        self.corpus, self.name, self.config, self.options = corpus, model[0], model[1], options
        self.persons = corpus.persons(split)
        if not self.persons:
            who = "no scene" if corpus.classes else "nobody"
            raise InputError(
                f"The corpus {corpus.folder} has {who} in its split “{split}”.",
                "Pack more clips, or give prepare a --table that says which are in it.",
            )
        self.list = [(person, draw) for draw in range(draws) for person in self.persons]
        self.model = build(*model)
        self._made_of = (corpus.folder, split, model, options, folder, draws)
        said = [SCHEMA, corpus.digest, model[0], self.model.ahead_depends_on, asdict(options)]
        self.folder = folder / hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        self._kept = self.model.Ahead
        # For models whose pairs are not kept: the persons known last.
        self._begun = lru_cache(RECENT)(lambda number: begun(self.model, corpus, *self._which(number), options))

    def __reduce__(self) -> tuple[Any, ...]:
        return _tasks, self._made_of

    def __len__(self) -> int:
        return len(self.list)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the pictures of each task."""
        return [_chosen(*self._which(i), self.options)[2].size for i in range(len(self))]

    def __getitem__(self, number: int) -> list[Group]:
        """The pairs of a task, from the folder if they are there. Raises InputError for a damaged clip."""
        path = self._path(number)
        if self._kept is not None and path.exists():
            with safe_open(path, "pt") as file:
                return [
                    [_unpacked(file, f"{g}.{v}.", self._kept) for v in range(count)]
                    for g, count in enumerate(json.loads(file.metadata()["groups"]))
                ]
        groups = make(self.model, self.corpus, *self._which(number), self.options)
        if self._kept is not None:
            _keep(path, groups)
        return groups

    def pair(self, number: int, rng: np.random.Generator, length: int | None = None) -> Batch:
        """A random pair of a task; of a sequence, the first `length` frames, or all. Reads no more than it."""
        path = self._path(number)
        if self._kept is None and self.options.stage == "pretrain":
            task = self._begun(number)
            return task.pair(self.model, self.corpus, int(rng.integers(len(task.truths))), length)
        if self._kept is None or not path.exists():
            groups = self[number]
            group = groups[int(rng.integers(len(groups)))]
            return group[int(rng.integers(len(group)))]
        with safe_open(path, "pt") as file:
            groups = json.loads(file.metadata()["groups"])
            g = int(rng.integers(len(groups)))
            return _unpacked(file, f"{g}.{int(rng.integers(groups[g]))}.", self._kept)

    def fill(self, progress: Progress, workers: int = 0) -> None:
        """Draw all tasks that are not in the folder yet, in parallel; nothing for models whose tasks are not kept."""
        missing = [i for i in range(len(self)) if not _drawn(self._path(i))]
        if not missing or self._kept is None:
            return
        sweep(self.folder)
        progress.stage("Drawing tasks", len(missing))
        count = min(workers or os.cpu_count() or 1, len(missing))
        with ProcessPoolExecutor(count, get_context("spawn"), alone) as pool:
            jobs = [
                pool.submit(
                    _made, self.corpus.folder, *self._which(i), self.name, self.config, self.options, self._path(i)
                )
                for i in missing
            ]
            try:
                for job in as_completed(jobs):
                    job.result()
                    progress.advance()
            except BrokenProcessPool as error:  # the system ends whoever takes too much memory
                raise no_memory("drawing the tasks", "Use fewer --workers, or a smaller --side.") from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _which(self, number: int) -> tuple[list[Entry], int]:
        person, draw = self.list[number]
        return self.persons[person], draw

    def _path(self, number: int) -> Path:
        person, draw = self.list[number]
        return self.folder / f"{person}-{draw}.safetensors"


def _tasks(corpus: Path, *others: Any) -> Tasks:
    return Tasks(Corpus(corpus), *others)


def _drawn(path: Path) -> bool:
    """Whether a task is there, and whole; what is not is deleted."""
    try:
        with safe_open(path, "pt") as file:
            return "groups" in (file.metadata() or {})
    except FileNotFoundError:
        return False
    except (OSError, SafetensorError):
        path.unlink(missing_ok=True)
        return False


def make(model: RetargetModel, corpus: Corpus, clips: Sequence[Entry], draw: int, options: TaskOptions) -> list[Group]:
    """Draw one task of a person. On the CPU."""
    if options.stage == "meta":
        _, chosen, known = _known(corpus, clips, draw, options)
        gathered = corpus.clip(chosen.clip).gathered(known)
        return Lessons(model, arrays(gathered), gathered, options.side, _CPU, seed=draw, validate=False).pairs
    task = begun(model, corpus, clips, draw, options)
    return [[task.pair(model, corpus, n)] for n in range(len(task.truths))]


@dataclass(frozen=True)
class Begun:
    """A pretraining task whose person is encoded.

    identity  of the person in `clip`.
    clip      the name of the clip that the references are from.
    truths    (clip, frame): where pairs begin.
    unknown   (clip, frame): all frames that may be truths.
    """

    identity: Any
    clip: str
    truths: list[tuple[str, int]]
    unknown: Set[tuple[str, int]]

    def pair(self, model: RetargetModel, corpus: Corpus, number: int, length: int | None = None) -> Batch:
        """The pair, or the sequence of `length` frames, or of the model's, that begins at `truths[number]`."""
        name, start = self.truths[number]
        clip = corpus.clip(name)
        person = self.identity
        if name != self.clip:
            person = model.before(person, pixels(clip.plate.image)[None])
        if model.sequence == 1:
            return _pair(model, clip, start, person)
        row = [
            _pair(model, clip, i, person)
            for i in in_a_row(start, length or model.sequence, lambda i: (name, i) in self.unknown)
        ]
        return row[0]._replace(condition=series([p.condition for p in row]), truth=series([p.truth for p in row]))


def in_a_row(start: int, count: int, free: Callable[[int], bool]) -> list[int]:
    """`count` frames from `start` on, each the next one to the one before; they turn round before a frame that is not
    free, and stand where there is no other."""
    found, step = [start], 1
    while len(found) < count:
        step = step if free(found[-1] + step) else -step
        found.append(found[-1] + (step if free(found[-1] + step) else 0))
    return found


def begun(model: RetargetModel, corpus: Corpus, clips: Sequence[Entry], draw: int, options: TaskOptions) -> Begun:
    """Know the person of a pretraining task, and choose its truths."""
    rng, chosen, known = _known(corpus, clips, draw, options)
    number = [entry.clip for entry in corpus.entries].index(chosen.clip) if chosen.split == "train" else None
    identity = model.encode(references(arrays(corpus.clip(chosen.clip).gathered(known)))._replace(video=number))
    others = [(entry.clip, i) for entry in clips if entry.size == chosen.size for i in range(entry.frames)
              if (entry.clip, i) not in {(chosen.clip, k) for k in known}]  # fmt: skip
    truths = [others[n] for n in rng.permutation(len(others))[: options.targets].tolist()]
    return Begun(identity, chosen.clip, truths, frozenset(others))


def _known(
    corpus: Corpus, clips: Sequence[Entry], draw: int, options: TaskOptions
) -> tuple[np.random.Generator, Entry, list[int]]:
    """A task's random numbers, and the clip and frames that the person is known by."""
    rng, wanted, chosen = _chosen(clips, draw, options)
    count = len(corpus.clip(chosen.clip))
    # One frame at least is left to learn from.
    return rng, chosen, rng.permutation(count)[: min(wanted, count - 1)].tolist()


def _chosen(clips: Sequence[Entry], draw: int, options: TaskOptions) -> tuple[np.random.Generator, int, Entry]:
    """The same, and K as it is wanted in place of the frames."""
    rng = np.random.default_rng([options.seed, draw, int(hashlib.sha256(clips[0].person.encode()).hexdigest()[:8], 16)])
    wanted = int(rng.choice(options.frames))
    return rng, wanted, clips[int(rng.integers(len(clips)))]


def _pair(model: RetargetModel, clip: Clip, i: int, identity: Any) -> Batch:
    mattes = clip.mattes if clip.exact is None else clip.exact
    truth = Frame(pixels(clip.pictures[i])[None], torch.from_numpy(mattes[i].copy())[None, None])
    width, height = clip.track.size
    condition = model.condition(seen_in(clip.window(i)), (height, width))
    condition, identity, truth = model.ahead(condition, identity, truth)
    return Batch(condition, identity, None, truth)


_CPU = Compute(torch.device("cpu"), torch.float32)


def _made(
    folder: Path, clips: Sequence[Entry], draw: int, name: str, config: dict[str, Any], options: TaskOptions, path: Path
) -> None:
    _keep(path, make(build(name, config), Corpus(folder), clips, draw, options))


def _keep(path: Path, groups: Sequence[Group]) -> None:
    """Write a task: pictures as bytes, which loses of -1..1 or 0..1 what no picture shows; all else as it is."""

    def stored(key: str, t: torch.Tensor) -> torch.Tensor:
        low = float(key in _SIGNED)
        return ((t + low) * (255 / (1 + low))).round().clamp(0, 255).byte() if t.dim() > 3 else t

    tensors = {
        f"{g}.{v}.{key}": stored(key, t)
        for g, group in enumerate(groups)
        for v, batch in enumerate(group)
        for key, t in _fields(batch).items()
    }  # fmt: skip
    said = {"groups": json.dumps([len(g) for g in groups])}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as part:
            save_file({k: t.contiguous() for k, t in tensors.items()}, part, said)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be written: {error}.", "Free some space, or use another folder.") from error


_SIGNED: Final = ("truth.rgb",)


def _fields(batch: Batch) -> dict[str, torch.Tensor]:
    assert batch.truth.matte is not None
    own = {f"condition.{k}": t for k, t in batch.condition._asdict().items()}
    return own | {"truth.rgb": batch.truth.rgb, "truth.matte": batch.truth.matte}


def _unpacked(file: Any, prefix: str, kind: Any) -> Batch:
    def tensor(key: str) -> torch.Tensor:
        low = float(key in _SIGNED)
        t: torch.Tensor = file.get_tensor(prefix + key)
        # A copy: the file may be drawn anew while it is in use.
        return t.float() * ((1 + low) / 255) - low if t.dtype == torch.uint8 else t.clone()

    condition = kind(**{k: tensor(f"condition.{k}") for k in kind._fields})
    return Batch(condition, None, None, Frame(tensor("truth.rgb"), tensor("truth.matte")))
