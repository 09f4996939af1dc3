from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from retarget.device import Compute
from retarget.errors import UsageError
from retarget.models import build
from retarget.models.base import Batch, Frame, Poses, References, stacked
from retarget.models.talking_head import (
    UNKNOWN,
    Embeddings,
    Generator,
    SelfAttention,
    TalkingHead,
    TalkingHeadConfig,
    adain,
    hinge,
    match_loss,
)
from retarget.training.fit import FitOptions, fit

TINY = {
    "side": 32, "width": 4, "widest": 8, "embedding": 6, "downs": 2, "blocks": 1, "halvings": 3, "videos": 4,
}  # fmt: skip
CPU = Compute(torch.device("cpu"), torch.float32)


def tiny(**config) -> TalkingHead:
    torch.manual_seed(0)
    return build("talking-head", TINY | config).eval()


def poses(count: int = 1, size=(40, 32), seed: int = 0) -> Poses:
    """Meshes that fill the middle of a picture."""
    generator = torch.Generator().manual_seed(seed)
    face = torch.rand(1, count, 468, 3, generator=generator) * torch.tensor([size[1] / 2, size[0] / 2, 0])
    face += torch.tensor([size[1] / 4, size[0] / 4, 0])
    return Poses(torch.zeros(1, count, 33, 4), face, torch.full((1, count, 2, 21, 3), torch.nan), size)


def references(count: int = 2, size=(40, 32), seed: int = 0, video: int | None = None) -> References:
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(1, count, 3, *size, generator=generator) * 2 - 1
    matte = torch.rand(1, count, 1, *size, generator=generator)
    plate = torch.rand(1, 3, *size, generator=generator) * 2 - 1
    return References(rgb, matte, poses(count, size, seed), plate, video=video)


def pair(model: TalkingHead, count: int = 2, seed: int = 0, video: int | None = None) -> Batch:
    """A person and one frame of theirs, as training sees it."""
    known = references(count, seed=seed, video=video)
    condition = model.condition(poses(seed=seed + 100), (40, 32))
    truth = Frame(known.rgb[:, 0], known.matte[:, 0])
    condition, identity, truth = model.ahead(condition, model.encode(known), truth)
    return Batch(condition, identity, None, truth)


# ------------------------------------------------------------------------------------------------ §3.4 and A.4


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


# ------------------------------------------------------------------------------------------------ Eqs. 1 and 2


