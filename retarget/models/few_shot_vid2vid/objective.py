"""What it learns by: critics of pictures and of videos, and the warping loss L_W."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import Frame, Objective
from ..critics import Critics
from ..layers import resized, warp
from ..losses import (
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
from .config import Moved


class FewShotObjective(Objective):
    """The learning objective of vid2vid (Wang et al. 2018, §3.2), which the paper takes over.

    min_F (max_DI L_I + max_DV L_V) + λ_W L_W, and feature matching and VGG's perceptual loss beside it, λ = 10 each.
    D_I looks at a picture with its semantic image, D_V at two frames in a row. There is no ground truth of the flow
    here (the paper has FlowNet2's): beside L_W's second term, warped true pictures, L_W asks that warped semantic
    images fit (as the published code does with body masks) and that flows are smooth. Without VGG19 `content_loss`
    takes its place. The matte, which the paper does not have, is told the true one. A person's head, by which we know
    them, is a fiftieth of the picture: it counts by itself, too (the published code has a critic of its own for faces).

    Args:
        image: D_I; None: no critics.
        video: D_V; None: none of videos.
        vgg: the network of the perceptual term.
        hinge: hinge losses instead of least squares.
        head: which channel of the semantic image says where the head is; None: none does.
    """

    WEIGHT = 10.0
    """λ of feature matching, VGG and L_W."""
    SMOOTH = 0.002
    """How much a flow's unevenness counts, per pixel, within L_W."""
    HEAD = 0.05
    """How much the head counts by itself: as if it were this share of the picture."""

    def __init__(
        self,
        image: Critics | None,
        video: Critics | None,
        vgg: VGG19 | None,
        *,
        hinge: bool = False,
        head: int | None = None,
    ) -> None:
        super().__init__()
        self.critics = nn.ModuleDict({name: c for name, c in (("image", image), ("video", video)) if c is not None})
        self.vgg, self.hinge, self.head = vgg, hinge, head

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
        if self.head is not None:
            there = resized(_clip(condition.maps)[:, :, self.head : self.head + 1].flatten(0, 1).float(), x.shape[2:])
            share = self.HEAD / there.mean().clamp(min=1e-3)
            terms["head"] = self.WEIGHT * share * content_loss(x * there, y * there)
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


def _clip(x: Tensor) -> Tensor:
    """(B, ...) → (B, 1, ...) where there is no time axis."""
    return x if x.dim() == 5 else x[:, None]
