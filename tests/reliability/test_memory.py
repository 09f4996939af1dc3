"""Memory that runs out and values that are not finite, at every stage of the true code.

On the CPU the want is made: a function that does the work raises what torch, NumPy and OpenCV raise, for pictures that
are larger than a limit. With a GPU torch itself is given too little (`test_a_gpu_with_too_little_memory`).
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from retarget import device
from retarget.avatar import Avatar
from retarget.cli import main
from retarget.drive import DriveOptions, drive, load
from retarget.errors import DeviceError, OutOfMemory, out_of_memory
from retarget.lessons import Lessons
from retarget.models.dance import Dance
from retarget.pose import save_motion
from retarget.rendering import pictures
from retarget.types import PoseTrack, Silent
from retarget.video import open_reader, read_metadata

personalizing = importlib.import_module("retarget.personalize")
SECTION = "5. Out of memory and NaN"
SIZE = (128, 160)
CPU = device.choose("cpu", "fp32")
HALF = "Memory ran out while drawing the frames: going on with half the size, enlarged."
QUARTER = "Memory ran out while drawing the frames: going on with a quarter of the size, enlarged."


class Warnings(Silent):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def warn(self, message: str) -> None:
        self.seen.append(message)


def torch_gpu() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def torch_cpu() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried")


def opencv() -> Exception:
    try:
        cv2.resize(np.zeros((4, 4), np.uint8), (2_000_000, 2_000_000))
    except cv2.error as error:
        return error
    raise AssertionError


ERRORS = (torch_gpu, torch_cpu, MemoryError, opencv)


@pytest.fixture
def starve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Let a function fail for want of memory whenever `much(*arguments)`; returns a list of how often it did."""

    def replaced(
        owner: Any, name: str, much: Callable[..., bool] = lambda *_, **__: True, error: Any = torch_gpu
    ) -> list[Any]:
        real, failed = getattr(owner, name), []

        def poor(*arguments: Any, **named: Any) -> Any:
            if much(*arguments, **named):
                failed.append(arguments)
                raise error()
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, poor)
        return failed

    return replaced


def dancing(puppet: Any, count: int = 6) -> list[np.ndarray]:
    return [puppet.body((25 + 8 * i, 25 + 12 * i), (25, 20 + 5 * i), legs=6 + i, at=(60 + i, 76)) for i in range(count)]


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are begun before those before them are shown, but one thread draws them all, one after the other."""
    monkeypatch.setattr(importlib.import_module("retarget.rendering"), "at_once", lambda _: 1)


@pytest.fixture
def made(puppet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Avatar]:
    """`personalize` on three poses of the puppet's dance, at the size that is asked for."""
    (tmp_path / "me.mp4").write_bytes(b"not looked into")
    bodies = dancing(puppet)
    gathered = puppet.gathered(bodies[0], bodies[2], bodies[5])

    def personalize(progress: Warnings, **options: Any) -> Avatar:
        monkeypatch.setattr(personalizing, "gather", lambda *_: gathered)
        return personalizing.personalize(tmp_path / "me.mp4", device="cpu", progress=progress, **options)

    return personalize


@pytest.fixture
def cast(made: Callable[..., Avatar]) -> Avatar:
    return made(Warnings(), steps=0, init="random")


@pytest.fixture
def track(puppet: Any) -> PoseTrack:
    return replace(puppet.track(*dancing(puppet)), fps=Fraction(24))


def wide(limit: int) -> Callable[..., bool]:
    """Whether a forward pass draws more than `limit` pixels across."""
    return lambda model, condition, *_: condition.size[1] > limit


