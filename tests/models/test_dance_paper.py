"""`dance-paper` against what Dance Dance Generation states: layers, inputs, losses, and what is put where."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retarget.device import Compute
from retarget.heatmaps import pose_maps
from retarget.models import build
from retarget.models.base import Batch, Frame, Poses, References, stacked
from retarget.models.critics import Critics
from retarget.models.dance_paper import (
    GREEN,
    STAGES,
    DancePaper,
    DancePaperConfig,
    DancePaperObjective,
    PaperPerson,
    PaperWeights,
    Seen,
    chroma_key,
    feathered,
    nearest,
    on_green,
    transformed,
)
from retarget.models.layers import GlobalGenerator, LocalEnhancer
from retarget.models.losses import (
    feature_matching,
    gradient_penalty,
    relativistic_critic,
    relativistic_generator,
)
from retarget.models.parsing import Parser
from retarget.references import arrays, poses, references
from retarget.skeleton import MIRROR_PART
from retarget.training.fit import FitOptions, fit

SMALL: dict[str, Any] = {"side": 64, "width": 4, "downs": 2, "blocks": 1, "enhancer": 1, "scales": 1}
SIZE = (160, 128)
STANDING, WAVING = {"left": (25, 25), "right": (25, 25)}, {"left": (150, 165), "right": (60, 20)}


@pytest.fixture
def model() -> DancePaper:
    torch.manual_seed(0)
    return DancePaper(**SMALL).eval()


@pytest.fixture(scope="module")
def known(puppet) -> References:
    return references(arrays(puppet.gathered(puppet.body(**STANDING), puppet.body(**WAVING), details=True)))


def window(puppet, *bodies: np.ndarray) -> Poses:
    return poses(puppet.track(*bodies, details=True))


def filmed(puppet, body: np.ndarray, known: References) -> Frame:
    matte = torch.from_numpy(puppet.matte(body))[None, None]
    cloth = torch.from_numpy(puppet.cloth(0)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return Frame(matte * cloth + (1 - matte) * known.plate, matte)


@pytest.fixture
def pair(model, known, puppet) -> Batch:
    """One pair as training sees it."""
    body = puppet.body(left=(90, 90))
    condition = model.condition(window(puppet, body), SIZE)
    return Batch(*model.ahead(condition, model.encode(known), filmed(puppet, body, known))[:2], None, Frame(
        *model.ahead(condition, model.encode(known), filmed(puppet, body, known))[2][:2]
    ))  # fmt: skip


# ------------------------------------------------------------------------------------------------ architecture (§4.2)


def on_meta(preset: str, **config: Any) -> DancePaper:
    with torch.device("meta"):
        model = build("dance-paper", config, preset)
    assert isinstance(model, DancePaper)
    return model


def widths(net: nn.Module) -> list[tuple[int, int, int]]:
    """Inputs, outputs and kernel of each convolution, first to last."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in net.modules() if isinstance(m, kinds)]


def test_the_papers_two_scales():
    model = on_meta("paper")
    assert model.config == DancePaperConfig(side=512, width=32, downs=4, blocks=9, enhancer=3, window=3, scales=3)
    for net in (model.synthesis, model.fusion):
        assert isinstance(net, LocalEnhancer)  # G, for 512 pixels
        assert isinstance(net.coarse, GlobalGenerator)  # g, for 256
    first = on_meta("paper", enhancer=0, side=256, scales=2)
    assert isinstance(first.synthesis, GlobalGenerator)
    assert len(first.objective().critics["fusion"].critics) == 2
    assert len(model.objective().critics["fusion"].critics) == 3


@pytest.mark.parametrize("name", STAGES)
def test_half_the_activation_maps_of_pix2pixhd(name):
    net = getattr(on_meta("paper"), name)
    inputs = widths(net)[0][0]
    with torch.device("meta"):
        original = LocalEnhancer(GlobalGenerator(inputs, 0, 64), inputs)
    pairs = list(zip(widths(net), widths(original), strict=True))
    assert len(pairs) == 37  # g: 1 + 4 + 18 + 4; g̃: 2 + 6 + 1, and the picture
    for ours, theirs in pairs:
        assert ours[2] == theirs[2]
        assert ours[1] == (theirs[1] if theirs[1] == 3 else theirs[1] / 2)


