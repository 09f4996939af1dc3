"""The picture of what an avatar is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retarget import device
from retarget.models import build
from retarget.preview import HEIGHT, preview
from retarget.references import arrays

POSES = [((25, 25), (25, 25)), ((90, 80), (30, 20)), ((20, 40), (150, 165))]
CELL = round(128 * HEIGHT / 160)


def made(puppet, count: int, *, learnt: bool = False) -> np.ndarray:
    gathered = puppet.gathered(*(puppet.body(*POSES[k % 3], legs=5 + k) for k in range(count)))
    model = build("dance").eval()
    if learnt:
        model.synthesis.last.bias.data[3 * 4 :] += 1.0  # brighter all over: colours and shade, each in four places
    return preview(gathered, arrays(gathered), model, device.choose("cpu", "fp32"))


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """A cell without its title."""
    return picture[row * HEIGHT + 30 : (row + 1) * HEIGHT, column * CELL : (column + 1) * CELL].astype(float)


@pytest.mark.parametrize(("count", "columns"), [(1, 4), (9, 8)])
def test_rows_and_columns(puppet, count, columns):
    picture = made(puppet, count)
    assert picture.shape == (4 * HEIGHT, columns * CELL, 3)
    assert picture.dtype == np.uint8
    for row in range(3):
        filled = [cell(picture, row, c).std() > 5 for c in range(columns)]
        assert filled == [c < min(count, 8) for c in range(columns)]


def test_every_cell_shows_what_it_says(puppet):
    picture = made(puppet, 3)
    reference, matte, parts = (cell(picture, row, 2) for row in range(3))
    plate, truth, moved, learned = (cell(picture, 3, column) for column in range(4))
    # The third reference is the one left out.
    np.testing.assert_array_equal(reference, truth)
    # Behind the person of the second row there is one plain green, in the first and last rows the plate.
    corner = (slice(0, 40), slice(0, 60))
    assert matte[corner].std(axis=(0, 1)).max() < 1
    np.testing.assert_allclose(reference[corner], plate[corner], atol=2)
    np.testing.assert_allclose(moved[corner], plate[corner], atol=2)
    # Parts have colours of their own: far more saturated than the grey that they lie on.
    saturation = np.ptp(parts, axis=2)
    assert saturation[corner].max() < 3
    assert saturation[100:150, CELL // 2 - 10 : CELL // 2 + 10].mean() > 15
    # Nothing learnt: what is learned equals what is moved, and is like the truth rather than the empty plate.
    np.testing.assert_array_equal(moved, learned)
    assert np.abs(moved - plate).max() > 60


def test_what_was_learned_is_seen(puppet):
    before, after = made(puppet, 2), made(puppet, 2, learnt=True)
    np.testing.assert_array_equal(cell(before, 3, 2), cell(after, 3, 2))
    assert cell(after, 3, 3).mean() > cell(after, 3, 2).mean() + 10


def test_it_is_the_same_every_time(puppet):
    torch.manual_seed(1)
    one = made(puppet, 3)
    torch.manual_seed(2)
    np.testing.assert_array_equal(one, made(puppet, 3))