# ---------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.reliability(SECTION, "drive: no memory for the model's forward pass", "half, then a quarter of the size")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("limit", "said"), [(64, [HALF]), (32, [HALF, QUARTER])])
def test_frames_are_drawn_smaller(
    cast: Avatar, track: PoseTrack, starve: Any, limit: int, said: list[str], error: Any
) -> None:
    model, identity, _ = load(cast, CPU)
    whole = list(pictures(model, identity, track, SIZE, CPU))
    failed = starve(Dance, "forward", wide(limit), error)
    told, notes = Warnings(), []
    less = list(pictures(model, identity, track, SIZE, CPU, progress=told, notes=notes))
    assert told.seen == notes == said
    tried = [condition.size[1] for _, condition, *_ in failed]
    assert sorted(tried, reverse=True) == tried  # whoever went down stays there
    assert sorted(set(tried), reverse=True) == [SIZE[0] // 2**i for i in range(len(said))]
    assert [p.shape for p in less] == [p.shape for p in whole]
    for a, b in zip(less, whole, strict=True):
        # The same picture, less sharp.
        a, b = (cv2.GaussianBlur(x, (0, 0), 5).astype(float) for x in (a, b))
        assert np.abs(a - b).mean() < 4


@pytest.mark.reliability(SECTION, "drive: no memory for several frames at once", "one at a time, at the full size")
def test_frames_are_drawn_one_at_a_time(cast: Avatar, track: PoseTrack, starve: Any, in_order: None) -> None:
    model, identity, _ = load(cast, CPU)
    whole = list(pictures(model, identity, track, SIZE, CPU))
    failed = starve(Dance, "forward", lambda *_: threading.current_thread() is not threading.main_thread())
    told, notes = Warnings(), []
    same = list(pictures(model, identity, track, SIZE, CPU, progress=told, notes=notes))
    assert 1 <= len(failed) <= 2
    assert told.seen == notes == []
    np.testing.assert_array_equal(same, whole)


@pytest.mark.reliability(SECTION, "drive: memory runs out in the middle", "only from there on smaller")
def test_frames_before_stay_whole(cast: Avatar, track: PoseTrack, starve: Any, in_order: None) -> None:
    model, identity, _ = load(cast, CPU)
    whole = list(pictures(model, identity, track, SIZE, CPU, transparent=True, calm=0.5))
    calls: list[int] = []
    starve(
        Dance, "forward", lambda model, condition, *_: calls.append(0) or (len(calls) > 3 and condition.size[1] > 64)
    )
    less = list(pictures(model, identity, track, SIZE, CPU, transparent=True, calm=0.5))
    assert [np.array_equal(a, b) for a, b in zip(less, whole, strict=True)] == [True] * 3 + [False] * 3
    assert all(p.shape == (160, 128, 4) for p in less)
    assert all(0.05 < (p[..., 3] / 255).mean() < 0.5 for p in less)


def test_smoothing_over_time_outlives_a_change_of_size(
    cast: Avatar, track: PoseTrack, starve: Any, in_order: None
) -> None:
    model, identity, _ = load(cast, CPU)
    still = track.select([0] * 4)
    scenes = [np.full((160, 128, 3), 100 + 60 * (i > 1), np.uint8) for i in range(4)]
    whole = list(pictures(model, identity, still, SIZE, CPU, iter(scenes), calm=1.0))
    calls: list[int] = []
    starve(
        Dance, "forward", lambda model, condition, *_: calls.append(0) or (len(calls) > 2 and condition.size[1] > 64)
    )
    less = list(pictures(model, identity, still, SIZE, CPU, iter(scenes), calm=1.0))
    # The scene that has become lighter, away from the person.
    np.testing.assert_allclose([p[:20, :20].mean() for p in less], [p[:20, :20].mean() for p in whole], atol=1)


@pytest.mark.reliability(
    SECTION, "drive: no memory even for a quarter of the size", "DeviceError, exit code 5, no file"
)
def test_nothing_can_be_drawn(
    cast: Avatar, track: PoseTrack, starve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    motion = save_motion(track, tmp_path / "dance.npz")
    starve(Dance, "forward")
    words = ["drive", "--avatar", cast.name, "--source", str(motion), "--out", str(tmp_path / "out.mp4"), "--json"]
    assert main([*words, "--device", "cpu"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["type"], error["exit_code"]) == ("OutOfMemory", 5)
    assert error["message"] == "Memory ran out while drawing the frames."
    assert "--size" in error["remedy"]
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.reliability(SECTION, "drive: frames drawn smaller", "the video's metadata say so")
def test_the_video_says_how_it_was_drawn(cast: Avatar, track: PoseTrack, starve: Any, tmp_path: Path) -> None:
    motion = save_motion(track, tmp_path / "dance.npz")
    starve(Dance, "forward", wide(64))
    told = Warnings()
    out = drive(cast, motion, tmp_path / "out.mp4", DriveOptions(align="none", device="cpu"), progress=told)
    assert told.seen == [HALF]
    assert read_metadata(out)["retarget_notes"] == HALF
    with open_reader(out) as frames:
        assert [f.shape for f in frames] == [(160, 128, 3)] * len(track)


@pytest.mark.reliability(SECTION, "drive: no memory for the poses", "OutOfMemory names the stage")
def test_no_memory_for_the_poses(cast: Avatar, example_dance: Path, starve: Any, tmp_path: Path) -> None:
    starve(importlib.import_module("retarget.pose"), "estimated", error=MemoryError)
    with pytest.raises(OutOfMemory, match="Memory ran out while estimating the poses"):
        drive(cast, example_dance, tmp_path / "out.mp4", DriveOptions(device="cpu"))
    assert not (tmp_path / "out.mp4").exists()


# ------------------------------------------------------------------------------------------------------ not finite


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the model draw NaN or Inf in its n-th call, in low precision only or always."""

    def spoilt(at: int, value: float, *, low_only: bool) -> None:
        real, calls = Dance.forward, []

        def forward(self: Dance, condition: Any, identity: Any, state: Any) -> Any:
            frame, state = real(self, condition, identity, state)
            calls.append(torch.is_autocast_enabled("cpu"))
            if (len(calls) > at) and (calls[-1] or not low_only):
                rgb = frame.rgb.clone()
                rgb[..., 3:5, 3:5] = value
                frame = frame._replace(rgb=rgb)
            return frame, state

        monkeypatch.setattr(Dance, "forward", forward)

    return spoilt


@pytest.mark.reliability(SECTION, "drive: NaN or Inf in bf16", "the same frame again in fp32, said once")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_frame_that_is_not_finite_is_drawn_in_fp32(
    cast: Avatar, track: PoseTrack, spoil: Any, in_order: None, value: float
) -> None:
    low = device.choose("cpu", "bf16")
    model, identity, _ = load(cast, CPU)
    whole = list(pictures(model, identity, track, SIZE, CPU))
    spoil(2, value, low_only=True)
    told, notes = Warnings(), []
    got = list(pictures(model, identity, track, SIZE, low, progress=told, notes=notes))
    assert told.seen == notes == ["Frame 2 was not finite in bf16: from there on in fp32."]
    for a, b in zip(got[2:], whole[2:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.reliability(SECTION, "drive: NaN or Inf in fp32", "an error that names the frame; never a black one")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_frame_that_cannot_be_drawn(
    cast: Avatar, track: PoseTrack, spoil: Any, in_order: None, value: float, tmp_path: Path
) -> None:
    spoil(2, value, low_only=False)
    with pytest.raises(DeviceError, match="Frame 2 cannot be drawn: its pixels are not finite") as error:
        drive(cast, save_motion(track, tmp_path / "dance.npz"), tmp_path / "o.mp4", DriveOptions(device="cpu"))
    assert not isinstance(error.value, OutOfMemory)
    assert not (tmp_path / "o.mp4").exists()


# -------------------------------------------------------------------------------------------------- personalisation

SMALLER = "Memory ran out while fine-tuning: going on with pictures of {} pixels."


def large(limit: int, *, learning: bool) -> Callable[..., bool]:
    """Whether a forward pass of training draws a batch of more than `limit` pixels."""
    return lambda model, condition, *_: condition.person[:, 0].numel() > limit and model.training == learning


@pytest.fixture
def learnt(made: Callable[..., Avatar]) -> Callable[[], tuple[Avatar, list[str]]]:
    def personalize() -> tuple[Avatar, list[str]]:
        told = Warnings()
        avatar = made(told, steps=3, init="meta")
        assert avatar.meta.extra["notes"] == told.seen
        return avatar, told.seen

    return personalize


def smaller_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The puppet's pictures are 128 pixels across."""
    monkeypatch.setattr(personalizing, "SIDES", (128, 96, 64))


STAGES = {
    "drawing lessons": (Lessons, "_pair", lambda self, *_: self.size[0] > 96),
    "settle": (Lessons, "score", lambda self, *_, **__: self.size[0] > 96),
    "validation": (Lessons, "validate", lambda self, *_: self.size[0] > 96),
    "quality figures": (Lessons, "measure", lambda self, *_: self.size[0] > 96),
}


@pytest.mark.reliability(SECTION, "personalize: lessons, settling, validation, figures", "smaller pictures; recorded")
@pytest.mark.parametrize("stage", STAGES)
def test_fine_tuning_goes_on_with_smaller_pictures(
    learnt: Any, starve: Any, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    smaller_sides(monkeypatch)
    failed = starve(*STAGES[stage])
    avatar, told = learnt()
    assert told == [SMALLER.format(96)]
    assert len(failed) == 1
    assert np.isfinite(avatar.meta.quality["fg_psnr"])


@pytest.mark.reliability(SECTION, "personalize: fine-tuning step", "smaller batches, then smaller pictures; recorded")
def test_fine_tuning_divides_the_batch_before_the_pictures(
    learnt: Any, starve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller_sides(monkeypatch)
    sizes: list[tuple[int, int]] = []

    def much(model: Dance, condition: Any, *_: Any) -> bool:
        if model.training:
            sizes.append((len(condition.person), condition.person[0, 0].numel()))
        return model.training and len(sizes) <= 4  # three sizes of the batch, and the first with smaller pictures

    starve(Dance, "forward", much)
    _, told = learnt()
    assert [count for count, _ in sizes[:6]] == [4, 2, 1, 4, 2, 2]
    assert sizes[3][1] < sizes[0][1]
    pieces = [f"Memory ran out while learning: going on with the batch in {n} pieces." for n in (2, 4)]
    assert told == [SMALLER.format(96), pieces[0]]


@pytest.mark.reliability(SECTION, "personalize: nothing fits", "OutOfMemory; no avatar, the former one stays")
def test_fine_tuning_that_cannot_be(made: Any, cast: Avatar, starve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    smaller_sides(monkeypatch)
    before = cast.id
    failed = starve(Lessons, "score")
    with pytest.raises(OutOfMemory, match="Memory ran out while fine-tuning") as error:
        made(Warnings(), steps=3, init="meta")
    assert error.value.exit_code == 5
    assert len(failed) == 3
    assert Avatar.load(cast.name).id == before


@pytest.mark.reliability(SECTION, "personalize: gathering references, plate, mattes", "half the size; recorded")
@pytest.mark.parametrize("name", ["make_plate", "refine_matte"])
def test_references_are_gathered_at_half_the_size(short_me: Path, starve: Any, in_shared_home: Path, name: str) -> None:
    background = importlib.import_module("retarget.background")
    failed = starve(
        background, name, lambda first, *_: (first[0] if isinstance(first, list) else first).shape[1] > 100, opencv
    )
    told = Warnings()
    avatar = personalizing.personalize(
        short_me, frames=2, steps=0, size=180, name=name.replace("_", "-"), device="cpu", progress=told, init="random"
    )
    assert failed
    assert avatar.size == (90, 120)
    said = "Memory ran out while gathering the references: going on with half of it."
    assert said in told.seen
    assert avatar.meta.extra["notes"] == [said]


@pytest.mark.reliability(SECTION, "personalize: the preview", "half the size")
def test_the_preview_is_drawn_smaller(made: Any, starve: Any) -> None:
    starve(Dance, "forward", wide(64))
    told = Warnings()
    avatar = made(told, steps=0, init="random")
    assert told.seen == ["Memory ran out while drawing the preview: going on with half the size."]
    assert avatar.preview.stat().st_size > 1000


# --------------------------------------------------------------------------------------------------------- a true GPU


@pytest.fixture
def little_gpu() -> Iterator[Callable[[float], None]]:
    """Lets torch have so many bytes of the GPU, as if the rest were somebody else's."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(size: float) -> None:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.reliability(SECTION, "drive on a GPU with too little memory", "smaller frames; OutOfMemory at last")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_with_too_little_memory(cast: Avatar, track: PoseTrack, little_gpu: Callable[[float], None]) -> None:
    compute = device.choose("cuda", "fp32")
    model, identity, _ = load(cast, compute)
    size = (2048, 2560)  # 20 MB for each colour of a frame in float32
    one = track.select([0])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    (whole,) = pictures(model, identity, one, size, compute)
    taken = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    little_gpu(0.6 * taken)
    told = Warnings()
    (less,) = pictures(model, identity, one, size, compute, progress=told)
    assert told.seen[0] == HALF
    assert less.shape == whole.shape
    torch.cuda.empty_cache()
    little_gpu(2**21)
    with pytest.raises(OutOfMemory):
        list(pictures(model, identity, one, size, compute))


def test_what_is_no_want_of_memory() -> None:
    assert all(out_of_memory(error()) for error in ERRORS)
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    for error in (RuntimeError("mat1 and mat2 shapes"), ValueError("can't allocate memory"), OSError(12, "")):
        assert not out_of_memory(error)
