"""Broken files of every kind that `retarget` opens, through its command line: `make fuzz FUZZ=200 SEED=1`.

Each mutation (bytes flipped, cut off, copied elsewhere, lengths and numbers rewritten) of a small good file goes
through a command in this process. It has to end within `PATIENCE` seconds, in success or in one sentence with a remedy
and its exit code; no process, no temporary file and no half-written output may stay. Everything is real but the pose
estimator, which would look for a person for seconds: a stand-in finds the same one in every picture.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import numpy as np

from retarget import cli, errors, folders, pose, video, weights
from retarget.models import build
from retarget.types import Image, PoseTrack, Progress

PATIENCE = 60
"""Seconds that a command may take."""
EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE = (96, 128)
"""(width, height) of the good files."""
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type)}


class Hang(BaseException):
    """A command did not end."""


# ------------------------------------------------------------------------------------------------ mutations


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    size = min(rng.choice((1, 4, 16, 256)), len(data) - at)
    data[at : at + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def splice(data: bytearray, rng: random.Random) -> None:
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    block = data[a : min(b, a + 4096)]
    at = rng.randrange(len(data))
    data[at : at + rng.choice((0, len(block)))] = rng.choice((block, b"", block * 3))


def length(data: bytearray, rng: random.Random) -> None:
    """Rewrite the size that stands before (MP4, PNG) or behind (RIFF, ZIP) a name, or first (safetensors)."""
    names = [m.start() for m in re.finditer(rb"[A-Za-z]{3}[A-Za-z0-9 ]|PK\x01\x02|PK\x03\x04", bytes(data[:65536]))]
    at = rng.choice([0, *(max(0, n - 4) for n in names), *(n + 4 for n in names), rng.randrange(len(data))])
    old = int.from_bytes(data[at : at + 4], "big")
    new = rng.choice((0, 1, 7, old + 1, old - 1, old * 2, 2**31 - 1, 2**32 - 1, rng.randrange(2**32))) % 2**32
    data[at : at + 4] = new.to_bytes(4, rng.choice(("big", "little")))


def digits(data: bytearray, rng: random.Random) -> None:
    """Rewrite a number or word of the text (JSON) in the file."""
    found = [m.span() for m in re.finditer(rb'-?[0-9]+(\.[0-9]+)?|"[^"\\]{0,64}"', bytes(data[:65536]))]
    if not found:
        return flip(data, rng)
    a, b = rng.choice(found)
    data[a:b] = rng.choice(
        (b"0", b"-1", b"1e999", b"NaN", b"1e99999999", b"99999999", b'""', b"null", b'"\\u0000"', b'"x"', b"[" * 200)
    )
    return None


MUTATIONS = (flip, overwrite, truncate, splice, length)


def inside(data: bytearray, rng: random.Random) -> None:
    """Mutate a file in an archive, and pack it again so that its checksum is right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    name = rng.choice([n for n in files if not n.endswith(".png")])
    rng.choice((digits, digits, *MUTATIONS))(files[name], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(member, bytes(content))
    data[:] = out.getvalue()


def mutated(good: bytes, rng: random.Random, kind: str) -> bytes:
    data = bytearray(good)
    special = {".zip": (inside, inside, inside), ".npz": (inside,), ".safetensors": (digits, digits)}.get(kind, ())
    for _ in range(rng.choice((1, 1, 2))):
        if len(data) > 8:
            try:
                rng.choice((*MUTATIONS, *special))(data, rng)
            except (
                zipfile.BadZipFile,
                zlib.error,
                OSError,
                ValueError,
                NotImplementedError,
                EOFError,
            ):  # broken already
                flip(data, rng)
    return bytes(data)


# ------------------------------------------------------------------------------------------------ good files


class Stand:
    """A pose estimator that finds one known person in every picture, in the same place."""

    name, overlap = "stand-in", 0

    def __init__(self, known: PoseTrack, mask: Image) -> None:
        self.known, self.mask = known, mask

    def pieces(
        self, frames: Iterable[Image], *, fps: Fraction, progress: Progress, before: Any = None
    ) -> Iterator[tuple[PoseTrack, Any]]:
        for frame in frames:
            progress.advance()
            found = replace(self.known.scaled(frame.shape[1::-1]), fps=fps)
            yield found, found.body

    def strays(self, body: Any) -> Any:
        return np.zeros(len(body), bool)

    def segment(self, frames: Sequence[Image]) -> list[tuple[PoseTrack, Any]]:
        import cv2

        return [(self.known.scaled(f.shape[1::-1]), cv2.resize(self.mask, f.shape[1::-1])) for f in frames]


def ffmpeg(*arguments: object) -> None:
    command = [video.ffmpeg(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def good_files(folder: Path) -> tuple[dict[str, Path], Stand]:
    """One small good file of each kind, by its suffix, and the stand-in that knows who they show."""
    import cv2

    me = EXAMPLES / "me.mp4"
    with video.open_reader(me, end=0.1) as frames:
        picture = next(frames)
    ((track, mask),) = pose.estimate_images([picture])
    files = {suffix: folder / f"good{suffix}" for suffix in (".mp4", ".webm", ".gif", ".jpg", ".png")}
    small = ("-an", "-t", "0.4", "-vf", f"scale={SIZE[0]}:{SIZE[1]}")
    tone = ("-f", "lavfi", "-i", "sine=d=0.5")
    both = ("-map", "0:v", "-map", "1:a", "-t", "0.4", "-vf", f"scale={SIZE[0]}:{SIZE[1]}")
    ffmpeg("-i", me, *tone, *both, "-c:v", "libx264", "-g", "6", "-c:a", "aac", files[".mp4"])
    ffmpeg("-i", me, *tone, *both, "-c:v", "libvpx-vp9", "-cpu-used", "8", "-c:a", "libopus", files[".webm"])
    ffmpeg("-i", me, *small, files[".gif"])
    for suffix in (".jpg", ".png"):
        cv2.imwrite(str(files[suffix]), cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA)[..., ::-1])
    files[".npz"] = pose.save_motion(replace(track.select([0] * 4), fps=Fraction(25)), folder / "good.npz")
    config = {"width": 8, "depth": 2, "density": 24.0}
    files[".safetensors"] = folder / "good.safetensors"
    weights.save_file(files[".safetensors"], build("dance", config).state_dict(), "dance", config)
    return files, Stand(track, mask)


# ------------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class Finding:
    """What should not have happened."""

    number: int
    kind: str
    words: tuple[str, ...]
    problem: str


def children() -> set[int]:
    """Processes that this one has started and that have not been waited for, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(stat.parent.name))
    return found


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Raises Hang after `seconds`; when even that does not end it, prints where it hangs and ends the process."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def said(words: Sequence[str]) -> tuple[int, str]:
    """A command with --json: its exit code and the last line of its output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), watchdog(PATIENCE):
        code = cli.main([*words, "--json", "--quiet"])
    if code in (130, 128 + signal.SIGTERM):  # we are to end: commands make sentences of it
        raise KeyboardInterrupt
    lines = out.getvalue().splitlines()
    return code, lines[-1] if lines else ""


def complaint(code: int, line: str) -> str:
    """What is wrong with a command's end; "" when nothing is."""
    try:
        told = json.loads(line)
    except ValueError:
        return f"exit {code}, and no JSON: {line[:200]}"
    if code == 0:
        return "an error, but exit 0" if "error" in told else ""
    error = told.get("error", {})
    if error.get("type") not in ERRORS or error.get("exit_code") != code or code == 1:
        return f"exit {code}: {line[:600]}"
    if not error["message"] or not error["remedy"] or "\n" in error["message"]:
        return f"no sentence with a remedy: {line[:600]}"
    return ""


class Fuzz:
    """Runs mutations in `folder`; every one of them follows from its number and the seed alone."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.good = folder / "good"
        self.good.mkdir()
        self.files, self.stand = good_files(self.good)
        self.results: Counter[str] = Counter()
        self.findings: list[Finding] = []

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """The stand-in at work, a home and a folder for temporary files of our own, and a good avatar."""
        before = pose.make_estimator, dict(os.environ), tempfile.tempdir
        (self.folder / "tmp").mkdir()
        os.environ |= {"RETARGET_HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp")}
        tempfile.tempdir = None
        pose.make_estimator = lambda options: self.stand
        try:
            for words in (
                ("personalize", str(self.files[".mp4"]), "-k", "2", "-t", "0", "--size", "64", "--name", "good"),
                ("avatars", "export", "good", str(self.good / "good.zip")),
            ):
                code, line = said(words)
                if code:
                    raise RuntimeError(f"the good files do not work: {line}")
            self.files[".zip"] = self.good / "good.zip"
            for kind in sorted(self.files):  # what is not broken works, or nothing is proved
                for chance in range(4):
                    out = self.folder / "out.mp4"
                    for words in self.commands(kind, self.files[kind], out, random.Random(chance)):
                        code, line = said(words)
                        if code:
                            raise RuntimeError(f"an unbroken {kind} does not work: {' '.join(words)}: {line}")
                    out.unlink(missing_ok=True)
            yield
        finally:
            pose.make_estimator, environ, tempfile.tempdir = before
            os.environ.clear()
            os.environ.update(environ)

    def commands(self, kind: str, path: Path, out: Path, rng: random.Random) -> list[tuple[str, ...]]:
        """What is done with a broken file. A command is left out when one before it failed."""
        name = f"x{path.stem}"
        drive = ("drive", "--avatar", "good", "--device", "cpu", "--out", str(out))
        motion = ("--source", str(self.files[".npz"]))
        make = ("personalize", "-k", "2", "-t", "0", "--size", "64", "--device", "cpu", "--name", name)
        forget = ("avatars", "rm", name, "--yes")
        if kind in (".mp4", ".webm", ".gif"):
            return rng.choice(
                (
                    [(*drive, "--source", str(path))],
                    [(*drive, "--source", str(path), "--compare", "--start", "0.1")],
                    [(*drive, *motion, "--background", str(path))],
                    [(*make, str(path)), forget],
                )
            )
        if kind in (".jpg", ".png"):
            return rng.choice(([(*drive, *motion, "--background", str(path))], [(*make, str(path)), forget]))
        if kind == ".npz":
            return [(*drive, "--source", str(path))]
        if kind == ".safetensors":
            return [(*make, "--init", str(path), str(self.files[".png"])), forget]
        return [
            ("avatars", "import", str(path), "--name", name),
            ("avatars", "show", name),
            ("avatars", "list"),
            ("drive", "--avatar", name, "--device", "cpu", "--out", str(out), *motion),
            forget,
        ]

    def one(self, number: int) -> None:
        """Make mutation `number` and see what comes of it."""
        rng = random.Random(f"{self.seed} {number}")
        kind = sorted(self.files)[number % len(self.files)]
        path, out = self.folder / f"{number}{kind}", self.folder / f"out{number}.mp4"
        path.write_bytes(mutated(self.files[kind].read_bytes(), rng, kind))
        avatars = self._avatars()
        result = "worked"
        running = children()
        for words in self.commands(kind, path, out, rng):
            try:
                code, line = said(words)
                problem = complaint(code, line)
            except Hang:
                code, problem = -1, f"does not end within {PATIENCE} s"
            if code == 0 and words[0] == "drive" and not video.probe(out).frames:
                problem = "an empty video"
            if code != 0 and out.exists():
                problem = problem or "half-written output"
            if problem:
                self.findings.append(Finding(number, kind, words, problem))
                result = "finding"
            if code != 0:
                result = "refused" if result == "worked" else result
                break
        if left := children() - running:
            self.findings.append(Finding(number, kind, words, f"processes are left: {left}"))
        if left := self._left(path, out) | {n for n in self._avatars() - avatars if n.startswith(".")}:
            self.findings.append(Finding(number, kind, words, f"files are left: {sorted(left)}"))
        self.results[f"{kind} {result}"] += 1
        if result == "refused" and kind == ".zip" and f"x{path.stem}" in self._avatars():  # imported, but not drawn
            said(("avatars", "rm", f"x{path.stem}", "--yes"))
        out.unlink(missing_ok=True)
        if not any(f.number == number for f in self.findings):  # kept for whoever mends it
            path.unlink()

    def _avatars(self) -> set[str]:
        home = folders.avatars_dir()
        return {p.name for p in home.iterdir() if p.suffix != ".lock"} if home.is_dir() else set()

    def _left(self, *mine: Path) -> set[str]:
        """Temporary files, and files in our folder that nobody should have written."""
        known = {p.name for p in mine} | {"good", "home", "tmp"} | {f"{f.number}{f.kind}" for f in self.findings}
        left = {p.name for p in self.folder.iterdir()} - known
        left |= {p.name for p in (self.folder / "tmp").iterdir() if not p.name.startswith("torchinductor_")}
        return left | {str(p) for s in ("tmp", "part") for p in (self.folder / "home").rglob(f".*.{s}")}


def fuzz(
    folder: Path, count: int, seed: int, *, only: int | None = None, tell: Callable[[str], None] = lambda line: None
) -> Fuzz:
    """Run `count` mutations in an empty folder (or the one with the number `only`)."""
    work = Fuzz(folder, seed)
    with work.ready():
        for number in range(count) if only is None else (only,):
            before, began = len(work.findings), time.monotonic()
            work.one(number)
            if (took := time.monotonic() - began) > PATIENCE / 4:
                tell(f"{number}: took {took:.0f} s")
            for finding in work.findings[before:]:
                tell(f"{finding.number}{finding.kind}: {finding.problem}\n    retarget {' '.join(finding.words)}")
    return work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the mutation of this number")
    parser.add_argument("--keep", type=Path, help="an empty or new folder in which files with findings stay")
    options = parser.parse_args()
    faulthandler.enable()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="retarget-fuzz-"))
    folder.mkdir(exist_ok=True)
    began = time.monotonic()
    done = fuzz(folder, options.count, options.seed, only=options.only, tell=print)
    for what, count in sorted(done.results.items()):
        print(f"{count:5} {what}")
    print(
        f"{sum(done.results.values())} mutations (seed {options.seed}) in {time.monotonic() - began:.0f} s:"
        f" {len(done.findings)} findings" + (f", files in {folder}" if done.findings else "")
    )
    if not done.findings and options.keep is None:
        shutil.rmtree(folder)
    return bool(done.findings)


if __name__ == "__main__":
    sys.exit(main())
