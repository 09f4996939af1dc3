"""`retarget train parsing`: the network through which `dance-paper` is judged (Dance Dance Generation, Eq. 7).

    corpus ─ pictures with part labels and joints ─ turned, scaled, mirrored, before green ─ two U-Nets ─ weights

What is found becomes `parsing` in the weights' manifest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .. import parts, plots, weights
from ..device import Compute
from ..errors import InputError, UsageError, WeightsError
from ..lessons import as_image
from ..models.base import Batch, Frame
from ..models.parsing import KEYPOINTS, TEN, Labels, Parsed, Parser, ParsingObjective, ten_parts
from ..skeleton import MIRROR, MIRROR_PART
from ..types import Array, Image, Progress
from .corpus import Clip, Corpus, Split
from .fit import FitOptions, FitState, fit
from .run import Run, Trained, on

if TYPE_CHECKING:
    from ..models.base import RetargetModel
    from .train import TrainOptions

NAME: Final = "parsing"
"""The network's name in files of weights and in the manifest."""
PER_CLIP: Final = 16
"""Frames of each clip that are learned from, evenly spread."""
TURN, SCALE, SHIFT = 20.0, (0.8, 1.6), 0.1
"""How far an example is turned (degrees, to both sides), scaled, and moved (in sides)."""
BEFORE_GREEN: Final = 0.3
"""Share of the examples before the green that the synthesis net paints."""
NEAR: Final = 0.05
"""In sides of the picture: a joint counts as found when it is seen that near to where it is."""
MIRRORED_JOINTS: Final = tuple(KEYPOINTS.index(MIRROR[j]) for j in KEYPOINTS)
GREEN: Final = (0, 255, 0)


@dataclass(frozen=True)
class Example:
    """A picture (H, W, 3) uint8 RGB, its labels (H, W) uint8 (0 to 10) and joints (17, 2) float32 in pixels, or NaN."""

    picture: Image
    labels: npt.NDArray[np.uint8]
    joints: Array


def train_parser(packed: Corpus, run: Run, options: TrainOptions, compute: Compute, progress: Progress) -> Trained:
    """Train the parser on a corpus, through the one optimiser loop; go on where the run stopped.

    Of the options, config is the parser's, and init, steps, minutes, batch, rate, side and seed are what they always
    are. Raises InputError for a corpus without anybody to validate on, UsageError and WeightsError for a network that
    cannot be.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(options.seed)
        reader = _Reader(options)
    shown = examples(packed, "val", progress)
    known = examples(packed, "train", progress)
    rng = np.random.default_rng(options.seed)
    held_out = [batch([e], options.side, None) for e in (shown[i] for i in rng.permutation(len(shown))[:64])]
    kept = run.resume()
    first = int(kept["step"]) if kept else 0
    how = FitOptions(options.steps, options.rate, options.batch, decay=0.5, seed=options.seed)
    figures: dict[str, float] = {}
    every = max(1, min(200, options.steps // 20))
    progress.stage("Training the parser", options.steps)
    if first:
        progress.note(f"Going on at step {first} of {options.steps}.")
        progress.advance(first)
    last: list[FitState] = []

    def batches() -> Iterator[Batch]:
        step = first
        while not run.over:
            drawn = np.random.default_rng([options.seed, step])
            chosen = [known[i] for i in drawn.integers(len(known), size=options.batch)]
            yield on(batch(chosen, options.side, drawn), compute.device)
            step += 1
        for state in last:
            save(state)

    def on_step(step: int, losses: dict[str, float]) -> None:
        line = {k if k == "rate" else f"loss.{k}": v for k, v in losses.items()}
        if step % every == 0 or step == options.steps:
            figures.update(measure(reader.parser, held_out, compute))
            line |= figures
        run.log(step, line)
        progress.advance(loss=losses["loss"])

    def save(state: FitState) -> None:
        run.save(state.state_dict(), reader.parser.state_dict(), NAME, reader.parser.config)
        run.curves()
        if run.writes:
            sheet(run.folder / "samples.png", reader.parser, held_out[:8], compute)

    def checkpoint(state: FitState) -> None:
        last[:] = [state]
        if run.due or state.over:
            save(state)

    done = fit(
        # It draws nothing, but learns like a model: a condition in, a frame out.
        cast("RetargetModel", reader), ParsingObjective(), batches(), parameters=list(reader.parameters()),
        compute=compute, options=how, on_step=on_step, checkpoint=checkpoint, resume=kept,
    )  # fmt: skip
    for note in done.notes:
        progress.warn(note)
    if not last and kept is None:
        run.keep(reader.parser.state_dict(), NAME, reader.parser.config)
    return Trained(run.folder / "weights.safetensors", done.steps, done.steps >= options.steps, figures)


class _Reader(nn.Module):
    """The parser as `fit` calls models."""

    def __init__(self, options: TrainOptions) -> None:
        super().__init__()
        try:
            self.parser = Parser(**dict(options.config))
        except (TypeError, ValueError, RuntimeError) as error:
            said = ", ".join(f"{k}={v}" for k, v in options.config.items())
            raise UsageError(
                f"There is no parser with {said}: {error}.", "Leave --config out, or correct it."
            ) from error
        if options.init is not None:
            tensors, name, config = weights.load_file(Path(options.init))
            if name != NAME or config != self.parser.config:
                raise WeightsError(f"{options.init} holds other weights.", "Use those of a run of train parsing.")
            self.parser.load_state_dict(tensors)

    def forward(self, condition: Tensor, identity: None, state: None) -> tuple[Frame, None]:
        return Frame(condition, None, self.parser(condition)), None


# ------------------------------------------------------------------------------------------------ examples


def examples(packed: Corpus, split: Split, progress: Progress) -> list[Example]:
    """Pictures of a split's persons with what is to be seen in them. Raises InputError when there are none."""
    entries = [entry for clips in packed.persons(split).values() for entry in clips]
    if not entries:
        raise InputError(f"The corpus {packed.folder} has nobody in its split “{split}”.", "Pack more clips.")
    progress.stage(f"Labelling pictures ({split})", len(entries))
    found = []
    for entry in entries:
        clip = packed.clip(entry.clip)
        frames = np.unique(np.linspace(0, len(clip) - 1, PER_CLIP).astype(int)).tolist()
        found += [example(clip, i) for i in frames]
        progress.advance()
    return found


