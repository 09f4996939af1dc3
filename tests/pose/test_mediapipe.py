"""The default estimator: on real pictures, and its bookkeeping with a fake graph."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget.errors import UsageError
from retarget.pose import mediapipe as module
from retarget.pose.base import PoseOptions
from retarget.pose.mediapipe import MediapipeEstimator
from retarget.skeleton import IRISES, J
from retarget.types import Image, PoseTrack, Silent

FPS = Fraction(25)


class Counter(Silent):
    def __init__(self) -> None:
        self.steps = 0

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.steps += steps


def read(path: Path, count: int, every: int = 1) -> list[Image]:
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(count * every)][::every]
    return [cv2.cvtColor(f, cv2.COLOR_BGR2RGB) for f in frames]


@pytest.fixture(scope="module")
def dance() -> list[Image]:
    return read(Path(__file__).parents[2] / "examples" / "dance.mp4", 30)


@pytest.fixture(scope="module")
def me() -> list[Image]:
    return read(Path(__file__).parents[2] / "examples" / "me.mp4", 30)


@pytest.fixture(scope="module")
def tracked(dance: list[Image]) -> PoseTrack:
    return MediapipeEstimator(workers=1).track(dance, fps=FPS, progress=Silent())


def same(a: PoseTrack, b: PoseTrack) -> None:
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# -------------------------------------------------------------------------------------------------------- real pictures


def test_a_dancer_is_found_whole(tracked: PoseTrack) -> None:
    assert tracked.missed == ()
    assert tracked.size == (480, 640)
    assert tracked.fps == FPS
    x, y = tracked.body[..., 0], tracked.body[..., 1]
    assert (y[:, J["nose"]] < y[:, J["left_hip"]]).all()
    assert (y[:, J["left_hip"]] < y[:, J["left_heel"]]).all()
    assert (x[:, J["left_shoulder"]] > x[:, J["right_shoulder"]]).all()  # the person's own left, facing us
    assert np.isfinite(tracked.face).all()
    left, right = (tracked.hands[:, i, 0, :2] for i in (0, 1))
    near = np.linalg.norm(left - tracked.body[:, J["left_wrist"], :2], axis=1)
    far = np.linalg.norm(left - tracked.body[:, J["right_wrist"], :2], axis=1)
    assert np.nanmedian(near) < 15
    assert np.nanmedian(far) > 40
    assert np.isfinite(right).all(axis=1).mean() > 0.9


def test_depth_is_in_pixels(tracked: PoseTrack) -> None:
    scale = module.pixels_per_metre(tracked)
    np.testing.assert_allclose(tracked.body[..., 2], tracked.world[..., 2] * scale[:, None], atol=0.1)
    head = tracked.body[:, J["left_ear"], :2] - tracked.body[:, J["right_ear"], :2]
    depth = tracked.body[:, [J["left_ear"], J["right_ear"]], 2].mean(axis=1) - tracked.body[:, J["nose"], 2]
    assert 0.3 < np.median(depth) / np.median(np.linalg.norm(head, axis=1)) < 1.5


def test_the_result_does_not_depend_on_the_workers(dance: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "WARM_UP", 3)
    counted = Counter()
    one = MediapipeEstimator(workers=1).track(iter(dance), fps=FPS, progress=Silent())
    three = MediapipeEstimator(workers=3).track(iter(dance), fps=FPS, progress=counted)
    same(one, three)
    assert counted.steps == len(dance)


def test_pieces_join_without_a_seam(dance: list[Image], tracked: PoseTrack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 10)
    pieces = MediapipeEstimator(workers=2).track(dance, fps=FPS, progress=Silent())
    away = np.linalg.norm(pieces.body[..., :2] - tracked.body[..., :2], axis=2)
    assert np.median(away) < 0.5
    assert np.percentile(away, 99) < 5


def test_irises_are_where_the_eyes_are(dance: list[Image], tracked: PoseTrack) -> None:
    """And everything but the face is as it is without."""
    found = MediapipeEstimator(PoseOptions(irises=True), workers=1).track(dance[:6], fps=FPS, progress=Silent())
    assert found.face.shape == (6, 478, 3)
    for name in ("body", "world", "hands"):
        np.testing.assert_array_equal(getattr(found, name), getattr(tracked, name)[:6])
    for (outer, inner), (middle, *rim) in zip(((33, 133), (263, 362)), IRISES, strict=True):
        corners = found.face[:, [outer, inner], :2]
        width = np.linalg.norm(corners[:, 0] - corners[:, 1], axis=1)
        away = np.linalg.norm(found.face[:, middle, :2] - corners.mean(axis=1), axis=1)
        assert (away < 0.4 * width).all()
        radius = np.linalg.norm(found.face[:, rim, :2] - found.face[:, [middle], :2], axis=2)
        assert (radius.max(axis=1) < 0.5 * width).all()
        assert (radius > 0).all()
    ((picture, _),) = MediapipeEstimator(PoseOptions(irises=True)).segment(dance[:1])
    assert picture.face.shape == (1, 478, 3)
    assert np.isfinite(picture.face).all()


def test_a_picture_by_itself_gives_pose_and_mask(dance: list[Image]) -> None:
    blank = np.full((200, 300, 3), 90, np.uint8)
    found, nobody = MediapipeEstimator(workers=2).segment([dance[0], blank])
    track, mask = found
    assert track.found.tolist() == [True]
    assert track.missed == ()
    assert mask.shape == (640, 480)
    assert mask.dtype == np.float32
    assert mask.min() >= 0
    assert mask.max() <= 1
    inner = track.body[0, [J["left_shoulder"], J["left_hip"], J["right_hip"], J["left_knee"]], :2].astype(int)
    assert mask[inner[:, 1], inner[:, 0]].min() > 0.8
    assert mask[:, :40].max() < 0.1
    track, mask = nobody
    assert track.found.tolist() == [False]
    assert track.missed == (0,)
    assert mask.shape == (200, 300)
    assert not mask.any()


def test_somebody_small_in_a_wide_picture_is_found(dance: list[Image]) -> None:
    wide = np.full((700, 2000, 3), 120, np.uint8)
    wide[350:610, 1500:1695] = cv2.resize(dance[0], (195, 260), interpolation=cv2.INTER_AREA)
    track, mask = MediapipeEstimator(workers=1).segment([wide])[0]
    assert track.found[0]
    hip = track.body[0, J["left_hip"], :2]
    assert 1500 < hip[0] < 1695
    assert 450 < hip[1] < 550
    y, x = np.nonzero(mask > 0.5)
    assert x.min() > 1480
    assert x.max() < 1700
    assert y.min() > 380


def test_one_of_two_people_is_picked_and_followed(dance: list[Image], me: list[Image], tracked: PoseTrack) -> None:
    both = [np.concatenate(pair, axis=1) for pair in zip(me[:12], dance[:12], strict=True)]
    right = MediapipeEstimator(PoseOptions(person="700,300")).track(both, fps=FPS, progress=Silent())
    assert right.missed == ()
    away = np.linalg.norm(right.body[..., :2] - (480, 0) - tracked.body[:12, :, :2], axis=2)
    assert np.median(away) < 4
    picked = [MediapipeEstimator(PoseOptions(person=p)).segment(both[:1])[0][0] for p in ("240,300", "700,300")]
    assert picked[0].body[0, J["nose"], 0] < 480 < picked[1].body[0, J["nose"], 0]


def test_no_frames_are_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="no frames"):
        MediapipeEstimator().track(iter(()), fps=FPS, progress=Silent())
    with pytest.raises(UsageError):
        MediapipeEstimator(PoseOptions(person="somebody"))


def test_a_broken_stream_is_passed_on(dance: list[Image]) -> None:
    def frames() -> Iterator[Image]:
        yield from dance[:3]
        raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        MediapipeEstimator(workers=2).track(frames(), fps=FPS, progress=Silent())


def test_mediapipe_is_quiet_and_we_are_not(example_dance: Path) -> None:
    code = f"""
