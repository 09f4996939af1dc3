"""A packed clip is the clip, as far as its pictures show; a damaged one is told."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget.errors import InputError, NobodyFound
from retarget.references import arrays, references
from retarget.training.corpus import LOST, SMALLEST, UNIT, Clip, Corpus, _read, pack
from retarget.training.prepare import PrepareOptions, prepare

TINY = PrepareOptions(side=64, fps=5)


@pytest.fixture
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus(corpus_folder)


def packed(film, folder: Path, name: str = "x_a", options: PrepareOptions = TINY, **how) -> Clip:
    """A film, packed and read."""
    path = film.shoot(folder, name, **how)
    prepare([path], folder / "corpus", options)
    return Corpus(folder / "corpus").clip(name)


# ------------------------------------------------------------------------------------------------ round trips


def test_what_is_packed_is_what_is_read(film, tmp_path, puppet):
    film.lost["x_a"] = [3]
    clip = packed(film, tmp_path, options=PrepareOptions(side=128, fps=5))
    numbers = [0, 1, 2, 4, 5, 6, 7]
    assert len(clip) == len(numbers)
    assert clip.exact is None
    assert clip.track.size == (128, 160)
    assert clip.track.fps == 5
    track = film.track("x_a", (128, 160))
    for i, n in enumerate(numbers):
        # Pictures as filmed, around the person; elsewhere the plate.
        picture, matte = film.pictures["x_a"][n], puppet.matte(film.shown["x_a"][n])
        error = np.abs(clip.pictures[i].astype(float).mean(-1) - picture.mean(-1))  # of colours half is thrown away
        assert error.mean() < 3
        assert error[matte > 0.5].mean() < 5
        # The matte is the estimator's, refined; it has 16 levels.
        assert np.abs(clip.mattes[i] - matte).mean() < 0.03
        assert set(np.unique(np.round(clip.mattes[i] * 15, 3) % 1)) == {0}
        # Coordinates in 1/32 pixels, half of which is lost at most.
        np.testing.assert_allclose(clip.track.body[i, :, :3], track.body[n, :, :3], atol=0.51 / UNIT)
        np.testing.assert_allclose(clip.track.body[i, :, 3], track.body[n, :, 3], atol=0.51 / 255)
        np.testing.assert_allclose(clip.track.face[i, :, :2], track.face[n, :, :2], atol=0.51 / UNIT)
        np.testing.assert_allclose(clip.track.hands[i], track.hands[n], atol=0.51 / UNIT)
    assert np.isnan(clip.track.world).all()
    assert (clip.track.face[..., 2] == 0).all()
    plate = puppet.cloth(900, sigma=5.0)
    seen = clip.plate.seen > 0.5
    assert seen.mean() > 0.5
    assert np.abs(clip.plate.image.astype(float) - plate)[seen].mean() < 6
    assert not clip.plate.camera_moves


def test_smaller_pictures(film, tmp_path):
    clip = packed(film, tmp_path)
    assert clip.pictures.shape == (8, 80, 64, 3)
    assert clip.pictures.dtype == np.uint8
    assert clip.mattes.dtype == np.float32
    for i in (0, 7):
        small = cv2.resize(film.pictures["x_a"][i], (64, 80), interpolation=cv2.INTER_AREA)
        assert np.abs(clip.pictures[i].astype(float) - small).mean() < 8
    np.testing.assert_allclose(
        clip.track.body[..., :2], np.stack([b[:, :2] / 2 for b in film.shown["x_a"]]), atol=0.51 / UNIT
    )
    assert packed(film, tmp_path / "..", "y_a", PrepareOptions(side=600, fps=5)).track.size == (128, 160)


def test_what_was_not_found_stays_unknown(film, tmp_path, monkeypatch):
    track = film.track

    def without_hands(name, size):
        full = track(name, size)
        full.hands[:, 1] = np.nan
        full.face[2:] = np.nan
        return full

    monkeypatch.setattr(film, "track", without_hands)
    # Gaps between hands that are seen are filled; a hand that never is stays unknown.
    clip = packed(film, tmp_path)
    assert np.isnan(clip.track.hands[:, 1]).all()
    assert np.isfinite(clip.track.hands[:, 0]).all()
    with np.load(tmp_path / "corpus" / "x_a.npz") as kept:
        assert (kept["hands"] == LOST).any()
    assert np.isfinite(clip.track.body).all()
    assert np.isnan(clip.track.face[..., :2]).any()


def test_irises_are_packed_where_they_were_found(film, tmp_path, monkeypatch, puppet):
    track = film.track
    monkeypatch.setattr(film, "track", lambda name, size: puppet.with_irises(track(name, size)))
    clip = packed(film, tmp_path)
    assert clip.track.face.shape == (len(clip), 478, 3)
    wanted = film.track("x_a", (128, 160)).scaled((64, 80)).face
    np.testing.assert_allclose(clip.track.face[..., :2], wanted[..., :2], atol=0.51 / UNIT)
    assert (clip.track.face[..., 2] == 0).all()
    assert clip.gathered([0, 3]).poses.face.shape == (2, 478, 3)


def test_heads_without_irises_are_not_gone_on_with():
    """And people are: what decides their pictures is what it was."""
    assert PrepareOptions().deciding == {"side": 256, "fps": 5.0, "quality": 88}
    assert PrepareOptions(crop="head").deciding["irises"]


def test_frames_are_kept_at_the_rate_asked_for(film, tmp_path):
    for fps, count in ((5, 24), (2.5, 12), (0.9, 0)):
        path = film.shoot(tmp_path, "x_a", count=24)
        if count:
            arrays_, meta = pack(path, PrepareOptions(side=64, fps=fps))
            assert meta["frames"] == count
            assert arrays_["numbers"].tolist() == list(range(0, 24, 24 // count))
        else:
            with pytest.raises(NobodyFound, match="seen in 4 of the frames"):
                pack(path, PrepareOptions(side=64, fps=fps))


def test_colours_are_not_exchanged(film, tmp_path, puppet, monkeypatch):
    red = np.full((160, 128, 3), (200, 30, 60), np.uint8)
    monkeypatch.setattr(film, "picture", lambda body, *_: np.where(puppet.matte(body)[..., None] > 0.5, red, 90))
    clip = packed(film, tmp_path)
    inside = clip.mattes[0] > 0.9
    np.testing.assert_allclose(clip.pictures[0][inside].mean(0), (200, 30, 60), atol=12)
    np.testing.assert_allclose(clip.plate.image.reshape(-1, 3).mean(0), (90, 90, 90), atol=12)


# ------------------------------------------------------------------------------------------------ exact mattes


def masks(film, name: str, path: Path, *, count: int | None = None) -> np.ndarray:
    """Writes exact mattes beside a clip."""
    mattes = [film.puppet.matte(b) > 0.5 for b in film.shown[name]][:count]
    bits = np.packbits(np.stack([m.ravel() for m in mattes]), axis=1)
    np.savez(path.with_suffix(".npz"), mask_bits=bits, mask_shape=[len(mattes), 160, 128])
    return np.stack(mattes)


def test_exact_mattes_are_taken_from_beside_the_clip(film, tmp_path):
    path = film.shoot(tmp_path, "x_a")
    film.lost["x_a"] = [1]
    known = masks(film, "x_a", path)
    index = prepare([path], tmp_path / "corpus", PrepareOptions(side=128, fps=5))
    assert index["clips"][0]["exact"]
    clip = Corpus(tmp_path / "corpus").clip("x_a")
    assert clip.exact is not None
    np.testing.assert_allclose(clip.exact, known[[0, 2, 3, 4, 5, 6, 7]])
    assert np.abs(clip.exact - clip.mattes).max() > 0.1  # the estimator's are others
    gathered = clip.gathered([2, 5])
    assert gathered.exact is not None
    np.testing.assert_allclose(gathered.exact, clip.exact[[2, 5]])
    np.testing.assert_allclose(gathered.mattes, clip.mattes[[2, 5]])


@pytest.mark.parametrize("how", ["fewer", "text", "empty", "cut", "other"])
def test_exact_mattes_that_are_none(film, tmp_path, how):
    """A clip is of use without them."""
    path = film.shoot(tmp_path, "x_a")
    masks(film, "x_a", path, count=5 if how == "fewer" else None)
    beside = path.with_suffix(".npz")
    if how == "text":
        beside.write_text("no numbers")
    elif how == "empty":
        beside.write_bytes(b"")
    elif how == "cut":
        beside.write_bytes(beside.read_bytes()[:200])
    elif how == "other":
        np.savez(beside, joints=np.zeros(3))
    assert not prepare([path], tmp_path / "corpus", TINY)["clips"][0]["exact"]
    assert Corpus(tmp_path / "corpus").clip("x_a").exact is None


# ------------------------------------------------------------------------------------------------ as references


def test_gathered_references_are_what_an_avatar_has(corpus):
    clip = corpus.clip("anna_a")
    gathered = clip.gathered([6, 1, 3])
    assert gathered.size == (64, 80)
    assert gathered.picked == (6, 1, 3)
    assert len(gathered.windows) == 3
    np.testing.assert_array_equal(gathered.pictures, clip.pictures[[6, 1, 3]])
    np.testing.assert_array_equal(gathered.poses.body, clip.track.body[[6, 1, 3]])
    # The person's own colours reach beyond the matte.
    solid, outside = gathered.mattes > 0.95, gathered.mattes == 0
    np.testing.assert_array_equal(gathered.frames[solid], gathered.pictures[solid])
    assert (gathered.frames[outside] != gathered.pictures[outside]).any()
    known = references(arrays(gathered))
    assert known.rgb.shape == (1, 3, 3, 80, 64)
    assert 0 <= known.shadow <= 0.5


def test_how_well_shape_and_size_are_told(film, tmp_path):
    small = film.shoot(tmp_path, "x_a", scale=20)
    with pytest.raises(NobodyFound, match="the person is too small"):
        pack(small, TINY)
    arrays_, _ = pack(film.shoot(tmp_path, "y_a", scale=84), TINY)
    x0, y0, x1, y1 = arrays_["boxes"].T
    assert max((x1 - x0).max(), (y1 - y0).max()) >= SMALLEST
    assert x0.min() >= 0
    assert y0.min() >= 0
    assert x1.max() <= 64
    assert y1.max() <= 80


# ------------------------------------------------------------------------------------------------ what is read


def test_persons_and_their_clips(corpus):
    train, val = corpus.persons("train"), corpus.persons("val")
    assert list(train) == ["anna", "bert", "carl"]
    assert list(val) == ["dora"]
    assert [e.clip for e in train["carl"]] == ["carl_a", "carl_b"]
    assert all(e.frames == 8 and e.size == (64, 80) for e in corpus.entries)


def test_the_digest_tells_one_corpus_from_another(film, tmp_path):
    path = film.shoot(tmp_path, "x_a")
    one = prepare([path], tmp_path / "one", TINY) and Corpus(tmp_path / "one").digest
    two = prepare([path], tmp_path / "two", TINY) and Corpus(tmp_path / "two").digest
    other = prepare([film.shoot(tmp_path, "x_a", 5)], tmp_path / "other", TINY) and Corpus(tmp_path / "other").digest
    assert one == two != other


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"schema": 99, "clips": []}', '{"schema": 1}',
                                  '{"schema": 1, "clips": [{"clip": "x"}]}', '{"schema": 1, "clips": 3}'])  # fmt: skip
def test_a_folder_that_is_no_corpus(tmp_path, text):
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match="is not a corpus of this version") as e:
        Corpus(tmp_path)
    assert "retarget prepare" in e.value.remedy


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no numbers at all\n" * 100)
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":  # inside of the largest file in it
        with zipfile.ZipFile(path) as archive:
            info = max(archive.infolist(), key=lambda i: i.compress_size)
        middle = info.header_offset + 100 + info.compress_size // 2
        path.write_bytes(data[:middle] + bytes(255 - b for b in data[middle : middle + 64]) + data[middle + 64 :])
    else:  # an array is gone, or holds something else
        with np.load(path) as kept:
            arrays_ = {k: kept[k] for k in kept.files}
        if how == "incomplete":
            del arrays_["body"]
        elif how == "pictures":
            arrays_["rgb"] = np.roll(arrays_["rgb"], 40)
        else:
            meta = json.loads(str(arrays_["meta"])) | {"frames": 5}
            arrays_["meta"] = np.array(json.dumps(meta))
        np.savez(path, **arrays_)


@pytest.mark.parametrize("how", ["missing", "empty", "text", "cut", "flipped", "incomplete", "pictures", "frames"])
def test_a_damaged_clip_is_told(film, tmp_path, how):
    packed(film, tmp_path)
    path = tmp_path / "corpus" / "x_a.npz"
    damage(path, how)
    _read.cache_clear()
    with pytest.raises(InputError, match=r"x_a\.npz is missing or damaged") as e:
        Corpus(tmp_path / "corpus").clip("x_a")
    assert "prepare again" in e.value.remedy


@pytest.mark.parametrize("how", ["missing", "empty", "text", "cut", "flipped"])
def test_preparing_again_mends_a_damaged_clip(film, tmp_path, how):
    whole = packed(film, tmp_path)
    damage(tmp_path / "corpus" / "x_a.npz", how)
    _read.cache_clear()
    prepare([tmp_path / "x_a.mp4"], tmp_path / "corpus", TINY)
    _read.cache_clear()
    np.testing.assert_array_equal(Corpus(tmp_path / "corpus").clip("x_a").pictures, whole.pictures)


def test_an_entry_is_all_that_is_known_of_a_clip(corpus, corpus_folder):
    entry = corpus.entries[0]
    video = corpus_folder.parent / "clips" / "anna_a.mp4"
    assert asdict(entry) == {
        "clip": "anna_a", "person": "anna", "source": "anna_a.mp4", "licence": "unknown", "split": "train",
        "frames": 8, "size": (64, 80), "exact": False, "sha256": hashlib.sha256(video.read_bytes()).hexdigest(),
    }  # fmt: skip
