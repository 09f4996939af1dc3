from __future__ import annotations

import subprocess
import sys
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from retarget.errors import UsageError
from retarget.models import MODELS, build
from retarget.models.base import (
    Batch,
    Frame,
    Objective,
    RetargetModel,
    along,
    frame_count,
    last,
    rollout,
    series,
    stacked,
)


def test_the_interface_has_to_be_fulfilled():
    with pytest.raises(TypeError, match="abstract"):
        RetargetModel()
    with pytest.raises(TypeError, match="abstract"):
        Objective()


class Plain(RetargetModel):
    """As little as a model can be."""

    maps = 1

    def condition(self, poses, size, previous=None):
        return poses

    def encode(self, references):
        return references

    def before(self, identity, plate):
        return identity

    def forward(self, condition, identity, state):
        return Frame(condition), state

    def objective(self, *, critics=True, vgg=None):
        raise NotImplementedError

    def tunable(self, identity):
        return self.parameters()


@pytest.mark.parametrize("name", ["maps", "condition", "encode", "before", "forward", "objective", "tunable"])
def test_every_part_of_the_interface_has_to_be_there(name, monkeypatch):
    Plain()
    incomplete = type("Incomplete", (RetargetModel,), {k: v for k, v in vars(Plain).items() if k != name})
    with pytest.raises(TypeError, match=f"abstract method {name}"):
        incomplete()


def test_a_model_need_not_draw_anything_ahead():
    model = Plain()
    assert model.Ahead is None
    assert model.ahead_depends_on == {}
    condition, identity, truth = torch.zeros(1, 3, 2, 2), object(), Frame(torch.ones(1, 3, 2, 2))
    same = model.ahead(condition, identity, truth)
    assert same[0] is condition
    assert same[1] is identity
    assert same[2] is truth
    pair = Batch(condition, identity, None, truth)
    assert model.varied(pair, torch.Generator()) is pair
    assert model.settle(lambda: 1.0) == {}  # has nothing to choose


# ------------------------------------------------------------------------------------------------ batches


class Seen(NamedTuple):
    maps: Tensor
    people: tuple[object, ...]
    size: tuple[int, int]
    zoom: float


def batch(number: int, height: int = 2, width: int = 3) -> Batch:
    maps = number + torch.arange(float(height * width)).view(1, 1, height, width) / 10
    truth = Frame(maps.repeat(1, 3, 1, 1), None if number < 0 else 1 - maps)
    return Batch(Seen(maps, (f"person {number}",), (4, 4), 0.5), (f"identity {number}",), None, truth)


def test_batches_are_joined_in_order():
    items = [batch(n) for n in (1, 2, 3)]
    one = stacked(items)
    assert isinstance(one, Batch)
    assert isinstance(one.condition, Seen)
    assert one.condition.maps.shape == (3, 1, 2, 3)
    for n, item in enumerate(items):
        assert torch.equal(one.condition.maps[n], item.condition.maps[0])
        assert torch.equal(one.truth.rgb[n], item.truth.rgb[0])
        assert torch.equal(one.truth.matte[n], item.truth.matte[0])
    assert one.condition.people == ("person 1", "person 2", "person 3")
    assert one.identity == ("identity 1", "identity 2", "identity 3")
    # What all have in common stays as it is.
    assert (one.condition.size, one.condition.zoom, one.state) == ((4, 4), 0.5, None)


def test_smaller_pictures_are_continued_past_their_borders():
    items = [batch(1, 2, 5), batch(2, 4, 3)]
    maps = stacked(items).condition.maps
    assert maps.shape == (2, 1, 4, 5)
    for n, (item, (height, width)) in enumerate(zip(items, ((2, 5), (4, 3)), strict=True)):
        alone = item.condition.maps[0]
        assert torch.equal(maps[n, :, :height, :width], alone)
        assert torch.equal(maps[n, :, height:, :width], alone[:, -1:].expand(-1, 4 - height, -1))
        assert torch.equal(maps[n, :, :height, width:], alone[:, :, -1:].expand(-1, -1, 5 - width))
    assert torch.equal(items[0].condition.maps, batch(1, 2, 5).condition.maps)


def test_batches_of_batches_and_of_what_is_missing():
    two = stacked([batch(1), batch(2)])
    assert torch.equal(stacked([two, batch(3)]).condition.maps, stacked([batch(n) for n in (1, 2, 3)]).condition.maps)
    assert stacked([batch(-1), batch(-2)]).truth.matte is None
    alone = stacked([batch(1)])
    assert torch.equal(alone.truth.rgb, batch(1).truth.rgb)
    vectors = stacked([torch.zeros(2, 4), torch.ones(1, 4)])
    assert vectors.tolist() == [[0] * 4, [0] * 4, [1] * 4]


