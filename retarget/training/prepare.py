"""`retarget prepare`: videos of one person each, or street scenes with label maps → a corpus (`training.corpus`).

In parallel; goes on where it stopped.

Importing this module loads nothing heavy: the command line reads its defaults from here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import InputError, RetargetError, StorageError, UsageError
from ..folders import locked, replace_file, sweep
from ..types import Progress, Silent

if TYPE_CHECKING:
    from .corpus import Entry, Split

VIDEOS: Final = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
PATIENCE: Final = 10.0
"""Seconds to wait for another process that packs into the same folder."""


@dataclass(frozen=True)
class PrepareOptions:
    """How to make a corpus.

    side     short side of the training pictures in pixels; never enlarged.
    fps      frames per second that are kept.
    quality  of the WebP pictures, 1..100.
    licence  of the clips: an SPDX identifier, or a sentence.
    source   where they come from; None: each one's file name.
    table    a CSV file with a row per clip (columns `clip`, and any of `person`, `source`, `licence`, `split`), which
             goes before everything else.
    val      share of the persons that is kept for validation, chosen by a hash of their name.
    workers  processes; 0: one per core.
    crop     `head`: squares around the head (`portraits`), with irises, for models of heads; `none`: whole pictures.
    labels   of street scenes: their label maps. For each of the given videos or folders, in their order, or for all of
             them together: a folder or video of maps, one for each picture of a scene; or a folder with the maps of
             each scene under the scene's name. Empty: the clips show people.
    """

    side: int = 256
    fps: float = 5.0
    quality: int = 88
    licence: str = "unknown"
    source: str | None = None
    table: str | None = None
    val: float = 0.1
    workers: int = 0
    crop: str = "none"
    labels: tuple[str, ...] = ()

    @property
    def deciding(self) -> dict[str, Any]:
        """What the pictures depend on."""
        cropped = {"crop": self.crop, "irises": True} if self.crop != "none" else {}
        scenes = {"labels": True} if self.labels else {}
        return {"side": self.side, "fps": self.fps, "quality": self.quality} | cropped | scenes


def prepare(
    clips: Sequence[str | Path],
    out: str | Path,
    options: PrepareOptions | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pack videos of one person each into the folder `out`; what is there already and fits is kept.

    `NAME.npz` beside `NAME.mp4` with `mask_bits` and `mask_shape` (T, H, W) gives exact masks (`np.packbits` over each
    flattened frame). Without a table, the person of `NAME_x.mp4` is `NAME`.

    With `labels`, each clip is a street scene: a video, or a folder of pictures, 25 per second in the order of their
    names; a folder without pictures stands for the scenes in it. Without a table, each clip is a scene of its own, in
    the place of a person.

    Returns:
        The index: {"schema", "options", "clips": [Entry], "left_out": [{"clip", "reason"}]}, as in `out`/index.json.

    Raises:
        UsageError: no clips, options that cannot be, a person in both splits, a folder that holds a corpus made with
            other options.
        InputError: a file that does not exist, a table or an index that cannot be read, or no clip that can be used.
        StorageError: the folder cannot be written, or another process packs into it.
    """
    options, progress, out = options or PrepareOptions(), progress or Silent(), Path(out)
    given = [Path(c) for c in clips]
    maps = with_maps(given, [Path(m) for m in options.labels]) if options.labels else {}
    paths = list(maps) or _videos(given)
    facts = _table(options, paths)
    for path, beside in maps.items():
        facts[path]["labels"] = str(beside)
    _check(options)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out} cannot be made: {error.strerror}.", "Give --out another folder.") from error
    with locked(out / "corpus", f"The corpus {out}", patience=PATIENCE):
        sweep(out, older=0)
        return _packed(paths, facts, out, options, progress)


