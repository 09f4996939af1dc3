"""Colours there and back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retarget.video import Colour, open_reader, open_writer, probe

from .conftest import COLOURS, bars, opencv


@pytest.mark.parametrize("colour", ["bt601", "bt709"])
@pytest.mark.reliability("3. Odd clocks and geometry", "colour bars through reader and writer", "the same colours")
def test_colours_survive_for_us_and_for_opencv(tmp_path: Path, colour: Colour) -> None:
    path, picture = tmp_path / "bars.mp4", bars()
    with open_writer(path, (picture.shape[1], picture.shape[0]), Fraction(25), colour=colour) as write:
        for _ in range(3):
            write(picture)
    with open_reader(path) as frames:
        mine = next(frames)
    inner = np.r_[tuple(slice(i * 32 + 6, i * 32 + 26) for i in range(len(COLOURS)))]
    # OpenCV takes the matrix of BT.601 for all.
    for seen in (mine, opencv(path)[0]) if colour == "bt601" else (mine,):
        assert np.abs(seen.astype(np.int16) - picture)[6:-6, inner].max() <= 2
    assert probe(path).colour == colour


def test_a_copy_of_a_copy_does_not_drift(example_me: Path, tmp_path: Path) -> None:
    with open_reader(example_me, end=0.2) as frames:
        first = list(frames)
    with open_writer(tmp_path / "copy.mp4", (480, 640), Fraction(24), crf=1) as write:
        for frame in first:
            write(frame)
    with open_reader(tmp_path / "copy.mp4") as frames:
        change = np.array([b.astype(float) - a for a, b in zip(first, frames, strict=True)])
    assert abs(change.mean()) < 0.4
    assert (change**2).mean() < 1.5
