"""`dance`: Dance Dance Generation (Zhou et al. 2019), fed by K references: warp what is known, learn the rest.

The paper's two stages, with moved pixels carrying all fine detail:

    parts (§3.1) ─ moved at low resolution ─┐
    pose maps (§3.2) ───────────────────────┴─ human synthesis net (§3.3) ─ flow, matte, colour
    parts, moved once more at full resolution through that flow ─ the person
    person over the plate (Eq. 2) ─ fusion net (§3.4) ─ colour

Where it departs from the paper: the nets paint no pixels from nothing. The synthesis net bends the moved parts by a
smooth flow, corrects the matte and the colours; the fusion net corrects the colours of the whole (shadows, seams). Both
work at `DanceConfig.work` pixels and end in zero-initialised layers: a network that has learnt nothing shows the moved
parts on the plate. A matte takes the place of the paper's chroma key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import parts
from ..heatmaps import POSE_CHANNELS, WINDOW, pose_maps, stack_poses
from ..skeleton import PARTS
from ..types import PoseTrack
from .base import Frame, Poses, References, RetargetModel
from .layers import UNet


@dataclass(frozen=True)
class DanceConfig:
    """The networks' sizes.

    work    short side of the pictures that the nets see, in pixels.
    width   channels of the nets' finest level.
    depth   levels of the nets.
    flow    the largest residual flow, as a fraction of the picture's short side.
    colour  the largest correction of a colour, in -1..1 units.
    """

    work: int = 192
    width: int = 16
    depth: int = 4
    flow: float = 0.03
    colour: float = 0.5


class DanceCondition(NamedTuple):
    """One pose window per picture of the batch."""

    maps: Tensor
    """(B, 45, h, w): the stacked pose maps at working resolution."""
    skeletons: tuple[parts.Skeleton, ...]
    """The current poses, in pixels of the avatar's picture."""
    size: tuple[int, int]
    """(H, W) of what is drawn."""
    zoom: float
    """Drawn pixels per pixel of the avatar's picture."""


class Person(NamedTuple):
    """What is known of one person."""

    levels: tuple[parts.Cutouts, ...]
    """The cut-out parts at full, half, quarter resolution."""
    plate: Tensor
    """(3, H, W) in 0..1: what the person stands before, in any size with the right aspect."""
    shadow: float
    """How dark the contact shadow under the feet is, 0..1, as measured on the references."""


DanceIdentity = tuple[Person, ...]
"""One person for the whole batch, or one per picture."""
DanceState = tuple[parts.LayoutState, ...]


def to_track(poses: Poses, item: int, which: slice = slice(None)) -> PoseTrack:
    """The window of one picture of the batch as a track (world coordinates unknown)."""
    body, face, hands = (t[item, which].detach().cpu().numpy().astype(np.float32) for t in poses[:3])
    height, width = poses.picture
    world = np.full((*body.shape[:2], 3), np.nan, np.float32)
    return PoseTrack(body, world, face, hands, (width, height), Fraction(25))


