"""Tiny networks of it, and a made-up head."""

from __future__ import annotations

import torch

from retarget.device import Compute
from retarget.models import build
from retarget.models.base import Batch, Frame, Poses, References
from retarget.models.talking_head import TalkingHead

TINY = {
    "side": 32, "width": 4, "widest": 8, "embedding": 6, "downs": 2, "blocks": 1, "halvings": 3, "videos": 4,
}  # fmt: skip
CPU = Compute(torch.device("cpu"), torch.float32)


def tiny(**config) -> TalkingHead:
    torch.manual_seed(0)
    return build("talking-head", TINY | config).eval()


def poses(count: int = 1, size=(40, 32), seed: int = 0) -> Poses:
    """Meshes that fill the middle of a picture."""
    generator = torch.Generator().manual_seed(seed)
    face = torch.rand(1, count, 468, 3, generator=generator) * torch.tensor([size[1] / 2, size[0] / 2, 0])
    face += torch.tensor([size[1] / 4, size[0] / 4, 0])
    return Poses(torch.zeros(1, count, 33, 4), face, torch.full((1, count, 2, 21, 3), torch.nan), size)


def references(count: int = 2, size=(40, 32), seed: int = 0, video: int | None = None) -> References:
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(1, count, 3, *size, generator=generator) * 2 - 1
    matte = torch.rand(1, count, 1, *size, generator=generator)
    plate = torch.rand(1, 3, *size, generator=generator) * 2 - 1
    return References(rgb, matte, poses(count, size, seed), plate, video=video)


def pair(model: TalkingHead, count: int = 2, seed: int = 0, video: int | None = None) -> Batch:
    """A person and one frame of theirs, as training sees it."""
    known = references(count, seed=seed, video=video)
    condition = model.condition(poses(seed=seed + 100), (40, 32))
    truth = Frame(known.rgb[:, 0], known.matte[:, 0])
    condition, identity, truth = model.ahead(condition, model.encode(known), truth)
    return Batch(condition, identity, None, truth)
