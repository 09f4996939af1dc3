"""Does everything work here? Each check does the real thing once: a kernel, a video file, a pose, a rendered frame."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from . import __version__, folders, weights
from .console import duration, explain, size
from .errors import RetargetError
from .models import MODELS
from .types import Progress, Silent

if TYPE_CHECKING:
    from .device import Compute

Status = Literal["ok", "warn", "fail"]
PICTURE: Final = Path(__file__).parent / "_assets" / "person.jpg"
"""A synthetic person (CC0), 480x640."""
FRAME: Final = (384, 512)
"""(width, height) of the frame whose rendering is timed."""
SMALL: Final = (192, 256)
"""The same for each model."""
LOW_DISK, NO_DISK = 2_000_000_000, 200_000_000
_REINSTALL: Final = "Install it again: pip install --force-reinstall retarget"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    status   `fail` only for what is needed; `warn` for what is slower or poorer than it could be.
    text     what was found.
    remedy   how to mend it; empty when ok.
    figures  the same for machines.
    """

    name: str
    status: Status
    text: str
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def examine(device: str = "auto", precision: str = "auto", *, progress: Progress | None = None) -> list[Check]:
    """Run every check; none of them raises.

    Args:
        device, precision: as for `device.choose`.
    """
    progress = progress or Silent()
    compute: list[Compute] = []
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("device", lambda: _device(device, precision, compute)),
        ("kernel", lambda: _kernel(compute[0])),
        ("precision", lambda: _precision(compute[0])),
        ("memory", lambda: _memory(compute[0])),
        ("ffmpeg", _ffmpeg),
        ("pose", _pose),
        ("weights", _weights),
        ("folders", _folders),
        ("disk", _disk),
        ("speed", lambda: _speed(compute[0])),
        *((name, lambda name=name: _model(name, compute[0])) for name in MODELS),
    ]
    results = []
    progress.stage("Examining", len(checks))
    for name, check in checks:
        if name in ("kernel", "precision", "memory", "speed", *MODELS) and not compute:
            results.append(Check(name, "fail", "not examined: there is no device", "Mend the device first."))
        else:
            results.append(_guarded(name, check))
        progress.advance()
    return results


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except RetargetError as error:
        return Check(name, "fail", error.message, error.remedy)
    except ImportError as error:
        return Check(name, "fail", f"{error}.", _REINSTALL)
    except Exception as error:
        failure = explain(error)
        return Check(name, "fail", failure.message, failure.remedy)


def _python() -> Check:
    text = f"{platform.python_version()} on {platform.platform(aliased=True, terse=True)}, retarget {__version__}"
    return Check("python", "ok", text, figures={"python": platform.python_version(), "executable": sys.executable})


