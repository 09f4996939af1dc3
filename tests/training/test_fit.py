from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from retarget.errors import OutOfMemory
from retarget.models.base import Batch, Frame, Objective, RetargetModel
from retarget.training.fit import FitOptions, FitState, fit, rate_at

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cpu:
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def autocast(self):
        return nullcontext() if self.dtype == torch.float32 else torch.autocast("cpu", self.dtype)

    def scaler(self):
        return torch.amp.GradScaler("cpu", enabled=self.dtype == torch.float16)


class Linear(RetargetModel):
    """Multiplies the condition, a picture, by a 1×1 convolution; counts its calls in a buffer."""

    maps = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.mix = nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 3, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.dtypes: list[torch.dtype] = []

    def condition(self, poses, size):
        raise NotImplementedError

    def before(self, identity, plate):
        return identity

    def encode(self, references):
        raise NotImplementedError

    def forward(self, condition, identity, state):
        if self.training:
            self.calls += 1
        rgb = self.mix(condition) + self.other(condition).detach()
        self.dtypes.append(rgb.dtype)
        return Frame(rgb * identity), state

    def objective(self, *, critics=True, vgg=None):
        raise NotImplementedError

    def tunable(self, identity):
        return self.mix.parameters()


class Squares(Objective):
    def generator_loss(self, frame, truth, condition):
        return {"squares": (frame.rgb.float() - truth.rgb).square().mean()}

    def critic_loss(self, frame, truth, condition):
        return {}


class Game(Squares):
    """A critic that learns to tell, and a generator that minds it a little."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.critic = nn.Conv2d(3, 1, 3)
        self.frozen_seen: list[bool] = []

    def critic_parameters(self):
        return list(self.critic.parameters())

    def generator_loss(self, frame, truth, condition):
        self.frozen_seen.append(not self.critic.weight.requires_grad)
        told = {"fooled": 0.01 * self.critic(frame.rgb.float()).mean()}
        return super().generator_loss(frame, truth, condition) | told

    def critic_loss(self, frame, truth, condition):
        assert not frame.rgb.requires_grad
        return {"told": (self.critic(truth.rgb) - 1).square().mean() + self.critic(frame.rgb.float()).square().mean()}


def test_critics_make_their_own_steps_at_their_own_rate():
    class Keen(Game):
        critic_steps = 3
        critic_rate = 2.0

        def critic_loss(self, frame, truth, condition):
            told.append(self)
            return super().critic_loss(frame, truth, condition)

    told: list[Keen] = []

    def moved(game):
        model, start = Linear(), game.critic.weight.detach().clone()
        options = FitOptions(1, 1e-3, 4, decay=0)
        fit(model, game, batches(), parameters=model.mix.parameters(), compute=Cpu(), options=options)
        return float((game.critic.weight.detach() - start).abs().max())

    # The first steps of Adam are as long as the rate.
    assert moved(Game()) == pytest.approx(1e-3, rel=0.01)
    assert moved(Keen()) == pytest.approx(3 * 2e-3, rel=0.05)
    assert len(told) == 3


def batches():
    """Endless pairs from torch's random numbers: the truth swaps the colours of the condition."""
    while True:
        x = torch.randn(4, 3, 6, 5)
        yield Batch(x, 1.0, None, Frame(x.flip(1)))


def poisoned(at: set[int]):
    for i, batch in enumerate(batches(), 1):
        yield batch._replace(identity=torch.nan) if i in at else batch


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def run(model, objective=None, source=None, compute=None, **changes):
    extra = {k: changes.pop(k) for k in ("validate", "on_step", "checkpoint", "resume", "share") if k in changes}
    options = replace(FitOptions(steps=20, rate=0.05, validate_every=5), **changes)
    return fit(
        model,
        objective or Squares(),
        source or batches(),
        parameters=model.tunable(None),
        compute=compute or Cpu(),
        options=options,
        **extra,
    )


def distance(model: Linear) -> float:
    x = torch.linspace(-1, 1, 90).view(1, 3, 6, 5)
    return (model(x, 1.0, None)[0].rgb - x.flip(1)).square().mean().item()


