"""E: filters of one channel of q each, and the attention of Eq. 7."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retarget.models.base import Poses
from retarget.models.few_shot_vid2vid import (
    FewShotConfig,
    SpadeBlock,
    Synthesis,
    WeightGeneration,
    WeightGenerator,
    pointwise,
)

from .conftest import SIZE, TINY, first, loud, tiny


def test_a_block_begins_without_modulation():
    generator = WeightGenerator([(4, 3, 0.0), (6, 4, 1.0), (6, 4, 0.0)], 6, 4, generated=True)
    for own in generator.bias:
        own.data[:, :-1] = 0
    for layer in generator.mlp:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
    shared, gamma, beta = generator(torch.randn(2, 6, 16))
    assert shared.shape == (2, 4, 4)
    assert gamma.shape == beta.shape == (2, 6, 5)
    p = torch.randn(2, 4, 5, 5)
    assert torch.equal(pointwise(p, gamma), torch.ones(2, 6, 5, 5))
    assert torch.equal(pointwise(p, beta), torch.zeros(2, 6, 5, 5))
    c = FewShotConfig(**TINY)
    block, x = SpadeBlock(c, 6, 6), torch.randn(2, 6, 5, 5)
    ones, zeros = [torch.ones(2, 6, 5, 5)] * 2, [torch.zeros(2, 6, 5, 5)] * 2
    plain = block.second(F.leaky_relu(F.instance_norm(block.first(F.leaky_relu(F.instance_norm(x), 0.2))), 0.2))
    torch.testing.assert_close(block(x, ones, zeros), x + plain)


def test_each_channel_of_q_makes_its_own_filters():
    torch.manual_seed(0)
    generator = WeightGenerator([(4, 3, 0.0), (6, 4, 1.0)], 6, 4, generated=True)
    q = torch.randn(1, 6, 16)
    other = q.clone()
    other[:, 2] += 1
    for a, b in zip(generator(q), generator(other), strict=True):
        changed = (a != b).any(2)[0]
        assert changed.tolist() == [i == 2 for i in range(a.shape[1])]


def test_fixed_levels_are_the_same_for_everybody():
    model = loud(tiny(adaptive=1))
    rows = sum(model.generation.rows)
    a, b = (model.generation.weights(torch.randn(1, rows, 16)) for _ in range(2))
    assert [all(torch.equal(x, y) for x, y in zip(*level, strict=True)) for level in zip(a, b, strict=True)] == \
        [False, True, True]  # fmt: skip


@pytest.fixture
def generation() -> WeightGeneration:
    torch.manual_seed(0)
    c = FewShotConfig(**TINY)
    return WeightGeneration(c, Synthesis(c).modulated)


def test_attention_by_hand(generation):
    keys, query = torch.randn(2, 3, 5, 4), torch.randn(2, 5, 4)
    alpha = generation.attention(keys, query, torch.ones(2, 3))
    assert alpha.shape == (2, 3, 4, 4)
    torch.testing.assert_close(alpha.sum((1, 2)), torch.ones(2, 4))
    by_hand = torch.empty(2, 3, 4, 4)
    for b in range(2):
        for k in range(3):
            by_hand[b, k] = (keys[b, k].T @ query[b] / math.sqrt(5)).exp()
    torch.testing.assert_close(alpha, by_hand / by_hand.sum((1, 2), keepdim=True))
    masked = generation.attention(keys, query, torch.tensor([[1.0, 0, 1], [1, 1, 1]]))
    assert masked[0, 1].abs().max() == 0
    torch.testing.assert_close(masked[0].sum((0, 1)), torch.ones(4))
    torch.testing.assert_close(masked[1], alpha[1])


def test_the_same_example_twice_is_once(people, windows):
    """Twice the same keys share one weight."""
    model = loud(tiny())
    one, same = first(people, 1), first(people, 1)
    p = same.poses
    twice = same._replace(
        rgb=same.rgb.repeat(1, 2, 1, 1, 1), matte=same.matte.repeat(1, 2, 1, 1, 1),
        poses=Poses(*(x.repeat(1, 2, *[1] * (x.dim() - 2)) for x in p[:3]), p.picture),
    )  # fmt: skip
    with torch.no_grad():
        a, b = (model.encode(x) for x in (one, twice))
        torch.testing.assert_close(a.appearance, b.appearance[:, :1])
        keys = model.generation.attention(b.keys, model.generation.key(model.condition(windows[0], SIZE).maps), b.known)
    torch.testing.assert_close(keys[:, 0], keys[:, 1])
