"""Work in threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from retarget.cores import side_by_side


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_at_once_in_their_order() -> None:
    meeting = threading.Barrier(2, timeout=30)

    def work(n: int) -> tuple[int, int]:
        meeting.wait()
        return n, torch.get_num_threads()

    assert side_by_side(work, range(6)) == [(n, 1) for n in range(6)]
    assert torch.get_num_threads() == 2


def test_one_core_needs_no_threads() -> None:
    torch.set_num_threads(1)
    assert set(side_by_side(lambda _: threading.get_ident(), range(3))) == {threading.get_ident()}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_are_as_in_the_callers_thread(mode: type[torch.no_grad]) -> None:
    weight = torch.ones(1, requires_grad=True)
    with mode():
        made = side_by_side(lambda n: weight * n, range(3))
        assert [m.requires_grad for m in made] == [torch.is_grad_enabled()] * 3
        assert [m.is_inference() for m in made] == [torch.is_inference_mode_enabled()] * 3


def test_what_fails_is_told_and_leaves_no_trace() -> None:
    def work(n: int) -> None:
        if n == 2:
            raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        side_by_side(work, range(100))
    assert torch.get_num_threads() == 2
