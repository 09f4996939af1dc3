"""`dance`: Dance Dance Generation (Zhou et al. 2019), fed by K references: warp what is known, learn the rest.

The paper's two stages, with moved pixels carrying all fine detail:

    parts (§3.1), moved at full resolution ─┐
    pose maps (§3.2) ───────────────────────┴─ around the person, small ─ human synthesis net (§3.3) ─ matte, colour,
                                               shade, and a flow if asked for
    the moved parts, corrected, over the shaded plate (Eq. 2) ─ fusion net (§3.4), if asked for ─ colour

Where it departs from the paper: the nets paint no pixels from nothing. The synthesis net corrects the matte and the
colours of the moved parts, shades the plate, and may bend the parts by a smooth flow; the fusion net corrects the
colours of the whole. Flow and fusion net are off by default: learned from synthetic people, the flow made real ones
worse. The nets see only the person's surroundings, at a fixed number of pixels per metre of the body
(`DanceConfig.density`), so that a person looks alike to them in every video; they end in zero-initialised layers: a
network that has learnt nothing shows the moved parts on the plate. A matte takes the place of the paper's chroma key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import parts
from ..cores import side_by_side
from ..heatmaps import POSE_CHANNELS, pose_maps, stack_poses
from ..skeleton import MIRROR_PART
from ..types import PoseTrack
from .base import Batch, Frame, Poses, References, RetargetModel, stacked
from .choice import Choice, lesson
from .layers import UNet, averaged, resized
from .losses import VGG19, DanceObjective, LossWeights
from .trust import settled

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels of what is drawn."""
MIRRORED_MAPS = (*MIRROR_PART[:10], 10, 12, 11, 14, 13)
"""The channel of the pose maps that shows in a mirror what each channel shows."""
SOFT = 0.75
"""Middle weight of the filter, three pixels wide, that moved parts pass. References are the sharpest of many frames and
scaled down; nobody filmed while moving is that sharp (without the filter: 1.05 times the true gradients)."""
TRUSTED = ("flow", "matte", "colour", "shade", "fusion")
"""What `Dance.trust` weighs."""
CERTAIN = 0.4
"""How sure the net has to be that a person reaches beyond the moved parts: half-sure, it draws grey rims."""
NEAR = 0.25
"""How much of its surroundings (5 pixels of the nets) has to be the person's for a place to become so, too."""
SHADE = 0.2
"""By how much the scene is lit or shaded at most. Free to do more, the net paints what no part shows into the scene's
shade: a dark halo behind a head that turns."""
MARGIN = 0.24
"""Metres around the joints within which a person's head, hands, feet and clothes end."""


@dataclass(frozen=True)
class DanceConfig:
    """The networks' sizes.

    density  pixels per metre of the body that the nets see.
    width    channels of the synthesis net's finest level.
    depth    levels of the nets.
    fusion   channels of the fusion net's finest level; 0: there is none.
    window   poses whose maps the nets see, the current one last (DDG §4.2: K = 3).
    flow     the largest residual flow, in metres; 0: there is none.
    colour   the largest correction of a colour, a share of it.
    """

    density: float = 80.0
    width: int = 24
    depth: int = 4
    fusion: int = 0
    window: int = 1
    flow: float = 0.0
    colour: float = 0.2

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be; also an avatar that somebody else made says its configuration."""
        for name, low, high in (
            ("density", 4, 1000), ("width", 1, 256), ("depth", 1, 6), ("fusion", 0, 256), ("window", 1, 9),
            ("flow", 0, 10), ("colour", 0, 10),
        ):  # fmt: skip
            value = getattr(self, name)
            kinds = (int,) if name in ("width", "depth", "fusion", "window") else (int, float)
            if not isinstance(value, kinds) or not low <= value <= high:
                raise ValueError(f"{name} is not from {low} to {high}")


class DanceCondition(NamedTuple):
    """One pose window per picture of the batch."""

    maps: Tensor
    """(B, 15 · window, h, w): the stacked pose maps of the surroundings, `DanceConfig.density` pixels per metre."""
    skeletons: tuple[parts.Skeleton, ...]
    """The current poses, in pixels of the avatar's picture."""
    boxes: tuple[Box, ...]
    """The surroundings that `maps` cover, all of one size."""
    size: tuple[int, int]
    """(H, W) of what is drawn."""
    zoom: float
    """Drawn pixels per pixel of the avatar's picture."""
    recent: tuple[Poses, ...]
    """The window's poses, oldest first."""
    layouts: tuple[parts.Layout, ...] | None = None
    """Where the parts go, if that is known already (`Dance.lead`)."""


