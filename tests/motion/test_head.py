"""How far a head was seen to turn."""

from __future__ import annotations

import numpy as np
import pytest

from retarget.motion import body_of

from .conftest import dancer


def test_an_avatar_seen_from_the_side_may_turn_further() -> None:
    avatar = dancer(yaw=np.linspace(-60, 0, 80))
    limit = body_of(avatar).turn[0]
    assert limit[1] - limit[0] == pytest.approx(58, abs=4)
