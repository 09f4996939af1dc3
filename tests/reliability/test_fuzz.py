"""A short piece of `make fuzz`, always the same mutations; and that the fuzzer sees what it looks for."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
from reliability.fuzz import Fuzz, Hang, children, complaint, fuzz, mutated, watchdog

SECTION = "4. Hostile input"


@pytest.mark.slow
@pytest.mark.reliability(
    SECTION,
    "fuzzing: 24 seeded mutations of 8 kinds of files (`make fuzz`: 200)",
    "no traceback, no hang, nothing left",
)
def test_a_short_fuzzing(tmp_path: Path) -> None:
    (tmp_path / "fuzz").mkdir()
    before = children()
    done = fuzz(tmp_path / "fuzz", 24, seed=7)
    assert done.findings == []
    assert sum(done.results.values()) == 24
    assert {name.split()[0] for name in done.results} == set(done.files)
    assert children() <= before


def test_mutations_follow_from_the_seed() -> None:
    good = bytes(range(256)) * 8
    for kind in (".mp4", ".safetensors"):
        many = [mutated(good, random.Random(f"1 {i}"), kind) for i in range(40)]
        assert many == [mutated(good, random.Random(f"1 {i}"), kind) for i in range(40)]
        assert len(set(many) - {good}) > 35


@pytest.mark.parametrize(
    ("code", "line", "wrong"),
    [
        (0, '{"out": "o.mp4"}', False),
        (3, '{"error": {"type": "VideoError", "message": "No.", "remedy": "Yes.", "exit_code": 3}}', False),
        (1, '{"error": {"type": "KeyError", "message": "x", "remedy": "y", "exit_code": 1}}', True),
        (3, '{"error": {"type": "VideoError", "message": "No.", "remedy": "", "exit_code": 3}}', True),
        (2, '{"error": {"type": "VideoError", "message": "No.", "remedy": "Yes.", "exit_code": 3}}', True),
        (1, "Traceback (most recent call last)", True),
        (0, '{"error": {}}', True),
    ],
)
def test_what_counts_as_a_finding(code: int, line: str, wrong: bool) -> None:
    assert bool(complaint(code, line)) == wrong


def test_the_watchdog_bites() -> None:
    with pytest.raises(Hang), watchdog(0.05):
        time.sleep(60)


def test_a_process_that_is_left_is_seen() -> None:
    before = children()
    left = subprocess.Popen(["sleep", "60"])
    try:
        assert children() - before == {left.pid}
    finally:
        left.kill()
        left.wait()


def test_files_that_are_left_are_seen(tmp_path: Path) -> None:
    work = Fuzz.__new__(Fuzz)
    work.folder, work.findings = tmp_path, []
    for name in ("good", "tmp", "home"):
        (tmp_path / name).mkdir()
    assert work._left(tmp_path / "1.mp4") == set()
    (tmp_path / "1.mp4").touch()
    assert work._left(tmp_path / "1.mp4") == set()
    (tmp_path / ".retarget-1.part.mp4").touch()
    (tmp_path / "tmp" / "x").touch()
    (tmp_path / "home" / ".avatar.tmp").touch()
    assert len(work._left(tmp_path / "1.mp4")) == 3
