"""The avatar's head, turned like the driver's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retarget.motion import body_of, fit
from retarget.skeleton import J

from .conftest import SIZE, dancer


def test_the_head_is_the_avatars_own_turned_like_the_drivers() -> None:
    yaw = 30 * np.sin(np.arange(80) / 12)
    avatar, driver = dancer(), dancer(scale=150, yaw=yaw)
    fitted = fit(driver, body_of(avatar), size=SIZE)
    ear = fitted.body[:, [J["left_ear"], J["right_ear"]], :2].mean(axis=1)
    nose = fitted.body[:, J["nose"], :2] - ear
    np.testing.assert_allclose(nose[:, 0], -0.1 * 250 * np.sin(np.radians(yaw)), atol=1.5)
    assert np.isfinite(fitted.face).all()


def test_the_head_turns_no_further_than_the_avatar_can_be_shown() -> None:
    yaw = np.linspace(0, 80, 80)
    fitted = fit(dancer(yaw=yaw), body_of(dancer()), size=SIZE)
    ear = fitted.body[:, [J["left_ear"], J["right_ear"]]].mean(axis=1)
    nose = fitted.body[:, J["nose"]] - ear
    shown = np.degrees(np.arctan2(-nose[:, 0], -nose[:, 2]))
    assert abs(shown[15] - yaw[15]) < 1.5  # untouched at first
    assert 30 < shown[-1] < 36.5
    assert (np.diff(shown) > -0.1).all()


def test_a_face_that_comes_and_goes_does_not_make_the_head_jump() -> None:
    yaw = 20 * np.sin(np.arange(80) / 12)
    driver, wrong = dancer(yaw=yaw), dancer(yaw=yaw + np.linspace(-20, 20, 80))
    driver = replace(driver, body=wrong.body)  # the body's idea of the head is off, and ever more so
    face = driver.face.copy()
    face[58:74] = np.nan
    avatar = body_of(dancer())
    whole, holed = (fit(d, avatar, size=SIZE).body[:, J["nose"], :2] for d in (driver, replace(driver, face=face)))
    np.testing.assert_allclose(whole[[57, 74]], holed[[57, 74]], atol=1e-3)
    steps = [np.abs(np.diff(t, axis=0)).max() for t in (whole, holed)]
    assert steps[1] < steps[0] + 1.5
