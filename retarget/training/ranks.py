"""Several processes that train together, started by `torchrun`: on one machine or many, with NCCL or Gloo."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    rank   its number; the one with 0 writes the files.
    world  how many there are.
    """

    rank: int = 0
    world: int = 1

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes, in place."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1).float() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for t in tensors:
            t.copy_(flat[start : start + t.numel()].view_as(t))
            start += t.numel()

    def agree(self, yes: bool, device: torch.device) -> bool:
        """Whether any process says yes."""
        if self.world == 1:
            return yes
        votes = torch.tensor([float(yes)], device=device)
        dist.all_reduce(votes)
        return bool(votes.item() > 0)

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def together(device: torch.device) -> Iterator[Ranks]:
    """All processes that `torchrun` started; just this one without it. Each takes the GPU of its local rank."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # The others wait while the first one draws the tasks of a large corpus.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=6))
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
