"""One shirt in two pictures, and what is between them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from retarget.parts.registration import REACH, registered, within

SIZE = (220, 180)


def shirt(way: np.ndarray | None = None, gain: float = 1.0) -> torch.Tensor:
    """A dark shirt with a print, seen through `way`: from places in the picture to those on the shirt."""
    rng = np.random.default_rng(3)
    cloth = np.full((*SIZE, 3), 0.15, np.float32)
    for _ in range(40):
        x, y = rng.integers(20, 160), rng.integers(20, 200)
        cv2.circle(cloth, (int(x), int(y)), int(rng.integers(3, 9)), rng.uniform(0.2, 0.9, 3).tolist(), -1)
    cloth = cv2.GaussianBlur(cloth, (0, 0), 1.5)
    if way is not None:
        middle = way.copy()
        middle[:, 2] += way[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV counts from the middle of the first pixel
        cloth = cv2.warpAffine(
            cloth, middle, SIZE[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )
    return torch.from_numpy(np.clip(gain * cloth, 0, 1)).permute(2, 0, 1)[None]


def whole() -> torch.Tensor:
    return torch.ones(1, 1, *SIZE)


def along(way: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ way[:, :2].T + way[:, 2]


CORNERS = np.array([(30, 30), (150, 30), (30, 190), (150, 190)], float)


@pytest.mark.parametrize("gain", [1.0, 0.8])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_shift_and_a_turn_are_found_whatever_the_light(monkeypatch, gain, reduced):
    if not reduced:
        monkeypatch.setattr("retarget.parts.registration.SIDE", 1000)
    way = np.array([[1.02, 0.03, -4.0], [-0.02, 0.99, 5.0]])
    # The target shows at c what the picture shows at way(c).
    found = registered(shirt(), whole(), shirt(way, gain), whole())
    assert found is not None
    np.testing.assert_allclose(along(found, CORNERS), along(way, CORNERS), atol=0.5)


def test_what_only_one_shows_does_not_count():
    way = np.array([[1.0, 0, 3.0], [0, 1.0, -4.0]])
    picture, target, theirs, mine = shirt(), shirt(way), whole(), whole()
    target[..., 120:, :] = 0.9  # an arm
    mine[..., 120:, :] = 0
    picture[..., :60] = 0.5
    theirs[..., :60] = 0
    found = registered(picture, theirs, target, mine)
    assert found is not None
    np.testing.assert_allclose(along(found, CORNERS[1:2]), along(way, CORNERS[1:2]), atol=0.7)


def test_plain_cloth_is_left_where_it_is():
    plain = torch.full((1, 3, *SIZE), 0.4)
    assert registered(plain, whole(), plain.clone(), whole()) is None


def test_what_both_show_must_be_enough():
    some = torch.zeros(1, 1, *SIZE)
    some[..., :10, :10] = 1
    assert registered(shirt(), some, shirt(np.array([[1.0, 0, 3], [0, 1.0, 0]])), whole()) is None


def test_what_is_too_far_away_is_not_the_same_print():
    far = 2 * REACH * SIZE[0]
    assert registered(shirt(), whole(), shirt(np.array([[1.0, 0, far], [0, 1.0, 0]])), whole()) is None


def test_nothing_is_moved_that_fits():
    found = registered(shirt(), whole(), shirt(), whole())
    assert found is not None
    np.testing.assert_allclose(found, np.eye(2, 3), atol=1e-3)


def test_a_box_and_its_picture():
    """`within` of a box: first there, then on."""
    back = np.array([[0.9, 0.1, 7.0], [-0.1, 1.1, -3.0]])
    onto = np.array([[1.05, 0.02, 2.0], [0.01, 0.97, -1.0]])
    corner = (20, 35)
    expected = along(back, along(onto, CORNERS - corner) + corner)
    np.testing.assert_allclose(along(within(back, onto, corner), CORNERS), expected)
