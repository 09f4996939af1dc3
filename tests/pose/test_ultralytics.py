"""YOLO-pose through a fake module that speaks the real one's interface."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch

from retarget.errors import UsageError, WeightsError
from retarget.pose import PoseOptions, make_estimator
from retarget.pose.ultralytics import COCO, Person, _choose, to_joints
from retarget.skeleton import J
from retarget.types import Silent

STANDING = np.array(
    [
        *((50, 10), (54, 6), (46, 6), (58, 8), (42, 8), (66, 30), (34, 30), (72, 55), (28, 55), (74, 78), (26, 78)),
        *((60, 85), (40, 85), (61, 125), (39, 125), (62, 165), (38, 165)),
    ],
    np.float32,
)
"""COCO's joints of somebody who faces us, 100 x 175."""


def result(
    people: Sequence[tuple[int, float, float, float]], *, tracked: bool = True, blank: Sequence[int] = ()
) -> Any:
    """What ultralytics gives for one picture: people as (number, x, y, scale); `blank` joints not seen."""
    joints = np.stack([STANDING * s + (x, y) for _, x, y, s in people]) if people else np.zeros((0, 17, 2), np.float32)
    conf = np.full(joints.shape[:2], 0.9, np.float32)
    joints[:, list(blank)], conf[:, list(blank)] = 0, 0.1
    boxes = np.array([(x, y, x + 100 * s, y + 175 * s) for _, x, y, s in people], np.float32).reshape(-1, 4)
    numbers = torch.tensor([float(n) for n, *_ in people]) if tracked and people else None
    return SimpleNamespace(
        boxes=SimpleNamespace(xyxy=torch.from_numpy(boxes), id=numbers),
        keypoints=SimpleNamespace(xy=torch.from_numpy(joints.astype(np.float32)), conf=torch.from_numpy(conf)),
    )


class FakeYOLO:
    script: ClassVar[list[Any]] = []
    seen: ClassVar[list[np.ndarray]] = []
    paths: ClassVar[list[str]] = []

    def __init__(self, path: str) -> None:
        if "broken" in path:
            raise ConnectionError("no network")
        FakeYOLO.paths.append(path)
        self.at = 0

    def _next(self, frame: np.ndarray) -> list[Any]:
        FakeYOLO.seen.append(np.array(frame))
        self.at += 1
        return [FakeYOLO.script[self.at - 1]]

    def track(self, frame: np.ndarray, *, persist: bool, verbose: bool) -> list[Any]:
        assert persist
        assert not verbose
        return self._next(frame)

    def predict(self, frame: np.ndarray, *, verbose: bool) -> list[Any]:
        return self._next(frame)


@pytest.fixture
def yolo(monkeypatch: pytest.MonkeyPatch) -> type[FakeYOLO]:
    module = ModuleType("ultralytics")
    module.YOLO = FakeYOLO  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ultralytics", module)
    for name in ("script", "seen", "paths"):
        monkeypatch.setattr(FakeYOLO, name, [])
    return FakeYOLO


def track(person: str = "largest", pictures: int | None = None) -> Any:
    frames = [np.full((400, 600, 3), (250, 10, 20), np.uint8)] * (pictures or len(FakeYOLO.script))
    estimator = make_estimator(PoseOptions("ultralytics", person))
    return estimator.track(frames, fps=Fraction(10), progress=Silent())


def test_a_missing_package_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(UsageError, match="not installed") as error:
        make_estimator(PoseOptions("ultralytics"))
    assert 'pip install "retarget[yolo]"' in error.value.remedy


