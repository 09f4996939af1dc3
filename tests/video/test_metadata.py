"""Tags there and back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from retarget.video import open_writer, read_metadata

from .conftest import numbered


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_metadata_survives(tmp_path: Path, suffix: str, example_dance: Path) -> None:
    path = tmp_path / f"tags{suffix}"
    tags = {"comment": "synthetic media; a=b # ü\nsecond \\ line", "retarget_avatar": "me 1", "title": "dance"}
    with open_writer(path, (96, 64), Fraction(25), metadata=tags, audio_from=example_dance) as write:
        write(numbered(0))
    assert tags.items() <= read_metadata(path).items()
