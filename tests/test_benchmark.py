"""A frame of each model, timed."""

from __future__ import annotations

import pytest

from retarget.benchmark import benchmark_frame
from retarget.errors import UsageError
from retarget.models import MODELS, build


@pytest.mark.parametrize("model", MODELS)
def test_a_frame_of_each_model_is_timed(model: str) -> None:
    found = benchmark_frame(model, (96, 128), "cpu")
    assert 0 < found.seconds < 20
    assert found.parameters == sum(p.numel() for p in build(model).parameters())
    assert found.learned or model != "dance"


def test_an_unknown_model_cannot_be_timed() -> None:
    with pytest.raises(UsageError, match="no model called"):
        benchmark_frame("mirror")
