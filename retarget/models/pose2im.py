"""`pose2im`: MetaPix's first base (Lee et al. 2020, §3, “Pose2Im”): Pix2PixHD (Wang et al. 2018) from pose maps to a
picture.

    pose maps ─ coarse-to-fine generator ─ a picture

All that is known of the person is in the weights: the K references matter through fine-tuning alone.

Sizes. "The generator consists of 16 convolutional and deconvolutional layers": Pix2PixHD's global generator has ten
beside its residual blocks, each local enhancer around it adds three: sixteen are the coarse-to-fine generator of three
scales (Pix2PixHD §3.1), the preset `paper`. (What MetaPix published leaves the enhancers out: `enhancers` 0.) Critics:
two scales of 64 channels, as there; Pix2PixHD's own paper has three.

Where it departs from the paper:
* the pose maps are those of `heatmaps` (Dance Dance Generation §3.2), fifteen channels; MetaPix has eighteen of its
  own estimator's, in a multi-channel heat map, too;
* a convolution beside the one that paints gives a matte, so that the person can stand before another scene. It starts
  as the limbs that the maps show;
* unless `whole`, the person also stands before their own scene through it: that scene is known, and a small network
  need not learn it. With `whole` (the preset `paper`) all of the picture is painted, as in the paper, as long as
  nobody asks for another scene.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..heatmaps import POSE_CHANNELS, pose_maps
from .base import Batch, Frame, Objective, Poses, References, RetargetModel
from .critics import Critics
from .dance import MIRRORED_MAPS
from .layers import GlobalGenerator, LocalEnhancer, resized, within, zero_
from .losses import (
    PIX2PIXHD,
    VGG19,
    content_loss,
    feature_matching,
    lsgan_critic,
    lsgan_generator,
    matte_loss,
    perceptual,
)

LIMBS = 10
"""The first of the pose maps' channels are solid limbs."""
SURE = 10.0
"""Difference of the matte's logit between the middle of a limb and the scene, before anything is learned."""