class Moved(NamedTuple):
    """A condition whose person is drawn already: all of the forward pass that no parameter changes (`ahead`)."""

    maps: Tensor
    """(B, 15 · window, h, w)"""
    person: Tensor
    """(B, 4, H, W): the moved parts, red, green, blue in 0..1 premultiplied by alpha, and alpha."""
    plate: Tensor
    """(B, 3, H, W) in 0..1."""
    choice: Tensor | None = None
    """(B, K, P · (CLUES + 3)): what came of each choice among the references (`choice.lesson`)."""


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
    """The model. Its parameters are the nets; all knowledge of a person is in the identity."""

    Ahead = Moved
    moves_pixels = True
    leads = True
    trust: Tensor
    """(5,) in 0..1: how much of each of the nets' answers (`TRUSTED`) this person gets; see `settle`."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = DanceConfig(**config)
        c = self.config
        self.synthesis = UNet(3 + 1 + 3 + self.maps, 2 + 1 + 3 + 1, c.width, c.depth)
        self.fusion = UNet(3 + 1 + 3 + self.maps, 3, c.fusion, c.depth) if c.fusion else None
        self.choice = Choice()
        self.register_buffer("trust", torch.ones(len(TRUSTED)))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Weights, and avatars, from before there was a choice to learn choose by the rule alone."""
        if not any(key.startswith("choice.") for key in state_dict):
            own = {f"choice.{key}": t for key, t in self.choice.state_dict().items()}
            own |= {key: torch.zeros_like(t) for key, t in own.items() if key.startswith("choice.last.")}
            state_dict = {**own, **state_dict}
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def maps(self) -> int:
        return POSE_CHANNELS * self.config.window

    @property
    def ahead_depends_on(self) -> dict[str, Any]:
        return {"density": self.config.density, "window": self.config.window}

    @property
    def untrained(self) -> bool:
        """Whether the nets answer zero, or are not trusted at all, so that they need not be asked."""
        if not bool(self.trust.any()):
            return True
        last = [p for net in (self.synthesis, self.fusion) if net is not None for p in net.last.parameters()]
        return not any(bool(p.any()) for p in last)

    def condition(self, poses: Poses, size: tuple[int, int], previous: DanceCondition | None = None) -> DanceCondition:
        last = poses.body.shape[1] - 1
        window = () if previous is None else previous.recent
        window = (*window, *(_single(poses, i) for i in range(last + 1)))[-self.config.window :]
        found = tuple(parts.skeletons(to_track(poses, b, slice(last, None))) for b in range(len(poses.body)))
        zoom = size[1] / poses.picture[1]
        boxes, small = _surroundings(found, size, zoom, self.config.density)
        return DanceCondition(self._maps(window, boxes, small, zoom), found, boxes, size, zoom, window)

    def _maps(self, window: Sequence[Poses], boxes: Sequence[Box], small: tuple[int, int], zoom: float) -> Tensor:
        """The stacked pose maps of the boxes, (B, 15 · window, *small)."""
        corner = window[-1].body.new_tensor([[x0 / zoom, y0 / zoom, 0] for x0, y0, _, _ in boxes])[:, None]
        x0, y0, x1, y1 = boxes[0]
        picture = ((y1 - y0) / zoom, (x1 - x0) / zoom)
        drawn = []
        for poses in window:
            body, face, hands = poses.body[:, 0].clone(), poses.face[:, 0] - corner, poses.hands[:, 0] - corner[:, None]
            body[..., :3] -= corner
            drawn.append(pose_maps(body, face, hands, small, picture=picture))
        return stack_poses(drawn, self.config.window)

    def encode(self, references: References) -> DanceIdentity:
        """Cuts the references into parts. Pixels under the mattes should be the person's own (`background.unmix`)."""
        return tuple(self._encode(references, b) for b in range(len(references.rgb)))

    def _encode(self, references: References, item: int) -> Person:
        rgb = references.rgb[item].float().cpu() / 2 + 0.5
        matte = references.matte[item].float().cpu()
        track = to_track(references.poses, item)
        skeleton = parts.skeletons(track)
        cut = side_by_side(lambda k: parts.part_mattes(skeleton.take([k]), matte[k, 0].numpy()), range(len(rgb)))
        own, core = (torch.from_numpy(np.stack([c[i] for c in cut])) for i in (0, 1))
        alone = np.stack([c[2] for c in cut])
        del cut  # as much again
        own, core = parts.freed(rgb, own, core, skeleton)
        full = parts.cut(rgb, own, core, matte, alone, skeleton)
        # Half the resolution tells as much as all of it.
        full = replace(full, blame=parts.blame(full.halved(), rgb, own)).with_mirrored(track)
        half = full.halved()
        levels = tuple(c.to(references.rgb.device) for c in (full, half, half.halved()))
        plate = references.plate[item].float() / 2 + 0.5
        return Person(levels, plate, references.shadow)

    def before(self, identity: DanceIdentity, plate: Tensor) -> DanceIdentity:
        return tuple(person._replace(plate=plate[0].float() / 2 + 0.5, shadow=0.0) for person in identity)

    def lead(
        self, condition: DanceCondition, identity: DanceIdentity, state: DanceState | None
    ) -> tuple[DanceCondition, DanceState]:
        layouts, states = self._laid_out(condition, identity, state)
        return condition._replace(layouts=layouts), states

    def forward(
        self, condition: DanceCondition | Moved, identity: DanceIdentity, state: DanceState | None
    ) -> tuple[Frame, DanceState]:
        """With a `Moved` condition (`ahead`) the frame is the surroundings only, and identity and state say nothing."""
        if isinstance(condition, Moved):
            rgb, matte = self._painted(condition)
            # Nothing that `settle` should weigh.
            regret = self.choice.regret(condition.choice) if self.training and condition.choice is not None else None
            return Frame((2 * rgb - 1).clamp(-1, 1), matte, regret), ()
        states: DanceState = ()
        layouts = condition.layouts
        if layouts is None:
            layouts, states = self._laid_out(condition, identity, state)
        drawn, mattes = [], []
        for b, (person, layout) in enumerate(zip(self._people(condition, identity), layouts, strict=True)):
            moved, alpha = _moved(person, layout, condition.size, condition.zoom)
            plate = _plate(person, condition, b)
            picture = moved + (1 - alpha) * plate
            if not self.untrained or self.training:
                x0, y0, x1, y1 = condition.boxes[b]
                inside = (slice(None), slice(y0, y1), slice(x0, x1))
                seen = Moved(condition.maps[b : b + 1], torch.cat([moved, alpha])[inside][None], plate[inside][None])
                rgb, matte = self._painted(seen)
                picture, alpha = _pasted(picture, rgb[0], inside), _pasted(alpha, matte[0], inside)
            drawn.append(picture)
            mattes.append(alpha)
        return Frame((2 * torch.stack(drawn) - 1).clamp(-1, 1), torch.stack(mattes)), states

    @torch.no_grad()
    def ahead(self, condition: DanceCondition, identity: DanceIdentity, truth: Frame) -> tuple[Moved, None, Frame]:
        """The surroundings alone, drawn at the resolution that the nets see."""
        layouts, _ = self._laid_out(condition, identity, None)
        small = (condition.maps.shape[2], condition.maps.shape[3])
        persons, plates, truths, choices = [], [], [], []
        assert truth.matte is not None
        for b, (person, layout) in enumerate(zip(self._people(condition, identity), layouts, strict=True)):
            x0, y0, x1, y1 = condition.boxes[b]
            inside = (slice(None), slice(y0, y1), slice(x0, x1))
            moved = torch.cat(_moved(person, layout, condition.size, condition.zoom))
            plates.append(_plate(person, condition, b)[inside])
            persons.append(moved[inside])
            truths.append(torch.cat([truth.rgb[b], truth.matte[b]])[inside])
            true = truth.rgb[b].float() / 2 + 0.5
            choices.append(lesson(person.levels[0], condition.skeletons[b], true, truth.matte[b, 0]))
        parts_, behind, true = (resized(torch.stack(x), small) for x in (persons, plates, truths))
        moved_ = Moved(condition.maps, parts_, behind, stacked(choices).to(behind))
        return moved_, None, Frame(true[:, :3], true[:, 3:])

    def varied(self, pair: Batch, generator: torch.Generator) -> Batch:
        """Colours in another order and strength, left and right exchanged."""
        maps, person, plate, choice = pair.condition
        rgb, matte = pair.truth.rgb, pair.truth.matte
        order = torch.randperm(3, generator=generator)
        # Never brighter than white.
        gain = 0.5 + 0.5 * torch.rand(1, 3, 1, 1, generator=generator)
        person = torch.cat([person[:, order] * gain, person[:, 3:]], 1)
        plate, rgb = plate[:, order] * gain, (rgb[:, order] + 1) * gain - 1
        if torch.rand((), generator=generator) < 0.5:
            assert matte is not None
            sides = [15 * w + c for w in range(self.config.window) for c in MIRRORED_MAPS]
            maps, person, plate, rgb, matte = maps[:, sides].flip(3), *(x.flip(3) for x in (person, plate, rgb, matte))
        return pair._replace(condition=Moved(maps, person, plate, choice), truth=Frame(rgb, matte))

    @staticmethod
    def _people(condition: DanceCondition, identity: DanceIdentity) -> list[Person]:
        return [identity[b if len(identity) > 1 else 0] for b in range(len(condition.skeletons))]

    def _laid_out(
        self, condition: DanceCondition, identity: DanceIdentity, state: DanceState | None
    ) -> tuple[tuple[parts.Layout, ...], DanceState]:
        judge = self.choice.judge if self.choice.taught else None
        found = [
            parts.lay_out(person.levels[0], pose, state[b] if state else None, judge)
            for b, (person, pose) in enumerate(
                zip(self._people(condition, identity), condition.skeletons, strict=True)
            )
        ]  # fmt: skip
        return tuple(layout for layout, _ in found), tuple(new for _, new in found)

    def _painted(self, moved: Moved) -> tuple[Tensor, Tensor]:
        """The person on the plate (Eq. 2), corrected by the nets: rgb (B, 3, H, W) and matte (B, 1, H, W) in 0..1.

        The nets see `moved` at the size of its maps; their answers are enlarged to its own.
        """
        config, size = self.config, moved.person.shape[2:]
        small = moved.maps.shape[2:]
        person, plate = (resized(x, small) for x in (moved.person, moved.plate))
        answer = self.synthesis(torch.cat([person, plate, moved.maps.to(person)], 1)).float()
        flow, colour, shade = _calm(torch.cat([answer[:, :2], answer[:, 3:]], 1)).split((2, 3, 1), 1)
        around = averaged(person)
        # What is solid may not be cut open: that a person's clothes end between the legs is a prejudice of the corpus.
        change = torch.tanh(answer[:, 2:3])
        solid = ((person[:, 3:] - 0.5) * 2.5).clamp(0, 1)
        # And grown only where there are colours to grow from, about a centimetre.
        change = torch.where(change > 0, change * (around[:, 3:] / NEAR).clamp_max(1), change)
        if not self.training:  # what is shut off would never learn
            change = torch.where(change > 0, ((change - CERTAIN) / (1 - CERTAIN)).clamp_min(0), change)
        fields = [
            self.trust[1] * torch.where(change < 0, change * (1 - solid), change),
            self.trust[2] * config.colour * torch.tanh(colour),
            self.trust[3] * (torch.tanh(shade) if self.training else torch.tanh(shade).clamp(-SHADE, SHADE)),
            around[:, :3] / around[:, 3:].clamp_min(0.05),
        ]
        if config.flow:
            reach = answer.new_tensor([2 / small[1], 2 / small[0]])[:, None, None] * config.flow * config.density
            fields.append(self.trust[0] * reach * torch.tanh(flow))
        if self.fusion is not None:
            fields.append(self._fused(person, plate, moved.maps, torch.cat(fields, 1)))
        answer = torch.cat(fields, 1)
        if tuple(size) != tuple(small):
            answer = F.interpolate(answer, size, mode="bilinear", align_corners=False)
        rgb, matte = _corrected(moved.person, moved.plate, answer[:, :8], answer[:, 8:10] if config.flow else None)
        if self.fusion is not None:
            rgb = rgb + answer[:, -3:]
        return rgb, matte

    def _fused(self, person: Tensor, plate: Tensor, maps: Tensor, answer: Tensor) -> Tensor:
        """What the fusion net adds to the whole (§3.4), (B, 3, h, w)."""
        assert self.fusion is not None
        rgb, matte = _corrected(person, plate, answer[:, :8], answer[:, 8:10] if self.config.flow else None)
        touch = self.fusion(torch.cat([rgb, matte, plate, maps.to(person)], 1)).float()
        return self.trust[4] * self.config.colour * torch.tanh(_calm(touch))

    def objective(self, *, critics: bool = True, vgg: VGG19 | None = None) -> DanceObjective:
        return DanceObjective(self.maps, LossWeights() if critics else LossWeights(w_rela=0), vgg=vgg)

    @torch.no_grad()
    def adopt(self, identity: DanceIdentity) -> None:
        self.trust.fill_(1)

    def settle(self, score: Callable[[], float], known: Mapping[str, float] | None = None) -> dict[str, float]:
        """How far the nets are trusted, each answer by itself: what fits this person's own pictures best.

        Nets that know synthetic people only may be wrong about a real one; then moved pixels are left as they are.
        """
        if self.untrained:
            return {}
        there = (bool(self.config.flow), True, True, True, self.fusion is not None)
        return settled(self.trust, TRUSTED, there, score, known)

    @property
    def window(self) -> int:
        return self.config.window

    def packed(self, state: DanceState | None) -> dict[str, Tensor]:
        return {
            f"{name}.{b}": torch.from_numpy(np.ascontiguousarray(getattr(layout, name)))
            for b, layout in enumerate(state or ())
            for name in ("mix", "depth")
        }

    def unpacked(self, tensors: Mapping[str, Tensor]) -> DanceState | None:
        count = len(tensors) // 2
        layouts = (
            parts.LayoutState(*(tensors[f"{name}.{b}"].numpy() for name in ("mix", "depth"))) for b in range(count)
        )
        return tuple(layouts) or None

    def tunable(self, identity: DanceIdentity) -> Iterable[nn.Parameter]:
        return self.parameters()


