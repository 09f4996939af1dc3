"""Joints and heat maps of a body that is known exactly."""

from __future__ import annotations

import pytest
import torch

from retarget.models.posewarp import JOINTS, MIRRORED, body_scale, heat_maps, joints_of
from retarget.models.posewarp.joints import DOT
from retarget.skeleton import MIRROR, J


def test_the_papers_fourteen_joints(puppet):
    body = torch.from_numpy(puppet.body((90, 80), (30, 20)))
    joints = joints_of(body)
    for name in JOINTS[2:]:
        assert torch.equal(joints[JOINTS.index(name)], body[J[name], :3])
    torch.testing.assert_close(joints[1], (body[11, :3] + body[12, :3]) / 2)
    assert joints[0, 1] < body[:11, 1].min() - 0.03 * puppet.scale  # above the eyes
    assert float(body_scale(joints)) == pytest.approx(puppet.scale, rel=0.08)
    hidden = body.clone()
    hidden[J["left_wrist"], 3] = 0.1
    hidden[J["nose"]] = torch.nan
    lost = joints_of(hidden).isnan().any(1)
    assert lost.tolist() == [name == "left_wrist" for name in JOINTS]
    mirrored = body[list(MIRROR)] * torch.tensor([-1, 1, 1, 1])
    torch.testing.assert_close(joints_of(mirrored), joints[list(MIRRORED)] * torch.tensor([-1, 1, 1]))


def test_heat_maps(puppet):
    joints = joints_of(torch.from_numpy(puppet.body()))[None]
    joints[0, 4] = torch.nan
    maps = heat_maps(joints, (80, 64))
    assert maps.shape == (1, 14, 80, 64)
    assert maps[maps > 0].min() > 1e-12  # numbers next to nothing are slow
    sigma = DOT * float(body_scale(joints)) / 2
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for i in range(14):
        at = joints[0, i] / 2
        expected = torch.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2))
        torch.testing.assert_close(maps[0, i], expected.nan_to_num(0.0), atol=1e-5, rtol=1e-4)
