"""The only printer: results to stdout, everything else to stderr; errors become a sentence, a remedy and an exit code.

on a terminal   rich: bars with the time left, tables, colours
elsewhere       plain lines, a few per stage
--json          one JSON object per line on stdout, for results and for errors; progress as plain lines on stderr
--quiet         nothing but what was asked for (tables, JSON) and errors
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TextIO

from .errors import DeviceError, InputError, RetargetError, StorageError, UsageError, out_of_memory

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
PERIOD: Final = 5.0
"""Seconds between two plain lines about the same stage."""


class Ended(SystemExit):
    """A signal that asks the process to end, as an exception."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@dataclass(frozen=True)
class Failure:
    """An exception as a person sees it: `type` is a name of `errors`, or of the unexpected exception."""

    type: str
    message: str
    remedy: str
    exit_code: int


def explain(error: BaseException) -> Failure:
    """The sentence, remedy and exit code of any exception."""
    if isinstance(error, RetargetError):
        return Failure(type(error).__name__, error.message, error.remedy, error.exit_code)
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return Failure("Interrupted", "Interrupted; no half-written result is left.", "", INTERRUPTED)
    if isinstance(error, Ended):
        return Failure("Interrupted", f"Ended by {error.name}; no half-written result is left.", "", error.code)
    if hasattr(error, "format_message"):  # typer's own, about what was typed
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "retarget"
        sentence = str(error.format_message()).replace("Value error, ", "").strip()
        sentence += "" if sentence.endswith((".", "?", "!")) else "."
        return Failure("UsageError", sentence, f"See {command} --help.", UsageError.exit_code)
    if out_of_memory(error):
        return Failure(
            "OutOfMemory",
            "The device ran out of memory.",
            "Close other programs, or choose a smaller --size or --device cpu.",
            DeviceError.exit_code,
        )
    if isinstance(error, OSError):
        return _explain_os(error)
    what = " ".join(str(error).split())
    return Failure(
        type(error).__name__,
        f"Something went wrong that should not ({type(error).__name__}{': ' + what[:300] if what else ''}).",
        "Set RETARGET_DEBUG=1 and run it again for the traceback, and report it.",
        RetargetError.exit_code,
    )


def _explain_os(error: OSError) -> Failure:
    where = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Make room, or choose another folder (RETARGET_HOME for avatars and the cache)."
        return Failure("StorageError", f"The disk is full{where}.", remedy, StorageError.exit_code)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Change the permissions, or choose another folder."
        return Failure("StorageError", f"Access denied{where}.", remedy, StorageError.exit_code)
    odd = error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    if odd or isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return Failure("InputError", f"{error.strerror}{where}.", "Check the path.", InputError.exit_code)
    return Failure(type(error).__name__, f"{error.strerror or error}{where}.", _DEBUG, RetargetError.exit_code)


_DEBUG: Final = "Set RETARGET_DEBUG=1 and run it again for the traceback."


@dataclass
class _Stage:
    """The running stage, for plain lines: its title, how far it is and how long it will take."""

    title: str
    total: int | None
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    told: float = field(default_factory=time.monotonic)
    first: tuple[float, int] | None = None
    """When something was first done, and how much: perhaps by an interrupted run, and says nothing of the speed."""

    def line(self) -> str:
        parts = [f"{self.done}" if self.total is None else f"{self.done}/{self.total}"]
        since, before = self.first or (self.started, 0)
        if self.total and before < self.done < self.total:
            left = (time.monotonic() - since) / (self.done - before) * (self.total - self.done)
            parts.append(f"{duration(left)} left")
        return f"{self.title}: " + ", ".join([*parts, *_figures(self.figures)])


