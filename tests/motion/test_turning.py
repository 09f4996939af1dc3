"""Rotations on points whose rotations are known exactly."""

from __future__ import annotations

import numpy as np

from retarget.motion import rotations

from .conftest import turned


def test_rotations_are_recovered_exactly() -> None:
    rng = np.random.default_rng(1)
    template = rng.normal(size=(20, 3))
    true = turned(rng.uniform(-180, 180, 9), rng.uniform(-90, 90, 9))
    points = 3 * np.einsum("tij,nj->tni", true, template) + rng.normal(size=(9, 1, 3))
    np.testing.assert_allclose(rotations(template, points), true, atol=1e-9)
