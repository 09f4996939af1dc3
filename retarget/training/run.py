"""A training run's folder: options, log, checkpoints, curves and samples.

options.json            what was asked for; the same command run again goes on, another one is refused
log.jsonl               one line per step
checkpoint.safetensors  everything that the run needs to go on exactly
weights.safetensors     the result so far, fp16, for `retarget personalize --init` and `retarget train --init`
curves.png, samples.png
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from .. import __version__, checkpoint, folders, metrics, plots, weights
from ..device import Compute
from ..errors import StorageError, UsageError, WeightsError
from ..folders import replace_file
from ..lessons import as_image, drawn
from ..models.base import Batch, RetargetModel, frame_count, last

CHECKPOINT, WEIGHTS, LOG, OPTIONS = "checkpoint.safetensors", "weights.safetensors", "log.jsonl", "options.json"
EVERY: Final = 120.0
"""Seconds between checkpoints."""
PATIENCE: Final = 10.0
"""Seconds to wait for another process that trains into the same folder."""


@dataclass(frozen=True)
class Trained:
    """A run's result so far.

    weights   the file.
    steps     made in all, over all calls.
    finished  whether all that was asked for was made.
    figures   of the last validation.
    """

    weights: Path
    steps: int
    finished: bool
    figures: dict[str, float]


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """`folder`, made if it is missing, is this process's alone.

    Raises StorageError when it cannot be written, or another process trains into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}.", "Give --out another folder.") from error
    with folders.locked(folder / "run", f"The run {folder}", patience=PATIENCE):
        folders.sweep(folder, older=0)
        yield


class Run:
    """The folder of a run. Only the process with rank 0 has one that writes.

    Raises UsageError when the folder holds a run with other options, StorageError when it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        minutes: float | None,
        *,
        restart: bool = False,
        writes: bool = True,
    ) -> None:
        self.folder, self.writes = folder, writes
        self.began = self.saved = time.monotonic()
        self.minutes = minutes
        said = json.loads(json.dumps(dict(options)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if restart and writes:
                # The options last: what they do not belong to any more must not outlive them.
                for name in (CHECKPOINT, LOG, OPTIONS):
                    (folder / name).unlink(missing_ok=True)
            known = folder / OPTIONS
            if known.exists():
                before = _parsed(known, known.read_text())
                different = sorted(k for k in {*before, *said} - {"version"} if before.get(k) != said.get(k))
                if different:
                    raise UsageError(
                        f"{folder} holds a run with other options ({', '.join(different)}).",
                        "Use another --out, or --restart.",
                    )
            elif writes:
                replace_file(known, json.dumps({"version": __version__} | said, indent=1).encode())
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be written: {error.strerror}.", "Give --out another folder."
            ) from error
        self.lines = [_parsed(folder / LOG, line) for line in _complete_lines(folder / LOG)]

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.minutes is not None and time.monotonic() - self.began > 60 * self.minutes

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self.saved > EVERY

    def resume(self) -> dict[str, Any] | None:
        """What the last checkpoint held, or None. The log is cut back to it."""
        path = self.folder / CHECKPOINT
        try:
            state = checkpoint.load(path)
        except ValueError as error:
            raise WeightsError(f"{path} is damaged.", "Use --restart.") from error
        self.lines = [line for line in self.lines if state and line["step"] <= state["step"]]
        if self.writes:
            replace_file(self.folder / LOG, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        return state

    def log(self, step: int, figures: Mapping[str, float], notes: Collection[str] = ()) -> None:
        """A line with the figures of a step, and sentences about what went wrong in it."""
        line: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - self.began, 2)} | {
            k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in figures.items()
        }
        if notes:
            line["notes"] = sorted(notes)
        self.lines.append(line)
        if self.writes:
            with (self.folder / LOG).open("a") as file:
                file.write(json.dumps(line) + "\n")

    def save(
        self, state: Mapping[str, Any], result: Mapping[str, Tensor], name: str, config: Mapping[str, Any]
    ) -> None:
        """Write the weights, and a checkpoint: last, so that whatever it stands for is there."""
        if self.writes:
            self.keep(result, name, config)
            checkpoint.save(self.folder / CHECKPOINT, state)
        self.saved = time.monotonic()

    def keep(self, result: Mapping[str, Tensor], name: str, config: Mapping[str, Any]) -> None:
        """Write the weights."""
        if not self.writes:
            return
        try:
            weights.save_file(self.folder / WEIGHTS, result, name, config)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{self.folder} cannot be written: {error}.", "Free some space.") from error

    def draw(self, models: Mapping[str, RetargetModel], pairs: Sequence[Batch], compute: Compute) -> None:
        """The curves of the log, and a sheet of samples: what each of the models makes of each pair, and the truth."""
        self.curves()
        if self.writes:
            rows = [[*(painted(m, p, compute) for m in models.values()), as_image(last(p.truth).rgb[0])] for p in pairs]
            plots.sheet(self.folder / "samples.png", rows, columns=(*models, "truth"))

    def curves(self) -> None:
        """The curves of the log."""
        if not self.writes:
            return
        panels: dict[str, dict[str, tuple[list[float], list[float | None]]]] = {}
        for line in self.lines:
            for key, value in line.items():
                if key not in ("step", "seconds", "notes"):
                    title, _, label = key.partition(".")
                    xs, ys = panels.setdefault(title, {}).setdefault(label or title, ([], []))
                    xs.append(line["step"])
                    ys.append(value)
        if panels:
            plots.curves(self.folder / "curves.png", panels, x_label="step")


def painted(model: RetargetModel, batch: Batch, compute: Compute) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What the model makes of the first pair of a batch; of a sequence, its last frame."""
    here = on(batch, compute.device)
    return as_image(last(drawn(model, here.condition, here.identity, compute, frame_count(here.truth))).rgb[0])


def on(batch: Any, device: torch.device) -> Any:
    """A batch, or anything of tensors in tuples, on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(on(x, device) for x in batch))
    return batch


def measure(model: RetargetModel, pairs: Sequence[Batch], compute: Compute) -> dict[str, float]:
    """Figures of the person, means over pairs: PSNR in dB, SSIM, and sharpness against the truth's; NaN where no pair
    tells."""
    was_training = model.training
    model.eval()
    found = []
    for batch in pairs:
        truth = last(batch.truth)
        shown, true = painted(model, batch, compute), as_image(truth.rgb[0])
        assert truth.matte is not None
        inside = truth.matte[0, 0].numpy() > 0.5
        found.append(
            (
                metrics.foreground_psnr(shown, true, inside),
                metrics.foreground_ssim(shown, true, inside),
                metrics.foreground_sharpness(shown, true, inside),
            )
        )
    model.train(was_training)
    told = [[v for v in values if math.isfinite(v)] for values in zip(*found, strict=True)]
    means = [sum(values) / len(values) if values else math.nan for values in told]
    return dict(zip(("fg_psnr", "fg_ssim", "sharpness"), means, strict=True))


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged.", "Use --restart, or another --out.") from error
