"""What belongs to which part of a made-up person, completed, halved and mirrored."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from retarget.parts import cut, lay_out, part_mattes, render, skeletons
from retarget.parts import layout as laying_out
from retarget.parts.geometry import RADII
from retarget.skeleton import MIRROR, PARENT, PART, PARTS, J

from .conftest import ARM, BLUE, CROSSED, LIMBS, RED, TORSO, cut_puppet, cutouts_of, drawn, middle_of_arm, paint


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


@pytest.mark.parametrize("name", ["left_lower_leg", "left_upper_leg"])
def test_beyond_a_gap_is_another_leg(puppet, name):
    """The gap between two legs is rarely where it is equally far to both."""
    body, part = puppet.body(legs=14), PART[name]
    skeleton, matte = skeletons(puppet.track(body)), np.ones((160, 128), np.float32)
    x, y = skeleton.bones[0, part, :, :2].mean(0)
    inwards = int(np.sign(skeleton.bones[0, PART["right" + name[4:]], :, 0].mean() - x))
    near, gap, beyond = (int(x) + inwards * n for n in (1, 3, 5))
    before = part_mattes(skeleton, matte)[0][part, int(y)]
    matte[:, gap] = 0
    after, core, _ = (m[part, int(y)] if np.ndim(m) == 3 else m for m in part_mattes(skeleton, matte))
    assert min(before[near], before[beyond], after[near]) > 0.5
    assert max(after[beyond], core[beyond]) < 0.2
    # A border that is soft stays as it is.
    matte[:, gap::inwards] = 0
    matte[:, gap] = 0.5
    np.testing.assert_allclose(part_mattes(skeleton, matte)[0][part, int(y), gap], 0.5 * before[gap], atol=0.05)


@pytest.mark.parametrize("name", ["left_upper_leg", "right_lower_leg", "left_upper_arm", "right_lower_arm"])
def test_a_limb_continues_beyond_its_joints_in_its_own_picture(puppet, name):
    """What is there is not hidden: other references' knees would be a band around this one."""
    body, part = puppet.body((80, 70), (60, 80), legs=14), PART[name]
    skeleton, matte = skeletons(puppet.track(body)), puppet.matte(body)
    own, core, _ = part_mattes(skeleton, matte)
    ends = skeleton.bones[0, part, :, :2]
    for a, b in (ends, ends[::-1]) if "lower" in name else (ends,):
        x, y = (b + 0.8 * RADII[part] * skeleton.scale[0] * (b - a) / np.linalg.norm(b - a)).astype(int)
        assert matte[y, x] == 1
        assert core[part, y, x] > 0.9
        assert own[part, y, x] == pytest.approx(core[part, y, x], abs=0.05)
    y, x = np.mgrid[:160, :128]
    beyond = (np.stack([x, y], -1) - ends[1]) @ (ends[1] - ends[0]) > 0
    assert (own[part] >= matte * core[part] - 1e-5)[beyond].all()


def test_nobody_owns_an_empty_matte(puppet):
    own, core, alone = part_mattes(skeletons(puppet.track(puppet.body())), np.zeros((160, 128), np.float32))
    assert not own.any()
    assert not core.any()
    assert not alone.any()
    empty = cut_puppet(puppet, puppet.body() + np.float32([900, 0, 0, 0]))  # out of the picture
    rgb, alpha, _ = drawn(empty, skeletons(puppet.track(puppet.body())))
    assert not alpha.any()
    assert not rgb.any()


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


