"""`evaluate`: people re-enact their own videos, and the result is compared with the truth (MetaPix §4.1).

    clip ─┬─ first part ─ personalize (init, K, T) ─ avatar ─┬─ dance  what `drive` makes of it
          │                                                  ├─ warp   the same without anything learned
          │                                                  └─ copy   the reference with the nearest pose
          └─ last part, the truth: gives the poses, and is what all three are compared with

Several inits, K and T give MetaPix's Table 1 and its curves over K and T (Figs. 5 and 6).
Importing this module loads nothing heavy: the command line reads its defaults from here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RetargetError, StorageError, UsageError
from .personalize import PersonalizeOptions, changed, gather, personalize, start
from .personalize import check as check_avatar
from .types import Progress, Silent

if TYPE_CHECKING:
    from .avatar import Avatar
    from .perceptual_metrics import Perceptual

_DEFAULT = PersonalizeOptions()


@dataclass(frozen=True)
class EvaluateOptions:
    """How to measure. A single value stands for a tuple of one.

    init, frames, steps  of the avatars, see `PersonalizeOptions`: every combination of them is measured.
    split   this part of a clip is learned from, the rest is the truth.
    size, model, seed    of the avatars, too.
    every   compare every so many-th frame only.
    device, precision  see `device.choose`.
    """

    init: tuple[str, ...] = (_DEFAULT.init,)
    frames: tuple[int, ...] = (5,)
    steps: tuple[int, ...] = (20,)
    split: float = 0.85
    size: int = _DEFAULT.size
    every: int = 1
    model: str = _DEFAULT.model
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("init", "frames", "steps"):
            value = getattr(self, key)
            object.__setattr__(self, key, (value,) if isinstance(value, int | str) else tuple(value))


@dataclass(frozen=True)
class Clip:
    """What is measured under one name: a clip to split, or a pair of files (`truth` is given)."""

    name: str
    path: Path
    truth: Path | None = None


SETTING = ("kind", "init", "frames", "steps")
"""What a row was made with."""
PANELS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "mse": "MSE (less is better)",
    "fg_psnr": "fg PSNR (dB)",
    "fg_ssim": "fg SSIM",
    "face_ssim": "face SSIM",
    "lpips": "LPIPS (less is better)",
    "fid": "FID (less is better)",
}
"""The figures that are drawn, and their titles."""


class Report(dict[str, Any]):
    """The figures, as JSON has them: their names are those of `metrics.Scores`, and `lpips` and `fid` where they could
    be measured; null where nothing could be.

    clips     [{"clip": name, "references": [frames used, for the largest K], "methods": {method: row}}]
    mean      {method: row of means, with "clips": over how many}: over the clips of which all was measured; if there is
              none, over those that have the row
    failures  [{"clip": name, "type", "error", "remedy"}]: what could not be measured; "frames" names the K if others
              of that clip could
    notes     [sentence]: what to know when reading the figures
    options, version  what was measured
    weights   {init: sha256 of the weights it starts from, or null for nothing learned}

    A row holds `SETTING` and the figures: "kind" (the model's name, `warp` or `copy`), "init" (name or stem of the
    file), "frames" (K), "steps" (T). `warp` and `copy` have neither init nor steps: null. Methods are called by their
    kind, with what else tells them apart: `dance`, `warp K=5`, `dance meta K=5 T=20`.
    """

    @property
    def failures(self) -> list[dict[str, str]]:
        return list(self["failures"])

    def rows(self) -> list[dict[str, Any]]:
        """One flat record for each clip and method, the means last."""
        parts = [*self["clips"], {"clip": "mean", "methods": self["mean"]}]
        return [{"clip": p["clip"], "method": m} | figures for p in parts for m, figures in p["methods"].items()]

    def columns(self) -> list[str]:
        """The figures that are there, in their order."""
        from .metrics import FIGURES
        from .perceptual_metrics import FIGURES as PERCEPTUAL

        return [f for f in (*FIGURES, *PERCEPTUAL) if any(f in row for row in self.rows())]

    def markdown(self) -> str:
        """The rows as a table."""
        return _table(("clip", "method", *self.columns()), self.rows())

    def page(self) -> str:
        """All of it for people: the means as in MetaPix's Table 1, its curves, notes, failures, and all rows."""
        heads = {"kind": "method", "frames": "K", "steps": "T"}
        means = [{heads.get(k, k): v for k, v in row.items()} for row in self["mean"].values()]
        parts = ["# Evaluation", _table(("method", "init", "K", "T", "clips", *self.columns()), means)]
        parts += [f"![{title}]({name})" for name, (title, _, _) in self._curves().items()]
        failures = [f"{f['clip']}{_with(f)}: {f['error']}" for f in self.failures]
        for title, sentences in (("Notes", self["notes"]), ("Not measured", failures)):
            parts += [f"## {title}", "\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []
        return "\n\n".join([*parts, "## All clips", self.markdown()]) + "\n"

    def save(self, folder: Path) -> None:
        """Write report.json, report.md and, where there are several K or T, k.png and t.png; each appears complete.

        Curves over K are those of the default T if it was measured, else of the largest; curves over T likewise.
        """
        from .folders import replace_file
        from .plots import curves

        folder.mkdir(exist_ok=True)
        self.save_json(folder / "report.json")
        replace_file(folder / "report.md", self.page().encode())
        for name, (title, x_label, panels) in self._curves().items():
            curves(folder / name, panels, title=title, x_label=x_label, log_x=x_label == "T", dashed=("warp", "copy"))

    def save_json(self, path: Path) -> None:
        """Write all figures; the file appears when it is complete."""
        from .folders import replace_file

        replace_file(path, (json.dumps(self, indent=2) + "\n").encode())

    def _curves(self) -> dict[str, tuple[str, str, Any]]:
        """File name → its title, the name of x, and what `plots.curves` draws."""
        found = {}
        rows = self["mean"].values()
        for name, letter, x, other, fixed in (
            ("k.png", "K", "frames", "T", "steps"),
            ("t.png", "T", "steps", "K", "frames"),
        ):
            xs = sorted({row[x] for row in rows} - {None})
            if len(xs) > 1:
                among = {row[fixed] for row in rows} - {None}
                (usual,) = getattr(EvaluateOptions(), fixed)
                at = usual if usual in among else max(among)
                panels = {
                    title: self._lines(figure, x, xs, fixed, at)
                    for figure, title in PANELS.items()
                    if figure in self.columns()
                }
                found[name] = f"Means over {letter} ({other} = {at})", letter, panels
        return found

    def _lines(self, figure: str, x: str, xs: list[int], fixed: str, at: int) -> dict[str, Any]:
        """Label → points of `figure` over the setting `x`, where `fixed` is `at`. Rows without a setting (the baselines
        have no T) are the same at all of its values."""
        lines: dict[str, dict[int, float | None]] = {}
        for row in self["mean"].values():
            if row[fixed] in (at, None):
                for place in xs if row[x] is None else [row[x]]:
                    lines.setdefault(row["init"] or row["kind"], {})[place] = row[figure]
        return {label: (sorted(line), [line[x] for x in sorted(line)]) for label, line in lines.items()}


def _with(failure: Mapping[str, Any]) -> str:
    return f" with K={failure['frames']}" if "frames" in failure else ""


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def check(options: EvaluateOptions) -> None:
    """Raises UsageError for an option that cannot be."""
    if not 0 < options.split < 1:
        raise UsageError(f"--split {options.split:g} leaves nothing to learn from or to compare with.", "Give 0.85.")
    if options.every < 1:
        raise UsageError(f"Every {options.every}th frame cannot be measured.", "Use 1 or more.")
    for key in ("init", "frames", "steps"):
        values = getattr(options, key)
        names = [label(v) if key == "init" else v for v in values]
        if not values or len(set(names)) != len(names):
            raise UsageError(f"--{key} names {'one twice' if values else 'nothing'}.", "Name each value once.")
        for value in values:
            check_avatar(replace(_DEFAULT, **{key: value}))


def label(init: str) -> str:
    """What an init is called in the report."""
    return Path(init).stem if init.endswith(".safetensors") else init


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
        The figures, and what failed.

    Raises:
        RetargetError: options that cannot be, weights or a device that are missing; the first failure, when all clips
            failed.
    """
    from . import __version__, device, perceptual_metrics

    options = changed(options or EvaluateOptions(), changes)
    progress = progress or Silent()
    check(options)
    chosen = pairs(clips)
    if not chosen:
        raise UsageError("There is nothing to measure.", "Give videos of one person each.")
    compute = device.choose(options.device, options.precision, progress=progress)
    starts = {label(init): start(options.model, init, progress)[1] for init in options.init}
    perceptual = perceptual_metrics.find(compute.device)
    notes = list(perceptual.notes)
    notes += [
        f"There are no {name} weights of {options.model}: its rows start from nothing learned."
        for name, digest in starts.items()
        if digest is None and name != "random"
    ]
    for note in notes:
        progress.note(note)

    done: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []  # those of which everything was measured
    failures: list[dict[str, Any]] = []
    first: RetargetError | None = None
    for number, clip in enumerate(chosen, 1):
        title = clip.name if len(chosen) == 1 else f"{clip.name} ({number} of {len(chosen)})"
        try:
            with own_home() as folder, device.enough_memory(f"measuring {clip.name}"):
                line, missed = measure(clip, folder, options, perceptual, _Titled(progress, title))
            done.append({"clip": clip.name} | line)
            if not missed:
                whole.append(done[-1])
            failures += [{"clip": clip.name, "frames": k} | _failure(error) for k, error in missed.items()]
        except RetargetError as error:
            first = first or error
            failures.append({"clip": clip.name} | _failure(error))
            progress.warn(f"{clip.name} could not be measured: {error}")
    if not done and first is not None:
        raise first
    if failures:
        notes.append(
            f"Means are over {len(whole)} of {len(chosen)} clips, of which everything was measured."
            if whole
            else "Of no clip everything was measured: each mean is over the clips that have it, and they may differ."
        )
        progress.note(notes[-1])
    return Report(
        clips=done, mean=means(whole or done), failures=failures, notes=notes,
        options=json.loads(json.dumps(asdict(options))), version=__version__, weights=starts,
    )  # fmt: skip


def _failure(error: RetargetError) -> dict[str, str]:
    return {"type": type(error).__name__, "error": error.message, "remedy": error.remedy}


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


def means(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each method: its setting, over how many clips, and the mean of each figure over those that have it."""
    out: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(m for line in lines for m in line["methods"]):
        rows = [line["methods"][method] for line in lines if method in line["methods"]]
        out[method] = {key: rows[0][key] for key in SETTING} | {"clips": len(rows)}
        for key in [k for k in rows[0] if k not in (*SETTING, "frames_produced", "frames_truth")]:
            values = [v for row in rows if (v := row[key]) is not None]
            out[method][key] = round(sum(values) / len(values), 4) if values else None
    return out


def measure(
    clip: Clip, folder: Path, options: EvaluateOptions, perceptual: Perceptual, progress: Progress
) -> tuple[dict[str, Any], dict[int, RetargetError]]:
    """One clip's entry of `Report`, and what went wrong with which K; all files that are made are put into `folder`.

    Raises the first error when it is so with every K.
    """
    me, truth = clip.path, clip.truth
    if truth is None:
        me, truth = split(clip.path, folder, options.split, progress)
    done: dict[int, list[int]] = {}
    failed: dict[int, RetargetError] = {}
    methods: dict[str, dict[str, Any]] = {}
    for frames in options.frames:
        try:
            done[frames], rows = _measure_frames(frames, me, truth, folder, options, perceptual, progress)
            methods |= rows
        except RetargetError as error:
            failed[frames] = error
    if not done:
        raise next(iter(failed.values()))
    for frames, why in failed.items():
        progress.warn(f"{clip.name} could not be measured with K={frames}: {why}")
    return {"references": done[max(done)], "methods": methods}, failed


def _measure_frames(
    frames: int,
    me: Path,
    truth: Path,
    folder: Path,
    options: EvaluateOptions,
    perceptual: Perceptual,
    progress: Progress,
) -> tuple[list[int], dict[str, dict[str, Any]]]:
    """The references and the rows of one K."""
    from .drive import drive
    from .metrics import score

    several = len(options.init) * len(options.frames) * len(options.steps) > 1
    compute: dict[str, Any] = {"device": options.device, "precision": options.precision}
    same_place: dict[str, Any] = {"align": "none", "smooth": 0.0, "audio": False, **compute}
    rows: dict[str, dict[str, Any]] = {}

    def path(name: str) -> Path:
        return folder / f"{name}.mp4"

    def judge(name: str, kind: str, init: str | None = None, steps: int | None = None) -> None:
        figures = score(path(name), truth, options.every, progress).as_dict()
        figures |= perceptual.score(path(name), truth, options.every, progress)
        rows[name] = {"kind": kind, "init": init, "frames": frames, "steps": steps} | figures
        path(name).unlink()

    how = PersonalizeOptions(
        frames=frames,
        size=options.size,
        model=options.model,
        seed=options.seed,
        crop="none",
        name="evaluated",
        **compute,
    )
    known = gather([me], how, progress)
    for init, steps in product(options.init, options.steps):
        avatar = personalize(me, replace(how, steps=steps, init=init), progress=progress, gathered=known)
        name = f"{options.model} {label(init)} K={frames} T={steps}" if several else options.model
        drive(avatar, truth, path(name), progress=progress, **same_place)
        judge(name, options.model, label(init), steps)
    # The references are the same whatever is learned from them: the last avatar's do.
    warp, copied = (f"{kind} K={frames}" if len(options.frames) > 1 else kind for kind in ("warp", "copy"))
    drive(unlearned(avatar, folder / warp), truth, path(warp), progress=progress, **same_place)
    judge(warp, "warp")
    copy(avatar, me, truth, path(copied), progress)
    judge(copied, "copy")
    return avatar.meta.extra["picked"], rows


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


def unlearned(avatar: Avatar, folder: Path) -> Avatar:
    """`avatar` without anything learned, in a new folder: its moved parts on its plate are left."""
    from .avatar import STATE, Avatar, write_meta

    shutil.copytree(avatar.path, folder, ignore=shutil.ignore_patterns(STATE))
    write_meta(folder, replace(avatar.meta, model="dance", config={}, weights=None))
    return Avatar.load(folder)


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
