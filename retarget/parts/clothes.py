"""What colours tell of who owns a pixel: bare legs and what hangs over them, head, arms and the trunk behind them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ..cores import side_by_side
from ..skeleton import PART
from ..types import Array
from .geometry import RADII, Float, Skeleton, along

THIGHS, SHINS = ([PART[f"{side}_{which}_leg"] for side in ("left", "right")] for which in ("upper", "lower"))
ARMS = [PART[f"{side}_{which}_arm"] for side in ("left", "right") for which in ("upper", "lower")]
UPPER_ARMS = ARMS[::2]
HEAD = PART["head"]
HANDS = [PART["left_hand"], PART["right_hand"]]
TOP, BARE = 0.25, (0.2, 0.8)
"""Which share of the upper leg is surely clothed, and which piece of the lower leg is bare if the leg is."""
LIKENESS = 0.58
"""How alike the colours of two places are (Bhattacharyya coefficient) where one cloth covers both."""
BINS = (8, 24, 24)
"""Of lightness, and of the two other channels of CIELAB: light changes the first the most."""
FEWEST = 50
"""Pixels of each, without which there is no telling."""
MIDDLE, RIM, CORE = 0.6, 0.5, 0.2
"""Radii from its bone up to which all is an arm's own, from which on it may be what is behind it, and from which on
both."""
BESIDE = 2.2
"""Radii from its bone within which the trunk does not look like an arm: there it is one."""
SHOULDER = 0.5
"""Share of an upper arm, from which on its edge may show both it and what is behind it: nearer they are joined."""
CHIN = 0.2
"""Share of the head's bone below which a head may be clothed."""
EDGE = 0.012
"""Metres at the edge of an arm, or of a head, that show both it and what is behind it."""
MIXED = 0.15
"""How much either may look like the other there."""
SOFT, FINE = 0.012, 0.006
"""Metres over which what colours say is averaged: at hems, and at arms."""


def hanging(frames: torch.Tensor, own: torch.Tensor, core: torch.Tensor, skeleton: Skeleton) -> torch.Tensor:
    """How much of each pixel of the upper legs is cloth that may be stretched between them, (K, 1, H, W) in 0..1.

    If the lower legs have colours of their own, they are bare, and so is what looks like them above the knees: between
    legs that are farther apart than in the reference, skin would become a web. What is nobody's upper leg is 1.

    Args:
        frames: (K, 3, H, W) float32 in 0..1.
        own, core: (K, P, H, W) from `part_mattes`.
        skeleton: of the K references.
    """
    count, _, h, w = frames.shape
    y, x = np.mgrid[:h, :w].astype(np.float32) + 0.5
    colours = side_by_side(_numbered, frames)
    down = {(k, p): along(x, y, *skeleton.bones[k, p, :, :2])[0] for k in range(count) for p in (*THIGHS, *SHINS)}
    cloth = _telling(
        [c[(own[k, p] > 0.8).numpy() & (down[k, p] < TOP)] for k, c in enumerate(colours) for p in THIGHS],
        [
            c[(own[k, p] > 0.8).numpy() & (down[k, p] > BARE[0]) & (down[k, p] < BARE[1])]
            for k, c in enumerate(colours)
            for p in SHINS
        ],
    )
    hangs = np.ones((count, 1, h, w), np.float32)
    if cloth is None:
        return torch.from_numpy(hangs)
    for k, keep in enumerate(hangs[:, 0]):
        soft = _soft(cloth[colours[k]], SOFT * skeleton.scale[k])
        for thigh in THIGHS:
            hem = _hem(soft, down[k, thigh], own[k, thigh].numpy() > 0.8)
            stays = np.where(down[k, thigh] < TOP, 1, np.clip((soft - 0.35) / 0.3, 0, 1))
            stays *= np.clip((hem + 0.1 - down[k, thigh]) / 0.1, 0, 1)
            there = np.clip(torch.maximum(own[k, thigh], core[k, thigh]).numpy() / 0.1, 0, 1)
            np.minimum(keep, 1 - there * (1 - stays), out=keep)
        np.maximum(keep, own[k, PART["torso"]].numpy(), out=keep)
    return torch.from_numpy(hangs)