def example(clip: Clip, i: int) -> Example:
    """Labels out of matte and pose: each of the person's pixels belongs to the part that owns most of it."""
    matte = (clip.mattes if clip.exact is None else clip.exact)[i]
    own = ten_parts(parts.part_mattes(parts.skeletons(clip.track.select([i])), matte)[0]).numpy()
    labels = np.where((matte > 0.5) & (own.max(0) > 0), 1 + own.argmax(0), 0).astype(np.uint8)
    body = clip.track.body[i]
    joints = np.where(body[:, 3:] >= 0.2, body[:, :2], np.nan)[list(KEYPOINTS)].astype(np.float32)
    return Example(clip.pictures[i], labels, joints)


def batch(chosen: Sequence[Example], side: int, rng: np.random.Generator | None) -> Batch:
    """Square pictures of `side` pixels with the person in the middle; with `rng`, changed at random."""
    views = [view(e, side, rng) for e in chosen]
    rgb = torch.from_numpy(np.stack([v.picture for v in views])).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(np.stack([v.labels for v in views]).astype(np.int64))
    truth = Frame(
        rgb, (labels > 0).float()[:, None], Labels(torch.from_numpy(np.stack([v.joints for v in views])), labels)
    )
    return Batch(rgb, None, None, truth)


def view(e: Example, side: int, rng: np.random.Generator | None) -> Example:
    """The square around the person; with `rng` turned, scaled, moved, mirrored, in other colours, or before green."""
    ys, xs = np.nonzero(e.labels)
    low, high = (
        (np.array([f(xs), f(ys)]) for f in (np.min, np.max))
        if len(xs)
        else (np.zeros(2), np.array(e.labels.shape[::-1]))
    )
    extent = 1.15 * max(float((high - low).max()), 8.0)
    turn, scale, shift = 0.0, 1.0, np.zeros(2)
    if rng is not None:
        turn, scale, shift = rng.uniform(-TURN, TURN), rng.uniform(*SCALE), rng.uniform(-SHIFT, SHIFT, 2)
    linear = cv2.getRotationMatrix2D((0, 0), turn, side / (extent * scale))[:, :2]
    matrix = np.concatenate([linear, ((0.5 + shift) * side - linear @ ((low + high) / 2))[:, None]], 1)
    # OpenCV's pixels have their centres at whole numbers, ours at halves.
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
    picture = cv2.warpAffine(e.picture, moved, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    labels = cv2.warpAffine(e.labels, moved, (side, side), flags=cv2.INTER_NEAREST)
    joints = e.joints @ matrix[:, :2].T + matrix[:, 2]
    joints[((joints < 0) | (joints >= side)).any(1)] = np.nan
    if rng is not None:
        if rng.random() < 0.5:
            picture, labels = picture[:, ::-1], labels[:, ::-1]
            joints = (joints * (-1, 1) + (side, 0))[list(MIRRORED_JOINTS)]
            labels = np.array([0, *(1 + p for p in MIRROR_PART[:TEN])], np.uint8)[labels]
        if rng.random() < BEFORE_GREEN:
            picture = np.where(labels[..., None] > 0, picture, np.array(GREEN, np.uint8))
        else:
            picture = picture[..., rng.permutation(3)] * rng.uniform(0.5, 1, 3)
    return Example(np.ascontiguousarray(picture, np.uint8), np.ascontiguousarray(labels), joints.astype(np.float32))


# ------------------------------------------------------------------------------------------------ figures


def measure(parser: Parser, held_out: Sequence[Batch], compute: Compute) -> dict[str, float]:
    """`parts_iou`: intersection over union of the parts' pixels, mean over the ten parts; `joints_found`: share of the
    joints seen within `NEAR` of where they are."""
    both, either, near = np.zeros(TEN), np.zeros(TEN), []
    for b in held_out:
        joints, labels = seen(parser, b.condition, compute)
        true = b.truth.extra.parts.numpy()
        for p in range(TEN):
            both[p] += ((labels == 1 + p) & (true == 1 + p)).sum()
            either[p] += ((labels == 1 + p) | (true == 1 + p)).sum()
        apart = np.linalg.norm(joints - b.truth.extra.joints.numpy(), axis=-1)
        near += (apart[np.isfinite(apart)] < NEAR * b.condition.shape[3]).tolist()
    shown = either > 0
    return {
        "parts_iou": float((both[shown] / either[shown]).mean()) if shown.any() else math.nan,
        "joints_found": float(np.mean(near)) if near else math.nan,
    }


def seen(parser: Parser, rgb: Tensor, compute: Compute) -> tuple[Array, npt.NDArray[np.int64]]:
    """Joints (B, 17, 2) in pixels, where their maps are highest, and labels (B, H, W)."""
    training = parser.training
    parser.eval()
    with torch.inference_mode(), compute.autocast():
        parsed: Parsed = parser(rgb.to(compute.device))
    parser.train(training)
    place = parsed.joints.flatten(2).argmax(-1).cpu()
    width = parsed.joints.shape[3]
    joints = torch.stack([place % width, place // width], -1).float() + 0.5
    return joints.numpy(), parsed.parts.argmax(1).cpu().numpy()


def sheet(path: Path, parser: Parser, held_out: Sequence[Batch], compute: Compute) -> None:
    """Per row a picture, what is to be seen in it, and what the parser sees."""
    rows = []
    for b in held_out:
        joints, labels = seen(parser, b.condition, compute)
        truth, picture = b.truth.extra, as_image(b.condition[0])
        rows.append(
            [picture, _coloured(truth.parts[0].numpy(), truth.joints[0].numpy()), _coloured(labels[0], joints[0])]
        )
    plots.sheet(path, rows, columns=("picture", "truth", "seen"))


def _coloured(labels: npt.NDArray[Any], joints: Array) -> Image:
    hues = np.array([[[180 * p // TEN, 200, 255] for p in range(TEN)]], np.uint8)
    colours = np.concatenate([np.zeros((1, 3), np.uint8), cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0]])
    picture = np.ascontiguousarray(colours[labels])
    for x, y in joints[np.isfinite(joints).all(1)].tolist():
        cv2.circle(picture, (int(x), int(y)), 2, (255, 255, 255), -1)
    return picture


__all__ = ["Example", "batch", "example", "examples", "measure", "seen", "train_parser", "view"]
