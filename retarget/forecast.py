"""What a command will take, said in one line before it starts: time, memory, disk.

    inputs and options ─ Need ─ announced: a line, or a refusal ─ the work, its stages timed ─ rates.json

Time: stages × rates that this machine was measured at. Every run that ends well corrects them (`Stopwatch`); before the
first one, they are what two cores of a server CPU took. Memory and disk: coefficients that were measured as written at
each of them. Poses in the cache, and what an interrupted run of the same has finished, take no time. Forecasts cost
nothing but a look at the inputs, which the command needs anyway.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import folders
from .console import duration, size
from .errors import DeviceError, RetargetError, StorageError
from .types import Progress

if TYPE_CHECKING:
    from .avatar import Avatar
    from .device import Compute
    from .drive import DriveOptions
    from .evaluate import EvaluateOptions
    from .personalize import PersonalizeOptions
    from .training.prepare import PrepareOptions
    from .training.train import TrainOptions

RATES: Final = "rates.json"
FIRST: Final = {
    "pose": 0.031, "picture": 0.27, "step": 0.13, "clip": 2.0, "pretrain": 0.05, "meta": 0.05,
    "personalize": 15.5, "drive": 4.0, "prepare": 6.0, "train": 5.0, "evaluate": 15.5,
}  # fmt: skip
"""Seconds before anything was measured here: for a unit of each kind of stage (`STAGES`), for the rest of a command.
From examples/*.mp4 on two idle cores: `time retarget personalize -k 5 -t 20` and `drive`, with and without known poses;
processor time for a step, for two clips of two seconds and for two steps of pretraining; 5000 of them for a pair."""
STAGES: Final = {
    "Poses of ": "pose", "Rendering": "picture", "Fine-tuning": "step", "Packing clips": "clip",
    "Pretraining": "pretrain", "Meta-learning": "meta",
}  # fmt: skip
"""How the titles of stages that are timed begin, or go on behind the clip's name. Units: a frame; a megapixel drawn; a
step; a second of a clip; a pair of a batch."""
SURE: Final = 0.8
"""The part of the memory forecast that is taken as certain: the coefficients are right within a fifth."""
POSE_PIXELS: Final = 960 * 540
"""Of a frame whose pose is estimated (`pose.base.LONG_SIDE`)."""
CODED: Final = {".mov": 840e3}
"""Bytes of coded video per megapixel with transparency: ProRes 4444 of a filmed clip."""
PLAIN, LOSSLESS = 30e3, 120e3
"""The same without: H.264 and VP9 (10e3 to 28e3; small pictures take most), and without loss."""


@dataclass(frozen=True)
class Need:
    """What a command will take.

    command    its name.
    stages     kind of stage → (its steps, units of a step): {"picture": (240, 0.31)}.
    memory     bytes of main memory at the peak.
    disk       bytes that are written in all, unfinished work included.
    where      a folder on the disk they are written to; it need not exist yet.
    machine    what the rates belong to: the machine, the device, the model.
    rest       how often what belongs to no timed stage is done: avatars that are made.
    """

    command: str
    stages: Mapping[str, tuple[float, float]]
    memory: float
    disk: float
    where: Path
    machine: str
    rest: float = 1.0

    @property
    def seconds(self) -> float:
        """The expected time."""
        rates = FIRST | read_rates().get(self.machine, {})
        parts = [steps * units * rates[kind] for kind, (steps, units) in self.stages.items()]
        return self.rest * rates[self.command] + sum(parts)

    def line(self) -> str:
        """For people."""
        return (
            f"This takes about {duration(self.seconds)}, up to {size(self.memory)} of memory and "
            f"{size(self.disk)} on disk."
        )


# ---------------------------------------------------------------------------------------------------- the commands


def personalize(inputs: Sequence[Path], options: PersonalizeOptions, compute: Compute) -> Need:
    """Of `retarget personalize`. Memory: 240x320 to 960x1280, K = 5 and 10, two seconds of video, peak of all
    processes: 1.3, 1.5, 3.5 and (K = 10, 480x640) 2.4 GB. Disk: the stored arrays, and as much for checkpoints."""
    from .gathering import LONGEST
    from .personalize import steps_before

    frames, pixels = 0.0, options.size**2 * 4 / 3
    if len(inputs) == 1 and (info := _probe(inputs[0])) is not None:
        pixels = _area(info.width, info.height, options.size)
        end = LONGEST if info.duration > LONGEST + 1 and not options.pick else None
        frames = 0.0 if options.labels else _poses(inputs[0], options.person, 0.0, end, options.restart)
    done = 0 if options.restart else steps_before(inputs, options, compute)
    k = len(options.pick) or options.frames
    return Need(
        "personalize",
        {"pose": (frames, 1.0), "step": (max(0, options.steps - done), 1.0)},
        _making(k, pixels, frames),
        25e6 + 20 * pixels * (k + 1),
        folders.data_dir(),
        machine(compute, options.model),
    )


def drive(avatar: Avatar, source: Path, out: Path, options: DriveOptions, compute: Compute) -> Need:
    """Of `retarget drive`. Memory: avatars of 240x320, 480x640, 960x1280 at their size, and of 480x640 at 1080x1440,
    45 frames, peak of all processes: 0.7, 0.9, 2.7 and 1.3 GB."""
    from .drive import drawn_before
    from .references import has_irises

    pixels, frames = float(avatar.size[0] * avatar.size[1]), 0.0
    drawn = pixels if options.size is None else pixels * (options.size / min(avatar.size)) ** 2
    shown = drawn * (2 if options.compare else 1)
    info = _maps(source, float(avatar.fps)) if source.is_dir() else _probe(source)
    poses = 0.0
    if info is not None:
        end = info.duration if options.end is None else min(options.end, info.duration)
        frames = max(0.0, info.fps * (end - options.start))
        if not avatar.meta.options.get("labels"):
            irises = has_irises(avatar.tensors())
            poses = _poses(source, options.person, options.start, options.end, options.restart, irises)
    left = max(0.0, frames - drawn_before(avatar, source, out, options, compute))
    coded = CODED.get(out.suffix.lower(), PLAIN) if options.background == "transparent" else PLAIN
    return Need(
        "drive",
        {"pose": (poses, 1.0), "picture": (left, drawn / 1e6)},
        0.65e9 + 1600 * pixels + 250 * shown + _waiting(poses),
        coded * shown / 1e6 * (frames + left) + 10e6,  # the finished segments, and the video that is made of them
        out.absolute().parent,
        machine(compute, avatar.model),
    )


def evaluate(clips: Sequence[Path], options: EvaluateOptions, compute: Compute) -> Need:
    """Of `retarget evaluate`: for each start, K and T an avatar and a drive, and for each K the baselines."""
    import tempfile

    from .evaluate import avatars
    from .training.prepare import with_maps
    from .tuning import shown

    frames, pixels = 0.0, 0.0
    if options.labels:
        clips = list(with_maps(clips, [Path(maps) for maps in options.labels]))
        infos = [_scene(path) for path in clips]
    else:
        infos = [info for path in clips if (info := _probe(path)) is not None]
    for info in infos:
        frames += info.fps * info.duration
        pixels = max(pixels, _area(info.width, info.height, options.size))
    runs = len(options.init) * len(options.frames) * len(options.steps)
    warped = 0 if options.labels else len(options.frames)
    rendered = frames * (1 - options.split) * (runs + warped)
    # Of a head, before it is cut out and afterwards.
    posed = frames * {"scene": 0, "body": 1, "head": 2}[shown(avatars(options))]
    steps = len(clips) * len(options.init) * len(options.frames) * sum(options.steps)
    longest = max((info.fps * info.duration * info.width * info.height for info in infos), default=0.0)
    return Need(
        "evaluate",
        {"pose": (posed, 1.0), "picture": (rendered, pixels / 1e6), "step": (steps, 1.0)},
        _making(max(options.frames), pixels, posed),
        LOSSLESS * longest / 1e6 + 50e6,
        Path(tempfile.gettempdir()),
        machine(compute, options.model),
        rest=max(1, len(clips) * runs),
    )


def prepare(clips: Sequence[Path], out: Path, options: PrepareOptions) -> Need | None:
    """Of `retarget prepare`; None without a video, and for street scenes, whose poses are not estimated. Memory:
    0.3 GB, and 1.1 GB for each process. Disk: 150 kB per megapixel that is kept."""
    from .training.prepare import VIDEOS

    if options.labels:
        return None
    paths = [p for clip in clips for p in (sorted(clip.iterdir()) if clip.is_dir() else [clip])]
    paths = [p for p in paths if p.suffix.lower() in VIDEOS]
    workers = max(1, min(options.workers or os.cpu_count() or 1, len(paths)))
    # Only the first is looked at, so that thousands of clips cost no time: the others are as long, for all we know.
    info = _probe(paths[0]) if paths else None
    if info is None:
        return None
    return Need(
        "prepare",
        {"clip": (len(paths), info.duration / workers)},
        0.3e9 + 1.1e9 * workers,
        150e3 * len(paths) * info.duration * options.fps * options.side**2 * 4 / 3 / 1e6 + 1e6,
        out.absolute(),
        machine(None, ""),
    )


def train(corpus: Path, out: Path, options: TrainOptions, compute: Compute, workers: int = 0) -> Need | None:
    """Of `retarget train pretrain|meta`; None for what has no forecast. Memory: batches of 4 and 16 at 256 pixels: 0.8
    and 1.0 GB; a process that draws sequences of whole people 2.1 GB, one that reads what was drawn 0.6. Disk: a run's
    folder, 9 MB, twice while it is replaced, and the drawn tasks, 2.6 MB each."""
    if options.stage not in ("pretrain", "meta"):
        return None
    from .models import MODELS
    from .training.corpus import Corpus
    from .training.feeding import drawers

    clips = len(Corpus(corpus).entries)
    kept = options.model in MODELS and MODELS[options.model]().Ahead is not None
    units = options.batch * (options.tasks * options.inner if options.stage == "meta" else 1)
    return Need(
        "train",
        {options.stage: (options.steps, units)},
        0.8e9 + 15e6 * options.batch + (0.6e9 if kept else 2.1e9) * drawers(compute.device, workers),
        50e6 + 2.6e6 * clips * max(1, options.draws),
        out.absolute(),
        machine(compute, options.model),
    )


def _probe(path: Path) -> _Info | None:
    """What a video is like; None for photos, folders and motion files."""
    from .video import is_image, probe

    if not path.is_file() or path.suffix == ".npz" or is_image(path):
        return None
    info = probe(path)
    return _Info(float(info.fps), float(info.duration), info.width, info.height)


def _poses(path: Path, person: str, start: float, end: float | None, restart: bool, irises: bool = False) -> float:
    """Frames whose poses are still to be estimated."""
    from .pose import PoseOptions, remaining

    return remaining(path, PoseOptions(person=person, irises=irises), start=start, end=end, restart=restart)


def _scene(path: Path) -> _Info:
    """What a scene is like, a video or a folder of pictures."""
    from .personalize import expand
    from .streets import Film

    film = Film(expand([path]))
    return _Info(float(film.fps), len(film) / float(film.fps), *film.size)


def _maps(folder: Path, fps: float) -> _Info:
    """What a folder of label maps is like."""
    return _Info(fps, sum(1 for _ in folder.glob("*.png")) / fps, 0, 0)


@dataclass(frozen=True)
class _Info:
    fps: float
    duration: float
    width: int
    height: int


def _area(width: int, height: int, short: int) -> float:
    scale = min(1.0, short / min(width, height))
    return width * height * scale**2


def _making(k: int, pixels: float, frames: float) -> float:
    """Bytes of memory for an avatar of `k` references of so many pixels: lessons at 256 pixels, or the pictures."""
    return max(0.8e9 + k * 0.1e9, 0.9e9 + 416 * k * pixels) + _waiting(frames)


def _waiting(frames: float) -> float:
    """Bytes of the pictures that wait for their poses (`pose.mediapipe`: 66 for each thread, and two more threads)."""
    return 3 * POSE_PIXELS * min(frames, (min(4, os.cpu_count() or 1) + 2) * 66)


# ------------------------------------------------------------------------------------------------- before and after


@contextmanager
def announced(make: Callable[[], Need | None], progress: Progress, *, yes: bool) -> Iterator[Progress]:
    """Say what the work inside will take, and learn from how long it took when it ends well.

    Args:
        make: the forecast. Inputs that it cannot read are left to the command, which says more about them.
        yes: go on even if memory or disk do not suffice.

    Yields what to give to the work as its progress.

    Raises:
        StorageError: the disk cannot suffice.
        DeviceError: the memory cannot suffice.
    """
    try:
        need = make()
    except (RetargetError, OSError):
        need = None
    if need is None:
        yield progress
        return
    progress.note(need.line())
    if not yes:
        check(need)
    watch = Stopwatch(progress, need)
    yield watch
    watch.keep()


def check(need: Need) -> None:
    """Raises StorageError or DeviceError when what is free cannot suffice."""
    remedy = "or say --yes to try all the same."
    where = next(p for p in (need.where, *need.where.parents) if p.exists())
    if (room := shutil.disk_usage(where).free) < need.disk:
        raise StorageError(
            f"This needs about {size(need.disk)} on the disk of {where}, and {size(room)} is free.",
            f"Make room, choose another folder, {remedy}",
        )
    if (left := free_memory()) is not None and left < SURE * need.memory:
        raise DeviceError(
            f"This needs about {size(need.memory)} of memory, and {size(left)} is free.",
            f"Close other programs, use smaller pictures or fewer at once, {remedy}",
        )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: the least of what the machine and each control group have left (Linux);
    None where nobody tells."""
    try:
        told = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        free = [1024 * sum(int(told[key].split()[0]) for key in ("MemAvailable", "SwapFree"))]
    except (OSError, ValueError, LookupError):
        return None
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                top = root / "sys/fs/cgroup" / kinds
                group = top / path.strip("/")
                free += [left for g in (group, *group.parents) if g.is_relative_to(top) and (left := _left(g))]
    return min(free)


def _left(group: Path) -> int | None:
    """Bytes left of a control group's limit, of version 2 or 1; None without one. Cached files count as free."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, LookupError):
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            taken = int((group / used).read_text()) - int(stat[cached])
            return max(1, int((group / limit).read_text()) - taken)  # "max" is no number
    return None


# ------------------------------------------------------------------------------------------------------------ rates


def machine(compute: Compute | None, model: str) -> str:
    """What measured rates belong to."""
    where = "cpu" if compute is None else compute.describe()
    return " | ".join((platform.node(), platform.machine(), f"{os.cpu_count()} cores", where, model))


def read_rates() -> dict[str, dict[str, float]]:
    """machine → kind → seconds, as far as they were measured and can be read."""
    try:
        told = json.loads((folders.cache_dir() / RATES).read_text(encoding="utf-8"))
        return {
            name: {k: float(v) for k, v in rates.items() if k in FIRST and 0 < float(v) < math.inf}
            for name, rates in told.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@dataclass
class _Lap:
    """A stage that is timed. What is done within its first call may have been done before the stage began."""

    kind: str
    began: float
    done: int = 0
    called: bool = False


class Stopwatch:
    """A `Progress` that measures how long each kind of stage takes, and passes on what it is told."""

    def __init__(self, progress: Progress, need: Need) -> None:
        self._progress, self._need = progress, need
        self._began = time.monotonic()
        self._lap: _Lap | None = None
        self._seconds: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._timed = 0.0
        self.note, self.warn = progress.note, progress.warn

    def stage(self, title: str, total: int | None = None) -> None:
        self._finish()
        kinds = [kind for words, kind in STAGES.items() if words in title]
        self._lap = _Lap(kinds[0], time.monotonic()) if kinds and kinds[0] in self._need.stages else None
        self._progress.stage(title, total)

    def advance(self, steps: int = 1, **figures: float) -> None:
        if (lap := self._lap) is not None:
            if steps > 1 and not lap.called:  # a run that goes on says how far it was
                self._timed += time.monotonic() - lap.began
                lap.began = time.monotonic()
            else:
                lap.done += steps
            lap.called = True
        self._progress.advance(steps, **figures)

    def _finish(self) -> None:
        lap, self._lap = self._lap, None
        if lap is not None:
            took = time.monotonic() - lap.began
            self._timed += took
            if lap.done:
                self._seconds[lap.kind] = self._seconds.get(lap.kind, 0.0) + took
                self._done[lap.kind] = self._done.get(lap.kind, 0) + lap.done

    def measured(self) -> dict[str, float]:
        """Kind → seconds per unit, and the command → the seconds of all the rest."""
        self._finish()
        units = {kind: self._need.stages[kind][1] for kind in self._done}
        rates = {k: self._seconds[k] / (self._done[k] * units[k]) for k in self._done if units[k] > 0}
        return rates | {self._need.command: max(0.1, time.monotonic() - self._began - self._timed) / self._need.rest}

    def keep(self) -> None:
        """Let the next forecast know: half of what was measured now, half of what was known."""
        everything = read_rates()
        known = everything.setdefault(self._need.machine, {})
        for kind, seconds in self.measured().items():
            known[kind] = float(f"{(seconds + known.get(kind, seconds)) / 2:.4g}")
        with suppress(OSError, RetargetError):  # a cache that cannot be written costs a forecast, no more
            folders.replace_file(folders.made(folders.cache_dir()) / RATES, json.dumps(everything, indent=1).encode())