@dataclass(frozen=True)
class Pose2ImConfig:
    """The network's sizes.

    width      channels of the global generator's finest level; each enhancer has half as many as what it stands around.
    downs      how often the global generator halves the sides.
    blocks     residual blocks of the global generator; each enhancer has three.
    enhancers  local enhancers.
    critic     channels of the critics' first layer.
    scales     critics.
    side       the most pixels that the short side of what the network draws has; larger pictures are enlarged from it.
    whole      whether all of the picture is painted, the person's own scene included.
    """

    width: int = 32
    downs: int = 2
    blocks: int = 5
    enhancers: int = 2
    critic: int = 32
    scales: int = 2
    side: int = 256
    whole: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be; also an avatar that somebody else made says its configuration."""
        for name, low, high in (
            ("width", 1, 256), ("downs", 1, 6), ("blocks", 0, 32), ("enhancers", 0, 4), ("critic", 1, 256),
            ("scales", 1, 4), ("side", 16, 4096), ("whole", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            strange = not isinstance(value, int) or (isinstance(value, bool) and name != "whole")
            if strange or not low <= value <= high:
                raise ValueError(f"{name} is not from {low} to {high}")
        object.__setattr__(self, "whole", bool(self.whole))  # the command line says 1
        if self.width % (1 << self.enhancers):
            raise ValueError(f"width cannot be halved for {self.enhancers} enhancers")


class Pose2ImCondition(NamedTuple):
    """One pose per picture of the batch."""

    maps: Tensor
    """(B, 15, h, w): the pose maps, at most `Pose2ImConfig.side` pixels high or wide."""
    size: tuple[int, int]
    """(H, W) of what is drawn."""


class Drawn(NamedTuple):
    """A condition with the scene behind it: all of the forward pass that no parameter changes (`ahead`)."""

    maps: Tensor
    """(B, 15, h, w)"""
    plate: Tensor
    """(B, 3, h, w) in 0..1."""


class Scene(NamedTuple):
    """What is known of a person beside the weights: where they stand."""

    plate: Tensor
    """(B, 3, H, W) in 0..1, in any size with the right aspect; B is 1, or one for each picture."""
    own: bool
    """Whether it is the scene of the references."""


class Pose2Im(RetargetModel):
    """The model."""

    PRESETS: ClassVar = {
        "small": {"side": 160},
        "paper": {"width": 64, "downs": 4, "blocks": 9, "critic": 64, "side": 512, "whole": True},
    }
    Ahead = Drawn

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = c = Pose2ImConfig(**config)
        self.generator: GlobalGenerator | LocalEnhancer
        self.generator = GlobalGenerator(self.maps, 0 if c.enhancers else 3, c.width, c.downs, c.blocks)
        for left in reversed(range(c.enhancers)):
            self.generator = LocalEnhancer(self.generator, self.maps, 0 if left else 3)
        for layer in self.generator.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, 0, 0.02)  # as Pix2PixHD begins
        self.matte = nn.Sequential(nn.ReflectionPad2d(3), zero_(nn.Conv2d(self.generator.width, 1, 7)))

    @property
    def maps(self) -> int:
        return POSE_CHANNELS

    @property
    def ahead_depends_on(self) -> dict[str, Any]:
        return {"side": self.config.side}

    def condition(self, poses: Poses, size: tuple[int, int], previous: Any = None) -> Pose2ImCondition:
        small = within(size, self.config.side)
        maps = pose_maps(poses.body[:, -1], poses.face[:, -1], poses.hands[:, -1], small, picture=poses.picture)
        return Pose2ImCondition(maps, size)

    def encode(self, references: References) -> Scene:
        return Scene(references.plate.float() / 2 + 0.5, True)

    def before(self, identity: Scene, plate: Tensor) -> Scene:
        return Scene(plate.float() / 2 + 0.5, False)

    def forward(self, condition: Pose2ImCondition | Drawn, identity: Scene | None, state: None) -> tuple[Frame, None]:
        """With a `Drawn` condition (`ahead`) the frame is as large as its maps, and there is no identity."""
        own = identity is None or identity.own
        if isinstance(condition, Drawn):
            plate = condition.plate
        else:
            assert identity is not None
            plate = resized(identity.plate, condition.size)
        features = self.generator.features(condition.maps)
        rgb, matte = self.generator.paint(features).float(), self.matte(features).float()
        limbs = condition.maps[:, :LIMBS].amax(1, keepdim=True)
        matte = torch.sigmoid(SURE * (limbs - 0.5) + matte)
        rgb, matte = (resized(x, plate.shape[2:]) for x in (rgb, matte))
        if not (self.config.whole and own):
            rgb = torch.lerp(2 * plate - 1, rgb, matte)
        return Frame(rgb, matte), None

    @torch.no_grad()
    def ahead(self, condition: Pose2ImCondition, identity: Scene, truth: Frame) -> tuple[Drawn, None, Frame]:
        """At the size of the maps."""
        small = condition.maps.shape[2:]
        plate = resized(identity.plate, small).expand(len(condition.maps), -1, -1, -1)
        assert truth.matte is not None
        return Drawn(condition.maps, plate), None, Frame(resized(truth.rgb, small), resized(truth.matte, small))

    def varied(self, pair: Batch, generator: torch.Generator) -> Batch:
        """Left and right exchanged, as in Pix2PixHD."""
        if torch.rand((), generator=generator) < 0.5:
            return pair
        maps, plate = pair.condition
        assert pair.truth.matte is not None
        truth = Frame(pair.truth.rgb.flip(3), pair.truth.matte.flip(3))
        return pair._replace(condition=Drawn(maps[:, list(MIRRORED_MAPS)].flip(3), plate.flip(3)), truth=truth)

    def objective(self, *, critics: bool = True, vgg: VGG19 | None = None) -> Pose2ImObjective:
        c = self.config
        return Pose2ImObjective(Critics(self.maps, c.scales, c.critic) if critics else None, vgg)

    def tunable(self, identity: Scene) -> Iterable[nn.Parameter]:
        return self.parameters()


class Pose2ImObjective(Objective):
    """MetaPix §3: "[an] equally weighted combination of GAN, Feature Matching, and VGG losses", as in Pix2PixHD.

    Pix2PixHD's least-squares GAN over all scales, Eq. 4 (feature matching), and VGG19's five layers in its weights.
    Without VGG19 `content_loss` takes its place. The matte, which the paper does not have, is told the true one.
    """

    def __init__(self, critics: Critics | None, vgg: VGG19 | None) -> None:
        super().__init__()
        self.critics, self.vgg = critics, vgg

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critics.parameters()) if self.critics else []

    def generator_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        x, y = frame.rgb.float(), truth.rgb.float()
        terms = {}
        if self.critics:
            fake = self.critics(x, condition.maps)
            with torch.no_grad():
                real = self.critics(y, condition.maps)
            terms["adversarial"] = lsgan_generator([layers[-1] for layers in fake])
            terms["feature"] = feature_matching(real, fake)
        if self.vgg:
            with torch.no_grad():
                seen = self.vgg(y)
            terms["perceptual"] = perceptual(seen, self.vgg(x), PIX2PIXHD)
        else:
            terms["content"] = content_loss(x, y)
        if frame.matte is not None and truth.matte is not None:
            terms["matte"] = matte_loss(frame.matte, truth.matte)
        return terms

    def critic_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        if not self.critics:
            return {}
        real, fake = (self.critics(f.rgb.detach().float(), condition.maps) for f in (truth, frame))
        return {"critic": lsgan_critic([layers[-1] for layers in real], [layers[-1] for layers in fake])}
