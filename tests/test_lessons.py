"""What fine-tuning learns from: pairs whose truth the identity does not know."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from retarget import device
from retarget.lessons import JITTER, LOSS, TRUTHS, VARIANTS, Lessons, adapt, as_image, batches
from retarget.metrics import foreground_psnr, foreground_ssim
from retarget.models.base import Batch
from retarget.models.dance import Dance
from retarget.models.losses import DanceObjective, LossWeights
from retarget.references import arrays, pixels, poses
from retarget.training.fit import FitOptions

SMALL: dict[str, Any] = {"density": 24, "width": 8, "depth": 2}
FULL = SMALL | {"density": 500}
"""The nets see every pixel of the surroundings."""
POSES = [{}, {"left": (90, 80), "right": (30, 20)}, {"left": (20, 40), "right": (150, 165)}]


@pytest.fixture
def model() -> Dance:
    torch.manual_seed(0)
    return Dance(**SMALL).eval()


@pytest.fixture(scope="module")
def people(puppet) -> dict[int, Any]:
    """Gathered references by K."""
    return {k: puppet.gathered(*(puppet.body(**p) for p in POSES[:k]), details=True) for k in (1, 2, 3)}


def lessons(model: Dance, gathered, stored=None, *, seed: int = 0, side: int = 256, validate: bool = True) -> Lessons:
    compute = device.choose("cpu", "fp32")
    stored = arrays(gathered) if stored is None else stored
    return Lessons(model, stored, gathered, side, compute, seed=seed, validate=validate)


@pytest.fixture(scope="module")
def made(people) -> dict[int, Lessons]:
    """Lessons by K, of a model that has learnt nothing; for looking at only."""
    torch.manual_seed(0)
    model = Dance(**SMALL).eval()
    return {count: lessons(model, gathered) for count, gathered in people.items()}


def draw(made: Lessons, pair: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return made.model(pair.condition, pair.identity, None)[0].rgb


def same(a: Batch, b: Batch) -> bool:
    return all(map(torch.equal, (*a.condition, *a.truth[:2]), (*b.condition, *b.truth[:2])))


# ------------------------------------------------------------------------------------------------ what is known


@pytest.mark.parametrize("count", [2, 3])
def test_the_picture_left_out_is_unknown_to_its_identity(model, people, count):
    gathered = people[count]
    stored = arrays(gathered)
    before = lessons(model, gathered, stored, validate=False)
    assert len(before.pairs) == count
    for k in range(count):
        changed = {key: np.array(value) for key, value in stored.items()}
        for key in ("frames", "mattes", "pose_body", "pose_face", "pose_hands"):
            changed[key][k] = changed[key][(k + 1) % count]
        changed["frames"][k] = 255 - changed["frames"][k]
        after = lessons(model, gathered, changed, validate=False)
        for old, new in zip(before.pairs[k], after.pairs[k], strict=True):
            assert same(old, new)
        other = (k + 1) % count  # which knows picture k, so that the change can be seen at all
        assert not same(before.pairs[other][0], after.pairs[other][0])


@pytest.mark.parametrize("count", [2, 3])
def test_what_is_validated_is_one_of_the_pictures_and_never_learned_from(model, people, count):
    every = lessons(model, people[count], validate=False).pairs
    made = lessons(model, people[count])
    number = {2: 1, 3: 1}[count]
    assert made.left_out
    assert same(made.held_out, every[number][0])
    assert len(made.pairs) == count - 1
    for group, known in zip(made.pairs, [p for k, p in enumerate(every) if k != number], strict=True):
        assert all(map(same, group, known))
    for batch in islice(batches(made.pairs, 2, 0), 6):
        for truth in batch.truth.rgb:
            assert truth.shape != made.held_out.truth.rgb[0].shape or not torch.equal(truth, made.held_out.truth.rgb[0])


def test_of_many_pictures_the_first_are_truths_and_all_are_known(model, puppet):
    count = TRUTHS + 1
    bodies = [puppet.body((25 + 8 * k, 30 + 9 * k), legs=5 + k, scale=42, at=(32, 38)) for k in range(count)]
    gathered = puppet.gathered(*bodies, size=(64, 80))
    stored = arrays(gathered)
    made = lessons(model, gathered, stored)
    assert len(made.pairs) == TRUTHS - 1
    changed = {key: np.array(value) for key, value in stored.items()}
    changed["frames"][-1] = 255 - changed["frames"][-1]  # is no truth itself
    after = lessons(model, gathered, changed)
    differ = [not same(a[0], b[0]) for a, b in zip(made.pairs, after.pairs, strict=True)]
    assert any(differ)
    truths = [made.held_out.truth.rgb, *(pair[0].truth.rgb for pair in made.pairs)]
    assert len({(t.shape[2:], round(float(t.sum()), 2)) for t in truths}) == TRUTHS


def test_all_pictures_are_learned_from_when_nothing_is_validated(model, people):
    for count in (1, 2, 3):
        made = lessons(model, people[count], validate=False)
        assert len(made.pairs) == max(3 if count == 1 else count, 2)
        assert made.held_out is made.pairs[0][0]


@pytest.mark.parametrize("count", [1, 3])
def test_the_truth_is_the_untouched_picture(people, count):
    gathered = people[count]
    made = lessons(Dance(**FULL).eval(), gathered, validate=False)
    for k, group in enumerate(made.pairs):
        n = k if count > 1 else 0
        truth = group[0].truth
        height, width = truth.rgb.shape[2:]
        picture, matte = pixels(gathered.pictures[n]), torch.from_numpy(gathered.mattes[n])
        found = [
            (y, x)
            for y in range(160 - height + 1)
            for x in range(128 - width + 1)
            if torch.equal(picture[:, y : y + height, x : x + width], truth.rgb[0])
        ]
        assert len(found) == 1
        ((y, x),) = found
        assert torch.equal(matte[y : y + height, x : x + width], truth.matte[0, 0])
        assert matte.sum() == pytest.approx(truth.matte.sum())  # nobody is cut off


def test_exact_mattes_are_the_truth_and_nothing_else(model, people):
    gathered = people[2]
    exact = np.stack([cv2.erode(m, np.ones((5, 5))) for m in gathered.mattes])
    guessed, known = (lessons(model, g, validate=False) for g in (gathered, replace(gathered, exact=exact)))
    for old, new in zip(guessed.pairs, known.pairs, strict=True):
        # What is drawn is the same; only what came of each choice is judged by the exact matte.
        assert all(map(torch.equal, old[0].condition[:3], new[0].condition[:3]))
        assert torch.equal(old[0].truth.rgb, new[0].truth.rgb)
        assert new[0].truth.matte.sum() < 0.9 * old[0].truth.matte.sum()


def test_a_single_picture_learns_from_warped_copies_of_itself(made):
    made = made[1]
    assert not made.left_out
    assert len(made.pairs) == 2
    shown = [made.held_out, *(group[0] for group in made.pairs)]
    assert len({round(float(pair.condition.person.sum()), 3) for pair in shown}) == 3
    for pair in shown:
        assert torch.equal(pair.truth.rgb, made.held_out.truth.rgb)
        # Each still shows the person in the picture's pose, but not the picture itself.
        error = (draw(made, pair) - pair.truth.rgb).abs().mean()
        assert 1e-3 < error < 0.15
    assert math.isfinite(made.validate())


# ------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("count", [1, 3])
def test_batches_have_the_size_asked_for(made, count):
    made = made[count]
    for batch in islice(batches(made.pairs, 3, 0), 2):
        assert {len(t) for t in (*batch.condition, *batch.truth[:2])} == {3}
        assert batch.state is None
        with torch.inference_mode():
            frame, _ = made.model(batch.condition, batch.identity, batch.state)
        assert frame.rgb.shape == batch.truth.rgb.shape


def test_the_same_seed_gives_the_same_batches(model, people):
    def run(lesson_seed: int, seed: int) -> list[Batch]:
        return list(islice(batches(lessons(model, people[2], seed=lesson_seed).pairs, 2, seed), 4))

    one, two, trembling, order = run(5, 0), run(5, 0), run(6, 0), run(5, 1)
    assert all(map(same, one, two))
    assert not all(map(same, one, trembling))
    assert not all(map(same, one, order))


@pytest.mark.parametrize("first", [0, 1, 5])
def test_batches_go_on_where_an_interruption_left_them(first):
    pairs = [[torch.tensor([[t, v]]) for v in range(3)] for t in range(4)]
    whole, rest = batches(pairs, 3, 7), batches(pairs, 3, 7, first)
    for one, two in islice(zip(islice(whole, first, None), rest, strict=False), 9):
        assert torch.equal(one, two)


def test_all_truths_come_in_turn_in_all_variants():
    pairs = [[f"truth {t} variant {v}" for v in range(3)] for t in range(4)]
    seen = list(islice(batches(pairs, 1, 0), 240))  # of a batch of anything but tensors the first stands for all
    for turn in range(60):
        assert {s[:7] for s in seen[4 * turn : 4 * turn + 4]} == {f"truth {t}" for t in range(4)}
    assert set(seen) == {p for group in pairs for p in group}
    assert len({tuple(s[:7] for s in seen[4 * t : 4 * t + 4]) for t in range(60)}) > 10  # in random order


def test_poses_jitter_about_where_they_were(people):
    made = lessons(Dance(**FULL).eval(), people[2], validate=False)
    for k, group in enumerate(made.pairs):
        assert len(group) == VARIANTS
        window = people[2].windows[k]
        still, *others = (draw_limbs(pair) for pair in group)
        # The first trembles not at all.
        condition = made.model.condition(poses(window), (160, 128))
        assert torch.equal(condition.maps, group[0].condition.maps)
        moves = [np.linalg.norm(other - still, axis=1) for other in others]
        assert min(move.max() for move in moves) > 0.1
        assert max(move.mean() for move in moves) < 4 * JITTER * 128
        assert not np.allclose(others[0], others[1])


def draw_limbs(pair: Batch) -> np.ndarray:
    """Where the limbs of a pair are, by the middles of their maps, (9, 2), from the middle of the torso."""
    maps = pair.condition.maps[0, 1:10].numpy()
    y, x = np.mgrid[: maps.shape[1], : maps.shape[2]]
    middles = np.array([[(m * x).sum() / m.sum(), (m * y).sum() / m.sum()] for m in maps])
    return middles - middles[0]


def test_small_pictures_are_learned_from_in_small(people):
    model = Dance(**FULL).eval()
    made = lessons(model, people[2], side=64)
    assert made.size == (64, 80)
    height, width = next(batches(made.pairs, 1, 0)).truth.rgb.shape[2:]
    assert 40 < height <= 80
    assert 30 < width <= 64
    assert lessons(model, people[1], side=1000).size == (128, 160)  # never enlarged


# ------------------------------------------------------------------------------------------------ how it is measured


@pytest.mark.parametrize("count", [1, 3])
def test_validation_is_deterministic(model, people, count):
    made = lessons(model, people[count])
    first = made.validate()
    next(batches(made.pairs, 2, 0))
    assert made.validate() == first
    assert lessons(model, people[count]).validate() == first
    assert math.isfinite(first)


def test_a_picture_drawn_worse_scores_worse(model, people):
    made = lessons(model, people[3])
    first = made.validate()
    model.synthesis.last.bias.data[8:] += 0.5
    assert made.validate() == math.inf  # it lost PSNR
    model.synthesis.last.bias.data[8:] = 0
    assert made.validate() == first


def test_one_figure_is_no_excuse_for_losing_the_other(made, monkeypatch):
    made = made[3]
    monkeypatch.setattr(made, "first", None)

    def score(psnr: float, ssim: float) -> float:
        monkeypatch.setattr(made, "_figures", lambda *_: {"fg_psnr": psnr, "fg_ssim": ssim})
        return made.validate()

    first = score(20.0, 0.5)
    assert math.isfinite(first)
    assert score(21.0, 0.49) == score(19.9, 0.6) == math.inf
    assert score(20.0, 0.5) == first  # the start itself is no loss
    assert score(20.5, 0.5) < first
    assert score(20.0, 0.51) < first
    assert score(20.5, 0.5 - 0.5 * LOSS["fg_ssim"]) < first  # a little may be lost for much
    assert score(20.5, 0.5 - 2 * LOSS["fg_ssim"]) == math.inf
    monkeypatch.setattr(made.model, "moves_pixels", False)  # what paints has nothing to lose
    assert score(21.0, 0.49) < first < score(20.0, 0.49) < math.inf


def test_measuring_is_the_metrics_and_leaves_the_mode(made):
    made = made[3]
    for mode in (True, False):
        made.model.train(mode)
        figures = made.measure()
        assert made.model.training == mode
    truth = made.held_out.truth
    shown, true = as_image(draw(made, made.held_out)[0]), as_image(truth.rgb[0])
    inside = truth.matte[0, 0].numpy() > 0.5
    assert figures["fg_psnr"] == pytest.approx(foreground_psnr(shown, true, inside), abs=1e-3)
    assert figures["fg_ssim"] == pytest.approx(foreground_ssim(shown, true, inside), abs=1e-3)


def test_the_score_that_trust_is_settled_by_is_of_all_pairs(model, people):
    made = lessons(model, people[3])
    objective = DanceObjective(0, LossWeights(w_rela=0))
    first = made.score(objective)
    assert math.isfinite(first)
    assert made.score(objective) == first > 0
    for group in (made.pairs[0], made.pairs[1], None):  # None: the one left out
        pair = made.held_out if group is None else group[0]
        worse = pair._replace(truth=pair.truth._replace(rgb=-pair.truth.rgb))
        kept = made.held_out
        if group is None:
            made.held_out = worse
        else:
            group[0] = worse
        assert made.score(objective) > first
        made.held_out = kept
        if group is not None:
            group[0] = pair
    model.synthesis.last.bias.data[8:] += 0.5
    assert made.score(objective) > first


def test_pairs_that_were_learned_from_do_not_settle_trust(model, people):
    made, single = lessons(model, people[3]), lessons(model, people[1])
    objective = DanceObjective(0, LossWeights(w_rela=0))
    alone = made.score(objective, unseen=True)
    assert alone != made.score(objective)
    for group in made.pairs:
        group[0] = group[0]._replace(truth=group[0].truth._replace(rgb=-group[0].truth.rgb))
    assert made.score(objective, unseen=True) == alone
    made.held_out = made.pairs[0][0]
    assert made.score(objective, unseen=True) > alone
    # A single picture has no other to be judged by.
    assert single.score(objective, unseen=True) == single.score(objective)


def test_a_person_who_cannot_be_measured_has_no_figures(model, people):
    nobody = replace(people[3], mattes=np.zeros_like(people[3].mattes))
    made = lessons(model, nobody)
    assert all(math.isnan(value) for value in made.measure().values())
    assert math.isfinite(made.validate())


# ------------------------------------------------------------------------------------------------ learning


def learn(made: Lessons, steps: int = 3, seed: int = 0, *, validate: bool = True, **changes: Any):
    objective = DanceObjective(0, LossWeights(w_rela=0))
    return adapt(
        made.model, objective, made.pairs, FitOptions(steps, batch=2, validate_every=2, seed=seed, **changes),
        made.compute, parameters=made.model.tunable(made.identity), validate=made.validate if validate else None,
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
def test_fitting_never_ends_worse_than_it_began(model, people, count):
    made = lessons(model, people[count])
    start, before = made.validate(), made.measure()
    result = learn(made)
    after = made.measure()
    assert made.validate() <= start
    assert result.best_score == pytest.approx(made.validate(), rel=1e-3)
    assert all(after[key] >= before[key] - 1e-3 for key in before)


def test_adapting_learns_and_the_seed_decides(people):
    def run(seed: int) -> tuple[float, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        made = lessons(Dance(**SMALL), people[3], validate=False)
        losses: list[float] = []
        adapt(
            made.model, DanceObjective(0, LossWeights(w_rela=0)), made.pairs, FitOptions(16, 2e-3, 3, seed=seed),
            made.compute, parameters=list(made.model.parameters()), on_step=lambda _, f: losses.append(f["loss"]),
        )  # fmt: skip
        return sum(losses[-4:]) / sum(losses[:4]), made.model.state_dict()

    (drop, one), (_, two), (_, other) = run(4), run(4), run(5)
    assert drop < 0.97
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_pictures_and_tensors_are_one(puppet):
    image = puppet.cloth(4)
    np.testing.assert_array_equal(as_image(pixels(image)), image)
    assert as_image(torch.full((3, 2, 2), 7.0)).max() == 255
