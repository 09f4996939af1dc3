"""Tiny networks of it, and a made-up person, movement and street."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retarget.models.base import Batch, Frame, Labels, Poses, References, series
from retarget.models.few_shot_vid2vid import FewShotVid2Vid
from retarget.models.layers import resized
from retarget.references import arrays, poses, references

TINY: dict[str, Any] = {
    "width": 8, "widest": 16, "levels": 3, "adaptive": 3, "grid": 4, "keys": 1, "flow_width": 8, "flow_downs": 2,
    "flow_blocks": 1, "critic": 8,
}  # fmt: skip
SIZE = (48, 40)


def tiny(**changes: Any) -> FewShotVid2Vid:
    torch.manual_seed(0)
    return FewShotVid2Vid(**TINY | changes).eval()


def loud(model: FewShotVid2Vid) -> FewShotVid2Vid:
    """Its last layers say something."""
    for layer in (model.synthesis.last, model.flow.head, *([model.example.head] if model.example else [])):
        nn.init.normal_(layer.weight, 0, 0.05)
    return model


@pytest.fixture(scope="module")
def people(puppet) -> References:
    """Three references at SIZE."""
    gathered = puppet.gathered(puppet.body(), puppet.body((90, 80)), puppet.body((20, 40), (150, 165)), details=True)
    return references(arrays(gathered), size=SIZE[::-1])


@pytest.fixture(scope="module")
def bodies(puppet) -> list[np.ndarray]:
    """A movement."""
    return [puppet.body((20 + 25 * i, 30 + 25 * i)) for i in range(4)]


@pytest.fixture(scope="module")
def windows(puppet, bodies) -> list[Poses]:
    return [poses(puppet.track(b, details=True).scaled(SIZE[::-1])) for b in bodies]


def first(known: References, count: int) -> References:
    p = known.poses
    return known._replace(
        rgb=known.rgb[:, :count], matte=known.matte[:, :count],
        poses=Poses(p.body[:, :count], p.face[:, :count], p.hands[:, :count], p.picture),
    )  # fmt: skip


@pytest.fixture
def sequence(puppet, people, bodies, windows):
    def made(model: FewShotVid2Vid, count: int) -> Batch:
        """A pair of `count` frames in a row, which show the person in a plain colour."""
        conditions = series([model.condition(w, SIZE) for w in windows[:count]])
        frames = []
        for t in range(count):
            matte = resized(torch.from_numpy(puppet.matte(bodies[t]))[None, None], SIZE)
            colour = torch.tensor([0.8, -0.5, -0.8]).view(1, 3, 1, 1)
            frames.append(Frame(torch.lerp(people.plate, colour.expand_as(people.plate), matte), matte))
        return Batch(conditions, model.encode(people), None, series(frames))

    return made


@pytest.fixture
def street() -> tuple[References, list[Labels]]:
    """Two pictures of a street with their label maps of four classes, and label maps to draw."""
    torch.manual_seed(3)
    palette = torch.rand(5, 3) * 2 - 1
    none = torch.full((1, 2, 33, 4), torch.nan), torch.full((1, 2, 468, 3), torch.nan), torch.zeros(1, 2, 2, 21, 3)

    def labels(count: int) -> Tensor:
        return F.interpolate(torch.randint(0, 5, (1, count, 6, 5)).float(), SIZE, mode="nearest").to(torch.uint8)

    shown = labels(2)
    rgb = palette[shown.long()].movedim(-1, 2)
    known = References(rgb, torch.ones(1, 2, 1, *SIZE), Poses(*none, SIZE), rgb[:, 0], labels=Labels(shown))
    return known, [Labels(labels(1)) for _ in range(3)]
