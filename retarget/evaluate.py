"""`evaluate`: people re-enact their own videos, and the result is compared with the truth (MetaPix §4.1).

    clip ─┬─ first part ─ personalize ─ avatar ─┬─ dance  what `drive` makes of it
          │                                     ├─ warp   the same without anything learned
          │                                     └─ copy   the reference with the nearest pose
          └─ last part, the truth: gives the poses, and is what all three are compared with

Importing this module loads nothing heavy: the command line reads its defaults from here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RetargetError, StorageError, UsageError
from .personalize import PersonalizeOptions
from .types import Progress, Silent

if TYPE_CHECKING:
    from .avatar import Avatar

_DEFAULT = PersonalizeOptions()


@dataclass(frozen=True)
class EvaluateOptions:
    """How to measure.

    frames, steps, size, model, seed  of the avatar: see `PersonalizeOptions`.
    split   this part of a clip is learned from, the rest is the truth.
    every   compare every so many-th frame only.
    device, precision  see `device.choose`.
    """

    frames: int = 5
    steps: int = 20
    split: float = 0.85
    size: int = _DEFAULT.size
    every: int = 1
    model: str = _DEFAULT.model
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Clip:
    """What is measured under one name: a clip to split, or a pair of files (`truth` is given)."""

    name: str
    path: Path
    truth: Path | None = None


class Report(dict[str, Any]):
    """The figures, as JSON has them: their names are those of `metrics.Scores`; null where nothing could be measured.

    clips     [{"clip": name, "references": [frames used], "methods": {method: {figure: value}}}]
    mean      {method: {figure: mean over the clips}}
    failures  [{"clip": name, "type", "error", "remedy"}]: clips that could not be measured
    options, version, weights  what was measured; `weights` is the sha256 of the shipped ones, or null
    """

    @property
    def failures(self) -> list[dict[str, str]]:
        return list(self["failures"])

    def rows(self) -> list[dict[str, Any]]:
        """One flat record for each clip and method, the means last."""
        parts = [*self["clips"], {"clip": "mean", "methods": self["mean"]}]
        return [{"clip": p["clip"], "method": m} | figures for p in parts for m, figures in p["methods"].items()]

    def markdown(self) -> str:
        """The rows as a table."""
        from .metrics import FIGURES

        columns = ("clip", "method", *FIGURES)
        lines = [columns, ["---"] * len(columns)]
        lines += [[_cell(row.get(key)) for key in columns] for row in self.rows()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def evaluate(
    clips: Sequence[str | Path],
    options: EvaluateOptions | None = None,
    *,
    progress: Progress | None = None,
    **changes: Any,
) -> Report:
    """Measure the model and two baselines, `copy` and `warp`, on clips of one person each.

    A clip is split; files called NAME_me and NAME_drive are a pair, and one of them stands for both. The user's avatars
    stay as they are; poses are cached as usual. Works with the environment variable RETARGET_HOME changed meanwhile.

    Args:
        clips: videos.
        options: how; keyword arguments named like its fields change single ones.
        progress: is told what happens, and warned of every clip that cannot be measured.

    Returns:
        The figures, and which clips failed.

    Raises:
        RetargetError: options that cannot be, a device that is missing; the first failure, when all clips failed.
    """
    from . import __version__, device, weights
    from .personalize import changed

    options = changed(options or EvaluateOptions(), changes)
    progress = progress or Silent()
    if not 0 < options.split < 1:
        raise UsageError(f"--split {options.split:g} leaves nothing to learn from or to compare with.", "Give 0.85.")
    if options.every < 1:
        raise UsageError(f"Every {options.every}th frame cannot be measured.", "Use 1 or more.")
    chosen = pairs(clips)
    if not chosen:
        raise UsageError("There is nothing to measure.", "Give videos of one person each.")
    device.choose(options.device, options.precision, progress=progress)

    done: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    first: RetargetError | None = None
    for number, clip in enumerate(chosen, 1):
        title = clip.name if len(chosen) == 1 else f"{clip.name} ({number} of {len(chosen)})"
        try:
            with own_home() as folder:
                done.append({"clip": clip.name} | measure(clip, folder, options, _Titled(progress, title)))
        except RetargetError as error:
            first = first or error
            failures.append(
                {"clip": clip.name, "type": type(error).__name__, "error": error.message, "remedy": error.remedy}
            )
            progress.warn(f"{clip.name} could not be measured: {error}")
    if not done and first is not None:
        raise first
    return Report(
        clips=done, mean=means(done), failures=failures, options=asdict(options), version=__version__,
        weights=weights.entry(options.model).sha256 if weights.known(options.model) else None,
    )  # fmt: skip


def pairs(clips: Sequence[str | Path]) -> list[Clip]:
    """What the files stand for, each once, in their order."""
    found: dict[Path, Clip] = {}
    for path in map(Path, clips):
        name, _, role = path.stem.rpartition("_")
        me, drive = (path.with_name(f"{name}_{r}{path.suffix}") for r in ("me", "drive"))
        if name and role in ("me", "drive") and me.exists() and drive.exists():
            found.setdefault(me, Clip(name, me, drive))
        else:
            found.setdefault(path, Clip(path.stem, path))
    return list(found.values())


def means(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The mean of each figure of each method over the clips that have it."""
    from .metrics import FIGURES

    out: dict[str, dict[str, float | None]] = {}
    for method in dict.fromkeys(m for line in lines for m in line["methods"]):
        out[method] = {}
        for key in FIGURES:
            values = [v for line in lines if (v := line["methods"][method][key]) is not None]
            out[method][key] = round(sum(values) / len(values), 4) if values else None
    return out


