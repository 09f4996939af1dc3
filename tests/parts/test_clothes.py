"""Skirts hang between the legs, skin does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retarget.parts import cut, part_mattes, skeletons
from retarget.parts.clothes import freed, hanging
from retarget.parts.geometry import HIPS, RADII, SKIRT, along
from retarget.skeleton import PART

from .conftest import BLUE, CROSSED, RED

CLOTH, SKIN = (30, 60, 190), (225, 170, 140)


def dressed(puppet, hem: float, shine: float = 0.0):
    """A person whose upper legs are clothed down to `hem` (0 to 1; 2: to the feet), as `hanging` takes it."""
    body = puppet.body(legs=10)
    skeleton, matte = skeletons(puppet.track(body)), puppet.matte(body)
    own, core, alone = (np.stack([m]) for m in part_mattes(skeleton, matte))
    y, x = np.mgrid[:160, :128] + 0.5
    picture = np.empty((160, 128, 3))
    picture[:] = CLOTH
    for side in ("left", "right"):
        thigh = PART[f"{side}_upper_leg"]
        down = along(x, y, *skeleton.bones[0, thigh, :, :2])[0]
        bare = (own[0, [thigh, PART[f"{side}_lower_leg"], PART[f"{side}_foot"]]].max(0) > 0.01) & (down > hem)
        picture[bare] = SKIN
    light = 1 + shine * np.sin(np.arange(160))[:, None, None]
    noise = np.random.default_rng(0).normal(0, 3, picture.shape)
    frames = torch.from_numpy(np.clip(picture * light + noise, 0, 255) / 255).float().permute(2, 0, 1)[None]
    return frames, torch.from_numpy(own), torch.from_numpy(core), skeleton, matte, alone


def upper_leg(skeleton, share: float) -> tuple[int, int]:
    """Row and column on the left upper leg's bone."""
    a, b = skeleton.bones[0, PART["left_upper_leg"], :, :2]
    x, y = (a + share * (b - a)).astype(int)
    return y, x


@pytest.mark.parametrize("shine", [0.0, 0.15])
def test_below_a_hem_nothing_hangs(puppet, shine):
    frames, own, core, skeleton, *_ = dressed(puppet, 0.5, shine)
    hangs = hanging(frames, own, core, skeleton)
    assert hangs.shape == (1, 1, 160, 128)
    assert hangs.min() >= 0
    assert hangs.max() <= 1
    assert hangs[0, 0][upper_leg(skeleton, 0.2)] > 0.9
    assert hangs[0, 0][upper_leg(skeleton, 0.8)] < 0.1
    assert hangs[0, 0][own[0, PART["torso"]] > 0.9].min() > 0.9  # the trunk is no leg


def test_trousers_hang_down_to_the_knees(puppet):
    frames, own, core, skeleton, *_ = dressed(puppet, 2.0)
    assert (hanging(frames, own, core, skeleton) == 1).all()


def test_of_legs_that_are_not_seen_there_is_no_telling(puppet):
    frames, own, core, skeleton, *_ = dressed(puppet, 0.5)
    own[:, [PART["left_lower_leg"], PART["right_lower_leg"]]] = 0
    assert (hanging(frames, own, core, skeleton) == 1).all()


def test_the_skirt_ends_at_the_hem(puppet):
    """What is cut out as what hangs, in a dress and in trousers."""
    reach = {}
    for hem in (0.4, 2.0):
        frames, own, core, skeleton, matte, alone = dressed(puppet, hem)
        made = cut(frames, own, core, torch.from_numpy(matte)[None, None], alone, skeleton)
        alpha = made.textures[SKIRT][0, 3].numpy()
        low = np.flatnonzero((alpha > 0.5).any(1)).max() + made.origins[SKIRT, 0, 1]
        hip, knee = skeleton.bones[0, HIPS[1], :, 1]
        reach[hem] = (low - hip) / (knee - hip)
    assert 0.3 < reach[0.4] < 0.6
    assert reach[2.0] > 0.9


def crossed_arm(puppet, sleeve: tuple[int, int, int], wide: float = 0.65):
    """An arm before the trunk, painted as wide as this share of what its part may be: frames, own, core, skeleton, and
    the distance to its bone."""
    body = puppet.body(**CROSSED)
    skeleton, matte = skeletons(puppet.track(body)), puppet.matte(body)
    own, core, _ = part_mattes(skeleton, matte)
    picture = np.broadcast_to(np.array(BLUE, float), (160, 128, 3)).copy()
    y, x = np.mgrid[:160, :128] + 0.5
    arm = PART["left_lower_arm"]
    far = along(x, y, *skeleton.bones[0, arm, :, :2])[1] / (RADII[arm] * skeleton.scale[0])
    picture[far < wide] = sleeve
    picture += np.random.default_rng(0).normal(0, 3, picture.shape)
    frames = torch.from_numpy(np.clip(picture, 0, 255) / 255).float().permute(2, 0, 1)[None]
    return frames, torch.from_numpy(own)[None], torch.from_numpy(core)[None], skeleton, far


