"""The model: a person's embedding, the picture that a landmark drawing becomes, and adopting somebody (§3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ...heatmaps import face_lines
from ..base import Batch, Frame, Poses, References, RetargetModel
from ..layers import fit_sides
from ..losses import VGG19
from .config import DRAWING, UNKNOWN, Embeddings, HeadCondition, HeadIdentity, HeadPair, TalkingHeadConfig
from .networks import Generator, Linear, Trunk
from .objective import TalkingHeadObjective


class TalkingHead(RetargetModel):
    """The model. `own` is ψ', the person's AdaIN coefficients, once it has adopted somebody (§3.3)."""

    PRESETS: ClassVar = {
        "small": {},
        "paper": {
            "side": 256, "width": 64, "widest": 512, "embedding": 512, "downs": 4, "halvings": 6, "videos": 145_569,
        },
    }  # fmt: skip
    """`paper`: §3.4; it was trained on the 145,569 videos of VoxCeleb2's training set."""
    subject = "head"
    Ahead = HeadPair
    adopted: Tensor
    """(1,): 1 when `own` stands in the place of P ê."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = TalkingHeadConfig(**config)
        self.embedder = Trunk(self.config, last=False)
        self.generator = Generator(self.config)
        count = self.generator.coefficients
        self.projection = spectral_norm(Linear(self.config.embedding, count, bias=False))
        self.own = nn.Parameter(torch.zeros(count))
        self.register_buffer("adopted", torch.zeros(1))

    @property
    def maps(self) -> int:
        return DRAWING

    @property
    def ahead_depends_on(self) -> dict[str, Any]:
        return {"side": self.config.side}

    def condition(self, poses: Poses, size: tuple[int, int], previous: HeadCondition | None = None) -> HeadCondition:
        """Of the window only the last pose counts."""
        return HeadCondition(face_lines(poses.face[:, -1], self._small(size), picture=poses.picture), size)

    def _small(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of a picture of `size` with a short side of `config.side`."""
        zoom = self.config.side / min(size)
        return round(size[0] * zoom), round(size[1] * zoom)

    def encode(self, references: References) -> HeadIdentity:
        device = references.rgb.device
        batch, count = references.rgb.shape[:2]
        rgb = references.rgb.flatten(0, 1).float() / 2 + 0.5
        matte = references.matte.to(device).flatten(0, 1).float()
        plate = references.plate.float() / 2 + 0.5
        # What stands under a matte's soft border is the person's own colour: before the plate it is a picture again.
        rgb = rgb * matte + plate.repeat_interleave(count, 0) * (1 - matte)
        side, scale = self.config.side, self._small((rgb.shape[2], rgb.shape[3]))
        lines = face_lines(references.poses.face.to(device).flatten(0, 1), scale, picture=references.poses.picture)
        both = _square(torch.cat([_resized(rgb, scale), lines], 1), side)
        known = both.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)
        number = UNKNOWN if references.video is None else references.video
        counts, videos = (torch.full((batch,), n, device=device) for n in (count, number))
        with torch.no_grad():
            embedding = _mean(self._embedded(known, counts))
        return HeadIdentity(known, counts, plate, videos, embedding)

    def before(self, identity: HeadIdentity, plate: Tensor) -> HeadIdentity:
        return identity._replace(plate=(plate.float() / 2 + 0.5).expand(len(identity.plate), -1, -1, -1))

    def forward(
        self, condition: HeadCondition | HeadPair, identity: HeadIdentity | None, state: None
    ) -> tuple[Frame, None]:
        """With a `HeadPair` (`ahead`), E is asked, with gradients, and the frame has the networks' size."""
        count, embeddings = len(condition.maps), None
        if isinstance(condition, HeadPair):
            plate, size = condition.plate, (condition.maps.shape[2], condition.maps.shape[3])
            if not self.is_adopted:
                embeddings = self._embedded(condition.known, condition.shots)
        else:
            assert identity is not None
            plate, size = identity.plate, condition.size
        if self.is_adopted:
            person = self.own.expand(count, -1)
        else:
            mean = identity.embedding if embeddings is None else _mean(embeddings)  # type: ignore[union-attr]
            person = self.projection(mean.expand(count, -1)).float()
        h, w = condition.maps.shape[2:]
        rgb, logits = self.generator(fit_sides(condition.maps, 1 << self.config.downs), person)
        rgb, matte = (_resized(x[..., :h, :w], size) for x in (rgb / 2 + 0.5, torch.sigmoid(logits)))
        plate = _resized(plate, size)
        rgb = torch.lerp(plate.expand_as(rgb), rgb, matte)
        return Frame(2 * rgb - 1, matte, embeddings), None

    @property
    def is_adopted(self) -> bool:
        return bool(self.adopted)

    def _embedded(self, known: Tensor, count: Tensor) -> Embeddings:
        """E of every picture (Eq. 1)."""
        pictures = known.unflatten(2, (-1, self.config.side)).transpose(1, 2)
        there = torch.arange(pictures.shape[1], device=known.device) < count[:, None]
        found, _ = self.embedder(pictures[there])
        each = found.new_zeros(*there.shape, found.shape[1])
        each[there] = found
        return Embeddings(each, there.float())

    @torch.no_grad()
    def ahead(self, condition: HeadCondition, identity: HeadIdentity, truth: Frame) -> tuple[HeadPair, None, Frame]:
        """Everything at the size that the networks see."""
        size = (condition.maps.shape[2], condition.maps.shape[3])
        count = len(condition.maps)
        plate = _resized(identity.plate, size)
        # Each pair has its own: they are written to files.
        person = (
            x.expand(count, *x.shape[1:]).clone() for x in (identity.known, identity.shots, plate, identity.video)
        )
        assert truth.matte is not None
        seen = Frame(_resized(truth.rgb, size), _resized(truth.matte, size))
        return HeadPair(condition.maps, *person), None, seen

    def varied(self, pair: Batch, generator: torch.Generator) -> Batch:
        """Left and right exchanged; and half of them in other colours, as a person whom W does not know."""
        seen: HeadPair = pair.condition
        rgb, matte = pair.truth.rgb, pair.truth.matte
        order = torch.randperm(3, generator=generator)
        # Never brighter than white.
        gain = 0.5 + 0.5 * torch.rand(1, 3, 1, 1, generator=generator)
        coloured, mirrored = (torch.rand(2, generator=generator) < 0.5).tolist()
        if coloured:
            known = torch.cat([seen.known[:, order] * gain, seen.known[:, 3:]], 1)
            video = torch.full_like(seen.video, UNKNOWN)
            seen = seen._replace(known=known, plate=seen.plate[:, order] * gain, video=video)
            rgb = (rgb[:, order] + 1) * gain - 1
        if mirrored:
            assert matte is not None
            maps, known, plate, rgb, matte = (x.flip(3) for x in (seen.maps, seen.known, seen.plate, rgb, matte))
            seen = seen._replace(maps=maps, known=known, plate=plate)
        return pair._replace(condition=seen, truth=Frame(rgb, matte))

    def objective(self, *, critics: bool = True, vgg: VGG19 | None = None) -> TalkingHeadObjective:
        return TalkingHeadObjective(self.config, critics=critics, vgg=vgg)

    @torch.no_grad()
    def adopt(self, identity: HeadIdentity) -> None:
        """ψ' = P ê_NEW (§3.3)."""
        training = self.training
        self.eval()  # the power iteration rests
        self.own.copy_(self.projection(_mean(self._embedded(identity.known[:1], identity.shots[:1])))[0])
        self.adopted.fill_(1)
        self.train(training)

    def tunable(self, identity: HeadIdentity) -> Iterable[nn.Parameter]:
        """ψ and ψ' (Eq. 9); nothing of the feed-forward variant."""
        return [*self.generator.parameters(), self.own] if self.config.match else []


def _mean(embeddings: Embeddings) -> Tensor:
    """ê, (B, N)."""
    return embeddings.each.sum(1) / embeddings.there.sum(1, keepdim=True)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) at another size; averaged when it becomes smaller."""
    if tuple(x.shape[2:]) == size:
        return x
    smaller = x.shape[2] > size[0]
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=smaller)


def _square(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W), the shorter side of `side`, fitted into a square of `side`, borders repeated."""
    h, w = x.shape[2:]
    zoom = side / max(h, w)
    x = _resized(x, (max(1, round(h * zoom)), max(1, round(w * zoom))))
    down, right = side - x.shape[2], side - x.shape[3]
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")
