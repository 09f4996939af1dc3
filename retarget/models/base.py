"""The interface that every model fulfils, and the tensors at its borders.

Pixels are float32 RGB in -1..1; mattes are in 0..1; pictures are (B, 3, H, W). State is passed, never kept:

    condition = model.condition(poses, size)
    identity = model.encode(references)                 # once per avatar
    frame, state = model(condition, identity, state)    # state None at the start of a clip
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .losses import VGG19


class Poses(NamedTuple):
    """A window of W poses, oldest first, the one to draw last; NaN: not found; see `PoseTrack` for the columns."""

    body: Tensor
    """(B, W, 33, 4) x, y, z in pixels of `picture`, visibility."""
    face: Tensor
    """(B, W, 468, 3)"""
    hands: Tensor
    """(B, W, 2, 21, 3)"""
    picture: tuple[int, int]
    """(height, width) of the picture that the coordinates belong to."""

    def to(self, device: torch.device) -> Poses:
        return Poses(self.body.to(device), self.face.to(device), self.hands.to(device), self.picture)


class References(NamedTuple):
    """What is known of a person: K pictures, and the empty scene."""

    rgb: Tensor
    """(B, K, 3, H, W) in -1..1."""
    matte: Tensor
    """(B, K, 1, H, W) in 0..1."""
    poses: Poses
    """Of the K pictures: W is K."""
    plate: Tensor
    """(B, 3, H, W) in -1..1."""
    shadow: float = 0.0
    """How much darker the floor is right under the feet, 0..1."""

    def to(self, device: torch.device) -> References:
        """Pictures on the device; mattes and poses stay: they are only looked at once."""
        return self._replace(rgb=self.rgb.to(device), plate=self.plate.to(device))


class Frame(NamedTuple):
    """A picture of the person: what a model draws, and the truth it is compared with."""

    rgb: Tensor
    """(B, 3, H, W) in -1..1."""
    matte: Tensor | None = None
    """(B, 1, H, W) in 0..1: how much of a pixel is the person."""


class Condition(Protocol):
    """What a model draws from a pose window; opaque but for the maps, which the critics look at too."""

    @property
    def maps(self) -> Tensor:
        """(B, C, h, w) float32: the stacked pose maps."""


Identity: TypeAlias = Any
"""What `encode` makes of the references: the model's own business."""
State: TypeAlias = Any
"""What a model remembers from one frame to the next; None at the start of a clip."""


class Batch(NamedTuple):
    """One training step's pairs: the model's arguments and the pictures it should have drawn."""

    condition: Any
    identity: Identity
    state: State
    truth: Frame


def stacked(items: Sequence[Any]) -> Any:
    """One batch out of batches, conditions, identities or frames of one kind.

    Pictures of different sizes are continued past their right and lower borders; tuples are joined; of anything else
    the first one's stands for all.
    """
    first = items[0]
    if isinstance(first, Tensor):
        sides = [max(x.shape[d] for x in items) for d in range(2, first.dim())]
        pads = [[n for d in reversed(range(2, x.dim())) for n in (0, sides[d - 2] - x.shape[d])] for x in items]
        return torch.cat([F.pad(x, pad, "replicate") if any(pad) else x for x, pad in zip(items, pads, strict=True)])
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(stacked(field) for field in zip(*items, strict=True)))
    if isinstance(first, tuple) and not all(isinstance(x, int | float) for x in first):
        return tuple(x for item in items for x in item)
    return first


def divided(batch: Any, count: int, pieces: int) -> list[Any]:
    """A batch of `count` in up to `pieces` smaller ones of about the same size, in order: the inverse of `stacked`."""
    bounds = [round(i * count / pieces) for i in range(pieces + 1)]
    return [_part(batch, slice(a, b), count) for a, b in pairwise(bounds) if b > a]


def _part(item: Any, which: slice, count: int) -> Any:
    if isinstance(item, Tensor):
        return item[which] if item.dim() and len(item) == count else item
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(_part(field, which, count) for field in item))
    if isinstance(item, tuple) and len(item) == count and not all(isinstance(x, int | float) for x in item):
        return item[which]
    return item


class RetargetModel(nn.Module, ABC):
    """A network that draws a known person in given poses."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"small": {}}
    """Named configurations: `small`, the trained default, and where the paper's own sizes differ, `paper`."""
    config: Any
    """A frozen dataclass: what `models.build` was given, complete."""
    Ahead: type[Any] | None = None
    """What `ahead` makes of a condition, if that is a tuple of tensors in 0..1 and needs no identity: training keeps it
    on the disk. None: it is made anew each time."""

    @property
    def ahead_depends_on(self) -> dict[str, Any]:
        """What of the model's configuration `ahead` depends on."""
        return {}

    @property
    @abstractmethod
    def maps(self) -> int:
        """Channels of a condition's maps."""

    @abstractmethod
    def condition(self, poses: Poses, size: tuple[int, int], previous: Any = None) -> Condition:
        """What this paper draws from a pose window, for pictures of `size` (height, width).

        `previous`, the condition of the frame before, spares drawing the window's older poses again: `poses` then needs
        only the new ones.
        """

    @abstractmethod
    def encode(self, references: References) -> Identity:
        """Once per avatar."""

    @abstractmethod
    def before(self, identity: Identity, plate: Tensor) -> Identity:
        """The same person before another scene, (1, 3, H, W) in -1..1, without a shadow on it."""

    @abstractmethod
    def forward(self, condition: Any, identity: Identity, state: State) -> tuple[Frame, State]:
        """Draw one frame of a clip."""

    def ahead(self, condition: Any, identity: Identity, truth: Frame) -> tuple[Any, Identity, Frame]:
        """For training: whatever of the forward pass no parameter changes, done once for many steps.

        Returns:
            What `forward` takes in the place of condition and identity, and the truth that its frame is compared with:
            the same picture, or a part of it.
        """
        return condition, identity, truth

    def varied(self, pair: Batch, generator: torch.Generator) -> Batch:
        """For pretraining: the same pair as another person in another light might give it; from `ahead` only."""
        return pair

    @abstractmethod
    def objective(self, *, critics: bool = True, vgg: VGG19 | None = None) -> Objective:
        """What the paper trains this network for; fresh critics of its size, or none of them.

        `vgg` is the network of its perceptual terms; None leaves these out.
        """

    def adopt(self, identity: Identity) -> None:
        """Before fine-tuning: start what is this person's alone from `identity`."""

    def settle(self, score: Callable[[], float]) -> dict[str, float]:
        """Before fine-tuning: choose by trial what no gradient moves.

        Args:
            score: how badly the model of now reproduces the person's own pictures; lower is better.

        Returns:
            What was chosen, by name.
        """
        return {}

    @abstractmethod
    def tunable(self, identity: Identity) -> Iterable[nn.Parameter]:
        """What personalisation moves."""


class Objective(nn.Module, ABC):
    """What a model is trained for. Owns the critics; absent at inference.

    Losses are dicts of weighted scalars: their sum is what is minimised, the names are for the reader.
    """

    @abstractmethod
    def generator_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        """The terms that the model minimises."""

    @abstractmethod
    def critic_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        """The terms that the critics minimise; no gradient flows into `frame`. Empty when there are no critics."""

    def critic_parameters(self) -> list[nn.Parameter]:
        """What the critics' optimiser moves; empty when there are no critics."""
        return []

    def adopt(self, identity: Identity) -> None:
        """Before fine-tuning: start the person-specific part of the critics from `identity`."""
