"""The networks' sizes, and the tensors that the model takes and gives (Eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from ...heatmaps import POSE_CHANNELS


@dataclass(frozen=True)
class FewShotConfig:
    """The networks' sizes.

    conditioning  what is drawn from: `pose`, `face`, or `labels`.
    classes       of label maps.
    width, widest channels of the finest level, which double from level to level, and the most there are (of W, too).
    levels        L: residual blocks of H, each at half the resolution of the one before it.
    adaptive      of how many of them, the finest, E makes the weights.
    fold          pixels per side of what is one place to the networks.
    side          the most pixels that the short side of what the networks draw has; larger pictures are enlarged.
    grid          what q and the keys are pooled to.
    keys          how often E_A halves the sides.
    flow_width, flow_downs, flow_blocks  channels, halvings and residual blocks of W and M.
    past          τ: frames that are remembered.
    example       whether the most similar example is moved and shown, too (Eq. 11).
    norm          `batch`, or `instance`: per picture.
    spectral      whether convolutions are normalised by their spectral norm.
    sequence      the largest T of training.
    hinge         whether the critics' loss is a hinge (the published code) instead of least squares (vid2vid).
    critic        channels of the critics' first layer.
    """

    conditioning: Literal["pose", "face", "labels"] = "pose"
    classes: int = 20
    width: int = 24
    widest: int = 96
    levels: int = 5
    adaptive: int = 5
    fold: int = 2
    side: int = 256
    grid: int = 8
    keys: int = 3
    flow_width: int = 16
    flow_downs: int = 3
    flow_blocks: int = 2
    past: int = 1
    example: bool = True
    norm: Literal["instance", "batch"] = "instance"
    spectral: bool = False
    sequence: int = 4
    hinge: bool = False
    critic: int = 32

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be; also an avatar that somebody else made says its configuration."""
        for name, low, high in (
            ("classes", 1, 255), ("width", 1, 256), ("widest", 1, 4096), ("levels", 1, 8), ("adaptive", 0, 8),
            ("fold", 1, 8), ("side", 16, 4096), ("grid", 1, 64), ("keys", 0, 6), ("flow_width", 1, 256),
            ("flow_downs", 0, 6), ("flow_blocks", 0, 32), ("past", 1, 4), ("example", 0, 1), ("spectral", 0, 1),
            ("sequence", 1, 64), ("hinge", 0, 1), ("critic", 1, 256),
        ):  # fmt: skip
            value = getattr(self, name)
            yes_or_no = isinstance(getattr(type(self), name), bool)
            if isinstance(value, bool) != yes_or_no or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} is not from {low} to {high}")
        for name, known in (("conditioning", ("pose", "face", "labels")), ("norm", ("instance", "batch"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is not one of {', '.join(known)}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level, fine to coarse, and of what comes into the coarsest: `levels` + 1."""
        return tuple(min(self.width << level, self.widest) for level in range(self.levels + 1))

    @property
    def maps(self) -> int:
        """Channels of a semantic image."""
        return {"pose": POSE_CHANNELS, "face": 3, "labels": self.classes}[self.conditioning]

    @property
    def layers(self) -> int:
        """Channels of a picture: red, green, blue premultiplied by the matte, and that; or the colours alone."""
        return 3 if self.conditioning == "labels" else 4


class Semantic(NamedTuple):
    """One semantic image per picture of the batch."""

    maps: Tensor
    """(B, C, h, w) in 0..1, as large as what the networks draw."""
    size: tuple[int, int] | None
    """(H, W) of the picture where it is larger than that."""


class Examples(NamedTuple):
    """The K examples of each person."""

    pictures: Tensor
    """(B, K, 4 or 3, H, W): e in -1..1, premultiplied by the matte, and that (0..1)."""
    maps: Tensor
    """(B, K, C, h, w): s_e."""
    known: Tensor
    """(B, K): 1, or 0 where a person of the batch has fewer."""
    plate: Tensor
    """(B, 3, H, W) in -1..1, in any size with the right aspect."""
    appearance: Tensor | None = None
    """(B, K, R, N): the pooled q of all levels, when no gradient has to reach E_F; else read in `forward`."""
    keys: Tensor | None = None
    """(B, K, C', N): the keys a_k, likewise."""


class Past(NamedTuple):
    """What the next frame is drawn from (Eq. 1): the last τ pictures and their semantic images, oldest first."""

    pictures: Tensor
    """(B, τ, 4 or 3, H, W), like `Examples.pictures`."""
    maps: Tensor
    """(B, τ, C, h, w)"""
    appearance: Tensor | None = None
    keys: Tensor | None = None
    """While training, what E has read of the examples already: once for a sequence."""


class Moved(NamedTuple):
    """What the warping loss looks at."""

    flow: Tensor
    """(B, 2, H, W): w̃ in pixels; zero where there was no frame before."""
    example: Tensor | None = None
    """(B, 4 or 3, H, W): w̃_e(e)."""
    example_maps: Tensor | None = None
    """(B, C, h, w): w̃_e(s_e)."""
    example_flow: Tensor | None = None
    """(B, 2, H, W) in pixels."""
