"""Motion files: pose tracks on disk, kept by the user or in a cache by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np

from .. import folders
from ..errors import InputError, StorageError
from ..types import Array, PoseTrack

KIND: Final = "retarget motion"
VERSION: Final = 1
LIMIT: Final = 2**30
"""Size of the cache in bytes; what was not used for longest goes first."""


def _pack(track: PoseTrack) -> dict[str, np.ndarray]:
    """The arrays of a motion file.

    The face mesh, 85 % of a track, is kept as 16-bit steps from its centre; a step is 1/32767 of the mesh's largest
    extent in that picture, so that the error stays below 0.01 px for a face of 600 px.
    """
    with np.errstate(invalid="ignore"):
        centre = track.face.mean(axis=1)
        offset = track.face - centre[:, None]
        reach = np.maximum(np.abs(offset).max(axis=(1, 2)), 1e-6)
        steps = np.nan_to_num(np.rint(offset / reach[:, None, None] * 32767)).astype(np.int16)
    return {
        "kind": np.array(KIND),
        "version": np.array(VERSION),
        "size": np.array(track.size),
        "fps": np.array([track.fps.numerator, track.fps.denominator]),
        "missed": np.array(track.missed, np.int64),
        "body": track.body,
        "world": track.world,
        "hands": track.hands,
        "face_centre": centre,
        "face_reach": reach,
        "face_steps": steps,
    }


def _unpack(arrays: Any) -> PoseTrack:
    """The inverse of `_pack`. Raises KeyError or ValueError when something is missing or of the wrong kind."""
    if str(arrays["kind"]) != KIND:
        raise ValueError("another kind of file")
    centre, reach = _floats(arrays["face_centre"]), _floats(arrays["face_reach"])
    steps = arrays["face_steps"]
    if steps.dtype != np.int16:
        raise ValueError("face_steps")
    width, height = (int(v) for v in arrays["size"])
    fps = Fraction(*(int(v) for v in arrays["fps"]))
    if min(width, height) < 1 or fps <= 0:
        raise ValueError("size or fps")
    return PoseTrack(
        body=_floats(arrays["body"]),
        world=_floats(arrays["world"]),
        face=(steps.astype(np.float32) * (reach / 32767)[:, None, None] + centre[:, None]).astype(np.float32),
        hands=_floats(arrays["hands"]),
        size=(width, height),
        fps=fps,
        missed=tuple(int(i) for i in arrays["missed"]),
    )


def _floats(array: np.ndarray) -> Array:
    if array.dtype != np.float32:
        raise ValueError("not float32")
    return array


def rounded(track: PoseTrack) -> PoseTrack:
    """`track` as it comes back from a motion file, so that a cached run and the first one agree to the bit."""
    return _unpack(_pack(track))


def save_motion(track: PoseTrack, path: str | Path) -> Path:
    """Writes a motion file (.npz, without pickle), which can be used wherever a driving video can. Returns its path.

    Written under a temporary name and moved into place. Raises StorageError when that fails.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".npz", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **_pack(track))
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise StorageError(
            f"The motion file {path} cannot be written: {error.strerror or error}.",
            "Choose a folder that exists, is writable and has space left.",
        ) from error
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_BROKEN = (
    *(OSError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


def load_motion(path: str | Path) -> PoseTrack:
    """Reads a motion file. Raises InputError when it is missing, damaged, newer, or another kind of file."""
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["kind"]) == KIND and int(arrays["version"]) > VERSION:
                raise InputError(
                    f"The motion file {path} was written by a newer version of retarget.",
                    "Update retarget, or estimate the poses again from the video.",
                )
            return _unpack(arrays)
    except FileNotFoundError as error:
        raise InputError(f"There is no motion file {path}.", "Check the name.") from error
    except _BROKEN as error:
        raise InputError(
            f"{path} is not a motion file of retarget, or it is damaged.",
            "Give a video, or a motion file written by retarget.",
        ) from error


def key(path: Path, *what: object) -> str:
    """The cache key of a file's content (SHA-256 of all of it) and of `what` was done with it.

    Raises InputError when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", "Check the name.") from error
    digest.update(repr((VERSION, *what)).encode())
    return digest.hexdigest()


def _digest(file: Any) -> Any:
    """What `hashlib.file_digest` does, for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest


def _folder() -> Path:
    return folders.cache_dir() / "poses"


def fetch(name: str) -> PoseTrack | None:
    """The track kept under a key; None when there is none or it is damaged."""
    path = _folder() / f"{name}.npz"
    try:
        track = load_motion(path)
    except InputError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: the last to be thrown out
    return track


def keep(name: str, track: PoseTrack) -> None:
    """Keeps a track under a key and throws out what was not used for longest. Raises StorageError when it cannot."""
    folder = folders.made(_folder())
    save_motion(track, folder / f"{name}.npz")
    trim(folder, LIMIT)


def trim(folder: Path, limit: int) -> None:
    """Deletes the files of `folder` that were not used for longest until at most `limit` bytes are left."""
    files = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
