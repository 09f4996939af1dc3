from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from retarget.models.layers import GlobalGenerator, LocalEnhancer, UNet, averaged, fit_sides, resized, within


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_unet_is_small():
    with torch.device("meta"):
        assert 0.4e6 < parameters(UNet(60, 12)) < 0.65e6


@pytest.mark.parametrize("fold", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 24), (33, 50)])
def test_unet_draws_any_size_and_starts_at_zero(fold, size):
    x = torch.randn(2, 5, *size)
    silent = UNet(5, 4, 8, 3, fold=fold)(x)
    assert silent.shape == (2, 4, *size)
    assert silent.abs().max() == 0
    loud = UNet(5, 4, 8, 3, fold=fold, zero_last=False)(x)
    assert loud.std() > 0.01


def test_unet_learns_from_zero_with_a_batch_of_one():
    torch.manual_seed(0)
    net, x = UNet(3, 3, 8, 3), torch.randn(1, 3, 16, 16)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (net(x) - x.roll(1, -1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_unet_treats_pictures_alone_and_layout_does_not_matter():
    torch.manual_seed(0)
    net, x = UNet(3, 2, 8, 3, zero_last=False), torch.randn(3, 3, 16, 16)
    together = net(x)
    assert torch.allclose(together[1:2], net(x[1:2]), atol=1e-5)
    fast = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(together, fast, atol=1e-4)


def test_pix2pixhd_has_its_182_million_parameters():
    with torch.device("meta"):
        # 36 label channels, as published; the others follow from the first convolution.
        assert parameters(GlobalGenerator(36)) == 182_546_755
        assert parameters(GlobalGenerator(45)) == 182_546_755 + 9 * 64 * 49
        halved = parameters(GlobalGenerator(36, width=32))
    assert 0.24 < halved / 182_546_755 < 0.26


@pytest.mark.parametrize("size", [(16, 24), (19, 30)])
def test_generators_draw_pictures(size):
    torch.manual_seed(0)
    coarse = GlobalGenerator(5, width=4, downs=2, blocks=1)
    x = torch.randn(1, 5, *size)
    for net in (coarse, LocalEnhancer(coarse, 5, blocks=1)):
        picture = net(x)
        assert picture.shape == (1, 3, *size)
        assert picture.abs().max() <= 1
        assert picture.std() > 0


def test_enhancer_and_coarse_generator_are_trained_jointly():
    coarse = GlobalGenerator(3, width=4, downs=2, blocks=1)
    net = LocalEnhancer(coarse, 3, blocks=1)
    net(torch.randn(1, 3, 16, 16)).square().sum().backward()
    assert coarse.body[1].weight.grad.abs().sum() > 0
    assert coarse.paint[1].weight.grad is None  # its features are used, not its picture


def test_enhancers_stand_around_enhancers():
    torch.manual_seed(0)
    coarse = GlobalGenerator(3, 0, width=8, downs=1, blocks=1)
    net = LocalEnhancer(LocalEnhancer(coarse, 3, 0, blocks=1), 3, blocks=1)
    assert [net.width, net.coarse.width, coarse.width] == [2, 4, 8]
    assert [net.multiple, net.coarse.multiple, coarse.multiple] == [8, 4, 2]
    picture = net(torch.randn(2, 3, 30, 21))
    assert picture.shape == (2, 3, 30, 21)
    picture.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())  # only the outermost paints


def test_a_picture_smaller_than_the_deepest_level_is_continued():
    torch.manual_seed(0)
    net = GlobalGenerator(3, width=2, downs=4, blocks=1).train()
    assert net(torch.randn(1, 3, 9, 12)).shape == (1, 3, 9, 12)


@pytest.mark.parametrize(
    ("size", "small"), [((100, 50), (100, 50)), ((300, 200), (192, 128)), ((129, 500), (128, 496))]
)
def test_within(size, small):
    assert within(size, 128) == small


def test_resized():
    x = torch.randn(1, 2, 12, 9)
    assert resized(x, (12, 9)) is x
    torch.testing.assert_close(resized(x, (4, 3)), torch.nn.functional.avg_pool2d(x, 3))
    assert resized(x, (5, 4)).shape == (1, 2, 5, 4)
    flat = torch.full((1, 1, 7, 5), 0.25)
    for size in ((3, 2), (20, 11)):
        torch.testing.assert_close(resized(flat, size), torch.full((1, 1, *size), 0.25))


def test_fit_sides():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert fit_sides(x, 1) is x
    assert fit_sides(x, 2, 6).shape == (1, 1, 6, 6)
    assert fit_sides(x, 1, 3)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]
    padded = fit_sides(x, 4)[0, 0]
    assert padded.tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]


@pytest.mark.parametrize(("size", "reach"), [((9, 14), 2), ((3, 2), 2), ((7, 7), 1)])
def test_the_mean_of_the_surroundings(size, reach):
    """PyTorch's own average, without what is outside, is the reference."""
    x = torch.randn(2, 3, *size, requires_grad=True)
    padded, ones = (F.pad(t, [reach] * 4) for t in (x, torch.ones(1, 1, *size)))
    wanted = F.avg_pool2d(padded, 2 * reach + 1, 1) / F.avg_pool2d(ones, 2 * reach + 1, 1)
    torch.testing.assert_close(averaged(x, reach), wanted)
    (there,), (here,) = (torch.autograd.grad((t**2).sum(), x) for t in (wanted, averaged(x, reach)))
    torch.testing.assert_close(here, there)
