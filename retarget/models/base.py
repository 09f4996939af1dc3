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
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

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
    """(B, W, 468, 3), or 478: `PoseTrack.face`."""
    hands: Tensor
    """(B, W, 2, 21, 3)"""
    picture: tuple[int, int]
    """(height, width) of the picture that the coordinates belong to."""

    def to(self, device: torch.device) -> Poses:
        return Poses(self.body.to(device), self.face.to(device), self.hands.to(device), self.picture)


class Labels(NamedTuple):
    """A window of W label maps, oldest first, the one to draw last: what a model of street scenes draws from in the
    place of poses (`few-shot-vid2vid`)."""

    classes: Tensor
    """(B, W, H, W) uint8: the class of each pixel; numbers without a class stand for pixels without a label."""

    def to(self, device: torch.device) -> Labels:
        return Labels(self.classes.to(device))


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
    video: int | None = None
    """The number of the training video that they are from, for models that learn something of each; None: none of
    these."""
    labels: Labels | None = None
    """Of the K pictures (W is K), if they show no person but a scene with label maps; the poses say nothing then."""

    def to(self, device: torch.device) -> References:
        """Pictures on the device; mattes and poses stay: they are only looked at once."""
        return self._replace(rgb=self.rgb.to(device), plate=self.plate.to(device))


class Frame(NamedTuple):
    """A picture of the person: what a model draws, and the truth it is compared with."""

    rgb: Tensor
    """(B, 3, H, W) in -1..1."""
    matte: Tensor | None = None
    """(B, 1, H, W) in 0..1: how much of a pixel is the person."""
    extra: Any = None
    """A tensor (B, ...), or a named tuple of them, that the model's own objective looks at, too."""

    def detached(self) -> Frame:
        """The same, without the way back to what drew it."""
        return Frame(*(_detached(item) for item in self))


def _detached(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.detach()
    return type(item)(*map(_detached, item)) if hasattr(item, "_fields") else item


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
    """One training step's pairs: the model's arguments and the pictures it should have drawn.

    Of a model that learns from sequences (`RetargetModel.sequence`) the tensors of condition and truth have a time axis
    after the batch's, (B, T, ...): T frames in a row of each person.
    """

    condition: Any
    identity: Identity
    state: State
    truth: Frame


def stacked(items: Sequence[Any]) -> Any:
    """One batch out of batches, conditions, identities or frames of one kind.

    Pictures of different sizes are continued past their right and lower borders; of what there are more in one than in
    the other (their second sides differ), zeros make up the number; tuples are joined; of anything else the first one's
    stands for all.
    """
    first = items[0]
    if isinstance(first, Tensor):
        if first.dim() > 1 and len({x.shape[1] for x in items}) > 1:
            most = max(x.shape[1] for x in items)
            items = [F.pad(x, [0, 0] * (x.dim() - 2) + [0, most - x.shape[1]]) for x in items]
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


def series(items: Sequence[Any]) -> Any:
    """What belongs to T frames in a row as one, with a time axis: tensors (B, ...) → (B, T, ...). Of anything else the
    first one's stands for all."""
    first = items[0]
    if isinstance(first, Tensor):
        return torch.stack(list(items), 1)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(series(field) for field in zip(*items, strict=True)))
    return first


def along(item: Any, which: int | slice) -> Any:
    """One frame, or some, of what `series` made."""
    if isinstance(item, Tensor):
        return item[:, which]
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(along(field, which) for field in item))
    return item


def frame_count(truth: Frame) -> int | None:
    """T, if these are sequences; None for single frames."""
    return truth.rgb.shape[1] if truth.rgb.dim() == 5 else None


def last(frame: Frame) -> Frame:
    """The last frames of sequences; single frames as they are."""
    return frame if frame_count(frame) is None else along(frame, -1)


def rollout(model: RetargetModel, condition: Any, identity: Identity, state: State, count: int | None) -> Frame:
    """A frame, or where there are `count` in a row, one after the other, each knowing what the one before left it: then
    with a time axis, like the condition."""
    if count is None:
        single: Frame = model(condition, identity, state)[0]
        return single
    done = []
    for t in range(count):
        frame, state = model(along(condition, t), identity, state)
        done.append(frame)
    sequence: Frame = series(done)
    return sequence


