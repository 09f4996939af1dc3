"""H's equations by hand, and flow networks that have learned nothing yet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from retarget.models.few_shot_vid2vid import FewShotConfig, FlowNetwork, Synthesis, pointwise
from retarget.models.few_shot_vid2vid.networks import REACH

from .conftest import TINY


def test_eq_8_and_9_are_convolutions_with_ones_own_weights():
    x, filters = torch.randn(3, 5, 6, 7), torch.randn(3, 4, 6)
    y = pointwise(x, filters)
    for b in range(3):
        torch.testing.assert_close(y[b], F.conv2d(x[b], filters[b, :, :5, None, None], filters[b, :, 5]))
    fast = pointwise(x.to(memory_format=torch.channels_last), filters)
    torch.testing.assert_close(y, fast)


def test_eq_8_to_10_by_hand():
    """One level, one block: p_S, γ, β and what they do to the normalised features."""
    torch.manual_seed(0)
    c = FewShotConfig(**TINY | {"levels": 1, "adaptive": 1, "width": 4, "widest": 4, "conditioning": "face", "fold": 1})
    net, s = Synthesis(c), torch.rand(2, 3, 8, 8)
    nn.init.normal_(net.last.weight, 0, 0.1)
    theta = [torch.randn(2, 4, 4), *(torch.randn(2, 4, 5) for _ in range(4))]  # θ_S, then γ, β of two norms
    p = F.leaky_relu(pointwise(s, theta[0]), 0.2)  # Eq. 8
    gamma0, beta0, gamma1, beta1 = (pointwise(p, t) for t in theta[1:])  # Eq. 9
    x = net.start(s)
    block = net.blocks[0]
    y = block.first(F.leaky_relu(gamma0 * F.instance_norm(x) + beta0, 0.2))  # Eq. 10
    y = block.second(F.leaky_relu(gamma1 * F.instance_norm(y) + beta1, 0.2))
    wanted = net.last(F.leaky_relu(x + y, 0.2))
    torch.testing.assert_close(net(s, [theta]), wanted, atol=1e-5, rtol=1e-5)


def test_flow_networks_begin_without_flow():
    c = FewShotConfig(**TINY)
    net = FlowNetwork(c, 7, 2.0)
    flow, mask = net(torch.randn(1, 7, 16, 24))
    assert flow.abs().max() == 0
    torch.testing.assert_close(mask, torch.full_like(mask, 1 / (1 + math.exp(-2))))
    nn.init.constant_(net.head.bias, 0.5)
    flow, _ = net(torch.randn(1, 7, 16, 24))
    assert flow.unique().tolist() == [0.5 * REACH]
