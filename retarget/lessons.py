"""What fine-tuning learns from: leave-one-out pairs of an avatar's own references, and how it is measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from . import weights
from .labels import LabelTrack
from .metrics import foreground_psnr, foreground_ssim
from .models.base import Batch, Frame, Objective, RetargetModel, rollout, stacked
from .models.losses import VGG19, matte_loss, pyramid_loss
from .models.parsing import Parser
from .references import Gathered, pixels, references, seen_in, working_size
from .training.fit import FitOptions, FitResult, FitState, fit
from .training.player import Compute
from .types import PoseTrack

JITTER = 0.004
"""Noise of the poses while training, as a fraction of the picture's short side: about the estimator's own."""
LOSS = {"fg_psnr": 0.0, "fg_ssim": 0.001}
"""How much of a figure a step may lose on the picture left out for the other's sake."""
TRUTHS = 8
"""The most references that serve as truths; all are known to the others."""
VARIANTS = 3
"""How often each pair is drawn, with other noise."""


class Lessons:
    """Pairs at `side` pixels: parts from the references but one, truth is that one.

    With K ≥ 3 one reference from the middle of the order of choice may be left out for validation and is then never a
    truth to learn from; with K = 2 each side of the pair serves once; a single picture learns from warped copies of
    itself. What no parameter changes is drawn once (`RetargetModel.ahead`).

    first      figures of the first validation, below which no later one may fall; to be kept with a checkpoint.
    identity   of all references at training size (what `tunable` is asked about).
    left_out   whether validation shows a picture that its identity does not know.
    pairs      for each truth, the same pair with differently trembling poses, the first without; and where a model
               draws from fewer references than the others are (`RetargetModel.sources`), from each choice of them.
    """

    def __init__(
        self,
        model: RetargetModel,
        stored: Mapping[str, Any],
        gathered: Gathered,
        side: int,
        compute: Compute,
        *,
        seed: int,
        validate: bool = True,
    ) -> None:
        self.model, self.compute, self.seed = model, compute, seed
        self.first: dict[str, float] | None = None
        self.size = working_size(*gathered.size, side)
        count = len(gathered.frames)
        self.identity = self._encode(references(stored, size=self.size))
        self.left_out = count > 1
        windows = [gathered.window(k).scaled(self.size) for k in range(count)]
        truths = [self._truth(gathered, k) for k in range(count)]
        if count == 1:
            identities = [[self._encode(self._warped(stored, gathered, n))] for n in range(3)]
            windows, truths = windows * 3, truths * 3
            validation = 2
        else:
            # The first ones chosen are the most different; more truths than that would only take longer.
            shown = range(min(count, TRUTHS))
            windows, truths = windows[: len(shown)], truths[: len(shown)]
            others = [[j for j in range(count) if j != k] for k in shown]
            identities = [
                [self._encode(references(stored, known, self.size)) for known in _choices(o, model.sources)]
                for o in others
            ]
            # The first chosen is the most typical, the last the most particular: one between.
            validation = len(shown) - 1 if count < 3 else len(shown) // 2
        rng = np.random.default_rng(seed)
        self.pairs = [
            [
                self._pair(windows[k], known[n % len(known)], truths[k], rng if n >= len(known) else None)
                for n in range(max(VARIANTS, len(known)))
            ]
            for k, known in enumerate(identities)
        ]
        self.held_out = self.pairs.pop(validation)[0] if validate else self.pairs[0][0]

    def of(self, model: RetargetModel) -> Lessons:
        """The same pairs for another model with the weights that `model` had when they were made."""
        other = copy(self)
        other.model, other.first = model, None
        return other

    def _encode(self, known: Any) -> Any:
        return self.model.encode(known.to(self.compute.device))

    def _pair(
        self, window: PoseTrack | LabelTrack, identity: Any, truth: Frame, noise: np.random.Generator | None
    ) -> Batch:
        if noise is not None and isinstance(window, PoseTrack):
            sigma = JITTER * min(self.size)
            body = window.body.copy()
            body[..., :2] += noise.normal(0, sigma, (1, *body.shape[1:2], 2)).astype(np.float32)
            window = replace(window, body=body)
        condition = self.model.condition(seen_in(window).to(self.compute.device), (self.size[1], self.size[0]))
        condition, known, shown = self.model.ahead(condition, identity, truth)
        return Batch(condition, known, None, shown)

    def _truth(self, gathered: Gathered, k: int) -> Frame:
        picture = cv2.resize(gathered.pictures[k], self.size, interpolation=cv2.INTER_AREA)
        mattes = gathered.mattes if gathered.exact is None else gathered.exact
        matte = cv2.resize(mattes[k], self.size, interpolation=cv2.INTER_AREA)
        return Frame(
            pixels(np.asarray(picture, np.uint8))[None].to(self.compute.device),
            torch.from_numpy(np.asarray(matte, np.float32))[None, None].to(self.compute.device),
        )

    def _warped(self, stored: Mapping[str, Any], gathered: Gathered, number: int) -> Any:
        """The only reference, turned, sheared and scaled a little, as if it were another picture."""
        rng = np.random.default_rng([self.seed, number])
        width, height = gathered.size
        linear = np.eye(2) + rng.normal(0, 0.05, (2, 2))
        centre = np.array([width, height]) / 2
        matrix = np.concatenate([linear, (centre - linear @ centre)[:, None]], 1)
        frame = cv2.warpAffine(stored["frames"][0], matrix, gathered.size, borderMode=cv2.BORDER_REPLICATE)
        matte = cv2.warpAffine(stored["mattes"][0], matrix, gathered.size)
        moved = dict(stored) | {"frames": frame[None], "mattes": matte[None]}
        if "labels" in stored:
            maps = cv2.warpAffine(
                stored["labels"][0], matrix, gathered.size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
            )
            return references(moved | {"labels": maps[None]}, size=self.size)
        for key in ("pose_body", "pose_face", "pose_hands"):
            points = np.array(stored[key])
            points[..., :2] = points[..., :2] @ linear.T + matrix[:, 2]
            moved[key] = points.astype(np.float32)
        return references(moved, size=self.size)

    def score(self, objective: Objective, *, unseen: bool = False) -> float:
        """The mean loss of all pairs, for `RetargetModel.settle`; or of the one left out, if the others were learned
        from."""
        learned = [] if unseen and self.left_out else [variants[0] for variants in self.pairs]
        batch = stacked([self.held_out, *learned])
        with torch.inference_mode():
            frame, _ = self.model(batch.condition, batch.identity, None)
            return float(sum(objective.generator_loss(frame, batch.truth, batch.condition).values()))

    def _draw(self) -> tuple[Frame, Frame]:
        with torch.no_grad():
            frame, _ = self.model(self.held_out.condition, self.held_out.identity, None)
        return frame, self.held_out.truth

    def validate(self) -> float:
        """How far the picture left out is from being reconstructed; lower is better.

        By PSNR and SSIM of the person, a hundredth of SSIM being worth a fifth of a decibel. Of models that move
        the person's own pixels (`RetargetModel.moves_pixels`), weights that lose either against the first call count as
        infinitely far. A person who cannot be measured is judged by `pyramid_loss`.
        """
        frame, truth = self._draw()
        figures = self._figures(frame, truth)
        self.first = self.first or figures
        if not all(map(math.isfinite, figures.values())):
            assert frame.matte is not None
            assert truth.matte is not None
            return float(pyramid_loss(frame.rgb, truth.rgb) + matte_loss(frame.matte, truth.matte))
        if self.model.moves_pixels and any(figures[k] < self.first[k] - LOSS[k] for k in figures):
            return math.inf
        return -figures["fg_psnr"] - 20 * figures["fg_ssim"]

    def measure(self) -> dict[str, float]:
        """PSNR and SSIM of the person in the picture left out."""
        training = self.model.training
        self.model.to(self.compute.device).eval()
        figures = self._figures(*self._draw())
        self.model.train(training)
        return figures

    @staticmethod
    def _figures(frame: Frame, truth: Frame) -> dict[str, float]:
        assert truth.matte is not None
        shown, true = (as_image(f.rgb[0]) for f in (frame, truth))
        inside = truth.matte[0, 0].cpu().numpy() > 0.5
        return {"fg_psnr": foreground_psnr(shown, true, inside), "fg_ssim": foreground_ssim(shown, true, inside)}


