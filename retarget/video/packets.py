"""Tables of packets and frames with their times, as ffmpeg's `framecrc` format writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from .process import command, guarded_input, run


@dataclass(frozen=True)
class _Row:
    pts: int | None
    duration: int
    key: bool
    discarded: bool


@dataclass(frozen=True)
class Table:
    """What ffmpeg's `framecrc` format writes: facts and packets of each stream."""

    header: dict[int, dict[str, str]]
    rows: dict[int, list[_Row]]

    @staticmethod
    def parse(text: str) -> Table:
        header: dict[int, dict[str, str]] = {}
        rows: dict[int, list[_Row]] = {}
        for line in text.splitlines():
            if line.startswith("#"):
                fact = re.match(r"#(\w+) (\d+): (.*)", line)
                if fact:
                    header.setdefault(int(fact[2]), {})[fact[1]] = fact[3]
                continue
            cells = [cell.strip() for cell in line.split(",")]
            flags = next((int(c[4:], 16) for c in cells[6:] if c.startswith("F=0x")), 1)
            pts = int(cells[2]) if cells[2] != "NOPTS" else None
            duration = int(cells[3])
            rows.setdefault(int(cells[0]), []).append(_Row(pts, duration, bool(flags & 1), bool(flags & 4)))
        return Table(header, rows)


def decode_times(path: Path, tick: Fraction) -> tuple[Fraction, list[_Row]]:
    """Times of all frames by decoding everything; a tiny crop keeps the pipe idle."""
    done = run(
        command(
            *guarded_input(path, "-noautorotate"),
            *("-copyts", "-map", "0:V:0", "-vf", "crop=1:1:0:0:exact=1", "-fps_mode", "passthrough"),
            *("-enc_time_base", f"{tick.numerator}:{tick.denominator}", "-f", "framecrc", "pipe:1"),
        )
    )
    table = Table.parse(done.stdout)
    rows = [row for row in table.rows.get(0, []) if row.pts is not None]
    return (Fraction(table.header[0]["tb"]) if rows else tick), rows
