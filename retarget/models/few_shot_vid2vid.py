"""`few-shot-vid2vid`: Few-shot Video-to-Video Synthesis (Wang et al. 2019), §3.

    K examples ─ E_F ─ q ─┐
    their maps ─ E_A ─────┴─ attention ─ q ─ E_P ─ θ_H ─┐                        (Eq. 7)
    maps ─ E_A ───────────┘                             │
    maps ───────────────────────────────────────────────┴─ H ─ h̃ ─┐              (Eqs. 8-10)
    the most similar example, moved by a flow ─────────────────────┴─ h̃' ─┐      (Eq. 11)
    the frame before, moved by a flow ─────────────────────────────────────┴─ x̃  (Eq. 2)

"Semantic images" s are pose maps, face sketches or label maps (`FewShotConfig.conditioning`). What was drawn last and
its maps are the state (Eq. 1).

What the paper leaves open, and what was chosen:
* Sizes are those of the code that its authors published, the preset `paper`: 32 to 1024 channels, six levels of which
  the four finest have generated weights, kernels of 1×1 in the modulation branches, three linear layers in E_P, four
  levels in W and M with six residual blocks, spectral and batch normalisation, τ = 1.
* "We average pool q^l": to a grid of `grid` × `grid`, as there; E_P^l makes of each channel of it the filters of one
  output channel, its last bias is as large as θ^l. γ's bias begins at 1, so that Eq. 10 begins as no modulation.
* One α has to fit the q^l of all levels: keys are pooled to the same grid, N = `grid`². The softmax over all places of
  all examples is scaled by √C, as in the transformer that the paper cites.
* H begins with a convolution of the small semantic map, as the SPADE generator that the paper cites.
* p_S becomes smaller from level to level by averaging, since a strided kernel of 1×1 would leave pixels out.
* W and M, for the frame before and for the example, are one network with two heads each, as in vid2vid.

Where it departs from the paper: with poses and faces, all pictures x, e and h have a fourth channel, a matte, and hold
the person alone: what is drawn is the person before a scene, which the user may exchange. Label maps paint the whole
picture. The preset `small` folds pixels, so that the networks work at half the resolution, and normalises per picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..heatmaps import POSE_CHANNELS, face_lines, pose_maps
from .base import Batch, Frame, Labels, Objective, Poses, References, RetargetModel
from .critics import Critics
from .dance import MIRRORED_MAPS
from .layers import fit_sides, resized, warp, zero_
from .losses import (
    VGG19,
    content_loss,
    feature_matching,
    gradient_loss,
    hinge_critic,
    hinge_generator,
    lsgan_critic,
    lsgan_generator,
    matte_loss,
    perceptual,
)

SLOPE = 0.2
REACH = 20.0
"""Pixels of flow for an answer of 1 (the published code's multiplier)."""
NEW = (-2.0, 2.0)
"""Where the occlusion maps' logits begin, for the example and for the frame before: what is not learned yet shows the
example, and trusts no flow of its own."""
SUBJECT: dict[str, Literal["body", "head", "scene"]] = {"pose": "body", "face": "head", "labels": "scene"}
"""Conditioning → what the pictures show."""
ABSENT = -3.0
"""Where the logit of h̃'s matte begins: what is not painted yet is not there."""


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


# ------------------------------------------------------------------------------------------------ networks


def _conv(
    c: FewShotConfig, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, SLOPE)
    return spectral_norm(conv) if c.spectral else conv


def _block(c: FewShotConfig, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation (of the whole picture, so that what tells its channels apart stays), leaky ReLU."""
    norm = nn.BatchNorm2d(outputs) if c.norm == "batch" else nn.GroupNorm(1, outputs)
    return nn.Sequential(_conv(c, inputs, outputs, stride=stride), norm, nn.LeakyReLU(SLOPE))


def _free(c: FewShotConfig, channels: int) -> nn.Module:
    """Normalisation without parameters of its own: p̂ of Eq. 10."""
    kind = nn.BatchNorm2d if c.norm == "batch" else nn.InstanceNorm2d
    return kind(channels, affine=False)


def pointwise(x: Tensor, filters: Tensor) -> Tensor:
    """⊛ of Eqs. 8 and 9: a 1×1 convolution with filters of its own for every picture.

    Args:
        x: (B, C, h, w).
        filters: (B, outputs, C + 1), the bias last.
    """
    b, c, h, w = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
    y = torch.baddbmm(filters[:, None, :, c].to(x.dtype), flat, filters[..., :c].transpose(1, 2).to(x.dtype))
    return y.reshape(b, h, w, -1).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions with the normalisation of the configuration, added to their input."""

    def __init__(self, c: FewShotConfig, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(c, channels, channels), _block(c, channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y


class FlowNetwork(nn.Module):
    """W and M (Eqs. 3 and 4): where a known picture's pixels went, and where they are not to be seen.

    Shapes: (B, inputs, h, w) → flow (B, 2, h, w) in pixels of its own resolution, m̃ (B, 1, h, w) in 0..1.
    """

    def __init__(self, c: FewShotConfig, inputs: int, new: float) -> None:
        super().__init__()
        widths = [min(c.flow_width << level, c.widest) for level in range(c.flow_downs + 1)]
        self.down = nn.Sequential(
            _block(c, inputs, widths[0]),
            *(_block(c, a, b, stride=2) for a, b in pairwise(widths)),
            *(ResidualBlock(c, widths[-1]) for _ in range(c.flow_blocks)),
        )
        self.up = nn.ModuleList(_block(c, a, b) for a, b in pairwise(reversed(widths)))
        self.head = zero_(nn.Conv2d(widths[0], 3, 3, 1, 1))
        self.new = new

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.down(x)
        for up in self.up:
            y = up(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        answer = self.head(y).float()
        return REACH * answer[:, :2], torch.sigmoid(answer[:, 2:] + self.new)


class WeightGenerator(nn.Module):
    """E_P^l: a multi-layer perceptron that makes filters of one channel of q^l each.

    Args:
        filters: (outputs, inputs, bias) of each convolution: its bias begins there. There are at most `rows` outputs.
        rows: channels of q^l.
        grid: q^l is pooled to grid × grid.
        generated: False: the filters are the bias of the last layer alone, the same for everybody.
    """

    def __init__(self, filters: Sequence[tuple[int, int, float]], rows: int, grid: int, generated: bool) -> None:
        super().__init__()
        self.sizes = [(outputs, inputs + 1) for outputs, inputs, _ in filters]
        self.bias = nn.ParameterList()
        for outputs, inputs, bias in filters:
            own = torch.randn(outputs, inputs + 1) / inputs**0.5
            own[:, -1] = bias
            self.bias.append(nn.Parameter(own))
        self.mlp: nn.Sequential | None = None
        if generated:
            last = nn.Linear(rows, sum(size for _, size in self.sizes), bias=False)
            nn.init.normal_(last.weight, 0, 0.3 / (rows * max(inputs for _, inputs, _ in filters)) ** 0.5)
            hidden = (nn.Linear(grid * grid, rows), nn.LeakyReLU(SLOPE), nn.Linear(rows, rows), nn.LeakyReLU(SLOPE))
            self.mlp = nn.Sequential(*hidden, last)

    def forward(self, q: Tensor) -> list[Tensor]:
        """(B, rows, N) → for each convolution (B, outputs, inputs + 1), the bias last."""
        if self.mlp is None:
            return [own.expand(len(q), -1, -1) for own in self.bias]
        made = self.mlp(q).split([size for _, size in self.sizes], 2)
        return [own + new[:, : len(own)] for own, new in zip(self.bias, made, strict=True)]


class SpadeBlock(nn.Module):
    """A residual block of the SPADE generator (Park et al. 2019, Fig. 4), whose modulation is given.

    Shapes: (B, inputs, h, w) → (B, outputs, h, w).
    """

    def __init__(self, c: FewShotConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.first, self.second = _conv(c, inputs, middle), _conv(c, middle, outputs)
        self.shortcut = _conv(c, inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.norm_in, self.norm_middle = _free(c, inputs), _free(c, middle)

    def forward(self, x: Tensor, gammas: Sequence[Tensor], betas: Sequence[Tensor]) -> Tensor:
        """γ and β of the normalisations before the first and the second convolution and, where the number of channels
        changes, before the shortcut's: (B, C, h, w) each."""
        normal = self.norm_in(x)
        y = self.first(F.leaky_relu(gammas[0] * normal + betas[0], SLOPE))
        y = self.second(F.leaky_relu(gammas[1] * self.norm_middle(y) + betas[1], SLOPE))
        if self.shortcut is not None:
            x = self.shortcut(gammas[2] * normal + betas[2])
        out: Tensor = x + y
        return out


class Synthesis(nn.Module):
    """H: the SPADE generator whose modulation branches have the weights θ_H (Eqs. 8-10).

    Shapes: maps (B, C, h, w), both sides multiples of 2 ** (levels - 1) → (B, layers, h · fold, w · fold).
    """

    def __init__(self, c: FewShotConfig) -> None:
        super().__init__()
        widths = c.channels
        self.start = _conv(c, c.maps, widths[-1])
        self.blocks = nn.ModuleList(SpadeBlock(c, b, a) for a, b in pairwise(widths))
        # Channels of each block's modulated normalisations.
        self.modulated = [[b, min(a, b), *([b] if a != b else [])] for a, b in pairwise(widths)]
        self.last = zero_(nn.Conv2d(widths[0], c.layers * c.fold**2, 3, 1, 1))
        self.unfold = nn.PixelShuffle(c.fold)

    def forward(self, maps: Tensor, weights: Sequence[Sequence[Tensor]]) -> Tensor:
        """`weights`: θ_H^l of each level, fine to coarse: θ_S, then θ_γ and θ_β of each modulated normalisation."""
        shared, modulations = maps, []
        for level, (own, *others) in enumerate(weights):
            shared = F.avg_pool2d(shared, 2) if level else shared
            shared = F.leaky_relu(pointwise(shared, own), SLOPE)
            made = pointwise(shared, torch.cat(others, 1)).split([w.shape[1] for w in others], 1)
            modulations.append((made[::2], made[1::2]))
        x = self.start(resized(maps, shared.shape[2:]))
        for level in reversed(range(len(weights))):
            x = self.blocks[level](x, *modulations[level])
            if level:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        out: Tensor = self.unfold(self.last(F.leaky_relu(x, SLOPE)))
        return out.float()


class WeightGeneration(nn.Module):
    """E (Eq. 7): E_F reads the examples, E_A says what of them matters for a frame, E_P makes θ_H of it."""

    def __init__(self, c: FewShotConfig, modulated: Sequence[Sequence[int]]) -> None:
        super().__init__()
        widths = c.channels
        self.grid, self.rows = c.grid, widths[1 : c.adaptive + 1]
        self.features = nn.ModuleList(  # E_F: q^l has the channels of what comes into H^l
            nn.Sequential(*([] if level else [_block(c, c.layers, widths[0])]), _block(c, a, b, stride=2))
            for level, (a, b) in enumerate(zip(widths, self.rows, strict=False))
        )
        self.keys = nn.Sequential(  # E_A
            _block(c, c.maps, widths[0]),
            *(_block(c, a, b, stride=2) for a, b in pairwise(widths[: c.keys + 1])),
        )
        self.perceptrons = nn.ModuleList()
        for level, width in enumerate(widths[: c.levels]):
            filters = [(width, widths[level - 1] if level else c.maps, 0.0)]
            filters += [(n, width, bias) for n in modulated[level] for bias in (1.0, 0.0)]
            self.perceptrons.append(WeightGenerator(filters, widths[level + 1], c.grid, level < c.adaptive))

    def appearance(self, pictures: Tensor) -> Tensor:
        """q of all levels, pooled: (B, K, layers, h, w) → (B, K, R, N)."""
        x, found = pictures.flatten(0, 1), []
        for layer in self.features:
            x = layer(x)
            found.append(F.adaptive_avg_pool2d(x.float(), self.grid).flatten(2))
        return torch.cat(found, 1).unflatten(0, pictures.shape[:2])

    def key(self, maps: Tensor) -> Tensor:
        """a: (B, C, h, w) → (B, C', N)."""
        return F.adaptive_avg_pool2d(self.keys(maps).float(), self.grid).flatten(2)

    def attention(self, keys: Tensor, query: Tensor, known: Tensor) -> Tensor:
        """α = a_kᵀ ⊗ a_t, as shares: of all places of all examples, for each place of the frame.

        Args:
            keys: (B, K, C', N); query: (B, C', N); known: (B, K) 1 or 0.

        Returns:
            (B, K, N, N), whose sum over the examples and their places is 1.
        """
        energy = torch.einsum("bkcn,bcm->bknm", keys, query).float() / keys.shape[2] ** 0.5
        energy = energy.masked_fill(known[:, :, None, None] == 0, -torch.inf)
        return energy.flatten(1, 2).softmax(1).unflatten(1, energy.shape[1:3])

    def weights(self, q: Tensor) -> list[list[Tensor]]:
        """θ_H of q (B, R, N), level by level, fine to coarse."""
        parts: list[Tensor] = list(q.split(self.rows, 1)) if self.rows else []
        parts += [q] * (len(self.perceptrons) - len(parts))  # not looked at
        return [perceptron(part) for perceptron, part in zip(self.perceptrons, parts, strict=True)]


# ------------------------------------------------------------------------------------------------ the model


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
        return FewShotObjective(image, video, vgg, hinge=c.hinge)

    def tunable(self, identity: Examples) -> Iterable[nn.Parameter]:
        """E and H; "all parameters related to flow estimation" stay as they are (§3, "Inference")."""
        return [*self.generation.parameters(), *self.synthesis.parameters()]


class FewShotObjective(Objective):
    """The learning objective of vid2vid (Wang et al. 2018, §3.2), which the paper takes over.

    min_F (max_DI L_I + max_DV L_V) + λ_W L_W, and feature matching and VGG's perceptual loss beside it, λ = 10 each.
    D_I looks at a picture with its semantic image, D_V at two frames in a row. There is no ground truth of the flow
    here (the paper has FlowNet2's): beside L_W's second term, warped true pictures, L_W asks that warped semantic
    images fit (as the published code does with body masks) and that flows are smooth. Without VGG19 `content_loss`
    takes its place. The matte, which the paper does not have, is told the true one.

    Args:
        image: D_I; None: no critics.
        video: D_V; None: none of videos.
        vgg: the network of the perceptual term.
        hinge: hinge losses instead of least squares.
    """

    WEIGHT = 10.0
    """λ of feature matching, VGG and L_W."""
    SMOOTH = 0.002
    """How much a flow's unevenness counts, per pixel, within L_W."""

    def __init__(self, image: Critics | None, video: Critics | None, vgg: VGG19 | None, *, hinge: bool = False) -> None:
        super().__init__()
        self.critics = nn.ModuleDict({name: c for name, c in (("image", image), ("video", video)) if c is not None})
        self.vgg, self.hinge = vgg, hinge

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critics.parameters())

    def _judged(self, frame: Frame, condition: Any) -> dict[str, list[list[Tensor]]]:
        """What each critic says of pictures."""
        clip, maps = _clip(frame.rgb).float(), _clip(condition.maps)
        said = {}
        for name, critic in self.critics.items():
            if name == "image":
                said[name] = critic(clip.flatten(0, 1), maps.flatten(0, 1))
            elif clip.shape[1] > 1:
                said[name] = critic(clip[:, 1:].flatten(0, 1), clip[:, :-1].flatten(0, 1))
        return said

    def generator_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        terms = {}
        if self.critics:
            with torch.no_grad():
                real = self._judged(truth, condition)
            for name, fake in self._judged(frame, condition).items():
                scores = [scale[-1] for scale in fake]
                terms[f"{name}_adversarial"] = hinge_generator(scores) if self.hinge else lsgan_generator(scores)
                terms[f"{name}_feature"] = self.WEIGHT * feature_matching(real[name], fake)
        x, y = (_clip(f.rgb).flatten(0, 1).float() for f in (frame, truth))
        if self.vgg:
            with torch.no_grad():
                seen = self.vgg(y)
            terms["perceptual"] = self.WEIGHT * perceptual(seen, self.vgg(x))
        else:
            terms["content"] = self.WEIGHT * content_loss(x, y)
        if truth.matte is not None and frame.matte is not None:
            terms["matte"] = self.WEIGHT * matte_loss(
                _clip(frame.matte).flatten(0, 1), _clip(truth.matte).flatten(0, 1)
            )
        if frame.extra is not None:
            terms["warp"] = self.WEIGHT * warping_loss(frame.extra, truth, condition.maps)
        return terms

    def critic_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        real, fake = (self._judged(f.detached(), condition) for f in (truth, frame))
        loss = hinge_critic if self.hinge else lsgan_critic
        return {
            f"{name}_critic": loss([scale[-1] for scale in real[name]], [scale[-1] for scale in fake[name]])
            for name in real
        }


def warping_loss(moved: Moved, truth: Frame, maps: Tensor) -> Tensor:
    """L_W without a ground truth: mean |w̃(x_{t-1}) - x_t| + |w̃(s_{t-1}) - s_t| with true pictures x, the same of the
    example, and `FewShotObjective.SMOOTH` times the flows' mean unevenness.

    Args:
        moved, truth: with or without a time axis.
        maps: (B, C, h, w) or (B, T, C, h, w): the semantic images.
    """
    x, maps = _clip(truth.rgb).float(), _clip(maps).float()
    if truth.matte is not None and (moved.example is None or moved.example.shape[-3] == 4):
        matte = _clip(truth.matte).float()
        x = torch.cat([x * matte, matte], 2)
    flow, terms, flows = _clip(moved.flow)[:, 1:].flatten(0, 1), [], []
    if moved.example is not None and moved.example_maps is not None and moved.example_flow is not None:
        terms += [F.l1_loss(_clip(moved.example)[:, :, : x.shape[2]], x), F.l1_loss(_clip(moved.example_maps), maps)]
        flows.append(_clip(moved.example_flow).flatten(0, 1))
    if len(flow):
        flows.append(flow)
        for item, padding in ((x, "zeros" if x.shape[2] == 4 else "border"), (maps, "zeros")):
            now, before = item[:, 1:].flatten(0, 1), item[:, :-1].flatten(0, 1)
            there = resized(flow, now.shape[2:]) * (now.shape[3] / flow.shape[3])
            terms.append(F.l1_loss(warp(before, there, padding), now))
    uneven = [gradient_loss(f, torch.zeros_like(f)) for f in flows]
    return sum([*terms, *(FewShotObjective.SMOOTH * u for u in uneven)], x.new_zeros(()))


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, N, C, h, w) in another size."""
    return resized(x.flatten(0, 1), size).unflatten(0, x.shape[:2])


def _clip(x: Tensor) -> Tensor:
    """(B, ...) → (B, 1, ...) where there is no time axis."""
    return x if x.dim() == 5 else x[:, None]
