"""`personalize` on references that are known: what is written, what is refused, and that a failure leaves nothing."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from retarget import checkpoint, folders, lessons, weights
from retarget import personalize as public
from retarget.avatar import Avatar, avatar_names
from retarget.errors import DeviceError, InputError, StorageError, UsageError, VideoError, WeightsError
from retarget.lessons import adapt
from retarget.models import build
from retarget.models.dance import Dance
from retarget.personalize import PersonalizeOptions, check, expand, gather
from retarget.references import arrays, packed, unpacked
from retarget.types import Silent

module = importlib.import_module("retarget.personalize")  # the name is also the function's
POSES = [((25, 25), (25, 25)), ((90, 80), (30, 20)), ((20, 40), (150, 165))]


class Listener(Silent):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.steps = 0
        self.losses: list[float] = []

    def stage(self, title: str, total: int | None = None) -> None:
        self.stages.append(title)

    def advance(self, steps: int = 1, **figures: float) -> None:
        if "loss" in figures:
            self.steps += steps
            self.losses.append(figures["loss"])

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def me(tmp_path: Path) -> Path:
    path = tmp_path / "my clip.mp4"
    path.write_bytes(b"not looked into here")
    return path


@pytest.fixture
def known(puppet, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Any]]:
    """Replaces the gathering of references; returns how it was called."""

    def replace(count: int = 1) -> list[Any]:
        calls: list[Any] = []
        gathered = puppet.gathered(*(puppet.body(*p) for p in POSES[:count]), details=True)

        def gather(paths, options, progress):
            calls.append((paths, options))
            return gathered

        monkeypatch.setattr(module, "gather", gather)
        return calls

    return replace


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dance` with nets that are quickly fitted."""
    monkeypatch.setattr(Dance, "PRESETS", {"small": {"density": 24, "width": 8, "depth": 2}})


def nothing_left() -> bool:
    home = folders.avatars_dir()
    return not home.exists() or not list(home.iterdir())


# ------------------------------------------------------------------------------------------------ what is written


def test_the_papers_sizes_start_from_nothing_learned(me, known, monkeypatch):
    known(3)
    monkeypatch.setattr(Dance, "PRESETS", {**Dance.PRESETS, "paper": {"density": 24, "width": 16, "depth": 2}})
    avatar = public(me, steps=0, preset="paper", device="cpu")
    assert avatar.meta.config["width"] == 16
    assert avatar.meta.weights is None
    assert avatar.meta.options["preset"] == "paper"
    with pytest.raises(UsageError, match="no preset “huge”"):
        public(me, steps=0, preset="huge", device="cpu")


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


def test_with_fine_tuning(me, known):
    known(3)
    listener = Listener()
    avatar = public(me, PersonalizeOptions(steps=3, device="cpu"), name="tuned", progress=listener)
    assert avatar.name == "tuned"
    quality = avatar.meta.quality
    trusted = {"trust_matte", "trust_colour", "trust_shade"} if quality["best_step"] else set()
    assert set(quality) == {"fg_psnr", "fg_ssim", "fg_psnr_before", "fg_ssim_before", "best_step"} | trusted
    assert all(value is not None and math.isfinite(value) for value in quality.values())
    assert quality["fg_psnr"] >= quality["fg_psnr_before"] - 1e-3  # never worse than it began
    assert quality["fg_ssim"] >= quality["fg_ssim_before"] - 1e-3
    assert 0 <= quality["best_step"] <= 3
    assert listener.steps == 3
    assert all(math.isfinite(loss) for loss in listener.losses)
    assert "Fine-tuning" in listener.stages
    assert any("left-out frame" in note and "PSNR" in note for note in listener.notes)
    model = build("dance", avatar.meta.config)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in avatar.state().items()})


def test_nothing_learned_can_learn(me, known, monkeypatch):
    """From `random`, T steps move the nets, and it is tried what their answers are worth."""
    known(3)
    moved: list[bool] = []

    def watched(model: Any, *args: Any, **how: Any) -> Any:
        result = adapt(model, *args, **how | {"validate": None})  # the last step is kept, good or bad
        moved.append(not model.untrained)
        return result

    monkeypatch.setattr("retarget.lessons.adapt", watched)
    avatar = public(me, steps=3, device="cpu", init="random")
    assert moved == [True]
    assert avatar.meta.quality["trust_colour"] == avatar.state()["trust"][2]