import sys, cv2, threading, time
from fractions import Fraction
from retarget.pose.mediapipe import MediapipeEstimator
from retarget.types import Silent
frames = [cv2.VideoCapture({str(example_dance)!r}).read()[1][..., ::-1].copy()] * 3
def talk():
    for i in range(40):
        sys.stderr.write(f"line {{i}}\\n")
        time.sleep(0.02)
thread = threading.Thread(target=talk); thread.start()
MediapipeEstimator(workers=2).track(frames, fps=Fraction(25), progress=Silent())
MediapipeEstimator(workers=2).segment(frames)
thread.join()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert sorted(run.stderr.splitlines()) == sorted(f"line {i}" for i in range(40))
    assert run.stdout == ""


def test_its_chatter_is_taken_out_of_a_line_of_ours(capfd: pytest.CaptureFixture[str]) -> None:
    with module._quiet:
        for text in (
            b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n",
            b"half a",  # the other half comes after what mediapipe says
            b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n",
            b" line\nW0000 00:00:1764.12 77 inference_feedback_manager.cc:114] Feedback manager requires\n",
            b"INFO: ours\nno end",
        ):
            os.write(2, text)
    assert capfd.readouterr().err == "half a line\nINFO: ours\nno end"


# ----------------------------------------------------------------------------------------------------------- fake graph