def test_a_bare_arm_leaves_the_shirt_behind_it_to_the_trunk(puppet):
    frames, own, core, skeleton, far = crossed_arm(puppet, RED)
    arm, torso = PART["left_lower_arm"], PART["torso"]
    found, may = freed(frames, own, core, skeleton)
    rim = (far > 0.95) & (own[0, arm].numpy() > 0.5)
    assert rim.sum() > 10
    assert found[0, arm].numpy()[rim].mean() < 0.2
    assert may[0, arm].numpy()[rim].mean() < 0.2  # nor is it hidden there
    assert found[0, torso].numpy()[rim].mean() > 0.5
    inside = (far < 0.2) & (own[0, arm].numpy() > 0.5)
    np.testing.assert_array_equal(found[0, arm].numpy()[inside], own[0, arm].numpy()[inside])
    touched = {torso, arm, *(PART[n] for n in ("left_hand", "right_lower_arm", "left_upper_arm", "right_upper_arm"))}
    for part in set(range(own.shape[1])) - touched:
        assert torch.equal(found[0, part], own[0, part])


def test_a_wide_arm_leaves_no_skin_on_the_shirt(puppet):
    frames, own, core, skeleton, far = crossed_arm(puppet, RED, wide=1.6)
    arm, torso = PART["left_lower_arm"], PART["torso"]
    found, _ = freed(frames, own, core, skeleton)
    beside = (far > 1.15) & (far < 1.45) & (own[0, torso].numpy() > 0.8)
    assert beside.sum() > 20
    assert found[0, torso].numpy()[beside].mean() < 0.1
    assert found[0, arm].numpy()[beside].mean() > 0.9
    beyond = (far > 2.3) & (own[0, torso].numpy() > 0.8)
    np.testing.assert_array_equal(found[0, torso].numpy()[beyond], own[0, torso].numpy()[beyond])


def test_the_trunk_has_none_of_the_pixels_that_show_both(puppet):
    frames, own, core, skeleton, far = crossed_arm(puppet, RED, wide=1.1)
    mixed = (far > 1.1) & (far < 1.25) & (own[0, PART["torso"]].numpy() > 0.8)
    frames[0, :, torch.from_numpy(mixed)] = torch.tensor([RED, BLUE]).float().mean(0)[:, None] / 255
    torso = PART["torso"]
    found, _ = freed(frames, own, core, skeleton)
    assert mixed.sum() > 5
    assert found[0, torso].numpy()[mixed].mean() < 0.2


def test_an_arm_has_none_of_them_either_but_is_completed_there(puppet):
    frames, own, core, skeleton, far = crossed_arm(puppet, RED)
    arm = PART["left_lower_arm"]
    mixed = (far > 0.7) & (far < 0.95) & (own[0, arm].numpy() > 0.8)
    frames[0, :, torch.from_numpy(mixed)] = torch.tensor([RED, BLUE]).float().mean(0)[:, None] / 255
    found, may = freed(frames, own, core, skeleton)
    assert mixed.sum() > 5
    assert found[0, arm].numpy()[mixed].mean() < 0.3
    inner = (far < 0.6) & (own[0, arm].numpy() > 0.8)
    assert may[0, arm].numpy()[inner].mean() > 0.9


def collar(puppet, head: tuple[int, int, int]):
    """Somebody in blue up to the chin, as `freed` takes it, and how far up the head's bone each pixel is."""
    body = puppet.body()
    skeleton, matte = skeletons(puppet.track(body)), puppet.matte(body)
    own, core, _ = (np.stack([m]) for m in part_mattes(skeleton, matte))
    y, x = np.mgrid[:160, :128] + 0.5
    a, b = skeleton.bones[0, PART["head"], :, :2]
    up = ((x - a[0]) * (b - a)[0] + (y - a[1]) * (b - a)[1]) / ((b - a) ** 2).sum()
    picture = np.empty((160, 128, 3))
    picture[:] = BLUE
    picture[(up > 0.1) & (own[0, PART["head"]] > 0.01)] = head
    noise = np.random.default_rng(0).normal(0, 3, picture.shape)
    frames = torch.from_numpy(np.clip(picture + noise, 0, 255) / 255).float().permute(2, 0, 1)[None]
    return frames, torch.from_numpy(own), torch.from_numpy(core), skeleton, up


def test_a_head_leaves_its_collar_to_the_trunk(puppet):
    frames, own, core, skeleton, up = collar(puppet, RED)
    head, torso = PART["head"], PART["torso"]
    found, may = freed(frames, own, core, skeleton)
    below = torch.from_numpy(up < -0.1) & (own[0, head] > 0.5)
    assert below.sum() > 5
    assert found[0, head][below].mean() < 0.1
    assert may[0, head][below].mean() < 0.1
    assert found[0, torso][below].mean() > 0.8
    above = torch.from_numpy(up > 0.35) & (own[0, head] > 0.5)
    torch.testing.assert_close(found[0, head][above], own[0, head][above])
    torch.testing.assert_close(may[0, head][above], core[0, head][above])


def test_hair_like_the_shirt_stays_with_the_head(puppet):
    frames, own, core, skeleton, _ = collar(puppet, BLUE)
    found, may = freed(frames, own, core, skeleton)
    assert torch.equal(found[0, PART["head"]], own[0, PART["head"]])
    assert torch.equal(may[0, PART["head"]], core[0, PART["head"]])


def test_a_sleeve_like_the_shirt_stays_as_it_was_cut(puppet):
    frames, own, core, skeleton, _ = crossed_arm(puppet, BLUE)
    assert all(map(torch.equal, freed(frames, own, core, skeleton), (own, core)))
