"""Charts and sheets: what is drawn where, and that files appear whole."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from retarget import plots
from retarget.plots import BOTTOM, COLOURS, GREYS, LEFT, MARGIN, PANEL, RIGHT, TOP, curves, round_ticks, sheet

NAN = float("nan")


def read(path: Path) -> np.ndarray[Any, Any]:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def axes(picture: np.ndarray[Any, Any], column: int, row: int = 0) -> np.ndarray[Any, Any]:
    """Inside the axes of one panel of a picture with one row of labels and without a title."""
    x, y = MARGIN + column * PANEL[0], MARGIN + 22 + row * PANEL[1]
    return picture[y + TOP : y + PANEL[1] - BOTTOM, x + LEFT + 2 : x + PANEL[0] - RIGHT]


def where(picture: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> tuple[np.ndarray[Any, Any], ...]:
    """y, x of the pixels that have nearly this colour."""
    return np.nonzero(np.abs(picture.astype(int) - colour).max(2) < 20)


def test_lines_are_where_their_values_are(tmp_path: Path) -> None:
    up, down = ([0, 1, 2], [1.0, 2.0, 3.0]), ([0, 1, 2], [3.0, 2.0, 1.0])
    curves(tmp_path / "a.png", {"one": {"up": up, "down": down}, "two": {"down": down}})
    picture = read(tmp_path / "a.png")
    assert picture.shape == (MARGIN + 22 + PANEL[1] + MARGIN, 2 * MARGIN + 2 * PANEL[0], 3)
    left, right = axes(picture, 0), axes(picture, 1)
    y, x = where(left, COLOURS[0])
    assert np.corrcoef(x, y)[0, 1] < -0.99  # y goes downwards in pictures
    assert x.min() < 20
    assert x.max() > left.shape[1] - 20
    y, x = where(left, COLOURS[1])
    assert np.corrcoef(x, y)[0, 1] > 0.99
    assert len(where(right, COLOURS[0])[0]) == 0  # one colour per label, in all panels
    assert len(where(right, COLOURS[1])[0]) > 100


@pytest.mark.parametrize("gap", [NAN, math.inf, None])
def test_gaps(tmp_path: Path, gap: float | None) -> None:
    xs = list(range(30))
    curves(tmp_path / "a.png", {"p": {"a": (xs, [gap if 10 <= x < 20 else 1.0 for x in xs])}})
    _, x = where(axes(read(tmp_path / "a.png"), 0), COLOURS[0])
    share = x / axes(read(tmp_path / "a.png"), 0).shape[1]
    assert not ((share > 0.35) & (share < 0.65)).any()
    assert (share < 0.3).any()
    assert (share > 0.7).any()


def test_baselines_are_grey_and_dashed(tmp_path: Path) -> None:
    line = [0, 1], [5.0, 5.0]
    curves(tmp_path / "a.png", {"p": {"copy": line}, "q": {"meta": line}}, dashed=["copy"])
    picture = read(tmp_path / "a.png")
    dashed, full = len(where(axes(picture, 0), GREYS[0])[0]), len(where(axes(picture, 1), COLOURS[0])[0])
    assert 0.4 * full < dashed < 0.8 * full


def test_log_x_has_a_place_for_zero(tmp_path: Path) -> None:
    curves(tmp_path / "a.png", {"p": {"a": ([0, 9, 99], [0, NAN, 0]), "b": ([9], [1.0])}}, log_x=True)
    inside = axes(read(tmp_path / "a.png"), 0)
    assert where(inside, COLOURS[1])[1].mean() == pytest.approx(inside.shape[1] / 2, abs=4)


@pytest.mark.parametrize(
    "line",
    [([], []), ([1], [None]), ([5], [3.0]), ([1, 2], [0.0, 0.0]), (range(5000), [1e-9 * i for i in range(5000)])],
)
def test_whatever_was_measured_can_be_drawn(tmp_path: Path, line: Any) -> None:
    curves(tmp_path / "a.png", {"p": {"a": line}}, title="Größe – “T”", x_label="steps", log_x=True, dashed=["a"])
    curves(tmp_path / "b.png", {str(i): {"a": line} for i in range(7)})
    assert read(tmp_path / "b.png").shape[0] == MARGIN + 22 + 3 * PANEL[1] + MARGIN


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (-0.13, 0.21, [-0.1, 0, 0.1, 0.2]), (19.2, 24.4, [20, 22, 24]), (7, 7.4, None)],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float] | None) -> None:
    found = round_ticks(low, high)
    assert found == pytest.approx(ticks or [7, 7.1, 7.2, 7.3, 7.4])
    assert found[0] >= low - 1e-9
    assert found[-1] <= high + 1e-9


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0.8, 0.85, 0.9], ["0.80", "0.85", "0.90"]),
        ([1, 3, 5, 10], ["1", "3", "5", "10"]),
        ([0, 5000, 10000], ["0", "5k", "10k"]),
        ([0, 5e-5, 1e-4], ["0.00000", "0.00005", "0.00010"]),
        ([0, 2e-7], ["0", "2e-07"]),
        ([20], ["20"]),
        ([0], ["0"]),
    ],
)
def test_numbers(ticks: list[float], texts: list[str]) -> None:
    assert [plots._number(t, ticks) for t in ticks] == texts


def test_a_sheet_shows_pictures_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    big, small, other = (rng.integers(0, 256, (h, 40, 3), np.uint8) for h in (60, 30, 20))
    sheet(tmp_path / "a.png", [[big, small], [other]])
    picture = read(tmp_path / "a.png")
    assert picture.shape == (2 * MARGIN + 60 + 6 + 20, 2 * MARGIN + 40 + 6 + 40, 3)
    np.testing.assert_array_equal(picture[MARGIN : MARGIN + 60, MARGIN : MARGIN + 40], big)
    np.testing.assert_array_equal(picture[MARGIN + 15 : MARGIN + 45, MARGIN + 46 : MARGIN + 86], small)
    np.testing.assert_array_equal(picture[MARGIN + 66 : MARGIN + 86, MARGIN : MARGIN + 40], other)
    assert (picture[-MARGIN - 20 :, MARGIN + 46 :] == 255).all()
    sheet(tmp_path / "b.png", [[big, small], [other]], columns=("the first", "b"), labels=("f01",))
    labelled = read(tmp_path / "b.png")
    assert labelled.shape[0] == picture.shape[0] + 24
    assert labelled.shape[1] > picture.shape[1] + 20
    assert (labelled[: MARGIN + 20] < 100).any()
    sheet(tmp_path / "c.png", [])


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        sheet(target, [])
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]
    monkeypatch.undo()
    sheet(target, [])
    assert target.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["a.png"]