def test_an_embedding_is_the_mean_over_the_pictures():
    model = tiny()
    known = references(3)
    identity = model.encode(known)
    alone = [
        model.encode(known._replace(rgb=known.rgb[:, [k]], matte=known.matte[:, [k]], poses=Poses(
            *(t[:, [k]] for t in known.poses[:3]), known.poses.picture)))
        for k in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(identity.embedding, torch.stack([i.embedding for i in alone]).mean(0))
    assert not torch.allclose(alone[0].embedding, alone[1].embedding)


def test_persons_with_different_numbers_of_pictures_in_one_batch():
    model = tiny()
    pairs = [pair(model, count=k, seed=k) for k in (1, 3, 2)]
    with torch.no_grad():
        frame, _ = model(*stacked(pairs)[:3])
        for b, p in enumerate(pairs):
            alone, _ = model(*p[:3])
            torch.testing.assert_close(frame.rgb[b], alone.rgb[0])
            k = int(p.condition.shots)
            torch.testing.assert_close(frame.extra.each[b, :k], alone.extra.each[0])
    assert frame.extra.there.sum(1).tolist() == [1, 3, 2]


def test_training_asks_the_embedder_and_gives_it_gradients():
    model = tiny().train()
    batch = pair(model)
    frame, _ = model(*batch[:3])
    frame.rgb.square().mean().backward()
    for module in (model.embedder, model.projection, model.generator):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert model.own.grad is None


def test_what_is_drawn_is_what_was_trained():
    """`ahead` and the way of `drive` agree, where no size changes."""
    model = tiny()
    size = (40, 32)
    known = references(2)
    identity = model.encode(known)
    condition = model.condition(poses(seed=1), size)
    assert condition.maps.shape == (1, 3, 40, 32)
    with torch.no_grad():
        straight, state = model(condition, identity, None)
        ahead, _, _ = model.ahead(condition, identity, Frame(known.rgb[:, 0], known.matte[:, 0]))
        trained, _ = model(ahead, None, None)
    torch.testing.assert_close(straight.rgb, trained.rgb)
    assert state is None


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("size", [(32, 32), (90, 60), (33, 71), (20, 20)])
def test_any_size(size):
    model = tiny()
    identity = model.encode(references(2, size))
    with torch.inference_mode():
        frame, _ = model(model.condition(poses(size=size), size), identity, None)
    assert frame.rgb.shape == (1, 3, *size)
    assert frame.matte.shape == (1, 1, *size)
    assert frame.rgb.abs().max() <= 1
    assert 0 <= frame.matte.min() <= frame.matte.max() <= 1


def test_the_head_stands_before_the_plate():
    model = tiny()
    known = references(2)
    identity = model.encode(known)
    condition = model.condition(poses(), (40, 32))
    dark, bright = (model.before(identity, torch.full((1, 3, 40, 32), v)) for v in (-1.0, 1.0))
    with torch.no_grad():
        frames = [model(condition, i, None)[0] for i in (dark, bright)]
    torch.testing.assert_close(frames[0].matte, frames[1].matte)
    difference = (frames[1].rgb - frames[0].rgb) / 2
    torch.testing.assert_close(difference, (1 - frames[0].matte).expand_as(difference))


def test_a_face_that_was_not_found():
    model = tiny()
    lost = poses()._replace(face=torch.full((1, 1, 468, 3), torch.nan))
    condition = model.condition(lost, (40, 32))
    assert not condition.maps.any()
    known = references(2)
    known.poses.face[:, 1] = torch.nan
    with torch.no_grad():
        frame, _ = model(condition, model.encode(known), None)
    assert frame.rgb.isfinite().all()


def test_autocast_and_repetition():
    model = tiny()
    known = references(2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        identity = model.encode(known)
        condition = model.condition(poses(), (40, 32))
        first, second = (model(condition, identity, None)[0] for _ in range(2))
    assert first.rgb.isfinite().all()
    assert torch.equal(first.rgb, second.rgb)
    with torch.inference_mode():
        exact, _ = model(condition, model.encode(known), None)
    assert (first.rgb.float() - exact.rgb).abs().mean() < 0.05


def test_variations_are_true_pairs():
    model = tiny()
    batch = pair(model, video=3)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        new = model.varied(batch, generator)
        mirrored = not torch.equal(new.condition.maps, batch.condition.maps)
        coloured = int(new.condition.video) == UNKNOWN
        seen.add((mirrored, coloured))
        back = new.condition.known.flip(3) if mirrored else new.condition.known
        torch.testing.assert_close(back[:, 3:], batch.condition.known[:, 3:])
        assert torch.equal(back[:, :3], batch.condition.known[:, :3]) != coloured
        assert new.truth.rgb.abs().max() <= 1
        if mirrored:
            torch.testing.assert_close(new.condition.maps.flip(3), batch.condition.maps)
            torch.testing.assert_close(new.truth.matte.flip(3), batch.truth.matte)
    assert seen == {(a, b) for a in (False, True) for b in (False, True)}


@pytest.mark.parametrize(
    "config", [{"side": 40}, {"side": 8}, {"width": 0}, {"match": 1}, {"downs": 1}, {"videos": 2.5}, {"K": 8}]
)
def test_configurations_that_cannot_be(config):
    with pytest.raises(UsageError, match="talking-head"):
        build("talking-head", TINY | config)


# ------------------------------------------------------------------------------------------------ Eqs. 3-6


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


# ------------------------------------------------------------------------------------------------ Eqs. 7-10


def test_adopting_changes_no_picture():
    """ψ' = P ê_NEW, and w' = w0 + ê_NEW."""
    model = tiny()
    objective = model.objective().eval()
    identity = model.encode(references(3))
    condition = model.condition(poses(), (40, 32))
    with torch.no_grad():
        before, _ = model(condition, identity, None)
        model.adopt(identity)
        objective.adopt(identity)
        after, _ = model(condition, identity, None)
    torch.testing.assert_close(after.rgb, before.rgb)
    torch.testing.assert_close(model.own.data, model.projection(identity.embedding)[0])
    critic = objective.critics
    torch.testing.assert_close(critic.own.data, critic.general + identity.embedding[0])
    rgb, maps = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    score, _ = critic(rgb, maps, torch.tensor([0, UNKNOWN]))
    vector, _ = critic.trunk(torch.cat([rgb / 2 + 0.5, maps], 1))
    torch.testing.assert_close(score, vector @ critic.own + critic.bias)
    # From now on neither embedder nor identity count, and L_MCH is gone (Eq. 9).
    batch = pair(model, seed=5)
    frame, _ = model(*batch[:3])
    assert frame.extra is None
    assert "match" not in objective.generator_loss(frame, batch.truth, batch.condition)


def test_an_adopted_person_survives_a_file(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny()
    identity = model.encode(references())
    model.adopt(identity)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    other = build("talking-head", TINY | {"videos": 4}).eval()
    other.load_state_dict(load_file(tmp_path / "a.safetensors"))
    condition = model.condition(poses(), (40, 32))
    with torch.no_grad():
        torch.testing.assert_close(other(condition, identity, None)[0].rgb, model(condition, identity, None)[0].rgb)


def test_fine_tuning_moves_the_generator_and_the_person_only():
    model = tiny()
    batch = pair(model)
    identity = model.encode(references())
    objective = model.objective()
    model.adopt(identity)
    objective.adopt(identity)
    before = {k: t.clone() for k, t in model.named_parameters()}
    fit(
        model, objective, iter([batch] * 3), parameters=model.tunable(identity), compute=CPU,
        options=FitOptions(3, 1e-3, 1),
    )  # fmt: skip
    moved = {k for k, t in model.named_parameters() if not torch.equal(t, before[k])}
    assert "own" in moved
    assert {k.partition(".")[0] for k in moved} == {"own", "generator"}


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


def test_the_configuration_says_all():
    model = tiny()
    assert build("talking-head", dataclasses.asdict(model.config)).config == model.config
    assert TalkingHeadConfig().match
    assert isinstance(model.generator, Generator)
