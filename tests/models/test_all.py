"""What every model of `MODELS` has to do, so that all the rest can use it: on made-up people, in its small preset."""

from __future__ import annotations

import zlib
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from retarget import device
from retarget.lessons import Lessons, adapt
from retarget.models import MODELS, build
from retarget.models.base import Batch, Frame, Poses, References, RetargetModel, stacked
from retarget.references import arrays, poses, references
from retarget.training.fit import FitOptions

SIZE = (160, 128)
"""(height, width) of the puppet's pictures."""
POSES = ({}, {"left": (90, 80), "right": (30, 20), "at": (60, 78)}, {"right": (150, 165), "at": (67, 75)})


@pytest.fixture(params=list(MODELS))
def name(request) -> str:
    return str(request.param)


@pytest.fixture
def model(name) -> RetargetModel:
    """With fresh weights."""
    torch.manual_seed(zlib.crc32(name.encode()))
    return build(name).eval()


@pytest.fixture
def taught(model) -> RetargetModel:
    """None of its layers says nothing, as those do that begin at zero."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.02)
    return model


@pytest.fixture(scope="module")
def gathered(puppet) -> Any:
    return puppet.gathered(*(puppet.body(**p) for p in POSES), details=True)


@pytest.fixture(scope="module")
def known(gathered) -> References:
    return references(arrays(gathered))


@pytest.fixture
def window(puppet):
    """Poses → a window of them."""

    def made(*poses_: dict[str, Any]) -> Poses:
        return poses(puppet.track(*(puppet.body(**p) for p in poses_), details=True))

    return made


def draw(model: RetargetModel, windows: Poses, identity: Any, size: tuple[int, int] = SIZE) -> Frame:
    with torch.inference_mode():
        frame: Frame = model(model.condition(windows, size), identity, None)[0]
    return frame


def tensors(item: Any) -> list[Tensor]:
    """All that are in tuples of tuples of tensors."""
    if isinstance(item, Tensor):
        return [item]
    return [t for part in item for t in tensors(part)] if isinstance(item, tuple) else []


def alike(a: Any, b: Any) -> bool:
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)


# ------------------------------------------------------------------------------------------------ sizes


def test_a_configuration_is_complete(name, model):
    config = asdict(model.config)
    assert build(name, config).config == model.config
    for preset in model.PRESETS:
        with torch.device("meta"):
            complete = asdict(build(name, preset=preset).config)
            assert asdict(build(name, complete).config) == complete


def test_the_small_preset_is_small(model):
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000


# ------------------------------------------------------------------------------------------------ drawing


@pytest.mark.parametrize("size", [SIZE, (93, 71), (200, 150)])
def test_pictures_of_any_size(taught, known, window, size):
    frame = draw(taught, window(POSES[1]), taught.encode(known), size)
    assert frame.rgb.shape == (1, 3, *size)
    assert frame.matte is not None
    assert frame.matte.shape == (1, 1, *size)
    assert frame.rgb.dtype == frame.matte.dtype == torch.float32
    assert frame.rgb.isfinite().all()
    assert frame.rgb.abs().max() <= 1 + 1e-5
    assert frame.rgb.std() > 0.01
    assert -1e-6 <= frame.matte.min() <= frame.matte.max() <= 1 + 1e-6


@pytest.mark.parametrize("lost", ["everything", "the body", "an arm", "the legs", "face and hands"])
def test_what_was_not_found_spoils_no_pixel(taught, known, window, lost):
    pose = window(POSES[1])
    joints = {"an arm": [13, 15, 17, 19, 21], "the legs": list(range(23, 33))}.get(lost, list(range(33)))
    if lost != "face and hands":
        pose.body[:, :, joints] = torch.nan
    if lost in ("everything", "face and hands"):
        pose.face[:], pose.hands[:] = torch.nan, torch.nan
    identity = taught.encode(known)
    with torch.inference_mode():
        before, state = taught(taught.condition(window(POSES[0]), SIZE), identity, None)
        frame, state = taught(taught.condition(pose, SIZE), identity, state)
        after, _ = taught(taught.condition(window(POSES[0]), SIZE), identity, state)
    for f in (before, frame, after):
        assert f.rgb.isfinite().all()
        assert f.matte.isfinite().all()


def test_pictures_of_a_batch_know_nothing_of_each_other(model, known, window):
    windows = [window(POSES[1]), window(POSES[2])]
    both = Poses(*(torch.cat(t) for t in list(zip(*windows, strict=True))[:3]), windows[0].picture)
    identity = model.encode(known)
    together = draw(model, both, identity)
    for n, alone in enumerate(windows):
        frame = draw(model, alone, identity)
        torch.testing.assert_close(together.rgb[n : n + 1], frame.rgb, atol=2e-3, rtol=0)
        torch.testing.assert_close(together.matte[n : n + 1], frame.matte, atol=2e-3, rtol=0)


def test_a_clip_comes_out_the_same_again_and_its_state_fits_into_a_file(taught, known, window):
    identity = taught.encode(known)

    def clip(through_files: bool) -> list[Tensor]:
        state, condition, frames = None, None, []
        with torch.inference_mode():
            for pose in (*POSES, POSES[0]):
                condition = taught.condition(window(pose), SIZE, condition)
                frame, state = taught(condition, identity, state)
                frames.append(frame.rgb.clone())
                if through_files:
                    packed = taught.packed(state)
                    assert all(t.is_contiguous() or t.contiguous().shape == t.shape for t in packed.values())
                    state = taught.unpacked(packed)
        return frames

    first = clip(False)
    for a, b in zip(first, clip(False), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first, clip(True), strict=True):
        assert torch.equal(a, b)


def test_the_condition_before_spares_the_poses_of_the_window(model, window):
    whole = model.condition(window(POSES[0], POSES[1]), SIZE)
    in_turn = model.condition(window(POSES[1]), SIZE, model.condition(window(POSES[0]), SIZE))
    assert whole.maps.shape[:2] == (1, model.maps)
    assert whole.maps.dtype == torch.float32
    assert torch.equal(whole.maps, in_turn.maps)
    other = model.condition(window(POSES[2] | {"turn": 10}), SIZE)  # the head moves, too
    assert other.maps.shape != whole.maps.shape or not torch.equal(other.maps, whole.maps)


def test_bf16(taught, known, window):
    identity = taught.encode(known)
    exact = draw(taught, window(POSES[1]), identity)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frame = draw(taught, window(POSES[1]), identity)
    assert frame.rgb.isfinite().all()
    assert (frame.rgb.float() - exact.rgb).abs().mean() < 0.05
    assert (frame.matte.float() - exact.matte).abs().mean() < 0.05


def test_the_same_person_before_another_scene(model, known, window):
    identity = model.encode(known)
    drawn = {}
    for colour in (-1.0, 0.5):
        plate = torch.full((1, 3, 8, 8), colour)
        frame = draw(model, window(POSES[1]), model.before(identity, plate))
        scene = frame.matte[0, 0] < 1e-3
        drawn[colour] = frame
        if scene.any():
            assert (frame.rgb[0][:, scene] - colour).abs().max() < 0.05
    # Light is added up: what the scene shows through is what the matte leaves of it.
    a, b = drawn[-1.0], drawn[0.5]
    torch.testing.assert_close(a.matte, b.matte, atol=1e-4, rtol=0)
    seen = (b.rgb - a.rgb).mean(1, keepdim=True)
    assert (seen - 1.5 * (1 - a.matte)).abs().mean() < 0.05
    assert alike(draw(model, window(POSES[1]), identity)[:2], draw(model, window(POSES[1]), model.encode(known))[:2])


# ------------------------------------------------------------------------------------------------ learning


@pytest.fixture
def lessons(taught, gathered) -> Lessons:
    return Lessons(taught, arrays(gathered), gathered, 64, device.choose("cpu", "fp32"), seed=0)


def begun(model: RetargetModel, identity: Any, *, critics: bool = False):
    """As `personalize` begins."""
    objective = model.objective(critics=critics)
    model.adopt(identity)
    objective.adopt(identity)
    return objective


def test_what_is_drawn_ahead_can_be_kept(taught, lessons):
    for group in lessons.pairs:
        for pair in group:
            if taught.Ahead is None:
                continue
            assert isinstance(pair.condition, taught.Ahead)
            assert pair.identity is None
            assert all(isinstance(t, Tensor) for t in pair.condition)
            for t in pair.condition:
                if t.dim() > 3:
                    assert -1e-6 <= t.min() <= t.max() <= 1 + 1e-6
            with torch.inference_mode():
                frame, _ = taught(pair.condition, pair.identity, None)
            assert frame.rgb.shape == pair.truth.rgb.shape
            assert frame.matte.shape == pair.truth.matte.shape


def test_pairs_in_variation(taught, lessons):
    pair = lessons.pairs[0][0]
    one, same = (taught.varied(pair, torch.Generator().manual_seed(3)) for _ in range(2))
    assert alike((one.condition, one.truth), (same.condition, same.truth))
    for seed in range(6):
        varied = taught.varied(pair, torch.Generator().manual_seed(seed))
        for a, b in zip(tensors((varied.condition, varied.truth)), tensors((pair.condition, pair.truth)), strict=True):
            assert a.shape == b.shape
        assert varied.truth.rgb.abs().max() <= 1 + 1e-5
        with torch.inference_mode():
            assert taught(varied.condition, varied.identity, None)[0].rgb.isfinite().all()


@pytest.mark.parametrize("critics", [False, True])
def test_gradients_go_where_they_belong(taught, lessons, critics):
    objective = begun(taught, lessons.identity, critics=critics)
    batch = stacked([group[0] for group in lessons.pairs])
    taught.train()
    frame, _ = taught(batch.condition, batch.identity, None)
    terms = objective.generator_loss(frame, batch.truth, batch.condition)
    assert terms
    assert all(t.dim() == 0 and t.isfinite() for t in terms.values())
    sum(terms.values()).backward()
    moving = list(taught.tunable(lessons.identity))
    assert moving
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moving)  # nothing is there for nothing
    own = objective.critic_parameters()
    assert bool(own) == bool(objective.critic_loss(frame, batch.truth, batch.condition))
    if own:
        for p in (*moving, *own):
            p.grad = None
        sum(objective.critic_loss(frame, batch.truth, batch.condition).values()).backward()
        assert all(p.grad is None or not p.grad.any() for p in moving)
        assert sum(float(p.grad.abs().sum()) for p in own if p.grad is not None) > 0


def loss_of(model: RetargetModel, objective: Any, pair: Batch) -> float:
    with torch.inference_mode():
        frame, _ = model.eval()(pair.condition, pair.identity, None)
        return float(sum(objective.generator_loss(frame, pair.truth, pair.condition).values()))


def test_one_pair_can_be_learned_by_heart(taught, lessons):
    objective = begun(taught, lessons.identity)
    pair = lessons.pairs[0][0]
    before = loss_of(taught, objective, pair)
    how = FitOptions(steps=25, rate=2e-3, batch=1)
    adapt(taught, objective, [[pair]], how, lessons.compute, parameters=taught.tunable(lessons.identity))
    assert loss_of(taught, objective, pair) < 0.9 * before


def test_fine_tuning_moves_what_is_tunable_only(taught, lessons):
    objective = begun(taught, lessons.identity)
    moving = {id(p) for p in taught.tunable(lessons.identity)}
    before = {key: p.detach().clone() for key, p in taught.named_parameters()}
    assert moving <= {id(p) for p in taught.parameters()}
    adapt(
        taught, objective, lessons.pairs, FitOptions(steps=2, rate=1e-2, batch=2), lessons.compute,
        parameters=taught.tunable(lessons.identity), validate=None,
    )  # fmt: skip
    changed = {key for key, p in taught.named_parameters() if not torch.equal(p, before[key])}
    assert changed
    assert changed <= {key for key, p in taught.named_parameters() if id(p) in moving}
