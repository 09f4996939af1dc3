"""The learned choice of references: what it sees, what it loses, and that it follows what came of earlier choices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from retarget import parts
from retarget.models.base import stacked
from retarget.models.choice import KINDS, Choice, lesson
from retarget.models.dance import to_track
from retarget.parts.choosing import TRUNK
from retarget.references import arrays, references
from retarget.skeleton import MIRROR_PART, PART, PARTS

WAVING, STANDING = {"left": (150, 165), "right": (60, 20)}, {"left": (25, 25), "right": (25, 25)}


@pytest.fixture
def choice() -> Choice:
    torch.manual_seed(0)
    return Choice()


@pytest.fixture(scope="module")
def known(puppet):
    """Cut-outs of three references without mirrored ones, their skeletons, pictures and mattes."""
    bodies = [puppet.body(**STANDING), puppet.body(**WAVING), puppet.body((60, 60), (120, 150))]
    given = references(arrays(puppet.gathered(*bodies, details=True)))
    skeleton = parts.skeletons(to_track(given.poses, 0))
    rgb, matte = given.rgb[0] / 2 + 0.5, given.matte[0]
    cut = [parts.part_mattes(skeleton.take([k]), matte[k, 0].numpy()) for k in range(3)]
    own, core = (torch.from_numpy(np.stack([c[i] for c in cut])) for i in (0, 1))
    return parts.cut(rgb, own, core, matte, np.stack([c[2] for c in cut]), skeleton), skeleton, rgb, matte[:, 0]


def table(*candidates: tuple[float, float], kind: str = "torso", pixels: float = 100.0) -> torch.Tensor:
    """A lesson in which only one part was seen: (cost, error) of each candidate."""
    found = torch.zeros(1, len(candidates), len(PARTS), parts.CLUES + 3)
    for k, (cost, error) in enumerate(candidates):
        found[0, k, PART[kind], parts.CLUES :] = torch.tensor([cost, error, pixels])
    return found.flatten(2)


def test_what_has_learned_nothing_says_nothing(choice):
    assert not choice.taught
    assert not choice.judge(np.ones((len(PARTS), 4, parts.CLUES), np.float32)).any()
    torch.nn.init.normal_(choice.last.weight)
    assert choice.taught
    assert choice.judge(np.ones((len(PARTS), 4, parts.CLUES), np.float32)).shape == (len(PARTS), 4)


def test_left_and_right_are_judged_alike(choice):
    torch.nn.init.normal_(choice.last.weight)
    rng = np.random.default_rng(0)
    clues = rng.normal(size=(len(PARTS), 3, parts.CLUES)).astype(np.float32)
    there = choice.judge(clues)
    assert np.allclose(choice.judge(clues[list(MIRROR_PART)]), there[list(MIRROR_PART)])
    assert len(KINDS) == 8
    alike = choice.judge(np.ones_like(clues))  # but not head and hand
    assert len({round(float(x), 6) for x in alike[:, 0]}) == len(KINDS)


def test_regret_by_hand(choice):
    # Equal costs: half of either; 0.2 and 0.4 have the mean 0.3, and half of the way between them is lost.
    assert choice.regret(table((1, 0.2), (1, 0.4))).item() == pytest.approx(0.1 / 0.3)
    # The better one costs far less: nothing is lost. The worse one does: all of it.
    assert choice.regret(table((0, 0.2), (5, 0.4))).item() == pytest.approx(0, abs=1e-6)
    assert choice.regret(table((5, 0.2), (0, 0.4))).item() == pytest.approx(0.2 / 0.3)


def test_what_is_unknown_cannot_be_chosen_nor_regretted(choice):
    known = choice.regret(table((1, 0.2), (1, 0.4)))
    assert torch.equal(choice.regret(table((1, 0.2), (1, 0.4), (-9, 0.0))), known)
    assert choice.regret(table((1, 0.2))).item() == 0  # nothing to choose from
    assert choice.regret(table((1, 0.0), (1, 0.0))).item() == 0
    # Lessons of different K make one batch.
    both = choice.regret(stacked([table((1, 0.2), (1, 0.4)), table((5, 0.2), (0, 0.4), (3, 0.3))]))
    assert both.tolist() == pytest.approx([known.item(), (0.4 - 0.2) / 0.3])


def test_regret_counts_parts_by_their_pixels(choice):
    lost, none = table((5, 0.2), (0, 0.4), pixels=300), table((0, 0.2), (5, 0.4), kind="head", pixels=100)
    assert choice.regret(lost + none).item() == pytest.approx(0.75 * 0.2 / 0.3)


def test_it_learns_to_prefer_what_showed_better(choice):
    """Costs say nothing; a clue does."""
    rng = torch.Generator().manual_seed(1)
    clue = torch.rand(64, 4, len(PARTS), 1, generator=rng)
    rest = torch.rand(64, 4, len(PARTS), parts.CLUES - 1, generator=rng)
    flat = torch.ones(64, 4, len(PARTS), 1)
    lessons = torch.cat([clue, rest, flat, 0.1 + 0.3 * clue, 50 * flat], -1).flatten(2)
    before = choice.regret(lessons).mean().item()
    adam = torch.optim.Adam(choice.parameters(), 0.01)
    for _ in range(150):
        adam.zero_grad()
        choice.regret(lessons).mean().backward()
        adam.step()
    assert choice.regret(lessons).mean().item() < 0.2 * before


def test_a_lesson_tells_what_comes_of_each_choice(known, choice):
    cutouts, skeleton, rgb, matte = known
    said = lesson(cutouts, skeleton.take([1]), rgb[1], matte[1]).unflatten(2, (len(PARTS), -1))[0]
    assert said.shape == (3, len(PARTS), parts.CLUES + 3)
    assert said.isfinite().all()
    clues, cost, error, pixels = said.split((parts.CLUES, 1, 1, 1), -1)
    arm = PART["left_upper_arm"]
    assert error[1, arm] < 0.02  # itself
    assert error[0, arm] > error[1, arm]
    assert (pixels[:, arm] > 20).all()
    assert np.allclose(cost[..., 0].T, parts.cost(cutouts, skeleton.take([1])) + cutouts.blame, atol=1e-4)
    # Nothing is apart from itself, nothing stretched.
    assert clues[1, :, :12].abs().max() < 1e-5
    assert clues[1, arm, 22:24].abs().max() < 1e-3
    assert clues[0, arm, 11] > 0.1


def test_clues_of_a_person_twice_as_large(known, puppet):
    """How large a body stands in the picture is told once, and stretches nothing."""
    cutouts, skeleton, *_ = known
    far = parts.skeletons(puppet.track(2 * puppet.body(**WAVING)))
    found = parts.clues(cutouts, far, parts.affines(skeleton, far)[0])
    assert found.shape == (len(PARTS), 3, parts.CLUES)
    assert found.dtype == np.float32
    assert np.allclose(found[:, :, 17], np.log(2), atol=0.02)
    assert not found[:, :, 18].any()
    legs = [PART["left_upper_leg"], PART["left_lower_leg"]]
    assert np.abs(found[legs, 1, 22:24]).max() < 0.05


def test_all_parts_follow_the_judge(known):
    cutouts, skeleton, *_ = known
    pose = skeleton.take([1])

    def used(judge):
        layers = parts.lay_out(cutouts, pose, judge=judge)[0]
        return [ref for _, ref in sorted((p.part, p.ref) for layer in layers for p in layer if p.part < len(PARTS))]

    by_rule = used(None)
    assert by_rule == used(lambda clues: np.zeros(clues.shape[:2]))
    assert [by_rule[p] for p in TRUNK] == [1, 1]
    assert set(used(lambda clues: np.tile([9.0, 9.0, 0.0], (len(clues), 1)))) == {2}

    def against_arms(clues):
        said = np.zeros(clues.shape[:2])
        said[PART["left_upper_arm"], :2] = 9
        return said

    found = used(against_arms)
    assert found[PART["left_upper_arm"]] == 2
    assert [found[p] for p in TRUNK] == [1, 1]


@pytest.mark.parametrize(("name", "faith"), [("torso", 0.5), ("left_upper_arm", 1.0)])
def test_a_judge_is_believed_less_of_the_torso(known, name, faith):
    """As much as it says against a part's own reference outweighs what the pictures say of each other, or half as
    much."""
    cutouts, skeleton, *_ = known
    pose, part = skeleton.take([1]), PART[name]
    against = np.zeros_like(cutouts.blame)
    against[part, 1] = 1

    def own(judged, blamed):
        made = replace(cutouts, blame=blamed * against)
        layers = parts.lay_out(made, pose, judge=lambda clues: judged * against)[0]
        return [piece.ref for layer in layers for piece in layer if piece.part == part] == [1]

    prices = np.arange(0.25, 8, 0.25)
    assert [own(price / faith, 0) for price in prices] == [own(0, price) for price in prices]
    assert own(0, prices[0])
    assert not own(0, prices[-1])


def test_limbs_do_not_pull_the_torso_along_over_time(known):
    """What the limbs came from in the frame before is no reason for head and torso."""
    cutouts, skeleton, *_ = known
    pose, torso = skeleton.take([1]), PART["torso"]

    def elsewhere(clues):
        said = np.tile([9.0, 9.0, 0.0], (len(clues), 1))
        said[list(TRUNK)] = 0
        return said

    state = None
    for _ in range(6):
        _, state = parts.lay_out(cutouts, pose, state, elsewhere)
        assert state.mix[torso].argmax() == 1
    assert state.mix[PART["left_upper_arm"]].argmax() == 2
