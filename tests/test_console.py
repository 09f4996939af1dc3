"""What is printed where, and which exception becomes which sentence and exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from retarget import console as module
from retarget import errors
from retarget.console import Console, duration, explain, number, size

Out = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errors.RetargetError("m", "r"), "RetargetError", 1),
        (errors.UsageError("m", "r"), "UsageError", 2),
        (errors.InputError("m", "r"), "InputError", 3),
        (errors.VideoError("m", "r"), "VideoError", 3),
        (errors.NobodyFound("m", "r"), "NobodyFound", 3),
        (errors.AvatarError("m", "r"), "AvatarError", 3),
        (errors.WeightsError("m", "r"), "WeightsError", 4),
        (errors.DeviceError("m", "r"), "DeviceError", 5),
        (errors.StorageError("m", "r"), "StorageError", 6),
    ],
)
def test_our_errors(error: errors.RetargetError, kind: str, code: int) -> None:
    assert explain(error).__dict__ == {"type": kind, "message": "m", "remedy": "r", "exit_code": code}


def test_every_error_of_the_tree_has_its_code() -> None:
    def below(cls: type) -> list[type]:
        return [cls, *(s for c in cls.__subclasses__() for s in below(c))]

    for cls in below(errors.RetargetError):
        assert f"{cls.__name__} " in errors.__doc__ or f"{cls.__name__}\n" in errors.__doc__


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space", "/big/file"), 6, "The disk is full: /big/file."),
        (OSError(errno.EDQUOT, "Quota"), 6, "The disk is full."),
        (PermissionError(errno.EACCES, "Denied", "/root/x"), 6, "Access denied: /root/x."),
        (OSError(errno.EROFS, "Read-only", "/ro/x"), 6, "Access denied: /ro/x."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.mp4"), 3, "No such file or directory: x.mp4."),
        (OSError(errno.EIO, "Input/output error", "x"), 1, "Input/output error: x."),
        (MemoryError(), 5, "The device ran out of memory."),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 5, "The device ran out of memory."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 5, "ran out of memory."),
        (KeyboardInterrupt(), 130, "Interrupted; no half-written result is left."),
    ],
)
def test_errors_of_the_system(error: BaseException, code: int, sentence: str) -> None:
    failure = explain(error)
    assert failure.exit_code == code
    assert failure.message.endswith(sentence)
    assert failure.remedy or code == 130


def test_the_unexpected_is_one_sentence_with_a_way_to_the_traceback() -> None:
    failure = explain(ValueError("operands\ncould not be broadcast"))
    assert failure.exit_code == 1
    assert "(ValueError: operands could not be broadcast)" in failure.message
    assert "RETARGET_DEBUG=1" in failure.remedy
    assert explain(RuntimeError("CUDA error: device-side assert")).exit_code == 1


def raising(error: BaseException) -> object:
    raise error


def test_run_returns_the_exit_code(capsys: Out) -> None:
    assert Console().run(lambda: None) == 0
    assert Console().run(lambda: 3) == 3
    assert Console().run(lambda: raising(SystemExit(4))) == 4
    assert Console().run(lambda: raising(SystemExit("no"))) == 1
    assert Console().run(lambda: 130) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_an_error_in_words(capsys: Out) -> None:
    assert Console().run(lambda: raising(errors.VideoError("x.mp4 is no video.", "Give another."))) == 3
    got = capsys.readouterr()
    assert got.out == ""
    assert got.err == "Error: x.mp4 is no video.\nGive another.\n"


def test_an_error_as_json(capsys: Out) -> None:
    assert Console(json=True).run(lambda: raising(errors.VideoError("x.mp4 is no video.", "Give another."))) == 3
    got = capsys.readouterr()
    assert got.err == ""
    assert json.loads(got.out) == {
        "error": {"type": "VideoError", "message": "x.mp4 is no video.", "remedy": "Give another.", "exit_code": 3}
    }


def test_debug_shows_the_traceback(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETARGET_DEBUG", "1")
    Console().run(lambda: raising(ValueError("x")))
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    monkeypatch.setenv("RETARGET_DEBUG", "0")
    Console().run(lambda: raising(ValueError("x")))
    assert "Traceback" not in capsys.readouterr().err


def test_results(capsys: Out) -> None:
    Console().result({"out": "x"}, "Written: x", "Enjoy.")
    assert capsys.readouterr().out == "Written: x\nEnjoy.\n"
    Console(quiet=True).result({"out": "x"}, "Written: x")
    assert capsys.readouterr().out == ""
    data = {"path": Path("a"), "fps": Fraction(1, 2), "psnr": float("nan"), "name": "é", "size": (1, 2)}
    for quiet in (False, True):
        Console(json=True, quiet=quiet).result(data, "Written: x")
        assert capsys.readouterr().out == '{"path": "a", "fps": "1/2", "psnr": null, "name": "é", "size": [1, 2]}\n'


ROWS = [{"name": "anna", "psnr": 27.123456, "id": 1}, {"name": "bo", "psnr": None, "id": 2}]


def test_tables(capsys: Out) -> None:
    columns = {"name": "who", "psnr": "PSNR"}
    Console().table(columns, ROWS, "Nobody.")
    assert capsys.readouterr().out == "who   PSNR\nanna  27.12\nbo    –\n"
    Console(quiet=True).table(columns, ROWS, "Nobody.")
    assert "anna" in capsys.readouterr().out  # it was asked for
    Console(json=True).table(columns, ROWS, "Nobody.")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS
    Console().table(columns, [], "Nobody.")
    assert capsys.readouterr().out == "Nobody.\n"
    Console(json=True).table(columns, [], "Nobody.")
    assert capsys.readouterr().out == ""


def work(console: Console) -> None:
    console.stage("Poses", 10)
    console.advance(4)
    console.note("A note.")
    console.advance(6)
    console.stage("Learning", 2)
    console.advance(loss=0.125)
    console.warn("The camera moves.")
    console.advance(loss=0.0625)
    console.result({"x": 1}, "Done.")


def test_progress_in_plain_lines(capsys: Out) -> None:
    work(Console())
    got = capsys.readouterr()
    assert got.out == "Done.\n"
    lines = got.err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        "Poses …", "A note.", "  done", "Learning …", "Warning: The camera moves.", "  done",
    ]  # fmt: skip
    assert lines[-1].endswith("s, loss 0.0625")


def test_a_long_stage_tells_how_far_it_is(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD", 0.0)
    console = Console()
    console.stage("Learning", 4)
    console.advance()
    console.advance(loss=0.5)
    line = capsys.readouterr().err.splitlines()[2]
    assert line.startswith("  Learning: 2/4, ")
    assert " left, loss 0.5" in line
    console.stage("Reading")
    console.advance(7)
    assert "Reading: 7\n" in capsys.readouterr().err


def test_what_an_interrupted_run_has_done_says_nothing_of_the_speed(
    capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PERIOD", 0.0)
    now = [time.monotonic() + 1.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    console = Console()
    console.stage("Learning", 1000)
    console.advance(800)
    now[0] += 2.0
    console.advance()
    assert capsys.readouterr().err.splitlines()[1:] == ["  Learning: 800/1000", "  Learning: 801/1000, 6 min 38 s left"]


def test_json_keeps_stdout_clean(capsys: Out) -> None:
    work(Console(json=True))
    got = capsys.readouterr()
    assert got.out == '{"x": 1}\n'
    assert "Poses" in got.err


def test_quiet(capsys: Out) -> None:
    console = Console(quiet=True)
    work(console)
    assert capsys.readouterr() == ("", "")
    console.fail(errors.UsageError("No.", "Try."))
    assert capsys.readouterr().err == "Error: No.\nTry.\n"


def test_a_failed_stage_is_not_called_done(capsys: Out) -> None:
    console = Console()
    console.stage("Poses", 10)
    console.fail(errors.InputError("No.", ""))
    assert capsys.readouterr().err == "Poses …\nError: No.\n"


def test_bars_on_a_terminal(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = Console()
    work(console)
    got = capsys.readouterr()
    assert got.out == "Done.\n"
    for piece in ("Poses", "10/10", "Learning", "2/2", "loss 0.0625", "A note.", "Warning: The camera moves."):
        assert piece in got.err
    assert console._live is None  # the terminal has its cursor back


def test_nobody_to_ask(capsys: Out) -> None:
    assert Console().ask("Overwrite?") is None


@pytest.mark.parametrize(
    ("answer", "meaning"), [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_asking(capsys: Out, monkeypatch: pytest.MonkeyPatch, answer: str, meaning: bool) -> None:
    import io

    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert Console().ask("Overwrite?") is meaning
    assert "Overwrite? [y/N]" in capsys.readouterr().err
    assert Console(json=True).ask("Overwrite?") is None


def script(body: str) -> list[str]:
    return [sys.executable, "-c", f"import sys\nfrom retarget.console import Console\n{body}\n"]


@pytest.mark.reliability("9. Exit codes", "Ctrl-C, SIGTERM, SIGHUP", "130, 143, 129; a sentence, or JSON; cleaned up")
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("told", [False, True])
def test_a_signal_cleans_up(number: signal.Signals, code: int, told: bool) -> None:
    body = """
