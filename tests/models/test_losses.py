from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from retarget.errors import WeightsError
from retarget.models.base import Frame
from retarget.models.losses import (
    PIX2PIXHD,
    VGG19,
    DanceObjective,
    LossWeights,
    content_loss,
    feature_matching,
    gradient_loss,
    gradient_penalty,
    lsgan_critic,
    lsgan_generator,
    matte_loss,
    perceptual,
    pyramid_loss,
    relativistic_critic,
    relativistic_generator,
)


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_relativistic_average_lsgan_by_hand():
    # D(y) = 1, 3 with mean 2; D(x) = 0, 2 with mean 1.
    real, fake = [scores(1, 3)], [scores(0, 2)]
    # 1/2 mean((1-1-1)^2, (3-1-1)^2) + 1/2 mean((0-2)^2, (2-2)^2) = 1/2 * 1 + 1/2 * 2
    assert relativistic_critic(real, fake).item() == pytest.approx(1.5)
    # 1/2 mean((0-2-1)^2, (2-2-1)^2) + 1/2 mean((1-1)^2, (3-1)^2) = 1/2 * 5 + 1/2 * 2
    assert relativistic_generator(real, fake).item() == pytest.approx(3.5)
    # Scales are added.
    assert relativistic_critic(real * 2, fake * 2).item() == pytest.approx(3.0)
    # As printed, even a critic that tells them apart by one pays for the fakes' target of 0: 1/2 (0-1)^2.
    assert relativistic_critic([scores(1)], [scores(0)]).item() == pytest.approx(0.5)


def test_the_mean_runs_over_patches_and_batch():
    # D(y) = [[1, 3], [5, 7]] (mean 4), D(x) = 0: 1/2 mean(0, 4, 16, 36) + 1/2 * 16 = 7 + 8
    real = [torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(2, 1, 1, 2)]
    assert relativistic_critic(real, [torch.zeros(2, 1, 1, 2)]).item() == pytest.approx(15.0)


def test_the_generator_also_moves_the_mean_of_its_scores():
    fake = scores(0.5).requires_grad_()
    relativistic_generator([scores(2)], [fake]).backward()
    # d/dx of 1/2 (x - 2 - 1)^2 + 1/2 (2 - x)^2 at x = 0.5: (0.5 - 3) - (2 - 0.5)
    assert fake.grad.item() == pytest.approx(-4.0)


def test_gradient_penalty_by_hand():
    real, fake = torch.rand(3, 3, 2, 2), torch.rand(3, 3, 2, 2)
    # A linear critic has the same slope everywhere: 12 numbers of 0.5 have the norm sqrt(3).
    linear = gradient_penalty(lambda x: [0.5 * x.sum((1, 2, 3), keepdim=True)], real, fake)
    assert linear.item() == pytest.approx((3**0.5 - 1) ** 2, rel=1e-5)
    # Two scales are added; one that ignores the picture has the slope 0.
    both = gradient_penalty(lambda x: [0.5 * x.sum((1, 2, 3), keepdim=True), 0 * x[:, :1]], real, fake)
    assert both.item() == pytest.approx((3**0.5 - 1) ** 2 + 1, rel=1e-4)


def test_gradient_penalty_is_taken_between_real_and_fake_and_trains_the_critic():
    weight = torch.tensor(2.0, requires_grad=True)
    places = []

    def critic(x):
        places.append(x.detach())
        return [weight * x]

    real, fake = torch.ones(4, 3, 2, 2), torch.zeros(4, 3, 2, 2)
    gradient_penalty(critic, real, fake).backward()
    place = places[0]
    assert ((place > 0) & (place < 1)).all()
    assert (place.flatten(1).std(1) == 0).all()  # one place per picture
    assert len(place[:, 0, 0, 0].unique()) == 4
    # norm = 12^(1/2) w: d/dw (12^(1/2) w - 1)^2 = 2 * 12^(1/2) * (12^(1/2) w - 1)
    assert weight.grad.item() == pytest.approx(2 * 12**0.5 * (12**0.5 * 2 - 1), rel=1e-5)


def test_feature_matching_by_hand():
    # Per layer the mean difference: 1 and 0.5; the scores (last) do not count. Two scales are added.
    real = [[torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)]]
    fake = [[torch.ones(1, 2, 2, 2), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.full((1, 1, 1, 1), 9.0)]]
    assert feature_matching(real, fake).item() == pytest.approx(1.5)
    assert feature_matching(real * 2, fake * 2).item() == pytest.approx(3.0)


def test_perceptual_by_hand():
    assert perceptual([torch.zeros(2, 2), torch.ones(1)], [torch.ones(2, 2), torch.full((1,), 3.0)]).item() == 3.0


