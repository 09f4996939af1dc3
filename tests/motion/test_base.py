"""Soft limits."""

from __future__ import annotations

import numpy as np

from retarget.motion import soft


def test_soft_limits_are_the_identity_at_first_and_rise_steadily() -> None:
    x = np.linspace(-5, 5, 1001)
    y = soft(x, 1.0, 2.0)
    np.testing.assert_array_equal(y[np.abs(x) <= 1], x[np.abs(x) <= 1])
    assert (np.diff(y) > 0).all()
    assert np.abs(y).max() < 2
    assert np.abs(np.diff(y, n=2)).max() < 2e-4  # no kink
