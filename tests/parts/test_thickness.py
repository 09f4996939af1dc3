"""Legs are as thick as where they can be seen."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from retarget.parts import Skeleton, part_mattes, skeletons
from retarget.parts.geometry import HIPS, along
from retarget.parts.thickness import FEWEST, MIDDLES, PLACES, _borders, _limits, slender
from retarget.skeleton import PART

SCALE = 84.0
THIN = 0.055
"""Metres from the middle of a leg to its border."""
LEGS = [PART[f"{side}_{which}_leg"] for side in ("left", "right") for which in ("upper", "lower")]


def people(puppet, *legs: float, beside: float = 0.0):
    """People of thin legs, which lie `beside` (metres, outwards) their bones; `slender`'s arguments."""
    bodies = [puppet.body(legs=angle) for angle in legs]
    skeleton = skeletons(puppet.track(*bodies))
    mattes = []
    for bones in skeleton.bones[..., :2]:
        matte = np.zeros((160 * 8, 128 * 8), np.uint8)
        for part in (PART["torso"], *LEGS):
            wide = 0.15 if part == PART["torso"] else THIN
            out = 0 if part == PART["torso"] else beside if part in LEGS[:2] else -beside
            a, b = (tuple(int(n * 8) for n in np.add(end, (out * SCALE, 0))) for end in bones[part])
            cv2.line(matte, a, b, 255, round(2 * wide * SCALE * 8))
        mattes.append(cv2.resize(matte, (128, 160), interpolation=cv2.INTER_AREA).astype(np.float32) / 255)
    owned = [part_mattes(skeleton.take([k]), m) for k, m in enumerate(mattes)]
    own, core = (torch.from_numpy(np.stack([o[i] for o in owned])) for i in (0, 1))
    return own, core, torch.from_numpy(np.stack(mattes))[:, None], skeleton


def across(skeleton: Skeleton, k: int, limb: int, share: float, out: float) -> tuple[int, int]:
    """Row and column at `out` metres to the picture's right of a limb's bone, `share` down it."""
    a, b = skeleton.bones[k, limb, :, :2]
    x, y = a + share * (b - a) + (out * SCALE, 0)
    return int(y), int(x)


def test_a_leg_beside_another_is_completed_no_thicker_than_it_is(puppet):
    args = people(puppet, 16, 14, 12, -9)  # in the last one the knees touch
    skeleton, (own, core) = args[3], slender(*args)
    assert (own >= 0).all()
    assert (own <= 1).all()
    for limb, inwards in ((PART["left_lower_leg"], -1), (PART["right_lower_leg"], 1)):
        far = across(skeleton, 3, limb, 0.3, inwards * (THIN + 0.025))
        near = across(skeleton, 3, limb, 0.3, inwards * (THIN - 0.03))
        assert args[1][3, limb][near] > 0.9
        assert core[3, limb][near] > 0.9
        # A limb's core was a little wider than that, whoever's it was.
        wide = args[1][3, limb].sum() - core[3, limb].sum()
        assert wide > 10
        assert core[3, limb][far] < 0.1


def test_legs_that_lie_beside_their_bones_are_completed_there(puppet):
    beside = 0.025
    _, core = slender(*(args := people(puppet, 16, 14, 12, -9, beside=beside)))
    for limb, inwards in ((PART["left_lower_leg"], -1), (PART["right_lower_leg"], 1)):
        border = THIN - beside
        assert core[3, limb][across(args[3], 3, limb, 0.3, inwards * (border - 0.01))] > 0.5
        assert core[3, limb][across(args[3], 3, limb, 0.3, inwards * (border + 0.03))] < 0.5


def test_what_is_too_far_from_one_leg_is_the_others(puppet):
    own, core, mattes, skeleton = people(puppet, 16, 14, 12, 10)
    mine, other = PART["left_lower_leg"], PART["right_lower_leg"]
    true = own[3, mine].clone()
    own[3, other] = torch.maximum(own[3, other], true)
    own[3, mine] = 0
    after, _ = slender(own, core, mattes, skeleton)
    middle = across(skeleton, 3, mine, 0.5, 0)
    assert true[middle] > 0.9
    assert after[3, mine][middle] > 0.9
    assert after[3, other][middle] < 0.1


def test_beyond_a_knee_no_more_than_the_knee_goes_on(puppet):
    args = people(puppet, 16, 14, 12, 10)
    own, core = slender(*args)
    knee = args[3].bones[3, PART["left_upper_leg"], 1, :2]
    y, x = np.mgrid[:160, :128] + 0.5
    beyond = along(x, y, *args[3].bones[3, PART["left_upper_leg"], :, :2])[0] >= 1
    far = torch.from_numpy(beyond & (np.hypot(x - knee[0], y - knee[1]) > (THIN + 0.03) * SCALE))
    assert (args[1][3, PART["left_upper_leg"]][far] > 0.9).any()
    assert core[3, PART["left_upper_leg"]][far].max() < 0.1
    assert own[3, PART["left_upper_leg"]][far].max() < 0.1


