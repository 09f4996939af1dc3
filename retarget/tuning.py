"""An avatar's network: the weights that it begins with (`start`), and T steps of fine-tuning (`fine_tune`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError, WeightsError
from .types import Progress

if TYPE_CHECKING:
    from .device import Compute
    from .lessons import Lessons
    from .models.base import Objective, RetargetModel
    from .personalize import PersonalizeOptions
    from .references import Gathered
    from .training.fit import FitState

BATCH = 4
"""Pairs per step of fine-tuning."""
EVERY = 5.0
"""Seconds between checkpoints of fine-tuning."""
COST = 0.02
"""The largest share of the time that checkpoints may take."""
FITTING = "fit-{}.safetensors"
"""What is kept of an unfinished network, by the side of its pictures."""


@dataclass
class Trials:
    """What avatars share that differ only in how long they were fine-tuned.

    lessons  by the side of their pictures, filled by the first of them.
    """

    lessons: dict[int, Lessons] = field(default_factory=dict)


def shown(options: PersonalizeOptions) -> str:
    """What the avatar is to be of, see `RetargetModel.subject`."""
    from .models import MODELS

    if options.labels is not None:
        return "scene"
    if options.crop == "auto" and options.model in MODELS:
        return MODELS[options.model]().subject
    return "head" if options.crop == "head" else "body"


def start(
    name: str, init: str, progress: Progress, preset: str = "small", subject: str = "body", classes: int = 0
) -> tuple[RetargetModel, str | None, dict[str, Any]]:
    """A model with the weights that `PersonalizeOptions.init` names; their sha256; its configuration.

    Shipped weights are of the preset `small`; a file says its configuration itself.

    Args:
        subject: see `shown`; what a model is made for that can be made for several.
        classes: how many the label maps take, if there are any.

    Raises UsageError when the file of `init` is for another subject, or for fewer classes.
    """
    from . import weights
    from .models import MODELS, build

    subjects = MODELS[name]().SUBJECTS if name in MODELS else {}
    if init.endswith(".safetensors"):
        tensors, trained, config = weights.load_file(Path(init))
        if trained != name:
            raise UsageError(f"{init} holds weights of the model “{trained}”.", f"Use --model {trained}.")
        digest = weights.sha256(Path(init))
    elif (entry := _shipped(name, init, preset, subject, classes)) is None:
        if init != "random":
            which = name if preset == "small" else f"{name} ({preset})"
            which += f" for {_SHOWN[subject]}" if subjects and subject != "body" else ""
            which += f" of {classes} classes" if classes else ""
            progress.warn(
                f"No weights of {which} are shipped, so that it starts from nothing learned; train some: --init."
            )
        how = dict(subjects.get(subject, {})) | ({"classes": classes} if classes else {})
        model = build(name, how, preset=preset)
        return model, None, asdict(model.config)
    else:
        tensors, config = weights.load(entry, progress=progress)
        digest = weights.entry(entry).sha256
    model = build(name, config)
    if subjects and model.subject != subject:
        raise UsageError(
            f"{init} holds weights of {name} for {_SHOWN[model.subject]}, not for {_SHOWN[subject]}.",
            f"Use others with --init, or {_ASKED[model.subject]}.",
        )
    if classes > (known := getattr(model.config, "classes", classes)):
        raise UsageError(f"{init} knows {known} classes, and the label maps have {classes}.", "Use other weights.")
    try:
        model.load_state_dict({k: t for k, t in tensors.items() if not k.startswith(weights.CRITICS)})
    except RuntimeError as error:
        raise WeightsError(
            f"These weights do not fit the model {name}: {str(error).splitlines()[-1].strip()}.", "Use others."
        ) from error
    return model, digest, config


_SHOWN = {"body": "whole people", "head": "heads", "scene": "label maps"}
_ASKED = {"body": "leave --crop and --labels out", "head": "add --crop head", "scene": "add --labels"}


def _shipped(name: str, init: str, preset: str, subject: str, classes: int) -> str | None:
    """What weights that fit are called in the manifest; None: there are none, or nothing learned is wanted."""
    from . import weights

    if init == "random" or preset != "small" or not weights.known(entry := _entry(name, init, subject)):
        return None
    return entry if weights.entry(entry).config.get("classes", classes) >= classes else None


def _entry(name: str, init: str, subject: str) -> str:
    """What weights are called in the manifest: those for another subject than the model's first one by that, too."""
    from . import weights
    from .models import MODELS

    other = name in MODELS and subject in (model := MODELS[name]()).SUBJECTS and subject != model.subject
    return weights.ENTRY[init].format(f"{name}-{subject}" if other else name)


