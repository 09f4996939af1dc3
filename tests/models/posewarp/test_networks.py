"""The paper's U-Nets and critic: their sizes, and where the pose joins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retarget.models import build
from retarget.models.posewarp import PairCritic, PoseUNet


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return (inputs * kernel * kernel + 1) * outputs


def unet(inputs: int, outputs: int) -> int:
    """Parameters of the paper's U-Net: 64, 64 and nine times 128 channels down, four times 128 and `outputs` up."""
    down = conv(inputs, 64, 7) + conv(64, 64) + conv(64 + 14, 128) + 8 * conv(128, 128)
    return down + 4 * conv(128 + 128, 128) + conv(128 + 64, outputs)


def test_the_paper_has_three_unets_for_limbs_person_and_scene():
    with torch.device("meta"):
        model = build("posewarp", preset="paper")
        small = build("posewarp")
    assert count(model.segmentation) == unet(3, 32)
    assert count(model.person) == unet(30, 64)
    assert count(model.scene) == unet(4, 64)
    assert count(model.masks) == conv(32, 11)
    assert count(model) == unet(3, 32) + unet(30, 64) + unet(4, 64) + conv(32, 11) + 2 * conv(64, 3) + conv(64, 1)
    assert model.config.side == 256
    assert small.scene is None
    strided = [m.stride for m in model.person.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strided == [(2, 2)] * 5
    assert sum(isinstance(m, nn.Conv2d) for m in model.person.modules()) == 16
    assert not any("Norm" in type(m).__name__ for m in model.modules())
    assert {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


def test_the_papers_critic_ends_in_8_by_8_places():
    with torch.device("meta"):
        critic = build("posewarp", preset="paper").objective().critics
    convolutions = conv(3, 64, 5) + conv(64 + 28, 128, 5) + conv(128, 256) + 3 * conv(256, 256)
    assert count(critic) == convolutions + (8 * 8 * 256 + 1) * 256 + 257 * 256 + 257
    small = PairCritic(28, 4)
    sizes = []
    for layer in small.rest:
        layer.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    assert small(torch.zeros(2, 3, 256, 256), torch.zeros(2, 28, 128, 128)).shape == (2, 1)
    assert sizes[7] == (8, 8)  # after the last maximum: averaging to 8 × 8 changes nothing
    assert small(torch.zeros(1, 3, 75, 51), torch.zeros(1, 28, 38, 26)).shape == (1, 1)


@pytest.mark.parametrize("size", [(64, 32), (45, 71)])
def test_the_pose_joins_at_half_the_resolution(size):
    torch.manual_seed(0)
    net = PoseUNet(5, 4, 6)
    x, nobody = torch.randn(2, 5, *size), torch.full((2, 14, 3), torch.nan)
    somewhere = nobody.clone()
    somewhere[1] = torch.tensor([20.0, 20.0, 0.0])
    seen = []
    net.keep[0].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    without, there = net(x, nobody), net(x, somewhere)
    assert without.shape == (2, 6, *size)
    assert torch.equal(without[0], there[0])
    assert not torch.equal(without[1], there[1])
    assert seen[0].shape[1:] == (4 + 14, -(-size[0] // 32) * 16, -(-size[1] // 32) * 16)
    peak = seen[1][1, 4].flatten().argmax()
    assert divmod(int(peak), seen[1].shape[3]) in {(9, 9), (9, 10), (10, 9), (10, 10)}
