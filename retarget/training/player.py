"""One side of the game between a model and its critics: parameters, optimiser, gradient scaler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Share = Callable[[Sequence[Tensor]], None]
"""Replaces tensors by their means over all processes, in place."""


class Compute(Protocol):
    """Where to compute and how precisely."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def autocast(self) -> AbstractContextManager[Any]: ...

    def scaler(self) -> torch.amp.GradScaler: ...


class Player:
    """What one side moves, and how.

    Args:
        parameters: what the optimiser moves; may be empty.
        module: whose buffers move, too.
        betas: Adam's.
        clip: largest norm of the gradient.
        share: called with the gradients before each step: several processes average theirs.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        module: nn.Module,
        compute: Compute,
        *,
        betas: tuple[float, float],
        clip: float,
        share: Share | None = None,
    ) -> None:
        self.parameters = list(parameters)
        own = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        buffers = [t for name, t in module.state_dict(keep_vars=True).items() if name not in own]
        self.moving: list[Tensor] = [*self.parameters, *buffers]
        self.clip, self.share = clip, share
        self.scaler = compute.scaler()
        # Adam takes no empty list.
        self.optimiser = torch.optim.Adam(self.parameters or [torch.zeros(0)], betas=betas)

    def collect(self, losses: Iterable[Tensor]) -> Tensor:
        """New gradients, of the sum of `losses`: each is gone before the next one is asked for. Returns their sum."""
        self.optimiser.zero_grad()
        total: Tensor | None = None
        for loss in losses:
            total = loss.detach() if total is None else total + loss.detach()
            if loss.isfinite() or self.share:
                torch.autograd.backward(self.scaler.scale(loss))
        assert total is not None
        return total

    def descend(self, loss: Tensor, rate: float) -> bool:
        """One step down the gradients that are there, `loss` being what `collect` returned.

        False when it had to be discarded because the loss or its gradient is not finite. As long as the scaler can
        lower its scale, an infinite gradient is its business: it skips the step.
        """
        if not loss.isfinite() and not self.share:
            self.optimiser.zero_grad()
            return False
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.share:
            # Before anything is judged, so that what is not finite for one process is so for all of them.
            spoilt = torch.where(loss.isfinite(), 0.0, torch.nan)
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
            self.share([g.add_(spoilt.to(g)) for g in grads])
        self.scaler.unscale_(self.optimiser)
        finite = bool(nn.utils.clip_grad_norm_(self.parameters, self.clip).isfinite())
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimiser)
            self.scaler.update()
        self.optimiser.zero_grad()
        return finite or (self.scaler.is_enabled() and self.scaler.get_scale() >= 1)

    def forget(self) -> None:
        """Without what Adam remembers of earlier steps."""
        self.optimiser.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """What moves and what Adam remembers, by flat names."""
        state = self.optimiser.state_dict()["state"]
        adam = {f"adam.{i}.{name}": t for i, values in state.items() for name, t in values.items()}
        return {f"moving.{i}": t for i, t in enumerate(self.moving)} | adam

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take back `tensors` and, as "scaler.NAME", the numbers of the scaler."""
        for i, t in enumerate(self.moving):
            t.data.copy_(saved[f"moving.{i}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                like = self.parameters[int(index)]
                # Strides as before: the same sums in the same order.
                t = torch.empty_like(like).copy_(value) if value.shape == like.shape else value.clone()
                state.setdefault(int(index), {})[name] = t
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})
        scaler = {k.removeprefix("scaler."): v for k, v in saved.items() if k.startswith("scaler.")}
        if scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Without gradients for `parameters` inside."""
    learning = [p for p in parameters if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
