"""`dance-paper`: Dance Dance Generation (Zhou et al. 2019) in the paper's own form; `dance` is what was made of it.

    parts of one input frame, moved (§3.1) ─┬─ human synthesis net (§3.3) ─ the person on green
    pose maps of three poses (§3.2) ────────┤                                │ chroma key, Eq. 2 with the scene B
                                            └─ fusion net (§3.4) ────────────┴─ the picture

Both nets are Pix2PixHD's coarse-to-fine generator with half its activation maps (§4.2), and paint every pixel. They are
trained jointly, each with its own critics and its own truth (§4.3): the person on green, and the frame.

What the paper leaves open, or what is different here:

* The input frame is the one of the K references whose pose is nearest, as when the paper draws novel motions (§4.3).
  Its training draws pairs at random (§4.2): so does fine-tuning (`sources`), and pretraining when K is 1.
* The paper's chroma key is not described: a pixel is background where green exceeds red and blue by half its range.
* Before another scene (`before`), the person on green is laid over it through a blurred key, as in §4.3; the fusion
  net, which knows the person's own scene, is left out.
* MuLA, whose features Eq. 7 compares, is not public: a small network of our own stands in (`parsing`).
* Trained without critics (few-shot fine-tuning, when none are shipped), the nets have the mean absolute difference in
  the place of the two terms that need critics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import parts
from ..heatmaps import POSE_CHANNELS, VISIBLE, WINDOW, pose_maps, stack_poses
from ..skeleton import BONES, MIRROR_PART
from .base import Batch, Frame, Objective, Poses, References, RetargetModel
from .critics import Critics
from .dance import MIRRORED_MAPS, to_track
from .layers import GlobalGenerator, LocalEnhancer, resized, within
from .losses import (
    VGG19,
    feature_matching,
    gradient_penalty,
    parsing_features,
    perceptual,
    relativistic_critic,
    relativistic_generator,
)
from .parsing import KEYPOINTS, TEN, Parser, ten_parts

GREEN = (-1.0, 1.0, -1.0)
"""What stands behind the person that the synthesis net draws."""
STRETCH = 4.0
"""How many times a limb may be enlarged or reduced: one that points at the camera has no length."""
STAGES = ("synthesis", "fusion")


@dataclass(frozen=True)
class DancePaperConfig:
    """Sizes of the two nets, which are alike. The defaults are the paper's (§4.2).

    side      short side of the pictures that the nets draw, in pixels; larger ones are enlarged from it.
    width     activation maps of g's finest layer: half of Pix2PixHD's 64. g̃ has half as many.
    downs     how often g halves the sides of its pictures.
    blocks    residual blocks of g.
    enhancer  residual blocks of g̃; 0: g by itself, which the paper trains first, at half the side.
    window    poses whose maps are stacked, the current one last: the paper's K.
    scales    of the critics: three for 512 pixels, two for 256.
    """

    side: int = 512
    width: int = 32
    downs: int = 4
    blocks: int = 9
    enhancer: int = 3
    window: int = WINDOW
    scales: int = 3

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be; also an avatar that somebody else made says its configuration."""
        for name, low, high in (
            ("side", 32, 4096), ("width", 2, 256), ("downs", 1, 6), ("blocks", 1, 32), ("enhancer", 0, 32),
            ("window", 1, 9), ("scales", 1, 5),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} is not a whole number from {low} to {high}")
        if self.width % 2:
            raise ValueError("width is not even")


class PaperCondition(NamedTuple):
    """Coordinates are in heights of the picture, so that they do not depend on its size."""

    maps: Tensor
    """(B, 15 · window, h, w): the stacked pose maps, at the size that the nets draw."""
    bones: Tensor
    """(B, 10, 2, 2): both ends of each part's line segment, x, y; NaN where one was not found."""
    keypoints: Tensor
    """(B, 17, 2): x, y; NaN where not found."""
    size: tuple[int, int]
    """(H, W) of what is drawn."""


class Seen(NamedTuple):
    """What the nets are shown: all of the forward pass that no parameter changes (`ahead`)."""

    maps: Tensor
    """(B, 15 · window, h, w): P_ref."""
    parts: Tensor
    """(B, 30, h, w) in 0..1: T, the colours of each part, zero elsewhere."""
    plate: Tensor
    """(B, 3, h, w) in 0..1: B."""