def test_parameters_by_hand():
    """Convolutions with biases, instance normalisation without parameters."""

    def conv(a: int, b: int, kernel: int) -> int:
        return a * b * kernel**2 + b

    def residual(c: int) -> int:
        return 2 * conv(c, c, 3)

    def expected(inputs: int) -> int:
        g = conv(inputs, 32, 7) + sum(conv(32 << i, 64 << i, 3) + conv(64 << i, 32 << i, 3) for i in range(4))
        g += 9 * residual(512)
        around = conv(inputs, 16, 7) + conv(16, 32, 3) + 3 * residual(32) + conv(32, 16, 3) + conv(16, 3, 7)
        return g + around

    model = on_meta("paper")
    counts = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in STAGES}
    assert counts == {"synthesis": expected(75), "fusion": expected(48)}
    assert counts == {"synthesis": 45_854_979, "fusion": 45_791_475}
    small = sum(p.numel() for p in on_meta("small").parameters())
    assert small < 3_000_000


def test_what_the_nets_are_shown(model):
    """(10 + 5) K maps with K = 3; T has 3 · 10 channels; the fusion net sees I_comb and the maps (§3.1 to §3.4)."""
    assert model.maps == (10 + 5) * 3
    assert widths(model.synthesis)[0][0] == widths(model.synthesis.coarse)[0][0] == 3 * 10 + 45
    assert widths(model.fusion)[0][0] == 3 + 45
    critics = model.objective().critics
    assert set(critics) == set(STAGES)
    for stage in STAGES:
        assert isinstance(critics[stage], Critics)
        # D(x, p); its first layer has half the original's 64 maps.
        assert widths(critics[stage])[0] == (3 + 45, 32, 4)


@pytest.mark.parametrize("config", [{"width": 5}, {"enhancer": -1}, {"side": 8}, {"blocks": 1.5}, {"scales": 0}])
def test_sizes_that_cannot_be(config):
    ((name, _),) = config.items()
    with pytest.raises(ValueError, match=name):
        DancePaper(**config)


# ------------------------------------------------------------------------------------------------ poses (§3.2)


def test_three_poses_are_stacked_the_current_one_last(model, puppet):
    bodies = [puppet.body(left=(a, a)) for a in (20, 60, 100, 140)]
    track = puppet.track(*bodies, details=True)
    small = (80, 64)
    alone = [
        pose_maps(*(t[:, 0] for t in poses(track.select([i]))[:3]), small, picture=SIZE) for i in range(len(bodies))
    ]
    whole = model.condition(poses(track), SIZE)
    torch.testing.assert_close(whole.maps, torch.cat(alone[1:], 1))
    # One after the other, as a video is drawn: at its start the first one is repeated.
    condition = None
    for i, before in enumerate(([0, 0], [0, 0], [0, 1], [1, 2])):
        condition = model.condition(poses(track.select([i])), SIZE, condition)
        torch.testing.assert_close(condition.maps, torch.cat([alone[j] for j in (*before, i)], 1))


# ------------------------------------------------------------------------------------------------ parts (§3.1)


def segments(*ends: tuple[float, float, float, float]) -> torch.Tensor:
    """Line segments of ten parts, x0, y0, x1, y1 in heights; those not given are unknown."""
    out = torch.full((10, 2, 2), math.nan)
    for i, (x0, y0, x1, y1) in enumerate(ends):
        out[i] = torch.tensor([[x0, y0], [x1, y1]])
    return out


def blob(x: float, y: float, size: tuple[int, int] = (80, 60)) -> torch.Tensor:
    """(H, W): a soft spot at x, y in heights."""
    down, right = torch.meshgrid(*((torch.arange(n) + 0.5) / size[0] for n in size), indexing="ij")
    return torch.exp(-((right - x) ** 2 + (down - y) ** 2) / (2 * 0.05**2))


def centre(picture: torch.Tensor) -> tuple[float, float]:
    h, w = picture.shape
    total = picture.sum()
    return (
        float((picture * (torch.arange(w) + 0.5)).sum() / total / h),
        float((picture.sum(1) * (torch.arange(h) + 0.5)).sum() / total / h),
    )