def with_critics(model: RetargetModel, options: PersonalizeOptions, known: Mapping[str, Any]) -> Objective | None:
    """The objective with the critics that were trained together with the model's weights; None when there are none:
    critics that start from nothing learn nothing in so few steps.

    Raises WeightsError when they do not fit.
    """
    from . import weights

    if options.init.endswith(".safetensors"):
        tensors = weights.load_file(Path(options.init))[0]
    elif options.init == "random" or options.preset != "small":
        return None
    elif weights.known(entry := _entry(options.model, options.init, shown(options))):
        tensors = weights.load(entry)[0]
    else:
        return None
    critics = {k: t for k, t in tensors.items() if k.startswith(weights.CRITICS)}
    if not critics:
        return None
    objective = model.objective(critics=True, **known)
    try:
        missing = objective.load_state_dict(critics, strict=False).missing_keys
        if any(key.startswith(weights.CRITICS) for key in missing):
            raise RuntimeError("some are missing")
    except RuntimeError as error:
        raise WeightsError(f"The critics of these weights do not fit {options.model}.", "Use others.") from error
    return objective


def fine_tune(
    model: RetargetModel,
    stored: Mapping[str, Any],
    gathered: Gathered,
    options: PersonalizeOptions,
    compute: Compute,
    progress: Progress,
    folder: Path,
    side: int,
    notes: list[str],
    trials: Trials,
) -> dict[str, float]:
    """T steps on leave-one-out pairs, the best of which is kept, then trust in the nets. Returns quality figures.

    MetaPix §3: Adam, T steps, the K frames repeated to fill a batch. A pair: the parts come from the other references,
    the truth is the one left out. One reference is kept for validation and never learned from (K ≥ 3). Trust is settled
    before the steps, when no picture was learned from, and again after them, when the nets answer differently and one
    picture is left to judge by: it changes what that one says clearly. From the checkpoint that an interrupted
    run left in `folder` it goes on to the same result. What went wrong on the way is added to `notes`.
    """
    from . import checkpoint
    from .lessons import Lessons, adapt, features
    from .training.fit import FitOptions

    progress.stage("Preparing pairs", None)
    model.to(compute.device).eval()
    if side not in trials.lessons:
        trials.lessons[side] = Lessons(model, stored, gathered, side, compute, seed=options.seed)
    lessons = trials.lessons[side].of(model)
    networks = features(model)
    plain = model.objective(critics=False, **networks)
    objective = with_critics(model, options, networks) or plain
    for one in (plain, objective):
        one.to(compute.device)
    tunable = list(model.tunable(lessons.identity))
    steps = options.steps if tunable else 0
    known = model.settle(lambda: lessons.score(plain)) if steps else {}
    model.adopt(lessons.identity)
    objective.adopt(lessons.identity)
    how = FitOptions(steps, batch=BATCH, seed=options.seed, validate_every=max(1, min(20, steps // 5)))
    before = lessons.measure()
    progress.stage("Fine-tuning", steps)
    file = folder / FITTING.format(side)
    kept: dict[str, Any] | None = None
    with suppress(ValueError):  # damaged: from the first step
        kept = checkpoint.load(file)
    if kept is not None:
        lessons.first = kept["first"]
        progress.note(f"Going on at step {kept['step']} of {steps}.")
        progress.advance(kept["step"])
    due = time.monotonic() + EVERY

    def keep(state: FitState) -> None:
        nonlocal due
        if (now := time.monotonic()) >= due or state.over:
            checkpoint.save(file, state.state_dict() | {"first": lessons.first})
            # On a slow disk, less often.
            due = (after := time.monotonic()) + max(EVERY, (after - now) / COST)

    result = adapt(
        model, objective, lessons.pairs, how, compute, parameters=tunable,
        validate=lessons.validate, on_step=lambda step, figures: progress.advance(loss=figures["loss"]),
        checkpoint=keep, resume=kept,
    )  # fmt: skip
    for note in result.notes:
        progress.warn(note)
        notes.append(note)
    settled = model.settle(lambda: lessons.score(plain, unseen=result.best_step > 0), known)
    after = lessons.measure()
    progress.note(
        f"Quality on {'a left-out frame' if lessons.left_out else 'the frame itself'}: person PSNR "
        f"{before['fg_psnr']:.2f} → {after['fg_psnr']:.2f} dB, SSIM {before['fg_ssim']:.3f} → {after['fg_ssim']:.3f} "
        + (f"(step {result.best_step} of {result.steps} was the best)." if result.steps else "(nothing to learn).")
    )
    return {f"{k}_before": v for k, v in before.items()} | after | {"best_step": float(result.best_step)} | settled
