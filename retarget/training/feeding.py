"""What training learns from, drawn by other processes while a GPU computes: drawing a pair can take longer than a step
from it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import Any, Final, TypeVar

import torch

from ..device import no_memory
from .prepare import alone

MOST: Final = 4
"""How many processes draw unless more are asked for: each may remember pictures for two gigabytes."""
AHEAD: Final = 2
"""How many results per process are drawn before they are asked for."""
Result = TypeVar("Result")


def drawers(device: torch.device, workers: int) -> int:
    """How many processes draw beside this one: none where the network needs the processor itself."""
    return 0 if device.type == "cpu" else workers or min(MOST, os.cpu_count() or 1)


@contextmanager
def fed(draw: Callable[[int], Result], numbers: Iterable[int], workers: int) -> Iterator[Iterator[Result]]:
    """`draw` of each of `numbers`, in their order; with `workers`, from as many processes, ahead of time.

    Args:
        draw: can be pickled then, and gives what can be; the same for a number in every process. Tensors come through
            shared memory.
        numbers: may be endless.

    Raises what `draw` raises where its turn is, and OutOfMemory when the system ends one of the processes.
    """
    if not workers:
        yield map(draw, numbers)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (draw,)) as pool:
        try:
            yield _in_order(pool, iter(numbers), AHEAD * workers)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, numbers: Iterator[int], count: int) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    while True:
        try:
            waiting.extend(pool.submit(_drawn, n) for n in islice(numbers, count - len(waiting)))
            if not waiting:
                return
            result = waiting.popleft().result()
        except BrokenProcessPool as error:  # the system ends whoever takes too much memory
            raise no_memory("drawing what to learn from", "Use fewer --workers, or a smaller --batch.") from error
        yield result


_draw: Callable[[int], Any]
"""Of a worker: what it draws with."""


def _begin(draw: Callable[[int], Any]) -> None:
    global _draw
    alone()
    _draw = draw


def _drawn(number: int) -> Any:
    return _draw(number)
