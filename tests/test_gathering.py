"""Choosing and preparing references: from made-up videos and photos of a person whose pose is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget import gathering as module
from retarget.errors import InputError, NobodyFound, UsageError
from retarget.gathering import choose, from_photos, from_video, sharpness
from retarget.pose import PoseOptions
from retarget.types import Image, PoseTrack, Silent
from retarget.video import open_writer


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


# ------------------------------------------------------------------------------------------------ the choice


def test_blur_lowers_sharpness(puppet):
    body = puppet.body()
    picture = puppet.cloth(0)
    values = [sharpness(cv2.GaussianBlur(picture, (0, 0), s) if s else picture, body) for s in (0, 0.7, 1.5, 3)]
    for which in zip(*values, strict=True):
        assert list(which) == sorted(which, reverse=True)
        assert which[0] > 1.5 * which[2]
    nobody = np.full((33, 4), np.nan, np.float32)
    assert sharpness(picture, nobody) == (0, 0)
    assert np.isfinite(sharpness(picture, puppet.body(at=(-300, 900)))).all()  # far outside


def test_the_sharpness_of_the_face_is_that_of_the_face(puppet):
    body = puppet.body()
    whole = picture = puppet.cloth(0)
    top, bottom = int(body[:11, 1].min()) - 12, int(body[:11, 1].max()) + 12
    picture = picture.copy()
    picture[top:bottom] = cv2.GaussianBlur(picture, (0, 0), 3)[top:bottom]
    person, face = np.divide(sharpness(picture, body), sharpness(whole, body))
    assert face < 0.5
    assert person > 0.8


POSES = [{}, {"left": (90, 90), "right": (20, 20)}, {"left": (30, 30), "right": (160, 170)}]


def test_different_poses_are_chosen_before_repeated_ones(puppet):
    bodies = [puppet.body(**POSES[n]) for n in (0, 0, 0, 0, 1, 0, 2, 0, 0)]
    chosen = choose(puppet.track(*bodies), np.ones((9, 2)), 3)
    assert len(set(chosen)) == 3
    assert {4, 6} < set(chosen)


def test_of_equal_poses_the_sharp_picture_is_chosen(puppet):
    bodies = [puppet.body(**POSES[n]) for n in (0, 0, 0, 1, 1, 1)]
    sharp = np.array([0.2, 0.9, 0.3, 0.3, 0.2, 0.8])
    for face in (sharp, np.ones(6)):
        assert set(choose(puppet.track(*bodies), np.stack([sharp, face], 1), 2)) == {1, 5}


def test_of_equal_poses_the_one_with_a_sharp_face_is_chosen(puppet):
    sharp = np.ones((40, 2))
    sharp[:, 0] += 1e-6 * np.arange(40)
    sharp[:, 1] = np.where(np.arange(40) == 32, 1, 0.1)
    sharp[:16, 1] = 0.7  # enough, but these are a little less sharp as a whole
    sharp[:16, 0] = 0.8
    assert choose(puppet.track(*[puppet.body()] * 40), sharp, 1) == [32]


def test_of_equal_poses_the_whole_person_is_chosen(puppet):
    bodies = [puppet.body(at=(64, 130)), puppet.body(), puppet.body(at=(8, 76))]
    assert choose(puppet.track(*bodies), np.ones((3, 2)), 1) == [1]


def test_never_more_than_there_are_and_none_twice(puppet):
    bodies = [puppet.body((angle, 20)) for angle in range(0, 100, 20)]
    for count in (1, 4, 5, 9):
        chosen = choose(puppet.track(*bodies), np.ones((5, 2)), count)
        assert len(chosen) == len(set(chosen)) == min(count, 5)


# ------------------------------------------------------------------------------------------------ a video


class Seen:
    """Stands in for the pose estimator: knows the poses and mattes of a made-up clip."""

    def __init__(self, track: PoseTrack, mattes: Sequence[np.ndarray], pictures: Sequence[Image]) -> None:
        self.track, self.mattes = track, mattes
        self.thumbs = np.stack([cv2.resize(p, (16, 16), interpolation=cv2.INTER_AREA) for p in pictures]).astype(float)
        self.options: list[PoseOptions] = []
        self.looks: list[tuple[int, PoseOptions | None]] = []

    def estimate(self, path, options, *, start=0.0, end=None, restart=False, progress=None) -> PoseTrack:
        self.options.append(options)
        last = len(self.track) if end is None else int(np.ceil(end * self.track.fps))
        return self.track.select(slice(0, last))

    def estimate_images(self, images, options=None):
        self.looks.append((len(images), options))
        found = []
        for image in images:
            thumb = cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA)
            i = int(((self.thumbs - thumb) ** 2).sum((1, 2, 3)).argmin())
            mask = cv2.resize(self.mattes[i], image.shape[1::-1], interpolation=cv2.INTER_AREA)
            found.append((self.track.select([i]).scaled(image.shape[1::-1]), cv2.GaussianBlur(mask, (0, 0), 2)))
        return found


@pytest.fixture
def clip(puppet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Seen]:
    """24 pictures at 12 frames/s of the puppet, which walks and raises its arms; nobody is found in frame 20."""
    size = (128, 160)
    plate = puppet.cloth(99, size, 2.0)
    bodies = [puppet.body((7 * i, 7 * i), (25, 25), at=(34 + 2.5 * i, 76)) for i in range(24)]
    pictures = [puppet.picture(b, plate, seed=1) for b in bodies]
    path = tmp_path / "clip.mp4"
    with open_writer(path, size, Fraction(12), crf=2) as write:
        for picture in pictures:
            write(picture)
    track = replace(puppet.track(*bodies, details=True), fps=Fraction(12))
    for values in (track.body, track.world, track.face, track.hands):
        values[20] = np.nan
    seen = Seen(replace(track, missed=(20,)), [puppet.matte(b) for b in bodies], pictures)
    monkeypatch.setattr(module, "estimate", seen.estimate)
    monkeypatch.setattr(module, "estimate_images", seen.estimate_images)
    return path, seen


def iou(matte: np.ndarray, truth: np.ndarray) -> float:
    a, b = matte > 0.5, truth > 0.5
    return float((a & b).sum() / (a | b).sum())


def test_references_from_a_video(clip, puppet):
    path, seen = clip
    gathered = from_video(path, count=4, size=512, person="10,20", progress=Silent())
    assert seen.options == [PoseOptions(person="10,20")]
    assert gathered.size == (128, 160)
    assert gathered.frames.shape == gathered.pictures.shape == (4, 160, 128, 3)
    assert gathered.mattes.shape == (4, 160, 128)
    assert gathered.mattes.dtype == np.float32
    assert gathered.fps == 12
    assert len(set(gathered.picked)) == 4
    assert 20 not in gathered.picked  # nobody there
    assert len(gathered.track) >= 20
    for k, i in enumerate(gathered.picked):
        np.testing.assert_allclose(gathered.poses.body[k], seen.track.body[i], atol=1e-4)
        assert len(gathered.windows[k]) == min(3, i + 1)
        assert iou(gathered.mattes[k], seen.mattes[i]) > 0.85
        solid = gathered.mattes[k] > 0.96
        np.testing.assert_array_equal(gathered.frames[k][solid], gathered.pictures[k][solid])
    # Everybody's place was free at some time.
    error = gathered.plate.image.mean(2) - puppet.cloth(99, (128, 160), 2.0).mean(2)  # the video's colours are coarser
    assert np.abs(error).mean() < 4
    assert not gathered.plate.camera_moves


def test_the_person_who_was_followed_is_cut_out_where_they_stand_by_then(clip):
    path, seen = clip
    from_video(path, count=2, size=512, pick=(17, 0), person="34,76", plate_from="frames", progress=Silent())
    asked = {options.person for _, options in seen.looks}
    hips = seen.track.body[[0, 17], 23:25, :2].mean(1)
    assert asked == {f"{x:.0f},{y:.0f}" for x, y in hips}


def test_picked_frames_are_taken_in_their_order(clip):
    path, seen = clip
    gathered = from_video(path, count=2, size=512, pick=(17, 0), progress=Silent())
    assert gathered.picked == (17, 0)
    assert [len(w) for w in gathered.windows] == [3, 1]
    np.testing.assert_allclose(gathered.poses.body, seen.track.body[[17, 0]], atol=1e-4)
    np.testing.assert_allclose(gathered.windows[0].body, seen.track.body[[15, 16, 17]], atol=1e-4)


def test_the_size_scales_pictures_and_poses(clip):
    path, seen = clip
    gathered = from_video(path, count=1, size=64, pick=(9,), progress=Silent())
    assert gathered.size == (64, 80)
    assert gathered.plate.image.shape == (80, 64, 3)
    np.testing.assert_allclose(gathered.poses.body[0, :, :3], seen.track.body[9, :, :3] / 2, atol=1e-3)


def test_the_plate_can_come_from_the_references_alone(clip, puppet):
    path, _ = clip
    gathered = from_video(path, count=2, size=512, pick=(0, 1), plate_from="frames", progress=Silent())
    assert (gathered.plate.seen == 0).any()  # the person stands at the same place in both
    whole = from_video(path, count=2, size=512, pick=(0, 1), progress=Silent())
    assert (whole.plate.seen == 0).sum() < (gathered.plate.seen == 0).sum()


def test_frames_that_cannot_be_picked(clip):
    path, _ = clip
    with pytest.raises(UsageError, match=r"clip\.mp4 has no frame 24: it has 24, counted from 0") as e:
        from_video(path, count=2, size=512, pick=(3, 24), progress=Silent())
    assert "--pick" in e.value.remedy
    with pytest.raises(NobodyFound, match="No person was found in frame 20"):
        from_video(path, count=1, size=512, pick=(20,), progress=Silent())


def test_too_few_frames_with_a_person(clip):
    path, _ = clip
    with pytest.raises(NobodyFound, match="only 23 frames, fewer than the 24") as e:
        from_video(path, count=24, size=512, progress=Silent())
    assert "--frames 23" in e.value.remedy


def test_only_the_beginning_of_a_long_video_is_looked_at(clip, monkeypatch):
    path, _ = clip
    monkeypatch.setattr(module, "LONGEST", 0.9)
    listener = Listener()
    gathered = from_video(path, count=3, size=512, progress=listener)
    assert max(gathered.picked) < 0.9 * 12
    assert len(gathered.track) <= 11
    assert any("Only the first" in note for note in listener.notes)
    # What is picked may lie behind.
    assert from_video(path, count=1, size=512, pick=(22,), progress=Silent()).picked == (22,)


@pytest.mark.reliability("2. Bad input", "a camera that moves", "works, warns")
def test_a_moving_camera_is_told(puppet, tmp_path, monkeypatch):
    scene = puppet.cloth(99, (260, 160), 2.0)
    pictures, bodies = [], [puppet.body()] * 9
    for i in range(9):
        pictures.append(puppet.picture(bodies[0], np.ascontiguousarray(scene[:, 8 * i : 8 * i + 128]), seed=1))
    path = tmp_path / "pan.mp4"
    with open_writer(path, (128, 160), Fraction(12), crf=2) as write:
        for picture in pictures:
            write(picture)
    seen = Seen(puppet.track(*bodies), [puppet.matte(bodies[0])] * 9, pictures)
    monkeypatch.setattr(module, "estimate", seen.estimate)
    monkeypatch.setattr(module, "estimate_images", seen.estimate_images)
    listener = Listener()
    assert from_video(path, count=2, size=512, progress=listener).plate.camera_moves
    assert any("camera moves in pan.mp4" in warning for warning in listener.warnings)


# ------------------------------------------------------------------------------------------------ photos


@pytest.fixture
def photos(puppet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three photos of the puppet in different sizes; the fourth is nearly black and shows nobody."""
    poses = [puppet.body(), puppet.body((90, 90)), puppet.body((30, 20), (150, 160))]
    pictures = [puppet.picture(b, puppet.cloth(90 + k, sigma=3.0), seed=k) for k, b in enumerate(poses)]
    pictures[1] = cv2.resize(pictures[1], (256, 320), interpolation=cv2.INTER_CUBIC)
    pictures[2] = cv2.copyMakeBorder(pictures[2], 0, 0, 40, 40, cv2.BORDER_REPLICATE)  # 208x160: wider than the first
    pictures.append(np.full((50, 60, 3), 3, np.uint8))
    paths = [tmp_path / f"{name}.png" for name in ("one", "two", "three", "dark")]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def look(images, options=None):
        (image,) = images
        size = image.shape[1::-1]
        if image.mean() < 30:
            empty = replace(puppet.track(poses[0]), body=np.full((1, 33, 4), np.nan, np.float32), size=size)
            return [(empty, np.zeros(image.shape[:2], np.float32))]
        k = int(np.argmin([np.abs(cv2.resize(p, size).astype(float) - image).mean() for p in expected]))
        track = puppet.track(bodies[k])
        matte = puppet.matte(bodies[k])
        return [(track.scaled(size), cv2.resize(matte, size, interpolation=cv2.INTER_AREA))]

    # In the first photo's frame; the third is fitted into its width.
    factor = 128 / 208
    moved = poses[2].copy()
    moved[:, :3] *= factor
    moved[:, 0] += 40 * factor
    moved[:, 1] += (160 - round(160 * factor)) / 2
    bodies = [poses[0], poses[1], moved]
    inner = cv2.resize(pictures[2], (128, round(160 * factor)), interpolation=cv2.INTER_AREA)
    top = (160 - inner.shape[0]) // 2
    fitted = cv2.copyMakeBorder(inner, top, 160 - inner.shape[0] - top, 0, 0, cv2.BORDER_REPLICATE)
    expected = [pictures[0], cv2.resize(pictures[1], (128, 160), interpolation=cv2.INTER_AREA), fitted]
    monkeypatch.setattr(module, "estimate_images", look)
    monkeypatch.setattr(module, "crowds", lambda pictures, track: [None] * len(pictures))
    return paths


