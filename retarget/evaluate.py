"""`evaluate`: people re-enact their own videos, and the result is compared with the truth (MetaPix §4.1).

    clip ─┬─ first part ─ personalize (init, K, T) ─ avatar ─┬─ dance  what `drive` makes of it
          │                                                  ├─ warp   the same without anything learned
          │                                                  └─ copy   the reference with the nearest pose
          └─ last part, the truth: gives the poses, and is what all three are compared with

A head (`--crop head`) is cut out first, and measured in its square. Of a street scene, the label maps of the last part
drive (`--labels`); `copy` shows the reference whose map agrees best,
and there is no `warp`: no parts are moved there.

Several inits, K and T give MetaPix's Table 1 and its curves over K and T (Figs. 5 and 6).
Importing this module loads nothing heavy: the command line reads its defaults from here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RetargetError, StorageError, UsageError
from .personalize import PersonalizeOptions, changed, expand, gather, personalize
from .personalize import check as check_avatar
from .report import SETTING, USUAL, Report
from .training.prepare import name_of, with_maps
from .tuning import Trials, shown, start
from .types import Progress, Silent

if TYPE_CHECKING:
    from .avatar import Avatar
    from .labels import LabelMaps
    from .perceptual_metrics import Perceptual
    from .streets import Film

_DEFAULT = PersonalizeOptions()


@dataclass(frozen=True)
class EvaluateOptions:
    """How to measure. A single value stands for a tuple of one.

    init, frames, steps  of the avatars, see `PersonalizeOptions`: every combination of them is measured.
    split   this part of a clip is learned from, the rest is the truth.
    size, model, seed    of the avatars, too.
    crop    `head`: squares around the head are measured; `none`: whole pictures; `auto`: what the model was made for.
    labels  label maps of street scenes, as in `PrepareOptions`; empty: the clips show people.
    every   compare every so many-th frame only.
    device, precision  see `device.choose`.
    """

    init: tuple[str, ...] = (_DEFAULT.init,)
    frames: tuple[int, ...] = (USUAL["frames"],)
    steps: tuple[int, ...] = (USUAL["steps"],)
    split: float = 0.85
    size: int = _DEFAULT.size
    every: int = 1
    model: str = _DEFAULT.model
    crop: str = _DEFAULT.crop
    labels: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("init", "frames", "steps", "labels"):
            value = getattr(self, key)
            object.__setattr__(self, key, (value,) if isinstance(value, int | str) else tuple(value))


@dataclass(frozen=True)
class Clip:
    """What is measured under one name: a clip to split, with the label maps of a scene; or a pair of files (`truth` is
    given)."""

    name: str
    path: Path
    truth: Path | None = None
    labels: Path | None = None


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
    check_avatar(replace(_DEFAULT, crop=options.crop))
    for maps in options.labels:
        check_avatar(replace(_DEFAULT, model=options.model, crop=options.crop, labels=maps))


def avatars(options: EvaluateOptions) -> PersonalizeOptions:
    """How all avatars are made; of a scene, the label maps are those of the first."""
    return PersonalizeOptions(
        frames=max(options.frames), size=options.size, model=options.model, seed=options.seed, crop=options.crop,
        labels=options.labels[0] if options.labels else None, name="evaluated", device=options.device,
        precision=options.precision,
    )  # fmt: skip


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
    """Measure the model and two baselines, `copy` and `warp`, on clips of one person each; or the model and `copy` on
    street scenes, with label maps.

    A clip is split; files called NAME_me and NAME_drive are a pair, and one of them stands for both. The user's avatars
    stay as they are; poses are cached as usual. Works with the environment variable RETARGET_HOME changed meanwhile.

    Args:
        clips: videos; of scenes, as in `prepare`.
        options: how; keyword arguments named like its fields change single ones.
        progress: is told what happens, and warned of every clip that cannot be measured.

    Returns:
        The figures, and what failed.

    Raises:
        RetargetError: options that cannot be, other numbers of label maps than of scenes, weights or a device that are
            missing; the first failure, when all clips failed.
    """
    from . import __version__, device, perceptual_metrics

    options = changed(options or EvaluateOptions(), changes)
    progress = progress or Silent()
    check(options)
    if options.labels:
        maps = with_maps([Path(c) for c in clips], [Path(m) for m in options.labels])
        chosen = [Clip(name_of(path), path, labels=beside) for path, beside in maps.items()]
    else:
        chosen = pairs(clips)
    if not chosen:
        raise UsageError("There is nothing to measure.", "Give videos of one person each.")
    compute = device.choose(options.device, options.precision, progress=progress)
    subject = shown(avatars(options))
    starts = {label(init): start(options.model, init, progress, subject=subject)[1] for init in options.init}
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
    from .streets import Film, opened

    me, truth, maps = clip.path, clip.truth, None
    if clip.labels is not None:
        film, known = opened(expand([clip.path]), clip.labels)
        me, truth = split(film, folder, options.split, progress)
        maps = split_maps(known, folder, options.split)
    else:
        if shown(avatars(options)) == "head":
            me = _head(me, folder, options, progress)
            truth = truth and _head(truth, folder, options, progress)
        if truth is None:
            me, truth = split(Film([me]), folder, options.split, progress)
    done: dict[int, list[int]] = {}
    failed: dict[int, RetargetError] = {}
    methods: dict[str, dict[str, Any]] = {}
    for frames in options.frames:
        try:
            done[frames], rows = _measure_frames(frames, me, truth, maps, folder, options, perceptual, progress)
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
    maps: tuple[Path, Path] | None,
    folder: Path,
    options: EvaluateOptions,
    perceptual: Perceptual,
    progress: Progress,
) -> tuple[list[int], dict[str, dict[str, Any]]]:
    """The references and the rows of one K; `maps`: of a scene, those of `me` and of `truth`."""
    from .drive import drive
    from .metrics import score

    several = len(options.init) * len(options.frames) * len(options.steps) > 1
    compute: dict[str, Any] = {"device": options.device, "precision": options.precision}
    same_place: dict[str, Any] = {"align": "none", "smooth": 0.0, "audio": False, **compute}
    rows: dict[str, dict[str, Any]] = {}

    def path(name: str) -> Path:
        return folder / f"{name}.mp4"

    def judge(name: str, kind: str, init: str | None = None, steps: int | None = None) -> None:
        figures = score(path(name), truth, options.every, progress, people=maps is None).as_dict()
        figures |= perceptual.score(path(name), truth, options.every, progress)
        rows[name] = {"kind": kind, "init": init, "frames": frames, "steps": steps} | figures
        path(name).unlink()

    how = replace(avatars(options), frames=frames, labels=None if maps is None else str(maps[0]))
    source = truth if maps is None else maps[1]
    known = gather([me], how, progress, cut=False)
    for init in options.init:
        trials = Trials()
        for steps in options.steps:
            each = replace(how, steps=steps, init=init)
            avatar = personalize(me, each, progress=progress, gathered=known, trials=trials)
            name = f"{options.model} {label(init)} K={frames} T={steps}" if several else options.model
            drive(avatar, source, path(name), progress=progress, **same_place)
            judge(name, options.model, label(init), steps)
    # The references are the same whatever is learned from them: the last avatar's do.
    warp, copied = (f"{kind} K={frames}" if len(options.frames) > 1 else kind for kind in ("warp", "copy"))
    if maps is None:
        drive(unlearned(avatar, folder / warp), truth, path(warp), progress=progress, **same_place)
        judge(warp, "warp")
    copy(avatar, me, source, path(copied), progress)
    judge(copied, "copy")
    return avatar.meta.extra["picked"], rows


def _head(path: Path, folder: Path, options: EvaluateOptions, progress: Progress) -> Path:
    """The squares around the head of a video, as a video. Raises what `portraits.cropped` raises."""
    from .portraits import cropped

    (out := folder / "heads").mkdir(exist_ok=True)
    return cropped([path], out, size=options.size, person="largest", whole=True, progress=progress).paths[0]


def split(film: Film, folder: Path, share: float, progress: Progress) -> tuple[Path, Path]:
    """The first `share` of a video or of pictures in a row, and the rest: videos, losslessly coded (colours are rounded
    once more, and those of pictures halved in resolution).

    Raises UsageError when it has one frame only.
    """
    from .video import open_writer, timestamps

    if len(film) < 2:
        raise UsageError(f"{film.name} has a single frame, which cannot be split.", "Use a video of some seconds.")
    times = timestamps(film.video.path) if film.video is not None and film.video.variable else None
    out = folder / "first.mp4", folder / "rest.mp4"
    progress.stage("Splitting", len(film))
    with closing(film.every(1)) as frames:
        for part, numbers in zip(out, _parts(len(film), share), strict=True):
            own = None if times is None else [times[i] - times[numbers[0]] for i in numbers]
            with open_writer(part, film.size, film.fps, crf=0, timestamps=own, colour=film.colour) as write:
                for frame in islice(frames, len(numbers)):
                    write(frame)
                    progress.advance()
    return out


def split_maps(maps: LabelMaps, folder: Path, share: float) -> tuple[Path, Path]:
    """The same parts of label maps: folders of PNGs, as large as the videos that `split` makes."""
    import numpy as np

    from .labels import write_map

    out = folder / "first", folder / "rest"
    width, height = maps.size
    every = maps.every(1)
    for part, numbers in zip(out, _parts(len(maps), share), strict=True):
        part.mkdir()
        for i, classes in zip(numbers, every, strict=False):
            even = np.pad(classes, ((0, height % 2), (0, width % 2)), "edge")  # as `open_writer`
            write_map(part / f"{i}.png", even)
    return out


def _parts(count: int, share: float) -> tuple[range, range]:
    """The numbers of the first `share` of two or more, and those of the rest."""
    cut = min(max(1, round(count * share)), count - 1)
    return range(cut), range(cut, count)


def unlearned(avatar: Avatar, folder: Path) -> Avatar:
    """`avatar` without anything learned, in a new folder: its moved parts on its plate are left."""
    from .avatar import STATE, Avatar, write_meta

    shutil.copytree(avatar.path, folder, ignore=shutil.ignore_patterns(STATE))
    write_meta(folder, replace(avatar.meta, model="dance", config={}, weights=None))
    return Avatar.load(folder)


def copy(avatar: Avatar, me: Path, source: Path, out: Path, progress: Progress) -> None:
    """Write a video that shows, for each frame of `source`, the reference with the nearest pose, untouched; or, for
    each label map of a folder, the reference whose map agrees with it in most pixels."""
    from .video import open_reader, open_writer, probe, timestamps

    picked: list[int] = avatar.meta.extra["picked"]
    with open_reader(me, size=avatar.size) as frames:
        pictures = {i: frame for i, frame in enumerate(frames) if i in picked}
    if source.is_dir():
        nearest, fps, times = _nearest_maps(avatar, source), avatar.fps, None
    else:
        info = probe(source)
        nearest, fps = _nearest_poses(avatar, source, progress), info.fps
        times = timestamps(source) if info.variable else None
    with open_writer(out, avatar.size, fps, timestamps=times) as write:
        for k in nearest:
            write(pictures[picked[k]])


def _nearest_poses(avatar: Avatar, source: Path, progress: Progress) -> list[int]:
    """Of each frame, the number of the reference with the nearest pose.

    Poses are compared without the body's place and size: mean distance of the joints, in metres, from the mid hip.
    """
    import numpy as np

    from . import motion, parts
    from .pose import estimate
    from .references import stored_track
    from .types import PoseTrack

    def shape(track: PoseTrack) -> Any:
        body = track.body[:, :, :2] - track.body[:, 23:25, :2].mean(1, keepdims=True)
        return body / parts.body_scale(track.body)[:, None, None]

    track = motion.scale_to(motion.fill_gaps(estimate(source, progress=progress)), avatar.size)
    known = shape(stored_track(avatar.tensors(), "pose"))
    return [int(np.linalg.norm(known - pose, axis=-1).mean(-1).argmin()) for pose in shape(track)]


def _nearest_maps(avatar: Avatar, source: Path) -> list[int]:
    """Of each label map, the number of the reference whose map agrees with it in most pixels."""
    from .labels import LabelMaps

    known = avatar.tensors()["labels"]
    return [int((known == one).mean((1, 2)).argmax()) for one in LabelMaps(source, size=avatar.size).every(1)]


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
