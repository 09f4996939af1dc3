"""The networks' sizes, and the tensors that the model takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .joints import JOINTS, halved, heat_maps


@dataclass(frozen=True)
class PosewarpConfig:
    """The networks' sizes.

    width  channels of the U-Nets' first layers, half of most others'.
    side   the most pixels that the short side of what the networks draw has; larger pictures are enlarged from it.
    whole  whether the scene and the person are painted from nothing, as in the paper.
    """

    width: int = 16
    side: int = 256
    whole: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be; also an avatar that somebody else made says its configuration."""
        for name, low, high in (("width", 2, 256), ("side", 16, 4096), ("whole", 0, 1)):
            value = getattr(self, name)
            strange = not isinstance(value, int) or (isinstance(value, bool) and name != "whole")
            if strange or not low <= value <= high:
                raise ValueError(f"{name} is not from {low} to {high}")
        object.__setattr__(self, "whole", bool(self.whole))  # the command line says 1
        if self.width % 2:
            raise ValueError("width is odd")


class PosewarpCondition(NamedTuple):
    """One pose per picture of the batch."""

    joints: Tensor
    """(B, 14, 3) x, y, z in pixels of what the networks draw; NaN: not found."""
    small: tuple[int, int]
    """(h, w) of what the networks draw."""
    size: tuple[int, int]
    """(H, W) of what is drawn."""

    @property
    def maps(self) -> Tensor:
        """(B, 14, ⌈h / 2⌉, ⌈w / 2⌉) float32 in 0..1: the joints' heat maps."""
        return heat_maps(self.joints, halved(self.small))


class Pair(NamedTuple):
    """A condition and the reference it is drawn from: all of the forward pass that no parameter changes (`ahead`)."""

    source: Tensor
    """(B, 4, h, w) in 0..1: the reference, red, green, blue and matte."""
    joints: Tensor
    """(B, 28, 3): of the driving pose, of the reference."""
    plate: Tensor
    """(B, 3, h, w) in 0..1."""

    @property
    def maps(self) -> Tensor:
        """(B, 28, ⌈h / 2⌉, ⌈w / 2⌉): heat maps of the driving pose, of the reference's."""
        small = halved((self.source.shape[2], self.source.shape[3]))
        return torch.cat([heat_maps(joints, small) for joints in (self.driving, self.known)], 1)

    @property
    def driving(self) -> Tensor:
        """(B, 14, 3): the joints of the driving pose."""
        return self.joints[:, : len(JOINTS)]

    @property
    def known(self) -> Tensor:
        """(B, 14, 3): the joints of the reference."""
        return self.joints[:, len(JOINTS) :]


class Sources(NamedTuple):
    """What is known of a person."""

    rgb: Tensor
    """(B, K, 3, H, W) in 0..1."""
    matte: Tensor
    """(B, K, 1, H, W) in 0..1."""
    joints: Tensor
    """(B, K, 14, 3) x, y, z in pixels of the references; NaN: not found."""
    plate: Tensor
    """(B, 3, H, W) in 0..1, in any size with the right aspect; B may be 1."""
    own: bool
    """Whether the plate is the scene of the references."""


class PosewarpState(NamedTuple):
    """What does not change as long as the reference stays the same."""

    which: Tensor
    """(B,) int64: the reference of each picture."""
    masks: Tensor
    """(B, 11, h, w) in 0..1."""
    scene: Tensor | None
    """(B, 3, h, w) in -1..1: the painted one."""
