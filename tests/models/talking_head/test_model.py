"""Persons with few or many pictures, what is drawn of them, in any size, and adopting one."""

from __future__ import annotations

import pytest
import torch

from retarget.models import build
from retarget.models.base import Frame, Poses, stacked
from retarget.models.talking_head import UNKNOWN
from retarget.training.fit import FitOptions, fit

from .conftest import CPU, TINY, pair, poses, references, tiny

# ------------------------------------------------------------------------------------------------ Eqs. 1 and 2


def test_an_embedding_is_the_mean_over_the_pictures():
    model = tiny()
    known = references(3)
    identity = model.encode(known)
    alone = [
        model.encode(known._replace(rgb=known.rgb[:, [k]], matte=known.matte[:, [k]], poses=Poses(
            *(t[:, [k]] for t in known.poses[:3]), known.poses.picture)))
        for k in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(identity.embedding, torch.stack([i.embedding for i in alone]).mean(0))
    assert not torch.allclose(alone[0].embedding, alone[1].embedding)


def test_persons_with_different_numbers_of_pictures_in_one_batch():
    model = tiny()
    pairs = [pair(model, count=k, seed=k) for k in (1, 3, 2)]
    with torch.no_grad():
        frame, _ = model(*stacked(pairs)[:3])
        for b, p in enumerate(pairs):
            alone, _ = model(*p[:3])
            torch.testing.assert_close(frame.rgb[b], alone.rgb[0])
            k = int(p.condition.shots)
            torch.testing.assert_close(frame.extra.each[b, :k], alone.extra.each[0])
    assert frame.extra.there.sum(1).tolist() == [1, 3, 2]


def test_training_asks_the_embedder_and_gives_it_gradients():
    model = tiny().train()
    batch = pair(model)
    frame, _ = model(*batch[:3])
    frame.rgb.square().mean().backward()
    for module in (model.embedder, model.projection, model.generator):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert model.own.grad is None


def test_what_is_drawn_is_what_was_trained():
    """`ahead` and the way of `drive` agree, where no size changes."""
    model = tiny()
    size = (40, 32)
    known = references(2)
    identity = model.encode(known)
    condition = model.condition(poses(seed=1), size)
    assert condition.maps.shape == (1, 3, 40, 32)
    with torch.no_grad():
        straight, state = model(condition, identity, None)
        ahead, _, _ = model.ahead(condition, identity, Frame(known.rgb[:, 0], known.matte[:, 0]))
        trained, _ = model(ahead, None, None)
    torch.testing.assert_close(straight.rgb, trained.rgb)
    assert state is None


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("size", [(32, 32), (90, 60), (33, 71), (20, 20)])
def test_any_size(size):
    model = tiny()
    identity = model.encode(references(2, size))
    with torch.inference_mode():
        frame, _ = model(model.condition(poses(size=size), size), identity, None)
    assert frame.rgb.shape == (1, 3, *size)
    assert frame.matte.shape == (1, 1, *size)
    assert frame.rgb.abs().max() <= 1
    assert 0 <= frame.matte.min() <= frame.matte.max() <= 1


def test_the_head_stands_before_the_plate():
    model = tiny()
    known = references(2)
    identity = model.encode(known)
    condition = model.condition(poses(), (40, 32))
    dark, bright = (model.before(identity, torch.full((1, 3, 40, 32), v)) for v in (-1.0, 1.0))
    with torch.no_grad():
        frames = [model(condition, i, None)[0] for i in (dark, bright)]
    torch.testing.assert_close(frames[0].matte, frames[1].matte)
    difference = (frames[1].rgb - frames[0].rgb) / 2
    torch.testing.assert_close(difference, (1 - frames[0].matte).expand_as(difference))


def test_a_face_that_was_not_found():
    model = tiny()
    lost = poses()._replace(face=torch.full((1, 1, 468, 3), torch.nan))
    condition = model.condition(lost, (40, 32))
    assert not condition.maps.any()
    known = references(2)
    known.poses.face[:, 1] = torch.nan
    with torch.no_grad():
        frame, _ = model(condition, model.encode(known), None)
    assert frame.rgb.isfinite().all()


def test_autocast_and_repetition():
    model = tiny()
    known = references(2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        identity = model.encode(known)
        condition = model.condition(poses(), (40, 32))
        first, second = (model(condition, identity, None)[0] for _ in range(2))
    assert first.rgb.isfinite().all()
    assert torch.equal(first.rgb, second.rgb)
    with torch.inference_mode():
        exact, _ = model(condition, model.encode(known), None)
    assert (first.rgb.float() - exact.rgb).abs().mean() < 0.05


def test_variations_are_true_pairs():
    model = tiny()
    batch = pair(model, video=3)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        new = model.varied(batch, generator)
        mirrored = not torch.equal(new.condition.maps, batch.condition.maps)
        coloured = int(new.condition.video) == UNKNOWN
        seen.add((mirrored, coloured))
        back = new.condition.known.flip(3) if mirrored else new.condition.known
        torch.testing.assert_close(back[:, 3:], batch.condition.known[:, 3:])
        assert torch.equal(back[:, :3], batch.condition.known[:, :3]) != coloured
        assert new.truth.rgb.abs().max() <= 1
        if mirrored:
            torch.testing.assert_close(new.condition.maps.flip(3), batch.condition.maps)
            torch.testing.assert_close(new.truth.matte.flip(3), batch.truth.matte)
    assert seen == {(a, b) for a in (False, True) for b in (False, True)}


# ------------------------------------------------------------------------------------------------ Eqs. 7-10


def test_adopting_changes_no_picture():
    """ψ' = P ê_NEW, and w' = w0 + ê_NEW."""
    model = tiny()
    objective = model.objective().eval()
    identity = model.encode(references(3))
    condition = model.condition(poses(), (40, 32))
    with torch.no_grad():
        before, _ = model(condition, identity, None)
        model.adopt(identity)
        objective.adopt(identity)
        after, _ = model(condition, identity, None)
    torch.testing.assert_close(after.rgb, before.rgb)
    torch.testing.assert_close(model.own.data, model.projection(identity.embedding)[0])
    critic = objective.critics
    torch.testing.assert_close(critic.own.data, critic.general + identity.embedding[0])
    rgb, maps = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    score, _ = critic(rgb, maps, torch.tensor([0, UNKNOWN]))
    vector, _ = critic.trunk(torch.cat([rgb / 2 + 0.5, maps], 1))
    torch.testing.assert_close(score, vector @ critic.own + critic.bias)
    # From now on neither embedder nor identity count, and L_MCH is gone (Eq. 9).
    batch = pair(model, seed=5)
    frame, _ = model(*batch[:3])
    assert frame.extra is None
    assert "match" not in objective.generator_loss(frame, batch.truth, batch.condition)


def test_an_adopted_person_survives_a_file(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny()
    identity = model.encode(references())
    model.adopt(identity)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    other = build("talking-head", TINY | {"videos": 4}).eval()
    other.load_state_dict(load_file(tmp_path / "a.safetensors"))
    condition = model.condition(poses(), (40, 32))
    with torch.no_grad():
        torch.testing.assert_close(other(condition, identity, None)[0].rgb, model(condition, identity, None)[0].rgb)


def test_fine_tuning_moves_the_generator_and_the_person_only():
    model = tiny()
    batch = pair(model)
    identity = model.encode(references())
    objective = model.objective()
    model.adopt(identity)
    objective.adopt(identity)
    before = {k: t.clone() for k, t in model.named_parameters()}
    fit(
        model, objective, iter([batch] * 3), parameters=model.tunable(identity), compute=CPU,
        options=FitOptions(3, 1e-3, 1),
    )  # fmt: skip
    moved = {k for k, t in model.named_parameters() if not torch.equal(t, before[k])}
    assert "own" in moved
    assert {k.partition(".")[0] for k in moved} == {"own", "generator"}