def test_each_part_follows_its_own_line_segment():
    """Turned by 90 degrees, moved, and enlarged by a half; into a picture of another size."""
    rgb = torch.rand(3, 80, 60) / 2 + 0.5
    masks = torch.zeros(10, 80, 60)
    masks[0], masks[1] = blob(0.2, 0.3), blob(0.5, 0.6)
    source = segments((0.2, 0.2, 0.2, 0.4), (0.4, 0.6, 0.6, 0.6))
    target = segments((0.5, 0.5, 0.2, 0.5), (0.3, 0.2, 0.5, 0.2))
    moved = transformed(rgb, masks, source, target, (160, 120)).view(10, 3, 160, 120)
    flat = transformed(torch.ones_like(rgb), masks, source, target, (160, 120)).view(10, 3, 160, 120)
    # Down the segment by a half: from 0.5 to 0.2, to the left.
    assert centre(flat[0, 0]) == pytest.approx((0.35, 0.5), abs=0.01)
    assert centre(flat[1, 0]) == pytest.approx((0.4, 0.2), abs=0.01)
    # Areas: pixels are half as wide.
    assert float(flat[0, 0].sum() / masks[0].sum()) == pytest.approx(4 * 1.5**2, rel=0.03)
    assert float(flat[1, 0].sum() / masks[1].sum()) == pytest.approx(4, rel=0.03)
    assert moved[2:].abs().max() == 0
    assert (moved <= flat + 1e-6).all()


def test_a_part_that_stays_is_left_as_it_is():
    rgb, masks = torch.rand(3, 40, 30), torch.rand(10, 40, 30)
    same = segments(*[(0.1 + 0.05 * i, 0.2, 0.3, 0.5 + 0.03 * i) for i in range(10)])
    moved = transformed(rgb, masks, same, same, (40, 30)).view(10, 3, 40, 30)
    torch.testing.assert_close(moved, masks[:, None] * rgb, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [0.0, 1e-4, 0.2])
def test_a_limb_that_points_at_the_camera_stays_finite(length):
    masks = torch.zeros(10, 80, 60)
    masks[0] = blob(0.3, 0.5)
    short = segments((0.3, 0.5, 0.3, 0.5 + length))
    long = segments((0.3, 0.3, 0.3, 0.9))
    for source, target in ((short, long), (long, short)):
        moved = transformed(torch.ones(3, 80, 60), masks, source, target, (80, 60))
        assert moved.isfinite().all()
        assert moved.min() >= 0
        assert moved.max() <= 1 + 1e-5


def test_parts_are_those_of_the_pose(model, known, puppet):
    """T, laid over each other, is the person in the driving pose."""
    body = puppet.body(left=(70, 70), right=(25, 25))
    seen = model._seen(model.condition(window(puppet, body), SIZE), model.encode(known))
    assert seen.parts.shape == (1, 30, 80, 64)
    assert seen.parts.min() >= 0
    assert seen.parts.max() <= 1
    cover = (seen.parts[0].amax(0) > 0.05).float()
    there = F.avg_pool2d(torch.from_numpy(puppet.matte(body))[None, None], 2)[0, 0] > 0.5
    assert (cover.bool() & there).sum() / (cover.bool() | there).sum() > 0.8


def test_hands_and_feet_belong_to_their_limbs(model, known, puppet):
    (person,) = model.encode(known)
    assert person.masks.shape == (2, 10, 80, 64)
    matte = F.avg_pool2d(known.matte[0], 2)[:, 0]
    assert ((person.masks.sum(1) > 0.4) & (matte > 0.6)).sum() / (matte > 0.6).sum() > 0.97
    foot = puppet.body(**STANDING)[31, :2] / 2  # of the left foot
    assert person.masks[0, 8, int(foot[1]), int(foot[0])] > 0.5


# ----------------------------------------------------------------------------------------------- the input frame (§4.3)


def test_the_reference_with_the_nearest_pose_is_moved(model, known, puppet):
    (person,) = model.encode(known)
    for k, angles in enumerate((STANDING, WAVING)):
        near = {side: tuple(a + 10 for a in pair) for side, pair in angles.items()}
        # Elsewhere, and smaller: distances are normalised.
        pose = model.condition(window(puppet, puppet.body(**near, scale=50, at=(40, 60))), SIZE)
        assert nearest(pose.keypoints[0], person.keypoints) == k
        seen = model._seen(pose, (person,))
        alone = PaperPerson(*(t[k : k + 1] for t in person[:4]), person.plate)
        torch.testing.assert_close(seen.parts, model._seen(pose, (alone,)).parts)


