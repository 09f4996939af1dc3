#!/usr/bin/env python3
"""Measure speed and memory on the examples (480x640, K = 5), and a frame through Pix2PixHD's generator beside ours.

    make bench        or        .venv/bin/python benchmarks/bench.py [--device auto] [--json FILE]

Commands are timed as a user runs them, start of Python included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ME, DANCE = ROOT / "examples" / "me.mp4", ROOT / "examples" / "dance.mp4"
FRAMES = 120
"""Frames that the stages are measured on."""


class Table(list[dict[str, Any]]):
    """What was measured, printed line by line."""

    def add(self, what: str, value: float | str, unit: str = "", goal: str = "") -> None:
        self.append({"what": what, "value": value, "unit": unit, "goal": goal})
        shown = value if isinstance(value, str) else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
        print(f"{what:<58} {shown:>14} {unit:<8} {goal}".rstrip(), flush=True)


def command(*words: object) -> tuple[float, float]:
    """Run `retarget` with these words: seconds, and the most memory that one of its processes had, in GB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "retarget", *map(str, words), "--quiet"], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"retarget {' '.join(map(str, words))} failed")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def milliseconds(work: Callable[[], object], times: int, device: Any) -> float:
    """Median time of `work`, after one run that does not count."""
    import torch

    took = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:]) * 1e3


def repeated(source: Path, out: Path, times: int) -> int:
    """Write a video that shows `source` several times over; returns how many frames that are."""
    from retarget.video import open_reader, open_writer, probe

    info = probe(source)
    with open_writer(out, (info.width, info.height), info.fps, colour=info.colour) as write:
        for _ in range(times):
            with open_reader(source) as frames:
                for frame in frames:
                    write(frame)
    return times * info.frames


