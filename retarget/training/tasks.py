"""What training draws from a corpus: tasks, each one person known by K frames and pairs to learn from.

A task's pairs are drawn as far as no parameter changes it (`RetargetModel.ahead`), once, and kept in a folder: moving
the parts costs more than the network.

    pretrain  K frames of a clip give the person; the truths are other frames of all the person's clips
    meta      K frames give leave-one-out pairs: exactly what `personalize` learns from (`lessons.Lessons`)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..device import Compute
from ..errors import InputError, StorageError
from ..lessons import Lessons
from ..models import build
from ..models.base import Batch, Frame, RetargetModel
from ..references import arrays, pixels, poses, references
from ..types import Progress
from .corpus import Clip, Corpus, Entry, Split
from .prepare import alone

Stage = Literal["pretrain", "meta"]
Group = list[Batch]
"""One truth, drawn once or several times."""
SCHEMA: Final = 2
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


class Tasks:
    """The tasks of one split: number i belongs to a person and a draw, and is always the same.

    Args:
        corpus: where from.
        split: whose persons.
        model: its registered name, and its configuration.
        folder: where drawn pairs are kept.
        draws: tasks per person.
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
            raise InputError(f"The corpus {corpus.folder} has nobody in its split “{split}”.", "Pack more clips.")
        self.list = [(person, draw) for draw in range(draws) for person in self.persons]
        self._model = build(*model)
        said = [SCHEMA, corpus.digest, model[0], self._model.ahead_depends_on, asdict(options)]
        self.folder = folder / hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        self._kept = self._model.Ahead

    def __len__(self) -> int:
        return len(self.list)

    def __getitem__(self, number: int) -> list[Group]:
        """The pairs of a task, from the folder if they are there. Raises InputError for a damaged clip."""
        path = self._path(number)
        if self._kept is not None and path.exists():
            with safe_open(path, "pt") as file:
                return [
                    [_unpacked(file, f"{g}.{v}.", self._kept) for v in range(count)]
                    for g, count in enumerate(json.loads(file.metadata()["groups"]))
                ]
        groups = make(self._model, self.corpus, *self._which(number), self.options)
        if self._kept is not None:
            _keep(path, groups)
        return groups

    def pair(self, number: int, rng: np.random.Generator) -> Batch:
        """A random pair of a task. Reads no more than it."""
        path = self._path(number)
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
        missing = [i for i in range(len(self)) if not self._path(i).exists()]
        if not missing or self._kept is None:
            return
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
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _which(self, number: int) -> tuple[list[Entry], int]:
        person, draw = self.list[number]
        return self.persons[person], draw

    def _path(self, number: int) -> Path:
        person, draw = self.list[number]
        return self.folder / f"{person}-{draw}.safetensors"


def make(model: RetargetModel, corpus: Corpus, clips: Sequence[Entry], draw: int, options: TaskOptions) -> list[Group]:
    """Draw one task of a person. On the CPU."""
    rng = np.random.default_rng([options.seed, draw, int(hashlib.sha256(clips[0].person.encode()).hexdigest()[:8], 16)])
    wanted = int(rng.choice(options.frames))
    chosen = clips[int(rng.integers(len(clips)))]
    clip = corpus.clip(chosen.clip)
    # One frame at least is left to learn from.
    known = rng.permutation(len(clip))[: min(wanted, len(clip) - 1)].tolist()
    gathered = clip.gathered(known)
    stored = arrays(gathered)
    if options.stage == "meta":
        return Lessons(model, stored, gathered, options.side, _CPU, seed=draw, validate=False).pairs
    identity = model.encode(references(stored))
    others = [(entry, i) for entry in clips if entry.size == chosen.size for i in range(entry.frames)
              if (entry.clip, i) not in {(chosen.clip, k) for k in known}]  # fmt: skip
    groups = []
    for n in rng.permutation(len(others))[: options.targets].tolist():
        entry, i = others[n]
        other = corpus.clip(entry.clip)
        person = identity if entry.clip == chosen.clip else model.before(identity, pixels(other.plate.image)[None])
        groups.append([_pair(model, other, i, person)])
    return groups


def _pair(model: RetargetModel, clip: Clip, i: int, identity: Any) -> Batch:
    mattes = clip.mattes if clip.exact is None else clip.exact
    truth = Frame(pixels(clip.pictures[i])[None], torch.from_numpy(mattes[i].copy())[None, None])
    width, height = clip.track.size
    condition = model.condition(poses(clip.track.select([i])), (height, width))
    condition, identity, truth = model.ahead(condition, identity, truth)
    return Batch(condition, identity, None, truth)


_CPU = Compute(torch.device("cpu"), torch.float32)


def _made(
    folder: Path, clips: Sequence[Entry], draw: int, name: str, config: dict[str, Any], options: TaskOptions, path: Path
) -> None:
    _keep(path, make(build(name, config), Corpus(folder), clips, draw, options))


def _keep(path: Path, groups: Sequence[Group]) -> None:
    """Write a task: every tensor as bytes. What is in -1..1 or 0..1 loses what no picture shows."""
    tensors = {
        f"{g}.{v}.{key}": ((t + (low := float(key in _SIGNED))) * (255 / (1 + low))).round().clamp(0, 255).byte()
        for g, group in enumerate(groups)
        for v, batch in enumerate(group)
        for key, t in _fields(batch).items()
    }  # fmt: skip
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: t.contiguous() for k, t in tensors.items()}, part, {"groups": json.dumps([len(g) for g in groups])}
        )
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error}.", "Free some space, or use another folder.") from error


_SIGNED: Final = ("truth.rgb",)


def _fields(batch: Batch) -> dict[str, torch.Tensor]:
    assert batch.truth.matte is not None
    own = {f"condition.{k}": t for k, t in batch.condition._asdict().items()}
    return own | {"truth.rgb": batch.truth.rgb, "truth.matte": batch.truth.matte}


def _unpacked(file: Any, prefix: str, kind: Any) -> Batch:
    def tensor(key: str) -> torch.Tensor:
        low = float(key in _SIGNED)
        t: torch.Tensor = file.get_tensor(prefix + key).float() * ((1 + low) / 255) - low
        return t

    condition = kind(**{k: tensor(f"condition.{k}") for k in kind._fields})
    return Batch(condition, None, None, Frame(tensor("truth.rgb"), tensor("truth.matte")))