def _choices(others: list[int], size: int | None) -> list[list[int]]:
    """What a truth may be drawn from: all the others, then every `size` of them, if these are fewer."""
    fewer = itertools.combinations(others, size) if size and size < len(others) else ()
    return [others, *map(list, fewer)]


def features(model: RetargetModel) -> dict[str, Any]:
    """The trained networks that the model's objective takes (`RetargetModel.FEATURES`), as far as they are here."""
    made = {
        "vgg": ("vgg19", lambda tensors, _: VGG19(tensors)),
        "parser": ("parsing", Parser.loaded),
    }
    here = {key: made[key] for key in model.FEATURES if weights.known(made[key][0]) and weights.at_hand(made[key][0])}
    return {key: make(*weights.load(name)) for key, (name, make) in here.items()}


def batches(pairs: Sequence[Sequence[Batch]], size: int, seed: int, first: int = 0) -> Iterator[Batch]:
    """Endless batches of `size` pairs: all truths in turn, repeated when they are fewer (MetaPix §3).

    Args:
        pairs: for each truth, the pair in several variants, of which one is drawn each time.
        first: how many batches to leave out, because they were learned from before an interruption.
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for number in itertools.count():
        chosen: list[Batch] = []
        while len(chosen) < size:
            order = order or rng.permutation(len(pairs)).tolist()
            variants = pairs[order.pop()]
            chosen.append(variants[rng.integers(len(variants))])
        if number >= first:
            yield stacked(chosen)


def adapt(
    model: RetargetModel,
    objective: Objective,
    pairs: Sequence[Sequence[Batch]],
    options: FitOptions,
    compute: Compute,
    *,
    parameters: Iterable[nn.Parameter],
    validate: Callable[[], float] | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint: Callable[[FitState], None] | None = None,
    resume: Mapping[str, Any] | None = None,
) -> FitResult:
    """T steps on a person's pairs: what `personalize` runs, and each task of Reptile (MetaPix, Algorithm 1).

    `checkpoint` and `resume` are `fit`'s; whoever validates by `Lessons.validate` keeps `Lessons.first`, too.
    """
    first = 0 if resume is None else int(resume["step"])
    return fit(
        model, objective, batches(pairs, options.batch, options.seed, first), parameters=parameters, compute=compute,
        options=options, validate=validate, on_step=on_step, checkpoint=checkpoint, resume=resume,
    )  # fmt: skip


@torch.inference_mode()
def drawn(model: RetargetModel, condition: Any, identity: Any, compute: Compute, count: int | None = None) -> Frame:
    """A frame without a past, or `count` in a row (`rollout`); in float32 where it is not finite in less."""
    with compute.autocast():
        frame = rollout(model, condition, identity, None, count)
    if compute.dtype != torch.float32 and not frame.rgb.isfinite().all():
        frame = rollout(model, condition, identity, None, count)
    return frame


def as_image(rgb: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(3, H, W) in -1..1 → (H, W, 3) uint8."""
    out: np.ndarray[Any, np.dtype[np.uint8]] = (
        ((rgb.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    )
    return out
