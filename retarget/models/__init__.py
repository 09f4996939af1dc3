"""The models, by name. A new one is one file, one line here and one entry in the weights' manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from .base import RetargetModel


def _dance(**config: Any) -> RetargetModel:
    model: RetargetModel = import_module(".dance", __package__).Dance(**config)
    return model


MODELS: dict[str, Callable[..., RetargetModel]] = {"dance": _dance}
"""Model name → what builds it from its configuration; modules are imported when first asked for."""


def build(name: str, config: Mapping[str, Any] | None = None) -> RetargetModel:
    """The model called `name`, with fresh weights.

    Raises UsageError when there is none of that name, or none of that configuration.
    """
    if name not in MODELS:
        raise UsageError(f"There is no model called '{name}'.", f"Choose one of: {', '.join(MODELS)}.")
    try:
        return MODELS[name](**(config or {}))
    except (TypeError, ValueError) as error:
        said = ", ".join(f"{key}={value}" for key, value in (config or {}).items())
        raise UsageError(f"There is no {name} with {said}: {error}.", "Leave it out, or correct it.") from error
