"""The puppet cut into parts, painted and drawn."""

from __future__ import annotations

import numpy as np
import torch

from retarget.parts import Cutouts, Skeleton, cut, lay_out, part_mattes, render, skeletons
from retarget.skeleton import PART, PARTS

LIMBS = [i for i, name in enumerate(PARTS) if "arm" in name or "leg" in name]
CROSSED = {"left": (10, -115), "reach": (-0.4, 0)}
"""The left lower arm lies before the belly."""
RED, BLUE = (230, 20, 20), (20, 20, 230)
TORSO = {f"torso{i}": BLUE for i in range(5)}
ARM = {"left_upper_arm": RED, "left_lower_arm": RED, "left_hand": RED}


def cutouts_of(pictures: list[np.ndarray], mattes: list[np.ndarray], skeleton: Skeleton) -> Cutouts:
    owned = [part_mattes(skeleton.take([k]), m) for k, m in enumerate(mattes)]
    own, core = (torch.from_numpy(np.stack([o[i] for o in owned])) for i in (0, 1))
    frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return cut(
        frames, own, core, torch.from_numpy(np.stack(mattes))[:, None], np.stack([o[2] for o in owned]), skeleton
    )


def cut_puppet(puppet, *bodies: np.ndarray, details: bool = False) -> Cutouts:
    """The puppet in these poses, each time in another cloth."""
    pictures = [puppet.cloth(k) for k in range(len(bodies))]
    return cutouts_of(pictures, [puppet.matte(b) for b in bodies], skeletons(puppet.track(*bodies, details=details)))


def drawn(cutouts: Cutouts, pose: Skeleton, size: tuple[int, int] = (160, 128), **options):
    return render(cutouts, lay_out(cutouts, pose)[0], size, **options)


def random_bodies(puppet, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        puppet.body(
            tuple(rng.uniform(-60, 170, 2)), tuple(rng.uniform(-60, 170, 2)), legs=rng.uniform(0, 30),
            reach=tuple(rng.uniform(-0.2, 0.2, 2)), at=tuple(rng.uniform(40, 80, 2)), turn=rng.uniform(-30, 30),
            scale=rng.uniform(60, 110),
        )
        for _ in range(count)
    ]  # fmt: skip


def paint(puppet, body: np.ndarray, colours: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """A white person on black whose named limbs have plain colours, later ones in front."""
    shapes = puppet.shapes(body)
    picture = np.repeat(255 * puppet.matte(body)[..., None], 3, 2)
    for name, colour in colours.items():
        alpha = shapes[name][..., None]
        picture = picture * (1 - alpha) + np.array(colour) * alpha
    return picture.astype(np.uint8)


def middle_of_arm(skeleton: Skeleton, share: float = 0.5) -> tuple[int, int]:
    a, b = skeleton.bones[0, PART["left_lower_arm"], :, :2]
    x, y = (a + share * (b - a)).astype(int)
    return int(y), int(x)
