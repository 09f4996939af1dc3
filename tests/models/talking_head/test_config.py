"""Configurations that cannot be, and that one says all."""

from __future__ import annotations

import dataclasses

import pytest

from retarget.errors import UsageError
from retarget.models import build
from retarget.models.talking_head import Generator, TalkingHeadConfig

from .conftest import TINY, tiny


@pytest.mark.parametrize(
    "config", [{"side": 40}, {"side": 8}, {"width": 0}, {"match": 1}, {"downs": 1}, {"videos": 2.5}, {"K": 8}]
)
def test_configurations_that_cannot_be(config):
    with pytest.raises(UsageError, match="talking-head"):
        build("talking-head", TINY | config)


def test_the_configuration_says_all():
    model = tiny()
    assert build("talking-head", dataclasses.asdict(model.config)).config == model.config
    assert TalkingHeadConfig().match
    assert isinstance(model.generator, Generator)
