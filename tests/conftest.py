"""Fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Avatars, caches and settings of a test live in its own folder."""
    monkeypatch.setenv("RETARGET_HOME", str(tmp_path / "home"))


@pytest.fixture
def example_me() -> Path:
    """A synthetic person showing themselves: 480x640, 24 frames/s, 249 frames, silent."""
    return EXAMPLES / "me.mp4"


@pytest.fixture
def example_dance() -> Path:
    """A synthetic person dancing: 480x640, 30 frames/s, 240 frames, AAC sound."""
    return EXAMPLES / "dance.mp4"
