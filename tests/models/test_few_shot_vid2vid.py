"""`few-shot-vid2vid`: the equations and sizes of the paper, and that it learns; beside what `test_all` asks of all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retarget import device
from retarget.errors import UsageError
from retarget.models import build
from retarget.models.base import (
    Batch,
    Frame,
    Labels,
    Poses,
    References,
    frame_count,
    last,
    rollout,
    series,
    stacked,
)
from retarget.models.few_shot_vid2vid import (
    REACH,
    Examples,
    FewShotConfig,
    FewShotObjective,
    FewShotVid2Vid,
    FlowNetwork,
    Moved,
    Past,
    SpadeBlock,
    Synthesis,
    WeightGeneration,
    WeightGenerator,
    pointwise,
    warping_loss,
)
from retarget.models.layers import resized
from retarget.models.losses import feature_matching, lsgan_critic, lsgan_generator
from retarget.references import arrays, poses, references
from retarget.training.fit import FitOptions, fit

TINY: dict[str, Any] = {
    "width": 8, "widest": 16, "levels": 3, "adaptive": 3, "grid": 4, "keys": 1, "flow_width": 8, "flow_downs": 2,
    "flow_blocks": 1, "critic": 8,
}  # fmt: skip
SIZE = (48, 40)
CPU = device.choose("cpu", "fp32")


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def tiny(**changes: Any) -> FewShotVid2Vid:
    torch.manual_seed(0)
    return FewShotVid2Vid(**TINY | changes).eval()


def loud(model: FewShotVid2Vid) -> FewShotVid2Vid:
    """Its last layers say something."""
    for layer in (model.synthesis.last, model.flow.head, *([model.example.head] if model.example else [])):
        nn.init.normal_(layer.weight, 0, 0.05)
    return model


@pytest.fixture(scope="module")
def people(puppet) -> References:
    """Three references at SIZE."""
    gathered = puppet.gathered(puppet.body(), puppet.body((90, 80)), puppet.body((20, 40), (150, 165)), details=True)
    return references(arrays(gathered), size=SIZE[::-1])


@pytest.fixture(scope="module")
def bodies(puppet) -> list[np.ndarray]:
    """A movement."""
    return [puppet.body((20 + 25 * i, 30 + 25 * i)) for i in range(4)]


@pytest.fixture(scope="module")
def windows(puppet, bodies) -> list[Poses]:
    return [poses(puppet.track(b, details=True).scaled(SIZE[::-1])) for b in bodies]


def first(known: References, count: int) -> References:
    p = known.poses
    return known._replace(
        rgb=known.rgb[:, :count], matte=known.matte[:, :count],
        poses=Poses(p.body[:, :count], p.face[:, :count], p.hands[:, :count], p.picture),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ the paper's sizes


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


# ------------------------------------------------------------------------------------------------ equations


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


# ------------------------------------------------------------------------------------------------ attention, Eq. 7


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


def test_attention_finds_the_place_that_looks_like_the_frame():
    """Two examples whose keys fit different places: q takes from each what it shows best."""
    model = tiny()
    keys = torch.stack([torch.zeros(16, 16), torch.zeros(16, 16)])[None]
    keys[0, 0, :8, :8], keys[0, 1, 8:, 8:] = torch.eye(8) * 100, torch.eye(8) * 100
    appearance = torch.stack([torch.full((sum(model.generation.rows), 16), v) for v in (1.0, 2.0)])[None]
    known = Examples(torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 2, 15, 8, 8), torch.ones(1, 2), torch.zeros(1, 3, 8, 8),
                     appearance, keys)  # fmt: skip
    model.generation.key = lambda maps: torch.eye(16)[None] * 100  # type: ignore[method-assign]
    q, nearest = model._aggregated(torch.zeros(1, 15, 8, 8), known)
    torch.testing.assert_close(q[0, 0], torch.tensor([1.0] * 8 + [2.0] * 8))
    assert nearest.shape == (1,)


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


def test_fewer_examples_in_a_batch_are_not_looked_at(people, windows):
    model = loud(tiny())
    condition = model.condition(windows[0], SIZE)
    for fewer in (1, 2):
        some, all_ = model.encode(first(people, fewer)), model.encode(people)
        both = stacked([some, all_])
        assert both.known.tolist() == [[1.0] * fewer + [0.0] * (3 - fewer), [1.0] * 3]
        with torch.inference_mode():
            together = model(stacked([condition, condition]), both, None)[0].rgb
            for n, alone in enumerate((some, all_)):
                torch.testing.assert_close(together[n : n + 1], model(condition, alone, None)[0].rgb, atol=1e-4, rtol=0)


def test_the_most_similar_example_is_shown(people, windows, monkeypatch):
    """Eq. 11: "we pick e_1 to be the image that has the largest similarity score"; what is not learned yet shows it."""
    model = tiny()
    condition, identity = model.condition(windows[0], SIZE), model.encode(people)
    for which in range(3):
        alpha = torch.full((1, 3, 16, 16), 0.01)
        alpha[:, which] = 0.5
        monkeypatch.setattr(model.generation, "attention", lambda *_, alpha=alpha: alpha)
        with torch.inference_mode():
            frame, _ = model(condition, identity, None)
        matte = people.matte[:, which]
        shown = people.rgb[:, which] * matte + (1 - matte) * people.plate
        assert (frame.rgb - shown).abs().mean() < 0.1
        others = [k for k in range(3) if k != which]
        for k in others:
            other = people.rgb[:, k] * people.matte[:, k] + (1 - people.matte[:, k]) * people.plate
            assert (frame.rgb - other).abs().mean() > (frame.rgb - shown).abs().mean()


def test_e_reads_the_examples_once_per_avatar(people, windows, monkeypatch):
    model = loud(tiny())
    raw = model.encode(people)
    assert raw.appearance is None
    with torch.inference_mode():
        known = model.encode(people)
        fresh = model(model.condition(windows[0], SIZE), raw, None)[0].rgb
    assert known.appearance.shape == (1, 3, sum(model.generation.rows), 16)
    monkeypatch.setattr(model.generation, "appearance", None)  # must not be asked any more
    with torch.inference_mode():
        kept = model(model.condition(windows[0], SIZE), known, None)[0].rgb
    torch.testing.assert_close(fresh, kept)


# ------------------------------------------------------------------------------------------------ sequences, Eq. 2


class Says(nn.Module):
    """A flow network that always gives the same answer."""

    def __init__(self, right: float, down: float, mask: float) -> None:
        super().__init__()
        self.answer, self.seen = (right, down, mask), []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(x)
        b, _, h, w = x.shape
        flow = torch.tensor(self.answer[:2]).view(1, 2, 1, 1).expand(b, 2, h, w)
        return flow, torch.full((b, 1, h, w), self.answer[2])


def test_eq_2_by_hand(people, windows):
    """(1 - m̃) ⊙ w̃(x̃_{t-1}) + m̃ ⊙ h̃, of the last picture as it was drawn."""
    model = loud(tiny(example=False, fold=1))
    identity = model.encode(people)
    one, two = (model.condition(w, SIZE) for w in windows[:2])
    with torch.inference_mode():
        _, state = model(one, identity, None)
        alone = model(two, identity, None)[1].pictures[:, -1]
        for mask in (0.0, 0.25, 1.0):
            model.flow = Says(3.0, -2.0, mask)
            frame, after = model(two, identity, state)
            moved = torch.zeros_like(alone)
            moved[:, :, 2:, :-3] = state.pictures[:, -1, :, :-2, 3:]
            wanted = (1 - mask) * moved + mask * alone
            torch.testing.assert_close(after.pictures[:, -1], wanted, atol=1e-4, rtol=1e-3)
            shown = wanted[:, :3] + (1 - wanted[:, 3:]) * people.plate
            torch.testing.assert_close(frame.rgb, shown.clamp(-1, 1), atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(frame.matte, wanted[:, 3:], atol=1e-4, rtol=1e-3)
    # W and M see s_t, x_{t-1} and s_{t-1}: Eqs. 3 and 4 with τ = 1.
    seen = model.flow.seen[0][..., : SIZE[0], : SIZE[1]]
    torch.testing.assert_close(seen[:, :15], two.maps)
    torch.testing.assert_close(seen[:, 15:19], state.pictures[:, 0])
    torch.testing.assert_close(seen[:, 19:], one.maps)


def test_flow_is_in_pixels_whatever_the_networks_see(people, windows):
    for changes in ({"fold": 2}, {"fold": 1, "side": 20}):
        model = loud(tiny(example=False, **changes))
        identity = model.encode(people)
        with torch.inference_mode():
            _, state = model(model.condition(windows[0], SIZE), identity, None)
            model.flow = Says(2.0, -1.0, 0.0)
            _, after = model(model.condition(windows[1], SIZE), identity, state)
        moved = torch.zeros_like(state.pictures[:, -1])
        moved[:, :, 2:, :-4] = state.pictures[:, -1, :, :-2, 4:]
        inside = (..., slice(3, -3), slice(0, -5))
        torch.testing.assert_close(after.pictures[:, -1][inside], moved[inside], atol=1e-4, rtol=1e-3)


def test_the_past_is_the_last_tau_frames(people, windows):
    model = loud(tiny(past=2))
    identity, state, drawn = model.encode(people), None, []
    conditions = [model.condition(w, SIZE) for w in windows]
    with torch.inference_mode():
        for condition in conditions:
            _, state = model(condition, identity, state)
            drawn.append(state.pictures[:, -1])
            recent = (drawn[:1] * 2 + drawn[1:])[-2:]  # the first one stands for those before it
            assert torch.equal(state.pictures, torch.stack(recent, 1))
    assert torch.equal(state.maps, torch.stack([c.maps for c in conditions[-2:]], 1))
    smaller = (SIZE[0] // 2, SIZE[1] // 2)
    with torch.inference_mode():  # when memory runs out, pictures become smaller in the middle of a clip
        frame, state = model(model.condition(windows[0], smaller), identity, state)
    assert frame.rgb.shape[2:] == state.pictures.shape[3:] == smaller
    assert frame.rgb.isfinite().all()


def test_flow_networks_begin_without_flow():
    c = FewShotConfig(**TINY)
    net = FlowNetwork(c, 7, 2.0)
    flow, mask = net(torch.randn(1, 7, 16, 24))
    assert flow.abs().max() == 0
    torch.testing.assert_close(mask, torch.full_like(mask, 1 / (1 + math.exp(-2))))
    nn.init.constant_(net.head.bias, 0.5)
    flow, _ = net(torch.randn(1, 7, 16, 24))
    assert flow.unique().tolist() == [0.5 * REACH]


def test_sequences_grow_while_training():
    model = tiny(sequence=16)
    lengths = [model.length(p / 100) for p in range(100)]
    assert lengths[:50] == [1] * 50
    assert [lengths[i] for i in (50, 59, 60, 70, 80, 99)] == [2, 2, 4, 8, 16, 16]
    assert tiny(sequence=3).length(0.99) == 3
    assert model.sequence == 16


def test_a_sequence_is_drawn_frame_by_frame(people, windows):
    model = loud(tiny())
    identity = model.encode(people)
    conditions = [model.condition(w, SIZE) for w in windows[:3]]
    with torch.inference_mode():
        whole = rollout(model, series(conditions), identity, None, 3)
        state = None
        for t, condition in enumerate(conditions):
            frame, state = model(condition, identity, state)
            assert torch.equal(whole.rgb[:, t], frame.rgb)
            assert torch.equal(whole.matte[:, t], frame.matte)
    assert frame_count(whole) == 3
    assert torch.equal(last(whole).rgb, frame.rgb)


def test_gradients_do_not_flow_back_in_time_and_e_reads_once(people, windows, monkeypatch):
    model = loud(tiny()).train()
    asked = []
    read = model._read
    monkeypatch.setattr(model, "_read", lambda known: asked.append(1) or read(known))
    conditions = series([model.condition(w, SIZE) for w in windows])
    frame = rollout(model, conditions, model.encode(people), None, 4)
    assert len(asked) == 1
    frame.rgb[:, 3].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    _, state = model(model.condition(windows[0], SIZE), model.encode(people), None)
    assert not state.pictures.requires_grad


# ------------------------------------------------------------------------------------------------ objective


def clip(count: int, seed: int = 0, layers: int = 4) -> tuple[Frame, Any]:
    """A made-up clip of `count` frames, and its condition."""
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(2, count, 3, 32, 32, generator=generator) * 2 - 1
    matte = torch.rand(2, count, 1, 32, 32, generator=generator)
    condition = tiny().condition(Poses(torch.zeros(2, 1, 33, 4), torch.zeros(2, 1, 468, 3), torch.zeros(2, 1, 2, 21, 3),
                                       (32, 32)), (32, 32))  # fmt: skip
    return Frame(rgb, matte if layers == 4 else None), series([condition] * count)


def test_critics_look_at_pictures_with_maps_and_at_two_frames_in_a_row():
    torch.manual_seed(0)
    objective = tiny().objective()
    image, video = objective.critics["image"], objective.critics["video"]
    assert image.critics[0].steps[0][0].weight.shape[1] == 3 + 15
    assert video.critics[0].steps[0][0].weight.shape[1] == 3 + 3
    assert len(objective.critic_parameters()) == len(list(image.parameters())) + len(list(video.parameters()))
    (frame, condition), (truth, _) = clip(3), clip(3, 1)
    terms = {name: float(t.detach()) for name, t in objective.generator_loss(frame, truth, condition).items()}
    maps = condition.maps.flatten(0, 1)
    objective.requires_grad_(False)
    real, fake = (image(f.rgb.flatten(0, 1), maps) for f in (truth, frame))
    assert terms["image_adversarial"] == pytest.approx(float(lsgan_generator([s[-1] for s in fake])), rel=1e-4)
    assert terms["image_feature"] == pytest.approx(10 * float(feature_matching(real, fake)), rel=1e-4)
    two = [video(f.rgb[:, 1:].flatten(0, 1), f.rgb[:, :-1].flatten(0, 1)) for f in (truth, frame)]
    assert terms["video_feature"] == pytest.approx(10 * float(feature_matching(*two)), rel=1e-4)
    against = objective.critic_loss(frame, truth, condition)
    assert against["video_critic"] == pytest.approx(float(lsgan_critic(*([s[-1] for s in x] for x in two))), rel=1e-4)
    single = objective.generator_loss(*(f._replace(rgb=f.rgb[:, :1], matte=f.matte[:, :1]) for f in (frame, truth)),
                                      condition._replace(maps=condition.maps[:, :1]))  # fmt: skip
    assert not any(name.startswith("video") for name in single)


def test_hinge_losses_on_request():
    torch.manual_seed(0)
    objective = tiny(hinge=True).objective().requires_grad_(False)
    (frame, condition), (truth, _) = clip(1), clip(1, 1)
    fake = objective.critics["image"](frame.rgb.flatten(0, 1), condition.maps.flatten(0, 1))
    wanted = -sum(float(s[-1].mean()) for s in fake)
    found = objective.generator_loss(frame, truth, condition)["image_adversarial"]
    assert found.item() == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_without_critics_there_is_none():
    objective = tiny().objective(critics=False)
    (frame, condition), (truth, _) = clip(2), clip(2, 1)
    assert objective.critic_parameters() == []
    assert objective.critic_loss(frame, truth, condition) == {}
    assert set(objective.generator_loss(frame, truth, condition)) == {"content", "matte"}
    assert objective.generator_loss(truth, truth, condition)["content"] == 0


def test_the_warping_loss_by_hand():
    """Pictures that move three pixels to the right each frame: the flow that says so costs its unevenness only."""
    wide = torch.rand(1, 4, 16, 40)
    x = torch.stack([wide[..., 10 - 3 * t : 34 - 3 * t] for t in range(3)], 1)
    matte = torch.ones(1, 3, 1, 16, 24)
    maps = x[:, :, 3:]
    truth = Frame(x[:, :, :3], matte)
    flow = torch.zeros(1, 3, 2, 16, 24)
    flow[:, :, 0] = -3.0
    example = torch.cat([truth.rgb, matte], 2)
    right = Moved(flow, example, maps, torch.zeros_like(flow))
    still = right._replace(flow=torch.zeros_like(flow))
    moved = float(warping_loss(right, truth, maps))
    # The left border shows what was not there before: 3 of 24 columns; zeros, of values whose mean is a half.
    columns = sum(float((x[:, 1:, c][..., :3]).abs().mean()) * 3 / 24 for c in range(3)) / 4 + 1 * 3 / 24 / 4
    columns += float(maps[:, 1:][..., :3].abs().mean()) * 3 / 24
    assert moved == pytest.approx(columns, rel=1e-4)
    assert float(warping_loss(still, truth, maps)) > 2 * moved
    # The example, and the unevenness of flows.
    wrong = right._replace(example=example + 0.5, example_maps=maps + 0.25)
    assert float(warping_loss(wrong, truth, maps)) == pytest.approx(moved + 0.75, rel=1e-4)
    steep = flow.clone()
    steep[:, :, 1] += torch.arange(24.0)
    rough = right._replace(example_flow=steep)
    share = FewShotObjective.SMOOTH * 0.5 * (0 + 0.5)  # half of the channels change by one from column to column
    assert float(warping_loss(rough, truth, maps)) == pytest.approx(moved + share, rel=1e-4)


def test_vgg_takes_the_place_of_the_content_term():
    class Seen(nn.Module):
        def forward(self, rgb: Tensor) -> list[Tensor]:
            return [rgb.mean((1, 2, 3))] * 5

    (frame, condition), (truth, _) = clip(2), clip(2, 1)
    terms = tiny().objective(critics=False, vgg=Seen()).generator_loss(frame, truth, condition)
    assert set(terms) == {"perceptual", "matte"}
    means = [f.rgb.flatten(0, 1).mean((1, 2, 3)) for f in (frame, truth)]
    assert terms["perceptual"] == pytest.approx(10 * 5 * float((means[0] - means[1]).abs().mean()), rel=1e-4)


# ------------------------------------------------------------------------------------------------ what is drawn from


def test_tuned_are_e_and_h_and_nothing_of_the_flow(people):
    model = tiny()
    moving = {id(p) for p in model.tunable(model.encode(people))}
    names = {name.split(".")[0]: id(p) in moving for name, p in model.named_parameters()}
    assert names == {"synthesis": True, "generation": True, "flow": False, "example": False}
    assert all((id(p) in moving) == names[name.split(".")[0]] for name, p in model.named_parameters())


def test_faces(puppet, people):
    model = loud(tiny(conditioning="face"))
    assert model.maps == 3
    window = poses(puppet.track(puppet.body(), details=True).scaled(SIZE[::-1]))
    condition = model.condition(window, SIZE)
    assert condition.maps.shape == (1, 3, *SIZE)
    assert condition.maps.max() > 0.5
    lost = window._replace(face=torch.full_like(window.face, torch.nan))
    assert model.condition(lost, SIZE).maps.abs().max() == 0
    with torch.inference_mode():
        frame, _ = model(condition, model.encode(people), None)
    assert frame.rgb.isfinite().all()


@pytest.fixture
def street() -> tuple[References, list[Labels]]:
    """Two pictures of a street with their label maps of four classes, and label maps to draw."""
    torch.manual_seed(3)
    palette = torch.rand(5, 3) * 2 - 1
    none = torch.full((1, 2, 33, 4), torch.nan), torch.full((1, 2, 468, 3), torch.nan), torch.zeros(1, 2, 2, 21, 3)

    def labels(count: int) -> Tensor:
        return F.interpolate(torch.randint(0, 5, (1, count, 6, 5)).float(), SIZE, mode="nearest").to(torch.uint8)

    shown = labels(2)
    rgb = palette[shown.long()].movedim(-1, 2)
    known = References(rgb, torch.ones(1, 2, 1, *SIZE), Poses(*none, SIZE), rgb[:, 0], labels=Labels(shown))
    return known, [Labels(labels(1)) for _ in range(3)]


def test_label_maps(street):
    known, maps = street
    model = loud(tiny(conditioning="labels", classes=4))
    assert model.maps == 4
    condition = model.condition(maps[0], SIZE)
    assert condition.maps.shape == (1, 4, *SIZE)
    classes = maps[0].classes[0, 0].long()
    for n in range(4):
        assert torch.equal(condition.maps[0, n].bool(), classes == n)
    assert condition.maps[0][:, classes == 4].abs().max() == 0  # a class that is none
    identity = model.encode(known)
    assert identity.pictures.shape == (1, 2, 3, *SIZE)
    state = None
    with torch.inference_mode():
        for label in maps:
            frame, state = model(model.condition(label, SIZE), identity, state)
    assert frame.rgb.shape == (1, 3, *SIZE)
    assert frame.matte.min() == 1  # the scene is all there is
    assert model.before(identity, torch.zeros(1, 3, 4, 4)) is identity
    half = model.condition(maps[0], (SIZE[0] // 2, SIZE[1] // 2)).maps
    assert torch.equal(half.sum(1) > 0, (classes < 4)[None, ::2, ::2])


def test_poses_are_no_label_maps(street, people, windows):
    _, maps = street
    with pytest.raises(ValueError, match="from pose, not from Labels"):
        tiny().condition(maps[0], SIZE)
    model = tiny(conditioning="labels")
    with pytest.raises(ValueError, match="from labels, not from Poses"):
        model.condition(windows[0], SIZE)
    with pytest.raises(ValueError, match="no label maps"):
        model.encode(people)


def test_a_street_can_be_learned(street):
    known, maps = street
    model = tiny(conditioning="labels", classes=4, example=False)
    palette = known.rgb.new_tensor([[0.5, -0.5, 0], [-0.5, 0.5, 0.5], [0, 0, -0.8], [0.8, 0.8, 0.2], [0, 0, 0]])
    truth = series([Frame(palette[m.classes[:, 0].long()].movedim(-1, 1)) for m in maps])
    conditions = series([model.condition(m, SIZE) for m in maps])
    losses = learned(model, Batch(conditions, model.encode(known), None, truth), steps=40)
    assert losses[-1] < 0.5 * losses[0]


# ------------------------------------------------------------------------------------------------ learning


def learned(
    model: FewShotVid2Vid, pair: Batch, steps: int, *, critics: bool = False, rate: float = 4e-3
) -> list[float]:
    """The content loss of each step on one pair."""
    objective, losses = model.objective(critics=critics), []
    how = FitOptions(steps=steps, rate=rate, batch=1, decay=0)
    fit(
        model, objective, iter([pair] * steps), parameters=list(model.parameters()), compute=CPU, options=how,
        on_step=lambda _, f: losses.append(f["content"]),
    )  # fmt: skip
    return losses


@pytest.fixture
def sequence(puppet, people, bodies, windows):
    def made(model: FewShotVid2Vid, count: int) -> Batch:
        """A pair of `count` frames in a row, which show the person in a plain colour."""
        conditions = series([model.condition(w, SIZE) for w in windows[:count]])
        frames = []
        for t in range(count):
            matte = resized(torch.from_numpy(puppet.matte(bodies[t]))[None, None], SIZE)
            colour = torch.tensor([0.8, -0.5, -0.8]).view(1, 3, 1, 1)
            frames.append(Frame(torch.lerp(people.plate, colour.expand_as(people.plate), matte), matte))
        return Batch(conditions, model.encode(people), None, series(frames))

    return made


@pytest.mark.parametrize(("critics", "steps", "rate"), [(False, 36, 4e-3), (True, 24, 1e-2)])
def test_a_sequence_can_be_learned_by_heart(sequence, critics, steps, rate):
    model = tiny()
    losses = learned(model, sequence(model, 2), steps, critics=critics, rate=rate)
    assert losses[-1] < 0.6 * losses[0]


def test_batch_normalisation_and_spectral_norms_learn_too(sequence):
    model = tiny(norm="batch", spectral=True, fold=1, hinge=True)
    losses = learned(model, sequence(model, 1), steps=12, rate=1e-2)
    assert losses[-1] < 0.8 * losses[0]


def test_flow_is_learned_from_warped_pictures(people, windows):
    """Somebody who slides to the right: W finds the flow, though nobody tells it."""
    model = tiny(example=False)
    rgb, matte = people.rgb[:, 0], people.matte[:, 0]
    shift = [Frame(rgb.roll(2 * t, 3), matte.roll(2 * t, 3)) for t in range(2)]
    maps = model.condition(windows[0], SIZE)
    conditions = series([maps._replace(maps=maps.maps.roll(2 * t, 3)) for t in range(2)])
    pair = Batch(conditions, model.encode(people), None, series(shift))
    learned(model, pair, steps=60)
    model.train()
    with torch.no_grad():
        flow = rollout(model, pair.condition, pair.identity, None, 2).extra.flow[:, 1, 0]
    on_person = shift[1].matte[0, 0] > 0.9
    assert -3 < flow[0][on_person].median() < -1  # where it was two pixels further left


def test_varied_pairs_stay_true(sequence):
    model = tiny()
    pair = sequence(model, 2)
    pair = pair._replace(truth=Frame(pair.identity.pictures[:, :2, :3], pair.identity.pictures[:, :2, 3:]))
    flipped = 0
    for seed in range(8):
        varied = model.varied(pair, torch.Generator().manual_seed(seed))
        # The truth is the first two examples, and still is; colours keep to their matte.
        torch.testing.assert_close(varied.identity.pictures[:, :2, 3:], varied.truth.matte)
        ahead = varied.identity.pictures
        assert ((ahead[:, :, :3] + ahead[:, :, 3:]).min()) > -1e-5
        assert varied.truth.rgb.shape == pair.truth.rgb.shape
        mirrored = not torch.equal(varied.truth.matte, pair.truth.matte)
        flipped += mirrored
        if mirrored:
            torch.testing.assert_close(varied.truth.matte, pair.truth.matte.flip(-1))
            torch.testing.assert_close(varied.condition.maps[:, :, 2], pair.condition.maps[:, :, 3].flip(-1))
    assert 0 < flipped < 8


def test_a_past_fits_into_a_file(people, windows):
    model = loud(tiny())
    with torch.inference_mode():
        _, state = model(model.condition(windows[0], SIZE), model.encode(people), None)
    assert model.packed(None) == {}
    assert model.unpacked({}) is None
    back = model.unpacked(model.packed(state))
    assert isinstance(back, Past)
    assert torch.equal(back.pictures, state.pictures)
    assert torch.equal(back.maps, state.maps)
    assert replace(model.config) == model.config
