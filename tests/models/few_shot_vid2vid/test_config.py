"""The sizes: those of the paper's code, our own, and what cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retarget.errors import UsageError
from retarget.models import build

from .conftest import tiny


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_published_sizes():
    model = build("few-shot-vid2vid", preset="paper")
    c = model.config
    assert c.channels == (32, 64, 128, 256, 512, 1024, 1024)
    # Its SPADE blocks, fine to coarse: 3×3 convolutions, and 1×1 where the number of channels changes.
    shapes = [tuple(b.first.weight.shape) for b in model.synthesis.blocks]
    assert shapes == [(32, 64, 3, 3), (64, 128, 3, 3), (128, 256, 3, 3), (256, 512, 3, 3), (512, 1024, 3, 3),
                      (1024, 1024, 3, 3)]  # fmt: skip
    assert [b.shortcut is None for b in model.synthesis.blocks] == [False] * 5 + [True]
    assert model.synthesis.last.weight.shape == (4, 32, 3, 3)  # red, green, blue, and our matte
    # E makes weights of the four finest; each E_P has three linear layers.
    made = [p.mlp is not None for p in model.generation.perceptrons]
    assert made == [True] * 4 + [False] * 2
    linear = [layer for layer in model.generation.perceptrons[3].mlp if isinstance(layer, nn.Linear)]
    assert [(x.in_features, x.out_features) for x in linear[:2]] == [(32 * 32, 512), (512, 512)]
    # θ_S: 128 → 256; θ_γ, θ_β: of norms with 512, 256 and 512 channels. A row each, and the bias.
    assert model.generation.perceptrons[3].sizes == [(256, 129), *[(n, 257) for n in (512, 512, 256, 256, 512, 512)]]
    # W and M: one network, three halvings, six residual blocks, two heads.
    flow = [m for m in model.flow.modules() if isinstance(m, nn.Conv2d)]
    assert len(flow) == 1 + 3 + 2 * 6 + 3 + 1
    assert flow[0].weight.shape == (32, 15 + 15 + 4, 3, 3)
    assert flow[-1].weight.shape == (3, 32, 3, 3)
    assert model.example.down[0][0].weight.shape == (32, 15 + 15 + 4, 3, 3)
    # The convolutions are normalised by their spectral norm, features by batch normalisation.
    assert all(nn.utils.parametrize.is_parametrized(c) for c in flow[:-1])
    assert isinstance(model.synthesis.blocks[0].norm_in, nn.BatchNorm2d)
    assert parameters(model.synthesis) == 29_145_156
    assert parameters(model.generation) == 12_540_320
    assert parameters(model.flow) == parameters(model.example) == 7_874_019


def test_the_small_preset():
    with torch.device("meta"):
        model = build("few-shot-vid2vid")
    assert parameters(model) == 2_439_454
    assert all(p.mlp is not None for p in model.generation.perceptrons)  # E has as many layers as H


def test_more_of_the_past_needs_more_inputs_only():
    one, two = tiny(), tiny(past=2)
    assert parameters(two) - parameters(one) == 8 * 9 * (15 + 4)


@pytest.mark.parametrize(
    "config",
    [{"levels": 0}, {"norm": "layer"}, {"conditioning": "text"}, {"fold": 1.5}, {"example": 1}, {"past": True}],
)
def test_configurations_that_cannot_be(config):
    ((name, value),) = config.items()
    with pytest.raises(UsageError, match=f"{name}={value}"):
        build("few-shot-vid2vid", config)
