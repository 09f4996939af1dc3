"""The model `dance` on made-up people: a network that has learnt nothing shows the moved parts, bit for bit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retarget import parts
from retarget.heatmaps import POSE_CHANNELS
from retarget.models import build
from retarget.models.base import Batch, Frame, Poses, References, stacked
from retarget.models.dance import CERTAIN, MARGIN, NEAR, SHADE, SOFT, TRUSTED, Dance, DanceConfig, Moved
from retarget.models.trust import WORTH
from retarget.references import arrays, pixels, poses, references
from retarget.skeleton import MIRROR, PARTS

SMALL: dict[str, Any] = {"density": 24, "width": 8, "depth": 2}
ALL = SMALL | {"fusion": 4, "flow": 0.08}
SIZE = (160, 128)
STANDING, WAVING = {"left": (25, 25), "right": (25, 25)}, {"left": (150, 165), "right": (60, 20)}
HERE, THERE = ({**WAVING, "scale": 45, "at": at} for at in ((66, 84), (57, 77)))
"""Small enough that all the surroundings lie within the picture, and of one extent."""
ALMOST = 1e-3
"""What drawing by way of the nets may differ by when they say nothing: sampling is exact to about 1e-4 only."""


@pytest.fixture
def model() -> Dance:
    torch.manual_seed(0)
    return Dance(**SMALL).eval()


@pytest.fixture
def both() -> Dance:
    """With a flow and a fusion net, too."""
    torch.manual_seed(0)
    return Dance(**ALL).eval()


@pytest.fixture(scope="module")
def known(puppet) -> References:
    return references(arrays(puppet.gathered(puppet.body(**STANDING), puppet.body(**WAVING), details=True)))


def window(puppet, *bodies: np.ndarray, details: bool = True) -> Poses:
    return poses(puppet.track(*bodies, details=details))


def joined(*windows: Poses) -> Poses:
    return Poses(*(torch.cat(t) for t in list(zip(*windows, strict=True))[:3]), windows[0].picture)


def taught(model: Dance) -> Dance:
    """All nets say something."""
    torch.manual_seed(1)
    for net in (model.synthesis, model.fusion, model.choice):
        if net is not None:
            torch.nn.init.normal_(net.last.weight, 0, 0.05)
    return model


@pytest.fixture
def learnt(model: Dance) -> Dance:
    return taught(model)


def draw(model: Dance, windows: Poses, identity: Any, size: tuple[int, int] = SIZE) -> Frame:
    with torch.inference_mode():
        return model(model.condition(windows, size), identity, None)[0]


def test_weights_from_before_the_choice_was_learned(learnt):
    old = {key: t for key, t in learnt.state_dict().items() if not key.startswith("choice.")}
    now = taught(Dance(**SMALL))
    now.load_state_dict(old)
    assert not now.choice.taught
    assert now.choice.first.weight.any()  # it can still learn
    assert torch.equal(now.synthesis.last.weight, learnt.synthesis.last.weight)
    with pytest.raises(RuntimeError, match="trust"):
        now.load_state_dict({key: t for key, t in old.items() if key != "trust"})


# ------------------------------------------------------------------------------------------------ shapes


def test_shapes_and_ranges(model, known, puppet):
    condition = model.condition(window(puppet, puppet.body()), SIZE)
    assert model.maps == POSE_CHANNELS
    assert condition.maps.shape[:2] == (1, model.maps)
    assert condition.size == SIZE
    identity = model.encode(known)
    assert len(identity) == 1
    with torch.inference_mode():
        frame, state = model(condition, identity, None)
    assert frame.rgb.shape == (1, 3, *SIZE)
    assert frame.matte is not None
    assert frame.matte.shape == (1, 1, *SIZE)
    assert frame.rgb.dtype == frame.matte.dtype == torch.float32
    assert frame.rgb.abs().max() <= 1
    assert frame.matte.min() >= 0
    assert frame.matte.max() <= 1 + 1e-6
    assert len(state) == 1


@pytest.mark.parametrize("zoom", [0.5, 1.5])
def test_the_picture_can_be_drawn_in_another_size(model, known, puppet, zoom):
    identity = model.encode(known)
    size = (round(160 * zoom), round(128 * zoom))
    large, other = (draw(model, window(puppet, puppet.body()), identity, s) for s in (SIZE, size))
    assert other.rgb.shape == (1, 3, *size)
    least = min(size, SIZE)
    a, b = (F.interpolate(f.rgb, least, mode="area") for f in (large, other))
    assert (a - b).abs().mean() < 0.05


# ------------------------------------------------------------------------------------------------ what the nets see


@pytest.mark.parametrize("pose", [STANDING, WAVING, {"at": (20, 70)}, {"at": (110, 120)}, {"scale": 40}])
def test_the_surroundings_hold_the_whole_person(model, puppet, pose):
    body = puppet.body(**pose)
    condition = model.condition(window(puppet, body), SIZE)
    ((x0, y0, x1, y1),) = condition.boxes
    assert 0 <= x0 < x1 <= 128
    assert 0 <= y0 < y1 <= 160
    shown = puppet.matte(body) > 0
    shown[y0:y1, x0:x1] = False
    assert not shown.any()
    metre = condition.skeletons[0].scale[0]
    low, high = body[:, :2].min(0) - MARGIN * metre, body[:, :2].max(0) + MARGIN * metre
    assert x1 - x0 <= min(128, high[0] - low[0] + 2)
    assert y1 - y0 <= min(160, high[1] - low[1] + 2)
    shrink = min(1, SMALL["density"] / metre)
    assert condition.maps.shape[2:] == (max(8, round((y1 - y0) * shrink)), max(8, round((x1 - x0) * shrink)))


@pytest.mark.parametrize("times", [2, 3])
def test_a_person_looks_alike_to_the_nets_in_every_video(model, puppet, times):
    body = puppet.body(**HERE)
    small = model.condition(window(puppet, body), SIZE)
    size = (128 * times, 160 * times)
    larger = poses(puppet.track(body, details=True).scaled(size))
    # Filmed larger, and drawn larger than filmed.
    for condition in (model.condition(larger, size[::-1]), model.condition(window(puppet, body), size[::-1])):
        assert np.abs(np.subtract(condition.maps.shape, small.maps.shape)).max() <= 1
        maps = F.interpolate(condition.maps, small.maps.shape[2:], mode="bilinear")
        assert (maps - small.maps).abs().mean() < 0.01
    elsewhere = model.condition(window(puppet, puppet.body(**THERE)), SIZE)
    assert elsewhere.boxes != small.boxes
    torch.testing.assert_close(elsewhere.maps, small.maps, atol=1e-4, rtol=0)


def test_the_nets_never_see_more_than_the_picture_has(puppet):
    model = Dance(**SMALL | {"density": 500})
    condition = model.condition(window(puppet, puppet.body()), SIZE)
    ((x0, y0, x1, y1),) = condition.boxes
    assert condition.maps.shape[2:] == (y1 - y0, x1 - x0)


def test_whoever_is_not_found_is_not_drawn(model, known, puppet):
    nobody = window(puppet, puppet.body())
    nobody.body[:] = torch.nan
    for t in nobody[1:3]:
        t[:] = torch.nan
    condition = model.condition(nobody, SIZE)
    assert condition.boxes == ((0, 0, 128, 160),)
    assert condition.maps.isfinite().all()
    assert condition.maps.abs().max() == 0


def test_far_from_the_person_the_scene_stays_as_it_is(learnt, known, puppet):
    identity = learnt.encode(known._replace(shadow=0.0))
    body = puppet.body(scale=45, at=(40, 60))
    frame = draw(learnt, window(puppet, body), identity)
    ((x0, y0, x1, y1),) = learnt.condition(window(puppet, body), SIZE).boxes
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[y0:y1, x0:x1] = False
    assert outside.float().mean() > 0.3
    torch.testing.assert_close(frame.rgb[0][:, outside], known.plate[0][:, outside], atol=1e-5, rtol=0)
    assert frame.matte[0, 0][outside].max() == 0
    plate = known.plate[0][:, y0:y1, x0:x1]
    assert (frame.rgb[0][:, y0:y1, x0:x1] - plate)[:, frame.matte[0, 0, y0:y1, x0:x1] == 0].abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------ nothing learnt


@pytest.mark.parametrize("pose", [STANDING, WAVING, {"left": (90, 90), "right": (10, -115), "reach": (0, -0.3)}])
@pytest.mark.parametrize("name", ["model", "both"])
def test_a_network_that_has_learnt_nothing_leaves_the_moved_pixels_as_they_are(name, request, known, puppet, pose):
    model = request.getfixturevalue(name)
    identity = model.encode(known)
    assert model.untrained
    fast = draw(model.eval(), window(puppet, puppet.body(**pose)), identity)
    slow = draw(model.train(), window(puppet, puppet.body(**pose)), identity)  # asks the nets
    torch.testing.assert_close(fast.matte, slow.matte, atol=ALMOST, rtol=0)
    torch.testing.assert_close(fast.rgb, slow.rgb, atol=ALMOST, rtol=0)


def test_it_is_the_parts_over_the_plate(model, known, puppet):
    identity = model.encode(known)
    pose = window(puppet, puppet.body(**WAVING))
    condition = model.condition(pose, SIZE)
    with torch.inference_mode():
        frame, _ = model(condition, identity, None)
    (person,) = identity
    layout, _ = parts.lay_out(person.levels[0], condition.skeletons[0])
    rendered, cover, _ = parts.render(person.levels[0], layout, SIZE)
    rgb, alpha = softened(rendered), softened(cover)
    shade = 1 - person.shadow * parts.contact(condition.skeletons[0], SIZE, 1.0, rgb)
    expected = rgb + (1 - alpha) * (known.plate[0] / 2 + 0.5) * shade
    torch.testing.assert_close(frame.rgb[0] / 2 + 0.5, expected.clamp(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(frame.matte[0], alpha, atol=1e-5, rtol=0)


def softened(x: torch.Tensor) -> torch.Tensor:
    """(C, H, W) through the filter that moved parts pass."""
    kernel = np.array([(1 - SOFT) / 2, SOFT, (1 - SOFT) / 2])
    return torch.from_numpy(
        np.stack([cv2.sepFilter2D(c, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE) for c in x.numpy()])
    )


@pytest.mark.parametrize("at", [(64, 150), (5, 76), (124, 76)])
def test_whoever_is_cut_off_is_solid_up_to_the_border(model, puppet, at):
    body = puppet.body(at=at)
    gathered = puppet.gathered(puppet.body(**STANDING), puppet.body(**WAVING))
    frame = draw(model, window(puppet, body, details=False), model.encode(references(arrays(gathered))))
    matte = frame.matte[0, 0]
    for border, within in ((matte[-1], matte[-3]), (matte[:, 0], matte[:, 2]), (matte[:, -1], matte[:, -3])):
        solid = within > 0.999
        assert border[solid].shape == (0,) or border[solid].mean() > 0.97
    assert max(float(b.max()) for b in (matte[-1], matte[:, 0], matte[:, -1])) > 0.99  # somebody is cut off


def test_a_reference_in_its_own_pose_is_reproduced(model, puppet):
    gathered = puppet.gathered(puppet.body(**STANDING), puppet.body(**WAVING))
    identity = model.encode(references(arrays(gathered)))
    for k, body in enumerate((puppet.body(**STANDING), puppet.body(**WAVING))):
        frame = draw(model, window(puppet, body, details=False), identity)
        error = (frame.rgb[0] - pixels(gathered.pictures[k])) / 2
        inside = torch.from_numpy(gathered.mattes[k]) > 0.99
        assert -10 * (error[:, inside] ** 2).mean().log10() > 28
        assert -10 * (error**2).mean().log10() > 28


def test_learning_anything_shows(learnt, known, puppet):
    identity = learnt.encode(known)
    assert not learnt.untrained
    ours, theirs = (draw(m, window(puppet, puppet.body()), identity) for m in (learnt, Dance(**SMALL).eval()))
    assert (ours.rgb - theirs.rgb).abs().mean() > 1e-3
    assert (ours.matte - theirs.matte).abs().mean() > 1e-4


@pytest.mark.parametrize("net", ["synthesis", "fusion"])
def test_one_net_that_has_learnt_is_enough_to_be_asked(both, net):
    getattr(both, net).last.bias.data[0] = 0.1
    assert not both.untrained


@pytest.mark.parametrize("bias", [-30.0, 30.0])
def test_whatever_the_nets_say_the_picture_stays_a_picture(both, known, puppet, bias):
    for net in (both.synthesis, both.fusion):
        torch.nn.init.constant_(net.last.bias, bias)
    frame = draw(both, window(puppet, puppet.body()), both.encode(known))
    for picture, low in ((frame.rgb, -1), (frame.matte, 0)):
        assert picture.isfinite().all()
        assert picture.min() >= low
        assert picture.max() <= 1


@pytest.mark.parametrize("ahead", [False, True])
def test_the_nets_may_move_and_colour_only_so_far(both, known, puppet, ahead):
    """The largest answers are what the configuration allows, in whole pictures and in small."""
    model = both
    identity = model.encode(known._replace(shadow=0.0))
    body = puppet.body(**HERE)
    condition = model.condition(window(puppet, body), SIZE)
    metre = 45.0
    if ahead:
        condition, identity, _ = model.ahead(condition, identity, filmed(puppet, body))
        metre = model.config.density
    bias = model.synthesis.last.bias.data
    frames = []
    # Each output is unfolded from four. Nothing, colour, flow to the right.
    for outputs in (slice(0, 0), slice(3 * 4, 6 * 4), slice(0, 4)):
        bias[:] = 0
        bias[outputs] = 30.0
        with torch.inference_mode():
            frames.append(model(condition, identity, None)[0])
    plain, brighter, moved = frames
    # Colours are multiplied.
    inside = (plain.matte[0, 0] > 0.9999) & (brighter.rgb[0].amax(0) < 0.99)
    assert inside.sum() > 30
    gain = ((brighter.rgb + 1) / (plain.rgb + 1))[0][:, inside]
    torch.testing.assert_close(gain, torch.full_like(gain, 1 + model.config.colour), atol=0.01, rtol=0)
    columns = torch.arange(plain.rgb.shape[3])
    shift = [(f.matte[0, 0].sum(0) * columns).sum() / f.matte.sum() for f in (plain, moved)]
    assert float(shift[0] - shift[1]) == pytest.approx(0.08 * metre, rel=0.15)


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_solid_is_never_cut_open(model, known, puppet, ahead):
    body = puppet.body(**WAVING)
    condition, identity = model.condition(window(puppet, body), SIZE), model.encode(known)
    if ahead:
        condition, identity, _ = model.ahead(condition, identity, filmed(puppet, body))
    mattes = []
    for bias in (0.0, -30.0, 30.0):
        model.synthesis.last.bias.data[2 * 4 : 3 * 4] = bias
        with torch.inference_mode():
            mattes.append(model(condition, identity, None)[0].matte)
    plain, least, most = mattes
    around = 5 if ahead else 15  # the nets see three pixels and a half as one
    core = F.max_pool2d(1 - plain, around, 1, around // 2) < 0.01
    assert core.sum() > 20
    assert least[core].min() > 0.97
    soft = (plain > 0.1) & (plain < 0.4)
    assert least[soft].mean() < 0.5 * plain[soft].mean()
    assert (least <= plain + ALMOST).all()
    if ahead:  # elsewhere the surroundings end
        beside = F.avg_pool2d(plain, 5, 1, 2, count_include_pad=False)
        assert most[beside >= NEAR].min() > 0.99
        assert torch.equal(most[beside == 0], plain[beside == 0])
        assert (beside == 0).any()


def waving(known, puppet) -> tuple[Dance, Moved]:
    """A model that has learnt nothing, and the person drawn for it."""
    torch.manual_seed(2)
    model = Dance(**SMALL)
    body = puppet.body(**WAVING)
    moved, _, _ = model.ahead(model.condition(window(puppet, body), SIZE), model.encode(known), filmed(puppet, body))
    return model, moved


def test_a_person_reaches_beyond_the_moved_parts_only_where_that_is_certain(known, puppet):
    model, moved = waving(known, puppet)
    bias = model.synthesis.last.bias.data[8:12]

    def drawn(value: float) -> torch.Tensor:
        bias[:] = float(np.arctanh(value))
        return model(moved, None, None)[0].matte

    with torch.inference_mode():
        model.eval()
        plain = drawn(0.0)
        rim = (plain < 0.1) & (F.avg_pool2d(plain, 5, 1, 2, count_include_pad=False) >= NEAR)
        assert rim.sum() > 20
        plain, unsure, sure = (drawn(v) for v in (0.0, CERTAIN - 0.01, CERTAIN + 0.3))
        assert torch.equal(unsure, plain)
        assert (sure - plain)[rim].mean() == pytest.approx(0.3 / (1 - CERTAIN), abs=0.05)
        model.train()
        assert (drawn(CERTAIN - 0.01) - plain)[rim].mean() == pytest.approx(CERTAIN - 0.01, abs=0.05)


def test_the_scene_is_shaded_only_so_far(known, puppet):
    """At work; while it learns, what is shut off would never learn."""
    model, moved = waving(known, puppet)
    bias = model.synthesis.last.bias.data[24:28]

    def scene(shade: float) -> torch.Tensor:
        bias[:] = shade
        frame = model(moved, None, None)[0]
        return (frame.rgb / 2 + 0.5)[frame.matte.expand(-1, 3, -1, -1) == 0]

    with torch.inference_mode():
        model.eval()
        plain, little, dark, light = (scene(value) for value in (0.0, -0.1, -5.0, 5.0))
        torch.testing.assert_close(little, plain * (1 - np.tanh(0.1)), atol=1e-4, rtol=0)
        torch.testing.assert_close(dark, plain * (1 - SHADE), atol=1e-4, rtol=0)
        torch.testing.assert_close(light, (plain * (1 + SHADE)).clamp_max(1), atol=1e-4, rtol=0)
        model.train()
        assert (scene(-5.0) < 0.01).all()


# ------------------------------------------------------------------------------------------------ trust


@pytest.mark.parametrize("number", range(len(TRUSTED)), ids=TRUSTED)
def test_each_answer_counts_as_far_as_it_is_trusted(both, known, puppet, number):
    body = puppet.body(**WAVING)
    moved, _, _ = both.ahead(both.condition(window(puppet, body), SIZE), both.encode(known), filmed(puppet, body))
    outputs = {"flow": slice(0, 8), "matte": slice(8, 12), "colour": slice(12, 24), "shade": slice(24, 28)}
    name = TRUSTED[number]
    bias = both.fusion.last.bias.data if name == "fusion" else both.synthesis.last.bias.data[outputs[name]]

    def change(trust: float) -> torch.Tensor:
        """What this answer changes, the others being silent."""
        both.trust[:] = torch.rand(len(TRUSTED))
        both.trust[number] = trust
        bias[:] = 0
        silent = both(moved, None, None)[0]
        bias[:] = 0.8
        said = both(moved, None, None)[0]
        return torch.cat([said.rgb - silent.rgb, said.matte - silent.matte], 1)

    with torch.inference_mode():
        none, half, whole = (change(t).abs().mean() for t in (0.0, 0.5, 1.0))
    assert none < 1e-6
    assert 0.3 * whole < half < 0.8 * whole
    assert whole > 1e-3


def test_nets_that_are_not_trusted_are_not_asked(learnt, known, puppet):
    assert torch.equal(Dance(**SMALL).trust, torch.ones(len(TRUSTED)))
    learnt.trust[:] = 0
    assert learnt.untrained
    learnt.trust[1] = 0.25
    assert not learnt.untrained
    # It is remembered with the weights, and no parameter.
    again = Dance(**SMALL)
    again.load_state_dict(learnt.state_dict())
    assert again.trust[1] == 0.25
    assert "trust" not in dict(learnt.named_parameters())


@pytest.mark.parametrize(("name", "there"), [("model", [1, 2, 3]), ("both", [0, 1, 2, 3, 4])])
@pytest.mark.parametrize("best", [(0.25, 0.0, 1.0, 0.75, 0.5), (0.0,) * 5, (1.0,) * 5])
def test_trust_is_what_fits_best(request, name, there, best):
    model = taught(request.getfixturevalue(name))
    wanted = torch.tensor(best)
    asked: list[tuple[float, ...]] = []

    def score() -> float:
        asked.append(tuple(model.trust.tolist()))
        return float((model.trust - wanted)[there].square().sum())

    assert model.settle(score) == {f"trust_{TRUSTED[i]}": best[i] for i in there}
    assert torch.equal(model.trust[there], wanted[there])
    assert all(model.trust[i] == 0 for i in range(5) if i not in there)
    assert len(asked) == len(set(asked)) < 60  # nothing is tried twice


def test_trust_has_to_be_earned(learnt):
    for share, trusted in ((0.5 * WORTH, False), (2 * WORTH, True)):
        learnt.trust[:] = 1
        learnt.settle(lambda share=share: 1 - share * float(learnt.trust[2]))
        assert bool(learnt.trust[2] > 0) == trusted
        assert learnt.trust.sum() == learnt.trust[2]


def test_nets_that_say_nothing_stay_trusted(both):
    assert both.settle(lambda: 1.0) == {}
    assert (both.trust == 1).all()  # else no step of fine-tuning could move them


# ------------------------------------------------------------------------------------------------ ahead of training


def filmed(puppet, *bodies: np.ndarray) -> Frame:
    """A truth."""
    rgb = [pixels(puppet.picture(body, puppet.cloth(99, sigma=3.0))) for body in bodies]
    return Frame(torch.stack(rgb), torch.stack([torch.from_numpy(puppet.matte(body))[None] for body in bodies]))


def test_what_no_parameter_changes_is_drawn_ahead(model, known, puppet):
    identity = model.encode(known)
    body = puppet.body(**WAVING)
    condition = model.condition(window(puppet, body), SIZE)
    moved, nothing, truth = model.ahead(condition, identity, filmed(puppet, body))
    assert isinstance(moved, model.Ahead)
    assert nothing is None
    small = tuple(condition.maps.shape[2:])
    assert small[0] < 100
    shapes = [tuple(t.shape) for t in (*moved[:3], truth.rgb, truth.matte)]
    assert shapes == [(1, c, *small) for c in (POSE_CHANNELS, 4, 3, 3, 1)]
    assert moved.choice.shape == (1, 4, len(PARTS) * (parts.CLUES + 3))  # two references and their mirror images
    assert not any(t.requires_grad for t in moved)
    for t in (moved.maps, moved.person, moved.plate, truth.matte):
        assert t.min() >= 0
        assert t.max() <= 1 + 1e-5
    # It is the same picture, cut out and small.
    with torch.inference_mode():
        shown, state = model(moved, None, None)
    assert state == ()
    whole = draw(model, window(puppet, body), identity)
    ((x0, y0, x1, y1),) = condition.boxes
    for now, then in ((shown.rgb, whole.rgb), (shown.matte, whole.matte)):
        cut = F.interpolate(then[..., y0:y1, x0:x1], small, mode="area")
        assert (now - cut).abs().mean() < 0.1
    true = F.interpolate(filmed(puppet, body).rgb[..., y0:y1, x0:x1], small, mode="area")
    assert (truth.rgb - true).abs().mean() < 0.1


def test_a_net_that_learnt_ahead_says_the_same_in_full(model, known, puppet):
    """What is trained on the small surroundings is what is used on whole pictures."""
    learnt = model
    learnt.synthesis.last.bias.data[2 * 4 :] = torch.linspace(-1, 1, 5).repeat_interleave(4)
    identity = learnt.encode(known)
    body = puppet.body(**WAVING)
    condition = learnt.condition(window(puppet, body), SIZE)
    moved, _, _ = learnt.ahead(condition, identity, filmed(puppet, body))
    plain = Dance(**SMALL).eval()
    ((x0, y0, x1, y1),) = condition.boxes
    small = tuple(condition.maps.shape[2:])
    changes = []
    with torch.inference_mode():
        for f in (lambda m: m(moved, None, None)[0].rgb, lambda m: m(condition, identity, None)[0].rgb):
            changes.append(f(learnt) - f(plain))
    here, there = changes[0], F.interpolate(changes[1][..., y0:y1, x0:x1], small, mode="area")
    assert there.abs().mean() > 0.02
    assert (here - there).abs().mean() < 0.2 * there.abs().mean()


def test_only_what_it_says_decides_what_is_drawn_ahead(model, known, puppet):
    assert set(model.ahead_depends_on) <= set(asdict(model.config))
    body = puppet.body(**WAVING)
    for name, value in asdict(model.config).items():
        value = 2 * value or 8
        other = Dance(**SMALL | {name: value})
        made = [
            m.ahead(m.condition(window(puppet, body), SIZE), m.encode(known), filmed(puppet, body))[0]
            for m in (model, other)
        ]
        same = made[0].maps.shape == made[1].maps.shape and all(map(torch.equal, *made))
        assert same == (name not in model.ahead_depends_on), name
        assert same == (model.ahead_depends_on == other.ahead_depends_on), name


def test_pairs_drawn_ahead_make_a_batch(learnt, known, puppet):
    identity = learnt.encode(known)
    bodies = [puppet.body(**HERE), puppet.body(**THERE), puppet.body(legs=25)]
    made = [learnt.ahead(learnt.condition(window(puppet, b), SIZE), identity, filmed(puppet, b)) for b in bodies]
    alike = stacked([m[0] for m in made[:2]])
    assert isinstance(alike, Moved)
    with torch.inference_mode():
        frame, _ = learnt(alike, None, None)
        for b in (0, 1):
            alone, _ = learnt(made[b][0], None, None)
            torch.testing.assert_close(frame.rgb[b], alone.rgb[0], atol=1e-4, rtol=0)
    different, truth = stacked([m[0] for m in made]), stacked([m[2] for m in made])
    assert made[0][0].maps.shape != made[2][0].maps.shape
    with torch.inference_mode():
        frame, _ = learnt(different, None, None)
    assert frame.rgb.shape == truth.rgb.shape
    assert frame.matte.shape == truth.matte.shape
    assert frame.rgb.isfinite().all()


def made_ahead(model: Dance, known: References, puppet, body: np.ndarray) -> Batch:
    condition = model.condition(window(puppet, body), SIZE)
    moved, identity, truth = model.ahead(condition, model.encode(known), filmed(puppet, body))
    return Batch(moved, identity, None, truth)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_varied_pair_is_a_pair(model, known, puppet):
    pair = made_ahead(model, known, puppet, puppet.body(**WAVING))
    _, person, plate, _ = pair.condition
    # A truth that the moved parts explain wholly.
    pair = pair._replace(truth=Frame(2 * (person[:, :3] + (1 - person[:, 3:]) * plate) - 1, person[:, 3:]))
    before = [t.clone() for t in (*pair.condition, *pair.truth[:2])]
    mirrored, colours = set(), set()
    for seed in range(12):
        one, two = (model.varied(pair, generator(seed)) for _ in range(2))
        assert all(map(torch.equal, (*one.condition, *one.truth[:2]), (*two.condition, *two.truth[:2])))
        person, plate = one.condition.person, one.condition.plate
        for t, low in ((one.condition.maps, 0), (person, 0), (plate, 0), (one.truth.matte, 0), (one.truth.rgb, -1)):
            assert t.min() >= low - 1e-5
            assert t.max() <= 1 + 1e-5
        assert (person[:, :3] <= person[:, 3:] + 1e-5).all()  # still premultiplied
        explained = 2 * (person[:, :3] + (1 - person[:, 3:]) * plate) - 1
        torch.testing.assert_close(explained, one.truth.rgb, atol=1e-5, rtol=0)
        assert torch.equal(one.truth.matte, person[:, 3:])
        if torch.equal(person[:, 3:], before[1][:, 3:]):
            mirrored.add(False)
        else:
            assert torch.equal(person[:, 3:].flip(3), before[1][:, 3:])
            mirrored.add(True)
        colours.add(round(float(plate.sum()), 2))
    assert mirrored == {False, True}
    assert len(colours) == 12
    assert all(map(torch.equal, before, (*pair.condition, *pair.truth[:2])))  # what was given is left alone


@pytest.mark.parametrize("count", [1, 2])
def test_in_the_mirror_left_and_right_are_exchanged(known, puppet, count):
    model = Dance(**SMALL | {"window": count})
    bodies = [puppet.body(**HERE | {"left": (a, a + 15)}) for a in (140, 150)][-count:]
    flipped = []
    for body in bodies:
        other = body[list(MIRROR)].copy()
        other[:, 0] = 128 - other[:, 0]
        flipped.append(other)
    mine, theirs = (model.condition(window(puppet, *b, details=False), SIZE) for b in (bodies, flipped))
    pair = made_ahead(model, known, puppet, bodies[-1])
    pair = pair._replace(condition=pair.condition._replace(maps=mine.maps))
    for seed in range(20):
        maps = model.varied(pair, generator(seed)).condition.maps
        if not torch.equal(maps, mine.maps):
            break
    assert maps.shape == theirs.maps.shape
    assert (maps - theirs.maps).abs().mean() < 0.4 * (mine.maps.flip(3) - theirs.maps).abs().mean()


# ------------------------------------------------------------------------------------------------ batches and windows


def test_a_batch_draws_what_its_pictures_draw_alone(learnt, known, puppet):
    other = references(arrays(puppet.gathered(puppet.body(legs=20))))
    one, two = learnt.encode(known), learnt.encode(other)
    # One extent, so that alone they have the surroundings that they have together.
    windows = [window(puppet, puppet.body(**pose)) for pose in (HERE, THERE)]
    condition = learnt.condition(joined(*windows), SIZE)
    assert condition.boxes[0] != condition.boxes[1]
    with torch.inference_mode():
        for identity, singles in ((one, (one, one)), (one + two, (one, two))):
            frame, state = learnt(condition, identity, None)
            assert frame.rgb.shape == (2, 3, *SIZE)
            assert len(state) == 2
            for b in (0, 1):
                alone = draw(learnt, windows[b], singles[b])
                torch.testing.assert_close(frame.rgb[b], alone.rgb[0], atol=ALMOST, rtol=0)
                torch.testing.assert_close(frame.matte[b], alone.matte[0], atol=ALMOST, rtol=0)


def test_boxes_of_a_batch_have_one_size(model, known, puppet):
    windows = [window(puppet, puppet.body(**pose)) for pose in (STANDING, WAVING, {"scale": 30, "at": (20, 130)})]
    together = model.condition(joined(*windows), SIZE)
    assert len({(x1 - x0, y1 - y0) for x0, y0, x1, y1 in together.boxes}) == 1
    for box, one in zip(together.boxes, windows, strict=True):
        (alone,) = model.condition(one, SIZE).boxes
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= 128
        assert box[3] <= 160
        assert box[0] <= alone[0] + 1
        assert box[1] <= alone[1] + 1
        assert box[2] >= alone[2] - 1
        assert box[3] >= alone[3] - 1
    identity = model.encode(known)
    frame = draw(model, joined(*windows), identity)
    for b, one in enumerate(windows):
        torch.testing.assert_close(frame.rgb[b], draw(model, one, identity).rgb[0], atol=1e-5, rtol=0)


def test_encoding_a_batch_gives_one_person_each(model, known, puppet):
    double = References(
        torch.cat([known.rgb, known.rgb.flip(1)]), torch.cat([known.matte, known.matte.flip(1)]),
        Poses(*(torch.cat([t, t.flip(1)]) for t in known.poses[:3]), known.poses.picture),
        known.plate.repeat(2, 1, 1, 1), known.shadow,
    )  # fmt: skip
    one, two = model.encode(double)
    assert [t.shape for t in one.levels[0].textures] == [t.shape for t in two.levels[0].textures]
    mine, theirs = (person.levels[0].textures[1][:2] for person in (one, two))  # as they are, not mirrored
    assert mine.any()
    torch.testing.assert_close(mine, theirs.flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_window_can_be_given_pose_by_pose(puppet, count):
    model = Dance(**SMALL, window=count)
    bodies = [puppet.body((angle, 40)) for angle in (20, 40, 60, 80)]
    whole = model.condition(window(puppet, *bodies[-count:]), SIZE)
    assert whole.maps.shape[1] == model.maps == POSE_CHANNELS * count
    grown = None
    for body in bodies:
        grown = model.condition(window(puppet, body), SIZE, grown)
    assert grown.boxes == whole.boxes
    torch.testing.assert_close(grown.maps, whole.maps)
    np.testing.assert_allclose(grown.skeletons[0].bones, whole.skeletons[0].bones)
    # The last pose is the one to draw.
    np.testing.assert_allclose(
        whole.skeletons[0].bones, parts.skeletons(puppet.track(bodies[-1], details=True)).bones, atol=1e-4
    )
    # Of more poses than the window has the last ones count.
    torch.testing.assert_close(model.condition(window(puppet, *bodies), SIZE).maps, whole.maps)


def test_without_a_past_the_first_pose_is_repeated(puppet):
    model = Dance(**SMALL, window=3)
    maps = model.condition(window(puppet, puppet.body()), SIZE).maps.split(POSE_CHANNELS, 1)
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[1], maps[2])
    assert maps[0].max() > 0.5


def test_poses_without_face_and_hands_are_drawn(learnt, known, puppet):
    frame = draw(learnt, window(puppet, puppet.body(), details=False), learnt.encode(known))
    assert frame.rgb.isfinite().all()
    assert frame.matte.mean() > 0.05


# ------------------------------------------------------------------------------------------------ scene, time


def test_another_scene_changes_only_what_is_behind(model, known, puppet):
    identity = model.encode(known._replace(shadow=0.4))
    plate = pixels(puppet.cloth(5))[None]
    condition = model.condition(window(puppet, puppet.body()), SIZE)
    elsewhere = model.before(identity, plate)
    with torch.inference_mode():
        here, _ = model(condition, identity, None)
        there, _ = model(condition, elsewhere, None)
    assert torch.equal(here.matte, there.matte)
    solid, free = here.matte[0, 0] > 0.9999, here.matte[0, 0] == 0
    assert solid.sum() > 1000
    torch.testing.assert_close(here.rgb[0][:, solid], there.rgb[0][:, solid], atol=1e-3, rtol=0)
    torch.testing.assert_close(there.rgb[0][:, free], plate[0][:, free], atol=1e-5, rtol=0)  # no shadow there
    assert identity[0].plate is not elsewhere[0].plate
    assert torch.equal(identity[0].plate, known.plate[0] / 2 + 0.5)


def test_a_plate_of_any_size_is_stretched_behind(model, known, puppet):
    grey = torch.zeros(1, 3, 8, 8)
    condition = model.condition(window(puppet, puppet.body()), SIZE)
    with torch.inference_mode():
        frame, _ = model(condition, model.before(model.encode(known), grey), None)
    assert frame.rgb[0][:, frame.matte[0, 0] == 0].abs().max() < 1e-6


def test_the_feet_shade_the_floor_as_measured(model, known, puppet):
    lit, shaded = (model.encode(known._replace(shadow=s)) for s in (0.0, 0.4))
    pose = window(puppet, puppet.body(legs=20))
    condition = model.condition(pose, SIZE)
    with torch.inference_mode():
        bright, dark = (model(condition, p, None)[0] for p in (lit, shaded))
    ratio = (dark.rgb[0].mean(0) + 1) / (bright.rgb[0].mean(0) + 1)
    free = bright.matte[0, 0] == 0
    assert bright.rgb[0].mean(0).min() > -0.95
    assert 0.58 < ratio[free].min() < 0.8
    assert ratio[free].max() <= 1
    assert ratio[:90][free[:90]].min() > 0.99
    solid = bright.matte[0, 0] > 0.9999
    torch.testing.assert_close(dark.rgb[0][:, solid], bright.rgb[0][:, solid], atol=1e-3, rtol=0)


def test_state_is_passed_and_never_kept(model, puppet):
    known = references(arrays(puppet.gathered(puppet.body(**STANDING), puppet.body(**WAVING))))
    identity = model.encode(known)
    first, then = (model.condition(window(puppet, puppet.body(**p), details=False), SIZE) for p in (STANDING, WAVING))
    with torch.inference_mode():
        fresh, _ = model(then, identity, None)
        _, state = model(first, identity, None)
        copies = [(s.mix.copy(), s.depth.copy()) for s in state]
        after, new = model(then, identity, state)
        again, _ = model(then, identity, state)
        back, _ = model(then, identity, None)
    assert torch.equal(after.rgb, again.rgb)
    assert torch.equal(fresh.rgb, back.rgb)
    assert not torch.equal(fresh.rgb, after.rgb)  # the arms' change of reference is faded
    for s, (mix, depth) in zip(state, copies, strict=True):
        np.testing.assert_array_equal(s.mix, mix)
        np.testing.assert_array_equal(s.depth, depth)
    assert ((new[0].mix > 0) & (new[0].mix < 1)).any()


# ------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("name", ["model", "both"])
@pytest.mark.parametrize("ahead", [False, True])
def test_gradients_reach_all_nets(name, request, known, puppet, ahead):
    learnt = taught(request.getfixturevalue(name)).train()
    body = puppet.body(**WAVING)
    condition, identity, truth = (
        learnt.condition(window(puppet, body), SIZE),
        learnt.encode(known),
        filmed(puppet, body),
    )
    if ahead:
        condition, identity, truth = learnt.ahead(condition, identity, truth)
    frame, _ = learnt(condition, identity, None)
    loss = ((frame.rgb - truth.rgb) ** 2).mean().add((frame.matte - 0.5).abs().mean())
    (loss + frame.extra.mean() if ahead else loss).backward()
    for key, parameter in learnt.named_parameters():
        if key.startswith("choice") and not ahead:  # what came of each choice is only known ahead
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


def test_from_nothing_learnt_the_last_layers_start_to_move(both, known, puppet):
    both.train()
    frame, _ = both(both.condition(window(puppet, puppet.body(**WAVING)), SIZE), both.encode(known), None)
    ((frame.rgb - pixels(puppet.cloth(8))[None]) ** 2).mean().backward()
    for net in (both.synthesis, both.fusion):
        assert net.last.weight.grad.abs().max() > 0


def test_everything_is_tunable(both, known):
    tuned = {id(p) for p in both.tunable(both.encode(known))}
    assert tuned == {id(p) for p in both.parameters()}


def test_a_configuration_builds_the_same_model_again(both, known, puppet):
    learnt = taught(both)
    config = json.loads(json.dumps(asdict(learnt.config)))
    again = build("dance", config).eval()
    assert again.config == learnt.config
    again.load_state_dict(learnt.state_dict())
    identity = learnt.encode(known)
    ours, theirs = (draw(m, window(puppet, puppet.body()), identity) for m in (learnt, again))
    assert torch.equal(ours.rgb, theirs.rgb)
    assert build("dance").config == DanceConfig()
    assert replace(DanceConfig(), **ALL) == learnt.config
    assert Dance(**SMALL).fusion is None
