"""Expressions: a face at rest, and one's expressions on another's face."""

from __future__ import annotations

import numpy as np
import pytest
from made_faces import a_face, gaze, looking, seen, talking, turned, with_irises

from retarget.motion.expression import GAP, LIDS, LIPS, MOUTH, Expressions, neutral, transferred
from retarget.skeleton import IRISES


def test_the_neutral_face_is_the_one_that_is_silent():
    face = a_face()
    shapes = np.stack([talking(face, x) for x in (0.3, 0.01, 0.4, 0.0, 0.5, 0.3, 0.02, 0.35)])
    shapes[3, LIDS[0][1][0], 1] += 0.05  # a blink
    shapes = np.concatenate([shapes, np.full((1, 468, 3), np.nan)])
    np.testing.assert_allclose(neutral(shapes), talking(face, 0.01), atol=1e-9)
    np.testing.assert_allclose(neutral(shapes[:1]), shapes[0])


def test_expressions_on_ones_own_face_stay_what_they_are():
    face = a_face()
    shapes = face + np.random.default_rng(1).normal(0, 0.02, (5, 468, 3))
    np.testing.assert_allclose(transferred(shapes, face, face), shapes, atol=1e-12)


def test_mouths_and_eyes_of_other_sizes():
    mine, theirs = a_face(1), a_face(2)
    shut = mine.copy()
    for corners, _, lids in LIDS:
        shut[list(lids), 1] = mine[list(corners), 1].mean()
    out = transferred(np.stack([shut, talking(mine, 0.2)]), mine, theirs)
    for _, (above, below), _ in LIDS:
        assert out[0, below, 1] == pytest.approx(out[0, above, 1], abs=1e-9)
        assert theirs[below, 1] - theirs[above, 1] > 0.05
    width = [np.linalg.norm(f[MOUTH[0]] - f[MOUTH[1]]) for f in (theirs, mine)]
    gap, rest = (face[GAP[1], 1] - face[GAP[0], 1] for face in (out[1], theirs))
    assert gap - rest == pytest.approx(0.2 * width[0] / width[1])
    other = [n for n in range(468) if n not in LIPS]
    np.testing.assert_allclose(out[1][other], theirs[other])


def test_irises_of_ones_own_stay_where_they_are():
    face = with_irises(a_face())
    shapes = face + np.random.default_rng(1).normal(0, 0.02, (5, 478, 3))
    np.testing.assert_allclose(transferred(shapes, face, face), shapes, atol=1e-12)


@pytest.mark.parametrize("x", [-0.3, 0.2])
@pytest.mark.parametrize("aside", [0.0, 0.25])
def test_eyes_look_as_far_in_other_eyes(x, aside):
    """By shares of their width, wherever the avatar's pictures look; the iris keeps its own size."""
    mine, theirs = with_irises(a_face(1), 0.06), with_irises(a_face(2), 0.04)
    theirs[[33, 263], 0] *= 1.3  # wider eyes
    out = transferred(looking(mine, x, 0.1)[None], mine, looking(theirs, aside))
    assert out.shape == (1, 478, 3)
    np.testing.assert_allclose(gaze(out)[0], gaze(looking(mine, x, 0.1)), atol=1e-9)
    for iris in IRISES:
        np.testing.assert_allclose(np.ptp(out[0, list(iris), 0]), 0.08, atol=1e-9)
    rest = [n for n in range(468) if n not in LIPS]
    np.testing.assert_allclose(out[0][rest], theirs[rest])


def test_eyes_that_shut_go_on_looking():
    mine, theirs = with_irises(a_face(1)), with_irises(a_face(2))
    shut = looking(mine, 0.3)
    for corners, _, lids in LIDS:
        shut[list(lids), 1] = mine[list(corners), 1].mean()
    out = transferred(shut[None], mine, theirs)
    bare = transferred(shut[None, :468], mine[:468], theirs[:468])
    np.testing.assert_allclose(out[0, :468], bare[0])
    np.testing.assert_allclose(gaze(out)[0] - gaze(mine), [(0.3, 0, 0)] * 2, atol=1e-9)


def test_irises_on_one_side_only():
    """A driver without leaves the avatar's at rest; an avatar without gets none."""
    mine, theirs = with_irises(a_face(1)), with_irises(a_face(2))
    said = talking(mine, 0.2)
    out = transferred(said[None, :468], mine[:468], looking(theirs, 0.1))
    assert out.shape == (1, 478, 3)
    np.testing.assert_allclose(gaze(out)[0], gaze(looking(theirs, 0.1)), atol=1e-9)
    none = transferred(said[None], mine, theirs[:468])
    np.testing.assert_allclose(none, out[:, :468])


# ------------------------------------------------------------------------------------------------ a driver's


def opened(mesh: np.ndarray) -> np.ndarray:
    """How far the mouth is open, of meshes (..., 468, 3)."""
    return np.linalg.norm(mesh[..., GAP[1], :] - mesh[..., GAP[0], :], axis=-1)


def driver(*turns: np.ndarray, speaking: float = 0.3) -> np.ndarray:
    """Somebody who is silent and speaks in turn, turned like this, in another size and place."""
    face = a_face(1)
    return np.stack([seen(talking(face, speaking * (n % 2)), turn, 70, (300, 90, 10)) for n, turn in enumerate(turns)])


def test_the_avatar_speaks_with_the_driver():
    template = seen(a_face(2))
    meshes = driver(*[turned(), turned(10, 5)] * 6, *[turned(-10), turned()] * 6)
    found = Expressions(template, meshes)(meshes)
    rest, wide = opened(template), np.linalg.norm(template[MOUTH[0]] - template[MOUTH[1]])
    np.testing.assert_allclose(opened(found[0::2]), rest, atol=0.3)
    face = a_face(1)
    said = 0.3 / np.linalg.norm(face[MOUTH[0]] - face[MOUTH[1]]) * wide
    np.testing.assert_allclose(opened(found[1::2]) - rest, said, rtol=0.25)


def test_all_but_mouth_eyes_and_brows_stays_the_avatars():
    template = seen(a_face(2))
    meshes = driver(*[turned()] * 8)
    meshes[:, [234, 454]] += np.random.default_rng(0).normal(0, 15, (8, 2, 3))  # what a mesh tells of cheeks
    found = Expressions(template, driver(*[turned()] * 8))(meshes)
    sides = np.linalg.norm(found[:, [234, 454]] - template[[234, 454]], axis=2)
    assert sides.max() < 1 < opened(found).max() - opened(template)


def test_a_head_that_turns_away_is_at_rest():
    template = seen(a_face(2))
    expressions = Expressions(template, driver(*[turned()] * 8))
    away = driver(turned(75), turned(75))
    np.testing.assert_allclose(expressions(away), np.stack([template] * 2), atol=1e-9)
    half = opened(expressions(driver(turned(48), turned(48)))[1]) - opened(template)
    assert 0.1 < half / (opened(expressions(driver(turned(), turned()))[1]) - opened(template)) < 0.9


def test_no_face_no_expression():
    template = with_irises(seen(a_face(2)) / 40) * 40
    lost = np.full((3, 468, 3), np.nan)
    for expressions in (Expressions(template, lost), Expressions(template, driver(*[turned()] * 4))):
        np.testing.assert_array_equal(expressions(lost), np.stack([template] * 3))
