"""From a file to a track: the cache, the options, what is said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from retarget import folders, pose
from retarget.errors import InputError, NobodyFound, UsageError, VideoError
from retarget.pose import PoseOptions, cache, estimate, load_motion, save_motion
from retarget.pose.base import empty_track
from retarget.types import Image, PoseTrack, Progress


class Listener:
    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.steps = 0
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def stage(self, title: str, total: int | None = None) -> None:
        self.stages.append((title, total))

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.steps += steps

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Fake:
    """An estimator that finds everybody at (10, 20), but for the pictures in `blind`."""

    name = "fake-1"
    overlap = 2
    runs = 0
    options = PoseOptions()
    sizes: set[tuple[int, ...]] = set()  # noqa: RUF012
    blind: Sequence[int] = ()

    def pieces(
        self, frames: Iterable[Image], *, fps: Fraction, progress: Progress, before: np.ndarray | None = None
    ) -> Iterator[tuple[PoseTrack, np.ndarray]]:
        track = self.track(frames, fps=fps, progress=progress)
        yield track, track.body[-1:]

    def strays(self, body: np.ndarray) -> np.ndarray:
        return np.zeros(len(body), bool)

    def track(self, frames: Iterable[Image], *, fps: Fraction, progress: Progress) -> PoseTrack:
        Fake.runs += 1
        count = 0
        for frame in frames:
            Fake.sizes.add(frame.shape)
            count += 1
            progress.advance()
        height, width, _ = next(iter(Fake.sizes))
        track = empty_track(count, (width, height), fps, Fake.options.points)
        seen = np.setdiff1d(np.arange(count), np.asarray(Fake.blind, int))
        track.body[seen] = (10, 20, 0, 1)
        track.world[seen] = 0
        return replace(track, missed=tuple(i for i in range(count) if i in Fake.blind))

    def segment(self, frames: Sequence[Image]) -> list[tuple[PoseTrack, np.ndarray]]:
        return [(empty_track(1, (f.shape[1], f.shape[0])), np.zeros(f.shape[:2], np.float32)) for f in frames]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    def make(options: PoseOptions) -> Fake:
        pose.person_point(options.person)
        Fake.options = options
        return Fake()

    monkeypatch.setattr(pose, "make_estimator", make)
    monkeypatch.setattr(Fake, "runs", 0)
    monkeypatch.setattr(Fake, "sizes", set())
    monkeypatch.setattr(Fake, "blind", ())
    return Fake


def test_every_picture_is_estimated_once_and_then_cached(fake: type[Fake], example_dance: Path) -> None:
    listener = Listener()
    track = estimate(example_dance, progress=listener)
    assert len(track) == 240
    assert track.size == (480, 640)
    assert track.fps == 30
    assert listener.stages == [("Poses of dance.mp4", 240)]
    assert listener.steps == 240
    again = estimate(example_dance)
    assert fake.runs == 1
    for name in ("body", "world", "face", "hands"):
        np.testing.assert_array_equal(getattr(again, name), getattr(track, name))


def test_other_options_and_damaged_entries_are_estimated_again(fake: type[Fake], example_dance: Path) -> None:
    piece = estimate(example_dance, start=1.0, end=2.0)
    assert len(piece) == 30
    estimate(example_dance, PoseOptions(person="240,300"), start=1.0, end=2.0)
    assert fake.runs == 2
    for path in (folders.cache_dir() / "poses").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    estimate(example_dance, start=1.0, end=2.0)
    assert fake.runs == 3
    estimate(example_dance, start=1.0, end=2.0)
    assert fake.runs == 3


def test_irises_are_another_estimation(fake: type[Fake], example_dance: Path) -> None:
    """And what was kept of whole people before there were any is found again."""
    plain, irises = PoseOptions(), PoseOptions(irises=True)
    assert pose._key(example_dance, fake(), plain, 0.5, None) == cache.key(
        example_dance, "fake-1", 960, "largest", 0.5, None
    )
    piece = estimate(example_dance, irises, start=1.0, end=2.0)
    assert piece.face.shape == (30, 478, 3)
    assert estimate(example_dance, plain, start=1.0, end=2.0).face.shape == (30, 468, 3)
    assert fake.runs == 2
    assert estimate(example_dance, irises, start=1.0, end=2.0).face.shape == (30, 478, 3)
    assert fake.runs == 2
    assert pose.remaining(example_dance, irises, start=1.0, end=2.0) == 0
    assert pose.remaining(example_dance, irises, start=1.0, end=3.0) == 60


def test_large_pictures_are_estimated_small_and_given_back_large(
    fake: type[Fake], example_dance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pose, "fitting", lambda size: (size[0] // 2, size[1] // 2))
    track = estimate(example_dance, PoseOptions(person="200,300"), end=0.2)
    assert fake.sizes == {(320, 240, 3)}
    assert pose.person_point(fake.options.person) == (100, 150)
    assert track.size == (480, 640)
    np.testing.assert_array_equal(track.body[0, 0, :2], (20, 40))


def test_missed_pictures_are_listed(fake: type[Fake], example_dance: Path) -> None:
    fake.blind = (3, 7, 8, 9)
    listener = Listener()
    track = estimate(example_dance, end=1.0, progress=listener)
    assert track.missed == (3, 7, 8, 9)
    assert "3, 7-9" in listener.notes[0]
    assert not listener.warnings
    fake.blind = range(10)
    estimate(example_dance, end=0.9, progress=listener)
    assert "0-9" in listener.warnings[0]


class Crowded(Fake):
    """Another one stands 100 pixels to the right of everybody who is found."""

    def bystanders(self, frames: Sequence[Image], track: PoseTrack) -> list[list[tuple[float, float]]]:
        return [[(float(body[23, 0]) + 100, float(body[23, 1]))] for _, body in zip(frames, track.body, strict=True)]


def test_several_people_are_told_from_the_cache_too(
    fake: type[Fake], example_dance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pose, "make_estimator", lambda options: Crowded())
    monkeypatch.setattr(pose, "fitting", lambda size: (size[0] // 2, size[1] // 2))
    heard = []
    for _ in range(2):
        listener = Listener()
        motion = pose.estimated(example_dance, end=0.2, progress=listener)
        heard.append(listener.warnings)
        np.testing.assert_array_equal(motion.crowd, [[20, 40], [220, 40]])
    assert fake.runs == 1
    assert heard[0] == heard[1]
    assert heard[0] == [
        "dance.mp4 shows more than one person. The one at 20,40 is followed, another is at 220,40: choose with"
        " --person 220,40."
    ]
    listener = Listener()
    estimate(example_dance, PoseOptions(person="20,40"), end=0.2, progress=listener)
    assert listener.warnings == []


def test_who_is_beside_the_person_in_photos(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [np.zeros((60, 80, 3), np.uint8)] * 2
    track = replace(empty_track(2, (80, 60)), body=np.full((2, 33, 4), 7, np.float32))
    assert pose.crowds(photos, track) == [None, None]  # the estimator cannot tell
    monkeypatch.setattr(pose, "make_estimator", lambda options: Crowded())
    np.testing.assert_array_equal(pose.crowds(photos, track), [[[7, 7], [107, 7]]] * 2)


class Blocks(Fake):
    """Gives poses in pieces of ten and is interrupted before the picture number `until`."""

    until = 25

    def pieces(
        self, frames: Iterable[Image], *, fps: Fraction, progress: Progress, before: np.ndarray | None = None
    ) -> Iterator[tuple[PoseTrack, np.ndarray]]:
        stream = iter(frames)
        for _ in islice(stream, 0 if before is None else self.overlap):
            pass
        while some := list(islice(stream, 10)):
            if Blocks.until <= Fake.runs * 10:
                raise KeyboardInterrupt
            track = self.track(some, fps=fps, progress=progress)
            yield track, track.body[-2:]


def test_what_an_interrupted_run_left_is_counted_and_can_be_forgotten(
    fake: type[Fake], example_dance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pose, "make_estimator", lambda options: Blocks())
    monkeypatch.setattr(pose.cache, "BLOCK", 10)
    options = PoseOptions()
    assert pose.remaining(example_dance, options, end=2.0) == 60

    def interrupted(until: int) -> None:
        monkeypatch.setattr(Blocks, "until", until)
        with pytest.raises(KeyboardInterrupt):
            estimate(example_dance, end=2.0)

    interrupted(25)
    assert fake.runs == 3
    assert pose.remaining(example_dance, options, end=2.0) == 30
    assert pose.remaining(example_dance, options, end=2.0, restart=True) == 60
    assert pose.remaining(example_dance, options, end=1.0) == 30  # another piece, nothing of it
    interrupted(40)
    monkeypatch.setattr(Blocks, "until", 1000)
    listener = Listener()
    estimate(example_dance, end=2.0, restart=True, progress=listener)
    assert listener.notes == []
    assert fake.runs == 4 + 6
    assert pose.remaining(example_dance, options, end=2.0) == 0
    estimate(example_dance, end=2.0, restart=True)  # what is finished stays
    assert fake.runs == 10


def test_nobody_at_all_is_an_error(fake: type[Fake], example_dance: Path) -> None:
    fake.blind = range(240)
    for _ in range(2):  # also from the cache
        with pytest.raises(NobodyFound, match=r"No person was found in dance\.mp4"):
            estimate(example_dance, end=0.5)
    assert fake.runs == 1


def test_a_cache_that_cannot_be_written_is_a_warning(fake: type[Fake], example_dance: Path) -> None:
    folders.made(folders.cache_dir())
    (folders.cache_dir() / "poses").write_text("in the way")
    listener = Listener()
    assert len(estimate(example_dance, end=0.2, progress=listener)) == 6
    assert "not kept" in listener.warnings[0]


def test_a_person_outside_the_picture_is_refused(fake: type[Fake], example_dance: Path) -> None:
    with pytest.raises(UsageError, match="480x640"):
        estimate(example_dance, PoseOptions(person="500,10"))


def test_a_motion_file_stands_in_for_the_video(fake: type[Fake], example_dance: Path, tmp_path: Path) -> None:
    track = estimate(example_dance)
    path = save_motion(track, tmp_path / "motion.npz")
    np.testing.assert_array_equal(estimate(path).body, track.body)
    assert len(estimate(path, start=1.0, end=2.0)) == 30
    assert load_motion(path).fps == 30
    with pytest.raises(UsageError, match=r"8\.00 s"):
        estimate(path, start=9.0)
    assert fake.runs == 1


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.mp4"
    text.write_text("no video")
    with pytest.raises(VideoError):
        estimate(text)
    with pytest.raises(InputError):
        estimate(tmp_path / "absent.mp4")
    with pytest.raises(InputError):
        estimate(tmp_path / "absent.npz")


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(UsageError, match="openpose"):
        pose.make_estimator(PoseOptions(estimator="openpose"))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([1, 2, 3, 9], "1-3, 9"), (list(range(0, 40, 2)), "0, 2, 4, 6, 8, 10, 12, 14, ...")],
)
def test_ranges_are_short(numbers: list[int], text: str) -> None:
    assert pose.ranges(numbers) == text
