"""Where things are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from retarget import folders
from retarget.errors import StorageError


def test_retarget_home_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETARGET_HOME", str(tmp_path / "here"))
    assert folders.data_dir() == tmp_path / "here"
    assert folders.avatars_dir() == tmp_path / "here" / "avatars"
    assert folders.cache_dir() == tmp_path / "here" / "cache"
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("value", ["~/retarget-home", "relative/home"])
def test_retarget_home_may_be_relative(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETARGET_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert folders.data_dir().is_absolute()
    assert folders.data_dir().is_relative_to(tmp_path)


def test_without_it_the_users_folders_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETARGET_HOME", "")
    assert folders.data_dir().name == "retarget"
    assert "retarget" in folders.cache_dir().parts
    assert folders.data_dir() != folders.cache_dir()


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    assert folders.made(tmp_path / "a" / "b").is_dir()
    assert folders.made(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StorageError, match="cannot be created") as error:
            folders.made(path)
        assert "RETARGET_HOME" in error.value.remedy


# ------------------------------------------------------------------------------------------------ unfinished work

HOLD = """
import sys, time
from pathlib import Path
from retarget import folders
with folders.locked(Path(sys.argv[1]), "It"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of tmp_path / "thing"."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "thing")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_whoever_comes_second_waits_and_is_told(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"^It is in use by another retarget for more than 0\.2 s\. Wait"),
        folders.locked(tmp_path / "thing", "It", patience=0.2),
    ):
        raise AssertionError


def test_a_killed_process_holds_no_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    with folders.locked(tmp_path / "thing", "It", patience=5):
        pass


def test_a_lock_leaves_no_file(tmp_path: Path) -> None:
    with folders.locked(tmp_path / "thing", "It"):
        assert (tmp_path / ".thing.lock").exists()
    assert not (tmp_path / ".thing.lock").exists()


def test_nobody_gets_a_lock_whose_file_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waits with the file open while B gives it back and deletes it, and C locks a new one."""
    with ExitStack() as b, ExitStack() as c:
        b.enter_context(folders.locked(tmp_path / "thing", "It"))
        real, opened = os.open, []

        def opening(path: str, *how: int, **named: int) -> int:
            file = real(path, *how, **named)
            if str(path).endswith(".thing.lock"):
                opened.append(file)
                if len(opened) == 1:
                    b.close()
                    c.enter_context(folders.locked(tmp_path / "thing", "It"))
            return file

        monkeypatch.setattr(os, "open", opening)
        with pytest.raises(StorageError, match="in use"), folders.locked(tmp_path / "thing", "It", patience=0.3):
            raise AssertionError
        assert len(opened) > 2
        assert (tmp_path / ".thing.lock").exists()


COUNT = """
import sys
from pathlib import Path
from retarget import folders
number = Path(sys.argv[1])
for _ in range(10):
    with folders.locked(number, "It"):
        number.write_text(str(int(number.read_text()) + 1))
"""


def test_many_processes_are_alone_one_by_one(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    made = [subprocess.Popen([sys.executable, "-c", COUNT, str(number)]) for _ in range(3)]
    assert [process.wait(120) for process in made] == [0, 0, 0]
    assert number.read_text() == "30"
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".lock"] == []


def unfinished(**what: int) -> Path:
    with suppress(ZeroDivisionError), folders.work("render", what) as folder:
        (folder / "piece").write_text("x")
        raise ZeroDivisionError
    return folder


def test_unfinished_work_is_found_again() -> None:
    folder = unfinished(a=1)
    with folders.work("render", {"a": 2}) as other:
        assert not (other / "piece").exists()
    assert not other.exists()
    with folders.work("render", {"a": 1}) as again:
        assert again == folder
        assert (again / "piece").read_text() == "x"
        assert json.loads((again / "what.json").read_text()) == {"a": 1}
    assert not folder.exists()


def test_unfinished_work_can_be_forgotten() -> None:
    folder = unfinished(a=1)
    with folders.work("render", {"a": 1}, restart=True) as again:
        assert again == folder
        assert not (again / "piece").exists()


def test_old_unfinished_work_goes_unless_somebody_is_at_it() -> None:
    long_ago = time.time() - folders.KEPT - 60
    left = [unfinished(n=n) for n in range(2)]
    for folder in left:
        os.utime(folder, (long_ago, long_ago))
    with folders.locked(left[0], "It"), folders.work("render", {"n": 2}):
        assert [folder.exists() for folder in left] == [True, False]


def test_locks_of_killed_processes_go_with_old_work() -> None:
    work = folders.made(folders.cache_dir() / "work")
    old, new = work / ".render-1.lock", work / ".render-2.lock"
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    with folders.work("render", {"n": 3}):
        assert (old.exists(), new.exists()) == (False, True)


def test_unfinished_work_is_found_by_a_part_of_what_decides_it() -> None:
    left = unfinished(a=1, b=2)
    unfinished(a=2, b=2)
    (left.parent / "render-broken").mkdir()
    (left.parent / "render-broken" / "what.json").write_text("[]")
    assert folders.unfinished("render", {"a": 1}) == left
    assert folders.unfinished("render", {"a": 3}) is None
    assert folders.unfinished("other", {"a": 1}) is None
    later = unfinished(a=1, b=3)
    os.utime(left, (1, 1))
    assert folders.unfinished("render", {"a": 1}) == later


def test_work_that_left_nothing_is_not_kept() -> None:
    with pytest.raises(ZeroDivisionError), folders.work("render", {"a": 1}) as folder:
        raise ZeroDivisionError
    assert not folder.exists()


@pytest.mark.parametrize("restart", [False, True])
def test_half_deleted_work_is_not_gone_on_with(restart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unfinished(a=1)

    class Killed(BaseException):
        pass

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "what.json").unlink()  # got no further
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "rmtree", killed)
        with pytest.raises(Killed), folders.work("render", {"a": 1}, restart=restart):
            pass
    with folders.work("render", {"a": 1}) as again:
        assert again == folder
        assert [p.name for p in folder.iterdir()] == ["what.json"]
    assert list(folder.parent.iterdir()) == []


# ------------------------------------------------------------------------------------------------ files


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    folders.replace_file(path, b"old")
    with suppress(ZeroDivisionError), folders.replaced(path) as temporary:
        temporary.write_bytes(b"ha")
        assert path.read_bytes() == b"old"
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    with folders.replaced(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["file"]


def test_what_killed_processes_left_is_swept_away(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / ".b.x.tmp").mkdir(parents=True)
    (folder / ".b.x.tmp" / "file").write_text("")
    for name in (".a.npz.1.tmp", ".c.part", ".run.lock", "me.tmp", ".hidden"):
        (folder / name).write_text("")
    folders.sweep(folder)  # somebody may still write to them
    assert len(list(folder.iterdir())) == 6
    long_ago = time.time() - folders.LEFT_BEHIND - 60
    os.utime(folder / ".c.part", (long_ago, long_ago))
    folders.sweep(folder)
    assert not (folder / ".c.part").exists()
    folders.sweep(folder, older=0)
    assert sorted(p.name for p in folder.iterdir()) == [".hidden", ".run.lock", "me.tmp"]
    folders.sweep(tmp_path / "missing")