@pytest.mark.parametrize("count", [1, 2])
def test_few_references_can_be_fine_tuned_with(me, known, count):
    known(count)
    avatar = public(me, steps=1, device="cpu")
    assert avatar.meta.frames == count
    assert avatar.meta.quality["fg_psnr"] >= avatar.meta.quality["fg_psnr_before"] - 0.02  # trust goes by the loss


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


# ------------------------------------------------------------------------------------------------ what it starts from


def trained(seed: int, **config: Any) -> Dance:
    """A model that has learnt something."""
    torch.manual_seed(seed)
    model = Dance(**{"density": 24, "width": 8, "depth": 2} | config)
    torch.nn.init.normal_(model.synthesis.last.weight, 0, 0.02)
    return model


def holds(avatar: Avatar, model: Dance) -> bool:
    """Whether the avatar's network is this one, as half precision keeps it; how far it is trusted is the person's."""
    state = avatar.state()
    return set(state) == set(model.state_dict()) and all(
        np.array_equal(state[k], t.half().float().numpy()) for k, t in model.state_dict().items() if k != "trust"
    )


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Dance]], None]:
    """Ships these models by the names that the manifest gives them; none until it is called."""
    folder = tmp_path / "shipped weights"
    folder.mkdir()

    def ship(models: Mapping[str, Dance]) -> None:
        lines = []
        for name, model in models.items():
            path = folder / f"{name}.safetensors"
            weights.save_file(path, model.state_dict(), "dance", {})
            lines.append(
                {"name": name, "kind": "model", "repo": None, "revision": None, "file": path.name,
                 "sha256": weights.sha256(path), "bytes": path.stat().st_size, "licence": "CC0-1.0", "corpus": "none",
                 "config": {"depth": len(model.synthesis.up) + 1}}
            )  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps({"schema": 1, "weights": lines}))
        weights._read_manifest.cache_clear()

    monkeypatch.setattr(weights, "_folder", lambda: folder)
    ship({})
    return ship


@pytest.mark.parametrize("steps", [0, 1])
def test_weights_of_a_training_run(me, known, tmp_path, steps):
    known()
    model, path = trained(0, depth=3, fusion=4), tmp_path / "run.safetensors"
    config = {"depth": 3, "fusion": 4}
    critics = model.objective(critics=True).state_dict()  # take part, but are no part of an avatar
    weights.save_file(path, model.state_dict() | critics, "dance", config)
    avatar = public(me, steps=steps, device="cpu", init=str(path))
    assert avatar.meta.weights == weights.sha256(path)
    assert avatar.meta.config == config
    assert avatar.meta.options["init"] == str(path)
    if steps == 0:
        assert holds(avatar, model)
    assert set(avatar.meta.quality) >= {"fg_psnr", "fg_psnr_before"}
    build("dance", avatar.meta.config).load_state_dict({k: torch.from_numpy(v) for k, v in avatar.state().items()})


@pytest.mark.parametrize(
    "critics", [{"critics.critics.0.steps.0.0.weight": torch.ones(2)}, {"critics.0": torch.ones(2)}]
)
def test_critics_that_do_not_fit(me, known, tmp_path, critics):
    known()
    weights.save_file(tmp_path / "run.safetensors", trained(0).state_dict() | critics, "dance", {})
    with pytest.raises(WeightsError, match="critics"):
        public(me, steps=1, device="cpu", init=str(tmp_path / "run.safetensors"))


def test_trained_critics_take_part_and_get_to_know_the_person(me, known, tmp_path, monkeypatch):
    """Those of the run, and `adopt` is called before the first step."""
    known()
    model, seen = trained(0), []
    objective = model.objective(critics=True)
    torch.nn.init.constant_(objective.critics.critics[0].steps[0][0].bias, 0.123)
    critics = {k: t for k, t in objective.state_dict().items() if k.startswith("critics.")}
    weights.save_file(tmp_path / "run.safetensors", model.state_dict() | critics, "dance", {})
    monkeypatch.setattr(
        type(objective), "adopt",
        lambda self, identity: seen.append((self.critics is not None, len(identity))), raising=False,
    )  # fmt: skip
    judged = type(objective).critic_loss

    def critic_loss(self, *args):
        if self.critics and len(seen) == 1:
            seen.append(self.critics.critics[0].steps[0][0].bias.detach().clone())
        return judged(self, *args)

    monkeypatch.setattr(type(objective), "critic_loss", critic_loss)
    public(me, steps=1, device="cpu", init=str(tmp_path / "run.safetensors"))
    assert seen[0] == (True, 1)
    assert torch.allclose(seen[1], torch.tensor(0.123), atol=1e-3)