def test_photos_of_different_sizes_share_the_first_ones_picture(photos):
    gathered = from_photos(photos[:3], count=3, size=512, progress=Silent())
    assert gathered.size == (128, 160)
    assert gathered.fps == 25
    assert sorted(gathered.picked) == [0, 1, 2]
    assert [len(w) for w in gathered.windows] == [1, 1, 1]
    assert (gathered.mattes.max((1, 2)) > 0.95).all()
    # Each pose lies on its own matte.
    for k in range(3):
        for joint in (0, 13, 14, 25, 26):
            x, y = gathered.poses.body[k, joint, :2].astype(int)
            assert gathered.mattes[k, y, x] > 0.5, (k, joint)


def test_several_people_in_a_photo_are_told_in_its_own_pixels(photos, monkeypatch):
    seen = []

    def beside(pictures, track):
        seen.extend([len(pictures), track.size])
        return [None, np.array([(32, 90), (110, 90)], np.float32)]

    monkeypatch.setattr(module, "crowds", beside)
    listener = Listener()
    from_photos(photos, count=2, size=512, pick=(0, 2), progress=listener)
    assert seen == [2, (128, 160)]
    height, width = cv2.imread(str(photos[2])).shape[:2]
    (warning,) = (w for w in listener.warnings if "--person" in w)
    place = [float(v) for v in warning.partition("--person ")[2].rstrip(".").split(",")]
    assert warning.startswith(f"{photos[2].name} shows more than one person. The one at ")
    scale = min(128 / width, 160 / height)
    assert place == pytest.approx([(110 - 64) / scale + width / 2, (90 - 80) / scale + height / 2], abs=0.5)
    # And there they are looked for.
    moved = module.moved_point(",".join(map(str, place)), (width, height), (128, 160))
    assert [float(v) for v in moved.split(",")] == pytest.approx([110, 90], abs=1)
    from_photos(photos, count=2, size=512, pick=(0, 2), person=f"{place[0]},{place[1]}", progress=Silent())
    assert len(seen) == 2


