"""`retarget prepare`: videos of one person each → a corpus (`training.corpus`). In parallel; goes on where it stopped.

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
    crop     `head`: squares around the head (`portraits`), for models of heads; `none`: whole pictures.
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

    @property
    def deciding(self) -> dict[str, Any]:
        """What the pictures depend on."""
        cropped = {"crop": self.crop} if self.crop != "none" else {}
        return {"side": self.side, "fps": self.fps, "quality": self.quality} | cropped


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

    Returns:
        The index: {"schema", "options", "clips": [Entry], "left_out": [{"clip", "reason"}]}, as in `out`/index.json.

    Raises:
        UsageError: no clips, options that cannot be, a person in both splits, a folder that holds a corpus made with
            other options.
        InputError: a file that does not exist, a table or an index that cannot be read, or no clip that can be used.
        StorageError: the folder cannot be written, or another process packs into it.
    """
    options, progress, out = options or PrepareOptions(), progress or Silent(), Path(out)
    paths = _videos([Path(c) for c in clips])
    facts = _table(options, paths)
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
    names = {path.stem for path in paths}
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
                    left_out.append({"clip": jobs[job].stem, "reason": error.message})
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
            "Give clips of one whole person before a still camera.",
        )
    return index


def _check(options: PrepareOptions) -> None:
    for name, low, high in (("side", 64, 1024), ("fps", 0.1, 120), ("quality", 1, 100), ("val", 0, 0.9)):
        if not low <= getattr(options, name) <= high:
            raise UsageError(f"--{name} is {getattr(options, name):g}.", f"Give a number from {low:g} to {high:g}.")
    if options.workers < 0:
        raise UsageError(f"--workers is {options.workers}.", "Give 1 or more, or 0 for one per core.")


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
    seen: dict[str, Path] = {}
    for path in found:
        if path != seen.setdefault(path.stem, path):
            raise UsageError(f"{seen[path.stem]} and {path} have one name.", "Rename one of them.")
    return list(seen.values())


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
        row = {k: v for k, v in rows.get(path.stem, {}).items() if v}
        person = row.get("person", path.stem.rpartition("_")[0] or path.stem)
        split = row.get("split", split_of(person, options.val))
        if split not in ("train", "val"):
            raise InputError(f"{options.table}: the split of {path.stem} is “{split}”.", "Use train or val.")
        facts[path] = {
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
