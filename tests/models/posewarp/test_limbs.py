"""Limbs whose places are known exactly: their priors, their transforms, and moved."""

from __future__ import annotations

import math

import pytest
import torch

from retarget.models.posewarp import LIMBS, Pair, body_scale, joints_of, limb_priors, moved_limbs, similarities
from retarget.models.posewarp.limbs import ACROSS, ACROSS_TORSO

from .conftest import SIZE


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
