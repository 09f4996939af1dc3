"""Tiny networks of it, and a made-up person: limbs whose places are known exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retarget.models.base import Batch, Frame, Poses, References
from retarget.models.posewarp import Posewarp
from retarget.references import arrays, poses, references

SIZE = (160, 128)
TINY: dict[str, Any] = {"width": 4}
POSES = ({}, {"left": (90, 80), "right": (30, 20)}, {"left": (20, 40), "right": (150, 165)})


@pytest.fixture
def model() -> Posewarp:
    torch.manual_seed(0)
    return Posewarp(**TINY).eval()


@pytest.fixture
def painter() -> Posewarp:
    """The paper's form."""
    torch.manual_seed(0)
    return Posewarp(**TINY | {"whole": True}).eval()


@pytest.fixture(scope="module")
def gathered(puppet) -> Any:
    return puppet.gathered(*(puppet.body(**p) for p in POSES))


@pytest.fixture(scope="module")
def known(gathered) -> References:
    return references(arrays(gathered))


@pytest.fixture
def window(puppet):
    def made(**pose: Any) -> Poses:
        return poses(puppet.track(puppet.body(**pose)))

    return made


def paired(model: Posewarp, windows: Poses, known: References, k: int = 0) -> Batch:
    condition = model.condition(windows, SIZE)
    truth = Frame(known.rgb[:, k], known.matte[:, k])
    drawn, identity, truth = model.ahead(condition, model.encode(known), truth)
    return Batch(drawn, identity, None, truth)
