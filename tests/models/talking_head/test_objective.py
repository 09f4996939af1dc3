"""The learning objective's terms by hand (Eqs. 3-6), and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from retarget.models.base import Frame, stacked
from retarget.models.talking_head import UNKNOWN, Embeddings, hinge, match_loss
from retarget.training.fit import FitOptions, fit

from .conftest import CPU, pair, references, tiny


def test_hinge_loss():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert hinge(real, fake).item() == pytest.approx((0 + 1.25) / 2 + (0 + 0.5) / 2)


def test_match_loss():
    each = torch.tensor([[[1.0, 2], [3, 4]], [[5, 5], [0, 0]], [[9, 9], [9, 9]]])
    there = torch.tensor([[1.0, 1], [1, 0], [1, 1]])
    columns = torch.tensor([[1.0, 1], [2, 2], [0, 0]])
    known = torch.tensor([True, True, False])
    # Pictures: |0, 1| → 0.5, |2, 3| → 2.5, |3, 3| → 3; the third video is unknown.
    assert match_loss(Embeddings(each, there), columns, known).item() == pytest.approx((0.5 + 2.5 + 3) / 3)
    assert match_loss(Embeddings(each, there), columns, torch.zeros(3, dtype=torch.bool)) == 0


def test_the_realism_score():
    model = tiny()
    critic = model.objective().eval().critics
    rgb, maps = torch.rand(3, 3, 32, 32) * 2 - 1, torch.rand(3, 3, 32, 32)
    nn.init.constant_(critic.bias, 0.5)
    score, features = critic(rgb, maps, torch.tensor([1, 3, UNKNOWN]))
    vector, _ = critic.trunk(torch.cat([rgb / 2 + 0.5, maps], 1))
    assert len(features) == 4
    direction = critic.general + torch.stack([critic.videos.weight[1], critic.videos.weight[3], torch.zeros(6)])
    torch.testing.assert_close(score, (vector * direction).sum(1) + 0.5)
    # A video of a larger corpus has no column either.
    torch.testing.assert_close(critic(rgb, maps, torch.tensor([4, 99, UNKNOWN]))[0][2], score[2])


def test_the_loss_of_the_generator():
    model = tiny()
    objective = model.objective().eval()
    batch = stacked([pair(model, video=2, seed=1), pair(model, video=0, seed=2)])
    frame, _ = model(*batch[:3])
    terms = objective.generator_loss(frame, batch.truth, batch.condition)
    assert set(terms) == {"content", "matte", "adversarial", "feature", "match"}
    critic, condition = objective.critics, batch.condition
    score, fake = critic(frame.rgb, condition.maps, condition.video)
    _, real = critic(batch.truth.rgb, condition.maps, condition.video)
    torch.testing.assert_close(terms["adversarial"], -score.mean())
    torch.testing.assert_close(
        terms["feature"], 10 * sum((a - b).abs().mean() for a, b in zip(fake, real, strict=True))
    )
    columns = critic.videos.weight[[2, 0]][:, None]
    torch.testing.assert_close(terms["match"], 10 * (frame.extra.each - columns).abs().mean())
    losses = objective.critic_loss(frame, batch.truth, condition)
    real_score = critic(batch.truth.rgb, condition.maps, condition.video)[0]
    torch.testing.assert_close(losses["critic"], (1 + score).relu().mean() + (1 - real_score).relu().mean())
    assert all(t.isfinite() for t in terms.values())


def test_the_content_loss_with_a_network():
    class Network(nn.Module):
        """Features that are easy to check."""

        def forward(self, rgb):
            return [rgb, 2 * rgb, rgb, rgb, rgb]

    objective = tiny().objective(critics=False, vgg=Network())
    x, y = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    terms = objective.generator_loss(Frame(x), Frame(y), None)
    assert set(terms) == {"content"}
    assert terms["content"].item() == pytest.approx(0.15 * 57.6 * 6)
    assert objective.critic_parameters() == []
    assert objective.critic_loss(Frame(x), Frame(y), None) == {}


def test_the_feed_forward_variant():
    model = tiny(match=False)
    objective = model.objective()
    batch = pair(model, video=1)
    frame, _ = model(*batch[:3])
    assert "match" not in objective.generator_loss(frame, batch.truth, batch.condition)
    assert list(model.tunable(model.encode(references()))) == []


def test_two_critic_steps_at_four_times_the_rate():
    """§3.4."""
    model = tiny()
    objective = model.objective()
    assert objective.critic_steps == 2
    assert objective.critic_rate == pytest.approx(2e-4 / 5e-5)


def test_it_learns():
    """One pair: in 40 steps the loss falls to less than a third; critics take part in the first ones."""
    model = tiny(width=8, widest=16)
    batch = pair(model, video=0)
    # A picture that can be drawn: smooth, before a plate of one colour.
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 32), indexing="ij")
    inside = ((x**2 + y**2) < 0.8).float()[None, None]
    truth = Frame(torch.stack([x, y, x * y])[None] * 0.8 * inside, inside)
    condition = batch.condition._replace(plate=torch.full_like(batch.condition.plate, 0.5))
    batch = batch._replace(condition=condition, truth=truth)
    losses = []

    def learn(critics, steps):
        fit(
            model, model.objective(critics=critics), iter([batch] * steps), parameters=list(model.parameters()),
            compute=CPU, options=FitOptions(steps, 5e-3, 1, decay=0),
            on_step=lambda _, f: losses.append(f["content"] + f["matte"]),
        )  # fmt: skip

    learn(True, 3)
    learn(False, 37)
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) / 5 < losses[0] / 3
