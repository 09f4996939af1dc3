"""A person measured whose measures are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retarget.motion import body_of
from retarget.motion.body import BONE, SEGMENTS

from .conftest import dancer


def test_there_is_a_length_per_segment() -> None:
    assert list(BONE) == list(SEGMENTS)
    assert len(body_of(dancer(4)).lengths) == len(SEGMENTS)


def test_body_of_knows_the_true_lengths_in_spite_of_foreshortening() -> None:
    body = body_of(dancer())
    want = {"spine": 0.507, "hips": 0.2, "shoulders": 0.34, "neck": 0.22, "upper_arm": 0.28, "lower_leg": 0.4}
    for name, metres in want.items():
        assert body.lengths[BONE[name]] == pytest.approx(250 * metres, rel=0.02), name
    assert body.scale == pytest.approx(250, rel=1e-3)
    assert body.floor == pytest.approx(660, abs=0.5)
    assert body.centre == pytest.approx(320, abs=0.5)
    assert body.face is not None
    assert body.face.shape == (468, 3)


def test_body_of_one_picture_is_body_of_many() -> None:
    track = dancer(still=True)
    one, many = body_of(track.select([3])), body_of(track)
    np.testing.assert_allclose(one.lengths, many.lengths, rtol=1e-3)
    assert one.floor == pytest.approx(many.floor, abs=0.1)
    np.testing.assert_allclose(one.head, many.head, atol=0.1)


def test_body_of_marks_bones_outside_the_picture_as_unknown() -> None:
    track = dancer(place=(320, 1000))  # knees and feet below the edge
    body = body_of(track)
    unknown = {name for name, i in BONE.items() if np.isnan(body.lengths[i])}
    assert {"lower_leg", "foot"} <= unknown
    assert "upper_arm" not in unknown
    assert np.isnan(body.floor)


def test_body_of_nobody_is_refused() -> None:
    track = dancer(3)
    with pytest.raises(ValueError, match="no pose"):
        body_of(replace(track, body=np.full_like(track.body, np.nan)))


def test_a_scaled_body_is_the_body_of_the_scaled_track() -> None:
    track = dancer()
    a, b = body_of(track).scaled((320, 360)), body_of(track.scaled((320, 360)))
    np.testing.assert_allclose(a.lengths, b.lengths, rtol=1e-3)
    np.testing.assert_allclose((a.scale, a.floor, a.centre), (b.scale, b.floor, b.centre), rtol=1e-3)