class Graph:
    """Finds upright bars of red as people: tracks the last one, else takes the widest."""

    open = 0

    def __init__(self, *, static: bool, irises: bool = False) -> None:
        self.static, self.last, self.points = static, None, 478 if irises else 468
        Graph.open += 1

    def wipe(self) -> None:
        self.last = None

    def close(self) -> None:
        Graph.open -= 1

    def __call__(self, image: Image, out: PoseTrack, row: int) -> np.ndarray | None:
        people = []
        red = np.where(image[..., 1] == 0, image[..., 0], 0)  # what is grey is the border of a window
        for value in np.unique(red)[1:]:
            y, x = np.nonzero(red == value)
            if np.ptp(x) > 0.025 * image.shape[1]:  # else too small to be seen
                people.append((len(x), x.min(), x.max(), y.min(), y.max()))
        if not people:
            self.last = None
            return None
        if self.last is None or self.static:
            chosen = max(people)
        else:
            chosen = min(people, key=lambda p: abs(p[1] + p[2] - self.last))
        _, x0, x1, y0, y1 = chosen
        self.last = x0 + x1
        t = np.linspace(0, 1, 33)
        out.body[row] = np.stack([x0 + (x1 - x0) * (np.arange(33) % 2), y0 + (y1 - y0) * t, 0 * t, 1 + 0 * t], axis=1)
        out.world[row] = out.body[row, :, :3] / 100
        out.face[row] = np.full((self.points, 3), self.last)
        return np.ones(image.shape[:2], np.float32)


def scene(*bars: tuple[int, int, int]) -> Image:
    """Bars of (left, width, colour), 40 high."""
    image = np.zeros((100, 200, 3), np.uint8)
    for left, width, colour in bars:
        image[40:80, left : left + width, 0] = colour
    return image


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    monkeypatch.setattr(module, "_Holistic", Graph)
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "WARM_UP", 3)
    monkeypatch.setattr(Graph, "open", 0)
    return Graph


def middle(track: PoseTrack) -> np.ndarray:
    return track.body[:, :, 0].min(axis=1)


