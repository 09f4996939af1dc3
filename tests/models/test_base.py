from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from retarget.errors import UsageError
from retarget.models import MODELS, build
from retarget.models.base import Frame, Objective, RetargetModel


def test_the_interface_has_to_be_fulfilled():
    with pytest.raises(TypeError, match="abstract"):
        RetargetModel()
    with pytest.raises(TypeError, match="abstract"):
        Objective()


def test_an_objective_needs_no_critics():
    class Plain(Objective):
        def generator_loss(self, frame, truth, condition):
            return {"pixel": (frame.rgb - truth.rgb).abs().mean()}

        def critic_loss(self, frame, truth, condition):
            return {}

    objective = Plain()
    assert objective.critic_parameters() == []
    objective.adopt(None)
    loss = objective.generator_loss(Frame(torch.ones(1, 3, 2, 2)), Frame(torch.zeros(1, 3, 2, 2)), None)
    assert loss["pixel"] == 1


def test_build(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", lambda **config: ("built", config))
    assert build("tiny", {"width": 3}) == ("built", {"width": 3})
    assert build("tiny") == ("built", {})
    with pytest.raises(UsageError) as e:
        build("dence")
    assert "'dence'" in e.value.message
    assert "dance" in e.value.remedy


def test_the_list_of_models_costs_nothing():
    code = "import sys, retarget.models as m; assert 'dance' in m.MODELS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