def test_what_is_seen_of_legs_that_stand_apart_stays(puppet):
    args = people(puppet, 16, 14, 12, 18)
    own, _ = slender(*args)
    y, x = np.mgrid[:160, :128] + 0.5
    for limb in LEGS:
        s = torch.from_numpy(along(x, y, *args[3].bones[0, limb, :, :2])[0])
        # Where nobody else is: upper legs are the torso's neighbours, lower ones the feet's.
        alone = (s > 0.4) & (s < 0.95)
        torch.testing.assert_close(own[0, limb][alone], args[0][0, limb][alone], atol=0.1, rtol=0)


def test_a_skirt_tells_nothing_of_the_legs_below(puppet):
    own, core, mattes, skeleton = people(puppet, 14, 12)
    mattes = torch.ones_like(mattes)  # no border far and wide
    after = slender(own, core, mattes, skeleton)
    torch.testing.assert_close(after[0], own)
    torch.testing.assert_close(after[1], core)


def test_one_picture_alone_does_not_say_how_thick_a_leg_is(puppet):
    args = people(puppet, 14)
    own, core, mattes, skeleton = args
    cut = slender(own, core, mattes, skeleton)
    assert FEWEST > 2  # two borders of each of two legs are four: enough
    assert float((cut[1] - core)[0, LEGS].abs().sum()) > 0
    own[:, [PART["right_upper_leg"], PART["right_lower_leg"]]] = 0
    left = slender(own, core, mattes, skeleton)[1]
    torch.testing.assert_close(left, core)


def test_torso_and_arms_are_left_alone(puppet):
    args = people(puppet, 16, 14, 12, -9)
    own, core = slender(*args)
    others = [p for p in range(own.shape[1]) if p not in LEGS]
    assert HIPS[0] in others
    assert torch.equal(own[:, others], args[0][:, others])
    assert torch.equal(core[:, others], args[1][:, others])


@pytest.mark.parametrize("beside", [-0.02, 0.0, 0.02])
def test_borders_are_as_far_as_they_are(puppet, beside):
    own, _, mattes, skeleton = people(puppet, 16, beside=beside)
    for limb, sign in ((PART["left_lower_leg"], 1), (PART["right_lower_leg"], -1)):
        found = _borders(mattes[0, 0].numpy(), own[0, limb].numpy(), skeleton.bones[0, limb, :, :2], SCALE, 0.37)
        assert found.shape == (2, PLACES)
        middle = np.nanmean(found[:, (MIDDLES > 0.4) & (MIDDLES < 0.8)], 1)
        # The bone runs downwards: its first side is the picture's left.
        np.testing.assert_allclose(middle, np.array([-1, 1]) * sign * beside + THIN, atol=0.012)


def test_a_leg_that_points_at_the_camera_is_not_measured(puppet):
    own, _, mattes, skeleton = people(puppet, 16)
    bone = skeleton.bones[0, PART["left_lower_leg"], :, :2]
    short = np.stack([bone[0], bone[0] + 0.5 * (bone[1] - bone[0])])
    found = [
        _borders(mattes[0, 0].numpy(), own[0, PART["left_lower_leg"]].numpy(), b, SCALE, 0.37) for b in (bone, short)
    ]
    assert np.isfinite(found[0]).any()
    assert np.isnan(found[1]).all()
    assert np.isnan(_borders(mattes[0, 0].numpy(), own[0, 0].numpy(), bone * np.nan, SCALE, 0.37)).all()


def test_a_border_that_is_seen_says_where_the_other_one_is():
    half = np.full(PLACES, 0.06)
    borders = np.full((2, PLACES), np.nan)
    borders[0, :4], borders[:, 4:8], borders[1, 8:12] = 0.08, 0.07, 0.2
    limits = _limits(borders, half)
    np.testing.assert_allclose(limits[:, 0], [0.08, 0.04])
    np.testing.assert_allclose(limits[:, 5], [0.07, 0.07])  # what is seen is never cut off
    np.testing.assert_allclose(limits[:, 9], [0.03, 0.2])  # but no leg is half outside of itself
    np.testing.assert_allclose(limits[:, 13], [0.06, 0.06])
    assert np.isinf(_limits(borders, np.full(PLACES, np.inf))[:, 13]).all()
