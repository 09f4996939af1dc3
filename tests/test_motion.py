"""Motion on synthetic skeletons whose answers are known exactly."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from retarget import motion
from retarget.motion import BONE, SEGMENTS, Movement, body_of, fill_gaps, fit, scale_to, smooth
from retarget.pose import Motion
from retarget.pose.cache import packed
from retarget.skeleton import JOINTS, MIRROR, J
from retarget.types import PoseTrack, Silent

SIZE = (640, 720)
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


def turned(yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """(T, 3, 3) rotations about the vertical, then sideways axis, written down independently of the code under test."""
    a, b, o, one = np.radians(yaw), np.radians(pitch), np.zeros_like(yaw), np.ones_like(yaw)
    y = np.stack([np.cos(a), o, np.sin(a), o, one, o, -np.sin(a), o, np.cos(a)], -1).reshape(-1, 3, 3)
    x = np.stack([one, o, o, o, np.cos(b), -np.sin(b), o, np.sin(b), np.cos(b)], -1).reshape(-1, 3, 3)
    return y @ x


def face_mesh() -> np.ndarray:
    """(468, 3) metres: points on the front half of an ellipsoid around mid ear, the named ones where they belong."""
    rng = np.random.default_rng(7)
    u, v = rng.uniform(-1.4, 1.4, (2, 468))
    mesh = np.stack([0.075 * np.sin(u) * np.cos(v), 0.02 + 0.1 * np.sin(v), -0.1 * np.cos(u) * np.cos(v)], axis=1)
    named = {234: (-0.075, 0, 0), 454: (0.075, 0, 0), 10: (0, -0.08, -0.08), 152: (0, 0.12, -0.08), 2: (0, 0.03, -0.1)}
    for index, point in named.items():
        mesh[index] = point
    return mesh


HEAD = np.array(
    [(0, 0.01, -0.1)]
    + [(x, -0.03, -0.085) for x in (0.015, 0.03, 0.045, -0.015, -0.03, -0.045)]
    + [(0.075, 0, 0), (-0.075, 0, 0), (0.025, 0.06, -0.085), (-0.025, 0.06, -0.085)]
)


def dancer(
    pictures: int = 80,
    *,
    scale: float = 250.0,
    place: tuple[float, float] = (320.0, 660.0),
    leg: float = 1.0,
    arm: float = 1.0,
    jump: np.ndarray | None = None,
    walk: np.ndarray | None = None,
    yaw: np.ndarray | None = None,
    size: tuple[int, int] = SIZE,
    still: bool = False,
) -> PoseTrack:
    """Somebody who dances, seen from far away (exact weak perspective).

    scale: pixels per metre; place: x of the start and y of the floor; leg, arm: length factors; jump: (T,) metres off
    the floor; walk: (T,) metres to the right; yaw: (T,) degrees of the head.
    """
    t = np.arange(pictures) / 25
    swing = 0.0 if still else 1.0
    zero = np.zeros(pictures)
    jump, walk, yaw = (zero if v is None else v for v in (jump, walk, yaw))
    p = np.zeros((pictures, len(JOINTS), 3))

    def hang(joint: str, parent: str, length: float, side: np.ndarray, front: np.ndarray) -> None:
        """A bone that hangs down, swung sideways and to the front by angles (T,)."""
        d = np.stack([np.sin(side) * np.cos(front), np.cos(side) * np.cos(front), -np.sin(front)], axis=1)
        p[:, J[joint]] = p[:, J[parent]] + length * d

    chest = np.stack([0.08 * swing * np.sin(2 * t), -0.5 + 0 * t, 0.04 * swing * np.cos(2 * t)], axis=1)
    for side, sign in (("left", 1), ("right", -1)):
        p[:, J[f"{side}_hip"]] = (sign * 0.1, 0, 0)
        p[:, J[f"{side}_shoulder"]] = chest + np.array((sign * 0.17, 0, 0))
        phase = 0.0 if side == "left" else 1.3
        raise_ = sign * (0.3 + swing * (0.9 + 0.9 * np.sin(3 * t + phase)))
        hang(f"{side}_elbow", f"{side}_shoulder", 0.28 * arm, raise_, swing * 0.5 * np.sin(2 * t + phase))
        hang(f"{side}_wrist", f"{side}_elbow", 0.25 * arm, raise_ * 1.4, swing * 0.6 * np.cos(2 * t + phase))
        for finger, length in (("pinky", 0.08), ("index", 0.09), ("thumb", 0.05)):
            hang(f"{side}_{finger}", f"{side}_wrist", length * arm, raise_ * 1.4, zero)
        bend = swing * (0.25 + 0.25 * np.sin(2 * t + 2 * phase))
        hang(f"{side}_knee", f"{side}_hip", 0.4 * leg, sign * (0.05 + 0.3 * bend), bend)
        hang(f"{side}_ankle", f"{side}_knee", 0.4 * leg, sign * (0.05 - 0.1 * bend), -bend)
        p[:, J[f"{side}_heel"]] = p[:, J[f"{side}_ankle"]] + (0, 0.06, 0.03)
        p[:, J[f"{side}_foot_index"]] = p[:, J[f"{side}_ankle"]] + (sign * 0.04, 0.07, -0.15)
    ear = chest + np.array((0, -0.22, 0))
    attitude = turned(np.asarray(yaw, float), np.asarray(zero, float))
    p[:, :11] = ear[:, None] + np.einsum("tij,nj->tni", attitude, HEAD)
    face = ear[:, None] + np.einsum("tij,nj->tni", attitude, face_mesh())

    shift = np.stack([place[0] + scale * walk, place[1] - scale * (p[:, :, 1].max(axis=1) + jump), zero], axis=1)
    body = np.concatenate([p * scale + shift[:, None], np.full((pictures, 33, 1), 0.99)], axis=2)
    fingers = np.linspace(0, 1, 21)[:, None] * np.array([0.02, 0.08, 0.01]) * arm
    wrists = p[:, [J["left_wrist"], J["right_wrist"]]] * (1, 1, 0)
    hands = (wrists[:, :, None] + fingers) * scale + shift[:, None, None]
    return PoseTrack(
        body=body.astype(np.float32),
        world=p.astype(np.float32),
        face=((face - (0, 0, 0.2)) * scale + shift[:, None]).astype(np.float32),  # the mesh's z has its own origin
        hands=hands.astype(np.float32),
        size=size,
        fps=Fraction(25),
    )


def lowest(track: PoseTrack) -> np.ndarray:
    return track.body[..., 1].max(axis=1)


def close(a: PoseTrack, b: PoseTrack, pixels: float) -> None:
    np.testing.assert_allclose(a.body[..., :2], b.body[..., :2], atol=pixels)
    np.testing.assert_allclose(a.face[..., :2], b.face[..., :2], atol=pixels)
    np.testing.assert_allclose(a.hands[..., :2], b.hands[..., :2], atol=pixels)


# ------------------------------------------------------------------------------------------------------------ measuring


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


# -------------------------------------------------------------------------------------------------------------- fitting


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


def test_an_avatar_without_feet_is_placed_by_its_shoulders() -> None:
    avatar = dancer(place=(320, 1000))
    fitted = fit(dancer(scale=180), body_of(avatar), size=SIZE)
    shoulders = [t.body[:, [J["left_shoulder"], J["right_shoulder"]], :2].mean(axis=1) for t in (fitted, avatar)]
    np.testing.assert_allclose(np.median(shoulders[0], axis=0), np.median(shoulders[1], axis=0), atol=12)


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


def test_an_avatar_seen_from_the_side_may_turn_further() -> None:
    avatar = dancer(yaw=np.linspace(-60, 0, 80))
    limit = body_of(avatar).turn[0]
    assert limit[1] - limit[0] == pytest.approx(58, abs=4)


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


# ------------------------------------------------------------------------------------------------------------ rotations


def test_rotations_are_recovered_exactly() -> None:
    rng = np.random.default_rng(1)
    template = rng.normal(size=(20, 3))
    true = turned(rng.uniform(-180, 180, 9), rng.uniform(-90, 90, 9))
    points = 3 * np.einsum("tij,nj->tni", true, template) + rng.normal(size=(9, 1, 3))
    np.testing.assert_allclose(motion.rotations(template, points), true, atol=1e-9)


def test_soft_limits_are_the_identity_at_first_and_rise_steadily() -> None:
    x = np.linspace(-5, 5, 1001)
    y = motion.soft(x, 1.0, 2.0)
    np.testing.assert_array_equal(y[np.abs(x) <= 1], x[np.abs(x) <= 1])
    assert (np.diff(y) > 0).all()
    assert np.abs(y).max() < 2
    assert np.abs(np.diff(y, n=2)).max() < 2e-4  # no kink


# ----------------------------------------------------------------------------------------------------------------- gaps


def linear(pictures: int = 50) -> PoseTrack:
    t = np.arange(pictures, dtype=np.float32)[:, None, None]
    body = np.concatenate([np.broadcast_to(t * (2, -1, 3), (pictures, 33, 3)), np.ones((pictures, 33, 1))], axis=2)
    return PoseTrack(
        body=body.astype(np.float32),
        world=np.broadcast_to(t * 0.01, (pictures, 33, 3)).astype(np.float32),
        face=np.broadcast_to(t * (2, -1, 1), (pictures, 468, 3)).astype(np.float32),
        hands=np.broadcast_to(t[..., None] * (2, -1, 1), (pictures, 2, 21, 3)).astype(np.float32),
        size=SIZE,
        fps=Fraction(10),
    )


def without(track: PoseTrack, *rows: int) -> PoseTrack:
    arrays = {name: getattr(track, name).copy() for name in ("body", "world", "face", "hands")}
    for array in arrays.values():
        array[list(rows)] = np.nan
    return replace(track, **arrays, missed=tuple(rows))


def test_short_gaps_are_interpolated_exactly() -> None:
    whole = linear()
    filled = fill_gaps(without(whole, 7, 20, 21, 22, 23, 24), longest=0.5)
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_allclose(getattr(filled, name), getattr(whole, name), atol=1e-4)
    assert filled.missed == (7, 20, 21, 22, 23, 24)


def test_long_gaps_hold_the_nearest_pose_and_show_no_hands_and_face() -> None:
    whole = linear()
    gap = range(20, 32)
    filled = fill_gaps(without(whole, *gap), longest=0.5)
    np.testing.assert_array_equal(filled.body[21], whole.body[19])
    np.testing.assert_array_equal(filled.body[30], whole.body[32])
    assert np.isnan(filled.face[20:32]).all()
    assert np.isnan(filled.hands[20:32]).all()


def test_the_ends_hold_the_nearest_pose() -> None:
    whole = linear()
    filled = fill_gaps(without(whole, 0, 1, 49), longest=0.5)
    np.testing.assert_array_equal(filled.body[:2], whole.body[[2, 2]])
    np.testing.assert_array_equal(filled.body[49], whole.body[48])
    assert np.isfinite(filled.face[[0, 1, 49]]).all()
    late = fill_gaps(without(whole, *range(10)), longest=0.5)
    np.testing.assert_array_equal(late.body[0], whole.body[10])
    assert np.isnan(late.face[:10]).all()


def test_a_missing_hand_alone_follows_its_wrist() -> None:
    whole = linear()
    hands = whole.hands.copy()
    hands[20:24, 1] = np.nan
    filled = fill_gaps(replace(whole, hands=hands))
    np.testing.assert_allclose(filled.hands, whole.hands, atol=1e-4)


def test_what_was_found_is_untouched_and_nothing_found_stays_nothing() -> None:
    track = dancer()
    filled = fill_gaps(without(track, 5, 6))
    keep = np.delete(np.arange(80), [5, 6])
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_array_equal(getattr(filled, name)[keep], getattr(track, name)[keep])
    nobody = without(track, *range(80))
    assert fill_gaps(nobody) is nobody


# ------------------------------------------------------------------------------------------------------------ smoothing


def test_strength_0_is_the_same_object_and_constants_stay() -> None:
    track = dancer(still=True)
    assert smooth(track, 0.0) is track
    calm = smooth(track, 1.0)
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_allclose(getattr(calm, name), getattr(track, name), atol=1e-3)


@pytest.mark.parametrize(("strength", "most"), [(0.3, 0.7), (1.0, 0.45)])
def test_jitter_shrinks(strength: float, most: float) -> None:
    track = dancer(200, still=True)
    noise = np.random.default_rng(3).normal(0, 1.5, track.body[..., :3].shape).astype(np.float32)
    body = track.body.copy()
    body[..., :3] += noise
    calm = smooth(replace(track, body=body), strength)
    left = (calm.body - track.body)[..., :2].std()
    assert left < most * 1.5


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_fast_movement_has_no_lag(strength: float) -> None:
    track = dancer(61, still=True)
    ramp = 200 * np.clip((np.arange(61) - 28) / 4, 0, 1).astype(np.float32)  # 0.8 m in 4 pictures
    body = track.body.copy()
    wrist = J["left_wrist"]
    body[:, wrist, 0] += ramp
    moved = smooth(replace(track, body=body), strength).body[:, wrist, 0] - track.body[0, wrist, 0]
    middle = np.interp(100, moved, np.arange(61))
    assert abs(middle - 30) < 0.5
    assert moved[-1] == pytest.approx(200, abs=2)


def test_smoothing_is_the_same_backwards_in_time() -> None:
    track = dancer()
    back = np.arange(80)[::-1]
    np.testing.assert_allclose(smooth(track.select(back), 0.6).body, smooth(track, 0.6).select(back).body, atol=1e-3)


def test_smoothing_does_not_depend_on_the_resolution() -> None:
    track = dancer()
    small = smooth(track.scaled((320, 360)), 0.5)
    np.testing.assert_allclose(small.body, smooth(track, 0.5).scaled((320, 360)).body, atol=0.02)


def test_hands_that_come_and_go_are_smoothed_where_they_are() -> None:
    track = dancer()
    hands = track.hands.copy()
    hands[30:40, 0] = np.nan
    calm = smooth(replace(track, hands=hands), 0.5)
    assert np.isnan(calm.hands[30:40, 0]).all()
    assert np.isfinite(calm.hands[40:, 0]).all()
    assert np.abs(calm.hands - track.hands)[40:42, 0].max() < 8


# ------------------------------------------------------------------------------------------------------------- scale_to


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


def test_there_is_a_length_per_segment() -> None:
    assert list(BONE) == list(SEGMENTS)
    assert len(body_of(dancer(4)).lengths) == len(SEGMENTS)


# ------------------------------------------------------------------------------------------------------ a long movement


def long_motion(count: int) -> Motion:
    """A dancer with gaps in face and hands, short and long, some of them where windows meet."""
    track = dancer(count)
    face, hands = track.face.copy(), track.hands.copy()
    for first, length in ((3, 4), (25, 14), (60, 3), (100, 9), (count - 5, 5)):
        face[first : first + length] = np.nan
        hands[first + 1 : first + length, 0] = np.nan
    return Motion.of(packed(replace(track, face=face, hands=hands)).__getitem__)


@pytest.mark.parametrize("window", [1, 7, 32, 1000])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_movement_is_what_the_steps_one_by_one_give(
    monkeypatch: pytest.MonkeyPatch, window: int, strength: float, aligned: bool
) -> None:
    known, size = long_motion(130), (320, 360)
    calm = smooth(fill_gaps(known.whole()), strength)
    body = body_of(dancer(40)) if aligned else None
    wanted = scale_to(calm, size) if body is None else fit(calm, body, size=size)
    monkeypatch.setattr(motion, "WINDOW", window)
    found = Movement(known, smoothness=strength, body=body, size=size)
    assert (len(found), found.size, found.fps) == (130, size, known.track.fps)
    for rows in ([0], [31], range(5, 9), range(130)):
        part = found.select(rows)
        for name in ("body", "face", "hands"):
            np.testing.assert_allclose(getattr(part, name), getattr(wanted, name)[list(rows)], atol=2e-4)
    assert np.isnan(calm.face).any()


def test_face_meshes_are_read_around_what_is_asked_for() -> None:
    """Four seconds, after which nothing is remembered, and a gap's length before and behind; not more."""
    known = long_motion(2000)
    read: list[tuple[int, int]] = []

    class Watched:
        def __call__(self, first: int, last: int) -> np.ndarray:
            read.append((first, last))
            return known.faces(first, last)

    watched = Motion(known.track, Watched())  # type: ignore[arg-type]
    found = Movement(watched, smoothness=0.3, body=None, size=(320, 360))
    assert read == []
    part = found.select([1000])
    around = 4 * float(known.track.fps) + 0.5 * float(known.track.fps) + 2
    ((first, last),) = read
    assert 768 - around <= first <= 768
    assert 1024 <= last <= 1024 + around
    wanted = scale_to(smooth(fill_gaps(known.whole()), 0.3), (320, 360))
    np.testing.assert_allclose(part.face, wanted.face[1000:1001], atol=1e-4)
    found.select([1001])
    assert len(read) == 1