class Dance(RetargetModel):
    """The model. Its parameters are the two nets; all knowledge of a person is in the identity."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = DanceConfig(**config)
        seen = 3 + 1 + len(PARTS)  # moved parts, their alpha, who is where
        maps = POSE_CHANNELS * WINDOW
        width, depth = self.config.width, self.config.depth
        self.synthesis = UNet(seen + maps, 2 + 1 + 3, width, depth)
        self.fusion = UNet(3 + 1 + 3 + maps, 3, width, depth)

    @property
    def untrained(self) -> bool:
        """Whether both nets still answer zero, so that they need not be asked."""
        last = [p for net in (self.synthesis, self.fusion) for p in net.last.parameters()]
        return not any(bool(p.any()) for p in last)

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) at which the nets see pictures of `size` (H, W)."""
        zoom = min(1.0, self.config.work / min(size))
        return max(8, round(size[0] * zoom)), max(8, round(size[1] * zoom))

    def condition(self, poses: Poses, size: tuple[int, int], previous: DanceCondition | None = None) -> DanceCondition:
        small = self.working_size(size)
        window = [] if previous is None else list(previous.maps.split(POSE_CHANNELS, 1))
        window += [
            pose_maps(poses.body[:, i], poses.face[:, i], poses.hands[:, i], small, picture=poses.picture)
            for i in range(poses.body.shape[1])
        ]
        last = slice(poses.body.shape[1] - 1, None)
        found = tuple(parts.skeletons(to_track(poses, b, last)) for b in range(len(poses.body)))
        return DanceCondition(stack_poses(window), found, size, size[1] / poses.picture[1])

    def encode(self, references: References) -> DanceIdentity:
        """Cuts the references into parts. Pixels under the mattes should be the person's own (`background.unmix`)."""
        return tuple(self._encode(references, b) for b in range(len(references.rgb)))

    def _encode(self, references: References, item: int) -> Person:
        rgb = references.rgb[item].float().cpu() / 2 + 0.5
        matte = references.matte[item].float().cpu()
        track = to_track(references.poses, item)
        skeleton = parts.skeletons(track)
        cut = [parts.part_mattes(skeleton.take([k]), matte[k, 0].numpy()) for k in range(len(rgb))]
        own, core = (torch.from_numpy(np.stack([c[i] for c in cut])) for i in (0, 1))
        alone = np.stack([c[2] for c in cut])
        full = parts.cut(rgb, own, core, matte, alone, skeleton).with_mirrored(track)
        half = full.halved()
        levels = tuple(c.to(references.rgb.device) for c in (full, half, half.halved()))
        plate = references.plate[item].float() / 2 + 0.5
        return Person(levels, plate, references.shadow)

    def before(self, identity: DanceIdentity, plate: Tensor) -> DanceIdentity:
        return tuple(person._replace(plate=plate[0].float() / 2 + 0.5, shadow=0.0) for person in identity)

    def forward(
        self, condition: DanceCondition, identity: DanceIdentity, state: DanceState | None
    ) -> tuple[Frame, DanceState]:
        people = [identity[b if len(identity) > 1 else 0] for b in range(len(condition.skeletons))]
        layouts, states = [], []
        for b, (person, pose) in enumerate(zip(people, condition.skeletons, strict=True)):
            layout, new = parts.lay_out(person.levels[0], pose, state[b] if state else None)
            layouts.append(layout)
            states.append(new)
        if self.untrained and not self.training:
            frame = self._compose(condition, people, layouts, None)
        else:
            frame = self._refined(condition, people, layouts)
        return frame, tuple(states)

    def _refined(self, condition: DanceCondition, people: Sequence[Person], layouts: Sequence[parts.Layout]) -> Frame:
        config, maps = self.config, condition.maps
        small = (maps.shape[2], maps.shape[3])
        scale = small[1] / condition.size[1]
        with torch.no_grad():
            zoom = condition.zoom * scale
            drawn = [
                parts.render(self._level(p, zoom), lay, small, zoom=zoom, per_part=True)
                for p, lay in zip(people, layouts, strict=True)
            ]  # fmt: skip
            rgb, alpha, shares = (torch.stack(list(x)) for x in zip(*drawn, strict=True))
            seen = torch.cat([rgb, alpha, shares, maps.to(rgb)], 1)
        answer = self.synthesis(seen).float()
        flow = config.flow * min(condition.size) * torch.tanh(answer[:, :2])
        answer = torch.cat([flow, torch.tanh(answer[:, 2:3]), config.colour * torch.tanh(answer[:, 3:6])], 1)
        answer = F.interpolate(answer, condition.size, mode="bilinear", align_corners=False)
        frame = self._compose(condition, people, layouts, answer)
        assert frame.matte is not None
        plates = torch.stack([self._plate(p, small) for p in people])
        combined = [_shrunk(x, small) for x in (frame.rgb, frame.matte)]
        touch = self.fusion(torch.cat([*combined, 2 * plates - 1, maps.to(rgb)], 1)).float()
        touch = config.colour * torch.tanh(touch)
        touch = F.interpolate(touch, condition.size, mode="bilinear", align_corners=False)
        return Frame((frame.rgb + touch).clamp(-1, 1), frame.matte)

    def _compose(
        self,
        condition: DanceCondition,
        people: Sequence[Person],
        layouts: Sequence[parts.Layout],
        answer: Tensor | None,
    ) -> Frame:
        """The person on the plate (Eq. 2), corrected by the synthesis net's answer (B, 6, H, W) where there is one."""
        frames, mattes = [], []
        for b, (person, layout) in enumerate(zip(people, layouts, strict=True)):
            level = self._level(person, condition.zoom)
            flow = None if answer is None else answer[b, :2]
            rgb, alpha, _ = parts.render(level, layout, condition.size, zoom=condition.zoom, flow=flow)
            plate = self._plate(person, condition.size)
            if person.shadow > 0:
                plate = plate * (
                    1 - person.shadow * parts.contact(condition.skeletons[b], condition.size, condition.zoom, plate)
                )
            if answer is not None:
                matte = (alpha + answer[b, 2:3]).clamp(0, 1)
                # Colours for where the corrected matte reaches beyond the moved parts.
                small = _shrunk(torch.cat([rgb, alpha])[None].detach(), condition.maps.shape[2:])
                small = F.avg_pool2d(small, 5, 1, 2)
                small = small[:, :3] / small[:, 3:].clamp_min(0.05)
                around = F.interpolate(small, condition.size, mode="bilinear", align_corners=False)[0]
                kept = (matte / torch.where(alpha > 0, alpha, 1)).clamp_max(1)
                rgb = rgb * kept + (matte - alpha).clamp_min(0) * around
                rgb, alpha = rgb + matte * answer[b, 3:] / 2, matte
            frames.append(rgb + (1 - alpha) * plate)
            mattes.append(alpha)
        return Frame((2 * torch.stack(frames) - 1).clamp(-1, 1), torch.stack(mattes))

    @staticmethod
    def _level(person: Person, zoom: float) -> parts.Cutouts:
        return person.levels[0 if zoom > 0.75 else 1 if zoom > 0.375 else 2]

    @staticmethod
    def _plate(person: Person, size: tuple[int, int]) -> Tensor:
        if person.plate.shape[1:] == size:
            return person.plate
        return _shrunk(person.plate[None], size)[0]

    def tunable(self, identity: DanceIdentity) -> Iterable[nn.Parameter]:
        return self.parameters()


def _shrunk(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) resized to `size`: averaged by the whole factor, then bilinear. Much faster on a CPU than `area`."""
    factor = min(x.shape[2] // size[0], x.shape[3] // size[1])
    if factor > 1:
        x = F.avg_pool2d(x, factor)
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
