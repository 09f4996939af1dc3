"""Several processes at once: nobody reads a mixture, nobody waits for ever, and a kill leaves the old or the new."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from retarget import avatar as store
from retarget import folders
from retarget.avatar import Avatar, list_avatars, save_avatar
from retarget.errors import AvatarError, StorageError
from retarget.training.prepare import PrepareOptions, prepare

SAVING = """
import json, os, signal, time
from dataclasses import replace
from pathlib import Path
import numpy as np
from retarget import avatar as store
from retarget.avatar import Avatar, AvatarMeta, save_avatar
from retarget.errors import AvatarError

def save(value, name="me"):
    # Everything tells the value: the description, the arrays, the network.
    meta = AvatarMeta("", "dance", (48, 64), 5, extra={"value": value})
    full = np.full((300, 300), value, np.int32)
    return save_avatar(name, meta, {"a": full, "b": full}, {"w": full}, np.full((8, 6, 3), value % 256, np.uint8))

def value_of(avatar):
    values = {int(v) for t in (*avatar.tensors().values(), *avatar.state().values()) for v in np.unique(t)}
    assert values == {avatar.meta.extra["value"]}, (values, avatar.meta.extra)
    return values.pop()
"""


@contextmanager
def processes(*codes: str, before: str = SAVING) -> Iterator[list[subprocess.Popen[str]]]:
    """Real processes, each running one of the codes; none is left at the end."""
    made = [
        subprocess.Popen(
            [sys.executable, "-c", before + code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for code in codes
    ]
    try:
        yield made
    finally:
        for process in made:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    """What a process printed, when it has ended well."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


# ------------------------------------------------------------------------------------------------ avatars

DYING = """
def dying(n, work):
    # Does `work` in a fork, which kills itself before its n-th call that changes a file; whether it was killed.
    if (process := os.fork()) == 0:
        left = [n]

        def fatal(real):
            def call(*args, **how):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **how)

            return call

        for name in ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync", "chmod"):
            setattr(os, name, fatal(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL

home = Path(os.environ["RETARGET_HOME"]) / "avatars"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.reliability("1. Resume", "killed at every step of replacing an avatar", "the old or the new one is there")
def test_killed_at_every_step_of_a_replacement_the_old_or_the_new_is_there() -> None:
    code = """
save(1)
found = []
for n in range(1, 100):
    if not dying(n, lambda: save(n + 1)):
        break
    value = value_of(Avatar.load("me").opened())
    assert value in (n, n + 1), (n, value)
    found.append(value == n + 1)
    save(n + 1)  # the same again
    assert [p.name for p in home.iterdir()] == ["me"], list(home.iterdir())
print(json.dumps(found))
"""
    with processes(DYING + code) as (process,):
        found = json.loads(ended(process))
    assert len(found) > 10
    assert {True, False} == set(found)
    assert found == sorted(found)  # from some step on it is the new one


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.reliability("1. Resume", "killed at every step of removing or importing an avatar", "whole or not there")
def test_killed_at_every_step_of_removing_and_importing_it_is_whole_or_gone(tmp_path: Path) -> None:
    code = f"""
file = store.export(save(7), {str(tmp_path / "me.zip")!r})
def there():
    try:
        return value_of(Avatar.load("me").opened()) == 7
    except AvatarError as error:
        assert "no avatar called me" in error.message, error.message
        return False

found = []
for work in (lambda: store.remove("me"), lambda: store.import_avatar(file)):
    for n in range(1, 100):
        store.import_avatar(file, overwrite=True) if len(found) == 0 else there() and store.remove("me")
        if not dying(n, work):
            break
        there()
    found.append(n)
print(json.dumps(found))
"""
    with processes(DYING + code) as (process,):
        counts = json.loads(ended(process))
    assert min(counts) > 3


@pytest.mark.reliability(
    "7. Concurrency", "avatars saved, removed, imported and read at once", "old or new, never mixed"
)
def test_many_processes_on_one_avatar(tmp_path: Path) -> None:
    write = "print([save(n).meta.extra['value'] for n in range({0}, {0} + 20)])"
    read = """
store.latest_avatar()
seen = set()
for _ in range(100):
    avatar = Avatar.load("me").opened()
    seen.add(value_of(avatar))
    assert "me" in store.avatar_names()
    assert [a.name for a in store.list_avatars() if a.name != "other"] == ["me"]
print(len(seen))
"""
    others = f"""
for n in range(15):
    file = store.export(Avatar.load("me"), {str(tmp_path)!r} + "/me.zip")
    other = store.import_avatar(file, "other", overwrite=True).opened()
    value_of(other)
    store.remove("other")