def test_weights_that_cannot_be_had_are_said(yolo: type[FakeYOLO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retarget.pose.ultralytics.MODEL", "broken.pt")
    with pytest.raises(WeightsError, match="no network"):
        track(pictures=1)


def test_joints_land_where_coco_has_them(yolo: type[FakeYOLO]) -> None:
    yolo.script[:] = [result([(1, 100, 50, 1.0)]), result([])]
    got = track()
    assert got.missed == (1,)
    assert got.size == (600, 400)
    for name, (x, y) in zip(COCO, STANDING, strict=True):
        np.testing.assert_allclose(got.body[0, J[name], :2], (x + 100, y + 50), atol=1e-3)
        assert got.body[0, J[name], 3] == pytest.approx(0.9)
    assert np.isfinite(got.body[0]).all()
    assert np.isfinite(got.world[0]).all()
    assert np.isnan(got.face).all()
    assert np.isnan(got.hands).all()
    assert np.linalg.norm(got.world[0, [11, 12], :2].mean(0) - got.world[0, [23, 24], :2].mean(0)) == pytest.approx(0.5)


def test_there_are_no_faces_with_or_without_irises(yolo: type[FakeYOLO]) -> None:
    yolo.script[:] = [result([(1, 100, 50, 1.0)])]
    frame = np.zeros((400, 600, 3), np.uint8)
    for irises, points in ((False, 468), (True, 478)):
        estimator = make_estimator(PoseOptions("ultralytics", irises=irises))
        got = estimator.track([frame], fps=Fraction(10), progress=Silent())
        assert got.face.shape == (1, points, 3)
        assert np.isnan(got.face).all()


def test_pictures_are_given_in_blue_green_red(yolo: type[FakeYOLO]) -> None:
    yolo.script[:] = [result([(1, 100, 50, 1.0)])]
    track()
    assert yolo.seen[0][0, 0].tolist() == [20, 10, 250]
    assert Path(yolo.paths[0]).parent.is_dir()


def test_the_largest_over_the_clip_is_taken(yolo: type[FakeYOLO]) -> None:
    yolo.script[:] = [result([(1, 0, 0, 1.4 if i == 0 else 0.8), (2, 300, 20, 1.1)]) for i in range(6)]
    got = track()
    assert (got.body[:, J["nose"], 0] > 300).all()


def test_the_person_at_a_place_is_taken(yolo: type[FakeYOLO]) -> None:
    yolo.script[:] = [result([(1, 10 * i, 0, 0.8), (2, 300, 20, 1.1)]) for i in range(6)]
    got = track("40,60")
    np.testing.assert_allclose(got.body[:, J["nose"], 0], 40 + 10 * np.arange(6), atol=1e-3)


def test_a_person_who_gets_a_new_number_is_the_same(yolo: type[FakeYOLO]) -> None:
    yolo.script[:] = [
        result([(1, 50, 50, 1.0), (2, 300, 50, 1.0)]),
        result([(2, 300, 50, 1.0)]),  # hidden
        result([(7, 55, 50, 1.0), (2, 300, 50, 1.0)]),
        result([(7, 60, 50, 1.0)]),
    ]
    got = track("90,100")
    assert got.missed == (1,)
    np.testing.assert_allclose(got.body[[0, 2, 3], J["nose"], 0], (100, 105, 110), atol=1e-3)


def test_somebody_elses_number_is_never_taken_over(yolo: type[FakeYOLO]) -> None:
    yolo.script[:] = [result([(1, 50, 50, 1.0), (2, 90, 50, 1.0)])] + [result([(2, 60, 50, 1.0)])] * 3
    got = track("60,200")
    assert got.missed == (1, 2, 3)


def test_without_numbers_boxes_are_followed(yolo: type[FakeYOLO]) -> None:
    yolo.script[:] = [result([(0, 12 * i, 0, 0.8), (0, 400, 20, 0.9)], tracked=False) for i in range(6)]
    got = track("40,60")
    np.testing.assert_allclose(got.body[:, J["nose"], 0], 40 + 12 * np.arange(6), atol=1e-3)


def test_choosing_among_nobody() -> None:
    assert _choose([[], []], None, patience=5) == [None, None]
    person = Person(3, np.array([0, 0, 10, 20], np.float32), np.ones((17, 3), np.float32))
    assert _choose([[], [person], []], (5.0, 5.0), patience=5) == [None, person, None]


@pytest.mark.parametrize(
    "hidden", [(), (9, 10), (13, 14, 15, 16), (11, 12), (5, 6), (5,), (0, 1, 2, 3, 4), (7, 9, 11, 13)]
)
def test_joints_not_seen_are_made_up_plausibly(hidden: tuple[int, ...]) -> None:
    coco = np.concatenate([STANDING, np.full((17, 1), 0.8, np.float32)], axis=1)
    coco[list(hidden)] = 0
    joints = to_joints(coco)
    assert np.isfinite(joints).all()
    for i in hidden:
        assert joints[J[COCO[i]], 3] == 0
    y = joints[:, 1]
    order = [y[J[n]] for n in ("nose", "left_shoulder", "left_hip", "left_knee", "left_ankle", "left_heel")]
    assert order == sorted(order)
    tall = y.max() - y.min()
    assert 120 < tall < 260
    for name in ("heel", "foot_index", "index", "pinky", "thumb"):
        assert joints[J[f"left_{name}"], 3] == 0


def test_hands_go_on_along_the_forearm() -> None:
    coco = np.concatenate([STANDING, np.full((17, 1), 0.8, np.float32)], axis=1)
    coco[9, :2] = (110, 55)  # the left forearm held out sideways
    joints = to_joints(coco)
    hand = joints[[J["left_index"], J["left_pinky"]], :2].mean(axis=0) - joints[J["left_wrist"], :2]
    assert hand[0] > 8
    assert abs(hand[1]) < 4


def test_a_single_picture_gets_mediapipes_mask_in_the_box(yolo: type[FakeYOLO], example_dance: Path) -> None:
    picture = cv2.cvtColor(cv2.VideoCapture(str(example_dance)).read()[1], cv2.COLOR_BGR2RGB)
    empty = np.zeros_like(picture)
    yolo.script[:] = [result([(1, 150, 130, 2.4)]), result([])]
    found, nobody = make_estimator(PoseOptions("ultralytics")).segment([picture, empty])
    assert found[0].found[0]
    assert found[1].shape == (640, 480)
    assert 0.05 < found[1].mean() < 0.3
    assert not nobody[0].found[0]
    assert not nobody[1].any()
