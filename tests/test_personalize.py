"""`personalize` on references that are known: what is written, what is refused, and that a failure leaves nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from made_avatars import POSES, Listener, nothing_left

from retarget import checkpoint, folders, tuning, weights
from retarget import personalize as public
from retarget.avatar import Avatar, avatar_names
from retarget.errors import DeviceError, InputError, StorageError, UsageError, VideoError
from retarget.models import build
from retarget.personalize import PersonalizeOptions, check, expand, gather
from retarget.references import arrays, packed, unpacked
from retarget.types import Silent

module = importlib.import_module("retarget.personalize")  # the name is also the function's
pytestmark = pytest.mark.usefixtures("small_dance", "shipped")

# ------------------------------------------------------------------------------------------------ what is written


def test_without_fine_tuning(me, known, puppet):
    calls = known(3)
    avatar = public(me, steps=0, device="cpu", person="3,4")
    assert calls[0][0] == [me]
    assert calls[0][1].person == "3,4"
    assert avatar.name == "my clip"
    assert avatar.size == (128, 160)
    assert avatar.meta.frames == 3
    assert avatar.meta.model == "dance"
    assert avatar.meta.quality == {}
    assert avatar.meta.options["steps"] == 0
    assert avatar.meta.options["inputs"] == ["my clip.mp4"]
    assert avatar.meta.extra["picked"] == [0, 10, 20]
    assert avatar.state() == {}
    np.testing.assert_array_equal(avatar.tensors()["frames"][1], puppet.cloth(1))
    preview = cv2.imread(str(avatar.preview))
    assert preview.shape[0] == 1280
    assert preview.std() > 20
    assert Avatar.load("my clip") == avatar


def test_the_same_seed_gives_the_same_avatar(me, known):
    known(2)
    torch.manual_seed(1)
    one = public(me, steps=1, seed=7, device="cpu", name="one")
    torch.manual_seed(2)
    two = public(me, steps=1, seed=7, device="cpu", name="two")
    other = public(me, steps=1, seed=8, device="cpu", name="other")
    assert one.state().keys() == two.state().keys()
    for key, value in one.state().items():
        np.testing.assert_array_equal(value, two.state()[key], err_msg=key)
    assert any(not np.array_equal(value, other.state()[key]) for key, value in one.state().items())
    assert one.meta.quality == two.meta.quality
    assert one.id != two.id


def test_references_that_were_gathered_before(me, known, puppet):
    """They are not gathered again, and serve several times."""
    calls = known(2)
    one = public(me, steps=2, device="cpu", name="one")
    assert len(calls) == 1
    gathered = puppet.gathered(*(puppet.body(*p) for p in POSES[:2]), details=True)
    for name in ("two", "three"):
        other = public(me, steps=2, device="cpu", name=name, gathered=gathered)
        assert agree(other.state(), one.state())
        assert agree(other.tensors(), one.tensors())
    assert len(calls) == 1


def test_random_numbers_of_the_caller_are_left_alone(me, known):
    known()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    public(me, steps=1, device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_of_photos_gives_its_name(tmp_path, known):
    folder = tmp_path / "Anna"
    folder.mkdir()
    for name in ("b.JPG", "a.png", "notes.txt"):
        (folder / name).write_bytes(b"x")
    calls = known()
    assert public(folder, steps=0, device="cpu").name == "Anna"
    assert [p.name for p in calls[0][0]] == ["a.png", "b.JPG"]


def test_an_avatar_of_the_same_name_is_replaced(me, known):
    known()
    first = public(me, steps=0, device="cpu", name="again")
    second = public(me, steps=0, device="cpu", name="again")
    assert avatar_names() == ["again"]
    assert Avatar.load("again").id == second.id != first.id


# ------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("where", ["fine_tune", "preview"])
def test_a_failure_leaves_nothing_behind(me, known, monkeypatch, where):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("in the middle")

    known()
    if where == "fine_tune":
        monkeypatch.setattr(module, "fine_tune", fail)
    else:
        monkeypatch.setattr("retarget.preview.preview", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        public(me, steps=1, device="cpu")
    assert nothing_left()


def test_a_failure_leaves_the_old_avatar_as_it_was(me, known, monkeypatch):
    known()
    old = public(me, steps=0, device="cpu")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("retarget.avatar._write_png", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        public(me, steps=0, device="cpu")
    assert Avatar.load("my clip").id == old.id
    assert [p.name for p in folders.avatars_dir().iterdir()] == ["my clip"]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "message", "remedy"),
    [
        ({"frames": 0}, "at least one frame, not 0", "--frames 5"),
        ({"steps": -1}, "cannot take -1 steps", "--steps 0"),
        ({"size": 10}, "10 pixels is too small", "--size 64"),
        ({"background": "blue"}, "no background “blue”", "video or frames"),
        ({"pick": (3, 3)}, "names a frame twice", "once"),
        ({"init": "magic"}, "no start “magic”", "meta, pretrain, random or a .safetensors"),
        ({"colour": "red"}, "no option “colour”", "frames, steps, name"),
        ({"model": "cyclegan"}, "no model called 'cyclegan'", "dance"),
        ({"name": "a/b"}, "a/b", ""),
    ],
)
def test_options_that_cannot_be(me, known, changes, message, remedy):
    known()
    with pytest.raises(UsageError) as e:
        public(me, **{"steps": 0, "device": "cpu"} | changes)
    assert message in e.value.message
    assert remedy in e.value.remedy
    assert nothing_left()


def test_the_defaults_can_be(puppet):
    check(PersonalizeOptions())


def test_a_device_that_is_missing(me, known):
    known()
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(DeviceError):
        public(me, steps=0, device="cuda")
    assert nothing_left()


def test_inputs_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="Nothing to make an avatar of"):
        expand([])
    with pytest.raises(InputError, match=r"no file .*missing\.mp4"):
        public(tmp_path / "missing.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no pictures"):
        public(tmp_path / "empty")
    assert nothing_left()


def test_videos_and_photos_are_not_mixed(tmp_path, puppet):
    photo, text = tmp_path / "photo.png", tmp_path / "clip.mp4"
    cv2.imwrite(str(photo), puppet.cloth())
    text.write_bytes(b"no picture")
    for paths in ([photo, text], [text, text]):
        with pytest.raises(UsageError, match=r"2 files were given, and clip\.mp4 is not a photo"):
            gather(paths, PersonalizeOptions(), Silent())


def test_what_is_no_video(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("this is no video\n" * 50)
    with pytest.raises(VideoError, match=r"notes\.mp4"):
        public(text, device="cpu")
    assert nothing_left()


# ------------------------------------------------------------------------------------------------ interrupted, resumed


class Interrupting(Listener):
    """Stops everything at a step of fine-tuning."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def advance(self, steps: int = 1, **figures: float) -> None:
        super().advance(steps, **figures)
        if self.steps == self.at:
            raise KeyboardInterrupt


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The checkpoints of fine-tuning, one after each step."""
    kept: list[dict[str, Any]] = []
    save = checkpoint.save

    def watched(path: Path, state: Mapping[str, Any]) -> None:
        save(path, state)
        if path.name.startswith("fit"):
            kept.append(dict(state))

    monkeypatch.setattr(checkpoint, "save", watched)
    monkeypatch.setattr(tuning, "EVERY", 0.0)
    monkeypatch.setattr(tuning, "COST", 1e9)
    return kept


def agree(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(np.asarray(a[k]), np.asarray(b[k])) for k in a)


OPTIONS = PersonalizeOptions(steps=6, device="cpu", name="me")


@pytest.mark.reliability("1. Resume", "personalize interrupted while fine-tuning (Ctrl-C)", "goes on; same avatar")
def test_interrupted_it_goes_on_to_the_same_avatar(me, known, states):
    calls = known(3)
    whole = public(me, OPTIONS).opened()
    assert [state["step"] for state in states] == [1, 2, 3, 4, 5, 6]
    final = states[-1]
    states.clear()
    with pytest.raises(KeyboardInterrupt):
        public(me, OPTIONS, progress=Interrupting(4))
    assert Avatar.load("me") == whole  # the one before stays
    calls.clear()
    listener = Listener()
    again = public(me, OPTIONS, progress=listener).opened()
    assert calls == []  # nothing is gathered twice
    assert [note for note in listener.notes if note.startswith("Going on")] == [
        "Going on with the references that an interrupted run found.", "Going on at step 3 of 6.",
    ]  # fmt: skip
    assert listener.steps == 3
    assert [state["step"] for state in states] == [1, 2, 3, 4, 5, 6]
    assert agree(states[-1], final)
    assert again.id != whole.id
    assert agree(again.tensors(), whole.tensors())
    assert agree(again.state(), whole.state())
    assert again.meta.quality == whole.meta.quality
    assert again.preview.read_bytes() == whole.preview.read_bytes()
    # And now it is done: the next time is from the start.
    public(me, OPTIONS, progress=(listener := Listener()))
    assert listener.steps == 6
    assert len(calls) == 1


@pytest.mark.parametrize(
    "change",
    [{"steps": 5}, {"seed": 1}, {"size": 300}, {"person": "3,4"}, {"restart": True}, "input", "weights"],
    ids=str,
)
@pytest.mark.reliability("1. Resume", "other inputs or options than those of the interrupted run", "never mixed")
def test_what_was_made_otherwise_is_not_used(me, known, states, change, tmp_path):
    calls, options = known(3), OPTIONS
    own = tmp_path / "own.safetensors"
    if change == "weights":
        weights.save_file(own, build("dance").state_dict(), "dance", {})
        options = replace(options, init=str(own))
    with pytest.raises(KeyboardInterrupt):
        public(me, options, progress=Interrupting(4))
    calls.clear()
    if change == "input":
        me.write_bytes(b"another film")
    elif change == "weights":  # of the same name
        weights.save_file(own, build("dance").state_dict(), "dance", {})
    else:
        options = replace(options, **change)
    public(me, options, progress=(listener := Listener()))
    assert len(calls) == 1
    assert listener.steps == options.steps
    assert not any(note.startswith("Going on") for note in listener.notes)


@pytest.mark.reliability("1. Resume", "what an interrupted run left is damaged", "made again; same avatar")
def test_damaged_leftovers_are_made_again(me, known, states):
    calls = known(3)
    whole = public(me, OPTIONS).opened()
    for name in ("references.safetensors", "fit-256.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            public(me, OPTIONS, progress=Interrupting(4))
        (file,) = (folders.cache_dir() / "work").glob(f"personalize-*/{name}")
        file.write_bytes(file.read_bytes()[:-100])
        calls.clear()
        again = public(me, OPTIONS, progress=(listener := Listener())).opened()
        assert (len(calls), listener.steps) == ((1, 3) if name.startswith("ref") else (0, 6))
        assert agree(again.state(), whole.state())
        assert agree(again.tensors(), whole.tensors())


@pytest.mark.reliability(
    "7. Concurrency", "personalize twice at once, same name and input", "the second is told, exit 6"
)
def test_the_same_while_it_is_being_made_is_told(me, known, puppet, monkeypatch):
    known(3)
    made = module.gather

    def gather(*args: Any) -> Any:
        monkeypatch.setattr(module, "gather", made)
        monkeypatch.setattr(module, "PATIENCE", 0.2)
        with pytest.raises(StorageError, match=r"unfinished work .* in use by another retarget for more than 0\.2 s"):
            public(me, OPTIONS)
        public(me, OPTIONS, name="other")  # another avatar is nobody's business
        return made(*args)

    monkeypatch.setattr(module, "gather", gather)
    assert public(me, OPTIONS).name == "me"
    assert avatar_names() == ["me", "other"]


def test_gathered_references_come_back_to_the_bit(puppet):
    gathered = puppet.gathered(*(puppet.body(*p) for p in POSES), details=True)
    windows = (gathered.track.select([0]), gathered.track.select([0, 1]), gathered.track.select([0, 1, 2]))
    for exact in (None, gathered.mattes * 0.5):
        before = replace(gathered, windows=windows, exact=exact, colour="bt709", fps=Fraction(24000, 1001))
        after = unpacked(packed(before))
        for name in ("frames", "mattes", "pictures"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert (after.exact is None) == (exact is None)
        for one, two in zip((*after.windows, after.track), (*windows, before.track), strict=True):
            assert (one.size, one.fps, one.missed) == (two.size, two.fps, two.missed)
            for name in ("body", "world", "face", "hands"):
                np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert (after.fps, after.picked, after.colour) == (before.fps, before.picked, before.colour)
        assert after.plate.motion == before.plate.motion
        assert agree(arrays(after), arrays(before))