def measure(clip: Clip, folder: Path, options: EvaluateOptions, progress: Progress) -> dict[str, Any]:
    """One clip's figures; all files that are made are put into `folder`."""
    from .drive import drive
    from .metrics import score
    from .personalize import personalize

    me, truth = clip.path, clip.truth
    if truth is None:
        me, truth = split(clip.path, folder, options.split, progress)
    compute: dict[str, Any] = {"device": options.device, "precision": options.precision}
    avatar = personalize(
        me, frames=options.frames, steps=options.steps, size=options.size, model=options.model, seed=options.seed,
        name="evaluated", progress=progress, **compute,
    )  # fmt: skip
    out = {name: folder / f"{name}.mp4" for name in (options.model, "warp", "copy")}
    same_place: dict[str, Any] = {"align": "none", "smooth": 0.0, "audio": False, **compute}
    drive(avatar, truth, out[options.model], progress=progress, **same_place)
    drive(unlearned(avatar), truth, out["warp"], progress=progress, **same_place)
    copy(avatar, me, truth, out["copy"], progress)
    return {
        "references": avatar.meta.extra["picked"],
        "methods": {name: score(path, truth, options.every, progress).as_dict() for name, path in out.items()},
    }


def split(path: Path, folder: Path, share: float, progress: Progress) -> tuple[Path, Path]:
    """The first `share` of a video and the rest, losslessly coded (colours are rounded once more).

    Raises UsageError when it has one frame only.
    """
    from .video import open_reader, open_writer, probe, timestamps

    info = probe(path)
    if info.frames < 2:
        raise UsageError(f"{path.name} has a single frame, which cannot be split.", "Use a video of some seconds.")
    cut = min(max(1, round(info.frames * share)), info.frames - 1)
    times = timestamps(path) if info.variable else None
    out = folder / "first.mp4", folder / "rest.mp4"
    progress.stage("Splitting", info.frames)
    with open_reader(path) as frames:
        for part, numbers in zip(out, (slice(0, cut), slice(cut, info.frames)), strict=True):
            own = None if times is None else [t - times[numbers.start] for t in times[numbers]]
            with open_writer(
                part, (info.width, info.height), info.fps, crf=0, timestamps=own, colour=info.colour
            ) as write:
                for _ in range(numbers.start, numbers.stop):
                    write(next(frames))
                    progress.advance()
    return out


def unlearned(avatar: Avatar) -> Avatar:
    """`avatar` without anything learned, which is deleted from its folder: its moved parts on its plate are left."""
    from .avatar import STATE, Avatar

    (avatar.path / STATE).unlink(missing_ok=True)
    return Avatar(replace(avatar.meta, model="dance", config={}, weights=None), avatar.path)


def copy(avatar: Avatar, me: Path, truth: Path, out: Path, progress: Progress) -> None:
    """Write a video that shows, for each frame of `truth`, the reference with the nearest pose, untouched.

    Poses are compared without the body's place and size: mean distance of the joints, in metres, from the mid hip.
    """
    import numpy as np

    from . import motion, parts
    from .pose import estimate
    from .references import stored_track
    from .types import PoseTrack
    from .video import open_reader, open_writer, probe, timestamps

    def shape(track: PoseTrack) -> Any:
        body = track.body[:, :, :2] - track.body[:, 23:25, :2].mean(1, keepdims=True)
        return body / parts.body_scale(track.body)[:, None, None]

    picked: list[int] = avatar.meta.extra["picked"]
    with open_reader(me, size=avatar.size) as frames:
        pictures = {i: frame for i, frame in enumerate(frames) if i in picked}
    track = motion.scale_to(motion.fill_gaps(estimate(truth, progress=progress)), avatar.size)
    known = shape(stored_track(avatar.tensors(), "pose"))
    nearest = [int(np.linalg.norm(known - pose, axis=-1).mean(-1).argmin()) for pose in shape(track)]
    times = timestamps(truth) if probe(truth).variable else None
    with open_writer(out, avatar.size, track.fps, timestamps=times) as write:
        for k in nearest:
            write(pictures[picked[k]])


@contextmanager
def own_home() -> Iterator[Path]:
    """A temporary folder that is RETARGET_HOME meanwhile, so that avatars made now are nobody's; gone at the end.

    What the caches hold stays in use.
    """
    from . import folders

    before, cache = os.environ.get("RETARGET_HOME"), folders.cache_dir()
    with tempfile.TemporaryDirectory(prefix="retarget-") as name:
        folder = Path(name)
        with suppress(OSError, StorageError):
            os.symlink(folders.made(cache), folder / "cache", target_is_directory=True)
        os.environ["RETARGET_HOME"] = name
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["RETARGET_HOME"]
            else:
                os.environ["RETARGET_HOME"] = before


class _Titled:
    """A `Progress` whose stages and messages tell which clip they are about."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title = progress, title
        self.advance, self.note = progress.advance, progress.note

    def stage(self, title: str, total: int | None = None) -> None:
        self._progress.stage(f"{self._title}: {title}", total)

    def warn(self, message: str) -> None:
        self._progress.warn(message)
