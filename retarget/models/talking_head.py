"""`talking-head`: Few-Shot Adversarial Learning of Realistic Neural Talking Head Models (Zakharov et al. 2019).

    K pictures x and their landmark drawings y ─ embedder E(x, y; φ) ─ mean ê (Eq. 1) ─ P ê ─┐ AdaIN
                                         landmark drawing of the frame to draw ─ generator G(y, ê; ψ, P) ─ picture
    fine-tuned (§3.3): the AdaIN coefficients are ψ', which started at P ê_NEW, and E is not asked any more

Blocks, places of self-attention, widths and the order of things are those of §3.4 and supplement A.4; they give the
numbers of parameters that §3.4 states (`paper`: E 15 million, G with P 38 million, the critic's V 20 million), and what
the paper leaves open is as in BigGAN, which it cites: nearest-neighbour enlargement, 1 + γ in AdaIN, attention as in
Self-Attention GAN. A picture is a head in a square: `portraits` cuts it out.

Where it departs from the paper: G answers a matte in a fourth channel, and the head is laid over the plate through it,
so that it can stand before another scene. The embedder's pictures are made square by repeating their borders.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..heatmaps import face_lines
from .base import Batch, Frame, Objective, Poses, References, RetargetModel
from .layers import fit_sides
from .losses import VGG19, content_loss, matte_loss, perceptual

DRAWING = 3
"""Channels of a landmark drawing."""
POOLED = 4
"""Sides of the places that E and V sum over: 4 × 4 for the paper's 256 pixels and six halvings."""
CAFFE = 57.6
"""L_CNT's weights belong to Caffe's VGG19, which sees colours in 0..255; torchvision's sees them divided by their
standard deviation, 0.226 of 255, and its features are as much smaller."""


@dataclass(frozen=True)
class TalkingHeadConfig:
    """The networks' sizes; the default is the preset `small`.

    side       short side of the pictures that the networks see and draw; results are enlarged to the picture's size.
    width      channels of the first block; each further one has twice as many, up to
    widest     and these are the bottleneck's.
    embedding  N, the size of an embedding.
    downs      blocks of G that halve, and that double.
    blocks     blocks of G between them.
    halvings   blocks of E and of V that halve.
    videos     columns of W: training videos that the critic can tell apart.
    match      with L_MCH, for fine-tuning (Ours-FT); without, the feed-forward variant (Ours-FF): not fine-tuned.
    """

    side: int = 128
    width: int = 24
    widest: int = 96
    embedding: int = 96
    downs: int = 3
    blocks: int = 4
    halvings: int = 5
    videos: int = 1024
    match: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be; also an avatar that somebody else made says its configuration."""
        for name, low, high in (
            ("side", 16, 1024), ("width", 1, 256), ("widest", 1, 2048), ("embedding", 1, 4096), ("downs", 2, 6),
            ("blocks", 0, 16), ("halvings", 1, 8), ("videos", 1, 1 << 24),
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} is not from {low} to {high}")
        if type(self.match) is not bool:
            raise ValueError("match is neither true nor false")
        if self.side % (2 << max(self.downs, self.halvings)):
            raise ValueError("side cannot be halved so often")


UNKNOWN = -1
"""The number of a video that W has no column for."""


class HeadIdentity(NamedTuple):
    """A person, or one per picture of the batch."""

    known: Tensor
    """(B, 6, K · side, side) in 0..1: the pictures and their landmark drawings, one below the other."""
    shots: Tensor
    """(B,) int64: K; rows of `known` below the K-th picture say nothing."""
    plate: Tensor
    """(B, 3, H, W) in 0..1: what the head stands before, in any size with the right aspect."""
    video: Tensor
    """(B,) int64: the number of the video in the training set, or `UNKNOWN`."""
    embedding: Tensor
    """(B, N): ê by the weights that `encode` was called with (Eqs. 1, 7)."""


class HeadCondition(NamedTuple):
    """A landmark drawing, and the picture it is for."""

    maps: Tensor
    """(B, 3, h, w) in 0..1."""
    size: tuple[int, int]
    """(H, W) of what is drawn."""


class HeadPair(NamedTuple):
    """Landmark drawing and person: all that training needs, at the size that the networks see (`ahead`)."""

    maps: Tensor
    """(B, 3, h, w) in 0..1, and as in `HeadIdentity`:"""
    known: Tensor
    shots: Tensor
    plate: Tensor
    video: Tensor


class Embeddings(NamedTuple):
    """What L_MCH compares: `Frame.extra`."""

    each: Tensor
    """(B, K, N): E of each of the K pictures; zeros where there are fewer."""
    there: Tensor
    """(B, K) float: 1 where there is a picture."""


# ------------------------------------------------------------------------------------------------ blocks


class Conv2d(nn.Conv2d):
    """A convolution with borders repeated by zeros, whose weight is normalised in float32 under autocast, too."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight = self.weight  # power iteration happens here
        return self._conv_forward(input, weight, self.bias)


