"""The networks' sizes, and the tensors that the model takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

DRAWING = 3
"""Channels of a landmark drawing."""


@dataclass(frozen=True)
class TalkingHeadConfig:
    """The networks' sizes; the default is the preset `small`.

    side       short side of the pictures that the networks see and draw; results are enlarged to the picture's size.
    width      channels of the first block; each further one has twice as many, up to
    widest     and these are the bottleneck's.
    embedding  N, the size of an embedding.
    downs      blocks of G that halve, and that double.
    blocks     blocks of G between them.
    halvings   blocks of E and of V that halve.
    videos     columns of W: training videos that the critic can tell apart.
    match      with L_MCH, for fine-tuning (Ours-FT); without, the feed-forward variant (Ours-FF): not fine-tuned.
    """

    side: int = 128
    width: int = 24
    widest: int = 96
    embedding: int = 96
    downs: int = 3
    blocks: int = 4
    halvings: int = 5
    videos: int = 1024
    match: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be; also an avatar that somebody else made says its configuration."""
        for name, low, high in (
            ("side", 16, 1024), ("width", 1, 256), ("widest", 1, 2048), ("embedding", 1, 4096), ("downs", 2, 6),
            ("blocks", 0, 16), ("halvings", 1, 8), ("videos", 1, 1 << 24),
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} is not from {low} to {high}")
        if type(self.match) is not bool:
            raise ValueError("match is neither true nor false")
        if self.side % (2 << max(self.downs, self.halvings)):
            raise ValueError("side cannot be halved so often")


UNKNOWN = -1
"""The number of a video that W has no column for."""


class HeadIdentity(NamedTuple):
    """A person, or one per picture of the batch."""

    known: Tensor
    """(B, 6, K · side, side) in 0..1: the pictures and their landmark drawings, one below the other."""
    shots: Tensor
    """(B,) int64: K; rows of `known` below the K-th picture say nothing."""
    plate: Tensor
    """(B, 3, H, W) in 0..1: what the head stands before, in any size with the right aspect."""
    video: Tensor
    """(B,) int64: the number of the video in the training set, or `UNKNOWN`."""
    embedding: Tensor
    """(B, N): ê by the weights that `encode` was called with (Eqs. 1, 7)."""


class HeadCondition(NamedTuple):
    """A landmark drawing, and the picture it is for."""

    maps: Tensor
    """(B, 3, h, w) in 0..1."""
    size: tuple[int, int]
    """(H, W) of what is drawn."""


class HeadPair(NamedTuple):
    """Landmark drawing and person: all that training needs, at the size that the networks see (`ahead`)."""

    maps: Tensor
    """(B, 3, h, w) in 0..1, and as in `HeadIdentity`:"""
    known: Tensor
    shots: Tensor
    plate: Tensor
    video: Tensor


class Embeddings(NamedTuple):
    """What L_MCH compares: `Frame.extra`."""

    each: Tensor
    """(B, K, N): E of each of the K pictures; zeros where there are fewer."""
    there: Tensor
    """(B, K) float: 1 where there is a picture."""
