"""The only optimiser loop. It names no model: everything goes through the interface of `models.base`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..device import Ladder
from ..models.base import Batch, Frame, Objective, RetargetModel, divided, frame_count, rollout, stacked
from .player import Compute, Player, Share, frozen


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    steps           T: optimiser steps of the generator; the critics make theirs after each.
    rate            Adam's learning rate (MetaPix §3: 0.0002).
    batch           pairs per step, for whoever makes the batches (MetaPix §3: 8; fewer pictures are repeated).
    decay           share of the steps, the last ones, in which the rate falls linearly towards 0. MetaPix §3 follows
                    Pix2PixHD: constant first, then a decay of the same length, so that half of the budget T decays.
    betas           Adam's.
    clip            largest norm of the gradient; larger ones are scaled down to it.
    seed            of torch's random numbers.
    validate_every  steps between validations; step 0 and the last one are always validated.
    patience        discarded steps in a row after which the fit stops.
    """

    steps: int = 200
    rate: float = 2e-4
    batch: int = 8
    decay: float = 0.5
    betas: tuple[float, float] = (0.5, 0.999)
    clip: float = 5.0
    seed: int = 0
    validate_every: int = 20
    patience: int = 5


@dataclass(frozen=True)
class FitResult:
    """How it went. The model holds the weights of `best_step`.

    steps        steps made, discarded ones included.
    best_step    the step with the lowest validation score, 0 being the start; the last step without validation.
    first_score  validation score at the start; None without validation, or when it was not finite.
    best_score   validation score at `best_step`; None likewise.
    notes        sentences about what went wrong on the way and what was done about it.
    """

    steps: int
    best_step: int
    first_score: float | None
    best_score: float | None
    notes: tuple[str, ...]


def rate_at(step: int, options: FitOptions) -> float:
    """The learning rate of a step, counted from 0: constant, then linear towards the 0 of one step past the end."""
    falling = round(options.decay * options.steps)
    left = options.steps - step
    return options.rate * min(1.0, left / (falling + 1))