def test_gradient_loss_by_hand():
    x, y = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert gradient_loss(x, y).item() == pytest.approx(0.5)  # 1 across, 0 down
    assert gradient_loss(x + 5, x).item() == pytest.approx(0, abs=1e-6)


def test_matte_loss_by_hand():
    half = torch.full((1, 1, 4, 4), 0.5)
    # |0.5 - 1| + 0.05 * 0 + 0.05 * 4 * 0.25
    assert matte_loss(half, torch.ones_like(half)).item() == pytest.approx(0.55)
    edge = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    assert matte_loss(edge, edge).item() == pytest.approx(0.05)  # variation: 1 across, 0 down


def test_pyramid_by_hand():
    # A flat difference is only in what remains.
    assert pyramid_loss(torch.full((1, 1, 32, 32), 0.5), torch.zeros(1, 1, 32, 32)).item() == pytest.approx(0.5)
    # A checkerboard of 0.4 is all detail of the finest band: its amount is missing, its place does not matter.
    ys, xs = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    board = 0.4 * (1 - 2 * ((ys + xs) % 2)).float()[None, None]
    assert pyramid_loss(torch.zeros_like(board), board).item() == pytest.approx(0.4, rel=1e-5)
    assert pyramid_loss(-board, board).item() == pytest.approx(0, abs=1e-6)
    assert F.l1_loss(-board, board) > F.l1_loss(torch.zeros_like(board), board)  # what L1 would have preferred


def test_pyramid_prefers_displaced_detail_to_blur():
    torch.manual_seed(0)
    truth = F.avg_pool2d(torch.randn(1, 3, 66, 66), 3, 1)
    moved, blurred = truth.roll(1, -1), F.avg_pool2d(truth, 5, 1, 2)
    assert pyramid_loss(moved, truth) < 0.5 * pyramid_loss(blurred, truth)
    assert F.l1_loss(moved, truth) > 0.9 * F.l1_loss(blurred, truth)
    assert pyramid_loss(truth, truth) == 0


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (48, 30)])
def test_pyramid_takes_any_size(size):
    assert pyramid_loss(torch.rand(1, 3, *size), torch.rand(1, 3, *size)).isfinite()


def vgg_weights() -> dict[str, torch.Tensor]:
    """Random weights in torchvision's layout: places and widths of the first 13 convolutions of vgg19.features."""
    torch.manual_seed(0)
    weights, channels = {}, 3
    for place, width in zip(
        (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28), (64,) * 2 + (128,) * 2 + (256,) * 4 + (512,) * 5, strict=True
    ):
        weights[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3) * (2 / channels / 9) ** 0.5
        weights[f"features.{place}.bias"] = torch.zeros(width)
        channels = width
    return weights


def test_lsgan_by_hand():
    real = [torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.0]]]])]
    fake = [torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[-1.0]]]])]
    assert lsgan_critic(real, fake) == pytest.approx(0.5 * ((0 + 4) / 2 + (4 + 0) / 2 + 1 + 1))
    assert lsgan_generator(fake) == pytest.approx((1 + 1) / 2 + 4)


def test_perceptual_layers_can_be_weighted():
    real, fake = ([torch.full((1, 2, 4, 4), v)] * 5 for v in (1.0, 3.0))
    assert perceptual(real, fake) == 10
    assert perceptual(real, fake, PIX2PIXHD) == pytest.approx(2 * (1 + 1 / 4 + 1 / 8 + 1 / 16 + 1 / 32))


def test_what_stands_in_for_perception_is_l1_and_the_pyramid():
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 3, 16, 16)
    torch.testing.assert_close(content_loss(x, y), (x - y).abs().mean() + pyramid_loss(x, y, soft=0))
    assert content_loss(x, x) == 0
    # A pattern of the right strength in the wrong place is no better than none.
    checks = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(1, 3, 16, 16)
    assert content_loss(1 - checks, checks) > 1.5 * content_loss(torch.full_like(checks, 0.5), checks)


def test_vgg19():
    weights = vgg_weights()
    vgg = VGG19(weights | {"classifier.0.weight": torch.zeros(1), "features.30.bias": torch.zeros(512)})
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    taken = vgg(x)
    assert [tuple(t.shape[1:]) for t in taken] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    assert all((t >= 0).all() and t.max() > 0 for t in taken)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    first = F.conv2d(((x + 1) / 2 - mean) / std, weights["features.0.weight"], padding=1).relu()
    assert torch.allclose(taken[0], first, atol=1e-5)
    assert not any(p.requires_grad for p in vgg.parameters())
    others = vgg(x, (1, 3, 6), average=True)
    assert torch.equal(others[0], taken[0])
    second = F.conv2d(taken[0], weights["features.2.weight"], padding=1).relu()
    assert torch.allclose(others[1], second, atol=1e-5)
    third = F.conv2d(F.avg_pool2d(second, 2), weights["features.5.weight"], padding=1).relu()
    assert torch.allclose(others[2], third, atol=1e-5)
    with pytest.raises(WeightsError):
        VGG19({})
    with pytest.raises(WeightsError):
        VGG19(weights | {"features.28.weight": torch.zeros(1)})


