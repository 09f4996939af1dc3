"""What fine-tuning learns from: pairs whose truth the identity does not know."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from retarget import device
from retarget.lessons import Lessons, as_image
from retarget.metrics import foreground_psnr, foreground_ssim
from retarget.models.dance import Dance
from retarget.references import arrays, pixels
from retarget.training.fit import FitOptions, fit

POSES = [{}, {"left": (90, 80), "right": (30, 20)}, {"left": (20, 40), "right": (150, 165)}]


@pytest.fixture
def model() -> Dance:
    torch.manual_seed(0)
    return Dance(work=64, width=8, depth=2).eval()


@pytest.fixture(scope="module")
def people(puppet) -> dict[int, Any]:
    """Gathered references by K."""
    return {k: puppet.gathered(*(puppet.body(**p) for p in POSES[:k]), details=True) for k in (1, 2, 3)}


def lessons(model: Dance, gathered, stored=None, *, seed: int = 0, side: int = 256) -> Lessons:
    compute = device.choose("cpu", "fp32")
    return Lessons(model, arrays(gathered) if stored is None else stored, gathered, side, compute, seed=seed)


@pytest.fixture(scope="module")
def made(people) -> dict[int, Lessons]:
    """Lessons by K, of a model that has learnt nothing; for looking at only."""
    torch.manual_seed(0)
    model = Dance(work=64, width=8, depth=2).eval()
    return {count: lessons(model, gathered) for count, gathered in people.items()}


def draw(made: Lessons, k: int) -> torch.Tensor:
    """Truth k as its identity draws it."""
    with torch.inference_mode():
        frame, _ = made.model(made._condition(made.windows[k], None), made.identities[k], None)
    return frame.rgb


# ------------------------------------------------------------------------------------------------ what is known


@pytest.mark.parametrize("count", [2, 3])
def test_the_picture_left_out_is_unknown_to_its_identity(model, people, count):
    gathered = people[count]
    stored = arrays(gathered)
    before = lessons(model, gathered, stored)
    for k in sorted({0, before.validation}):
        changed = {key: np.array(value) for key, value in stored.items()}
        for key in ("frames", "mattes", "pose_body", "pose_face", "pose_hands"):
            changed[key][k] = changed[key][(k + 1) % count]
        changed["frames"][k] = 255 - changed["frames"][k]
        after = lessons(model, gathered, changed)
        assert torch.equal(draw(before, k), draw(after, k))
        other = (k + 1) % count  # which knows picture k, so that the change can be seen at all
        assert not torch.equal(draw(before, other), draw(after, other))


@pytest.mark.parametrize("count", [1, 3])
def test_the_truth_is_the_untouched_picture(made, people, count):
    gathered = people[count]
    for k, truth in enumerate(made[count].truths):
        n = k if count > 1 else 0
        torch.testing.assert_close(truth.rgb[0], pixels(gathered.pictures[n]))
        assert truth.matte is not None
        np.testing.assert_allclose(truth.matte[0, 0], gathered.mattes[n])


@pytest.mark.parametrize(("count", "learned_from"), [(1, 2), (2, 1), (3, 2)])
def test_what_is_validated_is_never_learned_from(made, count, learned_from):
    made = made[count]
    assert len(made.training) == learned_from
    assert made.validation not in made.training
    assert made.left_out == (count > 1)
    taught = {id(made.identities[k][0]) for k in made.training}
    shown = set()
    for batch in islice(made.batches(2), 6):
        shown |= {id(person) for person in batch.identity}
        if count > 1:
            for truth in batch.truth.rgb:
                assert not torch.equal(truth, made.truths[made.validation].rgb[0])
    assert shown == taught


def test_a_single_picture_learns_from_warped_copies_of_itself(made):
    made = made[1]
    assert len(made.identities) == 3
    plain = made.identity[0].levels[0]
    for identity in made.identities:
        assert not any(torch.equal(a, b) for a, b in zip(identity[0].levels[0].textures, plain.textures, strict=True)
                       if a.shape == b.shape and a.any())  # fmt: skip
    # But each still shows the person in the picture's pose.
    for k in range(3):
        error = draw(made, k) - made.truths[k].rgb
        assert error.abs().mean() < 0.1
    assert math.isfinite(made.validate())


# ------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("count", [1, 3])
def test_batches_have_the_size_asked_for(made, count):
    made = made[count]
    for batch in islice(made.batches(3), 2):
        assert batch.condition.maps.shape[0] == len(batch.condition.skeletons) == len(batch.identity) == 3
        assert batch.truth.rgb.shape == (3, 3, 160, 128)
        assert batch.truth.matte.shape == (3, 1, 160, 128)
        assert batch.state is None
        with torch.inference_mode():
            frame, _ = made.model(batch.condition, batch.identity, batch.state)
        assert frame.rgb.shape == batch.truth.rgb.shape


def test_the_same_seed_gives_the_same_batches(model, people):
    runs = [[b.condition.maps for b in islice(lessons(model, people[2], seed=s).batches(2), 3)] for s in (5, 5, 6)]
    for a, b in zip(runs[0], runs[1], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(runs[0][0], runs[2][0])


def test_poses_jitter_about_where_they_were(made):
    made = made[2]
    (k,) = made.training
    still = made._condition(made.windows[k], None).skeletons[0].bones
    moved = np.stack([b.condition.skeletons[0].bones for b in islice(made.batches(1), 20)])
    spread = moved.std(0)[..., :2]
    assert 0 < spread.mean() < 0.02 * 128
    np.testing.assert_allclose(moved.mean(0)[..., :2], still[..., :2], atol=2)


def test_small_pictures_are_learned_from_in_small(model, people):
    made = lessons(model, people[2], side=64)
    assert made.size == (64, 80)
    batch = next(made.batches(1))
    assert batch.truth.rgb.shape == (1, 3, 80, 64)
    assert made.windows[0].size == (64, 80)
    assert lessons(model, people[1], side=1000).size == (128, 160)  # never enlarged


# ------------------------------------------------------------------------------------------------ how it is measured


@pytest.mark.parametrize("count", [1, 3])
def test_validation_is_deterministic(model, people, count):
    made = lessons(model, people[count])
    first = made.validate()
    next(made.batches(2))
    assert made.validate() == first
    assert lessons(model, people[count]).validate() == first
    assert math.isfinite(first)
    assert first > 0


def test_a_picture_drawn_worse_scores_worse(model, people):
    made = lessons(model, people[3])
    first = made.validate()
    model.fusion.last.bias.data += 0.5
    assert made.validate() > first
    model.fusion.last.bias.data -= 0.5
    assert made.validate() == first


def test_measuring_is_the_metrics_and_leaves_the_mode(made, people):
    made = made[3]
    for mode in (True, False):
        made.model.train(mode)
        figures = made.measure()
        assert made.model.training == mode
    k = made.validation
    shown, true = as_image(draw(made, k)[0]), people[3].pictures[k]
    inside = people[3].mattes[k] > 0.5
    assert figures["fg_psnr"] == pytest.approx(foreground_psnr(shown, true, inside), abs=1e-3)
    assert figures["fg_ssim"] == pytest.approx(foreground_ssim(shown, true, inside), abs=1e-3)


def test_a_person_who_cannot_be_measured_has_no_figures(model, people):
    nobody = replace(people[3], mattes=np.zeros_like(people[3].mattes))
    made = lessons(model, nobody)
    assert all(math.isnan(value) for value in made.measure().values())
    assert math.isfinite(made.validate())


@pytest.mark.parametrize("count", [1, 3])
def test_fitting_never_ends_worse_than_it_began(model, people, count):
    from retarget.models.losses import DanceObjective, LossWeights

    made = lessons(model, people[count])
    start, before = made.validate(), made.measure()
    compute = device.choose("cpu", "fp32")
    result = fit(
        model, DanceObjective(0, LossWeights(w_rela=0)), made.batches(2), parameters=model.tunable(made.identity),
        compute=compute, options=FitOptions(3, batch=2, validate_every=2), validate=made.validate,
    )  # fmt: skip
    after = made.measure()
    assert made.validate() <= start
    assert result.best_score == pytest.approx(made.validate(), rel=1e-3)
    assert all(after[key] >= before[key] - 1e-3 for key in before)


def test_pictures_and_tensors_are_one(puppet):
    image = puppet.cloth(4)
    np.testing.assert_array_equal(as_image(pixels(image)), image)
    assert as_image(torch.full((3, 2, 2), 7.0)).max() == 255
