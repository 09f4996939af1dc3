"""Twenty minutes of dance: as much memory as for twenty seconds, sixty times the time, no files beside the output."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from retarget.video import open_reader, probe

EXAMPLES = Path(__file__).parents[2] / "examples"
SECTION = "6. Length"
MINUTES, FPS = 20, 10
"""Of the source. At a third of its own rate it takes half an hour on two cores."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc"),
]


class Used(NamedTuple):
    """What a command took: processor seconds of all its processes; the most bytes of memory that they had together, of
    files that were gone at the end, and how many bytes its output has."""

    seconds: float
    memory: int
    temporary: int
    output: int


def processes(pid: int) -> Iterator[int]:
    """A process and those below it, but for one about to become another program: it still has its parent's memory."""
    yield pid
    program = Path(f"/proc/{pid}/cmdline").read_bytes()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            if Path(f"/proc/{child}/cmdline").read_bytes() != program:
                yield from processes(int(child))


def memory(pid: int) -> int:
    """Bytes of a process and its children that are in no file."""
    total = 0
    for process in processes(pid):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        total += 1024 * int(status.get("RssAnon", "0 kB").split()[0])
    return total


def sizes(folder: Path) -> dict[int, int]:
    """Inode → bytes of every file below a folder: a file that is moved stays the same."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                state = os.stat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            found[state.st_ino] = state.st_size
    return found


def run(home: Path, out: Path, *words: object) -> Used:
    """Runs a command whose every file lies below `home`, and looks at it twice a second."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    ours = {"RETARGET_HOME": str(home), "TMPDIR": str(home / "tmp"), "OMP_WAIT_POLICY": "PASSIVE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    most, seen = 0, []
    command = [sys.executable, "-m", "retarget", *map(str, words), "--quiet"]
    with subprocess.Popen(command, env=os.environ | ours) as process:
        while process.poll() is None:
            with suppress(FileNotFoundError, ProcessLookupError):  # one has just ended
                most = max(most, memory(process.pid))
            seen.append(sizes(home))
            time.sleep(0.5)
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    left = sizes(home)
    temporary = max(sum(size for inode, size in files.items() if inode not in left) for files in seen)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Used(seconds, most, temporary, out.stat().st_size)


@pytest.fixture(scope="module")
def looped(make: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """The example, over and over, for so many seconds, at `FPS` frames per second."""
    folder = tmp_path_factory.mktemp("looped")

    def source(seconds: float) -> Path:
        out = folder / f"{seconds:g}.mp4"
        if not out.exists():
            again = ("-stream_loop", -1, "-i", EXAMPLES / "dance.mp4")
            make(*again, "-t", seconds, "-r", FPS, "-c:v", "libx264", "-preset", "veryfast", "-c:a", "aac", out)
        return out

    return source


@pytest.mark.reliability(
    SECTION,
    f"{MINUTES} minutes of source, {FPS} frames/s, against 20 seconds",
    "memory within 10 %, time in proportion, temporary files no larger than the output",
)
def test_twenty_minutes(looped: Callable[[float], Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    run(home, EXAMPLES / "me.mp4", "personalize", EXAMPLES / "me.mp4", "-k", 5, "-t", 20, "--device", "cpu")

    def drive(seconds: float) -> Used:
        source, out = looped(seconds), home / f"{seconds:g}.mp4"
        used = run(home, out, "drive", "--source", source, "--out", out, "--device", "cpu", "--yes")
        print(f"{seconds:g} s of source: {used}")
        assert probe(out).frames == probe(source).frames == pytest.approx(FPS * seconds, abs=2)
        return used

    short, twice, long = drive(20), drive(40), drive(60 * MINUTES)
    # Most is needed to begin with, by threads, and how much of it at once is chance.
    assert long.memory < 1.1 * max(short.memory, twice.memory)
    assert long.temporary < long.output
    # What a command takes to begin with counts once.
    assert long.seconds < 1.15 * (short.seconds + (3 * MINUTES - 1) * (twice.seconds - short.seconds))


@pytest.mark.reliability(SECTION, "a second near the end of 20 minutes", "read as fast as one near the beginning")
def test_a_piece_is_found_without_decoding_all_before(looped: Callable[[float], Path]) -> None:
    source = looped(60 * MINUTES)

    def seconds(start: float) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        for i in range(5):
            with open_reader(source, start=start + i, end=start + i + 1) as frames:
                assert sum(1 for _ in frames) == FPS
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    seconds(1.0)  # whatever is to be known of a file is known now
    assert seconds(60 * MINUTES - 10) < 2 * seconds(5)
