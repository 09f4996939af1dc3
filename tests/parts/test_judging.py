"""References that show each other badly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from retarget import parts
from retarget.parts import Cutouts, lay_out, part_mattes, skeletons
from retarget.skeleton import PART

from .conftest import cutouts_of


def judged_puppet(puppet, count: int, *, spoilt: tuple[int, str] | None = None) -> Cutouts:
    """The puppet in one cloth and several poses; one part of one picture may have come out all wrong."""
    turns = [dict(right=(90, 150), left=(20 + 12 * k, 40), legs=8 + 2 * k) for k in range(count)]
    bodies = [puppet.body(**turn) for turn in turns]
    skeleton, mattes = skeletons(puppet.track(*bodies)), [puppet.matte(b) for b in bodies]
    own = torch.from_numpy(np.stack([part_mattes(skeleton.take([k]), m)[0] for k, m in enumerate(mattes)]))
    frames = torch.full((count, 3, *mattes[0].shape), 0.6)
    if spoilt is not None:
        k, name = spoilt
        frames[k] = torch.where(own[k, PART[name]] > 0.3, 0.05, frames[k])
    pictures = [(255 * f).byte().permute(1, 2, 0).numpy() for f in frames]
    made = cutouts_of(pictures, mattes, skeleton)
    return replace(made, blame=parts.blame(made, frames, own))


@pytest.mark.parametrize("name", ["left_upper_leg", "torso"])
def test_a_part_that_shows_the_others_badly_is_blamed(puppet, name):
    """And that part of that picture alone; the head is left alone."""
    fair, spoilt = (judged_puppet(puppet, 5, spoilt=s) for s in (None, (2, name)))
    assert np.abs(fair.blame).max() < 0.2
    blame = spoilt.blame[PART[name]]
    assert blame.argmax() == 2
    assert blame[2] > 1
    assert (np.delete(blame, 2) < 0).all()
    apart = [PART[other] for other in ("right_lower_arm", "right_lower_leg", "right_foot")]
    assert np.abs(spoilt.blame[apart]).max() < blame[2] / 2
    assert (judged_puppet(puppet, 5, spoilt=(2, "head")).blame[PART["head"]] == 0).all()


def test_a_bad_limb_is_taken_from_elsewhere(puppet):
    spoilt = judged_puppet(puppet, 5, spoilt=(2, "left_lower_leg"))
    pose = spoilt.skeleton.take([2])
    leg = PART["left_lower_leg"]
    layout, _ = lay_out(spoilt, pose)
    assert [piece.ref for layer in layout for piece in layer if piece.part == leg] != [2]
    unjudged = replace(spoilt, blame=np.zeros_like(spoilt.blame))
    layout, _ = lay_out(unjudged, pose)
    assert [piece.ref for layer in layout for piece in layer if piece.part == leg] == [2]


def test_what_is_cut_out_beside_a_part_is_an_error(puppet):
    """Also where the truth shows no person: but not where another part may hide it."""
    body, leg = puppet.body(right=(90, 150), left=(20, 40), legs=8), PART["left_lower_leg"]
    skeleton, matte = skeletons(puppet.track(body)), puppet.matte(body)
    own = torch.from_numpy(part_mattes(skeleton, matte)[0])
    truth = torch.where(torch.from_numpy(matte) > 0.5, 0.6, 0.1).expand(3, -1, -1).contiguous()
    picture = np.ascontiguousarray((255 * truth).byte().permute(1, 2, 0).numpy())
    made = cutouts_of([picture], [matte], skeleton)
    clean, pixels = parts.errors(made, skeleton, truth, own, [leg])
    texture = made.textures[leg].clone()
    texture[:, 3, 2:-2, 2:-2] = 1
    texture[:, :3] = 0.6
    textures = tuple(texture if p == leg else t for p, t in enumerate(made.textures))
    spilt, same = parts.errors(replace(made, textures=textures), skeleton, truth, own, [leg])
    assert clean[leg, 0] < 0.05
    assert spilt[leg, 0] > clean[leg, 0] + 0.1
    assert np.array_equal(pixels, same)
    others = own.clone()
    others[PART["torso"]] = 1 - own[leg]
    hidden, _ = parts.errors(replace(made, textures=textures), skeleton, truth, others, [leg])
    assert hidden[leg, 0] < clean[leg, 0] + 0.05


def test_two_references_cannot_judge_each_other(puppet):
    assert (judged_puppet(puppet, 2, spoilt=(1, "left_upper_leg")).blame == 0).all()