def work():
    try:
        print("ready", flush=True)
        import time
        time.sleep(30)
    finally:
        print("cleaned", flush=True)
sys.exit(Console().run(work))"""
    body = body.replace("Console()", f"Console(json={told})")
    with subprocess.Popen(script(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    cleaned, *rest = out.splitlines()
    assert cleaned == "cleaned"
    assert process.returncode == code
    assert "Traceback" not in err
    if told:
        (error,) = (json.loads(line)["error"] for line in rest)
        assert (error["type"], error["exit_code"]) == ("Interrupted", code)
    else:
        assert rest == []
        assert "no half-written result is left" in err


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_reader_that_had_enough() -> None:
    body = "sys.exit(Console().run(lambda: [Console().result({}, 'x' * 1000) for _ in range(10000)] and None))"
    with subprocess.Popen(script(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_an_old_terminal_gets_its_sentence() -> None:
    body = """
from retarget.errors import UsageError
def work():
    raise UsageError("“é” cannot be.", "Try ½.")
sys.exit(Console().run(work))"""
    done = subprocess.run(
        script(body), capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: ??? cannot be.")


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (0.04, 7.26, 12.3, 200, 7500)] == ["0.0 s", "7.3 s", "12 s", "3 min 20 s", "2 h 5 min"]
    assert [size(n) for n in (12, 1500, 30_633, 2_500_000, 575e6, 3.2e9, 5e12)] == [
        "12 B", "1.5 kB", "30.6 kB", "2.5 MB", "575 MB", "3.2 GB", "5.0 TB",
    ]  # fmt: skip
    assert [number(x) for x in (0.123456, 27.98765, 100, None, float("nan"))] == ["0.1235", "27.99", "100", "–", "–"]