class Console:
    """Where a command prints. Implements `types.Progress`.

    json   one JSON object per line on stdout.
    quiet  only what was asked for, and errors.
    goes_on  whether the same command, run again after an interruption, goes on where it stopped.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.goes_on = False
        self._stage: _Stage | None = None
        self._live: RichProgress | None = None
        self._task: TaskID | None = None

    # Results: what was asked for.

    def result(self, data: Mapping[str, Any], *lines: str) -> None:
        """The outcome of a command: `data` as JSON, else `lines` (unless --quiet)."""
        self.close()
        if self.json:
            _print(_dumps(data))
        elif not self.quiet:
            for line in lines:
                _print(line)

    def table(self, columns: Mapping[str, str], records: Sequence[Mapping[str, Any]], empty: str) -> None:
        """Records as JSON lines, or as a table of the fields in `columns` (field → heading); `empty` when none."""
        self.close()
        if self.json:
            for record in records:
                _print(_dumps(record))
            return
        if not records:
            if not self.quiet:
                _print(empty)
            return
        cells = [[_cell(record.get(key)) for key in columns] for record in records]
        if sys.stdout.isatty():
            from rich.console import Console as RichConsole
            from rich.table import Table
            from rich.text import Text

            table = Table(*columns.values(), box=None, pad_edge=False, header_style="bold")
            for row in cells:
                table.add_row(*map(Text, row))
            RichConsole().print(table)
            return
        widths = [max(map(len, column)) for column in zip(columns.values(), *cells, strict=True)]
        for row in (list(columns.values()), *cells):
            _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def ask(self, question: str) -> bool | None:
        """Yes or no from a person; None when nobody is there to ask."""
        self.close()
        if self.json or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
            return None
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    # Progress.

    def stage(self, title: str, total: int | None = None) -> None:
        self._finish()
        self._stage = _Stage(title, total)
        if self.quiet:
            return
        if self._rich():
            live = self._start()
            self._task = live.add_task(title, total=total, figures="")
        else:
            _print(f"{title} …", sys.stderr)

    def advance(self, steps: int = 1, **figures: float) -> None:
        stage = self._stage
        if stage is None:
            return
        stage.done += steps
        stage.first = stage.first or (time.monotonic(), stage.done)
        stage.figures.update(figures)
        if self.quiet:
            return
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=steps, figures="  ".join(_figures(stage.figures)))
        elif time.monotonic() - stage.told >= PERIOD:
            stage.told = time.monotonic()
            _print(f"  {stage.line()}", sys.stderr)

    def note(self, message: str) -> None:
        if not self.quiet:
            self._tell(message, "")

    def warn(self, message: str) -> None:
        if not self.quiet:
            self._tell(f"Warning: {message}", "yellow")

    def close(self) -> None:
        """End the running stage, and the bars with it."""
        self._finish()
        if self._live is not None:
            self._live.stop()
            self._live = None

    # Errors.

    def fail(self, error: BaseException) -> int:
        """Print what went wrong and what to do; returns the exit code."""
        self._stage = None  # it did not finish
        self.close()
        failure = explain(error)
        if self.goes_on and failure.type == "Interrupted":
            failure = replace(failure, remedy="The same command goes on where it stopped.")
        if os.environ.get("RETARGET_DEBUG", "0") not in ("", "0"):
            traceback.print_exception(error, file=sys.stderr)
        if self.json:
            _print(_dumps({"error": failure.__dict__}))
        else:
            self._tell(f"Error: {failure.message}", "red")
            if failure.remedy:
                self._tell(failure.remedy, "")
        return failure.exit_code

    def run(self, work: Callable[[], object]) -> int:
        """Do `work`, turn whatever it raises into a sentence, and return the exit code.

        `work` may return an exit code itself; everything else counts as 0. SIGTERM and SIGHUP end it as Ctrl-C does, so
        that temporary files go.
        """
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a sentence with “quotes” must not fail on an old terminal
                stream.reconfigure(errors="replace")
        try:
            with _signals():
                code = work()
                self.close()
                sys.stdout.flush()
        except BrokenPipeError:  # the reader had enough (`| head`)
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except Ended as error:
            return self.fail(error)
        except SystemExit as error:
            self.close()
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException as error:
            if type(error).__name__ == "NoArgsIsHelpError" and not self.json:  # typer's: show what there is
                _print(str(error), sys.stderr)
                return UsageError.exit_code
            return self.fail(error)
        if code == INTERRUPTED:  # typer swallows Ctrl-C
            return self.fail(KeyboardInterrupt())
        return code if isinstance(code, int) else 0

    def _rich(self) -> bool:
        return not self.json and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def _start(self) -> RichProgress:
        if self._live is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("{task.fields[figures]}", markup=False),
                console=_rich_stderr(),
            )
            self._live.start()
        return self._live

    def _finish(self) -> None:
        stage, self._stage = self._stage, None
        if stage is None or self.quiet:
            return
        if self._live is not None and self._task is not None:
            self._live.update(self._task, total=max(stage.done, 1), completed=max(stage.done, 1))
        elif self._live is None:
            figures = "".join(f", {f}" for f in _figures(stage.figures))
            _print(f"  done in {duration(time.monotonic() - stage.started)}{figures}", sys.stderr)

    def _tell(self, message: str, style: str) -> None:
        if not self._rich():
            _print(message, sys.stderr)
            return
        printer = self._live.console if self._live is not None else _rich_stderr()
        printer.print(message, style=style or None, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A length of time for people: `7 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """A number of bytes for people: `1.5 MB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.0f} {units[0]}" if units[0] == "B" or count >= 100 else f"{count:.1f} {units[0]}"


def number(value: float | None) -> str:
    """A figure for people: four significant digits."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _figures(figures: Mapping[str, float]) -> list[str]:
    return [f"{name} {number(value)}" for name, value in figures.items()]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return number(value) if isinstance(value, float) else str(value)


def _print(line: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    stream.write(line + "\n")
    stream.flush()


def _rich_stderr() -> RichConsole:
    from rich.console import Console as RichConsole

    return RichConsole(stderr=True)


def _dumps(data: Mapping[str, Any]) -> str:
    return json.dumps(_plain(data), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """`value` in JSON's types; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (Path, Fraction)):
        return str(value)
    return value


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP as exceptions, so that `finally` runs; only the main thread can say so."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    names = [s for s in ("SIGTERM", "SIGHUP") if hasattr(signal, s)]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(getattr(signal, name), end) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