class RetargetModel(nn.Module, ABC):
    """A network that draws a known person in given poses."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"small": {}}
    """Named configurations: `small`, the trained default, and where the paper's own sizes differ, `paper`."""
    FEATURES: ClassVar[tuple[str, ...]] = ("vgg",)
    """The trained networks that `objective` takes, by its keywords; see `lessons.features`."""
    config: Any
    """A frozen dataclass: what `models.build` was given, complete."""
    subject: Literal["body", "head", "scene"] = "body"
    """What the pictures show that it was made for: whole people, squares around heads (`portraits`), or scenes with
    label maps (`streets`)."""
    SUBJECTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """For a model that can be made for several subjects: what its configuration is for each."""
    moves_pixels: bool = False
    """Whether it begins with the person's own pixels, moved: then no step of fine-tuning may blur them for a better
    mean. What paints begins with nothing to lose."""
    leads: bool = False
    """Whether its state does not depend on its pictures, so that `lead` lets several be drawn at once."""
    Ahead: type[Any] | None = None
    """What `ahead` makes of a condition, if that is a tuple of tensors and needs no identity: training keeps it on the
    disk, whatever has four dimensions or more as bytes: it has to be in 0..1. None: it is made anew each time."""

    sources: int | None = None
    """How many references a picture is drawn from; None: all there are. The pairs of fine-tuning then show each truth
    by every one of these choices."""

    sequence: int = 1
    """T: frames in a row of a pretraining pair, at most. Fine-tuning's pairs are single frames."""

    def length(self, progress: float) -> int:
        """How many of a pair's `sequence` frames are learned from when this share, 0..1, of pretraining is over."""
        return self.sequence

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

    def lead(self, condition: Any, identity: Identity, state: State) -> tuple[Any, State]:
        """For a model that `leads`: all that the next frame has to wait for.

        Returns:
            The condition with what the state decides, from which `forward` then draws the frame without a state; and
            the next frame's state.
        """
        raise NotImplementedError(f"{type(self).__name__} has to draw one frame after the other")

    def ahead(self, condition: Any, identity: Identity, truth: Frame) -> tuple[Any, Identity, Frame]:
        """For training: whatever of the forward pass no parameter changes, done once for many steps. Single frames.

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
        """Before fine-tuning: start what is this person's alone from `identity`, and forget what was settled."""

    def settle(self, score: Callable[[], float], known: Mapping[str, float] | None = None) -> dict[str, float]:
        """Choose by trial what no gradient moves.

        Args:
            score: how badly the model of now reproduces the person's own pictures; lower is better.
            known: what was chosen before fine-tuning, by more pictures: it stays unless something else is better.

        Returns:
            What was chosen, by name.
        """
        return {}

    @property
    def window(self) -> int:
        """Poses that a condition is drawn from, the current one last."""
        return 1

    def packed(self, state: State) -> dict[str, Tensor]:
        """A state as tensors by name, for a file; `unpacked` is the inverse, to the bit.

        Both are for models that have a state.
        """
        if state is not None:
            raise NotImplementedError(f"{type(self).__name__} does not say how its state is packed")
        return {}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> State:
        """The state, on the device of the model's parameters."""
        return None

    def grown(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor] | None:
        """Where training starts from a smaller network of the same kind: its weights under this one's names.

        Args:
            tensors, config: the smaller one's state dict and configuration.

        Returns:
            Some of this network's state dict; None when such a network is no beginning of this one.
        """
        return None

    @abstractmethod
    def tunable(self, identity: Identity) -> Iterable[nn.Parameter]:
        """What personalisation moves."""


class Objective(nn.Module, ABC):
    """What a model is trained for. Owns the critics; absent at inference.

    Losses are dicts of weighted scalars: their sum is what is minimised, the names are for the reader.
    """

    critic_steps: int = 1
    """Steps of the critics after each of the model's."""
    critic_rate: float = 1.0
    """The critics' learning rate, as a multiple of the model's."""

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
