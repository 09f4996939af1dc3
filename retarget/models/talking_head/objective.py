"""What it learns by: L_CNT, L_ADV and L_MCH, and the critic D (Eqs. 3-6, 8-10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import Frame, Objective
from ..layers import fit_sides
from ..losses import VGG19, content_loss, matte_loss, perceptual
from .config import Embeddings, HeadIdentity, HeadPair, TalkingHeadConfig
from .networks import Trunk

CAFFE = 57.6
"""L_CNT's weights belong to Caffe's VGG19, which sees colours in 0..255; torchvision's sees them divided by their
standard deviation, 0.226 of 255, and its features are as much smaller."""


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
