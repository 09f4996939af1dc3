"""Configurations that cannot be."""

from __future__ import annotations

import pytest

from retarget.errors import UsageError
from retarget.models import build

from .conftest import TINY


@pytest.mark.parametrize("wrong", [{"width": 1}, {"width": 5}, {"whole": 2}, {"side": 8}, {"side": True}, {"depth": 3}])
def test_a_configuration_that_cannot_be(wrong):
    with pytest.raises(UsageError, match="There is no posewarp with"):
        build("posewarp", TINY | wrong)
    assert build("posewarp", TINY | {"whole": 1}).config == build("posewarp", TINY | {"whole": True}).config
