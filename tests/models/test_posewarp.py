"""`posewarp`: MetaPix's second base, on made-up people: limbs whose places are known exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from retarget import device
from retarget.errors import UsageError
from retarget.lessons import Lessons, adapt
from retarget.models import build
from retarget.models import posewarp as module
from retarget.models.base import Batch, Frame, Poses, References, stacked
from retarget.models.losses import content_loss, matte_loss
from retarget.models.posewarp import (
    ACROSS,
    ACROSS_TORSO,
    CONVOLUTIONS,
    DOT,
    FLOOR,
    JOINTS,
    LIMBS,
    MIRRORED,
    Pair,
    PairCritic,
    PoseUNet,
    Posewarp,
    PosewarpObjective,
    body_scale,
    heat_maps,
    joints_of,
    limb_priors,
    moved_limbs,
    similarities,
    vgg_loss,
)
from retarget.references import arrays, poses, references
from retarget.skeleton import MIRROR, J
from retarget.training import tasks
from retarget.training.fit import FitOptions

SIZE = (160, 128)
TINY: dict[str, Any] = {"width": 4}
POSES = ({}, {"left": (90, 80), "right": (30, 20)}, {"left": (20, 40), "right": (150, 165)})


@pytest.fixture
def model() -> Posewarp:
    torch.manual_seed(0)
    return Posewarp(**TINY).eval()


@pytest.fixture
def painter() -> Posewarp:
    """The paper's form."""
    torch.manual_seed(0)
    return Posewarp(**TINY | {"whole": True}).eval()


@pytest.fixture(scope="module")
def gathered(puppet) -> Any:
    return puppet.gathered(*(puppet.body(**p) for p in POSES))


@pytest.fixture(scope="module")
def known(gathered) -> References:
    return references(arrays(gathered))


@pytest.fixture
def window(puppet):
    def made(**pose: Any) -> Poses:
        return poses(puppet.track(puppet.body(**pose)))

    return made


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return (inputs * kernel * kernel + 1) * outputs


# ------------------------------------------------------------------------------------------------ architecture


def unet(inputs: int, outputs: int) -> int:
    """Parameters of the paper's U-Net: 64, 64 and nine times 128 channels down, four times 128 and `outputs` up."""
    down = conv(inputs, 64, 7) + conv(64, 64) + conv(64 + 14, 128) + 8 * conv(128, 128)
    return down + 4 * conv(128 + 128, 128) + conv(128 + 64, outputs)


