"""All cores for what no single operation keeps busy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `work` makes of each item, in their order, in as many threads as torch computes in: for much small
    arithmetic on the CPU. Meanwhile each operation has one core. Gradients are recorded, or not, as in the caller's
    thread.

    Raises:
        What `work` raises, of the first item for which it does.
    """
    threads, inference, grad = torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    if threads == 1:
        return [work(item) for item in items]

    def one(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return work(item)

    pool = ThreadPoolExecutor(threads, "side by side")
    try:
        torch.set_num_threads(1)
        return list(pool.map(one, items))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
