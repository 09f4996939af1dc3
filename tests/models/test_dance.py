"""The model `dance` on made-up people: a network that has learnt nothing shows the moved parts, bit for bit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from retarget import parts
from retarget.heatmaps import POSE_CHANNELS, WINDOW
from retarget.models import build
from retarget.models.base import Poses, References
from retarget.models.dance import Dance, DanceConfig
from retarget.references import arrays, pixels, poses, references

SMALL: dict[str, Any] = {"work": 64, "width": 8, "depth": 3}
SIZE = (160, 128)
STANDING, WAVING = {"left": (25, 25), "right": (25, 25)}, {"left": (150, 165), "right": (60, 20)}


@pytest.fixture
def model() -> Dance:
    torch.manual_seed(0)
    return Dance(**SMALL).eval()


@pytest.fixture(scope="module")
def known(puppet) -> References:
    return references(arrays(puppet.gathered(puppet.body(**STANDING), puppet.body(**WAVING), details=True)))


def window(puppet, *bodies: np.ndarray, details: bool = True) -> Poses:
    return poses(puppet.track(*bodies, details=details))


def joined(*windows: Poses) -> Poses:
    return Poses(*(torch.cat(t) for t in list(zip(*windows, strict=True))[:3]), windows[0].picture)


@pytest.fixture
def learnt(model: Dance) -> Dance:
    """Both nets say something."""
    torch.manual_seed(1)
    for net in (model.synthesis, model.fusion):
        torch.nn.init.normal_(net.last.weight, 0, 0.05)
    return model


# ------------------------------------------------------------------------------------------------ shapes


def test_shapes_and_ranges(model, known, puppet):
    condition = model.condition(window(puppet, puppet.body()), SIZE)
    assert condition.maps.shape == (1, POSE_CHANNELS * WINDOW, *model.working_size(SIZE))
    assert model.working_size(SIZE) == (80, 64)
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


def test_the_nets_never_see_more_than_the_picture_has(model):
    assert model.working_size((32, 48)) == (32, 48)
    assert model.working_size((1920, 1080)) == (round(64 * 1920 / 1080), 64)


@pytest.mark.parametrize("zoom", [0.5, 1.5])
def test_the_picture_can_be_drawn_in_another_size(model, known, puppet, zoom):
    identity = model.encode(known)
    size = (round(160 * zoom), round(128 * zoom))
    with torch.inference_mode():
        large, _ = model(model.condition(window(puppet, puppet.body()), SIZE), identity, None)
        other, _ = model(model.condition(window(puppet, puppet.body()), size, None), identity, None)
    assert other.rgb.shape == (1, 3, *size)
    least = min(size, SIZE)
    a, b = (torch.nn.functional.interpolate(f.rgb, least, mode="area") for f in (large, other))
    assert (a - b).abs().mean() < 0.05


# ------------------------------------------------------------------------------------------------ nothing learnt


@pytest.mark.parametrize("pose", [STANDING, WAVING, {"left": (90, 90), "right": (10, -115), "reach": (0, -0.3)}])
def test_a_network_that_has_learnt_nothing_leaves_the_moved_pixels_as_they_are(model, known, puppet, pose):
    identity = model.encode(known)
    condition = model.condition(window(puppet, puppet.body(**pose)), SIZE)
    assert model.untrained
    with torch.inference_mode():
        fast, _ = model.eval()(condition, identity, None)
        slow, _ = model.train()(condition, identity, None)  # asks both nets
    assert torch.equal(fast.matte, slow.matte)
    assert torch.equal(fast.rgb, slow.rgb)


def test_it_is_the_parts_over_the_plate(model, known, puppet):
    identity = model.encode(known)
    pose = window(puppet, puppet.body(**WAVING))
    condition = model.condition(pose, SIZE)
    with torch.inference_mode():
        frame, _ = model(condition, identity, None)
    (person,) = identity
    layout, _ = parts.lay_out(person.levels[0], condition.skeletons[0])
    rgb, alpha, _ = parts.render(person.levels[0], layout, SIZE)
    shade = 1 - person.shadow * parts.contact(condition.skeletons[0], SIZE, 1.0, rgb)
    expected = rgb + (1 - alpha) * (known.plate[0] / 2 + 0.5) * shade
    torch.testing.assert_close(frame.rgb[0] / 2 + 0.5, expected.clamp(0, 1), atol=1e-5, rtol=0)
    assert torch.equal(frame.matte[0], alpha)


def test_a_reference_in_its_own_pose_is_reproduced(model, puppet):
    gathered = puppet.gathered(puppet.body(**STANDING), puppet.body(**WAVING))
    identity = model.encode(references(arrays(gathered)))
    for k, body in enumerate((puppet.body(**STANDING), puppet.body(**WAVING))):
        with torch.inference_mode():
            frame, _ = model(model.condition(window(puppet, body, details=False), SIZE), identity, None)
        error = (frame.rgb[0] - pixels(gathered.pictures[k])) / 2
        inside = torch.from_numpy(gathered.mattes[k]) > 0.99
        assert -10 * (error[:, inside] ** 2).mean().log10() > 28
        assert -10 * (error**2).mean().log10() > 28


def test_learning_anything_shows(learnt, known, puppet):
    identity = learnt.encode(known)
    condition = learnt.condition(window(puppet, puppet.body()), SIZE)
    assert not learnt.untrained
    plain = Dance(**SMALL).eval()
    with torch.inference_mode():
        ours, _ = learnt(condition, identity, None)
        theirs, _ = plain(condition, identity, None)
    assert (ours.rgb - theirs.rgb).abs().mean() > 1e-3
    assert (ours.matte - theirs.matte).abs().mean() > 1e-4


@pytest.mark.parametrize("net", ["synthesis", "fusion"])
def test_one_net_that_has_learnt_is_enough_to_be_asked(model, net):
    getattr(model, net).last.bias.data[0] = 0.1
    assert not model.untrained


@pytest.mark.parametrize("bias", [-30.0, 30.0])
def test_whatever_the_nets_say_the_picture_stays_a_picture(model, known, puppet, bias):
    for net in (model.synthesis, model.fusion):
        torch.nn.init.constant_(net.last.bias, bias)
    with torch.inference_mode():
        frame, _ = model(model.condition(window(puppet, puppet.body()), SIZE), model.encode(known), None)
    for picture, low in ((frame.rgb, -1), (frame.matte, 0)):
        assert picture.isfinite().all()
        assert picture.min() >= low
        assert picture.max() <= 1


# ------------------------------------------------------------------------------------------------ batches and windows


def test_a_batch_draws_what_its_pictures_draw_alone(learnt, known, puppet):
    other = references(arrays(puppet.gathered(puppet.body(legs=20))))
    one, two = learnt.encode(known), learnt.encode(other)
    windows = [window(puppet, puppet.body(**pose)) for pose in (STANDING, WAVING)]
    both = learnt.condition(joined(*windows), SIZE)
    with torch.inference_mode():
        for identity, singles in ((one, (one, one)), (one + two, (one, two))):
            frame, state = learnt(both, identity, None)
            assert frame.rgb.shape == (2, 3, *SIZE)
            assert len(state) == 2
            for b in (0, 1):
                alone, _ = learnt(learnt.condition(windows[b], SIZE), singles[b], None)
                torch.testing.assert_close(frame.rgb[b], alone.rgb[0], atol=1e-4, rtol=0)
                torch.testing.assert_close(frame.matte[b], alone.matte[0], atol=1e-4, rtol=0)


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


def test_a_window_can_be_given_pose_by_pose(model, puppet):
    bodies = [puppet.body((angle, 40)) for angle in (20, 40, 60, 80)]
    whole = model.condition(window(puppet, *bodies[1:]), SIZE)
    grown = None
    for body in bodies:
        grown = model.condition(window(puppet, body), SIZE, grown)
    torch.testing.assert_close(grown.maps, whole.maps)
    np.testing.assert_allclose(grown.skeletons[0].bones, whole.skeletons[0].bones)
    # The last pose is the one to draw.
    np.testing.assert_allclose(
        whole.skeletons[0].bones, parts.skeletons(puppet.track(bodies[-1], details=True)).bones, atol=1e-4
    )


def test_without_a_past_the_first_pose_is_repeated(model, puppet):
    maps = model.condition(window(puppet, puppet.body()), SIZE).maps.split(POSE_CHANNELS, 1)
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[1], maps[2])
    assert maps[0].max() > 0.5


def test_poses_without_face_and_hands_are_drawn(learnt, known, puppet):
    with torch.inference_mode():
        frame, _ = learnt(
            learnt.condition(window(puppet, puppet.body(), details=False), SIZE), learnt.encode(known), None
        )
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
    assert (frame.rgb[0][:, frame.matte[0, 0] == 0] == 0).all()


def test_the_feet_shade_the_floor_as_measured(model, known, puppet):
    lit, shaded = (model.encode(known._replace(shadow=s)) for s in (0.0, 0.4))
    pose = window(puppet, puppet.body(legs=20))
    condition = model.condition(pose, SIZE)
    with torch.inference_mode():
        bright, dark = (model(condition, p, None)[0] for p in (lit, shaded))
    ratio = (dark.rgb[0].mean(0) + 1) / (bright.rgb[0].mean(0) + 1)
    free = bright.matte[0, 0] == 0
    assert bright.rgb[0].mean(0).min() > -0.95
    assert 0.58 < ratio[free].min() < 0.7
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


def test_gradients_reach_both_nets(learnt, known, puppet):
    learnt.train()
    frame, _ = learnt(learnt.condition(window(puppet, puppet.body(**WAVING)), SIZE), learnt.encode(known), None)
    truth = pixels(puppet.cloth(8))[None]
    ((frame.rgb - truth) ** 2).mean().add((frame.matte - 0.5).abs().mean()).backward()
    for name, parameter in learnt.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_from_nothing_learnt_the_last_layers_start_to_move(model, known, puppet):
    model.train()
    frame, _ = model(model.condition(window(puppet, puppet.body(**WAVING)), SIZE), model.encode(known), None)
    ((frame.rgb - pixels(puppet.cloth(8))[None]) ** 2).mean().backward()
    for net in (model.synthesis, model.fusion):
        assert net.last.weight.grad.abs().max() > 0


def test_everything_is_tunable(model, known):
    tuned = {id(p) for p in model.tunable(model.encode(known))}
    assert tuned == {id(p) for p in model.parameters()}


def test_a_configuration_builds_the_same_model_again(learnt, known, puppet):
    config = json.loads(json.dumps(asdict(learnt.config)))
    again = build("dance", config).eval()
    assert again.config == learnt.config
    again.load_state_dict(learnt.state_dict())
    condition = learnt.condition(window(puppet, puppet.body()), SIZE)
    identity = learnt.encode(known)
    with torch.inference_mode():
        assert torch.equal(learnt(condition, identity, None)[0].rgb, again(condition, identity, None)[0].rgb)
    assert build("dance").config == DanceConfig()
    assert replace(DanceConfig(), **SMALL) == learnt.config
