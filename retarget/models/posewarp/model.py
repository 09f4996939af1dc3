"""The model: from one of the references to the driving pose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..base import Batch, Frame, Poses, References, RetargetModel
from ..layers import resized, within, zero_
from ..losses import VGG19
from ..trust import settled
from .config import Pair, PosewarpCondition, PosewarpConfig, PosewarpState, Sources
from .joints import JOINTS, LIMBS, MIRRORED, body_scale, joints_of, scaled
from .limbs import limb_priors, moved_limbs
from .networks import PairCritic, PoseUNet, glorot
from .objective import PosewarpObjective

STICKY = 0.01
"""By how many metres, on the average over the joints, another reference has to be nearer before it takes over."""
SHARP = 6.0
"""How much sharper the limbs' priors divide a person whose matte is known: they are wide, to hold clothes, and the
torso's reaches over the head."""
TINY = 1e-10
"""What the paper adds to a prior before its logarithm."""
HEAD = 0
"""The number of the limb that is the head."""
TRUSTED = ("masks", "colour", "matte")
"""What `Posewarp.trust` weighs."""


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
        glorot(self)
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
        return PosewarpCondition(scaled(joints_of(poses.body[:, -1]), poses.picture, small), small, size)

    def encode(self, references: References) -> Sources:
        device, size = references.rgb.device, (references.rgb.shape[3], references.rgb.shape[4])
        joints = joints_of(references.poses.body.to(device))
        return Sources(
            references.rgb.float() / 2 + 0.5,
            references.matte.to(device).float(),
            scaled(joints, references.poses.picture, size),
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
        return Pair(source, torch.cat([condition.joints, scaled(joints, size, condition.small)], 1), plate)

    def _masks(self, pair: Pair) -> Tensor:
        """(B, 11, h, w): how much of each pixel of the reference is the scene, and each limb (§3.1)."""
        rgb, matte = pair.source.split((3, 1), 1)
        log = limb_priors(pair.known, (rgb.shape[2], rgb.shape[3]))
        change = self.masks(self.segmentation(2 * rgb - 1, pair.known)).float()
        if self.config.whole:
            prior = log.exp()
            scene = 1 - prior.amax(1, keepdim=True)
            logits = torch.log(torch.cat([scene, prior], 1) + TINY)
        else:
            # The reference's matte says what the person is, the prior only which limb.
            log_matte, log_scene = matte.clamp_min(1e-3).log(), (1 - matte).clamp_min(1e-3).log()
            # Not next to nothing: see `heat_maps`.
            share = (SHARP * log).log_softmax(1)
            logits = torch.cat([log_scene, log_matte + share.clamp_min(-20)], 1)
            change = change * self.trust[0] * (1 - share[:, HEAD : HEAD + 1].exp())
        return (logits + change).softmax(1)

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
            free = (1 - limbs[:, HEAD, 3:] / cover.clamp_min(1e-3)).clamp(0, 1)
            rgb = (together[:, :3] / cover.clamp_min(0.05)).clamp(-0.99, 0.99).atanh() + self.trust[1] * free * rgb
            matte = torch.logit(cover.clamp(1e-3, 1 - 1e-3)) + self.trust[2] * free * matte
        drawn = [x if tuple(x.shape[2:]) == tuple(plate.shape[2:]) else resized(x, plate.shape[2:])
                 for x in (rgb.tanh(), matte.sigmoid(), *(() if scene is None else (scene,)))]  # fmt: skip
        behind = drawn[2] if scene is not None and own else 2 * plate - 1
        return Frame(torch.lerp(behind, drawn[0], drawn[1]), drawn[1])

    def objective(self, *, critics: bool = True, vgg: VGG19 | None = None) -> PosewarpObjective:
        return PosewarpObjective(PairCritic(2 * self.maps, self.config.width) if critics else None, vgg)

    @torch.no_grad()
    def adopt(self, identity: Sources) -> None:
        self.trust.fill_(1)

    def settle(self, score: Callable[[], float], known: Mapping[str, float] | None = None) -> dict[str, float]:
        """How far the nets' corrections are trusted, each by itself. Not with `whole`: there they are all there is, nor
        before anything is learned."""
        learned = any(bool(p.any()) for net in (self.masks, self.colour, self.matte) for p in net.parameters())
        if self.config.whole or not learned:
            return {}
        return settled(self.trust, TRUSTED, (True,) * len(TRUSTED), score, known)

    def tunable(self, identity: Sources) -> Iterable[nn.Parameter]:
        return self.parameters()
