"""`prepare`: which clips become a corpus, what is written about them, and that it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retarget.background import Plate
from retarget.errors import InputError, StorageError, UsageError, VideoError
from retarget.training import corpus as packing
from retarget.training.corpus import Corpus
from retarget.training.prepare import PrepareOptions, prepare, split_of
from retarget.types import Silent

from .conftest import visible

TINY = PrepareOptions(side=64, fps=5)
SYNTHETIC = Path(__file__).parents[3] / "shared" / "synthetic"


class Listener(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.done = 0
        self.total: int | None = None

    def stage(self, title: str, total: int | None = None) -> None:
        self.total = total

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.done += steps

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def table(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


# ------------------------------------------------------------------------------------------------ what is written


def test_the_index_says_what_is_known_of_each_clip(film, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for i, name in enumerate(("zoe_b", "zoe_a", "max")):
        film.shoot(folder, name, i)
    (folder / "notes.txt").write_text("no video")
    listener = Listener()
    options = PrepareOptions(side=64, fps=5, licence="CC0-1.0", source="my own", val=0)
    index = prepare([folder], tmp_path / "deep" / "corpus", options, progress=listener)
    out = tmp_path / "deep" / "corpus"
    assert json.loads((out / "index.json").read_text()) == json.loads(json.dumps(index))
    assert index["schema"] == 1
    assert index["options"] == {"side": 64, "fps": 5, "quality": 88}
    assert index["left_out"] == []
    assert [c["clip"] for c in index["clips"]] == ["max", "zoe_a", "zoe_b"]
    assert [c["person"] for c in index["clips"]] == ["max", "zoe", "zoe"]
    for clip in index["clips"]:
        assert (clip["licence"], clip["source"], clip["split"]) == ("CC0-1.0", "my own", "train")
        assert (clip["frames"], tuple(clip["size"]), clip["exact"]) == (8, (64, 80), False)
        assert clip["sha256"] == hashlib.sha256((folder / f"{clip['clip']}.mp4").read_bytes()).hexdigest()
    assert visible(out) == ["index.json", "max.npz", "zoe_a.npz", "zoe_b.npz"]
    assert (listener.total, listener.done, listener.warnings) == (3, 3, [])
    assert sum(p.stat().st_size for p in out.iterdir()) < 200_000


def test_a_table_goes_before_everything_else(film, tmp_path):
    paths = [film.shoot(tmp_path, name) for name in ("x_a", "x_b", "y")]
    said = table(
        tmp_path / "t.csv", "clip,mood,person,split,source,licence", "x_a,gay,ann,val,web,MIT", "x_b,,ben,,,",
        "other_clip,,,nonsense,,",
    )  # fmt: skip
    options = PrepareOptions(side=64, fps=5, table=said, val=0, licence="CC0-1.0")
    index = prepare(paths, tmp_path / "corpus", options)
    facts = {c["clip"]: (c["person"], c["split"], c["source"], c["licence"]) for c in index["clips"]}
    assert facts == {
        "x_a": ("ann", "val", "web", "MIT"),
        "x_b": ("ben", "train", "x_b.mp4", "CC0-1.0"),
        "y": ("y", "train", "y.mp4", "CC0-1.0"),
    }


def test_names_give_the_person(film, tmp_path):
    names = {"a_b_c": "a_b", "plain": "plain", "_x": "_x", "s001_a": "s001"}
    paths = [film.shoot(tmp_path, name) for name in names]
    index = prepare(paths, tmp_path / "corpus", TINY)
    assert {c["clip"]: c["person"] for c in index["clips"]} == names


def test_a_split_depends_on_the_name_alone():
    names = [f"person {i}" for i in range(4000)]
    for share in (0.0, 0.1, 0.3):
        chosen = [split_of(n, share) for n in names]
        assert chosen.count("val") / len(names) == pytest.approx(share, abs=0.02)
    # Whoever is in a small share is in a larger one, too: nobody changes sides when people come in.
    assert {n for n in names if split_of(n, 0.1) == "val"} <= {n for n in names if split_of(n, 0.3) == "val"}
    # For ever the same.
    assert [n for n in (f"s{i:03}" for i in range(40)) if split_of(n, 0.1) == "val"] == ["s003", "s014", "s017", "s031"]


def test_nobody_is_in_two_splits(film, tmp_path):
    paths = [film.shoot(tmp_path, f"{name}_{take}", i) for i, name in enumerate("abcdefgh") for take in "xy"]
    index = prepare(paths, tmp_path / "corpus", PrepareOptions(side=64, fps=5, val=0.4))
    splits: dict[str, set[str]] = {}
    for clip in index["clips"]:
        splits.setdefault(clip["person"], set()).add(clip["split"])
    assert all(len(s) == 1 for s in splits.values())
    assert set().union(*splits.values()) == {"train", "val"}
    corpus = Corpus(tmp_path / "corpus")
    assert not corpus.persons("train").keys() & corpus.persons("val").keys()


def test_a_person_in_two_splits_is_refused(film, tmp_path):
    paths = [film.shoot(tmp_path, name) for name in ("x_a", "x_b")]
    said = table(tmp_path / "t.csv", "clip,split", "x_a,val", "x_b,train")
    with pytest.raises(UsageError, match="x would be in both splits") as e:
        prepare(paths, tmp_path / "corpus", PrepareOptions(side=64, fps=5, table=said))
    assert e.value.remedy
    assert not (tmp_path / "corpus" / "index.json").exists()
    assert film.estimated == []  # told before any work
    # Nor when one of the clips is there already.
    prepare(paths[:1], tmp_path / "corpus", PrepareOptions(side=64, fps=5, val=0))
    said = table(tmp_path / "t.csv", "clip,split", "x_b,val")
    before = (tmp_path / "corpus" / "index.json").read_bytes()
    with pytest.raises(UsageError, match="x would be in both splits"):
        prepare(paths[1:], tmp_path / "corpus", PrepareOptions(side=64, fps=5, table=said, val=0))
    assert (tmp_path / "corpus" / "index.json").read_bytes() == before


# ------------------------------------------------------------------------------------------------ what is left out


def test_clips_of_no_use_are_left_out_with_a_reason(film, tmp_path, monkeypatch):
    good = film.shoot(tmp_path, "good_a", 1)
    empty, short, small, shaken = (
        film.shoot(tmp_path, name, 2, scale=scale)
        for name, scale in (("empty", 84), ("short", 84), ("small", 20), ("shaken", 84))
    )
    film.lost |= {"empty": list(range(8)), "short": [0, 1, 5]}
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 100)
    make = packing.background.make_plate

    def moving(frames: Any, masks: Any) -> Plate:
        plate = make(frames, masks)
        return Plate(plate.image, plate.seen, 0.5 if film.estimated[-1] == "shaken" else plate.motion)

    monkeypatch.setattr(packing.background, "make_plate", moving)
    listener = Listener()
    index = prepare([shaken, empty, good, short, small, text], tmp_path / "corpus", TINY, progress=listener)
    assert [c["clip"] for c in index["clips"]] == ["good_a"]
    reasons = {x["clip"]: x["reason"] for x in index["left_out"]}
    assert list(reasons) == ["empty", "shaken", "short", "small", "text"]
    assert reasons["empty"] == "a person is seen in 0 of the frames only."
    assert reasons["short"] == "a person is seen in 5 of the frames only."
    assert reasons["small"] == "the person is too small."
    assert reasons["shaken"] == "the camera moves."
    assert "text.mp4" in reasons["text"]
    assert len(listener.warnings) == 5
    assert any("shaken.mp4 is left out: the camera moves." in w for w in listener.warnings)
    assert (listener.total, listener.done) == (6, 6)
    assert visible(tmp_path / "corpus") == ["good_a.npz", "index.json"]
    assert json.loads((tmp_path / "corpus" / "index.json").read_text())["left_out"] == index["left_out"]
    # What is behind a head that is followed moves.
    assert packing.pack(shaken, replace(TINY, crop="head"))[1]["frames"] == 8


def test_a_clip_that_became_useless_is_no_longer_in_the_corpus(film, tmp_path):
    path = film.shoot(tmp_path, "x_a")
    prepare([path], tmp_path / "corpus", TINY)
    film.shoot(tmp_path, "x_a", 5)
    film.lost["x_a"] = list(range(8))
    with pytest.raises(InputError, match=r"^None of the 1 clips can be used; x_a: .+ Give clips"):
        prepare([path], tmp_path / "corpus", TINY)
    assert Corpus(tmp_path / "corpus").entries == []


# ------------------------------------------------------------------------------------------------ going on


def test_what_is_packed_is_not_packed_again(film, tmp_path):
    paths = [film.shoot(tmp_path, f"x_{take}", i) for i, take in enumerate("ab")]
    first = prepare(paths, tmp_path / "corpus", TINY)
    files = sorted((tmp_path / "corpus").glob("*.npz"))
    times = [p.stat().st_mtime_ns for p in files]
    assert film.estimated == ["x_a", "x_b"]
    assert prepare(paths, tmp_path / "corpus", TINY) == first
    # What is not in the pictures may change.
    index = prepare(paths, tmp_path / "corpus", PrepareOptions(side=64, fps=5, licence="CC0-1.0", workers=3))
    assert {c["licence"] for c in index["clips"]} == {"CC0-1.0"}
    assert film.estimated == ["x_a", "x_b"]
    assert [p.stat().st_mtime_ns for p in files] == times


def test_a_changed_clip_is_packed_again(film, tmp_path):
    paths = [film.shoot(tmp_path, f"x_{take}", i) for i, take in enumerate("ab")]
    first = prepare(paths, tmp_path / "corpus", TINY)
    film.shoot(tmp_path, "x_b", 7)
    second = prepare(paths, tmp_path / "corpus", TINY)
    assert film.estimated == ["x_a", "x_b", "x_b"]
    assert second["clips"][0] == first["clips"][0]
    assert second["clips"][1]["sha256"] != first["clips"][1]["sha256"]


def test_an_interrupted_run_goes_on(film, tmp_path, monkeypatch):
    paths = [film.shoot(tmp_path, f"x_{take}", i) for i, take in enumerate("abc")]
    estimate = film.estimate

    def interrupted(path: Path, *args: Any, **how: Any) -> Any:
        if path.stem == "x_b":
            raise KeyboardInterrupt
        return estimate(path, *args, **how)

    monkeypatch.setattr("retarget.pose.estimate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(paths, tmp_path / "corpus", TINY)
    assert visible(tmp_path / "corpus") == ["x_a.npz"]
    monkeypatch.setattr("retarget.pose.estimate", estimate)
    index = prepare(paths, tmp_path / "corpus", TINY)
    assert film.estimated == ["x_a", "x_b", "x_c"]
    assert len(index["clips"]) == 3


def test_clips_can_be_added(film, tmp_path):
    paths = [film.shoot(tmp_path, name, i) for i, name in enumerate(("x_a", "y_a"))]
    prepare(paths[:1], tmp_path / "corpus", TINY)
    index = prepare(paths[1:], tmp_path / "corpus", TINY)
    assert [c["clip"] for c in index["clips"]] == ["x_a", "y_a"]
    assert len(Corpus(tmp_path / "corpus").entries) == 2
    # One whose file was deleted is forgotten.
    (tmp_path / "corpus" / "x_a.npz").unlink()
    assert [c["clip"] for c in prepare(paths[1:], tmp_path / "corpus", TINY)["clips"]] == ["y_a"]


@pytest.mark.parametrize("change", [{"side": 96}, {"fps": 2.5}, {"quality": 50}])
def test_other_options_are_refused(film, tmp_path, change):
    path = film.shoot(tmp_path, "x_a", count=12)
    prepare([path], tmp_path / "corpus", TINY)
    before = {p: p.read_bytes() for p in (tmp_path / "corpus").iterdir()}
    with pytest.raises(UsageError, match="holds a corpus made with other options") as e:
        prepare([path], tmp_path / "corpus", PrepareOptions(**{"side": 64, "fps": 5} | change))
    assert e.value.remedy
    assert {p: p.read_bytes() for p in (tmp_path / "corpus").iterdir()} == before
    # What an interrupted run with other options left is made again.
    (tmp_path / "corpus" / "index.json").unlink()
    prepare([path], tmp_path / "corpus", PrepareOptions(**{"side": 64, "fps": 5} | change))
    assert film.estimated == ["x_a", "x_a"]


def test_a_damaged_index_is_told(film, tmp_path):
    path = film.shoot(tmp_path, "x_a")
    index = prepare([path], tmp_path / "corpus", TINY)
    for text in ("", "{", "[]", "{}"):
        (tmp_path / "corpus" / "index.json").write_text(text)
        with pytest.raises(InputError, match=r"index\.json is damaged") as e:
            prepare([path], tmp_path / "corpus", TINY)
        assert "Delete it" in e.value.remedy
    (tmp_path / "corpus" / "index.json").unlink()
    assert prepare([path], tmp_path / "corpus", TINY) == index
    assert film.estimated == ["x_a"]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 32}, "--side is 32"), ({"side": 5000}, "--side is 5000"), ({"fps": 0}, "--fps is 0"),
        ({"fps": float("nan")}, "--fps is nan"), ({"quality": 0}, "--quality is 0"), ({"quality": 101}, "101"),
        ({"val": -0.1}, "--val is -0.1"), ({"val": 1}, "--val is 1"), ({"workers": -1}, "--workers is -1"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(film, tmp_path, change, message):
    path = film.shoot(tmp_path, "x_a")
    with pytest.raises(UsageError, match=message) as e:
        prepare([path], tmp_path / "corpus", PrepareOptions(**change))
    assert e.value.remedy
    assert not (tmp_path / "corpus").exists()


def test_clips_that_cannot_be(film, tmp_path):
    (tmp_path / "empty").mkdir()
    for clips in ([], [tmp_path / "empty"]):
        with pytest.raises(UsageError, match="no videos to pack"):
            prepare(clips, tmp_path / "corpus", TINY)
    with pytest.raises(InputError, match=r"no file .*missing\.mp4"):
        prepare([tmp_path / "missing.mp4"], tmp_path / "corpus", TINY)
    one = film.shoot(tmp_path, "x_a")
    other = film.shoot(tmp_path / "empty", "x_a")
    with pytest.raises(UsageError, match="have one name"):
        prepare([one, other], tmp_path / "corpus", TINY)
    assert len(prepare([one, one, tmp_path], tmp_path / "corpus", TINY)["clips"]) == 1  # named twice is once


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["name,person", "x_a,ann"], "is not a table of clips"),
        (["some sentence"], "is not a table of clips"),
        ([], "is not a table of clips"),
        (["clip,split", "x_a,test"], "the split of x_a is “test”"),
        ([b"clip,person\nx_a,\xff\xfe"], "is not a table of clips"),
        (None, "is not a table of clips"),
    ],
)
def test_tables_that_cannot_be(film, tmp_path, rows, message):
    path = film.shoot(tmp_path, "x_a")
    said = tmp_path / "t.csv"
    if rows is not None:
        said.write_bytes(b"\n".join(r if isinstance(r, bytes) else r.encode() for r in rows))
    with pytest.raises(InputError, match=message) as e:
        prepare([path], tmp_path / "corpus", PrepareOptions(side=64, fps=5, table=str(said)))
    assert e.value.remedy
    assert film.estimated == []


def test_a_folder_that_cannot_be_made(film, tmp_path):
    path = film.shoot(tmp_path, "x_a")
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "corpus"):
        with pytest.raises(StorageError, match="cannot be made") as e:
            prepare([path], out, TINY)
        assert e.value.remedy
    assert film.estimated == []


def test_a_full_disk_is_told_and_leaves_no_rest(film, tmp_path, monkeypatch):
    path = film.shoot(tmp_path, "x_a")

    def full(file: Any, **_: Any) -> None:
        file.write(b"a little")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.np, "savez_compressed", full)
    with pytest.raises(StorageError, match=r"x_a\.npz cannot be written: No space left") as e:
        prepare([path], tmp_path / "corpus", TINY)
    assert e.value.remedy
    assert [p.name for p in (tmp_path / "corpus").iterdir()] == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(film, tmp_path):
    path = film.shoot(tmp_path, "x_a")
    (tmp_path / "corpus").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        prepare([path], tmp_path / "corpus", TINY)


def test_a_bug_is_not_a_clip_that_is_left_out(film, tmp_path, monkeypatch):
    path = film.shoot(tmp_path, "x_a")

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(packing, "pack", fail)
    with pytest.raises(ZeroDivisionError):
        prepare([path], tmp_path / "corpus", TINY)
    monkeypatch.setattr(packing, "pack", lambda *_: (_ for _ in ()).throw(VideoError("is broken.")))
    with pytest.raises(InputError, match=r"x_a: is broken\."):
        prepare([path], tmp_path / "corpus", TINY)


def test_reading_the_defaults_loads_nothing_heavy():
    code = (
        "import sys, retarget.training.prepare, retarget.training.train;"
        "sys.exit(str({'torch', 'cv2', 'numpy', 'mediapipe'} & set(sys.modules) - {'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


# ------------------------------------------------------------------------------------------------ real clips


def test_real_clips(short_me, tmp_path, in_shared_home):
    """True estimators, true processes."""
    clips = [short_me]
    if SYNTHETIC.is_dir():
        clips.append(SYNTHETIC / "s000_a.mp4")
    index = prepare(clips, tmp_path / "corpus", PrepareOptions(side=128, workers=2, val=0))
    assert index["left_out"] == []
    corpus = Corpus(tmp_path / "corpus")
    assert [e.person for e in corpus.entries] == ["s000", "short me"][2 - len(clips) :]
    for entry in corpus.entries:
        clip = corpus.clip(entry.clip)
        assert entry.exact == (clip.exact is not None) == (entry.person == "s000")
        assert len(clip) == entry.frames >= 8
        assert min(clip.track.size) == 128
        assert (tmp_path / "corpus" / f"{entry.clip}.npz").stat().st_size < 20_000 * entry.frames
        for i in range(len(clip)):
            inside = clip.mattes[i] > 0.5
            assert 0.02 < inside.mean() < 0.5
            # The joints that are seen lie on the person.
            body = clip.track.body[i]
            xy = body[body[:, 3] > 0.8, :2].astype(int)
            near = clip.mattes[i][xy[:, 1].clip(0, inside.shape[0] - 1), xy[:, 0].clip(0, inside.shape[1] - 1)]
            assert (near > 0.5).mean() > 0.7
            if clip.exact is not None:
                true = clip.exact[i] > 0.5
                assert (inside & true).sum() / (inside | true).sum() > 0.85
        assert clip.gathered([0, 3, 5]).size == clip.track.size
        assert np.ptp(clip.pictures, axis=0).max() > 50  # the person moves