@pytest.fixture
def scene():
    torch.manual_seed(0)
    truth = Frame(torch.rand(2, 3, 40, 32) * 2 - 1, torch.rand(2, 1, 40, 32).round())
    frame = Frame((torch.rand(2, 3, 40, 32) * 2 - 1).requires_grad_(), torch.rand(2, 1, 40, 32).requires_grad_())
    return frame, truth, SimpleNamespace(maps=torch.rand(2, 6, 40, 32))


def test_objective_has_all_terms(scene):
    frame, truth, condition = scene
    objective = DanceObjective(6, vgg=VGG19(vgg_weights()))
    terms = objective.generator_loss(frame, truth, condition)
    assert set(terms) == {"pixel", "square", "pyramid", "gradient", "matte", "adversarial", "feature", "perceptual"}
    sum(terms.values()).backward()
    assert frame.rgb.grad.isfinite().all()
    assert frame.rgb.grad.abs().sum() > 0
    assert frame.matte.grad.abs().sum() > 0

    frame.rgb.grad = None
    against = objective.critic_loss(frame, truth, condition)
    assert set(against) == {"critic", "penalty"}
    sum(against.values()).backward()
    assert frame.rgb.grad is None
    assert all(p.grad.isfinite().all() for p in objective.critic_parameters())
    assert len(objective.critic_parameters()) == len(list(objective.critics.parameters()))


def test_weights_scale_and_switch_off(scene):
    frame, truth, condition = scene
    plain = LossWeights(w_rela=0, pyramid=0, gradient=0, matte=0, square=0, person=0, pixel=3.0)
    objective = DanceObjective(6, plain)
    assert objective.critics is None
    assert objective.critic_parameters() == []
    assert objective.critic_loss(frame, truth, condition) == {}
    terms = objective.generator_loss(frame, truth, condition)
    assert list(terms) == ["pixel"]
    assert terms["pixel"].item() == pytest.approx(3 * F.l1_loss(frame.rgb, truth.rgb).item())
    terms = DanceObjective(6, replace(plain, pixel=0, square=2.0)).generator_loss(frame, truth, condition)
    assert list(terms) == ["square"]
    assert terms["square"].item() == pytest.approx(2 * F.mse_loss(frame.rgb, truth.rgb).item())
    assert "matte" not in DanceObjective(6, LossWeights(w_rela=0)).generator_loss(Frame(frame.rgb), truth, condition)


def test_pixels_of_the_person_count_more(scene):
    _, truth, condition = scene
    inside = truth.matte.expand_as(truth.rgb)
    frames = [Frame(truth.rgb + 0.1 * where, truth.matte) for where in (inside, 1 - inside)]
    for name in ("pixel", "square"):
        own, behind = (DanceObjective(6, LossWeights(w_rela=0, person=3.0)).generator_loss(f, truth, condition)[name]
                       for f in frames)  # fmt: skip
        assert own / behind == pytest.approx(4 * float(inside.sum() / (1 - inside).sum()), rel=1e-3)
    # It weighs, and does not make the whole count more.
    everywhere = Frame(truth.rgb + 0.1, truth.matte)
    terms = DanceObjective(6, LossWeights(w_rela=0, pixel=2.0, person=3.0)).generator_loss(everywhere, truth, condition)
    assert terms["pixel"].item() == pytest.approx(0.2, rel=1e-3)
    # Without a matte all pixels are alike.
    terms = DanceObjective(6, LossWeights(w_rela=0, pixel=2.0)).generator_loss(everywhere, Frame(truth.rgb), condition)
    assert terms["pixel"].item() == pytest.approx(0.2, rel=1e-3)


def test_the_truth_costs_nothing_but_the_game(scene):
    _, truth, condition = scene
    terms = DanceObjective(6).generator_loss(Frame(truth.rgb, truth.matte), truth, condition)
    assert [n for n, t in terms.items() if t > 1e-6 and n not in ("adversarial", "matte")] == []


def test_paper_weights():
    w = LossWeights()
    assert (w.w_rela, w.w_gp, w.w_fm, w.w_vgg) == (1, 10, 10, 10)
