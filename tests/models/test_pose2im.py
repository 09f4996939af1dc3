"""`pose2im`: MetaPix's first base, on made-up people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from retarget import device
from retarget.errors import UsageError
from retarget.heatmaps import POSE_CHANNELS
from retarget.lessons import Lessons, adapt
from retarget.models import build
from retarget.models.base import Batch, Frame, References
from retarget.models.layers import LocalEnhancer, ResidualBlock
from retarget.models.losses import VGG19, content_loss, matte_loss
from retarget.models.pose2im import Drawn, Pose2Im, Pose2ImObjective
from retarget.references import arrays, poses, references
from retarget.skeleton import MIRROR
from retarget.training.fit import FitOptions

TINY: dict[str, Any] = {"width": 8, "downs": 2, "blocks": 1, "enhancers": 1, "critic": 4}
SIZE = (160, 128)


@pytest.fixture
def model() -> Pose2Im:
    torch.manual_seed(0)
    return Pose2Im(**TINY).eval()


@pytest.fixture(scope="module")
def gathered(puppet) -> Any:
    return puppet.gathered(puppet.body(), puppet.body((90, 80), (30, 20)), details=True)


@pytest.fixture(scope="module")
def known(gathered) -> References:
    return references(arrays(gathered))


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return (inputs * kernel * kernel + 1) * outputs


# ------------------------------------------------------------------------------------------------ architecture


def test_the_generator_has_metapix_16_convolutions_and_deconvolutions_on_three_scales():
    with torch.device("meta"):
        model = build("pose2im", preset="paper")
    inside = {id(m) for block in model.generator.modules() if isinstance(block, ResidualBlock) for m in block.modules()}
    layers = [
        m
        for m in model.generator.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and id(m) not in inside
    ]  # fmt: skip
    assert len(layers) == 16
    fine = model.generator
    middle = fine.coarse
    coarse = middle.coarse
    assert isinstance(fine, LocalEnhancer)
    assert isinstance(middle, LocalEnhancer)
    assert [net.width for net in (fine, middle, coarse)] == [16, 32, 64]
    assert [sum(isinstance(m, ResidualBlock) for m in part.modules()) for part in (fine, middle, coarse)] == [15, 12, 9]
    assert model.config.side == 512
    assert model.config.whole


def test_parameters_of_the_paper_preset():
    with torch.device("meta"):
        model = build("pose2im", preset="paper")
        published = build("pose2im", {"enhancers": 0}, "paper")
        critics = model.objective().critics
    levels = [64 << i for i in range(5)]
    coarse = conv(15, 64, 7) + 9 * 2 * conv(1024, 1024, 3)
    coarse += sum(conv(a, 2 * a, 3) + conv(2 * a, a, 3) for a in levels[:4])
    enhancers = sum(
        conv(15, w, 7) + conv(w, 2 * w, 3) + 3 * 2 * conv(2 * w, 2 * w, 3) + conv(2 * w, w, 3) for w in (32, 16)
    )
    assert count(model.generator) == coarse + enhancers + conv(16, 3, 7)
    assert count(model.matte) == conv(16, 1, 7)
    # Without enhancers it is Pix2PixHD's global generator: 182,546,755 with 36 input channels.
    assert count(published.generator) == 182_546_755 - 21 * 49 * 64
    assert len(critics.critics) == 2
    first = critics.critics[0].steps[0][0]
    assert (first.in_channels, first.out_channels) == (3 + POSE_CHANNELS, 64)


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"width": 6}, {"whole": 2}, {"side": True}, {"blocks": 2.0}, {"scales": 0}, {"depth": 3}]
)
def test_a_configuration_that_cannot_be(wrong):
    with pytest.raises(UsageError, match="There is no pose2im with"):
        build("pose2im", TINY | {"enhancers": 2} | wrong)


# ------------------------------------------------------------------------------------------------ drawing


def test_the_picture_is_the_generators_painted_over_the_plate(model, known, puppet):
    condition = model.condition(poses(puppet.track(puppet.body(), details=True)), SIZE)
    assert condition.maps.shape == (1, 15, *SIZE)
    with torch.inference_mode():
        frame, state = model(condition, model.encode(known), None)
        painted = model.generator(condition.maps)
    assert state is None
    limbs = condition.maps[:, :10].amax(1, keepdim=True)
    torch.testing.assert_close(frame.matte, torch.sigmoid(10 * (limbs - 0.5)))  # nothing learned: the limbs
    expected = frame.matte * painted + (1 - frame.matte) * known.plate
    torch.testing.assert_close(frame.rgb, expected, atol=1e-5, rtol=0)
    assert (frame.matte > 0.9).float().mean() > 0.05


def test_the_paper_paints_the_scene_too(known, puppet):
    torch.manual_seed(0)
    model = Pose2Im(**TINY | {"whole": True}).eval()
    condition = model.condition(poses(puppet.track(puppet.body())), SIZE)
    identity = model.encode(known)
    with torch.inference_mode():
        painted = model.generator(condition.maps)
        torch.testing.assert_close(model(condition, identity, None)[0].rgb, painted)
        drawn, nobody, truth = model.ahead(condition, identity, Frame(known.rgb[:, 0], known.matte[:, 0]))
        assert nobody is None
        torch.testing.assert_close(model(drawn, None, None)[0].rgb, painted)
        elsewhere = model(condition, model.before(identity, torch.ones(1, 3, 4, 4)), None)[0]
    torch.testing.assert_close(elsewhere.rgb, torch.lerp(torch.ones(()), painted, elsewhere.matte))
    assert truth.rgb.shape == painted.shape


def test_larger_pictures_are_enlarged_before_a_sharp_plate(known, puppet):
    torch.manual_seed(0)
    model = Pose2Im(**TINY | {"side": 64}).eval()
    condition = model.condition(poses(puppet.track(puppet.body())), SIZE)
    assert condition.maps.shape[2:] == (80, 64)
    with torch.inference_mode():
        frame, _ = model(condition, model.encode(known), None)
    scene = (frame.matte < 0.007).expand_as(frame.rgb)
    assert scene.float().mean() > 0.3
    assert (frame.rgb - known.plate)[scene].abs().max() < 0.02


def test_mirrored(model, known, puppet):
    body = puppet.body((90, 80), (30, 20), at=(64, 76))
    condition = model.condition(poses(puppet.track(body, details=True)), SIZE)
    drawn, _, truth = model.ahead(condition, model.encode(known), Frame(known.rgb[:, 1], known.matte[:, 1]))
    pair = Batch(drawn, None, None, truth)
    seen = {}
    for seed in range(8):
        varied = model.varied(pair, torch.Generator().manual_seed(seed))
        seen[bool(torch.equal(varied.truth.rgb, pair.truth.rgb))] = varied
    assert set(seen) == {True, False}
    flipped = seen[False]
    assert torch.equal(flipped.truth.rgb, pair.truth.rgb.flip(3))
    assert torch.equal(flipped.condition.plate, pair.condition.plate.flip(3))
    other = body[list(MIRROR)]
    other[:, 0] = 128 - other[:, 0]
    mirrored = model.condition(poses(puppet.track(other)), SIZE)
    torch.testing.assert_close(flipped.condition.maps[:, :10], mirrored.maps[:, :10], atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------ objective


class Scores(nn.Module):
    """Critics that score the mean of a picture, with one layer of features: the picture."""

    def forward(self, rgb, maps=None):
        return [[rgb, rgb.mean((1, 2, 3), keepdim=True)]] * 2


def test_gan_feature_matching_and_content_count_alike():
    objective = Pose2ImObjective(None, None)
    objective.critics = Scores()
    x, y = torch.full((2, 3, 8, 8), 0.25), torch.full((2, 3, 8, 8), 0.75)
    matte = torch.zeros(2, 1, 8, 8)
    condition = Drawn(torch.zeros(2, 15, 8, 8), torch.zeros(2, 3, 8, 8))
    terms = objective.generator_loss(Frame(x, matte), Frame(y, matte), condition)
    assert terms["adversarial"] == pytest.approx(2 * (0.25 - 1) ** 2)  # two scales
    assert terms["feature"] == pytest.approx(2 * 0.5)
    torch.testing.assert_close(terms["content"], content_loss(x, y))
    torch.testing.assert_close(terms["matte"], matte_loss(matte, matte))
    loss = objective.critic_loss(Frame(x, matte), Frame(y, matte), condition)
    assert loss["critic"] == pytest.approx(2 * 0.5 * ((0.75 - 1) ** 2 + 0.25**2))
    objective.critics = None
    assert "adversarial" not in objective.generator_loss(Frame(x), Frame(y), condition)
    assert objective.critic_loss(Frame(x), Frame(y), condition) == {}
    assert objective.critic_parameters() == []


def test_vgg_takes_the_place_of_the_stand_in(model):
    class Seen(nn.Module):
        def forward(self, rgb):
            return [rgb * 2**i for i in range(5)]

    assert list(VGG19.TAKEN) == [1, 6, 11, 20, 29]
    objective = model.objective(critics=False)
    objective.vgg = Seen()
    terms = objective.generator_loss(Frame(torch.zeros(1, 3, 8, 8)), Frame(torch.ones(1, 3, 8, 8)), None)
    assert set(terms) == {"perceptual"}
    assert terms["perceptual"] == pytest.approx(1 / 32 + 2 / 16 + 4 / 8 + 8 / 4 + 16)


def soft(gathered: Any) -> Any:
    """The same persons in cloth, and before a plate, without fine detail."""
    blurred = [np.stack([cv2.GaussianBlur(x, (0, 0), 8) for x in y]) for y in (gathered.frames, gathered.pictures)]
    plate = replace(gathered.plate, image=cv2.GaussianBlur(gathered.plate.image, (0, 0), 8))
    return replace(gathered, frames=blurred[0], pictures=blurred[1], plate=plate)


def test_a_person_is_learned_by_heart(gathered):
    torch.manual_seed(0)
    model = Pose2Im(**TINY)
    compute = device.choose("cpu", "fp32")
    gathered = soft(gathered)
    lessons = Lessons(model, arrays(gathered), gathered, 64, compute, seed=0)
    objective = model.objective(critics=False)
    first = lessons.pairs[0][:1]
    losses: list[float] = []
    adapt(
        model, objective, [first], FitOptions(steps=40, rate=5e-3, batch=1), compute,
        parameters=model.tunable(lessons.identity), on_step=lambda _, f: losses.append(f["loss"]),
    )  # fmt: skip
    assert losses[-1] < 0.6 * losses[0]
