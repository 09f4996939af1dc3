"""Where things are kept on this machine, and how nobody gets in anybody's way there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from .errors import StorageError

APP = "retarget"
PATIENCE: Final = 60.0
"""Seconds to wait for another process."""
KEPT: Final = 14 * 24 * 3600.0
"""Seconds for which unfinished work is kept."""
LEFT_BEHIND: Final = 3600.0
"""Seconds after which a temporary file that nobody writes to belongs to nobody."""


def _home() -> Path | None:
    """The folder that holds everything, when the environment variable RETARGET_HOME names one."""
    value = os.environ.get("RETARGET_HOME", "")
    return Path(value).expanduser().absolute() if value else None


def data_dir() -> Path:
    """The folder of what must last: $RETARGET_HOME, or the user's data folder. Not created here."""
    home = _home()
    if home is None:
        import platformdirs

        home = Path(platformdirs.user_data_dir(APP, appauthor=False))
    return home


def avatars_dir() -> Path:
    """The folder with one folder per avatar. Not created here."""
    return data_dir() / "avatars"


def cache_dir() -> Path:
    """The folder of what can be made again: $RETARGET_HOME/cache, or the user's cache folder. Not created here."""
    home = _home()
    if home is None:
        import platformdirs

        return Path(platformdirs.user_cache_dir(APP, appauthor=False))
    return home / "cache"


def made(folder: Path) -> Path:
    """`folder`, created with its parents where missing.

    Raises StorageError when it cannot be created or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise StorageError(f"The folder {folder} cannot be created: {error.strerror or error}.", _REMEDY) from error
    if not writable:
        raise StorageError(f"The folder {folder} cannot be written.", _REMEDY)
    return folder


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what the block writes there takes the place of `path` when it ends well.

    At no moment is there half a file, a power cut included.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, and move it into place."""
    with replaced(path) as temporary:
        temporary.write_bytes(data)


def flush(path: Path) -> None:
    """Let a file, or the names in a folder, outlast a power cut: else a rename may reach the disk before the data."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sweep(folder: Path, *, older: float = LEFT_BEHIND) -> None:
    """Delete the temporary files (`.NAME.tmp`, `.NAME.part`) that killed processes left in `folder`.

    Args:
        older: seconds for which nobody has written to them; 0 for whoever is alone in the folder.
    """
    for path in folder.glob(".*"):
        with suppress(OSError):
            if path.suffix in (".tmp", ".part") and time.time() - path.stat().st_mtime >= older:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def locked(path: Path, what: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Alone among all processes that lock the same path; the lock, `.NAME.lock` beside it, ends with the process.

    Its file goes before the lock does: whoever has opened it, and still waits, finds that it has no name any more (so
    does `filelock` from 3.20.4 on), and takes that of the next one.

    Raises StorageError when another one has it for longer than `patience` seconds; `what` is the sentence's subject.
    """
    from filelock import FileLock, Timeout

    file = made(path.parent) / f".{path.name}.lock"
    lock = FileLock(file, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise StorageError(
            f"{what} is in use by another retarget for more than {patience:g} s.", "Wait until it has ended, or end it."
        ) from None
    except OSError as error:
        raise StorageError(f"{what} cannot be locked: {error.strerror or error}.", _REMEDY) from error
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()


@contextmanager
def work(kind: str, what: Mapping[str, Any], *, restart: bool = False, patience: float = PATIENCE) -> Iterator[Path]:
    """A folder for unfinished work: found again by the same `what`, locked while in use, gone when the work is done.

    Args:
        kind: what is done, for people: the folder's name begins with it.
        what: all that decides the result (hashes of contents rather than names), as JSON can hold it. Anything else
            has another folder, so that what was made of other inputs or options is never mixed in.
        restart: forget what is there.
    """
    told = json.dumps(what, sort_keys=True, indent=1)
    folder = made(cache_dir() / "work") / f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:24]}"
    with locked(folder, f"The unfinished work in {folder}", patience=patience):
        gone = folder.with_name(f".{folder.name}.tmp")
        if restart:
            _forget(folder, gone)
        _forget_old(folder.parent)
        made(folder)
        if not (folder / "what.json").exists():
            replace_file(folder / "what.json", told.encode())
        sweep(folder, older=0)
        os.utime(folder)
        try:
            yield folder
        except BaseException:
            if [path.name for path in folder.iterdir()] == ["what.json"]:  # nothing to go on with
                _forget(folder, gone)
            raise
        _forget(folder, gone)


def _forget(folder: Path, gone: Path) -> None:
    """Delete a folder at once, as far as its name goes: half of it is never found again."""
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        folder.rename(gone)
    for path in (gone, folder):
        shutil.rmtree(path, ignore_errors=True)


def _forget_old(folder: Path) -> None:
    """Delete unfinished work that nobody took up again, and the locks of killed processes."""
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime <= KEPT:
                continue
            if path.is_dir():
                with locked(path, str(path), patience=0):
                    shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".lock":
                with locked(path.with_name(path.stem.removeprefix(".")), str(path), patience=0):
                    pass
        except (OSError, StorageError):
            continue


def unfinished(kind: str, what: Mapping[str, Any]) -> Path | None:
    """The folder of work that somebody left, or is at, and that is decided by all of `what` among other things; of
    several the latest. For a look only: it is not locked. See `work`."""
    told = json.loads(json.dumps(what))
    found: list[tuple[float, Path]] = []
    for path in (cache_dir() / "work").glob(f"{kind}-*/what.json"):
        with suppress(OSError, ValueError, AttributeError):
            if told.items() <= json.loads(path.read_text(encoding="utf-8")).items():
                found.append((path.parent.stat().st_mtime, path.parent))
    return max(found)[1] if found else None


_REMEDY = "Make it writable, or set the environment variable RETARGET_HOME to a folder that is."
