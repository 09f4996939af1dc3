"""The objective's terms by hand, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retarget import device
from retarget.lessons import Lessons, adapt
from retarget.models.base import Frame
from retarget.models.losses import content_loss, matte_loss
from retarget.models.posewarp import PosewarpObjective, vgg_loss
from retarget.models.posewarp.objective import CONVOLUTIONS, FLOOR
from retarget.references import arrays
from retarget.training.fit import FitOptions

from .conftest import paired


class Features(nn.Module):
    """In VGG19's place: two layers of known deviation."""

    def forward(self, rgb: Tensor, taken: Any, *, average: bool) -> list[Tensor]:
        assert average
        assert list(taken) == [1, 3, 6, 8, 11, 13, 15, 17, 20, 22, 24, 26]
        return [rgb, 10 * rgb]


def test_vgg_loss_divides_by_the_deviation_of_each_channel():
    y = torch.zeros(1, 3, 4, 4)
    y[:, 0, :2], y[:, 0, 2:] = 0.5, -0.5  # deviation 0.5
    y[:, 1, :2], y[:, 1, 2:] = 0.1, -0.1
    x = y + 0.2
    terms = [
        (0.2 * scale / (scale * d + FLOOR))
        for scale in (1, 10)
        for d in (0.5, 0.1, 0.0)
    ]  # fmt: skip
    assert float(vgg_loss(Features(), x, y)) == pytest.approx(sum(terms) / 6, rel=1e-5)
    assert float(vgg_loss(Features(), y, y)) == 0
    assert len(CONVOLUTIONS) == 12


def test_the_first_stage_has_no_critic_and_the_second_counts_a_tenth(model, known, window):
    batch = paired(model, window(left=(60, 60)), known)
    frame = Frame(batch.truth.rgb * 0.5, batch.truth.matte)
    first = model.objective(critics=False)
    terms = first.generator_loss(frame, batch.truth, batch.condition)
    assert set(terms) == {"content", "matte"}
    torch.testing.assert_close(terms["content"], content_loss(frame.rgb, batch.truth.rgb))
    torch.testing.assert_close(terms["matte"], matte_loss(frame.matte, batch.truth.matte))
    assert first.critic_parameters() == []
    assert first.critic_loss(frame, batch.truth, batch.condition) == {}
    second = model.objective()
    assert set(second.generator_loss(frame, batch.truth, batch.condition)) == {"content", "matte", "adversarial"}
    last = second.critics.rest[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # undecided
    terms = second.generator_loss(frame, batch.truth, batch.condition)
    assert terms["adversarial"].item() == pytest.approx(0.1 * math.log(2))
    loss = second.critic_loss(frame, batch.truth, batch.condition)
    assert loss["critic"].item() == pytest.approx(math.log(2))
    nn.init.constant_(last.bias, 3.0)  # "real"
    terms = second.generator_loss(frame, batch.truth, batch.condition)
    assert terms["adversarial"].item() == pytest.approx(0.1 * math.log1p(math.exp(-3)), rel=1e-4)
    with_vgg = PosewarpObjective(None, Features())
    assert set(with_vgg.generator_loss(frame, batch.truth, batch.condition)) == {"perceptual", "matte"}


def soft(gathered: Any) -> Any:
    """The same persons in cloth, and before a plate, without fine detail."""
    blurred = [np.stack([cv2.GaussianBlur(x, (0, 0), 8) for x in y]) for y in (gathered.frames, gathered.pictures)]
    plate = replace(gathered.plate, image=cv2.GaussianBlur(gathered.plate.image, (0, 0), 8))
    return replace(gathered, frames=blurred[0], pictures=blurred[1], plate=plate)


@pytest.mark.parametrize("name", ["model", "painter"])
def test_a_person_is_learned_by_heart(name, request, gathered):
    model = request.getfixturevalue(name)
    compute = device.choose("cpu", "fp32")
    gathered = soft(gathered)
    lessons = Lessons(model, arrays(gathered), gathered, 64, compute, seed=0)
    objective = model.objective(critics=False)
    losses: list[float] = []
    adapt(
        model, objective, [lessons.pairs[0][:1]], FitOptions(steps=50, rate=5e-3, batch=1), compute,
        parameters=model.tunable(lessons.identity), on_step=lambda _, f: losses.append(f["loss"]),
    )  # fmt: skip
    assert losses[-1] < 0.7 * losses[0]