def test_key_points_that_were_not_found_do_not_count():
    pose = torch.rand(17, 2)
    other = pose * 3 + 1
    other[5] += 0.2
    refs = torch.stack([other, pose * 2 - 4])
    assert nearest(pose, refs) == 1
    refs[1, :6] = math.nan
    assert nearest(pose, refs) == 1
    refs[1] = math.nan
    assert nearest(pose, refs) == 0
    assert nearest(torch.full((17, 2), math.nan), refs) == 0


def test_fine_tuning_draws_each_truth_from_single_frames(model):
    assert model.sources == 1


# ------------------------------------------------------------------------------------------------ green (§3.3, Eq. 2)


def test_the_truth_of_the_synthesis_net_is_on_green():
    rgb = torch.rand(1, 3, 4, 4) * 2 - 1
    matte = torch.zeros(1, 1, 4, 4)
    matte[..., :2, :], matte[..., 2, :], matte[..., 3, :] = 1, 0.6, 0.4
    shown = on_green(rgb, matte)
    torch.testing.assert_close(shown[..., :3, :], rgb[..., :3, :])  # a binary mask
    assert (shown[..., 3, :] == torch.tensor(GREEN).view(1, 3, 1)).all()


@pytest.mark.parametrize(
    ("rgb", "person"),
    [
        (GREEN, 0), ((-0.8, 0.9, -0.7), 0), ((1, 1, 1), 1), ((-1, -1, -1), 1), ((0.6, 0.1, -0.2), 1),
        ((-0.5, 0.2, -0.6), 1), ((0.1, 1, 0), 1), ((-0.2, 0.9, -0.3), 0),
    ],
)  # fmt: skip
def test_the_key_tells_green_from_a_person(rgb, person):
    assert chroma_key(torch.tensor(rgb).view(1, 3, 1, 1)).item() == person


def test_a_feathered_key_stays_within_the_key():
    key = torch.zeros(1, 1, 20, 20)
    key[..., 5:15, 5:15] = 1
    soft = feathered(key)
    assert (soft <= key).all()
    assert (soft[..., 8:12, 8:12] == 1).all()
    assert ((soft > 0) & (soft < 1)).sum() > 20
    assert (feathered(torch.ones(1, 1, 6, 6)) == 1).all()  # up to the border


def test_the_fusion_net_sees_eq_2(model, known, puppet, pair):
    given = {}
    hooks = [
        getattr(model, s).register_forward_hook(lambda _, x, out, s=s: given.update({s: (x[0], out)})) for s in STAGES
    ]
    frame, _ = model(pair.condition, None, None)
    for hook in hooks:
        hook.remove()
    shown, drawn = given["synthesis"]
    torch.testing.assert_close(shown, torch.cat([pair.condition.parts, pair.condition.maps], 1))
    key = chroma_key(drawn)
    combined = key * drawn + (1 - key) * (2 * pair.condition.plate - 1)
    torch.testing.assert_close(given["fusion"][0], torch.cat([combined, pair.condition.maps], 1))
    torch.testing.assert_close(frame.rgb, given["fusion"][1])
    torch.testing.assert_close(frame.extra, drawn)
    torch.testing.assert_close(frame.matte, feathered(key))


class Painted(nn.Module):
    """A net whose answer is known."""

    def __init__(self, picture: torch.Tensor) -> None:
        super().__init__()
        self.picture = picture

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.picture, x.shape[2:]).expand(len(x), -1, -1, -1)


