"""`posewarp`: MetaPix's second base (Lee et al. 2020, §3, “Pose Transfer”): Balakrishnan et al. 2018, "Synthesizing
Images of Humans in Unseen Poses" (§ below are that paper's), from one reference to the driving pose. Layers and numbers
that the paper leaves open are those of its authors' implementation, which MetaPix builds on.

    reference ─ segmentation U-Net + prior (§3.1) ─ masks of ten limbs and the scene
    masked limbs ─ a similarity transform each, from its joints (§3.2) ─ moved limbs
    moved limbs + pose ─ person U-Net (§3.3) ─ person and matte ┐
    masked scene + pose ─ scene U-Net (§3.4) ─ scene ───────────┴─ blended by the matte (§3.5)

Of K references a picture is drawn from one (`sources`). Fine-tuning takes all pairs of them, both ways (MetaPix §3:
"use the C(K, 2) pairs from K frames"); a driving pose takes the reference whose joints are nearest, in metres, in three
dimensions and wherever the person stands, and stays with it unless another one is nearer by `STICKY`.

The objective's first stage is without critics; it is what MetaPix meta-learns. The second has one.

Where it departs from the paper:
* the paper crops people to one size in 256 × 256 pixels; here pictures are whole, at most `PosewarpConfig.side` on the
  short side, and all widths are in metres of the person, whom the paper's crop makes about 130 pixels per metre;
* the joints are the paper's fourteen, made of BlazePose's;
* a limb of which a joint was not found is not there; no limb grows or shrinks more than fourfold;
* unless `whole`, the nets are given what the product knows: the scene is the plate and there is no scene U-Net; the
  segmentation begins with the reference's matte, divided among the limbs; the person and the matte begin with the moved
  limbs, which the person U-Net corrects, instead of from nothing. A network that has learned nothing shows the moved
  limbs on the plate; one that has learned from other people is trusted as far as it helps on this person's pictures
  (`settle`). With `whole` (the preset `paper`) everything is painted, as in the paper, as long as nobody asks
  for another scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heatmaps import VISIBLE
from ..skeleton import FACE_JOINTS, J
from .base import Batch, Frame, Objective, Poses, References, RetargetModel
from .layers import fit_sides, resized, within, zero_
from .losses import VGG19, content_loss, matte_loss
from .trust import settled

JOINTS = (
    "head", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
)  # fmt: skip
"""The paper's fourteen; "head" is its top."""
MIRRORED = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10)
"""The joint that is seen in a mirror where each joint is."""
LIMBS = ((0, 1), (2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (2, 5, 8, 11))
"""The joints of the ten limbs: head, arms, legs, and the torso's four."""
ENDS = (
    tuple((limb[: len(limb) // 2] * 2)[:2] for limb in LIMBS),
    tuple((limb[len(limb) // 2 :] * 2)[:2] for limb in LIMBS),
)
"""Both ends of each limb: the torso's two joints, any other's one, twice."""
RULERS = (((2, 5), (8, 11), 0.5), ((2,), (5,), 0.36), *(((a,), (b,), 0.41) for a, b in LIMBS[5:9]))
"""What tells the body's scale: from the middle of joints to the middle of joints, and an adult's metres."""
ACROSS, ACROSS_TORSO, ALONG = 0.085, 0.1, 0.017
"""Sigma of a limb's prior across it, and the least along it, in metres: 11, 13 and √5 of the paper's pixels."""
DOT = 0.027
"""Sigma of a joint's heat map in metres: 7 / 4 of the paper's pixels at half its resolution."""
LARGEST = 4.0
"""The most that a limb grows or shrinks."""
STICKY = 0.01
"""By how many metres, on the average over the joints, another reference has to be nearer before it takes over."""
SHARP = 6.0
"""How much sharper the limbs' priors divide a person whose matte is known: they are wide, to hold clothes, and the
torso's reaches over the head."""
TINY = 1e-10
"""What the paper adds to a prior before its logarithm."""
TRUSTED = ("masks", "colour", "matte")
"""What `Posewarp.trust` weighs."""
GAN = 0.1
"""λ: how much the critic counts (§3.6)."""


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
        return heat_maps(self.joints, _half(self.small))


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
        small = _half((self.source.shape[2], self.source.shape[3]))
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


class Posewarp(RetargetModel):
    """The model."""

    PRESETS: ClassVar = {"small": {"side": 160}, "paper": {"width": 64, "whole": True}}
    Ahead = Pair
    sources = 1
    trust: Tensor
    """(3,) in 0..1: how much of each of the nets' corrections (`TRUSTED`) this person gets; see `settle`."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = PosewarpConfig(**config)
        width, whole = self.config.width, self.config.whole
        limbs = len(LIMBS)
        self.segmentation = PoseUNet(3, width, width // 2)
        self.masks = nn.Conv2d(width // 2, limbs + 1, 3, 1, 1)
        self.person = PoseUNet(3 * limbs, width, width)
        self.colour = nn.Conv2d(width, 3, 3, 1, 1)
        self.matte = nn.Conv2d(width, 1, 3, 1, 1)
        self.scene = PoseUNet(4, width, width) if whole else None
        self.filled = nn.Conv2d(width, 3, 3, 1, 1) if whole else None
        self.moves_pixels = not whole
        self.register_buffer("trust", torch.ones(len(TRUSTED)))
        _begin(self)
        zero_(self.masks)  # the prior is a sane segmentation
        if not whole:
            zero_(self.colour)
            zero_(self.matte)

    @property
    def maps(self) -> int:
        return len(JOINTS)

    @property
    def ahead_depends_on(self) -> dict[str, Any]:
        return {"side": self.config.side}

    def condition(self, poses: Poses, size: tuple[int, int], previous: Any = None) -> PosewarpCondition:
        small = within(size, self.config.side)
        return PosewarpCondition(_scaled(joints_of(poses.body[:, -1]), poses.picture, small), small, size)

    def encode(self, references: References) -> Sources:
        device, size = references.rgb.device, (references.rgb.shape[3], references.rgb.shape[4])
        joints = joints_of(references.poses.body.to(device))
        return Sources(
            references.rgb.float() / 2 + 0.5,
            references.matte.to(device).float(),
            _scaled(joints, references.poses.picture, size),
            references.plate.float() / 2 + 0.5,
            True,
        )

    def before(self, identity: Sources, plate: Tensor) -> Sources:
        return identity._replace(plate=plate.float() / 2 + 0.5, own=False)

    def forward(
        self, condition: PosewarpCondition | Pair, identity: Sources | None, state: PosewarpState | None
    ) -> tuple[Frame, PosewarpState | None]:
        """With a `Pair` condition (`ahead`) the frame is as large as its source, and there is no identity or state."""
        if isinstance(condition, Pair):
            masks = self._masks(condition)
            return self._blended(condition, masks, self._scene(condition, masks), condition.plate, True), None
        assert identity is not None
        which = self._nearest(condition, identity, state)
        pair = self._pair(condition, identity, which)
        if state is None or self.training or not torch.equal(which, state.which):
            masks = self._masks(pair)
            state = PosewarpState(which, masks, self._scene(pair, masks))
        plate = resized(identity.plate, condition.size)
        return self._blended(pair, state.masks, state.scene, plate, identity.own), state

    @torch.no_grad()
    def ahead(self, condition: PosewarpCondition, identity: Sources, truth: Frame) -> tuple[Pair, None, Frame]:
        """At the size that the networks draw, from the nearest reference."""
        pair = self._pair(condition, identity, self._nearest(condition, identity, None))
        assert truth.matte is not None
        return pair, None, Frame(resized(truth.rgb, condition.small), resized(truth.matte, condition.small))

    def varied(self, pair: Batch, generator: torch.Generator) -> Batch:
        """Colours in another order and strength, left and right exchanged (the paper: flips and saturation)."""
        source, joints, plate = pair.condition
        rgb, matte = pair.truth.rgb, pair.truth.matte
        assert matte is not None
        order = torch.randperm(3, generator=generator)
        # Never brighter than white.
        gain = 0.5 + 0.5 * torch.rand(1, 3, 1, 1, generator=generator)
        source = torch.cat([source[:, order] * gain, source[:, 3:]], 1)
        plate, rgb = plate[:, order] * gain, (rgb[:, order] + 1) * gain - 1
        if torch.rand((), generator=generator) < 0.5:
            mirrored = [*MIRRORED, *(len(JOINTS) + i for i in MIRRORED)]
            joints = joints[:, mirrored] * joints.new_tensor([-1, 1, 1])
            joints = joints + joints.new_tensor([source.shape[3], 0, 0])
            source, plate, rgb, matte = (x.flip(3) for x in (source, plate, rgb, matte))
        return pair._replace(condition=Pair(source, joints, plate), truth=Frame(rgb, matte))

    def packed(self, state: PosewarpState | None) -> dict[str, Tensor]:
        return {} if state is None else {key: t for key, t in state._asdict().items() if t is not None}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> PosewarpState | None:
        if not tensors:
            return None
        device = self.colour.weight.device
        found = {key: tensors[key].to(device) if key in tensors else None for key in PosewarpState._fields}
        return PosewarpState(**found)  # type: ignore[arg-type]

    @staticmethod
    def _nearest(condition: PosewarpCondition, identity: Sources, state: PosewarpState | None) -> Tensor:
        """(B,) the reference to draw each pose from."""
        pose, known = (x / body_scale(x)[..., None, None] for x in (condition.joints[:, None], identity.joints))
        apart = pose - known
        apart = apart - apart.nanmean(-2, keepdim=True)
        distance = apart.norm(dim=-1).nanmean(-1).nan_to_num(1e3)
        if state is not None:
            distance = distance.scatter_add(1, state.which[:, None], distance.new_full((len(distance), 1), -STICKY))
        return distance.argmin(1)

    def _pair(self, condition: PosewarpCondition, identity: Sources, which: Tensor) -> Pair:
        count, people = len(condition.joints), len(identity.rgb)
        rows = torch.arange(count, device=which.device) % people
        rgb, matte, joints = (x[rows, which] for x in identity[:3])
        size = (rgb.shape[2], rgb.shape[3])
        source = resized(torch.cat([rgb, matte], 1), condition.small)
        plate = resized(identity.plate, condition.small).expand(count, -1, -1, -1)
        return Pair(source, torch.cat([condition.joints, _scaled(joints, size, condition.small)], 1), plate)

    def _masks(self, pair: Pair) -> Tensor:
        """(B, 11, h, w): how much of each pixel of the reference is the scene, and each limb (§3.1)."""
        rgb, matte = pair.source.split((3, 1), 1)
        log = limb_priors(pair.known, (rgb.shape[2], rgb.shape[3]))
        if self.config.whole:
            prior = log.exp()
            scene = 1 - prior.amax(1, keepdim=True)
            logits = torch.log(torch.cat([scene, prior], 1) + TINY)
        else:
            # The reference's matte says what the person is, the prior only which limb.
            log_matte, log_scene = matte.clamp_min(1e-3).log(), (1 - matte).clamp_min(1e-3).log()
            # Not next to nothing: see `heat_maps`.
            logits = torch.cat([log_scene, log_matte + (SHARP * log).log_softmax(1).clamp_min(-20)], 1)
        change = self.masks(self.segmentation(2 * rgb - 1, pair.known))
        return (logits + self.trust[0] * change.float()).softmax(1)

    def _scene(self, pair: Pair, masks: Tensor) -> Tensor | None:
        """(B, 3, h, w) in -1..1: the reference's scene, its hole filled."""
        if self.scene is None or self.filled is None:
            return None
        alone = masks[:, :1]
        features = self.scene(torch.cat([(2 * pair.source[:, :3] - 1) * alone, alone], 1), pair.known)
        scene: Tensor = self.filled(features)
        return scene.float().tanh()

    def _blended(self, pair: Pair, masks: Tensor, scene: Tensor | None, plate: Tensor, own: bool) -> Frame:
        """The person before the scene (§3.5), as large as the plate, which is in 0..1."""
        limbs = moved_limbs(pair, masks[:, 1:])
        features = self.person(limbs[:, :, :3].flatten(1, 2), pair.driving)
        rgb, matte = self.colour(features).float(), self.matte(features).float()
        if not self.config.whole:
            together = limbs.sum(1)
            cover = together[:, 3:]
            rgb = (together[:, :3] / cover.clamp_min(0.05)).clamp(-0.99, 0.99).atanh() + self.trust[1] * rgb
            matte = torch.logit(cover.clamp(1e-3, 1 - 1e-3)) + self.trust[2] * matte
        drawn = [x if tuple(x.shape[2:]) == tuple(plate.shape[2:]) else resized(x, plate.shape[2:])
                 for x in (rgb.tanh(), matte.sigmoid(), *(() if scene is None else (scene,)))]  # fmt: skip
        behind = drawn[2] if scene is not None and own else 2 * plate - 1
        return Frame(torch.lerp(behind, drawn[0], drawn[1]), drawn[1])

    def objective(self, *, critics: bool = True, vgg: VGG19 | None = None) -> PosewarpObjective:
        return PosewarpObjective(PairCritic(2 * self.maps, self.config.width) if critics else None, vgg)

    def settle(self, score: Callable[[], float]) -> dict[str, float]:
        """How far the nets' corrections are trusted, each by itself. Not with `whole`: there they are all there is, nor
        before anything is learned."""
        learned = any(bool(p.any()) for net in (self.masks, self.colour, self.matte) for p in net.parameters())
        if self.config.whole or not learned:
            return {}
        return settled(self.trust, TRUSTED, (True,) * len(TRUSTED), score)

    def tunable(self, identity: Sources) -> Iterable[nn.Parameter]:
        return self.parameters()


# ----------------------------------------------------------------------------------------------------- networks


class PoseUNet(nn.Module):
    """The U-Net of all three tasks (§3.1): eleven convolutions down to 1/32, the pose joining at 1/2, and five up.

    Without normalisation; leaky ReLU of 0.2. `width` 64 is the paper's.

    Shapes: (B, inputs, H, W) and joints (B, 14, 3) → (B, outputs, H, W), any H and W.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        a, b, joints = width, 2 * width, len(JOINTS)
        self.first = _conv(inputs, a, 7)
        self.second = _conv(a, a, stride=2)
        self.keep = nn.ModuleList([_conv(a + joints, b), *(_conv(b, b) for _ in range(3))])
        self.halve = nn.ModuleList(_conv(b, b, stride=2) for _ in range(4))
        self.bottom = _conv(b, b)
        self.up = nn.ModuleList([*(_conv(2 * b, b) for _ in range(4)), _conv(b + a, outputs)])

    def forward(self, x: Tensor, joints: Tensor) -> Tensor:
        h, w = x.shape[2:]
        x = self.first(fit_sides(x, 32))
        skips = [x]
        maps = heat_maps(joints, (x.shape[2] // 2, x.shape[3] // 2))
        y = torch.cat([self.second(x), maps.to(x.dtype)], 1)
        for keep, halve in zip(self.keep, self.halve, strict=True):
            skips.append(keep(y))
            y = halve(skips[-1])
        y = self.bottom(y)
        for up in self.up:
            y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
            y = up(torch.cat([y, skips.pop()], 1))
        return y[..., :h, :w]


class PairCritic(nn.Module):
    """The critic (§3.6): a picture and both poses → one logit.

    `width` 64 is the paper's. The paper's pictures of 256 × 256 pixels end in 8 × 8; others are averaged to that.

    Shapes: (B, 3, H, W) in -1..1 and (B, poses, ⌈H / 2⌉, ⌈W / 2⌉) → (B, 1), H and W of at least 32.
    """

    def __init__(self, poses: int, width: int) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.first = _conv(3, a, 5)
        self.rest = nn.Sequential(
            _conv(a + poses, b, 5), nn.MaxPool2d(2), _conv(b, c), nn.MaxPool2d(2), _conv(c, c), nn.MaxPool2d(2),
            _conv(c, c), nn.MaxPool2d(2), _conv(c, c), nn.AdaptiveAvgPool2d(8), nn.Flatten(),
            nn.Linear(64 * c, c), nn.ReLU(), nn.Linear(c, c), nn.ReLU(), nn.Linear(c, 1),
        )  # fmt: skip
        _begin(self)

    def forward(self, rgb: Tensor, maps: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(rgb), 2, ceil_mode=True)
        logit: Tensor = self.rest(torch.cat([x, maps.to(x.dtype)], 1))
        return logit


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.LeakyReLU(0.2))


def _begin(net: nn.Module) -> None:
    """Fresh weights as the paper's library draws them (Glorot, uniform)."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


# ----------------------------------------------------------------------------------------------------- geometry


def joints_of(body: Tensor) -> Tensor:
    """(..., 33, 4) as in `Poses` → (..., 14, 3): `JOINTS`; NaN: not found, or less visible than `VISIBLE`."""
    xyz = body[..., :3].masked_fill(~(body[..., 3:] >= VISIBLE), torch.nan)
    neck = xyz[..., [J["left_shoulder"], J["right_shoulder"]], :].mean(-2)
    # The middle between the ears does not move when the head turns.
    ears, face = (xyz[..., joints, :].nanmean(-2) for joints in ([J["left_ear"], J["right_ear"]], list(FACE_JOINTS)))
    middle = torch.where(ears.isnan(), face, ears)
    top = middle + 0.55 * (middle - neck)
    return torch.cat([top[..., None, :], neck[..., None, :], xyz[..., [J[name] for name in JOINTS[2:]], :]], -2)


def body_scale(joints: Tensor) -> Tensor:
    """(..., 14, 3) → (...): pixels per metre, the median over `RULERS` measured in three dimensions; NaN: unknown."""
    lengths = [
        (joints[..., list(a), :].mean(-2) - joints[..., list(b), :].mean(-2)).norm(dim=-1) / metres
        for a, b, metres in RULERS
    ]
    return torch.stack(lengths, -1).nanmedian(-1).values.clamp_min(1)


def heat_maps(joints: Tensor, half: tuple[int, int]) -> Tensor:
    """Gaussians around the joints (§3.1), at half the resolution that the joints' pixels belong to.

    Args:
        joints: (B, 14, 3); NaN: not found.
        half: (h, w) of the maps.

    Returns:
        (B, 14, h, w) float32 in 0..1; zero for what was not found.
    """
    sigma = (DOT * _scale_or(joints, 2 * half[0]) / 2).clamp_min(0.7)[:, None, None]
    x, y = (joints[..., i : i + 1].float() / 2 for i in (0, 1))
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(n, device=joints.device) + 0.5 - at) / sigma) ** 2)
        for n, at in zip(half, (y, x), strict=True)
    )
    # Numbers next to nothing would make a CPU slow.
    rows, columns = (F.threshold(axis.nan_to_num(0.0), 1e-5, 0.0) for axis in (rows, columns))
    return rows[..., :, None] * columns[..., None, :]


def limb_priors(joints: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the limbs of a reference are likely to be (§3.1): the logarithms of Gaussians around them, 0 in the middle.

    Args:
        joints: (B, 14, 3) in pixels of the picture; NaN: not found.
        size: (h, w) of the picture.

    Returns:
        (B, 10, h, w) float32; -1e4 for a limb that was not found.
    """
    metre = _scale_or(joints, size[0])[:, None]
    ends = torch.stack([joints[:, end, :2].float().mean(2) for end in ENDS], 2)
    known = ends.isfinite().flatten(2).all(2)
    start, end = ends.nan_to_num(0.0).unbind(2)
    length = (end - start).norm(dim=-1)
    along = (end - start) / length.clamp_min(1e-6)[..., None]
    along = torch.where(length[..., None] > 1e-3, along, along.new_tensor([0.0, 1.0]))
    widths = metre * metre.new_tensor([ACROSS] * 9 + [ACROSS_TORSO])
    stretch = torch.maximum(length.square() / 1.5, (metre * ALONG).square())
    y = torch.arange(size[0], device=joints.device)[:, None] + 0.5 - ((start + end) / 2)[..., 1, None, None]
    x = torch.arange(size[1], device=joints.device)[None] + 0.5 - ((start + end) / 2)[..., 0, None, None]
    u, v = along[..., 0, None, None], along[..., 1, None, None]
    log = -0.5 * ((u * x + v * y).square() / stretch[..., None, None] + (u * y - v * x).square()
                  / widths.square()[..., None, None])  # fmt: skip
    return torch.where(known[..., None, None], log.clamp_min(-1e4), -1e4)


def similarities(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The transforms that carry the limbs of one pose onto another's (§3.2): of turning, scaling and shifting, the one
    that takes a limb's joints nearest to where they belong, by least squares.

    Args:
        target, source: (B, 14, 3) in pixels; NaN: not found.

    Returns:
        (B, 10, 2, 3): pixels of the target → pixels of the source; and (B, 10) bool: all joints were found.
    """
    # (B, 10, 4, 2)
    there, here = (torch.cat([joints[:, end, :2].float() for end in ENDS], 2) for joints in (target, source))
    known = there.isfinite().flatten(2).all(2) & here.isfinite().flatten(2).all(2)
    there, here = there.nan_to_num(0.0), here.nan_to_num(0.0)
    middle, origin = there.mean(2), here.mean(2)
    p, q = there - middle[:, :, None], here - origin[:, :, None]
    spread = p.square().sum((2, 3)).clamp_min(1e-6)
    cos = (p * q).sum((2, 3)) / spread
    sin = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(2) / spread
    size = torch.hypot(cos, sin)
    cos = torch.where(size > 0, cos, torch.ones_like(cos))
    wanted = size.clamp(1 / LARGEST, LARGEST) / torch.where(size > 0, size, torch.ones_like(size))
    cos, sin = cos * wanted, sin * wanted
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    offset = origin - (linear @ middle[..., None])[..., 0]
    return torch.cat([linear, offset[..., None]], -1), known


def moved_limbs(pair: Pair, masks: Tensor) -> Tensor:
    """The reference's masked limbs where the driving pose has them (§3.2).

    Args:
        masks: (B, 10, h, w), of the limbs.

    Returns:
        (B, 10, 4, h, w): red, green, blue in -1..1 times the mask, and the mask; bilinear, nothing from outside.
    """
    count, limbs, h, w = masks.shape
    with torch.autocast(masks.device.type, enabled=False):
        masks = masks.float()
        rgb = (2 * pair.source[:, None, :3].float() - 1) * masks[:, :, None]
        masked = torch.cat([rgb, masks[:, :, None]], 2).flatten(0, 1)
        theta, known = similarities(pair.driving, pair.known)
        # From pixels to the -1..1 of both pictures.
        to_pixels = theta.new_tensor([[w / 2, 0, w / 2], [0, h / 2, h / 2], [0, 0, 1]])
        linear = theta @ to_pixels
        linear = linear * theta.new_tensor([[2 / w], [2 / h]]) - theta.new_tensor([[0, 0, 1], [0, 0, 1]])
        grid = F.affine_grid(linear.flatten(0, 1), [count * limbs, 4, h, w], align_corners=False)
        moved = F.grid_sample(masked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return moved.unflatten(0, (count, limbs)) * known[..., None, None, None]


def _scaled(joints: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Joints (..., 3) of a picture of `size` (height, width) in one of another: z follows the width."""
    x, y = to[1] / size[1], to[0] / size[0]
    return joints * joints.new_tensor([x, y, x])


def _scale_or(joints: Tensor, height: int) -> Tensor:
    """(B,): pixels per metre; of an unknown body, half of the picture's height."""
    return body_scale(joints.float()).nan_to_num(height / 2)


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)


# ----------------------------------------------------------------------------------------------------- objective

CONVOLUTIONS = (1, 3, 6, 8, 11, 13, 15, 17, 20, 22, 24, 26)
"""Indices of VGG19's first twelve activations, relu1_1 to relu4_4."""
FLOOR = 0.1 / 57
"""What is added to a channel's standard deviation: 0.1 in the paper, whose VGG19 sees about 57 times larger inputs."""


class PosewarpObjective(Objective):
    """§3.6: L_VGG, and in the second stage, with a critic, L_VGG + λ L_GAN: λ = 0.1, binary cross entropy.

    L_VGG: the mean absolute difference of VGG19's activations, each channel divided by its standard deviation, averaged
    over twelve layers; with averages for VGG's maxima. The paper's deviations are those of its corpus; here they are
    those of the true pictures of the batch. Without VGG19 `content_loss` takes its place. The matte is told the true
    one, which the paper does not know.

    The critic judges conditions that `Posewarp.ahead` made: it looks at both poses.
    """

    def __init__(self, critics: PairCritic | None, vgg: VGG19 | None) -> None:
        super().__init__()
        self.critics, self.vgg = critics, vgg

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critics.parameters()) if self.critics else []

    def generator_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        x, y = frame.rgb.float(), truth.rgb.float()
        terms = {"perceptual": vgg_loss(self.vgg, x, y)} if self.vgg else {"content": content_loss(x, y)}
        if frame.matte is not None and truth.matte is not None:
            terms["matte"] = matte_loss(frame.matte, truth.matte)
        if self.critics:
            terms["adversarial"] = GAN * _judged(self.critics(x, condition.maps), 1.0)
        return terms

    def critic_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        if not self.critics:
            return {}
        maps = condition.maps
        real, fake = (self.critics(f.rgb.detach().float(), maps) for f in (truth, frame))
        return {"critic": 0.5 * (_judged(real, 1.0) + _judged(fake, 0.0))}


def vgg_loss(vgg: VGG19, x: Tensor, y: Tensor) -> Tensor:
    """L_VGG of `PosewarpObjective`: drawn x and true y, (B, 3, H, W) in -1..1."""
    with torch.no_grad():
        real = vgg(y, CONVOLUTIONS, average=True)
    terms = []
    for true, drawn in zip(real, vgg(x, CONVOLUTIONS, average=True), strict=True):
        deviation = true.float().std((0, 2, 3), keepdim=True, correction=0) + FLOOR
        terms.append(((true.float() - drawn.float()) / deviation).abs().mean())
    return torch.stack(terms).mean()


def _judged(logits: Tensor, label: float) -> Tensor:
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
