"""Fixtures of `personalize` on references that are known: no picture is looked into, and its model is small."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from retarget import folders
from retarget.types import Silent

if TYPE_CHECKING:
    from retarget.models.dance import Dance

POSES = [((25, 25), (25, 25)), ((90, 80), (30, 20)), ((20, 40), (150, 165))]


class Listener(Silent):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.steps = 0
        self.losses: list[float] = []

    def stage(self, title: str, total: int | None = None) -> None:
        self.stages.append(title)

    def advance(self, steps: int = 1, **figures: float) -> None:
        if "loss" in figures:
            self.steps += steps
            self.losses.append(figures["loss"])

    def note(self, message: str) -> None:
        self.notes.append(message)


def nothing_left() -> bool:
    home = folders.avatars_dir()
    return not home.exists() or not list(home.iterdir())


@pytest.fixture
def me(tmp_path: Path) -> Path:
    path = tmp_path / "my clip.mp4"
    path.write_bytes(b"not looked into here")
    return path


@pytest.fixture
def known(puppet, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Any]]:
    """Replaces the gathering of references; returns how it was called."""

    def replace(count: int = 1) -> list[Any]:
        calls: list[Any] = []
        gathered = puppet.gathered(*(puppet.body(*p) for p in POSES[:count]), details=True)

        def gather(paths, options, progress):
            calls.append((paths, options))
            return gathered

        monkeypatch.setattr(importlib.import_module("retarget.personalize"), "gather", gather)
        return calls

    return replace


@pytest.fixture
def small_dance(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dance` with nets that are quickly fitted."""
    from retarget.models.dance import Dance

    monkeypatch.setattr(Dance, "PRESETS", {"small": {"density": 24, "width": 8, "depth": 2}})


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Dance]], None]:
    """Ships these models by the names that the manifest gives them; none until it is called."""
    from retarget import weights

    folder = tmp_path / "shipped weights"
    folder.mkdir()

    def ship(models: Mapping[str, Dance]) -> None:
        lines = []
        for name, model in models.items():
            path = folder / f"{name}.safetensors"
            weights.save_file(path, model.state_dict(), "dance", {})
            lines.append(
                {"name": name, "kind": "model", "repo": None, "revision": None, "file": path.name,
                 "sha256": weights.sha256(path), "bytes": path.stat().st_size, "licence": "CC0-1.0", "corpus": "none",
                 "config": {"depth": len(model.synthesis.up) + 1}}
            )  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps({"schema": 1, "weights": lines}))
        weights._read_manifest.cache_clear()

    monkeypatch.setattr(weights, "_folder", lambda: folder)
    ship({})
    return ship