def freed(
    frames: torch.Tensor, own: torch.Tensor, core: torch.Tensor, skeleton: Skeleton
) -> tuple[torch.Tensor, torch.Tensor]:
    """Head, arms and hands before a trunk of other colours, cut apart by these: `own` and `core`, (K, P, H, W) each.

    They are cut out generously, for the sake of hair and wide sleeves: a bare arm would bring a rim of shirt along when
    it is raised, a head its collar and shoulders when it is bent. That is the trunk's. Where an arm is wider than was
    thought, it would leave a rim of skin on the shirt: that is the arm's. Where both meet, pixels have colours of both,
    and are nobody's.

    Args: as of `hanging`.
    """
    own, core, torso = own.clone(), core.clone(), PART["torso"]
    _, _, h, w = frames.shape
    y, x = np.mgrid[:h, :w].astype(np.float32) + 0.5

    def free(k: int) -> None:
        colours, scale = _numbered(frames[k]), skeleton.scale[k]
        around = np.ones((2 * round(EDGE * scale) + 1,) * 2, np.uint8)
        trunk = colours[(own[k, torso] > 0.8).numpy()]

        def likeness(pixels: npt.NDArray[np.bool_]) -> Array | None:
            like = _telling([colours[pixels]], [trunk])
            return None if like is None else _soft(like[colours], FINE * scale)

        def give(part: int, soft: Array, rim: Array, edge: Array) -> None:
            """The rim of a part that does not look like it to the trunk, and its edge there to nobody."""
            mine = own[k, part].numpy()
            other = rim * (1 - np.clip((soft - 0.25) / 0.3, 0, 1))
            given = np.asarray(mine * other, np.float32)
            mixed = cv2.dilate(given, around) * edge * np.clip((1 - MIXED - soft) / 0.15, 0, 1)
            own[k, torso] = torch.maximum(own[k, torso], torch.from_numpy(given))
            own[k, part] = torch.from_numpy(np.asarray((mine - given) * (1 - mixed), np.float32))
            core[k, part] *= torch.from_numpy(np.asarray(1 - other, np.float32))

        for arm in (*ARMS, *HANDS):
            down, far = along(x, y, *skeleton.bones[k, arm, :, :2])
            far = far / (RADII[arm] * scale)
            mine = own[k, arm].numpy()
            soft = likeness((mine > 0.8) & (far < MIDDLE))
            if soft is None:
                continue
            rim = np.clip((far - RIM) / 0.2, 0, 1) if arm in ARMS else 1 - cv2.erode(mine, around)
            side = np.clip((far - CORE) / 0.2, 0, 1)
            give(arm, soft, rim, side * np.clip((down - SHOULDER) / 0.2, 0, 1) if arm in UPPER_ARMS else side)
            skin = np.clip((BESIDE - far) / 0.3, 0, 1) * np.clip((soft - 0.4) / 0.25, 0, 1)
            taken = torch.from_numpy(np.asarray(own[k, torso].numpy() * skin, np.float32))
            own[k, torso] -= taken
            own[k, arm] = torch.maximum(own[k, arm], taken)
            edge = cv2.dilate(own[k, arm].numpy(), around)
            own[k, torso] *= torch.from_numpy(np.asarray(1 - edge * np.clip((soft - MIXED) / 0.15, 0, 1), np.float32))
        neck, crown = skeleton.bones[k, HEAD, :, :2]
        up = np.stack([x, y], -1) @ (crown - neck) - neck @ (crown - neck)
        up /= max(float(((crown - neck) ** 2).sum()), 1e-6)
        soft = likeness((own[k, HEAD].numpy() > 0.8) & (up > CHIN))
        if soft is not None:
            below = np.clip((CHIN - up) / 0.2, 0, 1)
            give(HEAD, soft, below, below)

    side_by_side(free, range(len(frames)))
    return own, core


def _soft(picture: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), max(1.0, sigma)), np.float32)


def _telling(one: list[npt.NDArray[np.intp]], other: list[npt.NDArray[np.intp]]) -> Array | None:
    """Of each colour's number, how much likelier it is among the `one` than among the `other`, 0..1; None if both look
    alike, or too little is seen of either."""
    counts = [np.bincount(np.concatenate(numbers), minlength=int(np.prod(BINS))) for numbers in (one, other)]
    if min(c.sum() for c in counts) < FEWEST:
        return None
    p, q = (_density(c) for c in counts)
    if float(np.sqrt(p * q).sum()) > LIKENESS:
        return None
    return np.asarray((p + 1e-6) / (p + q + 2e-6), np.float32)


def _hem(cloth: Array, down: Float, leg: npt.NDArray[np.bool_]) -> float:
    """How far down an upper leg its clothes reach, 0..1: to where most of what is seen across it is bare."""
    places = np.linspace(0, 1, 21)
    which = np.digitize(down[leg], places)
    total = np.bincount(which, minlength=22)
    share = np.bincount(which, cloth[leg], 22) / np.maximum(total, 1)
    bare = np.flatnonzero((share[1:21] < 0.4) & (total[1:21] > 0) & (places[:20] >= TOP))
    return float(places[bare[0]]) if len(bare) else 1.0


def _numbered(frame: torch.Tensor) -> npt.NDArray[np.intp]:
    """(3, H, W) in 0..1 → (H, W) numbers of its colours, by lightness and hue."""
    rgb = np.ascontiguousarray(frame.permute(1, 2, 0).numpy().clip(0, 1), np.float32)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    # Lightness is 0 to 100; the other two are within 48 of grey, or as good as that.
    index = ((lab - (0, -48, -48)) / (100, 96, 96) * BINS).clip(0, np.array(BINS) - 1).astype(np.intp)
    return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(index, 2, 0)), BINS))


def _density(counts: npt.NDArray[np.intp]) -> Array:
    """Counts of colours as smooth shares."""
    cube = counts.reshape(BINS).astype(np.float32)
    for axis, count in enumerate(BINS):
        flat = np.moveaxis(cube, axis, -1)
        rows = np.ascontiguousarray(flat.reshape(-1, count))
        soft = np.asarray(cv2.GaussianBlur(rows, (5, 1), 0.8, borderType=cv2.BORDER_REPLICATE), np.float32)
        cube = np.moveaxis(soft.reshape(flat.shape), -1, axis)
    return np.asarray(cube.ravel() / max(float(cube.sum()), 1e-6))
