"""Tracks of poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retarget.skeleton import FACE_POINTS, IRISES, REFINED_POINTS
from retarget.types import PoseTrack


def test_irises_come_behind_the_mesh() -> None:
    assert sorted(i for iris in IRISES for i in iris) == list(range(FACE_POINTS, REFINED_POINTS))


@pytest.mark.parametrize("irises", [False, True])
def test_meshes_with_and_without_irises_are_scaled_selected_and_joined(puppet, irises: bool) -> None:
    track = puppet.track(puppet.body(), puppet.body((80, 80)), puppet.body(at=(60, 70)), details=True)
    track = puppet.with_irises(track) if irises else track
    points = REFINED_POINTS if irises else FACE_POINTS
    assert track.face.shape == (3, points, 3)
    large = track.scaled((256, 480))
    np.testing.assert_allclose(large.face, track.face * (2, 3, 2), rtol=1e-6)
    again = PoseTrack.concatenate([track.select([2]), track.select(slice(0, 2))])
    np.testing.assert_array_equal(again.face, track.face[[2, 0, 1]])


@pytest.mark.parametrize("points", [0, 467, 470, 479])
def test_other_meshes_are_our_own_mistake(puppet, points: int) -> None:
    track = puppet.track(puppet.body())
    with pytest.raises(ValueError, match="face"):
        replace(track, face=np.zeros((1, points, 3), np.float32))


def test_tracks_of_both_kinds_are_not_joined(puppet) -> None:
    track = puppet.track(puppet.body(), details=True)
    with pytest.raises(ValueError, match=r"dimension|shape"):
        PoseTrack.concatenate([track, puppet.with_irises(track)])