def test_nets_that_are_wrong_about_a_person_are_not_trusted(me, known, tmp_path):
    """Whatever was trained, an avatar is no worse for it than one of nothing learned."""
    known(3)
    model, path = trained(0), tmp_path / "run.safetensors"
    torch.nn.init.normal_(model.synthesis.last.weight, 0, 2.0)
    weights.save_file(path, model.state_dict(), "dance", {})
    avatar = public(me, steps=0, device="cpu", init=str(path))
    trust = avatar.state()["trust"]
    assert trust.max() < 1
    assert [avatar.meta.quality[f"trust_{name}"] for name in ("matte", "colour", "shade")] == trust[1:4].tolist()
    plain = public(me, steps=1, device="cpu", init="random")  # before its step: nothing learned
    assert avatar.meta.quality["fg_psnr"] > plain.meta.quality["fg_psnr_before"] - 1.0


def test_trust_is_settled_before_the_steps_and_after_them(me, known, tmp_path, monkeypatch):
    """Always by pictures that were not learned from; and what was settled before is where it begins."""
    known(3)
    path, seen = tmp_path / "run.safetensors", []
    weights.save_file(path, trained(0).state_dict(), "dance", {})
    adapt, score = lessons.adapt, lessons.Lessons.score

    def adapted(model, *args, **kwargs):
        seen.append(model.trust.tolist())
        result = adapt(model, *args, **kwargs)
        seen.append(result.best_step > 0)
        return result

    def scored(self, objective, *, unseen=False):
        seen.append(unseen)
        return score(self, objective, unseen=unseen)

    settle, settled = Dance.settle, []

    def settling(self, score, known=None):
        settled.append((settle(self, score, known), known))
        return settled[-1][0]

    monkeypatch.setattr(lessons, "adapt", adapted)
    monkeypatch.setattr(lessons.Lessons, "score", scored)
    monkeypatch.setattr(Dance, "settle", settling)
    public(me, steps=2, device="cpu", init=str(path))
    (middle,) = (i for i, what in enumerate(seen) if isinstance(what, list))
    assert seen[middle] == [1] * 5
    assert set(seen[:middle]) == {False}
    assert set(seen[middle + 2 :]) == {seen[middle + 1]}
    (before, none), (after, found) = settled
    assert none is None
    assert found == before
    assert set(before) == set(after)
    seen.clear()
    public(me, steps=0, device="cpu", init=str(path))
    assert settled[2][1] == {}


def test_shipped_weights(me, known, shipped):
    known()
    models = {"dance": trained(1, depth=2), "dance-pretrain": trained(2, depth=3)}
    shipped(models)
    for init, name in (("meta", "dance"), ("pretrain", "dance-pretrain")):
        avatar = public(me, steps=0, device="cpu", init=init)
        assert holds(avatar, models[name])
        assert avatar.meta.weights == weights.entry(name).sha256
        assert avatar.meta.config == dict(weights.entry(name).config)
    assert holds(public(me, steps=0, device="cpu"), models["dance"])
    nothing = public(me, steps=0, device="cpu", init="random")
    assert nothing.state() == {}
    assert nothing.meta.weights is None


def test_without_shipped_weights_it_starts_from_nothing_learned(me, known, shipped):
    known()
    shipped({"dance": trained(1)})
    avatar = public(me, steps=0, device="cpu", init="pretrain")
    assert avatar.state() == {}
    assert avatar.meta.weights is None
    shipped({})
    assert public(me, steps=0, device="cpu", init="meta").state() == {}


def test_weights_that_cannot_be_started_from(me, known, tmp_path):
    known()
    state = trained(0).state_dict()
    wrong = tmp_path / "wrong.safetensors"
    weights.save_file(wrong, state, "dance", {"depth": 3})
    other, strange, junk = (tmp_path / f"{name}.safetensors" for name in ("other", "strange", "junk"))
    weights.save_file(other, state, "cyclegan", {})
    weights.save_file(strange, state, "dance", {"wdith": 3})
    junk.write_bytes(b"numbers, honestly")
    for path, error, message in (
        (wrong, WeightsError, "do not fit the model dance"),
        (other, UsageError, "of the model “cyclegan”"),
        (strange, UsageError, "wdith"),
        (junk, WeightsError, r"junk\.safetensors does not hold weights"),
        (tmp_path / "none.safetensors", InputError, r"no file .*none\.safetensors"),
    ):
        with pytest.raises(error, match=message) as e:
            public(me, steps=0, device="cpu", init=str(path))
        assert e.value.remedy
    assert nothing_left()


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
    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr(module, "COST", 1e9)
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
