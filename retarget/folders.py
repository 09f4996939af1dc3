"""Where things are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import StorageError

APP = "retarget"


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


_REMEDY = "Make it writable, or set the environment variable RETARGET_HOME to a folder that is."
