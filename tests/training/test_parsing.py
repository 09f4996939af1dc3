"""`retarget train parsing` on puppets: labels, what training shows, and that it learns and goes on exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget import lessons, weights
from retarget.device import Compute
from retarget.errors import InputError, UsageError, WeightsError
from retarget.models import build
from retarget.models.base import Batch
from retarget.models.parsing import KEYPOINTS, Parser
from retarget.training.corpus import Corpus
from retarget.training.parsing import Example, batch, example, examples, measure, view
from retarget.training.train import TrainOptions, train
from retarget.types import Silent

from .conftest import visible

TINY = TrainOptions(
    "parsing", config={"width": 8, "depth": 3}, steps=6, batch=2, rate=5e-3, side=64, device="cpu", precision="fp32"
)
CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture
def packed(corpus_folder: Path) -> Corpus:
    return Corpus(corpus_folder)


def kept(folder: Path) -> dict[str, torch.Tensor]:
    return weights.load_file(folder / "weights.safetensors")[0]


# ------------------------------------------------------------------------------------------------ examples


def test_labels_follow_matte_and_pose(packed):
    clip = packed.clip("anna_a")
    e = example(clip, 2)
    matte = clip.mattes[2]
    assert e.labels.shape == matte.shape
    assert e.labels.max() <= 10
    assert (e.labels[matte < 0.5] == 0).all()
    assert ((e.labels > 0) == (matte > 0.5)).mean() > 0.99
    # The middle of a limb is its own; a hand is of the lower arm.
    body = clip.track.body[2]
    for part, (a, b) in {3: (11, 13), 4: (12, 14), 7: (23, 25), 9: (25, 27)}.items():
        x, y = ((body[a] + body[b]) / 2)[:2].astype(int)
        assert e.labels[y, x] == part
    x, y = body[20, :2].astype(int)
    assert e.labels[y, x] == 6
    np.testing.assert_allclose(e.joints, body[list(KEYPOINTS), :2])


def test_examples_are_spread_over_the_clips(packed):
    found = examples(packed, "train", Silent())
    assert len(found) == 5 * 8  # five clips of eight frames, fewer than are wanted of each
    assert len(examples(packed, "val", Silent())) == 2 * 8


def test_nobody_to_validate_on(packed, monkeypatch):
    monkeypatch.setattr(Corpus, "persons", lambda *_: {})
    with pytest.raises(InputError, match="nobody in its split"):
        examples(packed, "val", Silent())


def marked() -> Example:
    """Each joint stands on a spot of its own colour, in the label that is its number (at most 10)."""
    picture, labels = np.zeros((100, 80, 3), np.uint8), np.zeros((100, 80), np.uint8)
    joints = np.full((17, 2), np.nan, np.float32)
    for j in range(1, 11):
        x, y = 10 + 14 * (j % 5), 20 + 30 * (j // 5)
        joints[j] = x + 0.5, y + 0.5
        labels[y - 4 : y + 5, x - 4 : x + 5] = j
        picture[y - 4 : y + 5, x - 4 : x + 5] = 25 * j
    return Example(picture, labels, joints)


def test_views_keep_picture_labels_and_joints_together():
    rng = np.random.default_rng(1)
    green = mirrored = 0
    for _ in range(40):
        seen = view(marked(), 96, rng)
        assert seen.picture.shape == (96, 96, 3)
        found = np.flatnonzero(np.isfinite(seen.joints).all(1))
        assert len(found) >= 4
        values = {}
        for j in found:
            x, y = seen.joints[j]
            if 2 < x < 94 and 2 < y < 94:
                values[j] = seen.labels[int(y), int(x)]
        on_green = (seen.picture == (0, 255, 0)).all(2)
        green += on_green.any()
        if on_green.any():
            assert (on_green == (seen.labels == 0)).all()
        # Straight on, a joint's label is its number; mirrored, both are exchanged.
        swap_joint = {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5, 7: 8, 8: 7, 9: 10, 10: 9}
        swap_part = {1: 1, 2: 2, 3: 4, 4: 3, 5: 6, 6: 5, 7: 8, 8: 7, 9: 10, 10: 9}
        straight = all(v == j for j, v in values.items())
        turned = all(v == swap_part[swap_joint[j]] for j, v in values.items())
        assert straight or turned
        mirrored += turned and not straight
    assert 4 < green < 25
    assert 8 < mirrored < 32


def test_without_chance_the_person_is_in_the_middle():
    first, again = (view(marked(), 64, None) for _ in range(2))
    assert np.array_equal(first.picture, again.picture)
    ys, xs = np.nonzero(first.labels)
    assert (ys.min() + ys.max()) / 2 == pytest.approx(32, abs=1.5)
    assert (xs.min() + xs.max()) / 2 == pytest.approx(32, abs=1.5)
    assert np.ptp(ys) > 40 or np.ptp(xs) > 40


def test_an_empty_picture_is_no_problem():
    e = Example(np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8), np.full((17, 2), np.nan, np.float32))
    pair = batch([e, e], 32, np.random.default_rng(0))
    assert pair.condition.shape == (2, 3, 32, 32)
    assert pair.truth.matte.max() == 0
    assert math.isnan(measure(Parser(4, 2), [batch([e], 32, None)], CPU)["joints_found"])


# ------------------------------------------------------------------------------------------------ figures


class Knowing(Parser):
    """Answers with the truth, `off` pixels beside it."""

    def __init__(self, pair: Batch, off: float) -> None:
        super().__init__(4, 2)
        self.pair, self.off = pair, off

    def forward(self, rgb: torch.Tensor) -> Any:
        from retarget.models.parsing import Parsed, heat_maps

        labels = self.pair.truth.extra
        parts = torch.nn.functional.one_hot(labels.parts, 11).permute(0, 3, 1, 2).float()
        return Parsed(heat_maps(labels.joints + self.off, rgb.shape[2:]), parts.roll(int(self.off), 3))


def test_figures(packed):
    pair = batch([example(packed.clip("anna_a"), 0)], 64, None)
    assert measure(Knowing(pair, 0), [pair], CPU) == {"parts_iou": 1.0, "joints_found": 1.0}
    beside = measure(Knowing(pair, 4), [pair], CPU)  # more than 5 % of 64
    assert beside["joints_found"] == 0
    assert 0 < beside["parts_iou"] < 0.8


# ------------------------------------------------------------------------------------------------ runs


def test_it_learns(corpus_folder, tmp_path):
    done = train(corpus_folder, tmp_path / "run", replace(TINY, steps=60, batch=4))
    assert done.finished
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 60
    first, last = (np.mean([line["loss.loss"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last < 0.5 * first
    assert 0 <= done.figures["joints_found"] <= 1
    tensors, name, config = weights.load_file(tmp_path / "run" / "weights.safetensors")
    assert name == "parsing"
    Parser.loaded(tensors, config)


def test_an_interrupted_run_goes_on_exactly(corpus_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("retarget.training.run.EVERY", 0.0)
    options = replace(TINY, steps=6)
    train(corpus_folder, tmp_path / "whole", options)

    class Stop(Silent):
        steps = 0

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.steps += bool(figures)
            if self.steps == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(corpus_folder, tmp_path / "two", options, progress=Stop())
    done = train(corpus_folder, tmp_path / "two", options)
    assert done.steps == 6
    a, b = kept(tmp_path / "whole"), kept(tmp_path / "two")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert visible(tmp_path / "two") == [
        "checkpoint.safetensors", "curves.png", "log.jsonl", "options.json", "samples.png", "weights.safetensors",
    ]  # fmt: skip


def test_starting_from_another_runs_weights(corpus_folder, tmp_path):
    train(corpus_folder, tmp_path / "first", replace(TINY, steps=2))
    file = tmp_path / "first" / "weights.safetensors"
    train(corpus_folder, tmp_path / "second", replace(TINY, steps=1, rate=1e-7, init=str(file)))
    a, b = kept(tmp_path / "first"), kept(tmp_path / "second")
    assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a)
    with pytest.raises(WeightsError):
        train(corpus_folder, tmp_path / "third", replace(TINY, config={"width": 4, "depth": 3}, init=str(file)))


@pytest.mark.parametrize("config", [{"wdith": 3}, {"width": 0}])
def test_networks_that_cannot_be(corpus_folder, tmp_path, config):
    with pytest.raises(UsageError, match="no parser with"):
        train(corpus_folder, tmp_path / "run", replace(TINY, config=config))


# ------------------------------------------------------------------------------------------------ use


def test_what_is_at_hand_judges(monkeypatch):
    parser = Parser(4, 2)
    monkeypatch.setattr(weights, "known", lambda name: name == "parsing")
    monkeypatch.setattr(weights, "at_hand", lambda name: Path("here"))
    monkeypatch.setattr(weights, "load", lambda name: (parser.state_dict(), parser.config))
    model = build("dance-paper", {"width": 4, "downs": 2, "blocks": 1, "enhancer": 0})
    assert set(lessons.features(model)) == {"parser"}
    objective = model.objective(critics=False, **lessons.features(model))
    assert objective.parser is not None
    assert lessons.features(build("dance")) == {}  # looks through VGG19 only
    monkeypatch.setattr(weights, "at_hand", lambda name: None)
    assert lessons.features(model) == {}
