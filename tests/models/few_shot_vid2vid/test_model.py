"""The sequential generator: which examples it looks at, what it makes of the frame before, what it is drawn from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from retarget.models.base import Frame, frame_count, last, rollout, series, stacked
from retarget.models.few_shot_vid2vid import Examples, Past
from retarget.references import poses

from .conftest import SIZE, first, loud, tiny

# ------------------------------------------------------------------------------------------------ attention, Eq. 7


def test_attention_finds_the_place_that_looks_like_the_frame():
    """Two examples whose keys fit different places: q takes from each what it shows best."""
    model = tiny()
    keys = torch.stack([torch.zeros(16, 16), torch.zeros(16, 16)])[None]
    keys[0, 0, :8, :8], keys[0, 1, 8:, 8:] = torch.eye(8) * 100, torch.eye(8) * 100
    appearance = torch.stack([torch.full((sum(model.generation.rows), 16), v) for v in (1.0, 2.0)])[None]
    known = Examples(torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 2, 15, 8, 8), torch.ones(1, 2), torch.zeros(1, 3, 8, 8),
                     appearance, keys)  # fmt: skip
    model.generation.key = lambda maps: torch.eye(16)[None] * 100  # type: ignore[method-assign]
    q, nearest = model._aggregated(torch.zeros(1, 15, 8, 8), known)
    torch.testing.assert_close(q[0, 0], torch.tensor([1.0] * 8 + [2.0] * 8))
    assert nearest.shape == (1,)


def test_fewer_examples_in_a_batch_are_not_looked_at(people, windows):
    model = loud(tiny())
    condition = model.condition(windows[0], SIZE)
    for fewer in (1, 2):
        some, all_ = model.encode(first(people, fewer)), model.encode(people)
        both = stacked([some, all_])
        assert both.known.tolist() == [[1.0] * fewer + [0.0] * (3 - fewer), [1.0] * 3]
        with torch.inference_mode():
            together = model(stacked([condition, condition]), both, None)[0].rgb
            for n, alone in enumerate((some, all_)):
                torch.testing.assert_close(together[n : n + 1], model(condition, alone, None)[0].rgb, atol=1e-4, rtol=0)


def test_the_most_similar_example_is_shown(people, windows, monkeypatch):
    """Eq. 11: "we pick e_1 to be the image that has the largest similarity score"; what is not learned yet shows it."""
    model = tiny()
    condition, identity = model.condition(windows[0], SIZE), model.encode(people)
    for which in range(3):
        alpha = torch.full((1, 3, 16, 16), 0.01)
        alpha[:, which] = 0.5
        monkeypatch.setattr(model.generation, "attention", lambda *_, alpha=alpha: alpha)
        with torch.inference_mode():
            frame, _ = model(condition, identity, None)
        matte = people.matte[:, which]
        shown = people.rgb[:, which] * matte + (1 - matte) * people.plate
        assert (frame.rgb - shown).abs().mean() < 0.1
        others = [k for k in range(3) if k != which]
        for k in others:
            other = people.rgb[:, k] * people.matte[:, k] + (1 - people.matte[:, k]) * people.plate
            assert (frame.rgb - other).abs().mean() > (frame.rgb - shown).abs().mean()


def test_e_reads_the_examples_once_per_avatar(people, windows, monkeypatch):
    model = loud(tiny())
    raw = model.encode(people)
    assert raw.appearance is None
    with torch.inference_mode():
        known = model.encode(people)
        fresh = model(model.condition(windows[0], SIZE), raw, None)[0].rgb
    assert known.appearance.shape == (1, 3, sum(model.generation.rows), 16)
    monkeypatch.setattr(model.generation, "appearance", None)  # must not be asked any more
    with torch.inference_mode():
        kept = model(model.condition(windows[0], SIZE), known, None)[0].rgb
    torch.testing.assert_close(fresh, kept)


# ------------------------------------------------------------------------------------------------ sequences, Eq. 2


class Says(nn.Module):
    """A flow network that always gives the same answer."""

    def __init__(self, right: float, down: float, mask: float) -> None:
        super().__init__()
        self.answer, self.seen = (right, down, mask), []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(x)
        b, _, h, w = x.shape
        flow = torch.tensor(self.answer[:2]).view(1, 2, 1, 1).expand(b, 2, h, w)
        return flow, torch.full((b, 1, h, w), self.answer[2])


def test_eq_2_by_hand(people, windows):
    """(1 - m̃) ⊙ w̃(x̃_{t-1}) + m̃ ⊙ h̃, of the last picture as it was drawn."""
    model = loud(tiny(example=False, fold=1))
    identity = model.encode(people)
    one, two = (model.condition(w, SIZE) for w in windows[:2])
    with torch.inference_mode():
        _, state = model(one, identity, None)
        alone = model(two, identity, None)[1].pictures[:, -1]
        for mask in (0.0, 0.25, 1.0):
            model.flow = Says(3.0, -2.0, mask)
            frame, after = model(two, identity, state)
            moved = torch.zeros_like(alone)
            moved[:, :, 2:, :-3] = state.pictures[:, -1, :, :-2, 3:]
            wanted = (1 - mask) * moved + mask * alone
            torch.testing.assert_close(after.pictures[:, -1], wanted, atol=1e-4, rtol=1e-3)
            shown = wanted[:, :3] + (1 - wanted[:, 3:]) * people.plate
            torch.testing.assert_close(frame.rgb, shown.clamp(-1, 1), atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(frame.matte, wanted[:, 3:], atol=1e-4, rtol=1e-3)
    # W and M see s_t, x_{t-1} and s_{t-1}: Eqs. 3 and 4 with τ = 1.
    seen = model.flow.seen[0][..., : SIZE[0], : SIZE[1]]
    torch.testing.assert_close(seen[:, :15], two.maps)
    torch.testing.assert_close(seen[:, 15:19], state.pictures[:, 0])
    torch.testing.assert_close(seen[:, 19:], one.maps)


def test_flow_is_in_pixels_whatever_the_networks_see(people, windows):
    for changes in ({"fold": 2}, {"fold": 1, "side": 20}):
        model = loud(tiny(example=False, **changes))
        identity = model.encode(people)
        with torch.inference_mode():
            _, state = model(model.condition(windows[0], SIZE), identity, None)
            model.flow = Says(2.0, -1.0, 0.0)
            _, after = model(model.condition(windows[1], SIZE), identity, state)
        moved = torch.zeros_like(state.pictures[:, -1])
        moved[:, :, 2:, :-4] = state.pictures[:, -1, :, :-2, 4:]
        inside = (..., slice(3, -3), slice(0, -5))
        torch.testing.assert_close(after.pictures[:, -1][inside], moved[inside], atol=1e-4, rtol=1e-3)


def test_the_past_is_the_last_tau_frames(people, windows):
    model = loud(tiny(past=2))
    identity, state, drawn = model.encode(people), None, []
    conditions = [model.condition(w, SIZE) for w in windows]
    with torch.inference_mode():
        for condition in conditions:
            _, state = model(condition, identity, state)
            drawn.append(state.pictures[:, -1])
            recent = (drawn[:1] * 2 + drawn[1:])[-2:]  # the first one stands for those before it
            assert torch.equal(state.pictures, torch.stack(recent, 1))
    assert torch.equal(state.maps, torch.stack([c.maps for c in conditions[-2:]], 1))
    smaller = (SIZE[0] // 2, SIZE[1] // 2)
    with torch.inference_mode():  # when memory runs out, pictures become smaller in the middle of a clip
        frame, state = model(model.condition(windows[0], smaller), identity, state)
    assert frame.rgb.shape[2:] == state.pictures.shape[3:] == smaller
    assert frame.rgb.isfinite().all()


def test_sequences_grow_while_training():
    model = tiny(sequence=16)
    lengths = [model.length(p / 100) for p in range(100)]
    assert lengths[:50] == [1] * 50
    assert [lengths[i] for i in (50, 59, 60, 70, 80, 99)] == [2, 2, 4, 8, 16, 16]
    assert tiny(sequence=3).length(0.99) == 3
    assert model.sequence == 16


def test_a_sequence_is_drawn_frame_by_frame(people, windows):
    model = loud(tiny())
    identity = model.encode(people)
    conditions = [model.condition(w, SIZE) for w in windows[:3]]
    with torch.inference_mode():
        whole = rollout(model, series(conditions), identity, None, 3)
        state = None
        for t, condition in enumerate(conditions):
            frame, state = model(condition, identity, state)
            assert torch.equal(whole.rgb[:, t], frame.rgb)
            assert torch.equal(whole.matte[:, t], frame.matte)
    assert frame_count(whole) == 3
    assert torch.equal(last(whole).rgb, frame.rgb)


def test_gradients_do_not_flow_back_in_time_and_e_reads_once(people, windows, monkeypatch):
    model = loud(tiny()).train()
    asked = []
    read = model._read
    monkeypatch.setattr(model, "_read", lambda known: asked.append(1) or read(known))
    conditions = series([model.condition(w, SIZE) for w in windows])
    frame = rollout(model, conditions, model.encode(people), None, 4)
    assert len(asked) == 1
    frame.rgb[:, 3].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    _, state = model(model.condition(windows[0], SIZE), model.encode(people), None)
    assert not state.pictures.requires_grad


def test_a_past_fits_into_a_file(people, windows):
    model = loud(tiny())
    with torch.inference_mode():
        _, state = model(model.condition(windows[0], SIZE), model.encode(people), None)
    assert model.packed(None) == {}
    assert model.unpacked({}) is None
    back = model.unpacked(model.packed(state))
    assert isinstance(back, Past)
    assert torch.equal(back.pictures, state.pictures)
    assert torch.equal(back.maps, state.maps)
    assert replace(model.config) == model.config


# ------------------------------------------------------------------------------------------------ what is drawn from


def test_tuned_are_e_and_h_and_nothing_of_the_flow(people):
    model = tiny()
    moving = {id(p) for p in model.tunable(model.encode(people))}
    names = {name.split(".")[0]: id(p) in moving for name, p in model.named_parameters()}
    assert names == {"synthesis": True, "generation": True, "flow": False, "example": False}
    assert all((id(p) in moving) == names[name.split(".")[0]] for name, p in model.named_parameters())


def test_faces(puppet, people):
    model = loud(tiny(conditioning="face"))
    assert model.maps == 3
    window = poses(puppet.track(puppet.body(), details=True).scaled(SIZE[::-1]))
    condition = model.condition(window, SIZE)
    assert condition.maps.shape == (1, 3, *SIZE)
    assert condition.maps.max() > 0.5
    lost = window._replace(face=torch.full_like(window.face, torch.nan))
    assert model.condition(lost, SIZE).maps.abs().max() == 0
    with torch.inference_mode():
        frame, _ = model(condition, model.encode(people), None)
    assert frame.rgb.isfinite().all()


def test_label_maps(street):
    known, maps = street
    model = loud(tiny(conditioning="labels", classes=4))
    assert model.maps == 4
    condition = model.condition(maps[0], SIZE)
    assert condition.maps.shape == (1, 4, *SIZE)
    classes = maps[0].classes[0, 0].long()
    for n in range(4):
        assert torch.equal(condition.maps[0, n].bool(), classes == n)
    assert condition.maps[0][:, classes == 4].abs().max() == 0  # a class that is none
    identity = model.encode(known)
    assert identity.pictures.shape == (1, 2, 3, *SIZE)
    state = None
    with torch.inference_mode():
        for label in maps:
            frame, state = model(model.condition(label, SIZE), identity, state)
    assert frame.rgb.shape == (1, 3, *SIZE)
    assert frame.matte.min() == 1  # the scene is all there is
    assert model.before(identity, torch.zeros(1, 3, 4, 4)) is identity
    half = model.condition(maps[0], (SIZE[0] // 2, SIZE[1] // 2)).maps
    assert torch.equal(half.sum(1) > 0, (classes < 4)[None, ::2, ::2])


def test_poses_are_no_label_maps(street, people, windows):
    _, maps = street
    with pytest.raises(ValueError, match="from pose, not from Labels"):
        tiny().condition(maps[0], SIZE)
    model = tiny(conditioning="labels")
    with pytest.raises(ValueError, match="from labels, not from Poses"):
        model.condition(windows[0], SIZE)
    with pytest.raises(ValueError, match="no label maps"):
        model.encode(people)


def test_varied_pairs_stay_true(sequence):
    model = tiny()
    pair = sequence(model, 2)
    pair = pair._replace(truth=Frame(pair.identity.pictures[:, :2, :3], pair.identity.pictures[:, :2, 3:]))
    flipped = 0
    for seed in range(8):
        varied = model.varied(pair, torch.Generator().manual_seed(seed))
        # The truth is the first two examples, and still is; colours keep to their matte.
        torch.testing.assert_close(varied.identity.pictures[:, :2, 3:], varied.truth.matte)
        ahead = varied.identity.pictures
        assert ((ahead[:, :, :3] + ahead[:, :, 3:]).min()) > -1e-5
        assert varied.truth.rgb.shape == pair.truth.rgb.shape
        mirrored = not torch.equal(varied.truth.matte, pair.truth.matte)
        flipped += mirrored
        if mirrored:
            torch.testing.assert_close(varied.truth.matte, pair.truth.matte.flip(-1))
            torch.testing.assert_close(varied.condition.maps[:, :, 2], pair.condition.maps[:, :, 3].flip(-1))
    assert 0 < flipped < 8
