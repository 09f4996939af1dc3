"""Where something stands, on disk: tensors, numbers and sentences by name, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import StorageError
from .folders import replaced


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; the file is replaced when the new one is complete.

    Args:
        state: contiguous CPU tensors, and whatever JSON can hold, by name.

    Raises StorageError when it cannot be written.
    """
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    others = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
    try:
        with replaced(path) as temporary:
            save_file(tensors, temporary, {"others": json.dumps(others)})
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors
        raise StorageError(f"{path} cannot be written: {error}.", "Free some space.") from error


def facts(path: Path) -> dict[str, Any]:
    """The numbers and sentences of what `save` wrote, without its tensors; {} where there is none, or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["others"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return {}


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, tensors on the CPU; None when there is no such file.

    Raises ValueError when it is damaged or another kind of file.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors | dict(json.loads(file.metadata()["others"]))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