def gpu_memory(table: Table, device: Any) -> None:
    """The most that torch had on a GPU since the last call."""
    import torch

    if device.type == "cuda":
        table.add("    GPU memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
        torch.cuda.reset_peak_memory_stats()


def asleep(model: Any) -> None:
    """Zero the last layers: nets that answer zero are not asked."""
    for net in (model.synthesis, model.fusion):
        if net is not None:
            for parameter in net.last.parameters():
                parameter.detach().zero_()


def main_path(table: Table, home: Path, device: str) -> None:
    """The two commands from end to end."""
    from retarget.video import probe

    where = ("--device", device)
    count = probe(DANCE).frames
    seconds, _ = command("personalize", ME, "-k", 5, "-t", 0, "--name", "bench", *where)
    table.add("personalize -k 5 -t 0, poses not cached", seconds, "s")
    seconds, memory = command("personalize", ME, "-k", 5, "-t", 20, "--name", "bench", *where)
    table.add("personalize -k 5 -t 20, poses cached", seconds, "s", "≤ 60")
    table.add("  memory", memory, "GB")
    if device == "cuda":
        seconds, _ = command("personalize", ME, "-k", 5, "-t", 200, "--name", "bench", *where)
        table.add("personalize -k 5 -t 200, poses cached", seconds, "s")

    def drive(source: Path) -> tuple[float, float]:
        return command("drive", "--source", source, "--out", home / "out.mp4", "--avatar", "bench", "--yes", *where)

    seconds, short = drive(DANCE)
    table.add(f"drive, {count} frames, poses not cached", count / seconds, "frames/s", "≥ 5")
    table.add("  memory", short, "GB", "≤ 2")
    seconds, memory = drive(DANCE)
    table.add(f"drive, {count} frames, poses cached", count / seconds, "frames/s", "≥ 10")
    table.add("  memory", memory, "GB", "≤ 2")
    count = repeated(DANCE, home / "long.mp4", 3)
    seconds, long = drive(home / "long.mp4")
    table.add(f"drive, {count} frames, poses not cached", count / seconds, "frames/s", "≥ 5")
    table.add("  memory", long, "GB", "≤ 2")
    table.add("  memory, against the short source", 100 * (long / short - 1), "% more", "flat")


def stages(table: Table, home: Path, device: str) -> float:
    """Where the time of a frame goes; in `drive` ffmpeg decodes and encodes beside the rest. Returns ms to draw one."""
    from retarget.avatar import Avatar
    from retarget.device import choose
    from retarget.drive import DriveOptions, load, movement
    from retarget.pose import PoseOptions, make_estimator
    from retarget.rendering import pictures
    from retarget.types import Silent
    from retarget.video import open_reader, open_writer, probe

    info, compute, avatar = probe(DANCE), choose(device), Avatar.load("bench")

    spent: list[float] = []

    def took(what: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        spent.append((time.perf_counter() - start) / FRAMES * 1e3)
        table.add(f"  {what}", spent[-1], "ms/frame")
        return result

    def decode() -> list[Any]:
        with open_reader(DANCE, end=float(FRAMES / info.fps)) as reader:
            return list(reader)

    def encode() -> None:
        with open_writer(home / "stage.mp4", avatar.size, info.fps) as write:
            for frame in drawn:
                write(frame)

    table.add(f"stages of drive, mean of {FRAMES} frames", compute.describe())
    frames = took("decode", decode)
    estimator = make_estimator(PoseOptions())
    took("pose", lambda: estimator.track(iter(frames), fps=info.fps, progress=Silent()))
    model: Any
    track: Any
    model, identity, stored = load(avatar, compute)
    track = movement(DANCE, avatar, stored, DriveOptions(), Silent()).select(range(FRAMES))
    list(pictures(model, identity, track.select(slice(3)), avatar.size, compute))  # the first frames pay for set-up
    drawn = took(
        "draw: layout, parts, nets, plate", lambda: list(pictures(model, identity, track, avatar.size, compute))
    )
    draw = spent[-1]
    gpu_memory(table, compute.device)
    took("encode", encode)
    asleep(model)
    took("draw, without the nets", lambda: list(pictures(model, identity, track, avatar.size, compute)))
    return draw


def networks(table: Table, draw: float, device: str) -> None:
    """A 480x640 frame from ours and from Pix2PixHD's global generator (Wang et al. 2018), both given 45 pose maps."""
    import torch

    from retarget.avatar import Avatar
    from retarget.device import choose
    from retarget.drive import load
    from retarget.models.layers import GlobalGenerator

    compute = choose(device)
    times = 20 if compute.device.type == "cuda" else 3
    size = (640, 480)
    ours: Any = load(Avatar.load("bench"), compute)[0]
    theirs: Any = GlobalGenerator(45, width=64)
    for model in (ours, theirs):
        model.to(compute.device).to(memory_format=torch.channels_last).eval()
    height, width = 190, 120  # a standing person's surroundings at 80 pixels per metre
    nets = [net for net in (ours.synthesis, ours.fusion) if net is not None]
    inputs = [(n, torch.randn(1, n.stem[0].in_channels, height, width, device=compute.device)) for n in nets]
    maps = torch.randn(1, 45, *size, device=compute.device).to(memory_format=torch.channels_last)

    table.add("one 480x640 frame", compute.describe())
    with torch.inference_mode(), compute.autocast():
        alone = milliseconds(lambda: [net(x) for net, x in inputs], 10 * times, compute.device)
        other = milliseconds(lambda: theirs(maps), times, compute.device)
    table.add("  ours: draw, as above", draw, "ms")
    table.add(f"  ours: its networks alone, at {width}x{height}", alone, "ms")
    table.add("  Pix2PixHD's global generator", other, "ms")
    gpu_memory(table, compute.device)
    table.add("  ours is so many times as fast: draw", other / draw, "x")
    table.add("  ours is so many times as fast: networks alone", other / alone, "x")
    for name, model in (("ours", ours), ("Pix2PixHD's", theirs)):
        table.add(f"  parameters, {name}", sum(p.numel() for p in model.parameters()) / 1e6, "million")


def systems(table: Table, device: str) -> None:
    """Every model beside the others: parameters, a frame of 192x256 with its pose maps, a step of fine-tuning."""
    import torch

    from retarget.avatar import Avatar
    from retarget.benchmark import benchmark_frame
    from retarget.device import choose
    from retarget.models import MODELS, build
    from retarget.models.base import Batch, Frame, stacked
    from retarget.references import poses, references, stored_track
    from retarget.training.fit import FitOptions, FitState

    compute = choose(device)
    at, size = compute.device, (192, 256)
    stored = dict(Avatar.load("bench").tensors())
    known = references(stored, size=size).to(at)
    walk = stored_track(stored, "track").scaled(size)
    window = poses(walk.select([0])).to(at)
    times = 20 if at.type == "cuda" else 5
    table.add("models, size `small`, 192x256", compute.describe())
    for name in MODELS:
        if at.type == "cuda":  # what was there before is not this model's
            torch.cuda.reset_peak_memory_stats()
        frame = benchmark_frame(name, size, device)
        table.add(f"  {name}: parameters", frame.parameters / 1e6, "million")
        table.add(f"  {name}: one frame", 1e3 * frame.seconds, "ms")
        torch.manual_seed(0)
        model = build(name).to(at).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            person = model.encode(known)
            truth = Frame(known.rgb[:, 0], known.matte[:, 0].to(at))
            pair = model.ahead(model.condition(window, size[::-1]), person, truth)
            batch = stacked([Batch(pair[0], pair[1], None, pair[2])] * 4)
        model.adopt(person)
        objective = model.objective(critics=False).to(at)
        state = FitState(model, objective, model.tunable(person), compute, FitOptions())
        took = milliseconds(partial(state.advance, batch), times, at)
        table.add(f"  {name}: one step of fine-tuning, 4 pairs", took, "ms")
        gpu_memory(table, at)


def training(table: Table, device: str) -> None:
    """One step of pretraining, and of a task of Reptile, on pairs as large as usual."""
    import torch

    from retarget.device import choose
    from retarget.models import build
    from retarget.models.base import Batch, Frame
    from retarget.models.dance import Moved
    from retarget.models.losses import DanceObjective, LossWeights
    from retarget.training.fit import FitOptions, FitState

    compute = choose(device)
    model: Any = build("dance").to(compute.device)
    at = compute.device
    maps, person, plate, rgb, matte = (torch.rand(8, n, 192, 112, device=at) for n in (model.maps, 4, 3, 3, 1))
    batch = Batch(Moved(maps, person, plate), None, None, Frame(2 * rgb - 1, matte))
    for what, critic in (("without critics", 0.0), ("with critics", 1.0)):
        objective = DanceObjective(model.maps, LossWeights(w_rela=critic)).to(at)
        state = FitState(model, objective, model.parameters(), compute, FitOptions())
        times = 20 if at.type == "cuda" else 3
        table.add(f"training step of 8 pairs, {what}", milliseconds(partial(state.advance, batch), times, at), "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="retarget-bench-"))
    os.environ["RETARGET_HOME"] = str(home)
    try:
        import torch

        import retarget
        from retarget.device import choose

        device = choose(arguments.device).device.type
        table = Table()
        table.add("retarget, torch, processor cores", f"{retarget.__version__}, {torch.__version__}, {os.cpu_count()}")
        table.add("load of the machine before (0: nothing else runs)", os.getloadavg()[0])
        main_path(table, home, device)
        draw = stages(table, home, device)
        networks(table, draw, device)
        systems(table, device)
        training(table, device)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
