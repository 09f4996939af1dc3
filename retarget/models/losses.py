"""The losses of Dance Dance Generation §3.5, reconstruction losses that do not reward blur, and their objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError
from .base import Frame, Objective
from .critics import Critics

Layers = Sequence[Sequence[Tensor]]
"""Per scale, the outputs of a critic's layers: features first, scores last."""


@dataclass(frozen=True)
class LossWeights:
    """How much each term counts; a term of weight 0 is not computed.

    The w's are those of DDG §4.2; the others belong to the reconstruction terms, which DDG does not have. Pixels of the
    person count 1 + `person` times in `pixel` (mean absolute difference) and `square` (mean squared difference).
    """

    w_rela: float = 1.0
    w_gp: float = 10.0
    w_fm: float = 10.0
    w_vgg: float = 10.0
    pixel: float = 10.0
    square: float = 10.0
    pyramid: float = 5.0
    gradient: float = 2.0
    matte: float = 3.0
    choice: float = 1.0
    person: float = 3.0


def relativistic_critic(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Relativistic average LSGAN for D: the first two terms of the first line of Eq. 4.

    ½ E[(D(y) - μ(D(x)) - 1)²] + ½ E[(D(x) - μ(D(y)))²], as printed: the fakes' target is 0, not the -1 of the
    relativistic paper. The equation leaves open what μ runs over for a critic of patches: here over the patches of the
    whole batch, like E; and what happens at several scales: they are added, as in Pix2PixHD.

    Args:
        real, fake: scores D(y), D(x) per scale, (B, 1, h, w).
    """
    terms = [(y - x.mean() - 1).square().mean() + (x - y.mean()).square().mean() for y, x in _pairs(real, fake)]
    return 0.5 * torch.stack(terms).sum()


def relativistic_generator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Relativistic average LSGAN for G, the second line of Eq. 4: ½ E[(D(x) - μ(D(y)) - 1)²] + ½ E[(D(y) - μ(D(x)))²].

    Gradients reach the generator through D(x) and through μ(D(x)).
    """
    return relativistic_critic(fake, real)


def lsgan_critic(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Least-squares GAN for D: ½ E[(D(y) - 1)²] + ½ E[D(x)²], scales added (Pix2PixHD §3.2).

    Args:
        real, fake: scores D(y), D(x) per scale, (B, 1, h, w).
    """
    terms = [(y - 1).square().mean() + x.square().mean() for y, x in _pairs(real, fake)]
    return 0.5 * torch.stack(terms).sum()


def lsgan_generator(fake: Sequence[Tensor]) -> Tensor:
    """Least-squares GAN for G: E[(D(x) - 1)²], scales added."""
    return torch.stack([(x.float() - 1).square().mean() for x in fake]).sum()


def hinge_critic(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss for D: E[max(0, 1 - D(y))] + E[max(0, 1 + D(x))], scales added (Talking Heads Eq. 6).

    Args:
        real, fake: scores D(y), D(x) per scale, (B, 1, h, w).
    """
    return torch.stack([F.relu(1 - y).mean() + F.relu(1 + x).mean() for y, x in _pairs(real, fake)]).sum()


def hinge_generator(fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss for G: -E[D(x)], scales added."""
    return -torch.stack([x.float().mean() for x in fake]).sum()


def gradient_penalty(scores: Callable[[Tensor], Sequence[Tensor]], real: Tensor, fake: Tensor) -> Tensor:
    """The last term of the first line of Eq. 4 without its weight: E[(‖∇D(x̂, p)‖₂ - 1)²].

    Read as in the paper it cites (improved WGAN training): x̂ lies at a random place between a real and a fake picture,
    the pose p is given. The gradient is that of the sum of the picture's patch scores; scales are added. float32.

    Args:
        scores: D(., p): (B, 3, H, W) → scores per scale.
        real, fake: pictures (B, 3, H, W).
    """
    with torch.autocast(real.device.type, enabled=False):
        real, fake = real.detach().float(), fake.detach().float()
        place = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = torch.lerp(fake, real, place).requires_grad_(True)
        terms = []
        for score in scores(between):
            (slope,) = torch.autograd.grad(score.sum(), between, create_graph=True)
            # The root has no slope at 0, where a critic that ignores the picture is.
            terms.append(((slope.flatten(1).square().sum(1) + 1e-12).sqrt() - 1).square().mean())
        return torch.stack(terms).sum()


def feature_matching(real: Layers, fake: Layers) -> Tensor:
    """Eq. 5: Σ over layers of the mean |Dⁱ(y, p) - Dⁱ(x, p)|: the layers of all scales but the scores (Pix2PixHD)."""
    pairs = [p for r, f in zip(real, fake, strict=True) for p in _pairs(r[:-1], f[:-1])]
    return torch.stack([F.l1_loss(x, y.detach()) for y, x in pairs]).sum()


def gradient_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean |∇x - ∇y| over the differences of neighbouring pixels, (B, C, H, W) each."""
    difference = x.float() - y.float()
    return 0.5 * (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean())


def pyramid_loss(x: Tensor, y: Tensor, *, levels: int = 5, soft: int = 2, window: int = 7) -> Tensor:
    """Distance of two pictures by frequency bands that does not reward blur.

    The poses are noisy, so that drawn and true detail never align to the pixel; L1 on pixels is then least for a
    blurred picture. In the `soft` finest bands of a Laplacian pyramid only the local amount of detail is compared, its
    mean magnitude over a window, which moving by a pixel hardly changes and blurring does. Coarser bands and what
    remains are compared by value.

    Args:
        x, y: (B, C, H, W), of any size; small pictures have fewer bands.
    """
    x, y = x.float(), y.float()
    terms = []
    for level in range(levels - 1):
        if min(x.shape[-2:]) < 4:
            break
        (x, x_band), (y, y_band) = _split(x), _split(y)
        if level < soft:
            around = min(window, *x_band.shape[-2:])
            x_band, y_band = (F.avg_pool2d(band.abs(), around, 1) for band in (x_band, y_band))
        terms.append(F.l1_loss(x_band, y_band))
    return torch.stack([*terms, F.l1_loss(x, y)]).sum()


def matte_loss(x: Tensor, y: Tensor) -> Tensor:
    """Distance of a drawn matte x from the true one y, (B, 1, H, W) in 0..1.

    L1 + 0.05 total variation (against speckles) + 0.05 mean 4 x (1 - x) (against a grey, half-there person).
    """
    x, y = x.float(), y.float()
    variation = x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()
    return F.l1_loss(x, y) + 0.05 * variation + 0.05 * (4 * x * (1 - x)).mean()


class VGG19(nn.Module):
    """The convolutional layers of VGG19 up to relu5_1, for the perceptual loss (Eq. 6).

    Args:
        weights: "features.N.weight" and "features.N.bias" (the key layout of torchvision's vgg19); other keys are
            ignored.

    Raises:
        WeightsError: a layer is missing or has another shape.
    """

    PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512)
    TAKEN = (1, 6, 11, 20, 29)
    """Indices of relu1_1, relu2_1, relu3_1, relu4_1, relu5_1."""
    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self.PLAN:
            if width:
                layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        try:
            self.load_state_dict({key: weights[key] for key in self.state_dict()})
        except (KeyError, RuntimeError) as e:
            raise WeightsError(
                "The VGG19 weights do not have the layers of VGG19.", "Use a state dict with torchvision's keys."
            ) from e
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, rgb: Tensor, taken: Sequence[int] = TAKEN, *, average: bool = False) -> list[Tensor]:
        """(B, 3, H, W) in -1..1 → the taken layers, by index, fine to coarse; with averages in the place of maxima."""
        x = ((rgb + 1) / 2 - self.mean) / self.std
        found = []
        for i, layer in enumerate(self.features):
            x = F.avg_pool2d(x, 2) if average and isinstance(layer, nn.MaxPool2d) else layer(x)
            if i in taken:
                found.append(x)
            if len(found) == len(taken):
                break
        return found


PIX2PIXHD = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""How much Pix2PixHD's perceptual loss counts each of the five taken layers."""


def perceptual(real: Sequence[Tensor], fake: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Eq. 6: Σ over the layers of VGG19 of the mean |φⁱ(y) - φⁱ(x)|, unweighted as printed (Pix2PixHD weights them)."""
    terms = [F.l1_loss(x, y.detach()) for y, x in _pairs(real, fake)]
    return torch.stack([w * term for w, term in zip(weights or [1.0] * len(terms), terms, strict=True)]).sum()


def content_loss(x: Tensor, y: Tensor) -> Tensor:
    """What stands in for a perceptual term where no VGG19 is: L1 and `pyramid_loss`, (B, 3, H, W) each.

    All bands by value: where only the amount of detail is compared, a network that paints from nothing paints patterns.
    """
    return F.l1_loss(x.float(), y.float()) + pyramid_loss(x, y, soft=0)


def parsing_features(real: Sequence[Tensor], fake: Sequence[Tensor], w_s: float = 0.01) -> Tensor:
    """Eq. 7: the mean |φ_p(y) - φ_p(x)| + w_s times the mean |φ_s(y) - φ_s(x)|.

    Printed without Eqs. 5 and 6's 1/N; a sum over so many features, times 10, would leave nothing of the other terms.

    Args:
        real, fake: features (φ_p, φ_s) of the truth and of what was drawn (`parsing.Parser.features`).
    """
    joints, parts = (F.l1_loss(x, y.detach()) for y, x in _pairs(real, fake))
    return joints + w_s * parts


class DanceObjective(Objective):
    """All losses of DDG §3.5 but Eq. 7 (its network is not public), with reconstruction terms beside them.

    Args:
        channels: of the pose maps (`Condition.maps`) that the critics look at; 0: they judge the picture by itself.
        weights: of the terms. Without the adversarial one (`w_rela` 0) there are no critics and no feature matching.
        vgg: the network of the perceptual term; None: there is no such term.
        scales: of the critics: two for pictures of about 256 pixels, three for 512 (DDG §4.2).
    """

    def __init__(
        self,
        channels: int,
        weights: LossWeights = LossWeights(),
        *,
        vgg: VGG19 | None = None,
        scales: int = 2,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.vgg = vgg
        self.critics = Critics(channels, scales) if weights.w_rela else None

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critics.parameters()) if self.critics else []

    def generator_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        x, y, w = frame.rgb.float(), truth.rgb.float(), self.weights
        terms = {}
        if w.pixel or w.square:
            count = 1 + w.person * truth.matte.float() if truth.matte is not None else torch.ones_like(x[:, :1])
            count = count / count.mean()
            if w.pixel:
                terms["pixel"] = w.pixel * ((x - y).abs() * count).mean()
            if w.square:
                terms["square"] = w.square * ((x - y).square() * count).mean()
        if w.pyramid:
            terms["pyramid"] = w.pyramid * pyramid_loss(x, y)
        if w.gradient:
            terms["gradient"] = w.gradient * gradient_loss(x, y)
        if w.matte and frame.matte is not None and truth.matte is not None:
            terms["matte"] = w.matte * matte_loss(frame.matte, truth.matte)
        if w.choice and frame.extra is not None:
            terms["choice"] = w.choice * frame.extra.mean()
        if self.critics:
            fake = self.critics(x, condition.maps)
            with torch.no_grad():
                real = self.critics(y, condition.maps)
            terms["adversarial"] = w.w_rela * relativistic_generator(_scores(real), _scores(fake))
            if w.w_fm:
                terms["feature"] = w.w_fm * feature_matching(real, fake)
        if self.vgg and w.w_vgg:
            with torch.no_grad():
                seen = self.vgg(y)
            terms["perceptual"] = w.w_vgg * perceptual(seen, self.vgg(x))
        return terms

    def critic_loss(self, frame: Frame, truth: Frame, condition: Any) -> dict[str, Tensor]:
        critics = self.critics
        if not critics:
            return {}
        x, y, w = frame.rgb.detach().float(), truth.rgb.float(), self.weights
        real, fake = critics(y, condition.maps), critics(x, condition.maps)
        terms = {"critic": w.w_rela * relativistic_critic(_scores(real), _scores(fake))}
        if w.w_gp:
            penalty = gradient_penalty(lambda rgb: _scores(critics(rgb, condition.maps)), y, x)
            terms["penalty"] = w.w_rela * w.w_gp * penalty
        return terms


def _scores(layers: Layers) -> list[Tensor]:
    return [scale[-1] for scale in layers]


def _pairs(real: Sequence[Tensor], fake: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Both sides of each layer or scale, in float32."""
    return [(y.float(), x.float()) for y, x in zip(real, fake, strict=True)]


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a Laplacian pyramid: (half the size, the detail it lacks)."""
    small = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    up = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
    return small, x - up
