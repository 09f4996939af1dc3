"""The learning objective's terms by hand, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retarget import device
from retarget.models.base import Batch, Frame, Poses, rollout, series
from retarget.models.few_shot_vid2vid import FewShotObjective, FewShotVid2Vid, Moved, warping_loss
from retarget.models.losses import feature_matching, lsgan_critic, lsgan_generator
from retarget.skeleton import PART
from retarget.training.fit import FitOptions, fit

from .conftest import SIZE, tiny

CPU = device.choose("cpu", "fp32")


def clip(count: int, seed: int = 0, layers: int = 4) -> tuple[Frame, Any]:
    """A made-up clip of `count` frames, and its condition."""
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(2, count, 3, 32, 32, generator=generator) * 2 - 1
    matte = torch.rand(2, count, 1, 32, 32, generator=generator)
    condition = tiny().condition(Poses(torch.zeros(2, 1, 33, 4), torch.zeros(2, 1, 468, 3), torch.zeros(2, 1, 2, 21, 3),
                                       (32, 32)), (32, 32))  # fmt: skip
    return Frame(rgb, matte if layers == 4 else None), series([condition] * count)


def test_critics_look_at_pictures_with_maps_and_at_two_frames_in_a_row():
    torch.manual_seed(0)
    objective = tiny().objective()
    image, video = objective.critics["image"], objective.critics["video"]
    assert image.critics[0].steps[0][0].weight.shape[1] == 3 + 15
    assert video.critics[0].steps[0][0].weight.shape[1] == 3 + 3
    assert len(objective.critic_parameters()) == len(list(image.parameters())) + len(list(video.parameters()))
    (frame, condition), (truth, _) = clip(3), clip(3, 1)
    terms = {name: float(t.detach()) for name, t in objective.generator_loss(frame, truth, condition).items()}
    maps = condition.maps.flatten(0, 1)
    objective.requires_grad_(False)
    real, fake = (image(f.rgb.flatten(0, 1), maps) for f in (truth, frame))
    assert terms["image_adversarial"] == pytest.approx(float(lsgan_generator([s[-1] for s in fake])), rel=1e-4)
    assert terms["image_feature"] == pytest.approx(10 * float(feature_matching(real, fake)), rel=1e-4)
    two = [video(f.rgb[:, 1:].flatten(0, 1), f.rgb[:, :-1].flatten(0, 1)) for f in (truth, frame)]
    assert terms["video_feature"] == pytest.approx(10 * float(feature_matching(*two)), rel=1e-4)
    against = objective.critic_loss(frame, truth, condition)
    assert against["video_critic"] == pytest.approx(float(lsgan_critic(*([s[-1] for s in x] for x in two))), rel=1e-4)
    single = objective.generator_loss(*(f._replace(rgb=f.rgb[:, :1], matte=f.matte[:, :1]) for f in (frame, truth)),
                                      condition._replace(maps=condition.maps[:, :1]))  # fmt: skip
    assert not any(name.startswith("video") for name in single)


def test_hinge_losses_on_request():
    torch.manual_seed(0)
    objective = tiny(hinge=True).objective().requires_grad_(False)
    (frame, condition), (truth, _) = clip(1), clip(1, 1)
    fake = objective.critics["image"](frame.rgb.flatten(0, 1), condition.maps.flatten(0, 1))
    wanted = -sum(float(s[-1].mean()) for s in fake)
    found = objective.generator_loss(frame, truth, condition)["image_adversarial"]
    assert found.item() == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_without_critics_there_is_none():
    objective = tiny().objective(critics=False)
    (frame, condition), (truth, _) = clip(2), clip(2, 1)
    assert objective.critic_parameters() == []
    assert objective.critic_loss(frame, truth, condition) == {}
    assert set(objective.generator_loss(frame, truth, condition)) == {"content", "head", "matte"}
    assert objective.generator_loss(truth, truth, condition)["content"] == 0


def test_the_head_counts_as_much_however_small_it_is():
    objective = tiny().objective(critics=False)
    (truth, condition), grey = clip(1), torch.zeros(2, 1, 3, 32, 32)

    def head(size: int, error: float) -> float:
        maps = torch.zeros_like(condition.maps)
        maps[..., PART["head"], :size, :size] = 1
        there = objective.generator_loss(
            truth._replace(rgb=grey + error), truth._replace(rgb=grey), condition._replace(maps=maps)
        )["head"]
        return float(there)

    assert head(8, 0.2) == pytest.approx(2 * head(8, 0.1), rel=1e-3)
    # Everything is wrong by 0.1: a mean over the head, plus what its rim adds.
    for size in (8, 16):
        assert 0.1 < head(size, 0.1) / (objective.WEIGHT * objective.HEAD) < 0.5
    assert head(0, 0.1) == 0  # nobody's head is there
    face = tiny(conditioning="face").objective(critics=False)
    assert face.head is None


def test_the_warping_loss_by_hand():
    """Pictures that move three pixels to the right each frame: the flow that says so costs its unevenness only."""
    wide = torch.rand(1, 4, 16, 40)
    x = torch.stack([wide[..., 10 - 3 * t : 34 - 3 * t] for t in range(3)], 1)
    matte = torch.ones(1, 3, 1, 16, 24)
    maps = x[:, :, 3:]
    truth = Frame(x[:, :, :3], matte)
    flow = torch.zeros(1, 3, 2, 16, 24)
    flow[:, :, 0] = -3.0
    example = torch.cat([truth.rgb, matte], 2)
    right = Moved(flow, example, maps, torch.zeros_like(flow))
    still = right._replace(flow=torch.zeros_like(flow))
    moved = float(warping_loss(right, truth, maps))
    # The left border shows what was not there before: 3 of 24 columns; zeros, of values whose mean is a half.
    columns = sum(float((x[:, 1:, c][..., :3]).abs().mean()) * 3 / 24 for c in range(3)) / 4 + 1 * 3 / 24 / 4
    columns += float(maps[:, 1:][..., :3].abs().mean()) * 3 / 24
    assert moved == pytest.approx(columns, rel=1e-4)
    assert float(warping_loss(still, truth, maps)) > 2 * moved
    # The example, and the unevenness of flows.
    wrong = right._replace(example=example + 0.5, example_maps=maps + 0.25)
    assert float(warping_loss(wrong, truth, maps)) == pytest.approx(moved + 0.75, rel=1e-4)
    steep = flow.clone()
    steep[:, :, 1] += torch.arange(24.0)
    rough = right._replace(example_flow=steep)
    share = FewShotObjective.SMOOTH * 0.5 * (0 + 0.5)  # half of the channels change by one from column to column
    assert float(warping_loss(rough, truth, maps)) == pytest.approx(moved + share, rel=1e-4)


def test_vgg_takes_the_place_of_the_content_term():
    class Seen(nn.Module):
        def forward(self, rgb: Tensor) -> list[Tensor]:
            return [rgb.mean((1, 2, 3))] * 5

    (frame, condition), (truth, _) = clip(2), clip(2, 1)
    terms = tiny().objective(critics=False, vgg=Seen()).generator_loss(frame, truth, condition)
    assert set(terms) == {"head", "matte", "perceptual"}
    means = [f.rgb.flatten(0, 1).mean((1, 2, 3)) for f in (frame, truth)]
    assert terms["perceptual"] == pytest.approx(10 * 5 * float((means[0] - means[1]).abs().mean()), rel=1e-4)


# ------------------------------------------------------------------------------------------------ learning


def learned(
    model: FewShotVid2Vid, pair: Batch, steps: int, *, critics: bool = False, rate: float = 4e-3
) -> list[float]:
    """The content loss of each step on one pair."""
    objective, losses = model.objective(critics=critics), []
    how = FitOptions(steps=steps, rate=rate, batch=1, decay=0)
    fit(
        model, objective, iter([pair] * steps), parameters=list(model.parameters()), compute=CPU, options=how,
        on_step=lambda _, f: losses.append(f["content"]),
    )  # fmt: skip
    return losses


@pytest.mark.parametrize(("critics", "steps", "rate"), [(False, 36, 4e-3), (True, 24, 1e-2)])
def test_a_sequence_can_be_learned_by_heart(sequence, critics, steps, rate):
    model = tiny()
    losses = learned(model, sequence(model, 2), steps, critics=critics, rate=rate)
    assert losses[-1] < 0.6 * losses[0]


def test_batch_normalisation_and_spectral_norms_learn_too(sequence):
    model = tiny(norm="batch", spectral=True, fold=1, hinge=True)
    losses = learned(model, sequence(model, 1), steps=12, rate=1e-2)
    assert losses[-1] < 0.8 * losses[0]


def test_flow_is_learned_from_warped_pictures(people, windows):
    """Somebody who slides to the right: W finds the flow, though nobody tells it."""
    model = tiny(example=False)
    rgb, matte = people.rgb[:, 0], people.matte[:, 0]
    shift = [Frame(rgb.roll(2 * t, 3), matte.roll(2 * t, 3)) for t in range(2)]
    maps = model.condition(windows[0], SIZE)
    conditions = series([maps._replace(maps=maps.maps.roll(2 * t, 3)) for t in range(2)])
    pair = Batch(conditions, model.encode(people), None, series(shift))
    learned(model, pair, steps=60)
    model.train()
    with torch.no_grad():
        flow = rollout(model, pair.condition, pair.identity, None, 2).extra.flow[:, 1, 0]
    on_person = shift[1].matte[0, 0] > 0.9
    assert -3 < flow[0][on_person].median() < -1  # where it was two pixels further left


def test_a_street_can_be_learned(street):
    known, maps = street
    model = tiny(conditioning="labels", classes=4, example=False)
    palette = known.rgb.new_tensor([[0.5, -0.5, 0], [-0.5, 0.5, 0.5], [0, 0, -0.8], [0.8, 0.8, 0.2], [0, 0, 0]])
    truth = series([Frame(palette[m.classes[:, 0].long()].movedim(-1, 1)) for m in maps])
    conditions = series([model.condition(m, SIZE) for m in maps])
    losses = learned(model, Batch(conditions, model.encode(known), None, truth), steps=40)
    assert losses[-1] < 0.5 * losses[0]
