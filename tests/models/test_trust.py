"""The search for how far answers are trusted."""

from __future__ import annotations

import pytest
import torch

from retarget.models import build
from retarget.models.trust import STEPS, WORTH, settled

NAMES = ("a", "b", "c")


@pytest.mark.parametrize("wanted", [(0.0, 0.25, 1.0), (0.5, 0.0, 0.0), (1.0, 1.0, 0.75)])
def test_the_best_weights_are_found(wanted: tuple[float, ...]) -> None:
    trust = torch.ones(3)
    target = torch.tensor(wanted)
    found = settled(trust, NAMES, (True,) * 3, lambda: float((trust - target).square().sum()))
    assert torch.equal(trust, target)
    assert found == {f"trust_{name}": value for name, value in zip(NAMES, wanted, strict=True)}


def test_an_answer_that_is_not_there_is_not_asked() -> None:
    trust, asked = torch.ones(3), set()

    def score() -> float:
        asked.add(float(trust[1]))
        return 1 - 0.1 * float(trust[0])

    assert settled(trust, NAMES, (True, False, True), score) == {"trust_a": 1.0, "trust_c": 0.0}
    assert asked == {0.0}


@pytest.mark.parametrize("worth", [0.5 * WORTH, 2 * WORTH])
def test_trust_has_to_be_earned(worth: float) -> None:
    trust = torch.ones(3)
    settled(trust, NAMES, (True,) * 3, lambda: 1 - worth * float(trust[2]))
    assert trust.tolist() == [0, 0, 1 if worth > WORTH else 0]


def test_no_weights_are_tried_twice() -> None:
    trust, asked = torch.ones(3), []

    def score() -> float:
        asked.append(tuple(trust.tolist()))
        return 1.0

    settled(trust, NAMES, (True,) * 3, score)
    assert len(asked) == len(set(asked)) == 1 + 3 * (len(STEPS) - 1)


def test_what_was_settled_before_stays_unless_something_else_is_clearly_better() -> None:
    known = {"trust_a": 0.5, "trust_b": 0.25}
    trust = torch.ones(3)
    assert settled(trust, NAMES, (True,) * 3, lambda: 1.0, known) == known | {"trust_c": 0.0}
    assert trust.tolist() == [0.5, 0.25, 0.0]
    found = settled(trust, NAMES, (True,) * 3, lambda: 1 - 0.99 * WORTH * float(trust[0]) + float(trust[1]), known)
    assert found == {"trust_a": 0.5, "trust_b": 0.0, "trust_c": 0.0}


def test_posewarp_settles_what_it_has_learned_and_nothing_else() -> None:
    model = build("posewarp")
    assert model.settle(lambda: 1.0) == {}
    assert model.trust.tolist() == [1, 1, 1]  # else no step of fine-tuning could move them
    model.matte.bias.data += 1.0
    assert model.settle(lambda: 1 - 0.1 * float(model.trust[2])) == {
        "trust_masks": 0.0, "trust_colour": 0.0, "trust_matte": 1.0
    }  # fmt: skip
    whole = build("posewarp", {"whole": True, "width": 4})
    whole.matte.bias.data += 1.0
    assert whole.settle(lambda: 1 - 0.1 * float(whole.trust[2])) == {}
