"""The networks are the paper's (§3.4, A.4): numbers of parameters, resolutions, normalisations, attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from retarget.models import build
from retarget.models.talking_head import SelfAttention, adain

from .conftest import pair, tiny


@pytest.fixture(scope="module")
def paper():
    """The paper's networks, sizes only, and the mode in which they can be asked."""
    mode = FakeTensorMode()
    with mode:
        model = build("talking-head", preset="paper")
        return model, model.objective(), mode


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_numbers_of_parameters_that_the_paper_states(paper):
    model, objective, _ = paper
    assert round(parameters(model.embedder) / 1e6) == 15
    assert round(parameters(model.generator, model.projection) / 1e6) == 38
    assert round(parameters(objective.critics.trunk) / 1e6) == 20
    assert parameters(model.embedder) == 14_906_945
    assert parameters(model.generator, model.projection) == 38_068_742
    assert parameters(objective.critics.trunk) == 19_626_561


def test_the_small_preset_is_small():
    with FakeTensorMode():
        model = build("talking-head")
    state = {k: t for k, t in model.state_dict().items()}
    assert sum(t.numel() for t in state.values()) < 3e6


def shapes(module: nn.Module, call, *inputs) -> dict[str, tuple[int, ...]]:
    """What each of a module's children puts out, by name."""
    seen = {}
    hooks = [
        child.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape)}))
        for name, child in module.named_modules()
        if type(child).__name__ in ("Down", "Adaptive", "SelfAttention")
    ]
    call(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_generator_is_the_papers(paper):
    model, _, mode = paper
    generator = model.generator
    with mode:
        seen = shapes(generator, generator, torch.empty(1, 3, 256, 256), torch.empty(1, generator.coefficients))
    assert {k: v[1:] for k, v in seen.items()} == {
        "down.0": (64, 128, 128), "down.1": (128, 64, 64), "down.2": (256, 32, 32), "looks_down": (256, 32, 32),
        "down.3": (512, 16, 16), "middle.0": (512, 16, 16), "middle.1": (512, 16, 16), "middle.2": (512, 16, 16),
        "middle.3": (512, 16, 16), "up.0": (512, 32, 32), "up.1": (256, 64, 64), "looks_up": (256, 64, 64),
        "up.2": (128, 128, 128), "up.3": (64, 256, 256),
    }  # fmt: skip
    assert list(seen).index("looks_down") == list(seen).index("down.3") - 1
    assert list(seen).index("looks_up") == list(seen).index("up.1") + 1
    # Instance normalisation encodes the landmarks, nothing but the adaptive one comes after.
    normed = [n for n, m in generator.named_modules() if isinstance(m, nn.InstanceNorm2d)]
    assert all(name.startswith("down.") for name in normed)
    assert len(normed) == 4 + 3  # the first block has no pre-activation
    # One linear map to all of them: two normalisations in each of eight blocks, one before the last convolution.
    assert len(generator.sizes) == 2 * (4 + 4) + 1
    with mode:
        assert model.projection.weight.shape == (2 * (4 * 2 * 512 + 1024 + 768 + 384 + 192 + 64), 512)
    assert model.projection.bias is None


def test_embedder_and_critic_are_the_papers(paper):
    model, objective, mode = paper
    with mode:
        pictures = torch.empty(2, 6, 256, 256)
        embedder = shapes(model.embedder, model.embedder, pictures)
        critic = shapes(objective.critics.trunk, objective.critics.trunk, pictures)
        assert model.embedder(pictures)[0].shape == (2, 512)
        assert len(objective.critics.trunk(pictures)[1]) == 7
    blocks = {
        "blocks.0": (64, 128, 128), "blocks.1": (128, 64, 64), "blocks.2": (256, 32, 32), "attention": (256, 32, 32),
        "blocks.3": (512, 16, 16), "blocks.4": (512, 8, 8), "blocks.5": (512, 4, 4),
    }  # fmt: skip
    assert {k: v[1:] for k, v in embedder.items()} == blocks
    assert {k: v[1:] for k, v in critic.items()} == blocks | {"blocks.6": (512, 4, 4)}
    assert not any(isinstance(m, nn.InstanceNorm2d) for m in (*model.embedder.modules(), *objective.modules()))
    assert objective.critics.videos.weight.shape == (145_569, 512)


def test_spectral_normalisation_everywhere():
    model = tiny()
    objective = model.objective()
    layers = [m for net in (model, objective) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) > 40
    for layer in layers:
        assert parametrize.is_parametrized(layer, "weight")
    model.train()
    for _ in range(60):  # the power iteration settles
        model(*pair(model)[:3])
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_the_small_preset_keeps_the_resolutions():
    with FakeTensorMode():
        model = build("talking-head")
        generator = model.generator
        seen = shapes(generator, generator, torch.empty(1, 3, 128, 128), torch.empty(1, generator.coefficients))
        inner = shapes(model.embedder, model.embedder, torch.empty(1, 6, 128, 128))
    assert seen["looks_down"][2:] == inner["attention"][2:] == (32, 32)
    assert seen["looks_up"][2:] == (64, 64)
    assert seen["middle.3"][2:] == (16, 16)
    assert inner["blocks.4"][2:] == (4, 4)


def test_the_sum_over_places():
    """Pooling sums 4 × 4 places, whatever the picture's size."""
    model = tiny()
    x = torch.rand(1, 6, 32, 32)
    vector, outputs = model.embedder(x)
    assert outputs[-1].shape[2:] == (4, 4)
    torch.testing.assert_close(vector, torch.relu(outputs[-1]).sum((2, 3)))
    assert (vector >= 0).all()


def test_adaptive_instance_normalisation():
    x = torch.randn(2, 3, 8, 8) * 5 + 2
    y = adain(x, torch.tensor([[0.0, 1, 2, 10, 20, 30], [0, 0, 0, 0, 0, 0]]))
    torch.testing.assert_close(y.mean((2, 3)), torch.tensor([[10.0, 20, 30], [0, 0, 0]]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(y.std((2, 3), unbiased=False)[0], torch.tensor([1.0, 2, 3]), atol=1e-3, rtol=1e-3)


def test_self_attention_starts_as_identity_and_looks_everywhere():
    attention = SelfAttention(16).eval()
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(attention(x), x)
    nn.init.ones_(attention.gain)
    other = x.clone()
    other[..., -1, -1] += 5
    changed = (attention(other) - attention(x)).abs().amax(1)
    assert (changed[..., 0, 0] > 1e-6).all()