class Linear(nn.Linear):
    """Likewise."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight = self.weight
        return F.linear(input, weight, self.bias)


def _conv(inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Module:
    """Spectral normalisation is everywhere (§3.4)."""
    return spectral_norm(Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=bias))


def _widths(width: int, widest: int, count: int) -> list[int]:
    return [min(width << i, widest) for i in range(count)]


class SelfAttention(nn.Module):
    """Non-local block of Self-Attention GAN as in BigGAN: keys and values at half the size; starts as identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, values = max(1, channels // 8), max(1, channels // 2)
        self.query, self.key = _conv(channels, inner, 1, bias=False), _conv(channels, inner, 1, bias=False)
        self.value, self.out = _conv(channels, values, 1, bias=False), _conv(values, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)
        key, value = (F.max_pool2d(f(x), 2, ceil_mode=True).flatten(2).transpose(1, 2) for f in (self.key, self.value))
        share = torch.softmax((query @ key.transpose(1, 2)).float(), -1).to(value.dtype)
        seen = (share @ value).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        y: Tensor = x + self.gain.to(x.dtype) * self.out(seen)
        return y


class Down(nn.Module):
    """A residual block (A.4, following BigGAN): pre-activated unless it is the first; halves by average pooling."""

    def __init__(
        self, inputs: int, outputs: int, *, first: bool = False, normed: bool = False, halve: bool = True
    ) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        norm = (lambda c: nn.InstanceNorm2d(c, affine=True)) if normed else (lambda c: nn.Identity())
        self.before = nn.Identity() if first else norm(inputs)
        self.one, self.between, self.two = _conv(inputs, outputs), norm(outputs), _conv(outputs, outputs)
        self.skip = _conv(inputs, outputs, 1) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.first else F.relu(self.before(x))
        y = self.two(F.relu(self.between(self.one(y))))
        if self.halve:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        out: Tensor = y + self.skip(x)
        return out


class Adaptive(nn.Module):
    """A residual block with adaptive instance normalisation; doubles the sides in the end, if asked to (A.4)."""

    def __init__(self, inputs: int, outputs: int, *, double: bool = False) -> None:
        super().__init__()
        self.enlarges = double
        self.coefficients = (2 * inputs, 2 * outputs)
        self.one, self.two = _conv(inputs, outputs), _conv(outputs, outputs)
        self.skip = _conv(inputs, outputs, 1) if double else nn.Identity()

    def forward(self, x: Tensor, before: Tensor, between: Tensor) -> Tensor:
        y = self.two(F.relu(adain(self.one(F.relu(adain(x, before))), between)))
        y = y + self.skip(x)
        return F.interpolate(y, scale_factor=2.0, mode="nearest") if self.enlarges else y


def adain(x: Tensor, coefficients: Tensor) -> Tensor:
    """(B, C, H, W) normalised per picture and channel, times 1 + γ, plus β; coefficients (B, 2 C): γ, then β."""
    gain, shift = coefficients.to(x.dtype)[:, :, None, None].chunk(2, 1)
    return F.instance_norm(x) * (1 + gain) + shift


class Trunk(nn.Module):
    """What E and V share (A.4): residual blocks that halve, self-attention at a quarter of 128 or an eighth of 256
    pixels (that is 32), ReLU, and the sum over places.

    Args:
        last: with a residual block more at the lowest resolution, as V has (§3.4).

    Shapes: (B, 6, H, W) → (B, `embedding`), and the outputs of all residual blocks.
    """

    def __init__(self, config: TalkingHeadConfig, *, last: bool) -> None:
        super().__init__()
        widths = [*_widths(config.width, config.widest, config.halvings - 1), config.embedding]
        pairs = zip([3 + DRAWING, *widths[:-1]], widths, strict=True)
        self.blocks = nn.ModuleList(Down(a, b, first=i == 0) for i, (a, b) in enumerate(pairs))
        if last:
            self.blocks.append(Down(widths[-1], widths[-1], halve=False))
        self.place = max(0, config.halvings - 4)
        self.attention = SelfAttention(widths[self.place])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            outputs.append(x)
            if i == self.place:
                x = self.attention(x)
        return F.relu(x).float().mean((2, 3)) * POOLED**2, outputs


class Generator(nn.Module):
    """G(y; ψ, ψ̂): (B, 3, H, W) and AdaIN coefficients (B, `coefficients`) → colours in -1..1, and matte logits.

    H and W must be multiples of 2 ** downs. Self-attention stands before the last block that halves (32 × 32) and after
    two that double (64 × 64).
    """

    def __init__(self, config: TalkingHeadConfig) -> None:
        super().__init__()
        down = [*_widths(config.width, config.widest, config.downs - 1), config.widest]
        pairs = list(zip([DRAWING, *down[:-1]], down, strict=True))
        self.down = nn.ModuleList(Down(a, b, first=i == 0, normed=True) for i, (a, b) in enumerate(pairs))
        self.looks_down = SelfAttention(pairs[-1][0])
        self.middle = nn.ModuleList(Adaptive(config.widest, config.widest) for _ in range(config.blocks))
        up = [down[-1], *reversed(down)]
        self.up = nn.ModuleList(Adaptive(a, b, double=True) for a, b in pairwise(up))
        self.looks_up = SelfAttention(up[2])
        self.last = _conv(up[-1], 4)
        blocks = [*self.middle, *self.up]
        self.sizes = [n for block in blocks for n in block.coefficients] + [2 * up[-1]]

    @property
    def coefficients(self) -> int:
        """How many adaptive parameters a person has."""
        return sum(self.sizes)

    def forward(self, y: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
        own = list(person.split(self.sizes, 1))
        for i, block in enumerate(self.down):
            y = block(self.looks_down(y) if i and i == len(self.down) - 1 else y)
        for block in self.middle:
            y = block(y, own.pop(0), own.pop(0))
        for i, block in enumerate(self.up):
            y = block(y, own.pop(0), own.pop(0))
            if i == 1:
                y = self.looks_up(y)
        answer = self.last(F.relu(adain(y, own.pop(0)))).float()
        return torch.tanh(answer[:, :3]), answer[:, 3:]


# ------------------------------------------------------------------------------------------------ the model


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


# ------------------------------------------------------------------------------------------------ the objective


class ProjectionCritic(nn.Module):
    """D(x, y, i) = V(x, y; θ)ᵀ (W_i + w0) + b (Eq. 5), or with w' in the place of W_i + w0 (Eq. 8).

    A video that W has no column for is judged by w0 alone: how real a picture is, and whether it fits its landmarks.
    """

    adopted: Tensor

    def __init__(self, config: TalkingHeadConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config, last=True)
        self.videos = nn.Embedding(config.videos, config.embedding)
        self.general = nn.Parameter(torch.randn(config.embedding) * 0.02)
        self.bias = nn.Parameter(torch.zeros(1))
        self.own = nn.Parameter(torch.zeros(config.embedding))
        self.register_buffer("adopted", torch.zeros(1))
        nn.init.normal_(self.videos.weight, 0, 0.02)

    def columns(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """W_i (B, N) of videos (B,), zeros where there is no column; and (B,) bool: where there is one."""
        known = (video >= 0) & (video < self.videos.num_embeddings)
        columns: Tensor = self.videos(torch.where(known, video, 0)) * known[:, None]
        return columns, known

    def forward(self, rgb: Tensor, maps: Tensor, video: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Pictures (B, 3, H, W) in -1..1 with their landmark drawings → scores (B,) and the blocks' outputs."""
        x = torch.cat([rgb / 2 + 0.5, maps], 1)
        vector, outputs = self.trunk(fit_sides(x, 1 << (len(self.trunk.blocks) - 1)))
        with torch.autocast(rgb.device.type, enabled=False):
            direction = self.own if bool(self.adopted) else self.columns(video)[0] + self.general
            return (vector.float() * direction).sum(1) + self.bias, outputs


class TalkingHeadObjective(Objective):
    """L_CNT + L_ADV + L_MCH for the model, the hinge loss for its critic (Eqs. 3, 4, 6; fine-tuning: Eqs. 9, 10).

    L_CNT wants VGG19 and VGGFace. VGGFace's licence does not let it be here, so that its term is missing. Where VGG19
    is not on the machine, a distance without a network (`losses.content_loss`) takes its place. The matte, which the
    paper does not have, is learned as in `dance`.

    Args:
        critics: without them neither L_ADV nor L_MCH.
    """

    critic_steps = 2  # §3.4
    critic_rate = 4.0  # §3.4: 2e-4 for the critic, 5e-5 for the others
    VGG, FEATURES, MATCH = 0.15, 10.0, 10.0  # §3.4
    CONTENT, MATTE = 10.0, 3.0

    def __init__(self, config: TalkingHeadConfig, *, critics: bool = True, vgg: VGG19 | None = None) -> None:
        super().__init__()
        self.match = config.match
        self.vgg = vgg
        self.critics = ProjectionCritic(config) if critics else None

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critics.parameters()) if self.critics else []

    @torch.no_grad()
    def adopt(self, identity: HeadIdentity) -> None:
        """w' = w0 + ê_NEW (§3.3)."""
        if self.critics:
            self.critics.own.copy_(self.critics.general + identity.embedding[0].to(self.critics.own))
            self.critics.adopted.fill_(1)

    def content(self, x: Tensor, y: Tensor) -> Tensor:
        """L_CNT of drawn pictures x and true ones y."""
        if self.vgg is None:
            return self.CONTENT * content_loss(x, y)
        with torch.no_grad():
            seen = self.vgg(y)
        return self.VGG * CAFFE * perceptual(seen, self.vgg(x))

    def generator_loss(self, frame: Frame, truth: Frame, condition: HeadPair) -> dict[str, Tensor]:
        x, y = frame.rgb.float(), truth.rgb.float()
        terms = {"content": self.content(x, y)}
        if frame.matte is not None and truth.matte is not None:
            terms["matte"] = self.MATTE * matte_loss(frame.matte, truth.matte)
        if not self.critics:
            return terms
        score, fake = self.critics(x, condition.maps, condition.video)
        with torch.no_grad():
            _, real = self.critics(y, condition.maps, condition.video)
        terms["adversarial"] = -score.mean()
        distances = [F.l1_loss(a.float(), b.float()) for a, b in zip(fake, real, strict=True)]
        terms["feature"] = self.FEATURES * torch.stack(distances).sum()
        if self.match and isinstance(frame.extra, Embeddings):
            columns, known = self.critics.columns(condition.video)
            terms["match"] = self.MATCH * match_loss(frame.extra, columns, known)
        return terms

    def critic_loss(self, frame: Frame, truth: Frame, condition: HeadPair) -> dict[str, Tensor]:
        if not self.critics:
            return {}
        fake, _ = self.critics(frame.rgb.detach().float(), condition.maps, condition.video)
        real, _ = self.critics(truth.rgb.float(), condition.maps, condition.video)
        return {"critic": hinge(real, fake)}


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """L_DSC (Eq. 6): max(0, 1 + D(x̂)) + max(0, 1 - D(x)), means over the pictures' scores (B,)."""
    return F.relu(1 + fake).mean() + F.relu(1 - real).mean()


def match_loss(embeddings: Embeddings, columns: Tensor, known: Tensor) -> Tensor:
    """L_MCH: the mean |E(x(s_k), y(s_k)) - W_i| over elements, over the K pictures, over pictures of known videos.

    Args:
        columns: W_i, (B, N).
        known: (B,) bool.
    """
    weight = embeddings.there * known[:, None]
    distance = (embeddings.each - columns[:, None]).abs().mean(2)
    return (distance * weight).sum() / weight.sum().clamp_min(1)