def test_picked_photos(photos):
    listener = Listener()
    gathered = from_photos(photos, count=5, size=512, pick=(2, 0), progress=listener)
    assert gathered.picked == (2, 0)
    for wrong in (3, 7):  # nobody in it; no such photo
        with pytest.raises(UsageError, match=f"no usable photo {wrong} among the 4"):
            from_photos(photos, count=5, size=512, pick=(wrong,), progress=Silent())


@pytest.mark.reliability("2. Bad input", "a photo that shows nobody", "one sentence, exit 3")
def test_a_photo_with_nobody_is_named(photos):
    with pytest.raises(NobodyFound, match=r"dark\.png"):
        from_photos(photos, count=5, size=512, progress=Silent())
    with pytest.raises(NobodyFound, match=r"dark\.png"):
        from_photos(photos[3:], count=1, size=512, progress=Silent())
    # Not when enough others show the person.
    assert len(from_photos(photos, count=2, size=512, progress=Silent()).frames) == 2


def test_fewer_photos_than_asked_for_are_said(photos):
    listener = Listener()
    assert len(from_photos(photos[:2], count=5, size=512, progress=listener).frames) == 2
    assert any("K is 2, not 5" in note for note in listener.notes)


def test_a_photo_is_scaled_down_never_up(photos):
    assert from_photos(photos[1:2], count=1, size=128, progress=Silent()).size == (128, 160)
    assert from_photos(photos[1:2], count=1, size=4000, progress=Silent()).size == (256, 320)


def test_a_broken_photo_is_named(photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:100])
    with pytest.raises(InputError, match=r"broken\.png"):
        from_photos([broken], count=1, size=512, progress=Silent())