def with_irises(track: PoseTrack) -> PoseTrack:
    """Eyes that look to and fro."""
    to_and_fro = np.sin(np.arange(len(track)))[:, None, None] * np.array([1.5, 0.5, 0])
    eyes = track.face[:, 300:310] + to_and_fro
    return replace(track, face=np.concatenate([track.face, eyes], axis=1).astype(np.float32))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("theirs", [True, False])
def test_irises_change_nothing_else(aligned: bool, mine: bool, theirs: bool) -> None:
    """A driver with or without, fitted to a body with or without: gaze turns no head."""
    driver, avatar = long_motion(60).whole(), dancer(40)
    known, body = (with_irises(driver) if mine else driver), body_of(with_irises(avatar) if theirs else avatar)
    assert body.face is not None
    np.testing.assert_array_equal(body.face[:468], body_of(avatar).face)
    made, plain = (
        Movement(Motion.of(packed(t).__getitem__), smoothness=0.3, body=b if aligned else None, size=(320, 360)).select(
            range(60)
        )
        for t, b in ((known, body), (driver, body_of(avatar)))
    )
    points = 478 if (theirs if aligned else mine) else 468
    assert made.face.shape == (60, points, 3)
    # Meshes are packed in steps of the largest extent, and around their mean, which the irises are part of.
    np.testing.assert_allclose(made.face[:, :468], plain.face, atol=0.02)
    np.testing.assert_allclose(made.body, plain.body, atol=0.02)
    np.testing.assert_array_equal(np.isnan(made.face[:, -1]), np.isnan(plain.face[:, -1]))


def test_irises_are_filled_and_smoothed_like_the_rest() -> None:
    track = with_irises(dancer(40))
    gappy = track.face.copy()
    gappy[10:13] = np.nan
    out = smooth(fill_gaps(replace(track, face=gappy)), 0.3)
    assert out.face.shape == (40, 478, 3)
    assert np.isfinite(out.face).all()
    size = (track.size[0] * 2, track.size[1] * 2)
    np.testing.assert_allclose(scale_to(out, size).face, 2 * out.face, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.reliability("6. Length", "a motion three times as long", "a fraction of its face meshes more memory")
def test_a_long_movement_takes_little_memory() -> None:
    """Face meshes alone would take 5616 bytes for each picture."""
    body = body_of(dancer(40))

    def measured(count: int) -> tuple[int, int]:
        """Bytes at most while it is made, and while it is drawn."""
        known = long_motion(count)
        tracemalloc.start()
        try:
            found = Movement(known, smoothness=0.3, body=body, size=(320, 360))
            _, making = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for i in range(0, count, 200):
                found.select([i])
            return making, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    (a, b), (c, d) = measured(600), measured(1800)
    assert c - a < 1200 * 5616 / 2
    assert d - b < 1200 * 5616 / 3