def test_all_pieces_stay_with_the_person_of_the_first(graphs: type[Graph]) -> None:
    frames = [scene((20 + i, 12, 100), (150, 8 if i < 5 else 20, 200)) for i in range(40)]  # the other grows
    counter = Counter()
    track = MediapipeEstimator(workers=2).track(frames, fps=FPS, progress=counter)
    np.testing.assert_allclose(middle(track), 20 + np.arange(40), atol=1)
    assert counter.steps == 40
    assert graphs.open == 0


def test_the_picked_person_is_followed_past_a_larger_one(graphs: type[Graph]) -> None:
    frames = [scene((40 + 2 * i, 8, 100), (100, 20, 200)) for i in range(20)]
    frames[10] = scene((100, 20, 200))  # hidden for a moment
    options = PoseOptions(person="44,60")
    track = MediapipeEstimator(options).track(frames[:10], fps=FPS, progress=Silent())
    np.testing.assert_allclose(middle(track), 40 + 2 * np.arange(10), atol=1)
    assert graphs.open == 0


@pytest.mark.parametrize("person", ["largest", "54,60"])
def test_irises_wherever_the_person_comes_from(graphs: type[Graph], person: str) -> None:
    """Tracked, followed past somebody else, looked for closer, and not found."""
    frames = [scene((50, 12, 100)) for _ in range(25)]
    frames[3] = frames[24] = scene()
    frames[14:24] = [scene((50, 4, 100), (150, 20, 200))] * 10
    options = PoseOptions(person=person, irises=True)
    track = MediapipeEstimator(options, workers=2).track(frames, fps=FPS, progress=Silent())
    assert track.face.shape == (25, 478, 3)
    np.testing.assert_array_equal(np.isnan(track.face[:, 477, 0]), ~track.found)
    assert {3, 24} <= set(track.missed)
    for (found, _), seen in zip(MediapipeEstimator(options).segment(frames[:4]), (1, 1, 1, 0), strict=True):
        assert found.face.shape == (1, 478, 3)
        assert np.isfinite(found.face).all() == seen


def test_missed_pictures_are_rows_of_nan(graphs: type[Graph]) -> None:
    frames = [scene((50, 12, 100)) for _ in range(25)]
    for i in (0, 7, 13, 24):
        frames[i] = scene()
    track = MediapipeEstimator(workers=2).track(frames, fps=FPS, progress=Silent())
    assert track.missed == (0, 7, 13, 24)
    assert np.isnan(track.body[[0, 7, 13, 24]]).all()
    assert np.isfinite(np.delete(track.body, [0, 7, 13, 24], axis=0)).all()


def test_a_short_jump_onto_somebody_else_counts_as_missed(graphs: type[Graph]) -> None:
    frames = [scene((30, 12, 100)) for _ in range(25)]
    frames[12] = frames[13] = scene((150, 12, 100))
    track = MediapipeEstimator(workers=1).track(frames, fps=FPS, progress=Silent())
    assert track.missed == (12, 13)


def test_somebody_small_is_looked_for_closer(graphs: type[Graph]) -> None:
    def far(left: int) -> Image:
        image = np.zeros((100, 500, 3), np.uint8)
        image[40:80, left : left + 10, 0] = 100
        return image

    track = MediapipeEstimator(workers=2).track([far(300 + i) for i in range(25)], fps=FPS, progress=Silent())
    np.testing.assert_allclose(middle(track), 300 + np.arange(25), atol=1)


def test_few_frames_are_held_at_a_time(graphs: type[Graph]) -> None:
    alive = 0
    most = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            if self.base is None:
                alive -= 1

    def frames() -> Iterator[Image]:
        nonlocal alive, most
        for _ in range(200):
            alive += 1
            most = max(most, alive)
            picture = np.ndarray.__new__(Counted, (100, 200, 3), np.uint8)
            picture[:] = scene((30, 12, 100))
            yield picture

    assert len(MediapipeEstimator(workers=2).track(frames(), fps=FPS, progress=Silent())) == 200
    assert most <= 5 * 13
