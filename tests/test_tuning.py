"""`personalize`'s network: what it starts from, critics, trust, and that T steps make it no worse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from made_avatars import Listener, nothing_left

from retarget import lessons, weights
from retarget import personalize as public
from retarget.avatar import Avatar
from retarget.errors import InputError, UsageError, WeightsError
from retarget.lessons import adapt
from retarget.models import build
from retarget.models.dance import Dance
from retarget.personalize import PersonalizeOptions

pytestmark = pytest.mark.usefixtures("small_dance", "shipped")

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


def test_the_papers_sizes_start_from_nothing_learned(me, known, monkeypatch):
    known(3)
    monkeypatch.setattr(Dance, "PRESETS", {**Dance.PRESETS, "paper": {"density": 24, "width": 16, "depth": 2}})
    avatar = public(me, steps=0, preset="paper", device="cpu")
    assert avatar.meta.config["width"] == 16
    assert avatar.meta.weights is None
    assert avatar.meta.options["preset"] == "paper"
    with pytest.raises(UsageError, match="no preset “huge”"):
        public(me, steps=0, preset="huge", device="cpu")


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


# ------------------------------------------------------------------------------------------------ fine-tuning


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


def test_the_network_is_where_its_pictures_are_before_it_encodes_any(me, known, monkeypatch):
    """Some encode the references by convolutions."""
    known(2)
    moved: list[Any] = []
    to = Dance.to
    monkeypatch.setattr(Dance, "to", lambda self, *args, **how: moved.append(args) or to(self, *args, **how))
    encode = Dance.encode

    def encoded(self: Dance, references: Any) -> Any:
        assert (torch.device("cpu"),) in moved
        assert not self.training  # as it will draw
        return encode(self, references)

    monkeypatch.setattr(Dance, "encode", encoded)
    public(me, steps=1, device="cpu")
    assert moved
