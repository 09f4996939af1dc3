"""The models, by name. A new one is one module, one line here and one entry in the weights' manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from .base import RetargetModel


def _in(module: str, name: str) -> Callable[[], type[RetargetModel]]:
    def found() -> type[RetargetModel]:
        model: type[RetargetModel] = getattr(import_module(f".{module}", __package__), name)
        return model

    return found


MODELS: dict[str, Callable[[], type[RetargetModel]]] = {
    "dance": _in("dance", "Dance"),
    "dance-paper": _in("dance_paper", "DancePaper"),
    "pose2im": _in("pose2im", "Pose2Im"),
    "posewarp": _in("posewarp", "Posewarp"),
    "few-shot-vid2vid": _in("few_shot_vid2vid", "FewShotVid2Vid"),
    "talking-head": _in("talking_head", "TalkingHead"),
}
"""Model name → its class; modules are imported when first asked for."""


def configuration(name: str, preset: str) -> dict[str, Any]:
    """What a model's preset sets. Raises UsageError when there is no such model or preset."""
    if name not in MODELS:
        raise UsageError(f"There is no model called '{name}'.", f"Choose one of: {', '.join(MODELS)}.")
    known = MODELS[name]().PRESETS
    if preset not in known:
        raise UsageError(f"The model {name} has no preset “{preset}”.", f"Choose one of: {', '.join(known)}.")
    return dict(known[preset])


def build(name: str, config: Mapping[str, Any] | None = None, preset: str = "small") -> RetargetModel:
    """The model called `name`, with fresh weights.

    Args:
        config: changes to the preset's configuration, or a complete one.
        preset: one of the model's `PRESETS`.

    Raises UsageError when there is none of that name, preset or configuration.
    """
    chosen = {**configuration(name, preset), **(config or {})}
    try:
        return MODELS[name]()(**chosen)
    except (TypeError, ValueError) as error:
        said = ", ".join(f"{key}={value}" for key, value in chosen.items())
        raise UsageError(f"There is no {name} with {said}: {error}.", "Leave it out, or correct it.") from error