def test_the_paper_has_three_unets_for_limbs_person_and_scene():
    with torch.device("meta"):
        model = build("posewarp", preset="paper")
        small = build("posewarp")
    assert count(model.segmentation) == unet(3, 32)
    assert count(model.person) == unet(30, 64)
    assert count(model.scene) == unet(4, 64)
    assert count(model.masks) == conv(32, 11)
    assert count(model) == unet(3, 32) + unet(30, 64) + unet(4, 64) + conv(32, 11) + 2 * conv(64, 3) + conv(64, 1)
    assert model.config.side == 256
    assert small.scene is None
    strided = [m.stride for m in model.person.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strided == [(2, 2)] * 5
    assert sum(isinstance(m, nn.Conv2d) for m in model.person.modules()) == 16
    assert not any("Norm" in type(m).__name__ for m in model.modules())
    assert {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


def test_the_papers_critic_ends_in_8_by_8_places():
    with torch.device("meta"):
        critic = build("posewarp", preset="paper").objective().critics
    convolutions = conv(3, 64, 5) + conv(64 + 28, 128, 5) + conv(128, 256) + 3 * conv(256, 256)
    assert count(critic) == convolutions + (8 * 8 * 256 + 1) * 256 + 257 * 256 + 257
    small = PairCritic(28, 4)
    sizes = []
    for layer in small.rest:
        layer.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    assert small(torch.zeros(2, 3, 256, 256), torch.zeros(2, 28, 128, 128)).shape == (2, 1)
    assert sizes[7] == (8, 8)  # after the last maximum: averaging to 8 × 8 changes nothing
    assert small(torch.zeros(1, 3, 75, 51), torch.zeros(1, 28, 38, 26)).shape == (1, 1)


@pytest.mark.parametrize("size", [(64, 32), (45, 71)])
def test_the_pose_joins_at_half_the_resolution(size):
    torch.manual_seed(0)
    net = PoseUNet(5, 4, 6)
    x, nobody = torch.randn(2, 5, *size), torch.full((2, 14, 3), torch.nan)
    somewhere = nobody.clone()
    somewhere[1] = torch.tensor([20.0, 20.0, 0.0])
    seen = []
    net.keep[0].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    without, there = net(x, nobody), net(x, somewhere)
    assert without.shape == (2, 6, *size)
    assert torch.equal(without[0], there[0])
    assert not torch.equal(without[1], there[1])
    assert seen[0].shape[1:] == (4 + 14, -(-size[0] // 32) * 16, -(-size[1] // 32) * 16)
    peak = seen[1][1, 4].flatten().argmax()
    assert divmod(int(peak), seen[1].shape[3]) in {(9, 9), (9, 10), (10, 9), (10, 10)}


@pytest.mark.parametrize("wrong", [{"width": 1}, {"width": 5}, {"whole": 2}, {"side": 8}, {"side": True}, {"depth": 3}])
def test_a_configuration_that_cannot_be(wrong):
    with pytest.raises(UsageError, match="There is no posewarp with"):
        build("posewarp", TINY | wrong)
    assert build("posewarp", TINY | {"whole": 1}).config == build("posewarp", TINY | {"whole": True}).config


# ------------------------------------------------------------------------------------------------ geometry


def test_the_papers_fourteen_joints(puppet):
    body = torch.from_numpy(puppet.body((90, 80), (30, 20)))
    joints = joints_of(body)
    for name in JOINTS[2:]:
        assert torch.equal(joints[JOINTS.index(name)], body[J[name], :3])
    torch.testing.assert_close(joints[1], (body[11, :3] + body[12, :3]) / 2)
    assert joints[0, 1] < body[:11, 1].min() - 0.03 * puppet.scale  # above the eyes
    assert float(body_scale(joints)) == pytest.approx(puppet.scale, rel=0.08)
    hidden = body.clone()
    hidden[J["left_wrist"], 3] = 0.1
    hidden[J["nose"]] = torch.nan
    lost = joints_of(hidden).isnan().any(1)
    assert lost.tolist() == [name == "left_wrist" for name in JOINTS]
    mirrored = body[list(MIRROR)] * torch.tensor([-1, 1, 1, 1])
    torch.testing.assert_close(joints_of(mirrored), joints[list(MIRRORED)] * torch.tensor([-1, 1, 1]))


def test_heat_maps(puppet):
    joints = joints_of(torch.from_numpy(puppet.body()))[None]
    joints[0, 4] = torch.nan
    maps = heat_maps(joints, (80, 64))
    assert maps.shape == (1, 14, 80, 64)
    assert maps[maps > 0].min() > 1e-12  # numbers next to nothing are slow
    sigma = DOT * float(body_scale(joints)) / 2
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for i in range(14):
        at = joints[0, i] / 2
        expected = torch.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2))
        torch.testing.assert_close(maps[0, i], expected.nan_to_num(0.0), atol=1e-5, rtol=1e-4)


def test_the_prior_of_a_limb_is_a_gaussian_along_its_bone(puppet):
    joints = joints_of(torch.from_numpy(puppet.body()))[None]
    metre = float(body_scale(joints))
    log = limb_priors(joints, SIZE)
    assert log.shape == (1, 10, *SIZE)
    for limb, points in enumerate(LIMBS):
        half = len(points) // 2
        a, b = (joints[0, list(p), :2].mean(0) for p in (points[:half], points[half:]))
        middle, along = (a + b) / 2, b - a
        length = float(along.norm())
        across = torch.stack([-along[1], along[0]]) / length
        width = metre * (ACROSS_TORSO if len(points) == 4 else ACROSS)
        y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
        away = torch.stack([x, y], -1) - middle
        expected = (away @ along / length) ** 2 / (length**2 / 1.5) + (away @ across) ** 2 / width**2
        torch.testing.assert_close(log[0, limb], -0.5 * expected, atol=1e-2, rtol=1e-4)
    joints[0, 4] = torch.nan
    assert (limb_priors(joints, SIZE)[0, 1] > -100).any()
    assert (limb_priors(joints, SIZE)[0, 2] == -1e4).all()


@pytest.mark.parametrize(("angle", "zoom"), [(0.0, 1.0), (0.6, 1.0), (-2.0, 1.7), (3.0, 0.4)])
def test_similarities_are_found_again(puppet, angle, zoom):
    target = joints_of(torch.from_numpy(puppet.body((60, 100), (20, 45))))[None]
    linear = zoom * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    source = target.clone()
    source[..., :2] = target[..., :2] @ linear.T + torch.tensor([5.0, -7.0])
    theta, known = similarities(target, source)
    assert known.all()
    torch.testing.assert_close(theta[0, :, :, :2], linear.expand(10, 2, 2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theta[0, :, :, 2], torch.tensor([5.0, -7.0]).expand(10, 2), atol=2e-2, rtol=1e-4)


def test_no_limb_grows_without_end_and_what_is_lost_is_not_moved(puppet):
    target = joints_of(torch.from_numpy(puppet.body()))[None]
    source = target.clone()
    target[0, 4] = target[0, 3] + 0.01  # the right forearm points at the camera
    source[0, 7] = torch.nan
    theta, known = similarities(target, source)
    assert theta.isfinite().all()
    assert known[0].tolist() == [limb != (6, 7) for limb in LIMBS]
    assert torch.linalg.matrix_norm(theta[0, 2, :, :2], 2) == pytest.approx(4, rel=1e-3)
    # All in one place: of unknown direction, but finite.
    assert similarities(torch.zeros(1, 14, 3), source)[0].isfinite().all()


def test_moved_limbs():
    torch.manual_seed(0)
    joints = torch.rand(1, 14, 3) * 20 + 20
    source = torch.rand(1, 4, 64, 48)
    masks = torch.rand(1, 10, 64, 48)
    there = torch.cat([joints, joints], 1)
    still = moved_limbs(Pair(source, there, source[:, :3]), masks)
    expected = torch.cat([(2 * source[:, None, :3] - 1) * masks[:, :, None], masks[:, :, None]], 2)
    torch.testing.assert_close(still, expected, atol=1e-4, rtol=0)
    shifted = joints + torch.tensor([3.0, -5.0, 0.0])
    moved = moved_limbs(Pair(source, torch.cat([shifted, joints], 1), source[:, :3]), masks)
    torch.testing.assert_close(moved[..., :-5, 3:], expected[..., 5:, :-3], atol=1e-3, rtol=0)
    assert moved[..., -4:, :].abs().max() == 0  # nothing comes from outside
    shifted[0, 4] = torch.nan
    without = moved_limbs(Pair(source, torch.cat([shifted, joints], 1), source[:, :3]), masks)
    assert without[0, 2].abs().max() == 0
    torch.testing.assert_close(without[0, 3], moved[0, 3])


# ------------------------------------------------------------------------------------------------ drawing


def paired(model: Posewarp, windows: Poses, known: References, k: int = 0) -> Batch:
    condition = model.condition(windows, SIZE)
    truth = Frame(known.rgb[:, k], known.matte[:, k])
    drawn, identity, truth = model.ahead(condition, model.encode(known), truth)
    return Batch(drawn, identity, None, truth)


def test_masks_begin_as_the_papers_prior(painter, window, known):
    pair = paired(painter, window(), known).condition
    with torch.inference_mode():
        masks = painter._masks(pair)
    prior = limb_priors(pair.known, SIZE).exp()
    together = torch.cat([1 - prior.amax(1, keepdim=True), prior], 1) + 1e-10
    torch.testing.assert_close(masks, together / together.sum(1, keepdim=True), atol=1e-5, rtol=1e-3)


def test_masks_begin_with_the_matte_where_it_is_known(model, window, known):
    pair = paired(model, window(), known).condition
    with torch.inference_mode():
        masks = model._masks(pair)
    torch.testing.assert_close(masks.sum(1), torch.ones(1, *SIZE))
    assert masks.min() > 1e-13
    torch.testing.assert_close(1 - masks[:, :1], pair.source[:, 3:], atol=2e-3, rtol=0)
    for limb, points in enumerate(LIMBS):
        y, x = pair.known[0, list(points), :2].mean(0).flip(0).int().tolist()
        assert masks[0, 1 + limb, y, x] > 0.4


def test_a_network_that_has_learned_nothing_shows_the_person_again(model, known):
    identity = model.encode(known)
    for k in range(3):
        condition = model.condition(Poses(*(t[:, k : k + 1] for t in known.poses[:3]), known.poses.picture), SIZE)
        with torch.inference_mode():
            frame, state = model(condition, identity, None)
        assert state.which.tolist() == [k]
        assert (frame.matte - known.matte[:, k]).abs().mean() < 0.01
        truth = torch.lerp(known.plate, known.rgb[:, k], known.matte[:, k])
        assert (frame.rgb - truth).abs().mean() < 0.03


def test_it_stays_with_a_reference_until_another_is_clearly_nearer(model, known, window):
    identity = model.encode(known)
    nearer = {}
    for angle in range(25, 91):
        condition = model.condition(window(left=(angle, angle), right=(27, 22)), SIZE)
        nearer[angle] = [int(model._nearest(condition, identity, s)) for s in (None, *map(state, (0, 1)))]
    assert nearer[25] == [0, 0, 0]
    assert nearer[90] == [1, 1, 1]
    free, from_first, from_second = (next(angle for angle, found in nearer.items() if found[i] == 1) for i in range(3))
    assert from_second < free < from_first
    for column in range(3):
        assert sum(a[column] != b[column] for a, b in pairwise(nearer.values())) == 1
    lost = window()
    lost.body[:] = torch.nan
    assert int(model._nearest(model.condition(lost, SIZE), identity, state(2))) == 2  # nobody: as before


def state(which: int) -> module.PosewarpState:
    return module.PosewarpState(torch.tensor([which]), torch.zeros(1, 11, *SIZE), None)


def test_what_a_reference_gives_is_computed_once(painter, known, window):
    asked: list[str] = []
    for name in ("segmentation", "person", "scene"):
        getattr(painter, name).register_forward_hook(lambda *_, name=name: asked.append(name))
    identity = painter.encode(known)
    walk = [window(left=(25 + 2 * i, 25)) for i in range(3)] + [window(left=(90, 80), right=(30, 20))]
    with torch.inference_mode():
        remembered, frames = None, []
        for pose in walk:
            frame, remembered = painter(painter.condition(pose, SIZE), identity, remembered)
            frames.append(frame)
        assert asked == ["segmentation", "scene", "person", "person", "person", "segmentation", "scene", "person"]
        for frame, pose in zip(frames, walk, strict=True):
            alone, _ = painter(painter.condition(pose, SIZE), identity, None)
            torch.testing.assert_close(frame.rgb, alone.rgb)


def test_the_paper_paints_its_scene_and_blends_by_its_matte(painter, known, window):
    identity = painter.encode(known)
    condition = painter.condition(window(left=(60, 60)), SIZE)
    with torch.inference_mode():
        frame, remembered = painter(condition, identity, None)
        elsewhere, _ = painter(condition, painter.before(identity, torch.ones(1, 3, 8, 8)), None)
        drawn, _, _ = painter.ahead(condition, identity, Frame(known.rgb[:, 0], known.matte[:, 0]))
        same, nothing = painter(drawn, None, None)
    assert nothing is None
    torch.testing.assert_close(same.rgb, frame.rgb)
    torch.testing.assert_close(elsewhere.matte, frame.matte)
    # m x + (1 - m) scene, before either scene: what differs is what shines through.
    difference = (1 - frame.matte) * (1 - remembered.scene)
    torch.testing.assert_close(elsewhere.rgb - frame.rgb, difference, atol=1e-5, rtol=0)
    assert remembered.scene.abs().max() <= 1
    assert remembered.scene.std() > 0.001


def test_larger_pictures_are_enlarged_before_a_sharp_plate(known, window):
    torch.manual_seed(0)
    model = Posewarp(**TINY | {"side": 64}).eval()
    condition = model.condition(window(), SIZE)
    assert condition.small == (80, 64)
    assert condition.maps.shape == (1, 14, 40, 32)
    with torch.inference_mode():
        frame, _ = model(condition, model.encode(known), None)
    scene = (frame.matte < 0.002).expand_as(frame.rgb)
    assert scene.float().mean() > 0.2
    assert (frame.rgb - known.plate)[scene].abs().max() < 0.01


def test_mirrored(model, known, window):
    pair = paired(model, window(left=(60, 90)), known)
    for seed in range(8):
        varied = model.varied(pair, torch.Generator().manual_seed(seed))
        if not torch.equal(varied.condition.joints, pair.condition.joints):
            break
    with torch.inference_mode():
        here, _ = model(pair.condition, None, None)
        mirrored, _ = model(varied.condition, None, None)
    torch.testing.assert_close(mirrored.matte.flip(3), here.matte, atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------ pairs to learn from


def test_of_k_references_all_pairs_both_ways(model, gathered):
    lessons = Lessons(model, arrays(gathered), gathered, 64, device.choose("cpu", "fp32"), seed=0, validate=False)
    references_ = [source_of(lessons.identity, k, lessons.size) for k in range(3)]
    found = []
    for k, group in enumerate(lessons.pairs):
        for pair in group:
            assert torch.equal(pair.truth.rgb, group[0].truth.rgb)
            (j,) = (j for j, other in enumerate(references_) if torch.allclose(pair.condition.source, other, atol=1e-5))
            found.append((j, k))
    assert set(found) == {(j, k) for j in range(3) for k in range(3) if j != k}
    assert model.sources == 1


def source_of(identity: module.Sources, k: int, size: tuple[int, int]) -> Tensor:
    assert identity.rgb.shape[3:] == (size[1], size[0])
    return torch.cat([identity.rgb[:, k], identity.matte[:, k]], 1)


def test_pairs_are_kept_with_their_joints_as_they_are(model, known, window, tmp_path):
    pair = paired(model, window(left=(60, 90)), known)
    pair.condition.joints[0, 4] = torch.nan
    tasks._keep(tmp_path / "task.safetensors", [[pair]])
    with safe_open(tmp_path / "task.safetensors", "pt") as file:
        again = tasks._unpacked(file, "0.0.", Pair)
    torch.testing.assert_close(again.condition.joints, pair.condition.joints, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(again.condition.source, pair.condition.source, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(again.truth.rgb, pair.truth.rgb, atol=1 / 255 + 1e-6, rtol=0)


def test_persons_of_different_pictures_in_one_batch(model, known, window, puppet):
    small = puppet.gathered(
        puppet.body(scale=42, at=(32, 38)), puppet.body((90, 80), scale=42, at=(32, 38)), size=(64, 80)
    )
    other = references(arrays(small))
    condition = model.condition(poses(puppet.track(puppet.body(scale=42, at=(32, 38)), size=(64, 80))), (80, 64))
    drawn, _, truth = model.ahead(condition, model.encode(other), Frame(other.rgb[:, 0], other.matte[:, 0]))
    pairs = [paired(model, window(), known), Batch(drawn, None, None, truth)]
    both = stacked(pairs)
    with torch.inference_mode():
        frame, _ = model(both.condition, both.identity, None)
        alone, _ = model(drawn, None, None)
    torch.testing.assert_close(frame.matte[1:, :, :76, :60], alone.matte[..., :76, :60], atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------ objective


class Features(nn.Module):
    """In VGG19's place: two layers of known deviation."""

    def forward(self, rgb: Tensor, taken: Any, *, average: bool) -> list[Tensor]:
        assert average
        assert list(taken) == [1, 3, 6, 8, 11, 13, 15, 17, 20, 22, 24, 26]
        return [rgb, 10 * rgb]


def test_vgg_loss_divides_by_the_deviation_of_each_channel():
    y = torch.zeros(1, 3, 4, 4)
    y[:, 0, :2], y[:, 0, 2:] = 0.5, -0.5  # deviation 0.5
    y[:, 1, :2], y[:, 1, 2:] = 0.1, -0.1
    x = y + 0.2
    terms = [
        (0.2 * scale / (scale * d + FLOOR))
        for scale in (1, 10)
        for d in (0.5, 0.1, 0.0)
    ]  # fmt: skip
    assert float(vgg_loss(Features(), x, y)) == pytest.approx(sum(terms) / 6, rel=1e-5)
    assert float(vgg_loss(Features(), y, y)) == 0
    assert len(CONVOLUTIONS) == 12


def test_the_first_stage_has_no_critic_and_the_second_counts_a_tenth(model, known, window):
    batch = paired(model, window(left=(60, 60)), known)
    frame = Frame(batch.truth.rgb * 0.5, batch.truth.matte)
    first = model.objective(critics=False)
    terms = first.generator_loss(frame, batch.truth, batch.condition)
    assert set(terms) == {"content", "matte"}
    torch.testing.assert_close(terms["content"], content_loss(frame.rgb, batch.truth.rgb))
    torch.testing.assert_close(terms["matte"], matte_loss(frame.matte, batch.truth.matte))
    assert first.critic_parameters() == []
    assert first.critic_loss(frame, batch.truth, batch.condition) == {}
    second = model.objective()
    assert set(second.generator_loss(frame, batch.truth, batch.condition)) == {"content", "matte", "adversarial"}
    last = second.critics.rest[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # undecided
    terms = second.generator_loss(frame, batch.truth, batch.condition)
    assert terms["adversarial"].item() == pytest.approx(0.1 * math.log(2))
    loss = second.critic_loss(frame, batch.truth, batch.condition)
    assert loss["critic"].item() == pytest.approx(math.log(2))
    nn.init.constant_(last.bias, 3.0)  # "real"
    terms = second.generator_loss(frame, batch.truth, batch.condition)
    assert terms["adversarial"].item() == pytest.approx(0.1 * math.log1p(math.exp(-3)), rel=1e-4)
    with_vgg = PosewarpObjective(None, Features())
    assert set(with_vgg.generator_loss(frame, batch.truth, batch.condition)) == {"perceptual", "matte"}


def soft(gathered: Any) -> Any:
    """The same persons in cloth, and before a plate, without fine detail."""
    blurred = [np.stack([cv2.GaussianBlur(x, (0, 0), 8) for x in y]) for y in (gathered.frames, gathered.pictures)]
    plate = replace(gathered.plate, image=cv2.GaussianBlur(gathered.plate.image, (0, 0), 8))
    return replace(gathered, frames=blurred[0], pictures=blurred[1], plate=plate)


@pytest.mark.parametrize("name", ["model", "painter"])
def test_a_person_is_learned_by_heart(name, request, gathered):
    model = request.getfixturevalue(name)
    compute = device.choose("cpu", "fp32")
    gathered = soft(gathered)
    lessons = Lessons(model, arrays(gathered), gathered, 64, compute, seed=0)
    objective = model.objective(critics=False)
    losses: list[float] = []
    adapt(
        model, objective, [lessons.pairs[0][:1]], FitOptions(steps=50, rate=5e-3, batch=1), compute,
        parameters=model.tunable(lessons.identity), on_step=lambda _, f: losses.append(f["loss"]),
    )  # fmt: skip
    assert losses[-1] < 0.7 * losses[0]