class PaperPerson(NamedTuple):
    """What is known of one person; pictures at the size that the nets draw."""

    rgb: Tensor
    """(K, 3, h, w) in 0..1."""
    masks: Tensor
    """(K, 10, h, w) in 0..1: H_in, part by part."""
    bones: Tensor
    """(K, 10, 2, 2), as of `PaperCondition`."""
    keypoints: Tensor
    """(K, 17, 2), likewise."""
    plate: Tensor
    """(3, H, W) in 0..1: the scene."""
    elsewhere: bool = False
    """Whether `plate` is another scene than the one that the references were filmed in."""


PaperIdentity = tuple[PaperPerson, ...]
"""One person for the whole batch, or one per picture."""


class DancePaper(RetargetModel):
    """The two nets; all knowledge of a person that is not learned is in the identity."""

    PRESETS: ClassVar = {
        "small": {"side": 128, "width": 16, "downs": 3, "blocks": 4, "enhancer": 2, "scales": 2},
        "paper": {},
    }
    FEATURES: ClassVar = ("vgg", "parser")
    Ahead = Seen
    sources = 1

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = DancePaperConfig(**config)
        c = self.config

        def net(inputs: int) -> nn.Module:
            coarse = GlobalGenerator(inputs, 0 if c.enhancer else 3, c.width, c.downs, c.blocks)
            return LocalEnhancer(coarse, inputs, 3, c.enhancer) if c.enhancer else coarse

        self.synthesis, self.fusion = net(3 * TEN + self.maps), net(3 + self.maps)

    @property
    def maps(self) -> int:
        return POSE_CHANNELS * self.config.window

    @property
    def window(self) -> int:
        return self.config.window

    @property
    def ahead_depends_on(self) -> dict[str, Any]:
        return {"side": self.config.side, "window": self.config.window}

    def condition(self, poses: Poses, size: tuple[int, int], previous: PaperCondition | None = None) -> PaperCondition:
        small = within(size, self.config.side)
        drawn = list(previous.maps.split(POSE_CHANNELS, 1)) if previous and previous.maps.shape[2:] == small else []
        for i in range(max(0, poses.body.shape[1] - self.config.window), poses.body.shape[1]):
            drawn.append(pose_maps(poses.body[:, i], poses.face[:, i], poses.hands[:, i], small, picture=poses.picture))
        last = poses.body[:, -1]
        return PaperCondition(
            stack_poses(drawn, self.config.window), *_located(last, poses.picture[0]), (size[0], size[1])
        )

    def encode(self, references: References) -> PaperIdentity:
        """Keeps the K references, parsed into parts, at the size that the nets draw."""
        return tuple(self._encode(references, b) for b in range(len(references.rgb)))

    def _encode(self, references: References, item: int) -> PaperPerson:
        rgb, device = references.rgb[item].float() / 2 + 0.5, references.rgb.device
        small = within((rgb.shape[2], rgb.shape[3]), self.config.side)
        rgb, matte = resized(rgb, small), resized(references.matte[item].float().cpu(), small)
        skeleton = parts.skeletons(to_track(references.poses, item).scaled((small[1], small[0])))
        masks = torch.stack(
            [ten_parts(parts.part_mattes(skeleton.take([k]), matte[k, 0].numpy())[0]) for k in range(len(rgb))]
        )
        bones, keypoints = _located(references.poses.body[item].to(device), references.poses.picture[0])
        return PaperPerson(rgb, masks.to(device), bones, keypoints, references.plate[item].float() / 2 + 0.5)

    def before(self, identity: PaperIdentity, plate: Tensor) -> PaperIdentity:
        return tuple(person._replace(plate=plate[0].float() / 2 + 0.5, elsewhere=True) for person in identity)

    def forward(
        self, condition: PaperCondition | Seen, identity: PaperIdentity, state: None = None
    ) -> tuple[Frame, None]:
        """With a `Seen` condition (`ahead`) the frame has the size that the nets draw, and identity says nothing.

        The frame's `extra` is the person on green, (B, 3, h, w) in -1..1.
        """
        if isinstance(condition, Seen):
            person, key = self._person(condition)
            return Frame(self._fused(condition, person, key), feathered(key), person), None
        seen, people = self._seen(condition, identity), _people(identity, len(condition.maps))
        person, key = self._person(seen)
        matte = resized(feathered(key), condition.size).clamp(0, 1)
        if people[0].elsewhere:
            scene = torch.cat([resized(2 * p.plate[None] - 1, condition.size) for p in people])
            # Enlarged as far as it is shown: no green comes in from beside it.
            rgb = resized(feathered(key) * person, condition.size) + (1 - matte) * scene
        else:
            rgb = resized(self._fused(seen, person, key), condition.size)
        return Frame(rgb.clamp(-1, 1), matte, person), None

    def _person(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """The person on green (§3.3), (B, 3, h, w) in -1..1, and their key (B, 1, h, w)."""
        person: Tensor = self.synthesis(torch.cat([seen.parts, seen.maps], 1)).float()
        return person, chroma_key(person)

    def _fused(self, seen: Seen, person: Tensor, key: Tensor) -> Tensor:
        """The person before the scene B (§3.4), (B, 3, h, w) in -1..1."""
        combined = key * person + (1 - key) * (2 * seen.plate - 1)  # Eq. 2
        rgb: Tensor = self.fusion(torch.cat([combined, seen.maps], 1)).float()
        return rgb

    @torch.no_grad()
    def _seen(self, condition: PaperCondition, identity: PaperIdentity) -> Seen:
        small = (condition.maps.shape[2], condition.maps.shape[3])
        people = _people(identity, len(condition.maps))
        chosen = [nearest(pose, person.keypoints) for pose, person in zip(condition.keypoints, people, strict=True)]
        moved = [
            transformed(person.rgb[k], person.masks[k], person.bones[k], bones, small)
            for k, person, bones in zip(chosen, people, condition.bones, strict=True)
        ]
        return Seen(
            condition.maps, torch.stack(moved), torch.cat([resized(p.plate[None], small) for p in people]).clamp(0, 1)
        )

    @torch.no_grad()
    def ahead(self, condition: PaperCondition, identity: PaperIdentity, truth: Frame) -> tuple[Seen, None, Frame]:
        small = (condition.maps.shape[2], condition.maps.shape[3])
        assert truth.matte is not None
        true = Frame(resized(truth.rgb, small).clamp(-1, 1), resized(truth.matte, small).clamp(0, 1))
        return self._seen(condition, identity), None, true

    def varied(self, pair: Batch, generator: torch.Generator) -> Batch:
        """Colours in another order and strength, left and right exchanged."""
        maps, moved, plate = pair.condition
        rgb, matte = pair.truth.rgb, pair.truth.matte
        order = torch.randperm(3, generator=generator)
        # Never brighter than white.
        gain = 0.5 + 0.5 * torch.rand(1, 3, 1, 1, generator=generator)
        moved = moved[:, [3 * p + c for p in range(TEN) for c in order.tolist()]] * gain.repeat(1, TEN, 1, 1)
        plate, rgb = plate[:, order] * gain, (rgb[:, order] + 1) * gain - 1
        if torch.rand((), generator=generator) < 0.5:
            assert matte is not None
            moved = moved[:, [3 * p + c for p in MIRROR_PART[:TEN] for c in range(3)]]
            maps = maps[:, [POSE_CHANNELS * w + c for w in range(self.config.window) for c in MIRRORED_MAPS]]
            maps, moved, plate, rgb, matte = (x.flip(3) for x in (maps, moved, plate, rgb, matte))
        return pair._replace(condition=Seen(maps, moved, plate), truth=Frame(rgb, matte))

    def grown(self, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor] | None:
        """Weights of g by itself become those of g in G = (g, g̃) (§4.2, Pix2PixHD §3.2)."""
        same = all(
            getattr(config, name) == getattr(self.config, name) for name in ("width", "downs", "blocks", "window")
        )
        if not same or config.enhancer or not self.config.enhancer:
            return None
        # What paints g's own picture is left out: its features are used.
        return {key.replace(".", ".coarse.", 1): t for key, t in tensors.items() if ".paint." not in key}

    def objective(
        self, *, critics: bool = True, vgg: VGG19 | None = None, parser: Parser | None = None
    ) -> DancePaperObjective:
        return DancePaperObjective(self.maps, scales=self.config.scales if critics else 0, vgg=vgg, parser=parser)

    def tunable(self, identity: PaperIdentity) -> Iterable[nn.Parameter]:
        """Everything: the paper trains the whole model for one person."""
        return self.parameters()


# ------------------------------------------------------------------------------------------------ objective


@dataclass(frozen=True)
class PaperWeights:
    """The weights of DDG §4.2, and of the difference that stands in for critics."""

    w_rela: float = 1.0
    w_gp: float = 10.0
    w_fm: float = 10.0
    w_vgg: float = 10.0
    w_sp: float = 10.0
    w_s: float = 0.01
    difference: float = 10.0


class DancePaperObjective(Objective):
    """Eq. 8 for the human synthesis net, and again for the fusion net; the terms are added.

    Args:
        channels: of the pose maps, which the critics look at, too.
        weights: of the terms.
        scales: of the critics; each net has its own. 0: no critics, see the module.
        vgg: the network of Eq. 6; None: the term is left out.
        parser: that of Eq. 7; None likewise.
    """

    def __init__(
        self,
        channels: int,
        weights: PaperWeights = PaperWeights(),
        *,
        scales: int = 2,
        vgg: VGG19 | None = None,
        parser: Parser | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.vgg = weights, vgg
        self.parser = parser.requires_grad_(False) if parser is not None else None
        self.critics = nn.ModuleDict({stage: Critics(channels, scales) for stage in STAGES} if scales else {})

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critics.parameters())

    def generator_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        w, terms = self.weights, {}
        for stage, x, y in _supervised(frame, truth):
            if self.critics:
                fake = self.critics[stage](x, condition.maps)
                with torch.no_grad():
                    real = self.critics[stage](y, condition.maps)
                terms[f"{stage}_adversarial"] = w.w_rela * relativistic_generator(_scores(real), _scores(fake))
                terms[f"{stage}_feature"] = w.w_fm * feature_matching(real, fake)
            else:
                terms[f"{stage}_difference"] = w.difference * F.l1_loss(x, y)
            for name, weight, net, compare in (
                ("perceptual", w.w_vgg, self.vgg, perceptual),
                ("parsing", w.w_sp, self.parser and self.parser.features, lambda y, x: parsing_features(y, x, w.w_s)),
            ):
                if net is not None:
                    with torch.no_grad():
                        seen = net(y)
                    terms[f"{stage}_{name}"] = weight * compare(seen, net(x))
        return terms

    def critic_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        w, terms = self.weights, {}
        for stage, drawn, y in _supervised(frame, truth) if self.critics else ():
            x, critics = drawn.detach(), self.critics[stage]

            def judged(rgb: Tensor, critics: nn.Module = critics) -> list[Tensor]:
                return _scores(critics(rgb, condition.maps))

            terms[f"{stage}_critic"] = w.w_rela * relativistic_critic(judged(y), judged(x))
            terms[f"{stage}_penalty"] = w.w_rela * w.w_gp * gradient_penalty(judged, y, x)
        return terms


def _supervised(frame: Frame, truth: Frame) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Per net what it drew, x, and what it should have drawn, y."""
    assert truth.matte is not None
    yield "synthesis", frame.extra.float(), on_green(truth.rgb.float(), truth.matte)
    yield "fusion", frame.rgb.float(), truth.rgb.float()


def _scores(layers: Iterable[list[Tensor]]) -> list[Tensor]:
    return [scale[-1] for scale in layers]


# ------------------------------------------------------------------------------------------------ green


def on_green(rgb: Tensor, matte: Tensor) -> Tensor:
    """Ĩ_ref (§3.3): the person of (B, 3, H, W) in -1..1 on green, cut out by the binary mask H_ref^bi."""
    return torch.where(matte > 0.5, rgb, rgb.new_tensor(GREEN)[:, None, None])


def chroma_key(rgb: Tensor) -> Tensor:
    """H_gen^bi (§3.3): (B, 3, H, W) in -1..1 → (B, 1, H, W), 1 for the person and 0 for green. No gradient."""
    rgb = rgb.detach()
    return (rgb[:, 1:2] - torch.maximum(rgb[:, :1], rgb[:, 2:]) < 1).float()


def feathered(key: Tensor) -> Tensor:
    """§4.3: a key (B, 1, H, W), blurred by a Gaussian of one pixel on its inner side: no green shines through."""
    kernel = key.new_tensor([1, 4, 6, 4, 1]) / 16
    with torch.autocast(key.device.type, enabled=False):
        around = F.pad(key, (2, 2, 2, 2), "replicate")
        soft = F.conv2d(F.conv2d(around, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1))
    return (2 * soft - 1).clamp(0, 1) * key


# ------------------------------------------------------------------------------------------------ transformed parts


def transformed(rgb: Tensor, masks: Tensor, source: Tensor, target: Tensor, size: tuple[int, int]) -> Tensor:
    """T (§3.1): each body part of one picture, moved by the transform that carries its line segment onto the target's.

    A line segment onto a line segment determines translation, rotation and scale. Nothing is drawn of a part that was
    not found in either pose.

    Args:
        rgb: (3, H, W) in 0..1.
        masks: (10, H, W) in 0..1.
        source, target: line segments (10, 2, 2), in heights of the picture; NaN: not found.
        size: (h, w) of what is drawn.

    Returns:
        (30, h, w) in 0..1: three channels per part.
    """
    with torch.autocast(rgb.device.type, enabled=False):
        back, known = _back(source.float(), target.float(), rgb.shape[2] / rgb.shape[1], size[1] / size[0])
        pieces = masks[:, None].float() * rgb.float() * known[:, None, None, None]
        grid = F.affine_grid(back, [len(masks), 3, *size], align_corners=False)
        moved = F.grid_sample(pieces, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.flatten(0, 1)


def _back(source: Tensor, target: Tensor, aspect: float, wanted: float) -> tuple[Tensor, Tensor]:
    """The inverses of M_i as a spatial transformer takes them, (10, 2, 3): from -1..1 of the drawn picture to -1..1 of
    the source's; and (10,) bool, which are known. `aspect`, `wanted`: width per height of source and drawn picture."""
    known = source.isfinite().flatten(1).all(1) & target.isfinite().flatten(1).all(1)
    (sx, sy), (tx, ty) = (ends[:, 0].nan_to_num().unbind(1) for ends in (source, target))
    (ax, ay), (bx, by) = ((ends[:, 1] - ends[:, 0]).nan_to_num().unbind(1) for ends in (source, target))
    # As complex numbers: the quotient of the segments turns and scales.
    length = (bx.square() + by.square()).clamp_min(1e-8)
    re, im = (ax * bx + ay * by) / length, (ay * bx - ax * by) / length
    scale = (re.square() + im.square()).sqrt().clamp_min(1e-8)
    held = scale.clamp(1 / STRETCH, STRETCH) / scale
    re, im = re * held, im * held
    left, top = wanted / 2 - tx, 0.5 - ty
    rows = [
        [re * wanted / aspect, -im / aspect, (re * left - im * top + sx) * 2 / aspect - 1],
        [im * wanted, re, (im * left + re * top + sy) * 2 - 1],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], 1), known


