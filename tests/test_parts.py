"""Body parts on made-up skeletons and pictures: exact transforms, the best choice, and pixels that stay as they are."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retarget import parts
from retarget.parts import (
    Cutouts,
    Skeleton,
    affines,
    choose,
    choosing,
    cut,
    inverse,
    lay_out,
    part_mattes,
    render,
    skeletons,
)
from retarget.parts import layout as laying_out
from retarget.skeleton import MIRROR, PARENT, PART, PARTS, J

LIMBS = [i for i, name in enumerate(PARTS) if "arm" in name or "leg" in name]
IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])
CROSSED = {"left": (10, -115), "reach": (-0.4, 0)}
"""The left lower arm lies before the belly."""


def cutouts_of(pictures: list[np.ndarray], mattes: list[np.ndarray], skeleton: Skeleton) -> Cutouts:
    owned = [part_mattes(skeleton.take([k]), m) for k, m in enumerate(mattes)]
    own, core = (torch.from_numpy(np.stack([o[i] for o in owned])) for i in (0, 1))
    frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return cut(
        frames, own, core, torch.from_numpy(np.stack(mattes))[:, None], np.stack([o[2] for o in owned]), skeleton
    )


def cut_puppet(puppet, *bodies: np.ndarray, details: bool = False) -> Cutouts:
    """The puppet in these poses, each time in another cloth."""
    pictures = [puppet.cloth(k) for k in range(len(bodies))]
    return cutouts_of(pictures, [puppet.matte(b) for b in bodies], skeletons(puppet.track(*bodies, details=details)))


def drawn(cutouts: Cutouts, pose: Skeleton, size: tuple[int, int] = (160, 128), **options):
    return render(cutouts, lay_out(cutouts, pose)[0], size, **options)


def random_bodies(puppet, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        puppet.body(
            tuple(rng.uniform(-60, 170, 2)), tuple(rng.uniform(-60, 170, 2)), legs=rng.uniform(0, 30),
            reach=tuple(rng.uniform(-0.2, 0.2, 2)), at=tuple(rng.uniform(40, 80, 2)), turn=rng.uniform(-30, 30),
            scale=rng.uniform(60, 110),
        )
        for _ in range(count)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ scale and transforms


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


# ------------------------------------------------------------------------------------------------ the choice


def total(cost: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """What the assignments (N, P) cost."""
    own = cost[np.arange(len(PARENT)), chosen].sum(-1)
    joined = [choosing.AT_THE_NECK if name == "head" else choosing.JOINED for name in PARTS]
    return own + sum(joined[i] * (chosen[:, i] != chosen[:, p]) for i, p in enumerate(PARENT) if p >= 0)


def test_the_choice_costs_least_of_all_with_two_references():
    rng = np.random.default_rng(0)
    every = (np.arange(1 << len(PARTS))[:, None] >> np.arange(len(PARTS))) & 1
    for spread in (0.3, 1.0, 3.0):
        cost = rng.exponential(spread, (len(PARTS), 2))
        assert total(cost, choose(cost)[None])[0] == pytest.approx(total(cost, every).min())


def test_the_choice_costs_least_of_all_with_three_references():
    rng = np.random.default_rng(1)
    # All assignments of eight parts; the others are so dear elsewhere that they stay with reference 1.
    free = [0, 1, 2, 4, 6, 8, 10, 12]
    every = np.ones((3 ** len(free), len(PARTS)), int)
    every[:, free] = np.arange(3 ** len(free))[:, None] // 3 ** np.arange(len(free)) % 3
    for _ in range(5):
        cost = rng.exponential(1.0, (len(PARTS), 3))
        for i in set(range(len(PARTS))) - set(free):
            cost[i] = (100, 0, 100)
        chosen = choose(cost)
        assert (chosen[[3, 5, 7, 9, 11, 13]] == 1).all()
        assert total(cost, chosen[None])[0] == pytest.approx(total(cost, every).min())


def test_parts_stay_together_until_it_pays_to_part(monkeypatch):
    cost = np.zeros((len(PARTS), 2))
    cost[:, 1] = 1.0
    cost[PART["left_hand"]] = (0.5, 0)
    monkeypatch.setattr(choosing, "JOINED", 0.6)
    assert (choose(cost) == 0).all()
    monkeypatch.setattr(choosing, "JOINED", 0.4)
    assert np.flatnonzero(choose(cost)).tolist() == [PART["left_hand"]]


def test_choosing_leaves_the_costs_alone():
    cost = np.random.default_rng(2).random((len(PARTS), 3))
    before = cost.copy()
    choose(cost)
    np.testing.assert_array_equal(cost, before)


# ------------------------------------------------------------------------------------------------ cutting


def test_every_limb_owns_its_own_middle(puppet):
    body = puppet.body((80, 70), (60, 80), legs=14)
    skeleton, matte = skeletons(puppet.track(body)), puppet.matte(body)
    own, core, alone = part_mattes(skeleton, matte)
    assert own.dtype == core.dtype == np.float32
    assert own.shape == core.shape == (len(PARTS), 160, 128)
    assert own.min() >= 0
    assert (own <= matte + 1e-6).all()
    assert core.min() >= 0
    assert core.max() <= 1
    for i in [*LIMBS, PART["torso"]]:
        x, y = skeleton.bones[0, i, :, :2].mean(0).astype(int)
        assert own[i, y, x] > 0.95
        assert core[i, y, x] == 1
        others = [j for j in range(len(PARTS)) if j not in (i, PARENT[i]) and PARENT[j] != i]
        assert own[others, y, x].max() < 0.05
    # Nothing of the person is lost: somebody owns every solid pixel.
    assert (own.max(0)[matte == 1] > 0.3).mean() > 0.99
    assert ((alone >= 0) & (alone <= 1)).all()


def test_a_limb_in_the_air_stands_more_alone_than_one_before_the_body(puppet):
    out, crossed = puppet.body((85, 85)), puppet.body(**CROSSED)
    alone = [part_mattes(skeletons(puppet.track(b)), puppet.matte(b))[2] for b in (out, crossed)]
    arm = PART["left_lower_arm"]
    assert alone[0][arm] > alone[1][arm] + 0.2


def test_the_torso_leaves_the_face_to_the_head(puppet):
    body = puppet.body()
    own, _, _ = part_mattes(skeletons(puppet.track(body)), puppet.matte(body))
    for joint in ("nose", "left_eye", "right_eye"):
        x, y = body[J[joint], :2].astype(int)
        assert own[PART["head"], y, x] > 0.95
        assert own[PART["torso"], y, x] < 0.05
    face = own[:, : int(body[J["nose"], 1]) + 2]
    assert face[PART["torso"]].max() < 0.05 < face[PART["head"]].max()
    # But both own the neck, so that bending tears no gap.
    x, y = (0.7 * body[[11, 12], :2].mean(0) + 0.3 * body[[7, 8], :2].mean(0)).astype(int)
    assert own[PART["head"], y, x] > 0.5
    assert own[PART["torso"], y, x] > 0.5


def test_nobody_owns_an_empty_matte(puppet):
    own, core, alone = part_mattes(skeletons(puppet.track(puppet.body())), np.zeros((160, 128), np.float32))
    assert not own.any()
    assert not core.any()
    assert not alone.any()
    empty = cut_puppet(puppet, puppet.body() + np.float32([900, 0, 0, 0]))  # out of the picture
    rgb, alpha, _ = drawn(empty, skeletons(puppet.track(puppet.body())))
    assert not alpha.any()
    assert not rgb.any()


def paint(puppet, body: np.ndarray, colours: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """A white person on black whose named limbs have plain colours, later ones in front."""
    shapes = puppet.shapes(body)
    picture = np.repeat(255 * puppet.matte(body)[..., None], 3, 2)
    for name, colour in colours.items():
        alpha = shapes[name][..., None]
        picture = picture * (1 - alpha) + np.array(colour) * alpha
    return picture.astype(np.uint8)


RED, BLUE = (230, 20, 20), (20, 20, 230)
TORSO = {f"torso{i}": BLUE for i in range(5)}
ARM = {"left_upper_arm": RED, "left_lower_arm": RED, "left_hand": RED}


def middle_of_arm(skeleton: Skeleton, share: float = 0.5) -> tuple[int, int]:
    a, b = skeleton.bones[0, PART["left_lower_arm"], :, :2]
    x, y = (a + share * (b - a)).astype(int)
    return int(y), int(x)


def test_what_an_arm_hides_is_completed_from_the_other_reference(puppet):
    crossed, out = puppet.body(**CROSSED), puppet.body((85, 85))
    track = puppet.track(crossed, out)
    pictures = [paint(puppet, b, TORSO | ARM) for b in (crossed, out)]
    made = cutouts_of(pictures, [puppet.matte(b) for b in (crossed, out)], skeletons(track))
    y, x = middle_of_arm(made.skeleton.take([0]), 0.6)
    left, top = made.origins[PART["torso"], 0].astype(int)
    assert pictures[0][y, x, 0] > 200  # the arm is there
    torso = made.textures[PART["torso"]][0, :, y - top, x - left]
    assert torso[2] > torso[0] + 0.5
    assert torso[3] > 0.9
    assert ((made.shown >= 0) & (made.shown <= 1)).all()


def centre(alpha: torch.Tensor) -> tuple[float, float]:
    down, across = alpha[0].sum(1), alpha[0].sum(0)
    return tuple(float((x * (torch.arange(len(x)) + 0.5)).sum() / x.sum()) for x in (across, down))


def test_half_the_resolution_shows_the_same(puppet):
    whole = cut_puppet(puppet, puppet.body((60, 60)))
    half = whole.halved()
    assert (whole.shrink, half.shrink, half.halved().shrink) == (1, 2, 4)
    for a, b in zip(whole.textures, half.textures, strict=True):
        assert [-(-n // 2) for n in a.shape[2:]] == list(b.shape[2:])
    layout, _ = lay_out(whole, whole.skeleton)
    for layer in layout:  # neither shifted by half a pixel nor larger
        (fine, alpha, _), (coarse, other, _) = (render(c, (layer,), (160, 128)) for c in (whole, half))
        np.testing.assert_allclose(centre(alpha), centre(other), atol=0.05)
        np.testing.assert_allclose(alpha.sum(), other.sum(), rtol=0.01)
        np.testing.assert_allclose(fine.sum((1, 2)), coarse.sum((1, 2)), rtol=0.05)


def test_the_mirror_shows_the_same_person_the_other_way_round(puppet, monkeypatch):
    body = puppet.body((85, 150), (20, 40), legs=14, turn=10)
    track = puppet.track(body, details=True)
    made = cut_puppet(puppet, body, details=True).with_mirrored(track)
    assert len(made.skeleton) == 2
    assert made.handicap[1] > made.handicap[0] == 0
    width, _ = puppet.size
    mirrored = body[list(MIRROR)]
    mirrored[:, 0] = width - mirrored[:, 0]
    pose = skeletons(puppet.track(mirrored, details=True))
    for cutouts, tolerance in ((made, 1e-4), (made.halved(), 0.02)):  # halves may begin one pixel later
        monkeypatch.setattr(laying_out, "choose", lambda cost: np.ones(len(PARTS), int))
        rgb, alpha, _ = drawn(cutouts, pose)
        monkeypatch.setattr(laying_out, "choose", lambda cost: np.zeros(len(PARTS), int))
        plain, matte, _ = drawn(cutouts, made.skeleton.take([0]))
        assert (alpha - matte.flip(2)).abs().mean() < tolerance
        assert (rgb - plain.flip(2)).abs().mean() < tolerance
        assert (plain - plain.flip(2)).abs().mean() > 0.03


def test_the_mirror_is_asked_for_what_no_reference_shows(puppet):
    # The left arm is hidden behind the body; the right one hangs at the side.
    body = puppet.body((0, 0), (40, 40))
    matte = puppet.matte(body)
    track = puppet.track(body)
    hidden = [PART[f"left_{name}"] for name in ("upper_arm", "lower_arm", "hand")]
    made = cutouts_of([puppet.cloth(0)], [matte], skeletons(track))
    made = replace(made, shown=np.where(np.isin(np.arange(len(PARTS)), hidden), 0.0, 1.0)[None])
    _, state = lay_out(made.with_mirrored(track), skeletons(puppet.track(puppet.body((40, 40), (40, 40)))))
    assert state.mix.argmax(1)[hidden].tolist() == [1, 1, 1]
    assert state.mix.argmax(1)[PART["right_lower_arm"]] == 0


# ------------------------------------------------------------------------------------------------ drawing


def inner(matte: np.ndarray, pixels: int = 2) -> torch.Tensor:
    solid = torch.from_numpy(matte)[None, None] >= 0.999
    return F.max_pool2d((~solid).float(), 2 * pixels + 1, 1, pixels)[0, 0] == 0


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize(
    "pose", [{}, {"left": (85, 85), "right": (150, 170)}, CROSSED], ids=["stand", "wave", "crossed"]
)
def test_driving_a_reference_with_its_own_pose_leaves_its_pixels_as_they_are(puppet, pose, details):
    body = puppet.body(**pose)
    made = cut_puppet(puppet, body, details=details)
    rgb, alpha, none = drawn(made, made.skeleton)
    assert none is None
    assert rgb.shape == (3, 160, 128)
    assert alpha.shape == (1, 160, 128)
    matte = puppet.matte(body)
    assert (alpha[0][inner(matte)] > 0.95).float().mean() > 0.99
    assert alpha[0][torch.from_numpy(matte) == 0].max() < 1e-4
    assert (alpha[0] - torch.from_numpy(matte)).abs().mean() < 0.01
    truth = torch.from_numpy(puppet.cloth(0)).permute(2, 0, 1) / 255
    error = ((rgb / alpha.clamp_min(1e-3) - truth) ** 2)[:, inner(matte)].mean()
    assert -10 * error.log10() > 35


def test_among_several_references_the_one_in_the_same_pose_is_shown(puppet):
    bodies = [
        puppet.body((85, 20), (20, 85), legs=3, scale=66, turn=-20),
        puppet.body((150, 160), (140, 150), legs=28, scale=66),
        puppet.body((20, 100), (85, 60), legs=14, scale=66, turn=25),
    ]
    made = cut_puppet(puppet, *bodies)
    for k, body in enumerate(bodies):
        layout, state = lay_out(made, made.skeleton.take([k]))
        assert state.mix.argmax(1).tolist() == [k] * len(PARTS)
        rgb, alpha, _ = render(made, layout, (160, 128))
        truth = torch.from_numpy(puppet.cloth(k)).permute(2, 0, 1) / 255
        error = ((rgb / alpha.clamp_min(1e-3) - truth) ** 2)[:, inner(puppet.matte(body))].mean()
        assert -10 * error.log10() > 30


def test_a_person_moved_by_whole_pixels_is_the_same_person_there(puppet):
    made = cut_puppet(puppet, puppet.body((50, 70)))
    moved = skeletons(puppet.track(puppet.body((50, 70), at=(64 + 9, 76 - 5))))
    here, there = drawn(made, made.skeleton), drawn(made, moved)
    for a, b in zip(here[:2], there[:2], strict=True):
        torch.testing.assert_close(b[:, 1:-10, 12:], a[:, 6:-5, 3:-9], atol=0.02, rtol=0)


@pytest.mark.parametrize(("depth", "front"), [(-0.4, "arm"), (0.4, "torso")])
def test_what_is_nearer_covers_what_is_farther(puppet, depth, front):
    body = puppet.body((85, 85))
    made = cutouts_of([paint(puppet, body, TORSO | ARM)], [puppet.matte(body)], skeletons(puppet.track(body)))
    pose = skeletons(puppet.track(puppet.body((10, -115), reach=(depth, 0))))
    rgb, alpha, shares = drawn(made, pose, per_part=True)
    y, x = middle_of_arm(pose, 0.7)
    red, _, blue = rgb[:, y, x]
    assert alpha[0, y, x] > 0.95
    assert (red > blue + 0.5) if front == "arm" else (blue > red + 0.5)
    assert shares is not None
    assert shares.shape == (len(PARTS), 160, 128)
    seen = {"arm": PART["left_lower_arm"], "torso": PART["torso"]}
    assert shares[seen.pop(front), y, x] > 0.9
    assert shares[seen.popitem()[1], y, x] < 0.1
    # Shares are what is visible: together no more than all there is.
    assert (shares.sum(0) <= alpha[0] + 1e-4).all()


@pytest.mark.parametrize("shift", [(3, 0), (0, -4), (-5, 2)])
def test_flow_shows_what_would_stand_so_many_pixels_away(puppet, shift):
    made = cut_puppet(puppet, puppet.body((60, 20)), details=True)
    pose = skeletons(puppet.track(puppet.body((100, 40)), details=True))
    flow = torch.tensor(shift, dtype=torch.float32)[:, None, None].expand(2, 160, 128)
    still, moved = drawn(made, pose), drawn(made, pose, flow=flow)
    for a, b in zip(still[:2], moved[:2], strict=True):
        # Away from the borders of the picture, where the flow points outside.
        torch.testing.assert_close(
            b[:, 8:-8, 8:-8], a.roll((-shift[1], -shift[0]), (1, 2))[:, 8:-8, 8:-8], atol=2e-3, rtol=0
        )
    assert (still[0] - moved[0]).abs().max() > 0.1


def test_flow_carries_gradients(puppet):
    made = cut_puppet(puppet, puppet.body((60, 20)))
    flow = torch.zeros(2, 160, 128, requires_grad=True)
    rgb, alpha, _ = drawn(made, made.skeleton, flow=flow)
    plain = drawn(made, made.skeleton)
    torch.testing.assert_close(rgb.detach(), plain[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(alpha.detach(), plain[1], atol=1e-4, rtol=0)
    with_shares = drawn(made, made.skeleton, flow=flow, per_part=True)[2]
    torch.testing.assert_close(with_shares, drawn(made, made.skeleton, per_part=True)[2], atol=1e-4, rtol=0)
    # A step down the gradient brings the picture closer to one that was shifted.
    with torch.no_grad():
        wanted = drawn(made, made.skeleton, flow=torch.full((2, 160, 128), 0.5))[0]
    before = ((rgb - wanted) ** 2).sum()
    before.backward()
    assert flow.grad is not None
    assert flow.grad.isfinite().all()
    step = flow.detach() - 0.3 * flow.grad / flow.grad.abs().max()
    assert ((drawn(made, made.skeleton, flow=step)[0] - wanted) ** 2).sum() < 0.99 * before.detach()


@pytest.mark.parametrize("zoom", [0.5, 2.0])
def test_zoom_shows_the_same_in_another_size(puppet, zoom):
    made = cut_puppet(puppet, puppet.body((60, 20)), details=True)
    pose = skeletons(puppet.track(puppet.body((100, 40)), details=True))
    size = (round(160 * zoom), round(128 * zoom))
    rgb, alpha, _ = drawn(made.halved() if zoom < 1 else made, pose, size, zoom=zoom)
    full, matte, _ = drawn(made, pose)
    assert rgb.shape[1:] == size
    shrink = min(size, (160, 128))
    for a, b in ((rgb, full), (alpha, matte)):
        difference = F.interpolate(a[None], shrink, mode="area") - F.interpolate(b[None], shrink, mode="area")
        assert difference.abs().mean() < 0.012
        assert b.mean() > 0.05


def test_nothing_is_drawn_of_a_person_outside_of_the_picture(puppet):
    made = cut_puppet(puppet, puppet.body())
    for at in ((-400, 76), (64, 900)):
        rgb, alpha, _ = drawn(made, skeletons(puppet.track(puppet.body(at=at))))
        assert not rgb.any()
        assert not alpha.any()


def head_field(puppet, moved):
    """What is added to a head's affine transform where its mesh is displaced, `moved`: (N, 2) of (N, 2), in head radii.

    Returns (at the points of the mesh (N, 2), what would be right (N, 2)), in head radii.
    """
    track = puppet.track(puppet.body(scale=800, at=(600, 900)), size=(1200, 1800), details=True)
    radius, middle = 0.11 * skeletons(track).scale[0], track.face[0, :, :2].mean(0)
    face = track.face.copy()
    face[0, :, :2] += radius * moved((face[0, :, :2] - middle) / radius)
    here, there = skeletons(track), skeletons(replace(track, face=face))
    back = inverse(affines(here, there)[0])[0]
    corner = track.face[0, :, :2].min(0) - 20
    box = (*corner.astype(int), *(track.face[0, :, :2].max(0) + 20).astype(int))
    field = laying_out.bent(PART["head"], there, here, 0, back, box)
    assert field.shape[0] == 3
    x, y = there.face[0].T
    cells = [
        (v - low) * field.shape[1] / (high - low) - 0.5 for v, low, high in ((x, box[0], box[2]), (y, box[1], box[3]))
    ]
    at = np.stack([cv2.remap(f, *(c.astype(np.float32) for c in cells), cv2.INTER_LINEAR)[:, 0] for f in field[:2]], 1)
    right = here.face[0] - (there.face[0] @ back[0, :, :2].T + back[0, :, 2])
    return at / radius, right / radius


def test_a_head_follows_its_mesh_down_to_the_lips(puppet):
    mouth = np.array([0, 0.3])
    at, right = head_field(puppet, lambda p: [0, 0.1] * np.exp(-((p - mouth) ** 2).sum(1, keepdims=True) / 2 / 0.15**2))
    assert np.abs(right).max() > 0.08
    assert np.abs(at - right).max() < 0.3 * np.abs(right).max()


def test_no_face_is_bent_out_of_shape(puppet):
    at, right = head_field(puppet, lambda p: 0.5 * np.cos(5 * p))
    assert np.sqrt((right**2).sum(1).mean()) > 0.3
    assert np.sqrt((at**2).sum(1).mean()) < 0.16


# ------------------------------------------------------------------------------------------------ over time


def test_the_same_pose_is_laid_out_alike(puppet):
    made = cut_puppet(puppet, *random_bodies(puppet, 3), details=True)
    pose = skeletons(puppet.track(puppet.body((90, 30)), details=True))
    (a, first), (b, second) = lay_out(made, pose), lay_out(made, pose)
    np.testing.assert_array_equal(first.mix, second.mix)
    np.testing.assert_array_equal(first.depth, second.depth)
    for x, y in zip(render(made, a, (160, 128))[:2], render(made, b, (160, 128))[:2], strict=True):
        assert torch.equal(x, y)


def test_a_change_of_reference_is_faded_over_frames(puppet):
    bodies = [
        puppet.body((85, 20), (20, 85), turn=-20, scale=66),
        puppet.body((150, 160), (140, 150), turn=25, scale=66),
    ]
    made = cut_puppet(puppet, *bodies)
    _, state = lay_out(made, made.skeleton.take([0]))
    assert (state.mix == np.eye(2)[np.zeros(len(PARTS), int)]).all()
    share = [1.0]
    for _ in range(12):
        layout, state = lay_out(made, made.skeleton.take([1]), state)
        np.testing.assert_allclose(state.mix.sum(1), 1)
        assert (state.mix >= 0).all()
        for layer in layout:
            assert sum(piece.weight for piece in layer) == pytest.approx(1)
        share.append(state.mix[PART["torso"], 0])
    assert 0 < share[1] < 1
    assert share == sorted(share, reverse=True)
    assert share[-1] == 0


def test_a_cross_fade_mixes_the_colours_of_both_references(puppet):
    body = puppet.body((85, 85))
    plain = [np.full((160, 128, 3), grey, np.uint8) for grey in (50, 200)]
    made = cutouts_of(plain, [puppet.matte(body)] * 2, skeletons(puppet.track(body, body)))
    layout, _ = lay_out(made, made.skeleton.take([0]))
    mixed = tuple(
        tuple(replace(layer[0], ref=k, weight=w) for k, w in ((0, 0.25), (1, 0.75))) for layer in layout if layer
    )
    rgb, alpha, _ = render(made, mixed, (160, 128))
    inside = inner(puppet.matte(body), 4)
    inside &= alpha[0] > 0.999
    assert inside.sum() > 500
    # But where one reference completes the other.
    assert ((rgb[0][inside] * 255 - (0.25 * 50 + 0.75 * 200)).abs() < 1).float().mean() > 0.98


def test_between_equal_references_a_part_stays_with_the_one_it_shows(puppet):
    made = cut_puppet(puppet, puppet.body(), puppet.body())
    _, fresh = lay_out(made, made.skeleton.take([0]))
    assert (fresh.mix[:, 0] == 1).all()
    other = replace(fresh, mix=fresh.mix[:, ::-1].copy())
    _, after = lay_out(made, made.skeleton.take([0]), other)
    np.testing.assert_array_equal(after.mix, other.mix)


def test_depths_follow_over_frames_rather_than_jump(puppet):
    made = cut_puppet(puppet, puppet.body())
    near, far = (skeletons(puppet.track(puppet.body(**CROSSED | {"reach": (z, 0)}))) for z in (-0.4, 0.4))
    arm = PART["left_lower_arm"]
    _, before = lay_out(made, near)
    _, jumped = lay_out(made, far)
    _, after = lay_out(made, far, before)
    assert before.depth[arm] < after.depth[arm] < jumped.depth[arm]


# ------------------------------------------------------------------------------------------------ the feet's shadow


def test_the_shade_lies_under_the_feet(puppet):
    pose = skeletons(puppet.track(puppet.body(legs=20)))
    shade = parts.contact(pose, (160, 128), 1.0, torch.zeros(1))
    assert shade.shape == (1, 160, 128)
    assert shade.min() >= 0
    assert shade.max() <= 1
    for foot in ("left_foot", "right_foot"):
        x, y = pose.points[0, PART[foot], 1:3].mean(0)
        assert shade[0, round(float(y)), round(float(x))] > 0.5
    assert shade[0, :100].max() < 0.01
    half = parts.contact(pose, (80, 64), 0.5, torch.zeros(1))
    torch.testing.assert_close(F.avg_pool2d(shade, 2), half, atol=0.05, rtol=0)


def test_feet_that_were_not_found_shade_nothing(puppet):
    pose = skeletons(puppet.track(puppet.body()))
    lost = replace(pose, points=np.full_like(pose.points, np.nan))
    assert not parts.contact(lost, (160, 128), 1.0, torch.zeros(1)).any()


@pytest.mark.parametrize("before", [True, False], ids=["before the body", "in the air"])
def test_a_hand_before_the_body_ends_where_its_fingers_do(puppet, before):
    """In the air all that is there is its own."""
    body, hand = puppet.body(left=(15, 300) if before else (60, 60)), PART["left_hand"]
    matte = np.ones((160, 128), np.float32)
    known, unknown = (skeletons(puppet.track(body, details=details)) for details in (True, False))
    y, x = np.mgrid[0:160, 0:128] + 0.5
    joints = known.points[0, hand]
    far = np.hypot(x[..., None] - joints[:, 0], y[..., None] - joints[:, 1]).min(-1) > 0.05 * known.scale[0]
    tight, loose = (part_mattes(skeleton, matte)[0][hand] for skeleton in (known, unknown))
    assert (tight > 0.5).sum() > 10
    assert (loose[far] > 0.5).any()
    if before:
        assert (tight[far] > 0.5).sum() < 0.5 * (loose[far] > 0.5).sum()
    else:
        np.testing.assert_array_equal(tight, loose)


# ------------------------------------------------------------------------------------------------ judging references


def judged_puppet(puppet, count: int, *, spoilt: tuple[int, str] | None = None) -> Cutouts:
    """The puppet in one cloth and several poses; one part of one picture may have come out all wrong."""
    turns = [dict(right=(90, 150), left=(20 + 12 * k, 40), legs=8 + 2 * k) for k in range(count)]
    bodies = [puppet.body(**turn) for turn in turns]
    skeleton, mattes = skeletons(puppet.track(*bodies)), [puppet.matte(b) for b in bodies]
    own = torch.from_numpy(np.stack([part_mattes(skeleton.take([k]), m)[0] for k, m in enumerate(mattes)]))
    frames = torch.full((count, 3, *mattes[0].shape), 0.6)
    if spoilt is not None:
        k, name = spoilt
        frames[k] = torch.where(own[k, PART[name]] > 0.3, 0.05, frames[k])
    pictures = [(255 * f).byte().permute(1, 2, 0).numpy() for f in frames]
    made = cutouts_of(pictures, mattes, skeleton)
    return replace(made, blame=parts.blame(made, frames, own))


@pytest.mark.parametrize("name", ["left_upper_leg", "torso"])
def test_a_part_that_shows_the_others_badly_is_blamed(puppet, name):
    """And that part of that picture alone; the head is left alone."""
    fair, spoilt = (judged_puppet(puppet, 5, spoilt=s) for s in (None, (2, name)))
    assert np.abs(fair.blame).max() < 0.2
    blame = spoilt.blame[PART[name]]
    assert blame.argmax() == 2
    assert blame[2] > 1
    assert (np.delete(blame, 2) < 0).all()
    apart = [PART[other] for other in ("right_lower_arm", "right_lower_leg", "right_foot")]
    assert np.abs(spoilt.blame[apart]).max() < blame[2] / 2
    assert (judged_puppet(puppet, 5, spoilt=(2, "head")).blame[PART["head"]] == 0).all()


def test_a_bad_limb_is_taken_from_elsewhere(puppet):
    spoilt = judged_puppet(puppet, 5, spoilt=(2, "left_lower_leg"))
    pose = spoilt.skeleton.take([2])
    leg = PART["left_lower_leg"]
    layout, _ = lay_out(spoilt, pose)
    assert [piece.ref for layer in layout for piece in layer if piece.part == leg] != [2]
    unjudged = replace(spoilt, blame=np.zeros_like(spoilt.blame))
    layout, _ = lay_out(unjudged, pose)
    assert [piece.ref for layer in layout for piece in layer if piece.part == leg] == [2]


def test_what_is_cut_out_beside_a_part_is_an_error(puppet):
    """Also where the truth shows no person: but not where another part may hide it."""
    body, leg = puppet.body(right=(90, 150), left=(20, 40), legs=8), PART["left_lower_leg"]
    skeleton, matte = skeletons(puppet.track(body)), puppet.matte(body)
    own = torch.from_numpy(part_mattes(skeleton, matte)[0])
    truth = torch.where(torch.from_numpy(matte) > 0.5, 0.6, 0.1).expand(3, -1, -1).contiguous()
    picture = np.ascontiguousarray((255 * truth).byte().permute(1, 2, 0).numpy())
    made = cutouts_of([picture], [matte], skeleton)
    clean, pixels = parts.errors(made, skeleton, truth, own, [leg])
    texture = made.textures[leg].clone()
    texture[:, 3, 2:-2, 2:-2] = 1
    texture[:, :3] = 0.6
    textures = tuple(texture if p == leg else t for p, t in enumerate(made.textures))
    spilt, same = parts.errors(replace(made, textures=textures), skeleton, truth, own, [leg])
    assert clean[leg, 0] < 0.05
    assert spilt[leg, 0] > clean[leg, 0] + 0.1
    assert np.array_equal(pixels, same)
    others = own.clone()
    others[PART["torso"]] = 1 - own[leg]
    hidden, _ = parts.errors(replace(made, textures=textures), skeleton, truth, others, [leg])
    assert hidden[leg, 0] < clean[leg, 0] + 0.05


def test_two_references_cannot_judge_each_other(puppet):
    assert (judged_puppet(puppet, 2, spoilt=(1, "left_upper_leg")).blame == 0).all()


def test_a_head_is_rather_taken_from_where_no_hand_is_at_it(puppet):
    beside, touching = puppet.body(left=(100, 100)), puppet.body(left=(300, 150))
    made = cut_puppet(puppet, beside, touching)
    clean = cut_puppet(puppet, beside, puppet.body(left=(100, 130)))
    head, torso = PART["head"], PART["torso"]
    assert made.shown[1, head] < 0.5 * clean.shown[1, head]
    assert made.shown[0, head] == pytest.approx(clean.shown[0, head], abs=0.05)
    assert made.shown[1, torso] > 0.5 * clean.shown[1, torso]
    layout, _ = lay_out(made, made.skeleton.take([1]))
    assert [piece.ref for layer in layout for piece in layer if piece.part == head] == [0]
