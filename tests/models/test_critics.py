from __future__ import annotations

import pytest
import torch
from torch import nn

from retarget.models.critics import Critics, PatchCritic


def test_a_score_sees_70_by_70_pixels():
    critic = PatchCritic(3, width=2)
    for step in critic.steps:  # normalisation would let every pixel see all others
        for i, layer in enumerate(step):
            if isinstance(layer, nn.InstanceNorm2d):
                step[i] = nn.Identity()
    x = torch.randn(1, 3, 160, 160, requires_grad=True)
    score = critic(x)[-1]
    score[0, 0, score.shape[2] // 2, score.shape[3] // 2].backward()
    rows, columns = (x.grad[0].abs().sum((0, d)).nonzero().flatten() for d in (2, 1))
    assert len(rows) == len(columns) == 70
    assert rows[-1] - rows[0] == 69


def test_outputs_per_scale():
    outputs = Critics(4, scales=3)(torch.randn(2, 3, 64, 64), torch.randn(2, 4, 64, 64))
    assert len(outputs) == 3
    assert [tuple(o.shape[:2]) for o in outputs[0]] == [(2, 32), (2, 64), (2, 128), (2, 256), (2, 1)]
    assert outputs[0][0].shape[2:] == (33, 33)
    assert outputs[1][0].shape[2:] == (17, 17)
    assert outputs[2][0].shape[2:] == (9, 9)


def test_the_pose_counts():
    torch.manual_seed(0)
    critics, rgb, maps = Critics(4, width=4), torch.randn(1, 3, 32, 32), torch.rand(1, 4, 32, 32)
    one, other = critics(rgb, maps), critics(rgb, 1 - maps)
    assert all((a[-1] - b[-1]).abs().max() > 1e-4 for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="pose maps"):
        critics(rgb)
    assert critics(rgb, torch.rand(1, 4, 16, 16))[0][-1].shape == one[0][-1].shape


def test_a_picture_can_be_judged_by_itself():
    assert len(Critics(0, width=4)(torch.randn(1, 3, 32, 32))) == 2