"""
    with processes("save(0)") as (first,):
        ended(first)
    with processes(write.format(100), write.format(200), read, read, others) as made:
        said = [ended(process) for process in made]
    assert [json.loads(text) for text in said[:2]] == [[*range(100, 120)], [*range(200, 220)]]
    assert max(int(text) for text in said[2:4]) > 1  # it changed under the readers
    assert {p.name for p in folders.avatars_dir().iterdir()} == {"me"}


@pytest.mark.reliability("7. Concurrency", "an avatar replaced while a command has it", "the one that was read")
def test_an_opened_avatar_stays_what_it_was() -> None:
    def save(value: int) -> Avatar:
        meta = store.AvatarMeta("", "dance", (48, 64), 5, extra={"value": value})
        return save_avatar(
            "me", meta, {"a": np.full(3, value)}, {"w": np.full(3, value)}, np.zeros((8, 6, 3), np.uint8)
        )

    before = save(1)
    opened = before.opened()
    after = save(2)
    assert opened == before != after
    assert opened.tensors()["a"].tolist() == opened.state()["w"].tolist() == [1, 1, 1]
    assert before.opened() == after  # whoever comes later has the new one, all of it
    assert before.opened().tensors()["a"].tolist() == [2, 2, 2]
    store.remove("me")
    with pytest.raises(AvatarError, match=r"no avatar called me|is damaged"):
        before.opened()


@pytest.mark.reliability(
    "7. Concurrency", "an avatar is saved while another process keeps the lock", "a sentence, exit 6"
)
def test_whoever_waits_too_long_is_told() -> None:
    with processes("with store.alone():\n    print('held', flush=True)\n    time.sleep(90)") as (holder,):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = r"The folder of avatars is in use by another retarget for more than 0\.2 s"
        with pytest.raises(StorageError, match=message), store.alone(patience=0.2):
            raise AssertionError
        assert list_avatars() == []  # reading waits for nobody
        holder.kill()
        holder.wait()
        with store.alone(patience=5):
            pass


@pytest.mark.reliability("7. Concurrency", "a data folder that is read-only", "avatars can be read")
def test_avatars_can_be_read_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with processes("save(3)") as (first,):
        ended(first)
    home = folders.avatars_dir()
    (home / "me").rename(home / ".me.old")  # left by a killed process

    def refused(folder: Path) -> Path:
        raise StorageError(f"The folder {folder} cannot be written.", "")

    monkeypatch.setattr(folders, "made", refused)
    avatar = Avatar.load("me")
    assert avatar.tensors()["a"][0, 0] == avatar.opened().state()["w"][0, 0] == 3
    assert store.avatar_names() == ["me"]
    assert [a.name for a in list_avatars()] == ["me"]
    with pytest.raises(StorageError):
        store.remove("me")


def test_a_lock_is_no_avatar_and_is_not_exported(tmp_path: Path) -> None:
    with processes("save(3)") as (first,):
        ended(first)
    with store.alone():
        assert (folders.data_dir() / ".avatars.lock").is_file()
        assert store.avatar_names() == ["me"]
    assert not (folders.data_dir() / ".avatars.lock").exists()
    import zipfile

    with zipfile.ZipFile(store.export(Avatar.load("me"), tmp_path / "me.zip")) as archive:
        assert set(archive.namelist()) == set(store.FILES)


# ------------------------------------------------------------------------------------------------ caches and corpora


@pytest.mark.reliability("7. Concurrency", "the pose cache filled, read and trimmed at once", "whole tracks or none")
def test_many_processes_on_one_pose_cache() -> None:
    before = """
import sys
from fractions import Fraction
import numpy as np
from retarget import folders
from retarget.pose import cache
from retarget.types import PoseTrack

def track(value):
    full = lambda *shape: np.full(shape, value, np.float32)
    return PoseTrack(full(20, 33, 4), full(20, 33, 3), full(20, 468, 3), full(20, 2, 21, 3), (64, 48), Fraction(25))
"""
    code = """
hits = 0
for n in range(40):
    name = f"{n % 5:064x}"
    cache.keep(name, cache.packed(track(n % 5)).items())
    cache.trim(cache._folder(), 20_000)
    for m in range(5):
        if (kept := cache.fetch(f"{m:064x}")) is not None:
            hits += 1
            body = kept.track.body
            assert len(kept) == 20 and float(body.min()) == float(body.max()) == m
print(hits)
"""
    with processes(code, code, code, before=before) as made:
        assert sum(int(ended(process)) for process in made) > 0
    assert all(p.suffix == ".npz" for p in (folders.cache_dir() / "poses").iterdir())


@pytest.mark.parametrize("name", ["corpus", "run"])
@pytest.mark.reliability(
    "7. Concurrency", "two prepare, or two train, into one folder", "the second gets a sentence, exit 6"
)
def test_a_folder_that_another_one_works_in(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retarget.training import prepare as preparing
    from retarget.training import run

    hold = f"""
from pathlib import Path
from retarget import folders
import time
Path({str(tmp_path / "out")!r}).mkdir()
with folders.locked(Path({str(tmp_path / "out" / name)!r}), "It"):
    print("held", flush=True)
    time.sleep(90)
"""
    (tmp_path / "me.mp4").write_bytes(b"never looked into")
    monkeypatch.setattr(preparing, "PATIENCE", 0.2)
    monkeypatch.setattr(run, "PATIENCE", 0.2)
    begun = time.monotonic()
    with processes(hold, before="") as (holder,):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = rf"The {name} .*out is in use by another retarget for more than 0\.2 s"
        with ExitStack() as stack, pytest.raises(StorageError, match=message) as e:  # noqa: PT012
            if name == "corpus":
                prepare([tmp_path / "me.mp4"], tmp_path / "out", PrepareOptions())
            else:
                stack.enter_context(run.reserved(tmp_path / "out"))
    assert e.value.exit_code == 6
    assert time.monotonic() - begun < 60
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f".{name}.lock"]


@pytest.mark.slow
@pytest.mark.reliability(
    "7. Concurrency", "personalize twice at once, same name and input", "one avatar; the second waits or is told"
)
def test_the_same_command_twice_at_once(short_me: Path, tmp_path: Path) -> None:
    command = ["-m", "retarget", "personalize", str(short_me), "-k", "2", "-t", "2", "--name", "me", "--device", "cpu"]
    made = [
        subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=500)[0] for process in made]
    codes = sorted(process.returncode for process in made)
    assert codes in ([0, 0], [0, 6]), said
    assert ("is in use by another retarget" in "".join(said)) == (codes == [0, 6])
    avatar = Avatar.load("me").opened()
    assert len(avatar.tensors()["frames"]) == 2
    assert [p.name for p in folders.avatars_dir().iterdir()] == ["me"]
