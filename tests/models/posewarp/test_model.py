"""A made-up person is drawn, and made into pairs to learn from."""

from __future__ import annotations

from itertools import pairwise

import torch
from safetensors import safe_open
from torch import Tensor

from retarget import device
from retarget.lessons import Lessons
from retarget.models.base import Batch, Frame, Poses, stacked
from retarget.models.posewarp import LIMBS, Pair, Posewarp, PosewarpState, Sources, limb_priors
from retarget.references import arrays, poses, references
from retarget.training import tasks

from .conftest import SIZE, TINY, paired

# ------------------------------------------------------------------------------------------------ drawing


def test_masks_begin_as_the_papers_prior(painter, window, known):
    pair = paired(painter, window(), known).condition
    with torch.inference_mode():
        masks = painter._masks(pair)
    prior = limb_priors(pair.known, SIZE).exp()
    together = torch.cat([1 - prior.amax(1, keepdim=True), prior], 1) + 1e-10
    torch.testing.assert_close(masks, together / together.sum(1, keepdim=True), atol=1e-5, rtol=1e-3)


def test_masks_begin_with_the_matte_where_it_is_known(model, window, known):
    pair = paired(model, window(), known).condition
    with torch.inference_mode():
        masks = model._masks(pair)
    torch.testing.assert_close(masks.sum(1), torch.ones(1, *SIZE))
    assert masks.min() > 1e-13
    torch.testing.assert_close(1 - masks[:, :1], pair.source[:, 3:], atol=2e-3, rtol=0)
    for limb, points in enumerate(LIMBS):
        y, x = pair.known[0, list(points), :2].mean(0).flip(0).int().tolist()
        assert masks[0, 1 + limb, y, x] > 0.4


def test_a_network_that_has_learned_nothing_shows_the_person_again(model, known):
    identity = model.encode(known)
    for k in range(3):
        condition = model.condition(Poses(*(t[:, k : k + 1] for t in known.poses[:3]), known.poses.picture), SIZE)
        with torch.inference_mode():
            frame, state = model(condition, identity, None)
        assert state.which.tolist() == [k]
        assert (frame.matte - known.matte[:, k]).abs().mean() < 0.01
        truth = torch.lerp(known.plate, known.rgb[:, k], known.matte[:, k])
        assert (frame.rgb - truth).abs().mean() < 0.03


