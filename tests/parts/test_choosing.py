"""The best choice of references, against all others."""

from __future__ import annotations

import numpy as np
import pytest

from retarget.parts import choose, choosing
from retarget.skeleton import PARENT, PART, PARTS


def total(cost: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """What the assignments (N, P) cost."""
    own = cost[np.arange(len(PARENT)), chosen].sum(-1)
    joined = [choosing.AT_THE_NECK if name == "head" else choosing.JOINED for name in PARTS]
    return own + sum(joined[i] * (chosen[:, i] != chosen[:, p]) for i, p in enumerate(PARENT) if p >= 0)


def test_the_choice_costs_least_of_all_with_two_references():
    rng = np.random.default_rng(0)
    every = (np.arange(1 << len(PARTS))[:, None] >> np.arange(len(PARTS))) & 1
    for spread in (0.3, 1.0, 3.0):
        cost = rng.exponential(spread, (len(PARTS), 2))
        assert total(cost, choose(cost)[None])[0] == pytest.approx(total(cost, every).min())


def test_the_choice_costs_least_of_all_with_three_references():
    rng = np.random.default_rng(1)
    # All assignments of eight parts; the others are so dear elsewhere that they stay with reference 1.
    free = [0, 1, 2, 4, 6, 8, 10, 12]
    every = np.ones((3 ** len(free), len(PARTS)), int)
    every[:, free] = np.arange(3 ** len(free))[:, None] // 3 ** np.arange(len(free)) % 3
    for _ in range(5):
        cost = rng.exponential(1.0, (len(PARTS), 3))
        for i in set(range(len(PARTS))) - set(free):
            cost[i] = (100, 0, 100)
        chosen = choose(cost)
        assert (chosen[[3, 5, 7, 9, 11, 13]] == 1).all()
        assert total(cost, chosen[None])[0] == pytest.approx(total(cost, every).min())


def test_parts_stay_together_until_it_pays_to_part(monkeypatch):
    cost = np.zeros((len(PARTS), 2))
    cost[:, 1] = 1.0
    cost[PART["left_hand"]] = (0.5, 0)
    monkeypatch.setattr(choosing, "JOINED", 0.6)
    assert (choose(cost) == 0).all()
    monkeypatch.setattr(choosing, "JOINED", 0.4)
    assert np.flatnonzero(choose(cost)).tolist() == [PART["left_hand"]]


def test_choosing_leaves_the_costs_alone():
    cost = np.random.default_rng(2).random((len(PARTS), 3))
    before = cost.copy()
    choose(cost)
    np.testing.assert_array_equal(cost, before)