def _packages() -> Check:
    import cv2
    import mediapipe
    import numpy
    import torch

    found = {"torch": torch.__version__, "mediapipe": mediapipe.__version__, "numpy": numpy.__version__}
    found["opencv"] = cv2.__version__
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    opencv = {}
    for name in ("opencv-python", "opencv-contrib-python", "opencv-python-headless"):
        try:
            opencv[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(set(opencv.values())) > 1:
        packages = " and ".join(f"{name} {version}" for name, version in opencv.items())
        return Check(
            "packages",
            "warn",
            f"{packages} overwrite each other.",
            "Install one version of both: pip install --force-reinstall --no-deps opencv-python==4.11.0.86 "
            "opencv-contrib-python==4.11.0.86",
            found,
        )
    return Check("packages", "ok", text, figures=found)


def _device(device: str, precision: str, compute: list[Compute]) -> Check:
    from .device import choose, unused_gpu

    chosen = choose(device, precision)
    compute.append(chosen)
    figures = {"device": str(chosen.device), "precision": chosen.precision}
    if chosen.device.type == "cpu" and (idle := unused_gpu()):
        sentence, _, remedy = idle.partition("; ")
        return Check("device", "warn", f"{chosen.describe()}. {sentence}.", remedy[:1].upper() + remedy[1:], figures)
    return Check("device", "ok", chosen.describe(), figures=figures)


def _kernel(compute: Compute) -> Check:
    """A convolution on the device, against the same one on the CPU in double precision."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 32, 128, 128, generator=generator)
    w = torch.randn(32, 32, 3, 3, generator=generator)
    want = F.conv2d(x.double(), w.double(), padding=1)
    with torch.inference_mode():
        there = x.to(compute.device), w.to(compute.device)
        got = F.conv2d(*there, padding=1)
        _wait(compute)
        started = time.perf_counter()
        for _ in range(10):
            got = F.conv2d(*there, padding=1)
        _wait(compute)
        seconds = (time.perf_counter() - started) / 10
    error = float((got.cpu().double() - want).abs().max() / want.abs().max())
    rate = 2 * want.numel() * 32 * 9 / seconds / 1e9
    figures = {"seconds": seconds, "relative_error": error}
    if not error < 1e-2:
        text = f"a convolution on {compute.device} is wrong by {error:.1%}"
        return Check("kernel", "fail", text, "Update the driver, or use --device cpu.", figures)
    return Check("kernel", "ok", f"convolution in {seconds * 1e3:.2f} ms ({rate:.0f} GFLOP/s)", figures=figures)


def _precision(compute: Compute) -> Check:
    """A step of training as fine-tuning does it."""
    import torch

    if compute.precision == "fp32":
        return Check("precision", "ok", f"fp32; mixed precision is used on CUDA, this is {compute.device.type}")
    layer = torch.nn.Conv2d(16, 16, 3, device=compute.device)
    optimiser, scaler = torch.optim.Adam(layer.parameters()), compute.scaler()
    with compute.autocast():
        loss = layer(torch.ones(1, 16, 32, 32, device=compute.device)).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    if not all(p.isfinite().all() for p in layer.parameters()):
        text = f"a training step in {compute.precision} gives values that are not finite"
        return Check("precision", "warn", text, "Use --precision fp32.")
    return Check("precision", "ok", f"{compute.precision} autocast" + (", scaled" if scaler.is_enabled() else ""))


def _memory(compute: Compute) -> Check:
    import torch

    figures: dict[str, Any] = {}
    parts = []
    if compute.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(compute.device)
        figures |= {"gpu_free": free, "gpu_total": total}
        parts.append(f"GPU {size(free)} of {size(total)} free")
    names = getattr(os, "sysconf_names", {})
    ram = None
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        figures["ram_total"] = ram
        parts.append(f"RAM {size(ram)}")
    if figures.get("gpu_free", 4e9) < 2e9 or (ram or 8e9) < 3e9:
        return Check("memory", "warn", ", ".join(parts), "Close other programs, or use a smaller --size.", figures)
    return Check("memory", "ok", ", ".join(parts) or "unknown", figures=figures)


def _ffmpeg() -> Check:
    """Write and read back a clip with each encoder that `drive` uses."""
    import imageio_ffmpeg
    import numpy as np

    from . import video

    version = imageio_ffmpeg.get_ffmpeg_version()
    kinds = {"H.264": ("clip.mp4", False), "VP9 with alpha": ("clip.webm", True), "MOV with alpha": ("clip.mov", True)}
    failed = {}
    with tempfile.TemporaryDirectory(prefix="retarget-") as folder:
        for kind, (name, alpha) in kinds.items():
            path = Path(folder) / name
            try:
                with video.open_writer(path, (64, 64), Fraction(25), alpha=alpha) as write:
                    for i in range(3):
                        write(np.full((64, 64, 4 if alpha else 3), 60 * i, np.uint8))
                if (frames := video.probe(path).frames) != 3:
                    failed[kind] = f"{frames} frames of 3 came back"
            except RetargetError as error:
                failed[kind] = error.message
    remedy = "Unset IMAGEIO_FFMPEG_EXE, and run pip install --force-reinstall imageio-ffmpeg."
    figures = {"version": version, "encoders": {kind: kind not in failed for kind in kinds}}
    if failed:
        text = f"{version} cannot write " + "; ".join(f"{kind} ({why})" for kind, why in failed.items())
        return Check("ffmpeg", "fail" if "H.264" in failed else "warn", text, remedy, figures)
    return Check("ffmpeg", "ok", f"{version}, writes {', '.join(kinds)}", figures=figures)


def _pose() -> Check:
    from . import pose, video

    picture = video.read_image(PICTURE)
    started = time.perf_counter()
    track, mask = pose.estimate_images([picture])[0]
    seconds = time.perf_counter() - started
    share = float(mask.mean())
    figures = {"seconds": seconds, "found": bool(track.found[0]), "person_share": share}
    if not track.found[0] or not 0.02 < share < 0.6:
        text = "the pose models load, but do not find the person in the test picture"
        return Check("pose", "fail", text, "Install mediapipe again: pip install --force-reinstall mediapipe", figures)
    return Check(
        "pose", "ok", f"finds the person in the test picture ({duration(seconds)} with loading)", figures=figures
    )


def _weights() -> Check:
    states = weights.verify()
    figures = {line.name: state for line, state, _ in states}
    parts = [f"{line.name} {state}" for line, state, _ in states]
    if not any(line.kind == "model" for line, _, _ in states):
        parts.insert(0, "none shipped with this version: dance starts from the moved pixels")
    text = ", ".join(parts)
    wrong = [path for _, state, path in states if state == "wrong"]
    if wrong:
        return Check("weights", "fail", text, f"Delete {wrong[0]} and run retarget weights pull.", figures)
    if any(line.kind == "model" and state == "missing" for line, state, _ in states):
        return Check("weights", "warn", text, "Run retarget weights pull.", figures)
    return Check("weights", "ok", text, figures=figures)


def _folders() -> Check:
    places = {"data": folders.data_dir(), "cache": folders.cache_dir()}
    for place in places.values():
        with tempfile.TemporaryFile(dir=folders.made(place)) as file:
            file.write(b"retarget")
    text = ", ".join(f"{name} {place}" for name, place in places.items())
    return Check("folders", "ok", text, figures={name: str(place) for name, place in places.items()})


def _disk() -> Check:
    free = min(shutil.disk_usage(place).free for place in _existing())
    figures = {"free": free}
    if free < LOW_DISK:
        remedy = "Make room, or set the environment variable RETARGET_HOME to a folder on another disk."
        return Check("disk", "fail" if free < NO_DISK else "warn", f"{size(free)} free", remedy, figures)
    return Check("disk", "ok", f"{size(free)} free", figures=figures)


def _existing() -> Iterator[Path]:
    """The folders that are written, or what of their parents exists."""
    for place in (folders.data_dir(), folders.cache_dir(), Path(tempfile.gettempdir())):
        yield next(p for p in (place, *place.parents) if p.exists())


def _speed(compute: Compute) -> Check:
    from .benchmark import benchmark_frame

    seconds = benchmark_frame(size=FRAME, device=str(compute.device)).seconds
    text = f"about {seconds:.3f} s per frame of {FRAME[0]}x{FRAME[1]} on {compute.device} ({1 / seconds:.1f} frames/s)"
    return Check("speed", "ok", text, figures={"seconds_per_frame": seconds, "size": list(FRAME)})


def _model(name: str, compute: Compute) -> Check:
    """A frame of one model."""
    from .benchmark import benchmark_frame

    found = benchmark_frame(name, SMALL, str(compute.device))
    known = "learned weights" if found.learned else "no learned weights: train some, or use another --model"
    text = f"{known}; {found.parameters / 1e6:.1f} million parameters, {found.seconds:.3f} s per {SMALL[0]}x{SMALL[1]}"
    figures = {"learned": found.learned, "parameters": found.parameters, "seconds_per_frame": found.seconds}
    return Check(name, "ok", text, figures=figures)


def _wait(compute: Compute) -> None:
    """Until the device has done what it was told."""
    import torch

    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    elif compute.device.type == "mps":
        torch.mps.synchronize()