def test_nets_leave_the_head_alone(model, window, known):
    """Where little but the head is, in the reference and in what is drawn."""
    pair = paired(model, window(), known).condition
    with torch.inference_mode():

        def drawn() -> Tensor:
            frame, _ = model(pair, None, None)
            return torch.cat([model._masks(pair), frame.rgb, frame.matte], 1)

        nothing = drawn()
        torch.manual_seed(1)
        for net in (model.masks, model.colour, model.matte):
            torch.nn.init.normal_(net.weight, std=1.0)
        change = (drawn() - nothing).abs()
        top, neck = pair.driving[0, :2, :2]
    x, y = (0.3 * neck + 0.7 * top).round().long().tolist()
    assert change[..., y - 3 : y + 4, x - 3 : x + 4].mean() < 5e-3
    assert change[..., SIZE[0] // 2 :, :].mean() > 8e-3


def test_it_stays_with_a_reference_until_another_is_clearly_nearer(model, known, window):
    identity = model.encode(known)
    nearer = {}
    for angle in range(25, 91):
        condition = model.condition(window(left=(angle, angle), right=(27, 22)), SIZE)
        nearer[angle] = [int(model._nearest(condition, identity, s)) for s in (None, *map(state, (0, 1)))]
    assert nearer[25] == [0, 0, 0]
    assert nearer[90] == [1, 1, 1]
    free, from_first, from_second = (next(angle for angle, found in nearer.items() if found[i] == 1) for i in range(3))
    assert from_second < free < from_first
    for column in range(3):
        assert sum(a[column] != b[column] for a, b in pairwise(nearer.values())) == 1
    lost = window()
    lost.body[:] = torch.nan
    assert int(model._nearest(model.condition(lost, SIZE), identity, state(2))) == 2  # nobody: as before


def state(which: int) -> PosewarpState:
    return PosewarpState(torch.tensor([which]), torch.zeros(1, 11, *SIZE), None)


def test_what_a_reference_gives_is_computed_once(painter, known, window):
    asked: list[str] = []
    for name in ("segmentation", "person", "scene"):
        getattr(painter, name).register_forward_hook(lambda *_, name=name: asked.append(name))
    identity = painter.encode(known)
    walk = [window(left=(25 + 2 * i, 25)) for i in range(3)] + [window(left=(90, 80), right=(30, 20))]
    with torch.inference_mode():
        remembered, frames = None, []
        for pose in walk:
            frame, remembered = painter(painter.condition(pose, SIZE), identity, remembered)
            frames.append(frame)
        assert asked == ["segmentation", "scene", "person", "person", "person", "segmentation", "scene", "person"]
        for frame, pose in zip(frames, walk, strict=True):
            alone, _ = painter(painter.condition(pose, SIZE), identity, None)
            torch.testing.assert_close(frame.rgb, alone.rgb)


def test_the_paper_paints_its_scene_and_blends_by_its_matte(painter, known, window):
    identity = painter.encode(known)
    condition = painter.condition(window(left=(60, 60)), SIZE)
    with torch.inference_mode():
        frame, remembered = painter(condition, identity, None)
        elsewhere, _ = painter(condition, painter.before(identity, torch.ones(1, 3, 8, 8)), None)
        drawn, _, _ = painter.ahead(condition, identity, Frame(known.rgb[:, 0], known.matte[:, 0]))
        same, nothing = painter(drawn, None, None)
    assert nothing is None
    torch.testing.assert_close(same.rgb, frame.rgb)
    torch.testing.assert_close(elsewhere.matte, frame.matte)
    # m x + (1 - m) scene, before either scene: what differs is what shines through.
    difference = (1 - frame.matte) * (1 - remembered.scene)
    torch.testing.assert_close(elsewhere.rgb - frame.rgb, difference, atol=1e-5, rtol=0)
    assert remembered.scene.abs().max() <= 1
    assert remembered.scene.std() > 0.001


def test_larger_pictures_are_enlarged_before_a_sharp_plate(known, window):
    torch.manual_seed(0)
    model = Posewarp(**TINY | {"side": 64}).eval()
    condition = model.condition(window(), SIZE)
    assert condition.small == (80, 64)
    assert condition.maps.shape == (1, 14, 40, 32)
    with torch.inference_mode():
        frame, _ = model(condition, model.encode(known), None)
    scene = (frame.matte < 0.002).expand_as(frame.rgb)
    assert scene.float().mean() > 0.2
    assert (frame.rgb - known.plate)[scene].abs().max() < 0.01


def test_mirrored(model, known, window):
    pair = paired(model, window(left=(60, 90)), known)
    for seed in range(8):
        varied = model.varied(pair, torch.Generator().manual_seed(seed))
        if not torch.equal(varied.condition.joints, pair.condition.joints):
            break
    with torch.inference_mode():
        here, _ = model(pair.condition, None, None)
        mirrored, _ = model(varied.condition, None, None)
    torch.testing.assert_close(mirrored.matte.flip(3), here.matte, atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------ pairs to learn from


def test_of_k_references_all_pairs_both_ways(model, gathered):
    lessons = Lessons(model, arrays(gathered), gathered, 64, device.choose("cpu", "fp32"), seed=0, validate=False)
    references_ = [source_of(lessons.identity, k, lessons.size) for k in range(3)]
    found = []
    for k, group in enumerate(lessons.pairs):
        for pair in group:
            assert torch.equal(pair.truth.rgb, group[0].truth.rgb)
            (j,) = (j for j, other in enumerate(references_) if torch.allclose(pair.condition.source, other, atol=1e-5))
            found.append((j, k))
    assert set(found) == {(j, k) for j in range(3) for k in range(3) if j != k}
    assert model.sources == 1


def source_of(identity: Sources, k: int, size: tuple[int, int]) -> Tensor:
    assert identity.rgb.shape[3:] == (size[1], size[0])
    return torch.cat([identity.rgb[:, k], identity.matte[:, k]], 1)


def test_pairs_are_kept_with_their_joints_as_they_are(model, known, window, tmp_path):
    pair = paired(model, window(left=(60, 90)), known)
    pair.condition.joints[0, 4] = torch.nan
    tasks._keep(tmp_path / "task.safetensors", [[pair]])
    with safe_open(tmp_path / "task.safetensors", "pt") as file:
        again = tasks._unpacked(file, "0.0.", Pair)
    torch.testing.assert_close(again.condition.joints, pair.condition.joints, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(again.condition.source, pair.condition.source, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(again.truth.rgb, pair.truth.rgb, atol=1 / 255 + 1e-6, rtol=0)


def test_persons_of_different_pictures_in_one_batch(model, known, window, puppet):
    small = puppet.gathered(
        puppet.body(scale=42, at=(32, 38)), puppet.body((90, 80), scale=42, at=(32, 38)), size=(64, 80)
    )
    other = references(arrays(small))
    condition = model.condition(poses(puppet.track(puppet.body(scale=42, at=(32, 38)), size=(64, 80))), (80, 64))
    drawn, _, truth = model.ahead(condition, model.encode(other), Frame(other.rgb[:, 0], other.matte[:, 0]))
    pairs = [paired(model, window(), known), Batch(drawn, None, None, truth)]
    both = stacked(pairs)
    with torch.inference_mode():
        frame, _ = model(both.condition, both.identity, None)
        alone, _ = model(drawn, None, None)
    torch.testing.assert_close(frame.matte[1:, :, :76, :60], alone.matte[..., :76, :60], atol=1e-3, rtol=0)