def test_rate():
    options = FitOptions(steps=8, rate=1.0, decay=0.5)
    assert [rate_at(s, options) for s in range(8)] == pytest.approx([1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert [rate_at(s, replace(options, decay=0.0)) for s in (0, 7)] == [1, 1]
    assert [rate_at(s, replace(options, steps=3, decay=1.0)) for s in range(3)] == pytest.approx([0.75, 0.5, 0.25])
    assert rate_at(0, FitOptions()) == 2e-4


def test_a_linear_model_learns():
    model = Linear()
    told = []
    result = run(model, steps=150, validate=lambda: distance(model), on_step=lambda n, f: told.append((n, f)))
    assert result.steps == 150
    assert result.best_score < 0.02 * result.first_score
    assert result.best_score == pytest.approx(distance(model))
    assert result.notes == ()
    assert [n for n, _ in told] == list(range(1, 151))
    assert set(told[0][1]) == {"loss", "squares", "rate"}
    assert told[0][1]["rate"] == 0.05
    assert told[0][1]["loss"] == pytest.approx(told[0][1]["squares"])
    assert [n for n, f in told if "score" in f] == list(range(5, 151, 5))


def test_only_the_chosen_parameters_move():
    model = Linear()
    before = weights(model)
    run(model)
    assert same({k: v for k, v in before.items() if "other" in k}, weights(model))
    assert not torch.equal(before["mix.weight"], model.mix.weight)
    assert model.other.weight.requires_grad
    assert model.other.weight.grad is None


def test_the_best_step_is_kept():
    model, seen = Linear(), {}
    scores = iter([3.0, 2.0, 1.0, 2.0, 5.0])

    def validate():
        assert not model.training
        assert not torch.is_grad_enabled()
        score = next(scores)
        seen[score] = weights(model)
        return score

    model.eval()
    result = run(model, validate=validate)
    assert (result.best_step, result.best_score, result.first_score) == (10, 1.0, 3.0)
    assert same(seen[1.0], weights(model))
    assert not model.training


@pytest.mark.parametrize("later", [4.0, float("nan")])
def test_it_never_ends_worse_than_it_began(later):
    model = Linear()
    before = weights(model)
    scores = iter([3.0])
    result = run(model, validate=lambda: next(scores, later))
    assert (result.best_step, result.best_score) == (0, 3.0)
    assert same(before, weights(model))


def test_a_start_that_cannot_be_scored_loses_to_anything():
    scores = iter([float("nan"), 7.0])
    result = run(Linear(), validate=lambda: next(scores, 8.0))
    assert (result.best_step, result.best_score, result.first_score) == (5, 7.0, None)


def test_without_any_score_it_stays_as_it_was():
    model = Linear()
    before = weights(model)
    result = run(model, validate=lambda: float("inf"))
    assert (result.best_step, result.best_score, result.first_score) == (0, None, None)
    assert same(before, weights(model))


def test_without_validation_the_last_step_counts():
    model, last = Linear(), {}
    result = run(model, on_step=lambda n, f: last.update(weights(model)))
    assert (result.best_step, result.first_score, result.best_score) == (20, None, None)
    assert same(last, weights(model))


def test_batches_may_end_early():
    model = Linear()
    result = run(model, source=islice(batches(), 7), validate=lambda: distance(model))
    assert (result.steps, result.best_step) == (7, 7)


def test_the_seed_decides_and_the_callers_random_numbers_stay():
    a, b, c = Linear(), Linear(), Linear()
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    run(a)
    assert torch.rand(1) == want
    run(b)
    run(c, seed=1)
    assert same(weights(a), weights(b))
    assert not torch.equal(a.mix.weight, c.mix.weight)


def test_a_step_that_is_not_finite_is_discarded():
    model, seen = Linear(), []
    result = run(model, source=poisoned({4}), on_step=lambda n, f: seen.append(model.mix.weight.clone()))
    assert torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[4], seen[3])
    assert all(s.isfinite().all() for s in seen)
    assert result.steps == 20
    assert len(result.notes) == 1
    assert "Step 4" in result.notes[0]
    assert "fp32" not in result.notes[0]


def test_an_infinite_gradient_is_discarded_too():
    class Root(Squares):
        def generator_loss(self, frame, truth, condition):  # finite, but its slope at 0 is not
            return {"root": (frame.rgb * 0).abs().sum().sqrt() + frame.rgb.mean()}

    model = Linear()
    before = weights(model)
    result = run(model, Root(), patience=3)
    assert result.steps == 3
    assert torch.equal(before["mix.weight"], model.mix.weight)


class Overflowing(Linear):
    """Its third picture is too large for low precision."""

    def forward(self, condition, identity, state):
        frame, state = super().forward(condition, identity, state)
        low = frame.rgb.dtype != torch.float32
        return (Frame(frame.rgb * torch.inf) if low and len(self.dtypes) == 3 else frame), state


@pytest.mark.reliability(
    "5. Out of memory and NaN", "a step in bf16 is not finite", "the same step again in fp32, said"
)
def test_reduced_precision_goes_on_in_fp32():
    model, seen = Overflowing(), []
    result = run(
        model, compute=Cpu(dtype=torch.bfloat16), on_step=lambda n, f: seen.append(model.mix.weight.detach().clone())
    )
    assert model.dtypes == [torch.bfloat16] * 3 + [torch.float32] * 18
    assert result.notes == ("Step 3 was not finite: it was made again, and the rest, in fp32.",)
    assert not torch.equal(seen[2], seen[1])


@pytest.mark.reliability("5. Out of memory and NaN", "a step in fp32 is not finite", "discarded; nothing moves")
@pytest.mark.reliability(
    "5. Out of memory and NaN", "steps in a row in fp32 are not finite", "from the best step at half the rate"
)
def test_a_state_that_leads_nowhere_is_left_for_the_best_one():
    model, seen, rates = Linear(), [], []
    scores = iter([3.0, 1.0])

    def on_step(n, figures):
        seen.append(weights(model))
        rates.append(figures["rate"])

    result = run(model, source=poisoned({8, 9}), validate=lambda: next(scores, 2.0), on_step=on_step, decay=0.0)
    assert torch.equal(seen[7]["mix.weight"], seen[6]["mix.weight"])
    assert torch.equal(seen[8]["mix.weight"], seen[4]["mix.weight"])
    assert not torch.equal(seen[9]["mix.weight"], seen[8]["mix.weight"])
    assert rates == [0.05] * 9 + [0.025] * 11
    assert result.best_step == 5
    assert result.notes[1:] == (
        "Step 9: the loss or its gradient was not finite; it was discarded, going on at half the learning rate"
        " from step 5.",
    )


# ---------------------------------------------------------------------------------------------------- out of memory


def memory_for(count: int, of=torch.OutOfMemoryError):
    """A model whose forward pass has memory for `count` pictures."""

    class Small(Linear):
        seen: list[int]  # sizes of the batches

        def forward(self, condition, identity, state):
            self.seen = [*getattr(self, "seen", []), len(condition)]
            if len(condition) > count:
                raise of("can't allocate memory: you tried to allocate")
            return super().forward(condition, identity, state)

    return Small()


@pytest.mark.reliability("5. Out of memory and NaN", "fine-tuning step", "the batch in halves, quarters; said")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_that_does_not_fit_goes_through_in_pieces(count, error):
    whole, game = Linear(), Game()
    figures, less_figures = [], []
    run(whole, game, on_step=lambda n, f: figures.append(f))
    model, other = memory_for(count, error), Game()
    result = run(model, other, on_step=lambda n, f: less_figures.append(f))
    pieces = 4 if count == 1 else 2
    assert model.seen == ([4, 2] if count == 1 else [4]) + [4 // pieces] * pieces * 20
    said = [f"Memory ran out while learning: going on with the batch in {n} pieces." for n in (2, 4)]
    assert list(result.notes) == said[: pieces // 2]
    # Gradients are added up: the same steps but for rounding.
    for a, b in ((whole, model), (game, other)):
        for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
            assert torch.allclose(x, y, atol=2e-5), name
    assert less_figures[-1] == pytest.approx(figures[-1], rel=1e-4, abs=1e-6)


@pytest.mark.reliability("5. Out of memory and NaN", "fine-tuning step, no memory for one pair", "DeviceError")
def test_not_even_one_pair_fits():
    model = memory_for(0)
    before = weights(model)
    with pytest.raises(OutOfMemory, match="Memory ran out while learning"):
        run(model)
    assert model.seen == [4, 2, 1, 1]
    assert same(before, weights(model))


def test_a_resumed_fit_remembers_its_pieces():
    saved = {}
    model = memory_for(2)
    run(model, checkpoint=lambda s: saved.update(s.state_dict()) if s.step == 7 else None)
    again = memory_for(2)
    result = run(again, resume=saved)
    assert again.seen == [2] * 26
    assert len(result.notes) == 1
    assert same(weights(model), weights(again))


def test_the_scaler_may_lower_its_scale_first():
    class Huge(Squares):
        def generator_loss(self, frame, truth, condition):
            return {"huge": 1e10 * super().generator_loss(frame, truth, condition)["squares"]}

    @dataclass(frozen=True)
    class Scaled(Cpu):
        def scaler(self):
            return torch.amp.GradScaler("cpu", init_scale=2.0**100)

    model = Linear()
    seen = [weights(model)]
    result = run(model, Huge(), compute=Scaled(), on_step=lambda n, f: seen.append(weights(model)))
    assert result.notes == ()
    skipped = [torch.equal(a["mix.weight"], b["mix.weight"]) for a, b in pairwise(seen)]
    assert skipped[:5] == [True] * 5
    assert not any(skipped[-5:])


# ------------------------------------------------------------------------------------------------ several processes


def test_gradients_are_shared_before_anything_is_made_of_them():
    """As if another process had the opposite gradients half of the time: nothing moves then."""
    model, seen = Linear(), []

    def share(gradients):
        seen.append([tuple(g.shape) for g in gradients])
        if len(seen) % 2:
            for g in gradients:
                g.zero_()

    moves = [weights(model)]
    run(model, steps=2, betas=(0.0, 0.0), share=share, on_step=lambda n, f: moves.append(weights(model)))
    assert seen == [[tuple(p.shape) for p in model.mix.parameters()]] * 2
    assert same(moves[0], moves[1] | {"calls": moves[0]["calls"]})
    assert not torch.equal(moves[1]["mix.weight"], moves[2]["mix.weight"])


@pytest.mark.parametrize("own", [False, True])
def test_what_is_not_finite_elsewhere_is_discarded_here(own):
    """All processes must judge alike: also the one whose own loss is finite, and the one whose loss is not must ask."""
    model, seen, asked = Linear(), [], []

    def share(gradients):
        asked.append(all(g.isfinite().all() for g in gradients))
        if len(asked) == 4:
            for g in gradients:
                g += torch.nan

    source = poisoned({4}) if own else batches()
    result = run(model, source=source, share=share, on_step=lambda n, f: seen.append(model.mix.weight.clone()))
    assert len(asked) == 20
    assert asked[3] != own
    assert torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[4], seen[3])
    assert result.notes == ("Step 4: the loss or its gradient was not finite; it was discarded.",)


def test_scalers_of_all_processes_stay_alike():
    @dataclass(frozen=True)
    class Scaled(Cpu):
        def scaler(self):
            return torch.amp.GradScaler("cpu", init_scale=2.0**10)

    model, asked, states = Linear(), [], []

    def share(gradients):
        asked.append(None)
        if len(asked) == 4:  # another one's are too large
            for g in gradients:
                g += torch.inf

    run(
        model, compute=Scaled(), share=share, on_step=lambda n, f: states.append(weights(model)),
        checkpoint=lambda s: states[-1].update(scale=s.generator.scaler.get_scale()),
    )  # fmt: skip
    assert all(s["mix.weight"].isfinite().all() for s in states)
    assert torch.equal(states[3]["mix.weight"], states[2]["mix.weight"])
    assert [s["scale"] for s in states[2:4]] == [2**10, 2**9]


@pytest.mark.reliability("5. Out of memory and NaN", "no step in fp32 is finite any more", "ends with the best so far")
def test_several_in_a_row_stop_with_the_best_so_far():
    model, seen = Linear(), []
    scores = iter([3.0, 1.0, 2.0, 2.0])
    result = run(
        model,
        source=poisoned(set(range(8, 99))),
        patience=4,
        validate=lambda: next(scores),
        on_step=lambda n, f: seen.append(weights(model)),
    )
    assert (result.steps, result.best_step) == (11, 5)
    assert result.notes[-1] == "Stopped at step 11 of 20: no step was finite any more."
    assert len(result.notes) == 5
    assert same(seen[4], weights(model))


def test_what_stopped_stays_stopped_when_it_is_resumed():
    model, states = Linear(), []
    how = {"patience": 4, "validate": lambda: 1.0}
    first = run(model, source=poisoned(set(range(8, 99))), checkpoint=lambda s: states.append(s.state_dict()), **how)
    assert states[-1]["step"] == first.steps == 11
    again = Linear()
    result = run(again, source=iter(()), resume=states[-1], **how)
    assert (result.steps, result.best_step) == (11, 0)
    assert result.notes == first.notes
    assert same(weights(again), weights(model))


def test_the_critics_take_turns():
    model, game, told = Linear(), Game(), []
    before = game.critic.weight.clone()
    run(model, game, on_step=lambda n, f: told.append(f))
    assert set(told[0]) == {"loss", "squares", "fooled", "told", "rate"}
    assert told[-1]["told"] < told[0]["told"]
    assert told[0]["loss"] == pytest.approx(told[0]["squares"] + told[0]["fooled"])
    assert all(game.frozen_seen)
    assert game.critic.weight.requires_grad
    assert not torch.equal(before, game.critic.weight)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [1, 7, 10, 13])
def test_interrupted_and_resumed_is_the_same_as_uninterrupted(at, dtype):
    compute = Cpu(dtype=dtype)

    def make():
        model, game = Linear(), Game()
        # A validation that uses random numbers and prefers some step in the middle.
        return model, game, lambda: abs(model.calls.item() - 11) + torch.rand(()).item()

    model, game, validate = make()
    whole = run(model, game, poisoned({5}), compute, validate=validate)

    first, first_game, first_validate = make()
    saved: dict = {}

    def checkpoint(state: FitState) -> None:
        if state.step == at:
            saved.update(state.state_dict())
            raise Interrupted

    with pytest.raises(Interrupted):
        run(first, first_game, poisoned({5}), compute, validate=first_validate, checkpoint=checkpoint)

    # Through safetensors and JSON, into new objects.
    tensors = load(save({k: v for k, v in saved.items() if isinstance(v, torch.Tensor)}))
    rest = json.loads(json.dumps({k: v for k, v in saved.items() if not isinstance(v, torch.Tensor)}, allow_nan=False))
    again, again_game, again_validate = make()
    torch.manual_seed(99)
    source = poisoned({5 - at})  # its random numbers go on where they were
    resumed = run(again, again_game, source, compute, validate=again_validate, resume=tensors | rest)

    assert resumed == whole
    assert len(whole.notes) == (1 if dtype == torch.float32 else 2)
    assert same(weights(model), weights(again))
    assert same(weights(game), weights(again_game))


def test_a_saved_state_does_not_change_any_more():
    model, saved = Linear(), []
    run(model, checkpoint=lambda state: saved.append(state.state_dict()))
    assert not torch.equal(saved[0]["generator.moving.0"], saved[1]["generator.moving.0"])
    assert [s["step"] for s in saved] == list(range(1, 21))
    assert all(t.is_contiguous() for t in saved[0].values() if isinstance(t, torch.Tensor))
