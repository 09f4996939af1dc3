"""The sequential generator: what it is drawn from, how it is drawn, and how it learns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...heatmaps import face_lines, pose_maps
from ...skeleton import PART
from ..base import Batch, Frame, Labels, Poses, References, RetargetModel
from ..critics import Critics
from ..dance import MIRRORED_MAPS
from ..layers import fit_sides, resized, warp
from ..losses import VGG19
from .config import Examples, FewShotConfig, Moved, Past, Semantic
from .networks import FlowNetwork, Synthesis
from .objective import FewShotObjective
from .weight_generation import WeightGeneration

NEW = (-2.0, 2.0)
"""Where the occlusion maps' logits begin, for the example and for the frame before: what is not learned yet shows the
example, and trusts no flow of its own."""
SUBJECT: dict[str, Literal["body", "head", "scene"]] = {"pose": "body", "face": "head", "labels": "scene"}
"""Conditioning → what the pictures show."""
ABSENT = -3.0
"""Where the logit of h̃'s matte begins: what is not painted yet is not there."""


class FewShotVid2Vid(RetargetModel):
    """The model: the sequential generator F (Eqs. 2 and 6)."""

    PRESETS: ClassVar = {
        "small": {"side": 128},
        "paper": {
            "width": 32, "widest": 1024, "levels": 6, "adaptive": 4, "fold": 1, "side": 512, "grid": 32, "keys": 2,
            "flow_width": 32, "flow_blocks": 6, "norm": "batch", "spectral": True, "sequence": 16, "hinge": True,
        },
    }  # fmt: skip

    SUBJECTS: ClassVar = {subject: {"conditioning": drawn} for drawn, subject in SUBJECT.items()}

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = c = FewShotConfig(**config)
        self.subject = SUBJECT[c.conditioning]
        self.synthesis = Synthesis(c)
        self.generation = WeightGeneration(c, self.synthesis.modulated)
        self.flow = FlowNetwork(c, c.maps + c.past * (c.maps + c.layers), NEW[1])
        self.example = FlowNetwork(c, 2 * c.maps + c.layers, NEW[0]) if c.example else None
        self.sequence = c.sequence
        self.multiple = c.fold << max(c.levels - 1, c.flow_downs)

    @property
    def maps(self) -> int:
        return self.config.maps

    def length(self, progress: float) -> int:
        """T is 1 for the first half, and doubles each tenth after it (§3, "Training": "every few epochs")."""
        return 1 if progress < 0.5 else min(self.sequence, 2 << int((progress - 0.5) * 10 + 1e-6))

    # What is drawn from.

    def condition(self, poses: Poses | Labels, size: tuple[int, int], previous: Any = None) -> Semantic:
        zoom = min(1.0, self.config.side / min(size))
        small = (max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom)))
        return Semantic(self._maps(poses, slice(-1, None), small)[:, 0], None if small == size else size)

    def _maps(self, seen: Poses | Labels, which: slice, size: tuple[int, int]) -> Tensor:
        """Semantic images of a window's part, (B, W, C, *size)."""
        if isinstance(seen, Labels) != (self.config.conditioning == "labels"):
            raise ValueError(f"this model draws from {self.config.conditioning}, not from {type(seen).__name__}")
        if isinstance(seen, Labels):
            classes = seen.classes[:, which]
            known = F.interpolate(classes.float(), size, mode="nearest").long()
            return F.one_hot(known.clamp(max=self.maps), self.maps + 1)[..., :-1].movedim(-1, 2).float()
        body, face, hands = (x[:, which] for x in (seen.body, seen.face, seen.hands))
        if self.config.conditioning == "face":
            maps = face_lines(face.flatten(0, 1), size, picture=seen.picture, width=max(1.0, min(size) / 128))
        else:
            maps = pose_maps(body.flatten(0, 1), face.flatten(0, 1), hands.flatten(0, 1), size, picture=seen.picture)
        return maps.unflatten(0, body.shape[:2])

    def encode(self, references: References) -> Examples:
        """The examples. E reads them at once when no gradient is asked for: then it does so once per avatar."""
        rgb = references.rgb.float()
        pictures = rgb
        if self.config.layers == 4:
            matte = references.matte.to(rgb)
            pictures = torch.cat([rgb * matte, matte], 2)
        seen = references.labels if self.config.conditioning == "labels" else references.poses
        if seen is None:
            raise ValueError("the references have no label maps")
        maps = self._maps(seen, slice(None), (rgb.shape[3], rgb.shape[4])).to(rgb)
        found = Examples(pictures, maps, torch.ones_like(rgb[:, :, 0, 0, 0]), references.plate.float())
        if torch.is_grad_enabled():
            return found
        appearance, keys = self._read(found)
        return found._replace(appearance=appearance, keys=keys)

    def before(self, identity: Examples, plate: Tensor) -> Examples:
        """Of label maps the scene is all that is drawn: it has no other behind it."""
        if self.config.layers == 3:
            return identity
        return identity._replace(plate=plate.float().expand(len(identity.plate), -1, -1, -1))

    # How it is drawn.

    def _read(self, known: Examples) -> tuple[Tensor, Tensor]:
        """q and the keys of all examples."""
        size = self._seen(known.pictures.shape[-2:])
        keys = self.generation.key(_resized(known.maps, size).flatten(0, 1)).unflatten(0, known.maps.shape[:2])
        return self.generation.appearance(_resized(known.pictures, size)), keys

    def _seen(self, size: Sequence[int]) -> tuple[int, int]:
        """The resolution at which the networks see a picture of `size`."""
        zoom = min(1.0, self.config.side / min(size)) / self.config.fold
        return max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom))

    def _aggregated(self, maps: Tensor, known: Examples) -> tuple[Tensor, Tensor]:
        """q = Σ q_k ⊗ α_k (B, R, N), and which example is the most similar, (B,)."""
        assert known.appearance is not None
        assert known.keys is not None
        alone = known.appearance[:, 0].float()
        if known.appearance.shape[1] == 1:
            return alone, torch.zeros(len(maps), dtype=torch.long, device=maps.device)
        alpha = self.generation.attention(known.keys, self.generation.key(maps), known.known)
        q = torch.einsum("bkrn,bknm->brm", known.appearance, alpha.to(known.appearance))
        # E_A is used when K > 1.
        q = torch.where((known.known.sum(1) > 1)[:, None, None], q.float(), alone)
        return q, alpha.detach().sum((2, 3)).argmax(1)

    def forward(self, condition: Semantic, identity: Examples, state: Past | None) -> tuple[Frame, Past]:
        c = self.config
        maps = condition.maps.float()
        count, size = len(maps), tuple(maps.shape[2:])
        whole = condition.size or size
        if identity.appearance is None:
            read = self._read(identity) if state is None or state.appearance is None else state[2:]
            identity = identity._replace(appearance=read[0], keys=read[1])
        if len(identity.known) < count:  # one person for the whole batch
            identity = Examples(*(x.expand(count, *x.shape[1:]) for x in identity if x is not None))
        small = self._folded(maps)

        q, nearest = self._aggregated(resized(maps, self._seen(size)), identity)
        painted = self.synthesis(small, self.generation.weights(q))[..., : size[0], : size[1]]
        picture = self._layer(resized(painted, whole))
        which = torch.arange(count, device=maps.device), nearest
        moved: tuple[Tensor, ...] = ()
        if self.example is not None:
            example, its_maps = resized(identity.pictures[which], whole), resized(identity.maps[which], size)
            seen = torch.cat([small, self._folded(its_maps), self._folded(resized(example, size))], 1)
            flow, mask = self._enlarged(self.example(seen), size, whole)
            shown = self._warped(example, flow)
            picture = torch.lerp(shown, picture, mask)  # Eq. 11
            moved = (shown, warp(its_maps, resized(flow, size) * (size[1] / whole[1])), flow)
        flow = maps.new_zeros(count, 2, *whole)
        if state is not None:
            seen = torch.cat([_resized(x, size) for x in state[:2]], 2).flatten(1, 2)
            flow, mask = self._enlarged(self.flow(torch.cat([small, self._folded(seen)], 1)), size, whole)
            picture = torch.lerp(self._warped(resized(state.pictures[:, -1], whole), flow), picture, mask)  # Eq. 2

        rgb, matte = picture, torch.ones_like(picture[:, :1])
        if c.layers == 4:
            rgb, matte = picture[:, :3], picture[:, 3:]
            rgb = rgb + (1 - matte) * resized(identity.plate, whole)
        extra = Moved(flow, *moved) if self.training else None
        past = self._remembered(state, picture.detach(), maps)
        if self.training:
            past = past._replace(appearance=identity.appearance, keys=identity.keys)
        return Frame(rgb.clamp(-1, 1), matte, extra), past

    def _folded(self, x: Tensor) -> Tensor:
        """(B, C, h, w) as the networks see it: continued to a multiple of what they halve, pixels folded."""
        # More than one place at the least where they are fewest: of a single one there is no variance.
        x = fit_sides(x, self.multiple, 2 * self.multiple if max(x.shape[2:]) <= self.multiple else 0)
        return F.avg_pool2d(x, self.config.fold) if self.config.fold > 1 else x

    def _enlarged(
        self, answer: tuple[Tensor, Tensor], size: Sequence[int], whole: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """What a flow network says, for the whole picture: flow in its pixels, and occlusion map."""
        both = torch.cat(answer, 1)
        if self.config.fold > 1:
            both = F.interpolate(both, scale_factor=float(self.config.fold), mode="bilinear", align_corners=False)
        both = resized(both[..., : size[0], : size[1]], whole)
        return both[:, :2] * (self.config.fold * whole[1] / size[1]), both[:, 2:]

    def _warped(self, picture: Tensor, flow: Tensor) -> Tensor:
        return warp(picture, flow, "border" if self.config.layers == 3 else "zeros")

    def _layer(self, answer: Tensor) -> Tensor:
        """What H answers as a picture: colours in -1..1, premultiplied by the matte if there is one."""
        colours = torch.tanh(answer[:, :3])
        if self.config.layers == 3:
            return colours
        matte = torch.sigmoid(answer[:, 3:] + ABSENT)
        return torch.cat([colours * matte, matte], 1)

    def _remembered(self, state: Past | None, picture: Tensor, maps: Tensor) -> Past:
        """The last τ; at the start of a clip the first one stands for those before it."""
        if state is None:
            return Past(*(x[:, None].expand(-1, self.config.past, -1, -1, -1) for x in (picture, maps)))
        recent = ((_resized(old, new.shape[2:]), new) for old, new in zip(state[:2], (picture, maps), strict=True))
        return Past(*(torch.cat([old, new[:, None]], 1)[:, -self.config.past :] for old, new in recent))

    def packed(self, state: Past | None) -> dict[str, Tensor]:
        return {} if state is None else {"pictures": state.pictures.contiguous(), "maps": state.maps.contiguous()}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> Past | None:
        device = next(self.parameters()).device
        return Past(**{name: x.to(device) for name, x in tensors.items()}) if tensors else None

    # How it learns.

    def varied(self, pair: Batch, generator: torch.Generator) -> Batch:
        """Colours in another order and strength, left and right exchanged."""
        order = torch.randperm(3, generator=generator)
        gain = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator)
        flipped = bool(torch.rand((), generator=generator) < 0.5)

        def picture(x: Tensor) -> Tensor:
            rgb, matte = x[..., :3, :, :], x[..., 3:, :, :]
            # Never brighter than white.
            dark = matte if x.shape[-3] == 4 else 1.0
            x = torch.cat([(rgb[..., order, :, :] + dark) * gain - dark, matte], -3)
            return x.flip(-1) if flipped else x

        def turned(x: Tensor, maps: bool = False) -> Tensor:
            if not flipped:
                return x
            return (x[..., MIRRORED_MAPS, :, :] if maps and self.config.conditioning == "pose" else x).flip(-1)

        known, truth = pair.identity, pair.truth
        matte = None if truth.matte is None else turned(truth.matte)
        return pair._replace(
            condition=pair.condition._replace(maps=turned(pair.condition.maps, True)),
            identity=Examples(picture(known.pictures), turned(known.maps, True), known.known, picture(known.plate)),
            truth=Frame(picture(truth.rgb), matte),
        )

    def objective(self, *, critics: bool = True, vgg: VGG19 | None = None) -> FewShotObjective:
        c = self.config
        image = Critics(self.maps, 2, c.critic) if critics else None
        video = Critics(3, 1, c.critic) if critics and c.sequence > 1 else None
        head = PART["head"] if c.conditioning == "pose" else None
        return FewShotObjective(image, video, vgg, hinge=c.hinge, head=head)

    def tunable(self, identity: Examples) -> Iterable[nn.Parameter]:
        """E and H; "all parameters related to flow estimation" stay as they are (§3, "Inference")."""
        return [*self.generation.parameters(), *self.synthesis.parameters()]


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, N, C, h, w) in another size."""
    return resized(x.flatten(0, 1), size).unflatten(0, x.shape[:2])