def _packed(
    paths: Sequence[Path], facts: Mapping[Path, dict[str, str]], out: Path, options: PrepareOptions, progress: Progress
) -> dict[str, Any]:
    """`prepare` in a folder that nobody else uses."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    from ..device import enough_memory, no_memory
    from .corpus import INDEX, SCHEMA, entries_of, packed

    made_with = options.deciding
    done: list[Entry] = []
    if (out / INDEX).exists():
        try:
            before = json.loads((out / INDEX).read_text(encoding="utf-8"))
            made_before, done = before["options"], entries_of(before)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{out / INDEX} is damaged.", "Delete it and prepare all clips again: what is packed is kept."
            ) from error
        if made_before != made_with:
            raise UsageError(f"{out} holds a corpus made with other options: {made_before}.", "Use another folder.")
    left_out: list[dict[str, str]] = []
    names = {name_of(path) for path in paths}
    if left := sum((out / f"{name}.npz").exists() for name in names - {e.clip for e in done}):
        progress.note(f"Going on: {left} of {len(paths)} clips were packed before an interruption.")
    done = [e for e in done if e.clip not in names and (out / f"{e.clip}.npz").exists()]
    _check_splits([*((e.person, e.split) for e in done), *((f["person"], f["split"]) for f in facts.values())])
    progress.stage("Packing clips", len(paths))
    workers = options.workers or os.cpu_count() or 1
    with (
        enough_memory("packing the clips", remedy := "Use fewer --workers, or a smaller --side."),
        ProcessPoolExecutor(min(workers, len(paths)), mp_context=get_context("spawn"), initializer=alone) as pool,
    ):
        jobs = {pool.submit(packed, path, facts[path], out, options): path for path in paths}
        try:
            for job in as_completed(jobs):
                try:
                    done.append(job.result())
                except BrokenProcessPool as error:  # the system ends whoever takes too much memory
                    raise no_memory("packing the clips", remedy) from error
                except RetargetError as error:
                    if isinstance(error, StorageError):
                        raise
                    left_out.append({"clip": name_of(jobs[job]), "reason": error.message})
                    progress.warn(f"{jobs[job].name} is left out: {error.message}")
                progress.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    index = {
        "schema": SCHEMA,
        "options": made_with,
        "clips": [asdict(e) for e in sorted(done, key=lambda e: e.clip)],
        "left_out": sorted(left_out, key=lambda x: x["clip"]),
    }
    try:
        replace_file(out / INDEX, json.dumps(index, indent=1).encode())
    except OSError as error:
        raise StorageError(f"{out / INDEX} cannot be written: {error.strerror}.", "Free some space.") from error
    if not done:
        raise InputError(
            f"None of the {len(paths)} clips can be used; {left_out[0]['clip']}: {left_out[0]['reason']}",
            "Give one label map per picture, equally large."
            if options.labels
            else "Give clips of one whole person before a still camera.",
        )
    return index


def _check(options: PrepareOptions) -> None:
    for name, low, high in (("side", 64, 1024), ("fps", 0.1, 120), ("quality", 1, 100), ("val", 0, 0.9)):
        if not low <= getattr(options, name) <= high:
            raise UsageError(f"--{name} is {getattr(options, name):g}.", f"Give a number from {low:g} to {high:g}.")
    if options.workers < 0:
        raise UsageError(f"--workers is {options.workers}.", "Give 1 or more, or 0 for one per core.")
    if options.labels and options.crop != "none":
        raise UsageError("--crop is for people, and --labels says that there are none.", "Leave one of them out.")


def _videos(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEOS)
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"There is no file {path}.", "Check the name.")
    if not found:
        raise UsageError("There are no videos to pack.", "Give videos, or folders of them.")
    return _named(found)


def _named(paths: Sequence[Path]) -> list[Path]:
    """Each once. Raises UsageError when two have one name."""
    seen: dict[str, Path] = {}
    for path in paths:
        name = name_of(path)
        if path != seen.setdefault(name, path):
            raise UsageError(f"{seen[name]} and {path} have one name.", "Rename one of them.")
    return list(seen.values())


def with_maps(clips: Sequence[Path], labels: Sequence[Path]) -> dict[Path, Path]:
    """Each scene, a video or a folder of pictures, and where its label maps should be: see `PrepareOptions.labels`.

    Raises InputError for what does not exist, UsageError for numbers that differ, maps of two scenes, no scenes.
    """
    from ..video import pictures_in

    for path in (*clips, *labels):
        if not path.exists():
            raise InputError(f"There is no file or folder {path}.", "Check the name.")
    if len(labels) not in (1, len(clips)):
        raise UsageError(
            f"The numbers of --labels ({len(labels)}) and of scenes or folders of them ({len(clips)}) differ.", _EACH
        )
    found: list[Path] = []
    beside: dict[Path, Path] = {}
    for clip, maps in zip(clips, labels if len(labels) == len(clips) else [*labels] * len(clips), strict=True):
        inside = [clip]
        if clip.is_dir() and not pictures_in(clip):
            inside = [
                p for p in sorted(clip.iterdir()) if p.suffix.lower() in VIDEOS or (p.is_dir() and pictures_in(p))
            ]
        found += inside
        beside |= {scene: _maps_of(scene, maps) for scene in inside}
    if not found:
        raise UsageError("There are no scenes.", "Give videos, folders of pictures, or folders of these.")
    scenes = _named(found)
    taken: dict[Path, Path] = {}
    for scene in scenes:
        if scene != (one := taken.setdefault(beside[scene], scene)):
            raise UsageError(
                f"{beside[scene]} would be the label maps of both {name_of(one)} and {name_of(scene)}.", _EACH
            )
    return {scene: beside[scene] for scene in scenes}


_EACH: Final = "Give --labels for each, in the same order; or one folder with the maps of each scene under its name."


def _maps_of(scene: Path, maps: Path) -> Path:
    """`maps`, if that is a scene's; or what is called like the scene in it."""
    if not maps.is_dir() or any(p.suffix.lower() == ".png" for p in maps.iterdir()):
        return maps
    known = sorted(p for p in maps.iterdir() if p.is_dir() or p.suffix.lower() in VIDEOS)
    return next((p for p in known if name_of(p) == name_of(scene)), maps / name_of(scene))


