"""Exact transforms of made-up skeletons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retarget import parts
from retarget.parts import affines, inverse, skeletons
from retarget.skeleton import MIRROR, PART, PARTS

from .conftest import LIMBS, random_bodies

IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])


def test_scale_follows_size_and_ignores_foreshortening(puppet):
    body = puppet.body()
    first = parts.body_scale(body[None])[0]
    twice = np.append(2 * body[:, :3], body[:, 3:], axis=1)
    assert parts.body_scale(twice[None])[0] == pytest.approx(2 * first)
    turned = body.copy()  # 60 degrees about the vertical: half as wide, as deep as it was wide
    c, s = np.cos(np.pi / 3), np.sin(np.pi / 3)
    x = body[:, 0] - 64
    turned[:, 0], turned[:, 2] = 64 + c * x + s * body[:, 2], -s * x + c * body[:, 2]
    assert parts.body_scale(turned[None])[0] == pytest.approx(first, rel=1e-5)
    assert parts.body_scale(np.zeros((1, 33, 4)))[0] > 0


@pytest.mark.parametrize("details", [False, True])
def test_the_same_pose_needs_no_transform(puppet, details):
    skeleton = skeletons(puppet.track(*random_bodies(puppet, 6), details=details))
    found = affines(skeleton, skeleton)
    assert found.shape == (6, 6, len(PARTS), 2, 3)
    same = found[range(6), range(6)]
    np.testing.assert_allclose(same, np.broadcast_to(IDENTITY, same.shape), atol=1e-6)


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize(("angle", "size", "shift"), [(0, 1, (13, -7)), (35, 1, (0, 0)), (-140, 1.3, (20, 5))])
def test_a_moved_turned_scaled_person_moves_every_part_alike(puppet, details, angle, size, shift):
    track = puppet.track(puppet.body((70, 20), (15, 95), reach=(-0.1, 0.05)), details=details)
    c, s = size * np.cos(np.radians(angle)), size * np.sin(np.radians(angle))
    wanted = np.array([[c, -s, shift[0]], [s, c, shift[1]]])

    def move(points: np.ndarray) -> np.ndarray:
        out = points.copy()
        out[..., :2] = points[..., :2] @ wanted[:, :2].T + wanted[:, 2]
        out[..., 2] = points[..., 2] * size
        return out

    moved = replace(track, body=move(track.body), face=move(track.face), hands=move(track.hands))
    found = affines(skeletons(track), skeletons(moved))[0, 0]
    np.testing.assert_allclose(found[..., :2], np.broadcast_to(wanted[:, :2], (len(PARTS), 2, 2)), atol=1e-4)
    np.testing.assert_allclose(found[..., 2], np.broadcast_to(wanted[:, 2], (len(PARTS), 2)), atol=1e-2)


def test_limbs_land_exactly_on_the_target_bones(puppet):
    source, target = (skeletons(puppet.track(*random_bodies(puppet, 5, seed))) for seed in (1, 2))
    found = affines(source, target)
    for i in LIMBS:
        for end in (0, 1):
            points = np.append(source.bones[:, i, end, :2], np.ones((5, 1)), 1)
            landed = np.einsum("mnij,nj->mni", found[:, :, i], points)
            wanted = np.broadcast_to(target.bones[:, None, i, end, :2], landed.shape)
            np.testing.assert_allclose(landed, wanted, atol=1e-6)


def test_a_limb_that_points_at_the_camera_gets_shorter_but_not_thinner(puppet):
    hanging, towards = puppet.body((0, 0)), puppet.body((0, 0))
    elbow, wrist = hanging[13, :3].copy(), hanging[15, :3].copy()
    length = wrist[1] - elbow[1]
    towards[15, :3] = elbow + np.array([0, length / 2, -length * 0.75**0.5])
    lower = affines(*(skeletons(puppet.track(b)) for b in (hanging, towards)))[0, 0, PART["left_lower_arm"]]
    np.testing.assert_allclose(lower[:, :2], [[1, 0], [0, 0.5]], atol=1e-3)


def test_nothing_is_mirrored_or_squeezed_to_a_line(puppet):
    bodies = random_bodies(puppet, 8, 3)
    backs = []
    for body in bodies[:4]:  # seen from behind: left and right change places
        back = body[list(MIRROR)]
        back[:, 2] *= -1
        backs.append(back)
    flat = puppet.body()  # a torso seen exactly from the side
    flat[[11, 12, 23, 24], 0] = 64
    skeleton = skeletons(puppet.track(*bodies, *backs, flat))
    found = affines(skeleton, skeleton)
    assert np.isfinite(found).all()
    ratio = skeleton.scale[:, None] / skeleton.scale[None]
    assert (np.linalg.det(found[..., :2]) > 0.04 * ratio[..., None] ** 2).all()


@pytest.mark.parametrize("size", [1.0, 1.6])
def test_a_fist_is_not_blown_up_to_an_open_hand(puppet, size):
    hand = PART["left_hand"]
    fist = puppet.track(puppet.body((70, 20)), details=True)
    middle = fist.hands[:, 0, :, :2].mean(1, keepdims=True)
    fist.hands[:, 0, :, :2] = middle + 0.4 * (fist.hands[:, 0, :, :2] - middle)
    grown = puppet.track(puppet.body((70, 20)), details=True)
    for points in (grown.body, grown.face, grown.hands):
        points[..., :3] *= size
    source, target = skeletons(fist), skeletons(grown)
    found = affines(source, target)[0, 0, hand]
    assert np.linalg.svd(found[:, :2], compute_uv=False).max() == pytest.approx(1.15 * size, rel=1e-3)
    shown, wanted = (s.points[0, hand].mean(0) for s in (source, target))
    np.testing.assert_allclose(found[:, :2] @ shown + found[:, 2], wanted, atol=1e-3)


def test_whoever_was_not_found_has_no_transforms_and_stops_nobody(puppet):
    track = puppet.track(*random_bodies(puppet, 3), details=True)
    there = affines(skeletons(track), skeletons(track))
    for points in (track.body, track.face, track.hands):
        points[1] = np.nan
    skeleton = skeletons(track)
    found = affines(skeleton, skeleton)
    np.testing.assert_allclose(found[[0, 0, 2, 2], [0, 2, 0, 2]], there[[0, 0, 2, 2], [0, 2, 0, 2]])
    assert not np.isfinite(found[0, 1, PART["left_lower_arm"]]).any()


def test_an_arm_that_leaves_the_picture_does_not_come_back_unseen(puppet):
    # The left elbow is out on the right, and the wrist before the body.
    inside = puppet.body((90, 260), at=(100, 76))
    assert inside[13, 0] > 128 > inside[15, 0]
    guessed = inside.copy()
    guessed[[15, 17, 19, 21], 3] = 0.2
    lower, hand, right = (PART[name] for name in ("left_lower_arm", "left_hand", "right_lower_arm"))
    seen, unseen = (skeletons(puppet.track(body)) for body in (inside, guessed))
    np.testing.assert_allclose(seen.bones[0, lower, 1, :2], inside[15, :2], atol=1e-4)
    np.testing.assert_allclose(unseen.bones[0, lower, 0], seen.bones[0, lower, 0])
    np.testing.assert_allclose(unseen.bones[0, lower, 1, :2], 2 * inside[13, :2] - inside[11, :2], atol=1e-4)
    assert np.nanmin(unseen.points[0, hand, :, 0]) > 128
    np.testing.assert_allclose(
        unseen.points[0, hand] - unseen.points[0, hand, 0], seen.points[0, hand] - seen.points[0, hand, 0], atol=1e-4
    )
    np.testing.assert_array_equal(unseen.bones[0, right], seen.bones[0, right])
    # Where the hand itself was found, or the elbow is in the picture, nothing is guessed.
    found = puppet.track(guessed, details=True)
    np.testing.assert_allclose(skeletons(found).bones[0, lower, 1, :2], inside[15, :2], atol=1e-4)
    guessed[:, 0] -= 30
    np.testing.assert_allclose(skeletons(puppet.track(guessed)).bones[0, lower, 1, :2], guessed[15, :2], atol=1e-4)


def test_inverse_takes_back(puppet):
    source, target = (skeletons(puppet.track(*random_bodies(puppet, 3, seed))) for seed in (4, 5))
    there = affines(source, target)
    back = inverse(there)
    point = np.array([31.0, 57.0])
    moved = there[..., :2] @ point + there[..., 2]
    np.testing.assert_allclose(np.einsum("...ij,...j->...i", back[..., :2], moved) + back[..., 2],
                               np.broadcast_to(point, moved.shape), atol=1e-8)  # fmt: skip


def test_missing_faces_and_hands_leave_finite_transforms(puppet):
    with_both = puppet.track(*random_bodies(puppet, 2), details=True)
    without = puppet.track(*random_bodies(puppet, 2, 7))
    for a, b in ((with_both, without), (without, with_both), (without, without)):
        assert np.isfinite(affines(skeletons(a), skeletons(b))).all()
