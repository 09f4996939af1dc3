"""One dancer's motion fitted to another's body, and tracks left where they stand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retarget.motion import body_of, fit, scale_to
from retarget.skeleton import MIRROR, J
from retarget.types import PoseTrack

from .conftest import SIZE, dancer, lowest


def close(a: PoseTrack, b: PoseTrack, pixels: float) -> None:
    np.testing.assert_allclose(a.body[..., :2], b.body[..., :2], atol=pixels)
    np.testing.assert_allclose(a.face[..., :2], b.face[..., :2], atol=pixels)
    np.testing.assert_allclose(a.hands[..., :2], b.hands[..., :2], atol=pixels)


def test_fitting_somebody_to_themselves_changes_nothing() -> None:
    track = dancer(yaw=20 * np.sin(np.arange(80) / 8))
    fitted = fit(track, body_of(track), size=SIZE)
    close(fitted, track, 1.0)
    np.testing.assert_allclose(fitted.world, track.world, atol=0.01)
    np.testing.assert_allclose(fitted.body[..., 2], track.body[..., 2], atol=1.0)
    assert fitted.fps == track.fps


@pytest.mark.parametrize(("factor", "place"), [(0.5, (200.0, 330.0)), (1.3, (400.0, 900.0))])
def test_a_driver_of_another_size_and_place_lands_on_the_avatar(factor: float, place: tuple[float, float]) -> None:
    avatar = dancer()
    driver = dancer(scale=250 * factor, place=place, size=(900, 1000))
    close(fit(driver, body_of(avatar), size=SIZE), avatar, 1.0)


def test_fit_does_not_care_about_left_and_right() -> None:
    def mirrored(track: PoseTrack) -> PoseTrack:
        flip, right = np.array([-1, 1, 1], np.float32), np.array([track.size[0], 0, 0], np.float32)
        body = track.body[:, MIRROR].copy()
        body[..., :3] = body[..., :3] * flip + right
        nothing = np.full_like(track.face, np.nan)  # mirrored meshes would need their own list of pairs
        hands = track.hands[:, ::-1] * flip + right
        return replace(track, body=body, world=track.world[:, MIRROR] * flip, face=nothing, hands=hands)

    avatar, driver = dancer(place=(250, 660)), dancer(leg=1.2, scale=200, walk=np.linspace(0, 0.3, 80))
    faceless = replace(avatar, face=np.full_like(avatar.face, np.nan))
    straight = fit(replace(driver, face=faceless.face), body_of(faceless), size=SIZE)
    other = fit(mirrored(driver), body_of(mirrored(faceless)), size=SIZE)
    np.testing.assert_allclose(mirrored(straight).body, other.body, atol=0.5)


def test_hands_follow_the_wrist_at_the_avatars_size() -> None:
    driver = dancer(scale=100, place=(200, 300))
    fitted = fit(driver, body_of(dancer()), size=SIZE)
    for side, wrist in enumerate((J["left_wrist"], J["right_wrist"])):
        offset = fitted.hands[:, side, 20, :2] - fitted.body[:, wrist, :2]
        np.testing.assert_allclose(offset, np.tile((0.02 * 250, 0.08 * 250), (80, 1)), atol=0.7)


def test_pictures_without_a_pose_stay_without() -> None:
    driver = dancer()
    lost = driver.body.copy()
    lost[10:12] = np.nan
    world = driver.world.copy()
    world[10:12] = np.nan
    fitted = fit(replace(driver, body=lost, world=world), body_of(dancer()), size=SIZE)
    assert np.flatnonzero(~fitted.found).tolist() == [10, 11]
    assert np.isfinite(np.delete(fitted.body, [10, 11], axis=0)).all()


def test_one_picture_can_drive() -> None:
    fitted = fit(dancer(1), body_of(dancer(scale=200)), size=SIZE)
    assert np.isfinite(fitted.body).all()
    assert lowest(fitted)[0] == pytest.approx(660, abs=1)


@pytest.mark.parametrize("size", [(320, 360), (1280, 1440)])
def test_the_avatars_picture_may_have_another_resolution(size: tuple[int, int]) -> None:
    track = dancer()
    close(fit(track, body_of(track), size=size), track.scaled(size), 2.0)


def test_a_driver_without_depth_or_faces_works() -> None:
    """What `retarget[yolo]` gives: flat world coordinates, no mesh, no hands."""
    track = dancer()
    flat = track.world.copy()
    flat[..., 2] = 0
    body = track.body.copy()
    body[..., 2] = 0
    nothing = np.full_like(track.face, np.nan)
    driver = replace(track, body=body, world=flat, face=nothing, hands=np.full_like(track.hands, np.nan))
    fitted = fit(driver, body_of(track), size=SIZE)
    assert np.isfinite(fitted.body).all()
    np.testing.assert_allclose(lowest(fitted), 660, atol=3)


def test_equal_aspects_are_plain_scaling() -> None:
    track = dancer()
    scaled = scale_to(track, (320, 360))
    np.testing.assert_array_equal(scaled.body, track.scaled((320, 360)).body)


def test_another_aspect_is_kept_whole_and_centred() -> None:
    track = dancer(size=(640, 360))
    scaled = scale_to(track, (640, 720))
    np.testing.assert_allclose(scaled.body[..., 0], track.body[..., 0], atol=1e-4)
    np.testing.assert_allclose(scaled.body[..., 1], track.body[..., 1] + 180, atol=1e-4)
    tall = scale_to(track, (320, 720))
    np.testing.assert_allclose(tall.body[..., 0], track.body[..., 0] / 2, atol=1e-4)
    np.testing.assert_allclose(tall.body[..., 1], track.body[..., 1] / 2 + 270, atol=1e-3)
    np.testing.assert_array_equal(tall.body[..., 3], track.body[..., 3])
    assert tall.size == (320, 720)
