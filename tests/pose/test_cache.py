"""Motion files and the cache of poses."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retarget import folders
from retarget.errors import InputError, StorageError
from retarget.pose import cache
from retarget.pose.base import empty_track
from retarget.pose.cache import load_motion, save_motion
from retarget.types import PoseTrack


def a_track(pictures: int = 12, seed: int = 0, points: int = 468) -> PoseTrack:
    """Noise of a face 700 px high in a 1080p picture, with gaps."""
    rng = np.random.default_rng(seed)
    track = empty_track(pictures, (1920, 1080), Fraction(24000, 1001), points)
    for name in ("body", "world", "hands"):
        getattr(track, name)[:] = rng.normal(size=getattr(track, name).shape)
    track.face[:] = rng.uniform((600, 200, -150), (1300, 900, 200), track.face.shape)
    for array in (track.body, track.world, track.face, track.hands):
        array[4] = np.nan
    track.face[7] = np.nan
    track.hands[2, 1] = np.nan
    return replace(track, missed=(4,))


@pytest.mark.parametrize("points", [468, 478])
def test_a_motion_file_gives_back_what_was_saved(tmp_path: Path, points: int) -> None:
    track = a_track(points=points)
    again = load_motion(save_motion(track, tmp_path / "dance.npz"))
    for name in ("body", "world", "hands"):
        np.testing.assert_array_equal(getattr(again, name), getattr(track, name))
    assert again.face.shape == (12, points, 3)
    np.testing.assert_array_equal(np.isnan(again.face), np.isnan(track.face))
    assert np.nanmax(np.abs(again.face - track.face)) < 0.01
    assert (again.size, again.fps, again.missed) == (track.size, track.fps, track.missed)
    assert os.listdir(tmp_path) == ["dance.npz"]


def test_rounding_is_what_the_file_does_and_done_once(tmp_path: Path) -> None:
    once = cache.Motion.of(cache.packed(a_track()).__getitem__).whole()
    again = load_motion(save_motion(once, tmp_path / "a.npz"))
    np.testing.assert_array_equal(load_motion(save_motion(a_track(), tmp_path / "b.npz")).face, once.face)
    assert np.nanmax(np.abs(again.face - once.face)) < 0.01


def test_a_motion_file_is_compact(tmp_path: Path) -> None:
    smooth_face = empty_track(200, (480, 640))
    smooth_face.face[:] = np.random.default_rng(1).uniform(100, 150, smooth_face.face.shape[1:])
    assert save_motion(smooth_face, tmp_path / "a.npz").stat().st_size < 200 * 468 * 6


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 broken", b"\x93NUMPY\x01\x00broken"])
def test_other_files_are_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a motion file") as error:
        load_motion(path)
    assert error.value.remedy


def test_damaged_and_foreign_archives_are_refused(tmp_path: Path) -> None:
    good = save_motion(a_track(), tmp_path / "good.npz").read_bytes()
    bad = tmp_path / "bad.npz"
    for content in (good[: len(good) // 2], good[:2000] + b"\xff" * 500 + good[2500:]):
        bad.write_bytes(content)
        with pytest.raises(InputError, match="not a motion file"):
            load_motion(bad)
    np.savez(bad, weights=np.ones(3))
    with pytest.raises(InputError, match="not a motion file"):
        load_motion(bad)
    with pytest.raises(InputError, match="There is no motion file"):
        load_motion(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", np.array([0, 5])),
        ("fps", np.array([0, 1])),
        ("fps", np.array([1, 0])),
        ("body", np.zeros((12, 32, 4), np.float32)),
        ("world", np.zeros((12, 33, 3), np.float64)),
        ("face_steps_0", np.zeros((12, 468, 3), np.float32)),
        ("face_steps_0", np.zeros((11, 468, 3), np.int16)),
        ("face_steps_0", np.zeros((12, 473, 3), np.int16)),
        ("face_steps_0", np.zeros((11, 478, 3), np.int16)),
        ("face_steps_0", np.zeros(12, np.int16)),
        ("body", np.array([{"a": 1}], dtype=object)),
    ],
)
def test_a_motion_file_that_cannot_be_is_refused(tmp_path: Path, name: str, value: np.ndarray) -> None:
    with np.load(save_motion(a_track(), tmp_path / "good.npz")) as arrays:
        content = {**arrays, name: value}
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(InputError, match="not a motion file"):
        load_motion(tmp_path / "bad.npz")


def test_a_newer_version_is_said(tmp_path: Path) -> None:
    with np.load(save_motion(a_track(), tmp_path / "good.npz")) as arrays:
        content = {**arrays, "version": np.array(cache.VERSION + 1)}
    np.savez(tmp_path / "new.npz", **content)
    with pytest.raises(InputError, match="newer version"):
        load_motion(tmp_path / "new.npz")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_motion(a_track(), tmp_path / "a.npz")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(StorageError, match="No space left"):
        save_motion(a_track(seed=1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        save_motion(a_track(), tmp_path / "none" / "a.npz")


def test_the_key_changes_with_content_and_options_and_not_with_the_name(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"
    a.write_bytes(b"x" * 100_000)
    b.write_bytes(b"x" * 100_000)
    c.write_bytes(b"x" * 99_999 + b"y")
    assert cache.key(a, "m", 0.0) == cache.key(b, "m", 0.0)
    assert len({cache.key(a, "m", 0.0), cache.key(c, "m", 0.0), cache.key(a, "m", 1.0), cache.key(a, "n", 0.0)}) == 4
    assert cache.key(a, "m", 0.0).isalnum()
    with pytest.raises(InputError, match="cannot be read"):
        cache.key(tmp_path / "absent", "m")


def test_the_cache_keeps_and_fetches_and_forgets_the_damaged() -> None:
    assert cache.fetch("k") is None
    track = a_track()
    cache.keep("k", cache.packed(track).items())
    got = cache.fetch("k")
    assert got is not None
    np.testing.assert_array_equal(got.track.body, track.body)
    (folders.cache_dir() / "poses" / "k.npz").write_bytes(b"half a fi")
    assert cache.fetch("k") is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    for i, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 + i, 1000 + i))
    os.utime(tmp_path / "a", (2000, 2000))  # used again
    cache.trim(tmp_path, 250)
    assert sorted(os.listdir(tmp_path)) == ["a", "d"]


def test_fetching_counts_as_use() -> None:
    cache.keep("old", cache.packed(a_track()).items())
    path = folders.cache_dir() / "poses" / "old.npz"
    os.utime(path, (1000, 1000))
    cache.fetch("old")
    assert path.stat().st_mtime > 1e9


def test_irises_are_kept_in_every_block(tmp_path: Path) -> None:
    track = a_track(2 * cache.BLOCK + 3, points=478)
    motion = cache.open_motion(save_motion(track, tmp_path / "a.npz"))
    assert motion.faces.points == motion.track.face.shape[1] == 478
    rows = slice(cache.BLOCK - 2, 2 * cache.BLOCK + 2)
    piece = motion.select(rows).whole()
    np.testing.assert_allclose(piece.face, track.face[rows], atol=0.01)
    with np.load(tmp_path / "a.npz") as arrays:
        mixed = {**arrays, "face_steps_1": arrays["face_steps_1"][:, :468]}
    np.savez(tmp_path / "mixed.npz", **mixed)
    with pytest.raises(InputError, match="not a motion file"):
        load_motion(tmp_path / "mixed.npz")


def test_a_motion_without_pictures_has_no_irises() -> None:
    assert cache.Motion.of(cache.packed(empty_track(0, (8, 8))).__getitem__).faces.points == 468
