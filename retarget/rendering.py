"""Movements → pictures, one after the other: what `drive` shows, what it does when memory or precision do not suffice,
and what has to be known to go on in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoint
from .device import Compute, Ladder
from .errors import DeviceError
from .labels import LabelMaps, LabelTrack
from .models.base import Identity, RetargetModel
from .references import pixels, seen_in
from .types import Image, PoseTrack, Progress, Silent

if TYPE_CHECKING:
    from .faces import Talk
    from .motion import Movement

MEMORY = "memory.safetensors"
"""In the folder of an unfinished video: what the next frame has to know."""
SMALLER = {"the full size": 1, "half the size, enlarged": 2, "a quarter of the size, enlarged": 4}
"""How frames are drawn when memory is short: words → by what the size is divided."""


class Memory(NamedTuple):
    """What the next frame has to know of the one before.

    condition, state  the model's.
    coarse            (1, 3, H / 8, W / 8) float32: the picture as it was smoothed, if it is to be over time.
    shrink            by what the size was divided; the model's memory is of this size.
    exact             whether low precision has failed.
    """

    condition: Any = None
    state: Any = None
    coarse: Tensor | None = None
    shrink: int = 1
    exact: bool = False


def remember(folder: Path, frame: int, model: RetargetModel, memory: Memory, notes: Sequence[str]) -> None:
    """Write down what frame number `frame` has to know, now that all before it is in `folder`."""
    tensors = {f"state.{name}": tensor.cpu() for name, tensor in model.packed(memory.state).items()}
    if memory.coarse is not None:
        tensors["coarse"] = memory.coarse.cpu().contiguous()
    said = {"frame": frame, "shrink": memory.shrink, "exact": memory.exact, "notes": list(notes)}
    checkpoint.save(folder / MEMORY, tensors | said)


def recalled(folder: Path, model: RetargetModel, compute: Compute) -> tuple[int, Memory, list[str]]:
    """The frame to go on with, what it has to know (but the condition, which the poses tell), and the notes so far."""
    try:
        known = checkpoint.load(folder / MEMORY)
    except ValueError:
        known = None
    if known is None:
        return 0, Memory(), []
    state = model.unpacked({k.removeprefix("state."): v for k, v in known.items() if k.startswith("state.")})
    coarse = known["coarse"].to(compute.device) if "coarse" in known else None
    return known["frame"], Memory(None, state, coarse, known["shrink"], known["exact"]), known["notes"]


def pictures(
    model: RetargetModel,
    identity: Identity,
    track: PoseTrack | Movement | Talk | LabelMaps,
    size: tuple[int, int],
    compute: Compute,
    plates: Iterator[Image] | None = None,
    transparent: bool = False,
    calm: float = 0.0,
    *,
    first: int = 0,
    latest: list[Memory] | None = None,
    progress: Progress | None = None,
    notes: list[str] | None = None,
) -> Iterator[Image]:
    """The frames one by one, (H, W, 3) uint8 RGB, or (H, W, 4) with straight alpha when `transparent`.

    From the first frame on that memory does not suffice for, they are drawn smaller and enlarged; from the first one on
    that is not finite in low precision, in fp32.

    Args:
        size: (width, height) of the frames.
        plates: scenes to stand before, one per frame from `first` on; None keeps the avatar's own.
        calm: strength of the smoothing over time.
        first: the frame to begin with.
        latest: holds one memory, of the frame before `first` (its condition aside); kept up to date.
        progress: is warned of what had to be done for want of memory or of precision.
        notes: the same sentences are added to it, for the records.

    Raises:
        OutOfMemory: not even a quarter of the size can be drawn.
        DeviceError: a frame is not finite in fp32.
    """
    progress, notes = progress or Silent(), [] if notes is None else notes
    latest = [Memory()] if latest is None else latest
    memory, scene = latest[0], None
    ladder = Ladder("drawing the frames", SMALLER, progress, notes)
    ladder.place = list(SMALLER.values()).index(memory.shrink)
    if memory.exact:
        compute = compute.full_precision()
    if first:
        recent = seen_in(track.select(range(max(0, first - model.window), first))).to(compute.device)
        width, height = (side // memory.shrink for side in size)
        memory = memory._replace(condition=model.condition(recent, (height, width)))
    if transparent:
        # Before black, of which no shading leaves anything on the person.
        identity = model.before(identity, torch.full((1, 3, 8, 8), -1.0, device=compute.device))
    for t in range(first, len(track)):
        if plates is not None:
            plate = next(plates)
            if plate is not scene:
                scene = plate
                identity = model.before(identity, pixels(plate)[None].to(compute.device))
        frame = partial(_drawn, model, identity, track.select([t]), size, memory, transparent, calm)
        picture, remembered = ladder.run(partial(frame, compute))
        if not finite(picture) and compute.precision != "fp32":
            notes.append(f"Frame {t} was not finite in {compute.precision}: from there on in fp32.")
            progress.warn(notes[-1])
            compute = compute.full_precision()
            memory = memory._replace(exact=True)
            picture, remembered = ladder.run(partial(frame, compute))
        if not finite(picture):
            raise DeviceError(
                f"Frame {t} cannot be drawn: its pixels are not finite.",
                "Try --device cpu; if that does not help, make the avatar anew with retarget personalize.",
            )
        memory = latest[0] = remembered._replace(exact=memory.exact)
        # OpenCV interleaves the channels faster than torch does.
        planes = picture.clamp(0, 255).round().to(torch.uint8).cpu().numpy()
        yield np.asarray(cv2.merge(list(planes)), np.uint8)


def finite(picture: Tensor) -> bool:
    """Whether all of it is finite. A sum, which what is not finite spoils, is far faster than a look at each."""
    return bool(picture.sum().isfinite()) or bool(picture.isfinite().all())


def _drawn(
    model: RetargetModel,
    identity: Identity,
    pose: PoseTrack | LabelTrack,
    size: tuple[int, int],
    memory: Memory,
    transparent: bool,
    calm: float,
    compute: Compute,
    shrink: int,
) -> tuple[Tensor, Memory]:
    """One frame drawn at 1 / `shrink` of `size`: (3 or 4, H, W) float32 in 0..255, not clamped; what to remember."""
    width, height = (side // shrink for side in size)
    before = memory if memory.shrink == shrink else Memory()
    with torch.inference_mode(), compute.autocast():
        condition = model.condition(seen_in(pose).to(compute.device), (height, width), before.condition)
        frame, state = model(condition, identity, before.state)
        rgb, matte, coarse = frame.rgb.float(), frame.matte, None
        if shrink > 1:
            rgb = F.interpolate(rgb, size[::-1], mode="bilinear", align_corners=False)
        if calm > 0:
            # Only what is coarser than about 1 % of the picture is calmed: moving detail must not ghost.
            now = F.interpolate(rgb, scale_factor=1 / 8, mode="area")
            coarse = now if memory.coarse is None else torch.lerp(now, memory.coarse, 0.7 * calm)
            rgb = rgb + F.interpolate(coarse - now, rgb.shape[2:], mode="bilinear", align_corners=False)
        rgb = (rgb[0] + 1) * 127.5
        if transparent:
            assert matte is not None
            matte = matte.float()
            if shrink > 1:
                matte = F.interpolate(matte, size[::-1], mode="bilinear", align_corners=False)
            rgb = torch.cat([rgb.clamp(0, 255) / matte[0].clamp_min(1 / 255), 255 * matte[0]])
    return rgb, Memory(condition, state, coarse, shrink)