def _corrected(person: Tensor, plate: Tensor, fields: Tensor, flow: Tensor | None) -> tuple[Tensor, Tensor]:
    """Moved parts (B, 4, H, W) over a plate (B, 3, H, W), corrected.

    By fields (B, 8, H, W): matte, colour, shade, and colours for where the corrected matte reaches beyond the moved
    parts; and by a flow (B, 2, H, W) as `_bent` takes it.

    Colours and plate are multiplied, as light is: the same correction is small on black cloth and large on white.
    """
    change, colour, shade, around = fields.split((1, 3, 1, 3), 1)
    bent = person if flow is None else _bent(person, flow)
    rgb, alpha = bent[:, :3], bent[:, 3:]
    matte = (alpha + change).clamp(0, 1)
    kept = (matte / torch.where(alpha > 0, alpha, 1)).clamp_max(1)
    rgb = rgb * kept + (matte - alpha).clamp_min(0) * around
    return rgb * (1 + colour) + (1 - matte) * plate * (1 + shade), matte


def _bent(x: Tensor, flow: Tensor) -> Tensor:
    """(B, C, H, W) through a flow in halves of its width and height."""
    height, width = x.shape[2:]
    down = (torch.arange(height, device=x.device, dtype=torch.float32) + 0.5) * (2 / height) - 1
    right = (torch.arange(width, device=x.device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    grid = torch.stack([flow[:, 0] + right, flow[:, 1] + down[:, None]], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _calm(x: Tensor) -> Tensor:
    """Without fine detail: what corrects colours and places must not draw."""
    return averaged(averaged(x))


def _moved(person: Person, layout: parts.Layout, size: tuple[int, int], zoom: float) -> tuple[Tensor, Tensor]:
    level = person.levels[0 if zoom > 0.75 else 1 if zoom > 0.375 else 2]
    rgb, alpha, _ = parts.render(level, layout, size, zoom=zoom)
    both = torch.cat([rgb, alpha])[None]
    for dim in (2, 3):
        # Whoever is cut off by the picture's border is as solid there as before it.
        padded = F.pad(both, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0), "replicate")
        before, middle, after = (padded.narrow(dim, i, both.shape[dim]) for i in range(3))
        both = torch.add(before, after).mul_((1 - SOFT) / 2).add_(middle, alpha=SOFT)
    return both[0, :3], both[0, 3:]


def _plate(person: Person, condition: DanceCondition, item: int) -> Tensor:
    """The plate at the size that is drawn, with the contact shadow."""
    plate = person.plate
    if tuple(plate.shape[1:]) != tuple(condition.size):
        plate = resized(plate[None], condition.size)[0]
    if person.shadow > 0:
        shade = parts.contact(condition.skeletons[item], condition.size, condition.zoom, plate)
        plate = plate * (1 - person.shadow * shade)
    return plate


def _pasted(picture: Tensor, patch: Tensor, inside: tuple[slice, ...]) -> Tensor:
    if not patch.requires_grad:
        picture[inside] = patch
        return picture
    out = picture.clone()
    out[inside] = patch
    return out


def _single(poses: Poses, i: int) -> Poses:
    """One pose of each window."""
    return Poses(poses.body[:, i : i + 1], poses.face[:, i : i + 1], poses.hands[:, i : i + 1], poses.picture)


def _surroundings(
    skeletons: Sequence[parts.Skeleton], size: tuple[int, int], zoom: float, density: float
) -> tuple[tuple[Box, ...], tuple[int, int]]:
    """A box around each person, all of one size and inside of the picture, and its (h, w) at `density`."""
    low, high, metre = [], [], 1.0
    limit = np.array([size[1], size[0]])
    for skeleton in skeletons:
        points = skeleton.bones[0, :, :, :2].reshape(-1, 2) * zoom
        points = points[np.isfinite(points).all(1)]
        metre = max(metre, float(skeleton.scale[0]) * zoom)
        around = MARGIN * float(skeleton.scale[0]) * zoom
        low.append(np.clip(points.min(0) - around, 0, limit - 1) if len(points) else np.zeros(2))
        high.append(np.clip(points.max(0) + around, low[-1] + 1, limit) if len(points) else limit)
    extent = np.minimum(np.ceil(np.max(np.stack(high) - np.stack(low), 0)).astype(int), limit)
    boxes = []
    for a, b in zip(low, high, strict=True):
        x0, y0 = np.clip(np.floor((a + b - extent) / 2).astype(int), 0, limit - extent).tolist()
        boxes.append((x0, y0, x0 + int(extent[0]), y0 + int(extent[1])))
    shrink = min(1.0, density / metre)
    return tuple(boxes), (max(8, round(float(extent[1]) * shrink)), max(8, round(float(extent[0]) * shrink)))
