"""What may be typed: every check of the command line that its parser does not make, each a sentence with a remedy."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .console import Console
from .errors import InputError, StorageError, UsageError

SIZES: Final = (64, 4320)
"""Of pictures, in pixels."""
MAX_FRAMES: Final = 64
MAX_STEPS: Final = 1_000_000
MAX_SEED: Final = 2**32 - 1
SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
ALPHA_SUFFIXES: Final = (".mov", ".webm")


def within(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{option} {value} cannot be.", f"Give a whole number from {low} to {high}.")


def fraction(option: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"{option} {value:g} cannot be.", "Give a number from 0 to 1.")


def piece(start: float, end: float | None) -> None:
    if not (math.isfinite(start) and start >= 0):
        raise UsageError(f"--start {start:g} cannot be.", "Give seconds from the beginning of the source, 0 or more.")
    if end is not None and not (math.isfinite(end) and end > start):
        raise UsageError(f"--end {end:g} is not after --start {start:g}.", "Give the seconds at which to end.")


def pick(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words):
        raise UsageError(f"--pick {text!r} is not a list of frame numbers.", "Give for example --pick 12,40,77.")
    numbers = tuple(map(int, words))
    if len(set(numbers)) != len(numbers):
        raise UsageError(f"--pick {text} names a frame twice.", "Name each frame once.")
    if len(numbers) > MAX_FRAMES:
        raise UsageError(f"--pick names {len(numbers)} frames.", f"Name at most {MAX_FRAMES}.")
    return numbers


def numbers(option: str, text: str, low: int, high: int) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"-?[0-9]{1,9}", word) for word in words):
        raise UsageError(f"{option} {text!r} is no list of whole numbers.", f"Give for example {option} 5,10.")
    for word in words:
        within(option, int(word), low, high)
    return tuple(map(int, words))


def config(words: Sequence[str]) -> dict[str, float | str]:
    """`--config width=24 --config flow=0.1 --config conditioning=face` as a dictionary."""
    out: dict[str, float | str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name == "conditioning":
            out[name] = value
            continue
        try:
            out[name] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            raise UsageError(f"--config {word} is not NAME=NUMBER.", "Give, for example, --config width=24.") from None
    return out


def counts(option: str, text: str) -> tuple[int, ...]:
    """`1,3,5` as numbers of 1 or more."""
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise UsageError(f"{option} {text} is no list of numbers.", f"Give, for example, {option} 1,3,5.")
    return counts


def person(text: str) -> None:
    if text != "largest" and not re.fullmatch(r"\s*\d{1,5}(\.\d+)?\s*,\s*\d{1,5}(\.\d+)?\s*", text):
        raise UsageError(
            f"--person {text!r} is neither “largest” nor a pixel.", "Give for example --person 320,200 (X,Y)."
        )


def model(name: str) -> None:
    from .models import MODELS

    if name not in MODELS:
        raise UsageError(f"There is no model {name!r}.", f"There are: {', '.join(MODELS)}.")


def background(text: str, out: Path) -> None:
    if text == "transparent":
        if out.suffix.lower() not in ALPHA_SUFFIXES:
            raise UsageError(f"{out.name} cannot be transparent.", "Give --out a name that ends in .mov or .webm.")
    elif text.startswith("#"):
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
            raise UsageError(
                f"--background {text!r} is no colour.", "Give #rrggbb, for example --background '#00ff00'."
            )
    elif text not in ("plate", "source") and not Path(text).is_file():
        raise UsageError(
            f"--background {text!r} is neither a file nor one of plate, source, transparent and #rrggbb.",
            "Give one of them.",
        )


def readable(path: Path) -> None:
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise InputError(f"{path} is an address, and only local files are read.", "Download it first.")
    if not path.exists():
        raise InputError(f"There is no file {path}.", "Check the path.")
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a device or a pipe, not a file.", "Save it as a file first.")


def writable_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise StorageError(f"The folder {out.parent} does not exist.", "Create it, or choose another one.")
    if out.is_dir():
        raise UsageError(f"{out} is a folder.", "Give the name of a file.")
    if not os.access(out.absolute().parent, os.W_OK):
        raise StorageError(f"The folder {out.absolute().parent} cannot be written.", "Choose another one.")


def report_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is no folder.", "Give the name of a folder for the report.")
    writable_folder(out / "report.json" if out.exists() else out)


def writable(out: Path, source: Path, background: str) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{out} has no suffix of a video.", f"Use one of {', '.join(SUFFIXES)}.")
    writable_folder(out)
    for used in (source, Path(background)):
        if out.exists() and used.is_file() and out.samefile(used):
            raise UsageError(f"{out} is read and cannot be written at the same time.", "Give --out another name.")


def may_overwrite(out: Path, yes: bool, console: Console) -> bool:
    """Whether a file may be written: it is not there yet, or `yes`, or whoever sits there agrees."""
    if not out.exists() or yes:
        return True
    answer = console.ask(f"{out} exists already. Overwrite it?")
    if answer is None:
        raise UsageError(f"{out} exists already.", "Give another name, or --yes to overwrite it.")
    return answer