def test_what_there_is_less_of_is_filled_up_with_zeros():
    """Persons of a batch need not have the same number of references."""

    class Known(NamedTuple):
        pictures: Tensor
        there: Tensor

    one, three = (Known(torch.full((1, k, 2, 4, 4), float(k)), torch.ones(1, k)) for k in (1, 3))
    both = stacked([one, three])
    assert both.pictures.shape == (2, 3, 2, 4, 4)
    assert both.there.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert both.pictures[0, 0].unique().tolist() == [1]
    assert both.pictures[0, 1:].abs().max() == 0
    assert both.pictures[1].unique().tolist() == [3]


# ------------------------------------------------------------------------------------------------ sequences


class Counter(Plain):
    """Adds the number of frames before to its condition."""

    def forward(self, condition, identity, state):
        count = state or 0
        return Frame(condition.maps + count + identity, None, condition.maps), count + 1


def test_sequences_have_a_time_axis():
    items = [batch(n) for n in (1, 2, 3)]
    conditions = series([item.condition for item in items])
    assert conditions.maps.shape == (1, 3, 1, 2, 3)
    assert (conditions.size, conditions.zoom) == ((4, 4), 0.5)
    for t, item in enumerate(items):
        assert torch.equal(along(conditions, t).maps, item.condition.maps)
        assert along(conditions, t).people == conditions.people
    assert along(conditions, slice(2)).maps.shape[1] == 2
    truth = series([item.truth for item in items])
    assert frame_count(truth) == 3
    assert frame_count(items[0].truth) is None
    assert torch.equal(last(truth).rgb, items[2].truth.rgb)
    assert torch.equal(last(truth).matte, items[2].truth.matte)
    assert last(items[0].truth) is items[0].truth
    assert along(conditions, slice(2)).maps.shape[1] == frame_count(along(truth, slice(2))) == 2
    assert series([None, None]) is None


def test_a_rollout_hands_the_state_on():
    items = [batch(n) for n in (1, 2, 3)]
    model = Counter()
    single = rollout(model, items[0].condition, 10.0, None, None)
    assert torch.equal(single.rgb, items[0].condition.maps + 10)
    assert torch.equal(rollout(model, items[0].condition, 10.0, 5, None).rgb, items[0].condition.maps + 15)
    whole = rollout(model, series([item.condition for item in items]), 10.0, None, 3)
    assert whole.matte is None
    for t, item in enumerate(items):
        assert torch.equal(whole.rgb[:, t], item.condition.maps + t + 10)
        assert torch.equal(whole.extra[:, t], item.condition.maps)


def test_models_learn_from_single_frames_unless_they_say_otherwise():
    assert Plain().sequence == 1
    assert Plain().length(0.0) == Plain().length(1.0) == 1


# ------------------------------------------------------------------------------------------------ objectives, names


def test_an_objective_needs_no_critics():
    class Simple(Objective):
        def generator_loss(self, frame, truth, condition):
            return {"pixel": (frame.rgb - truth.rgb).abs().mean()}

        def critic_loss(self, frame, truth, condition):
            return {}

    objective = Simple()
    assert objective.critic_parameters() == []
    objective.adopt(None)
    loss = objective.generator_loss(Frame(torch.ones(1, 3, 2, 2)), Frame(torch.zeros(1, 3, 2, 2)), None)
    assert loss["pixel"] == 1


def test_build(monkeypatch):
    class Tiny:
        PRESETS: ClassVar = {"small": {"width": 2}, "paper": {"width": 64, "depth": 9}}

        def __init__(self, **config):
            self.config = config

    monkeypatch.setitem(MODELS, "tiny", lambda: Tiny)
    assert build("tiny").config == {"width": 2}
    assert build("tiny", {"width": 3}).config == {"width": 3}
    assert build("tiny", {"depth": 3}, "paper").config == {"width": 64, "depth": 3}
    with pytest.raises(UsageError, match="tiny has no preset “huge”") as e:
        build("tiny", preset="huge")
    assert "small, paper" in e.value.remedy
    with pytest.raises(UsageError) as e:
        build("dence")
    assert "'dence'" in e.value.message
    assert "dance" in e.value.remedy


@pytest.mark.parametrize("config", [{"wdith": 24}, {"width": 12}, {"width": 8.5}, {"depth": 0}])
def test_a_configuration_that_cannot_be(config):
    ((name, value),) = config.items()
    with pytest.raises(UsageError, match=f"no dance with {name}={value}") as e:
        build("dance", config)
    assert e.value.remedy


def test_the_list_of_models_costs_nothing():
    code = "import sys, retarget.models as m; assert 'dance' in m.MODELS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
