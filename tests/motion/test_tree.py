"""Bones of the avatar's lengths in the driver's directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retarget.motion import body_of, fit
from retarget.motion.body import BONE
from retarget.skeleton import J
from retarget.types import Silent

from .conftest import SIZE, dancer, lowest

LIMBS = [
    (a, b)
    for s in ("left", "right")
    for a, b in (
        (J[f"{s}_shoulder"], J[f"{s}_elbow"]),
        (J[f"{s}_elbow"], J[f"{s}_wrist"]),
        (J[f"{s}_hip"], J[f"{s}_knee"]),
        (J[f"{s}_knee"], J[f"{s}_ankle"]),
    )
]


class Listener(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_longer_legs_become_the_avatars_and_stand_on_its_floor() -> None:
    avatar, driver = dancer(), dancer(leg=1.3, arm=0.8)
    fitted = fit(driver, body_of(avatar), size=SIZE)
    for name in ("upper_leg", "lower_leg", "upper_arm", "lower_arm", "spine"):
        assert body_of(fitted).lengths[BONE[name]] == pytest.approx(body_of(avatar).lengths[BONE[name]], rel=0.02), name
    np.testing.assert_allclose(lowest(fitted), 660, atol=1.5)


def test_bones_keep_their_directions() -> None:
    driver = dancer(leg=1.25, arm=0.85)
    fitted = fit(driver, body_of(dancer()), size=SIZE)
    for a, b in LIMBS:
        before, after = (t.body[:, b, :2] - t.body[:, a, :2] for t in (driver, fitted))
        length = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        far = np.linalg.norm(before, axis=1) > 10
        assert ((before * after).sum(axis=1) / length)[far].min() > 0.9999


def test_somebody_on_their_hands_stays_whole_and_on_the_floor() -> None:
    track = dancer()
    flip = np.array([1, -1, 1], np.float32)
    body = track.body.copy()
    body[..., :3] = body[..., :3] * flip
    body[..., 1] += 660 - body[..., 1].max(axis=1, keepdims=True)
    driver = replace(track, body=body, world=track.world * flip, face=np.full_like(track.face, np.nan))
    fitted = fit(driver, body_of(dancer(scale=220, leg=0.9)), size=SIZE)
    assert np.isfinite(fitted.body).all()
    np.testing.assert_allclose(lowest(fitted), 660, atol=3)
    for a, b in LIMBS:
        assert np.linalg.norm(fitted.body[:, b, :2] - fitted.body[:, a, :2], axis=1).max() < 0.45 * 220


def test_legs_the_driver_does_not_show_are_the_avatars_own_and_stand() -> None:
    listener = Listener()
    driver = dancer(place=(320, 1000))
    fitted = fit(driver, body_of(dancer(still=True)), size=SIZE, progress=listener)
    feet = fitted.body[:, [J["left_ankle"], J["right_ankle"]]]
    np.testing.assert_allclose(lowest(fitted), 660, atol=1)
    assert np.ptp(feet[:, :, 1], axis=0).max() < 2
    assert feet[..., 3].min() > 0.5
    assert len(listener.warnings) == 1
    assert "knees and feet" in listener.warnings[0]