def name_of(path: Path) -> str:
    """What a clip is called in a corpus."""
    return path.resolve().name if path.is_dir() else path.stem


def _table(options: PrepareOptions, paths: Sequence[Path]) -> dict[Path, dict[str, str]]:
    """What is known of each clip but its pictures: person, source, licence, split."""
    rows: dict[str, dict[str, str]] = {}
    if options.table is not None:
        try:
            with open(options.table, newline="", encoding="utf-8") as file:
                table = csv.DictReader(file)
                if "clip" not in (table.fieldnames or ()):
                    raise KeyError("clip")
                rows = {row["clip"]: row for row in table}
        except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"{options.table} is not a table of clips ({type(error).__name__}: {error}).",
                "Give a CSV file with a column “clip”.",
            ) from error
    facts = {}
    for path in paths:
        name = name_of(path)
        row = {k: v for k, v in rows.get(name, {}).items() if v}
        person = row.get("person", name if options.labels else name.rpartition("_")[0] or name)
        split = row.get("split", split_of(person, options.val))
        if split not in ("train", "val"):
            raise InputError(f"{options.table}: the split of {name} is “{split}”.", "Use train or val.")
        facts[path] = {
            "clip": name,
            "person": person,
            "source": row.get("source", options.source or path.name),
            "licence": row.get("licence", options.licence),
            "split": split,
        }
    return facts


def split_of(person: str, share: float) -> Split:
    """`val` for about this share of all persons: always the same ones, whatever else a corpus holds."""
    return "val" if int.from_bytes(hashlib.sha256(person.encode()).digest()[:4], "big") < share * 2**32 else "train"


def _check_splits(persons: Iterable[tuple[str, str]]) -> None:
    splits: dict[str, str] = {}
    for person, split in persons:
        if splits.setdefault(person, split) != split:
            raise UsageError(f"{person} would be in both splits.", "Give all clips of a person one split.")


def alone() -> None:
    """A worker's start: one thread each, Ctrl-C is the parent's business, and it does not outlive the parent."""
    import signal
    import threading
    from multiprocessing import connection, parent_process

    import cv2
    import torch

    if (parent := parent_process()) is not None:

        def follow() -> None:
            connection.wait([parent.sentinel])  # a killed parent tells nobody
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
