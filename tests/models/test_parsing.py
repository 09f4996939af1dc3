"""The network of Eq. 7: what it is asked, what it answers, what it is trained for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from retarget import parts
from retarget.errors import WeightsError
from retarget.models.base import Frame
from retarget.models.losses import parsing_features
from retarget.models.parsing import KEYPOINTS, Labels, Parsed, Parser, ParsingObjective, heat_maps, ten_parts
from retarget.skeleton import JOINTS


def test_the_key_points_are_those_of_coco():
    assert [JOINTS[j] for j in KEYPOINTS[:7]] == [
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    ]  # fmt: skip
    assert JOINTS[KEYPOINTS[-1]] == "right_ankle"
    assert len(set(KEYPOINTS)) == 17


def test_it_is_small_enough_to_be_shipped():
    """In half precision, within 2 MB."""
    assert 2 * sum(p.numel() for p in Parser().parameters()) < 2_000_000


@pytest.mark.parametrize("size", [(32, 48), (33, 21)])
def test_answers_and_features(size):
    torch.manual_seed(0)
    parser = Parser(8, 3).eval()
    rgb = torch.rand(2, 3, *size) * 2 - 1
    with torch.no_grad():
        parsed, features = parser(rgb), parser.features(rgb)
    assert parsed.joints.shape == (2, 17, *size)
    assert parsed.parts.shape == (2, 11, *size)
    for x in features:
        assert x.shape[:2] == (2, 8)
        assert x.std() > 0
    # Answers are read from the features.
    h, w = size
    torch.testing.assert_close(parser.parts.unfold(parser.parts.last(features[1]))[..., :h, :w], parsed.parts)


def test_a_trained_one_is_built_from_its_weights():
    parser = Parser(8, 3)
    again = Parser.loaded(parser.state_dict(), parser.config)
    assert all(torch.equal(a, b) for a, b in zip(parser.parameters(), again.parameters(), strict=True))
    for tensors, config in (({}, {}), (parser.state_dict(), {"width": 4}), ({}, {"wdith": 8})):
        with pytest.raises(WeightsError) as e:
            Parser.loaded(tensors, config)
        assert e.value.remedy


def test_hands_belong_to_lower_arms_and_feet_to_lower_legs(puppet):
    body = puppet.body(left=(45, 45), right=(25, 25))
    matte = puppet.matte(body)
    own = parts.part_mattes(parts.skeletons(puppet.track(body)), matte)[0]
    ten = ten_parts(own)
    assert ten.shape == (10, 160, 128)
    assert ten.max() <= 1
    torch.testing.assert_close(ten[:4], torch.from_numpy(own[:4]).clamp(0, 1))
    for part, joint in ((4, 19), (5, 20), (8, 31), (9, 32)):  # index fingers, tips of the feet
        x, y = body[joint, :2].astype(int)
        assert ten[part, y, x] > 0.5
        assert own[part, y, x] < 0.5


def test_heat_maps_by_hand():
    joints = torch.tensor([[[10.5, 20.5], [math.nan, 3.0]]])
    maps = heat_maps(joints, (128, 64))
    assert maps.shape == (1, 2, 128, 64)
    assert maps[0, 0, 20, 10] == 1
    # One sigma is one pixel: 1/64 of 64.
    assert maps[0, 0, 20, 11].item() == pytest.approx(math.exp(-0.5))
    assert maps[0, 0, 22, 10].item() == pytest.approx(math.exp(-2))
    assert maps[0, 1].abs().max() == 0


def test_the_objective_by_hand():
    """Even answers: log 64 for a joint among 64 places, log 11 for a place's part."""
    parsed = Parsed(torch.zeros(1, 17, 8, 8), torch.zeros(1, 11, 8, 8))
    joints = torch.full((1, 17, 2), 4.5)
    labels = Labels(joints, torch.ones(1, 8, 8, dtype=torch.int64))
    rgb = torch.zeros(1, 3, 8, 8)
    terms = ParsingObjective(joints=0.5).generator_loss(Frame(rgb, None, parsed), Frame(rgb, None, labels), rgb)
    assert terms["joints"].item() == pytest.approx(0.5 * math.log(64), rel=1e-5)
    assert terms["parts"].item() == pytest.approx(math.log(11), rel=1e-5)
    assert ParsingObjective().critic_loss(Frame(rgb), Frame(rgb), rgb) == {}


def test_joints_that_nobody_found_do_not_count():
    parsed = Parsed(torch.randn(1, 17, 8, 8), torch.zeros(1, 11, 8, 8))
    rgb = torch.zeros(1, 3, 8, 8)
    joints = torch.full((1, 17, 2), math.nan)
    parts_ = torch.zeros(1, 8, 8, dtype=torch.int64)

    def loss(answers: Parsed) -> float:
        truth = Frame(rgb, None, Labels(joints, parts_))
        return ParsingObjective().generator_loss(Frame(rgb, None, answers), truth, rgb)["joints"].item()

    assert loss(parsed) == 0
    joints[0, 3] = 4.5
    known = loss(parsed)
    parsed.joints[0, 5] += 3  # one that is not known
    assert loss(parsed) == known
    parsed.joints[0, 3, 4, 4] += 3
    assert loss(parsed) < known


def test_eq_7_by_hand():
    """|φ_p| is 1 apart in half of the places, |φ_s| is 20 apart: 0.5 + 0.01 * 20."""
    zeros = torch.zeros(1, 2, 4, 4)
    half = zeros.clone()
    half[..., :2] = 1
    assert parsing_features((zeros, zeros), (half, zeros + 20)).item() == pytest.approx(0.7)
    assert parsing_features((zeros, zeros), (half, zeros + 20), w_s=1).item() == pytest.approx(20.5)
    fake = half.requires_grad_()
    parsing_features((fake.detach() + 1, zeros), (fake, zeros)).backward()
    assert np.isclose(fake.grad.sum().item(), -1)