@pytest.mark.parametrize("name", ["left_lower_arm", "right_upper_leg", "torso", "head"])
def test_what_no_reference_shows_of_a_limb_has_its_colours_and_of_a_head_is_missing(puppet, name):
    body = puppet.body((85, 85))
    skeleton, matte, part = skeletons(puppet.track(body)), puppet.matte(body), PART[name]
    own, core, alone = part_mattes(skeleton, matte)
    a, b = skeleton.bones[0, part, :, :2]
    y, x = np.mgrid[:160, :128] + 0.5
    reached = ((x - a[0]) * (b - a)[0] + (y - a[1]) * (b - a)[1]) / ((b - a) ** 2).sum()
    before = (np.abs(reached - 0.5) < 0.2) & (own[part] > 0.5)  # something stands before its middle
    other = PART["right_hand"]
    own[other], own[part] = np.maximum(own[other], own[part] * before), own[part] * ~before
    picture = np.where(before, np.array(BLUE)[:, None, None], np.array(RED)[:, None, None]) / 255
    frames, owned, cores = (torch.from_numpy(v[None]).float() for v in (picture, own, core))
    made = cut(frames, owned, cores, torch.from_numpy(matte)[None, None], alone[None], skeleton)
    col, row = ((a + b) / 2).astype(int) - made.origins[part, 0].astype(int)
    red, _, blue, alpha = made.textures[part][0, :, row, col].tolist()
    if name == "head":
        assert alpha < 0.01
    else:
        assert alpha > 0.95
        assert red > blue + 0.7


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


def test_where_soft_edges_meet_nothing_shows_through(puppet):
    """Half a pixel of the torso's own and half of what an arm hides of it make a whole one."""
    bodies = [puppet.body(**CROSSED), puppet.body((20, 20), (20, 20))]
    skeleton = skeletons(puppet.track(*bodies))
    mattes = [puppet.matte(b) for b in bodies]
    owned = [part_mattes(skeleton.take([k]), m) for k, m in enumerate(mattes)]
    own, core = (torch.from_numpy(np.stack([o[i] for o in owned])) for i in (0, 1))
    torso = PART["torso"]
    for k in range(2):  # as a matte ends, over some pixels
        own[k] = torch.from_numpy(np.stack([cv2.GaussianBlur(x, (0, 0), 1.5) for x in own[k].numpy()]))
    frames = torch.from_numpy(np.stack([puppet.cloth(k) for k in range(2)])).permute(0, 3, 1, 2).float() / 255
    alone = np.stack([o[2] for o in owned])
    made = cut(frames, own, core, torch.from_numpy(np.stack(mattes))[:, None], alone, skeleton)
    middle = skeleton.bones[0, torso, :, :2].mean(0) - made.origins[torso, 0]
    x, y = middle.round().astype(int)
    alpha = made.textures[torso][0, 3, y - 8 : y + 8, x - 6 : x + 6]
    assert (own[0, torso] < 0.6).numpy()[int(middle[1] + made.origins[torso, 0, 1])].any()
    assert alpha.min() > 0.9
    assert alpha.max() <= 1 + 1e-5


def test_crumbs_of_a_part_are_left_out(puppet):
    """A speck that is owned far from a part would float beside it in every frame; what is cut in two is kept."""
    body, arm = puppet.body((80, 70), (60, 80), legs=14), PART["left_lower_arm"]
    skeleton, matte = skeletons(puppet.track(body)), puppet.matte(body)
    own, core, alone = (np.stack([m]) for m in part_mattes(skeleton, matte))
    frames = torch.full((1, 3, 160, 128), 0.5)
    mattes = torch.from_numpy(matte)[None, None]

    def area(owned: np.ndarray) -> float:
        made = cut(frames, torch.from_numpy(owned), torch.zeros(core.shape), mattes, alone, skeleton)
        return float(made.textures[arm][0, 3].sum())

    whole = area(own)
    crumb = own.copy()
    crumb[0, arm, 10:12, 10:11] = 1
    assert area(crumb) == pytest.approx(whole)
    ys, _ = np.nonzero(own[0, arm] > 0.02)
    halves = own.copy()
    halves[0, arm, int(np.median(ys))] = 0
    gone = float(own[0, arm, int(np.median(ys))].sum())
    assert area(halves) == pytest.approx(whole - gone, rel=0.02)
