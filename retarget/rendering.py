"""Movements → pictures, in order, several at once: what `drive` shows, what it does when memory or precision do not
suffice, and what has to be known to go on in the middle."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
from .errors import DeviceError, out_of_memory
from .labels import LabelMaps, LabelTrack
from .models.base import Frame, Identity, RetargetModel
from .references import pixels, seen_in
from .types import Image, PoseTrack, Progress, Silent

if TYPE_CHECKING:
    from .faces import Talk
    from .motion import Movement

MEMORY = "memory.safetensors"
"""In the folder of an unfinished video: what the next frame has to know."""
SMALLER = {"the full size": 1, "half the size, enlarged": 2, "a quarter of the size, enlarged": 4}
"""How frames are drawn when memory is short: words → by what the size is divided."""
MOST = 4
"""Frames that are drawn at once, at most: what has to be worked out before them keeps no more cores busy."""


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
    memory = latest[0]
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

    def people() -> Iterator[Identity]:
        """The person of each frame, before its scene."""
        before, scene = identity, None
        for _ in range(first, len(track)):
            if plates is not None:
                plate = next(plates)
                if plate is not scene:
                    scene = plate
                    before = model.before(before, pixels(plate)[None].to(compute.device))
            yield before

    with _Line(model, track, size, people(), at_once(compute) if model.leads and memory.shrink == 1 else 0) as line:
        for t in range(first, len(track)):
            who, picture, remembered = line.take(t, memory, compute, transparent, calm)
            if picture is None:
                frame = partial(_drawn, model, who, track.select([t]), size, memory, transparent, calm)
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


def at_once(compute: Compute) -> int:
    """How many frames are drawn at once, of models that can: the single operations are too small to keep all cores
    busy, and a GPU idles while the next frame is worked out. 0: one after the other."""
    if compute.device.type == "cpu":
        cores = torch.get_num_threads()
        return min(cores, MOST) if cores > 1 else 0
    return 1 if compute.device.type == "cuda" else 0


class _Begun(NamedTuple):
    """A frame that is being drawn."""

    who: Identity
    job: Future[Frame]
    memory: Memory
    """What the next frame has to know, but how the picture was smoothed."""


class _Line:
    """The frames that are begun before those before them are shown. Threads draw them, the cores divided among them.

    Args:
        people: the person of each frame.
        count: how many are drawn at once; 0: none.
    """

    def __init__(
        self,
        model: RetargetModel,
        track: PoseTrack | Movement | Talk | LabelMaps,
        size: tuple[int, int],
        people: Iterator[Identity],
        count: int,
    ) -> None:
        self.model, self.track, self.size, self.people, self.count = model, track, size, people, count
        self.begun: deque[_Begun] = deque()
        self.again: deque[Identity] = deque()  # of frames that were begun in vain
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(max(1, count), "drawing")

    def __enter__(self) -> _Line:
        if self.count:
            torch.set_num_threads(max(1, self.threads // self.count))
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self.threads)

    def take(
        self, t: int, memory: Memory, compute: Compute, transparent: bool, calm: float
    ) -> tuple[Identity, Tensor | None, Memory]:
        """The person of frame t, and as `_drawn` returns them the frame and the memory; None for a frame that is yet to
        be drawn, or that is not finite: what was begun after it is forgotten."""
        while len(self.begun) <= self.count > 0 and t + len(self.begun) < len(self.track):
            before = self.begun[-1].memory if self.begun else memory
            self.begun.append(self._begin(t + len(self.begun), before, compute))
        if not self.begun:
            return self._person(), None, memory
        who, job, after = self.begun.popleft()
        try:
            picture, after = _finished(
                job.result(), after._replace(coarse=memory.coarse), self.size, transparent, calm
            )  # fmt: skip
            if finite(picture):
                return who, picture, after
        except Exception as error:
            if not out_of_memory(error):
                raise
            # One at a time needs less.
            self.count = 0
            torch.set_num_threads(self.threads)
        wait([other.job for other in self.begun if not other.job.cancel()])
        self.again.extend(other.who for other in self.begun)
        self.begun.clear()
        return who, None, memory

    def _person(self) -> Identity:
        return self.again.popleft() if self.again else next(self.people)

    def _begin(self, t: int, before: Memory, compute: Compute) -> _Begun:
        who, model = self._person(), self.model

        def draw(condition: Any) -> Frame:
            with torch.inference_mode(), compute.autocast():
                frame: Frame = model(condition, who, None)[0]
                return frame

        try:
            with torch.inference_mode(), compute.autocast():
                pose = seen_in(self.track.select([t])).to(compute.device)
                condition = model.condition(pose, self.size[::-1], before.condition)
                led, state = model.lead(condition, who, before.state)
            return _Begun(who, self.pool.submit(draw, led), Memory(condition, state))
        except Exception as error:  # to be told when it is this frame's turn
            failed: Future[Frame] = Future()
            failed.set_exception(error)
            return _Begun(who, failed, before)


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
    return _finished(frame, Memory(condition, state, memory.coarse, shrink), size, transparent, calm)


@torch.inference_mode()
def _finished(
    frame: Frame, memory: Memory, size: tuple[int, int], transparent: bool, calm: float
) -> tuple[Tensor, Memory]:
    """What is shown of a frame, as `_drawn` returns it; `memory.coarse` is of the frame before."""
    rgb, matte, coarse = frame.rgb.float(), frame.matte, None
    if memory.shrink > 1:
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
        if memory.shrink > 1:
            matte = F.interpolate(matte, size[::-1], mode="bilinear", align_corners=False)
        rgb = torch.cat([rgb.clamp(0, 255) / matte[0].clamp_min(1 / 255), 255 * matte[0]])
    return rgb, memory._replace(coarse=coarse)