def test_before_another_scene_the_person_is_laid_over_it(model, known, puppet):
    """§4.3: without the fusion net, with a blurred border."""
    person = torch.tensor(GREEN).view(1, 3, 1, 1).repeat(1, 1, 80, 64)
    person[..., 20:60, 20:40] = 0.3
    model.synthesis = Painted(person)
    condition = model.condition(window(puppet, puppet.body()), SIZE)
    identity = model.encode(known)
    scene = torch.rand(1, 3, 320, 256) * 2 - 1
    own, away = (model(condition, i, None)[0] for i in (identity, model.before(identity, scene)))
    assert away.rgb.shape == (1, 3, *SIZE)
    matte = away.matte[0, 0]
    behind = F.avg_pool2d(scene, 2)[0]
    torch.testing.assert_close(away.rgb[0][:, matte == 0], behind[:, matte == 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(away.rgb[0][:, matte == 1], torch.full_like(behind, 0.3)[:, matte == 1])
    assert matte[50:110, 46:74].min() == 1
    assert 0.12 < matte.mean() < 40 * 20 / (80 * 64)
    assert (own.rgb - away.rgb).abs().mean() > 0.1
    assert torch.equal(own.matte, away.matte)
    # No green anywhere but in the scene.
    edge = (matte > 0) & (matte < 1)
    low, high = torch.minimum(behind, torch.tensor(0.3)), torch.maximum(behind, torch.tensor(0.3))
    assert (away.rgb[0][:, edge] >= low[:, edge] - 1e-4).all()
    assert (away.rgb[0][:, edge] <= high[:, edge] + 1e-4).all()


# ------------------------------------------------------------------------------------------------ drawing


@pytest.mark.parametrize("size", [SIZE, (97, 75), (40, 32), (24, 17)])
def test_pictures_of_any_size(model, known, puppet, size):
    condition = model.condition(window(puppet, puppet.body()), size)
    with torch.inference_mode():
        frame, state = model(condition, model.encode(known), None)
    assert state is None
    assert frame.rgb.shape == (1, 3, *size)
    assert frame.matte.shape == (1, 1, *size)
    assert frame.rgb.isfinite().all()
    assert frame.rgb.abs().max() <= 1
    assert 0 <= frame.matte.min() <= frame.matte.max() <= 1
    assert min(frame.extra.shape[2:]) == min(*size, 64)


def test_whoever_is_not_found_is_not_moved(model, known, puppet):
    nobody = window(puppet, puppet.body())
    for t in nobody[:3]:
        t[:] = torch.nan
    condition = model.condition(nobody, SIZE)
    assert condition.maps.abs().max() == 0
    seen = model._seen(condition, model.encode(known))
    assert seen.parts.abs().max() == 0
    assert model(condition, model.encode(known), None)[0].rgb.isfinite().all()


def test_several_people_in_one_batch(model, known, puppet):
    other = known._replace(rgb=-known.rgb, plate=known.plate * 0.5)
    bodies = [puppet.body(**STANDING), puppet.body(**WAVING)]
    windows = Poses(*(torch.cat([poses(puppet.track(b, details=True))[i] for b in bodies]) for i in range(3)), SIZE)
    people = (*model.encode(known), *model.encode(other))
    with torch.inference_mode():
        both, _ = model(model.condition(windows, SIZE), people, None)
        for b, body in enumerate(bodies):
            alone, _ = model(model.condition(window(puppet, body), SIZE), people[b : b + 1], None)
            torch.testing.assert_close(both.rgb[b : b + 1], alone.rgb, atol=1e-4, rtol=1e-4)


def test_what_is_drawn_ahead_gives_the_same_picture(model, known, puppet):
    body = puppet.body(left=(90, 90))
    condition, identity = model.condition(window(puppet, body), (80, 64)), model.encode(known)
    truth = filmed(puppet, body, known)
    seen, nobody, true = model.ahead(condition, identity, truth)
    assert nobody is None
    assert true.rgb.shape == (1, 3, 80, 64)
    for t in seen:
        assert 0 <= t.min() <= t.max() <= 1
    with torch.inference_mode():
        now, ahead = model(condition, identity, None)[0], model(seen, None, None)[0]
    torch.testing.assert_close(now.rgb, ahead.rgb)
    torch.testing.assert_close(now.matte, ahead.matte)
    two = stacked([Batch(seen, None, None, true)] * 2)
    assert model(two.condition, None, None)[0].rgb.shape == (2, 3, 80, 64)


def test_varied_pairs_are_still_pairs(model, pair):
    """Mirrored: each part where its mirror image was; colours changed alike in parts, scene and truth."""
    found = set()
    for seed in range(12):
        other = model.varied(pair, torch.Generator().manual_seed(seed))
        seen = other.condition
        mirrored = not torch.allclose(seen.maps, pair.condition.maps)
        found.add(mirrored)
        back = [x.flip(3) if mirrored else x for x in (*seen, other.truth.rgb)]
        cover = pair.condition.parts.view(10, 3, 80, 64).amax(1) > 0
        order = list(MIRROR_PART[:10]) if mirrored else list(range(10))
        assert torch.equal(back[1].view(10, 3, 80, 64).amax(1) > 0, cover[order])
        # The same gain for both: plate and truth agree where nobody stands.
        empty = (pair.truth.matte == 0).expand_as(pair.truth.rgb)
        torch.testing.assert_close((2 * back[2] - 1)[empty], back[3][empty], atol=1e-5, rtol=0)
        assert other.truth.rgb.abs().max() <= 1 + 1e-6
    assert found == {True, False}


# ----------------------------------------------------------------------------------------------- objective (§3.5, §4.2)


def test_the_papers_weights():
    w = PaperWeights()
    assert (w.w_rela, w.w_gp, w.w_fm, w.w_vgg, w.w_sp, w.w_s) == (1, 10, 10, 10, 10, 0.01)


class FakeVGG(nn.Module):
    def forward(self, rgb: torch.Tensor) -> list[torch.Tensor]:
        return [rgb, 2 * rgb[:, :1], *[rgb] * 3]


class FakeParser(Parser):
    def features(self, rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rgb, 100 * rgb


def test_eq_8_for_each_net_by_hand():
    """x is 0 and 0.5, y is -0.5 (whole) and green or -0.5 (person): every term from its own formula."""
    x, y, maps = torch.zeros(2, 3, 32, 32), torch.full((2, 3, 32, 32), -0.5), torch.rand(2, 45, 32, 32)
    matte = torch.zeros(2, 1, 32, 32)
    matte[..., :16] = 1
    frame, truth = Frame(x + 0.5, matte, x), Frame(y, matte)
    condition = Seen(maps, torch.zeros(0), torch.zeros(0))
    torch.manual_seed(0)
    objective = DancePaperObjective(45, scales=2, vgg=FakeVGG(), parser=FakeParser(4, 2))
    terms = objective.generator_loss(frame, truth, condition)
    drawn = {"synthesis": (x, on_green(y, matte)), "fusion": (x + 0.5, y)}
    assert len(terms) == 8
    for stage, (fake, real) in drawn.items():
        critic = objective.critics[stage]
        far = float((fake - real).abs().mean())
        red = float((fake - real)[:, :1].abs().mean())
        assert terms[f"{stage}_perceptual"].item() == pytest.approx(10 * (4 * far + 2 * red))
        assert terms[f"{stage}_parsing"].item() == pytest.approx(10 * (far + 0.01 * 100 * far))
        a, b = critic(real, maps), critic(fake, maps)
        scores = [[layers[-1] for layers in side] for side in (a, b)]
        torch.testing.assert_close(terms[f"{stage}_adversarial"], relativistic_generator(*scores))
        torch.testing.assert_close(terms[f"{stage}_feature"], 10 * feature_matching(a, b))
    assert terms["fusion_perceptual"].item() == pytest.approx(60)
    torch.manual_seed(5)
    against = objective.critic_loss(frame, truth, condition)
    torch.manual_seed(5)
    assert len(against) == 4
    for stage, (fake, real) in drawn.items():

        def judged(rgb, critic=objective.critics[stage]):
            return [layers[-1] for layers in critic(rgb, maps)]

        torch.testing.assert_close(against[f"{stage}_critic"], relativistic_critic(judged(real), judged(fake)))
        torch.testing.assert_close(against[f"{stage}_penalty"], 10 * gradient_penalty(judged, real, fake))


def test_without_critics_a_difference_takes_their_place(model):
    objective = model.objective(critics=False)
    assert objective.critic_parameters() == []
    y = torch.full((1, 3, 8, 8), -0.5)
    matte = torch.ones(1, 1, 8, 8)
    terms = objective.generator_loss(Frame(y + 0.3, matte, y + 0.1), Frame(y, matte), None)
    assert {k: round(float(v), 5) for k, v in terms.items()} == {"synthesis_difference": 1.0, "fusion_difference": 3.0}
    assert objective.critic_loss(Frame(y, matte, y), Frame(y, matte), None) == {}


def test_what_judges_does_not_learn(model, pair):
    parser = Parser(4, 2)
    objective = model.objective(parser=parser)
    moved = {id(p) for p in objective.critic_parameters()}
    assert not any(id(p) in moved or p.requires_grad for p in parser.parameters())
    for stage in STAGES:
        assert all(id(p) in moved for p in objective.critics[stage].parameters())
    # Files of weights keep the critics by this beginning of their names.
    assert {k.split(".")[0] for k in objective.state_dict()} == {"critics", "parser"}


def test_both_nets_learn_jointly(model, pair):
    """The fusion net's loss reaches the synthesis net where its person is used, and no critic learns from it."""
    objective = model.objective()
    frame, _ = model.train()(pair.condition, None, None)
    terms = objective.generator_loss(frame, pair.truth, pair.condition)
    sum(v for k, v in terms.items() if k.startswith("fusion")).backward()
    assert model.synthesis.before[1].weight.grad.abs().sum() > 0
    assert model.fusion.before[1].weight.grad.abs().sum() > 0
    model.zero_grad()
    sum(objective.critic_loss(model(pair.condition, None, None)[0], pair.truth, pair.condition).values()).backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in objective.critics.parameters())


# ------------------------------------------------------------------------------------------------ learning


def test_g_grows_into_the_whole_generator(model):
    """§4.2: g is trained first, then G around it."""
    torch.manual_seed(3)
    first = DancePaper(**SMALL | {"enhancer": 0, "side": 32})
    grown = model.grown(first.state_dict(), first.config)
    missing, unexpected = model.load_state_dict(grown, strict=False)
    assert unexpected == []
    assert missing
    assert not any(".coarse." in key for key in missing)
    x = torch.rand(1, 75, 32, 32)
    torch.testing.assert_close(model.synthesis.coarse.features(x), first.synthesis.features(x))
    assert model.grown(model.state_dict(), model.config) is None
    assert first.grown(first.state_dict(), first.config) is None
    other = DancePaper(**SMALL | {"enhancer": 0, "width": 8})
    assert model.grown(other.state_dict(), other.config) is None


def fitted(known: References, puppet, steps: int, critics: bool) -> tuple[float, float, list[dict[str, float]]]:
    """How far a small model is from a pair's two truths before and after some steps; the losses."""
    torch.manual_seed(0)
    model = DancePaper(**SMALL | {"side": 32, "width": 12})
    body = puppet.body(left=(90, 90))
    drawn = model.ahead(
        model.condition(window(puppet, body), SIZE), model.encode(known), filmed(puppet, body, known)
    )  # fmt: skip
    pair = Batch(drawn[0], None, None, drawn[2])

    def far() -> float:
        with torch.inference_mode():
            frame, _ = model.eval()(pair.condition, None, None)
        green = on_green(pair.truth.rgb, pair.truth.matte)
        return float(F.l1_loss(frame.rgb, pair.truth.rgb) + F.l1_loss(frame.extra, green))

    before, lines = far(), []
    result = fit(
        model, model.objective(critics=critics), iter([pair] * steps), parameters=model.tunable(None),
        compute=Compute(torch.device("cpu"), torch.float32), options=FitOptions(steps, 2e-3, decay=0),
        on_step=lambda _, figures: lines.append(figures),
    )  # fmt: skip
    assert result.steps == steps
    assert not result.notes
    return before, far(), lines


def test_it_learns_a_pair(known, puppet):
    """To a third of the difference that it began with."""
    before, after, lines = fitted(known, puppet, 60, critics=False)
    assert after < before / 3
    assert lines[-1]["loss"] < lines[0]["loss"] / 3


def test_it_learns_against_critics(known, puppet):
    torch.manual_seed(0)
    _, _, lines = fitted(known, puppet, 8, critics=True)
    assert lines[-1]["synthesis_feature"] < lines[0]["synthesis_feature"]
    # Critic and generator chase each other: which of them is ahead at one step differs between processors.
    assert sum(line["fusion_critic"] for line in lines[1:6]) / 5 < lines[0]["fusion_critic"]
    assert all(math.isfinite(v) for line in lines for v in line.values())


def test_fine_tuning_moves_everything(model):
    assert {id(p) for p in model.tunable(None)} == {id(p) for p in model.parameters()}