class FitState:
    """Where a fit stands: everything that is needed to go on as if it had never been interrupted.

    Only what moves is kept: the fitted parameters (by their order), buffers, critics, optimisers, random numbers. The
    other weights of the model must be the same when it is resumed.
    """

    def __init__(
        self,
        model: RetargetModel,
        objective: Objective,
        parameters: Iterable[nn.Parameter],
        compute: Compute,
        options: FitOptions,
        share: Share | None = None,
    ) -> None:
        self.model, self.objective, self.compute, self.options = model, objective, compute, options
        how: dict[str, Any] = {"betas": options.betas, "clip": options.clip, "share": share}
        self.generator = Player(parameters, model, compute, **how)
        self.critics = Player(objective.critic_parameters(), objective, compute, **how)
        self.players = {"generator": self.generator, "critics": self.critics}
        self.step = 0
        self.failures = 0
        self.fp32 = False
        self.caution = 1.0
        sizes = [2**n for n in range(max(1, options.batch).bit_length())]
        self.memory = Ladder("learning", {f"the batch in {n} pieces": n for n in sizes})
        self.notes = self.memory.said
        self.best: list[Tensor] = []
        self.best_step = 0
        self.first_score: float | None = None
        self.best_score: float | None = None

    @property
    def over(self) -> bool:
        """Whether no step is left, or none succeeds any more."""
        return self.step >= self.options.steps or self.failures >= self.options.patience

    def state_dict(self) -> dict[str, Any]:
        """Flat: contiguous CPU tensors of their own (fit for safetensors), and numbers and sentences (fit for JSON)."""
        tensors: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
        if self.compute.device.type != "cpu":
            tensors["rng.device"] = torch.get_device_module(self.compute.device).get_rng_state()
        tensors |= {f"best.{i}": t for i, t in enumerate(self.best)}
        numbers: dict[str, Any] = {}
        for name, player in self.players.items():
            tensors |= {f"{name}.{key}": t for key, t in player.tensors().items()}
            numbers |= {f"{name}.scaler.{key}": n for key, n in player.scaler.state_dict().items()}
        numbers |= {name: getattr(self, name) for name in self._NUMBERS} | {"pieces": self.memory.place}
        copies = {k: t.detach().cpu().clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
        return copies | numbers | {"notes": list(self.notes)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go back to a saved state, random numbers included."""
        for name in self._NUMBERS:
            setattr(self, name, saved.get(name, getattr(self, name)))
        self.memory.place = saved.get("pieces", 0)
        self.notes[:] = saved["notes"]
        if self.fp32:
            self.use_fp32()
        for name, player in self.players.items():
            player.load({k.removeprefix(f"{name}."): v for k, v in saved.items() if k.startswith(f"{name}.")})
        if "best.0" in saved:
            self.best = [torch.empty_like(t).copy_(saved[f"best.{i}"]) for i, t in enumerate(self.generator.moving)]
        torch.set_rng_state(saved["rng.cpu"])
        if "rng.device" in saved and self.compute.device.type != "cpu":
            torch.get_device_module(self.compute.device).set_rng_state(saved["rng.device"])

    _NUMBERS = ("step", "failures", "fp32", "caution", "best_step", "first_score", "best_score")

    def use_fp32(self) -> None:
        """From now on without autocast and without a gradient scaler."""
        self.fp32 = True
        for player in self.players.values():
            player.scaler = torch.amp.GradScaler(self.compute.device.type, enabled=False)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.fp32 else self.compute.autocast()

    def score(self, validate: Callable[[], float]) -> float:
        """Validate the weights of now, and remember them when they are the best."""
        self.model.eval()
        with torch.no_grad():
            score = float(validate())
        self.model.train()
        known = score if math.isfinite(score) else None
        if self.step == 0:
            self.first_score = known
        # The weights of the start are kept even when their score says nothing.
        if not self.best or score < (math.inf if self.best_score is None else self.best_score):
            self.best = [t.detach().clone() for t in self.generator.moving]
            self.best_step, self.best_score = self.step, known
        return score

    def advance(self, batch: Batch) -> dict[str, float]:
        """One step of the generator and `Objective.critic_steps` of the critics; the loss's terms.

        Where memory is short, the batch goes through in pieces whose gradients are added up: the same step, but for
        rounding and for terms that look at the whole batch (a critic's mean).
        """
        rate = self.caution * rate_at(self.step, self.options)
        self.step += 1
        count = len(batch.truth.rgb)
        drawn: list[Frame] = []
        terms: dict[str, Tensor] = {}
        against: dict[str, Tensor] = {}

        def draw(pieces: int) -> Iterator[Tensor]:
            drawn.clear()
            terms.clear()
            for part in divided(batch, count, pieces):
                with self.autocast():
                    frame = rollout(self.model, part.condition, part.identity, part.state, frame_count(part.truth))
                    found = self.objective.generator_loss(frame, part.truth, part.condition)
                drawn.append(frame.detached())
                yield _weighted(found, len(part.truth.rgb) / count, terms)

        def judge(pieces: int) -> Iterator[Tensor]:
            against.clear()
            parts, frames = (divided(x, count, pieces) for x in (batch, stacked(drawn)))
            for part, frame in zip(parts, frames, strict=True):
                with self.autocast():
                    found = self.objective.critic_loss(frame, part.truth, part.condition)
                yield _weighted(found, len(part.truth.rgb) / count, against)

        with frozen(self.critics.parameters):
            healthy, loss = self._descend(self.generator, draw, rate)
        for _ in range(self.objective.critic_steps if self.critics.parameters else 0):
            if healthy:
                healthy, _ = self._descend(self.critics, judge, self.objective.critic_rate * rate)
        self._judge(healthy)
        values = torch.stack([loss, *terms.values(), *against.values()]).tolist()
        return dict(zip(["loss", *terms, *against], values, strict=True)) | {"rate": rate}

    def _descend(self, player: Player, losses: Callable[[int], Iterable[Tensor]], rate: float) -> tuple[bool, Tensor]:
        """A step of one side; again in float32 when it is not finite in less."""
        loss = self.memory.run(lambda pieces: player.collect(losses(pieces)))
        healthy = player.descend(loss, rate)
        if not healthy and not self.fp32 and self.compute.dtype != torch.float32:
            self.notes.append(f"Step {self.step} was not finite: it was made again, and the rest, in fp32.")
            self.use_fp32()
            return self._descend(player, losses, rate)
        return healthy, loss

    def _judge(self, healthy: bool) -> None:
        """A step that is not finite moves nothing. When the next one is not either, it is not the batch's fault: then
        back to the best step so far, at half the rate."""
        if healthy:
            self.failures = 0
            return
        self.failures += 1
        note = f"Step {self.step}: the loss or its gradient was not finite; it was discarded"
        if self.failures > 1:
            self.caution /= 2
            note += ", going on at half the learning rate"
            if self.best:
                self.restore_best()
                note += f" from step {self.best_step}"
            for player in self.players.values():
                player.forget()
        self.notes.append(f"{note}.")

    def restore_best(self) -> None:
        """Put the weights of the best step back, if validation chose one."""
        for now, best in zip(self.generator.moving, self.best, strict=False):
            now.data.copy_(best)


def fit(
    model: RetargetModel,
    objective: Objective,
    batches: Iterator[Batch],
    *,
    parameters: Iterable[nn.Parameter],
    compute: Compute,
    options: FitOptions = FitOptions(),
    validate: Callable[[], float] | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint: Callable[[FitState], None] | None = None,
    resume: Mapping[str, Any] | None = None,
    share: Share | None = None,
) -> FitResult:
    """Fit `parameters` of a model to batches; the model never ends worse than it began.

    The model and the objective are moved to the device, in channels_last. Same seed, same machine: same result. A step
    whose loss or gradient is not finite is made again in fp32, and the rest too; if it is not finite there either, it
    is discarded. After two in a row it goes on from the best step so far at half the rate, after `options.patience` it
    stops. Batches that do not fit into memory are divided. torch's global random state is as before afterwards.

    Args:
        batches: on the device; asked for one batch just before each step, so that they may use torch's random numbers.
            When they end before `options.steps`, so does the fit.
        parameters: what moves, usually `model.tunable(identity)`.
        validate: scores the model of now (lower is better; called in eval mode without gradients). The weights of the
            best step are kept, those before the first step included. Without it the last ones are kept.
        on_step: told after each step its number, from 1, and its figures: loss and its terms, rate, score if validated.
        checkpoint: called after each step with the state, whose `state_dict()` can be given as `resume` later.
        resume: go on from there. The batches must go on, too.
        share: makes gradients the means over all processes; each process has its own batches then.
    """
    for module in (model, objective):
        module.to(compute.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = FitState(model, objective, parameters, compute, options, share)
    chosen = {id(p) for p in state.generator.parameters}
    was_training = model.training
    with (
        torch.random.fork_rng([compute.device] if compute.device.type == "cuda" else []),
        frozen(p for p in model.parameters() if id(p) not in chosen),
    ):
        model.train()
        if resume is None:
            torch.manual_seed(options.seed)
            if validate:
                state.score(validate)
        else:
            state.load_state_dict(resume)
        scored = 0
        while not state.over and (batch := next(batches, None)) is not None:
            figures = state.advance(batch)
            if validate and (state.over or state.step % options.validate_every == 0):
                figures["score"], scored = state.score(validate), state.step
            if on_step:
                on_step(state.step, figures)
            if checkpoint:
                checkpoint(state)
        if state.failures >= options.patience:
            state.notes.append(f"Stopped at step {state.step} of {options.steps}: no step was finite any more.")
        if validate and scored < state.step:
            state.score(validate)
    model.train(was_training)
    if not validate:
        state.best_step = state.step
    state.restore_best()
    return FitResult(state.step, state.best_step, state.first_score, state.best_score, tuple(state.notes))


def _weighted(found: Mapping[str, Tensor], share: float, terms: dict[str, Tensor]) -> Tensor:
    """The sum of a piece's terms times its share of the batch; adds each term to `terms`."""
    weighted = {name: share * t.float() for name, t in found.items()}
    for name, t in weighted.items():
        terms[name] = terms[name] + t.detach() if name in terms else t.detach()
    return torch.stack([*weighted.values()]).sum()
