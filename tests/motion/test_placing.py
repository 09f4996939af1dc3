"""Floor, jumps and ways of the fitted body in the avatar's picture."""

from __future__ import annotations

import numpy as np
import pytest

from retarget.motion import body_of, fit
from retarget.skeleton import J
from retarget.types import PoseTrack

from .conftest import SIZE, dancer, lowest


def test_a_jump_is_as_high_in_leg_lengths() -> None:
    up = np.zeros(100)
    up[40:52] = 0.45 * np.sin(np.pi * np.arange(12) / 11)  # half a second in the air
    avatar = dancer()
    driver = dancer(100, leg=1.25, scale=200, jump=up)
    fitted = fit(driver, body_of(avatar), size=SIZE)
    lift = 660 - lowest(fitted)
    assert lift[46] == pytest.approx(250 * 0.45 / 1.25, rel=0.06)
    np.testing.assert_allclose(lift[:36], 0, atol=2)
    np.testing.assert_allclose(lift[56:], 0, atol=2)


def test_steps_sideways_keep_their_length_in_bodies() -> None:
    walk = 0.4 * np.sin(np.arange(80) / 10)
    fitted = fit(dancer(scale=125, place=(300, 500), walk=walk), body_of(dancer()), size=SIZE)
    hip = fitted.body[:, [J["left_hip"], J["right_hip"]], 0].mean(axis=1)
    np.testing.assert_allclose(hip - hip.mean(), 250 * (walk - walk.mean()), atol=2)


def test_a_way_that_leaves_the_picture_is_compressed_and_the_body_is_not() -> None:
    avatar = dancer()
    driver = dancer(walk=np.linspace(-3, 3, 80), size=(3000, 720))
    fitted = fit(driver, body_of(avatar), size=SIZE)
    hips = fitted.body[:, [J["left_hip"], J["right_hip"]], 0]
    assert (hips > 0).all()
    assert (hips < SIZE[0]).all()
    assert np.ptp(hips.mean(axis=1)) > 250  # still a walk
    np.testing.assert_allclose(hips[:, 0] - hips[:, 1], 0.2 * 250, atol=1)


def test_an_avatar_at_the_edge_is_moved_inwards_rather_than_slowed_down() -> None:
    walk = np.linspace(0, 0.8, 80)
    fitted = fit(dancer(walk=walk), body_of(dancer(place=(500, 660))), size=SIZE)
    hip = fitted.body[:, [J["left_hip"], J["right_hip"]], 0].mean(axis=1)
    assert hip[-1] - hip[0] == pytest.approx(0.8 * 250, abs=3)
    assert hip.max() < SIZE[0]


@pytest.mark.parametrize(("scale", "most"), [(220, 1.36), (350, 1.2)])  # the larger one would outgrow the picture
def test_walking_nearer_grows_the_avatar_a_little_only(scale: float, most: float) -> None:
    far, near = dancer(60, scale=150), dancer(60, scale=350)
    body = body_of(dancer(scale=scale))
    fitted = fit(PoseTrack.concatenate([far, near]), body, size=SIZE)
    assert np.isfinite(fitted.body).all()
    sizes = [body_of(fitted.select(s)).scale / scale for s in (slice(0, 30), slice(-30, None))]
    assert 0.7 < sizes[0] < 1 < sizes[1] < most
    assert lowest(fitted).max() <= SIZE[1] + 1


def test_an_avatar_without_feet_is_placed_by_its_shoulders() -> None:
    avatar = dancer(place=(320, 1000))
    fitted = fit(dancer(scale=180), body_of(avatar), size=SIZE)
    shoulders = [t.body[:, [J["left_shoulder"], J["right_shoulder"]], :2].mean(axis=1) for t in (fitted, avatar)]
    np.testing.assert_allclose(np.median(shoulders[0], axis=0), np.median(shoulders[1], axis=0), atol=12)