def nearest(pose: Tensor, known: Tensor) -> int:
    """Which of K poses (K, 17, 2) is nearest to a pose (17, 2): the input frame I_in (§4.3).

    By the mean distance of the key points that both have, normalised by their centre and root mean square extent; the
    first one when nothing can be compared.
    """
    found = (known + pose).isfinite()
    apart = (
        (_normalised(known.where(found, torch.nan)) - _normalised(pose.where(found, torch.nan)))
        .norm(dim=-1)
        .nanmean(-1)
    )
    return int(apart.nan_to_num(torch.inf).argmin())


def _normalised(poses: Tensor) -> Tensor:
    centred = poses - poses.nanmean(-2, keepdim=True)
    return centred / centred.square().sum(-1, keepdim=True).nanmean(-2, keepdim=True).sqrt().clamp_min(1e-6)


def _located(body: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Bodies (N, 33, 4) → line segments (N, 10, 2, 2) and key points (N, 17, 2), in heights of the picture."""
    points = torch.where(body[..., 3:] >= VISIBLE, body[..., :2], torch.nan).float() / height
    ends = [torch.stack([points[:, list(joints)].mean(1) for joints in bone], 1) for bone in BONES[:TEN]]
    return torch.stack(ends, 1), points[:, list(KEYPOINTS)]


def _people(identity: PaperIdentity, count: int) -> list[PaperPerson]:
    return [identity[b if len(identity) > 1 else 0] for b in range(count)]
