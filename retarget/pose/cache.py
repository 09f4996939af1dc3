"""Motion files: pose tracks on disk, kept by the user or in a cache by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib.npyio import NpzFile

from .. import folders
from ..errors import InputError, StorageError
from ..skeleton import FACE_POINTS, REFINED_POINTS
from ..types import Array, PoseTrack
from .base import unknown

KIND: Final = "retarget motion"
VERSION: Final = 2
BLOCK: Final = 480
"""Pictures whose face meshes are packed together; `pose` keeps unfinished work in blocks of this size, too."""
LIMIT: Final = 2**30
"""Size of the cache in bytes; what was not used for longest goes first."""


class Faces:
    """The face meshes of a motion file, most of its bytes, which are read and unpacked some pictures at a time.

    points  of each mesh: 468, or 478.
    """

    def __init__(self, array: Callable[[str], np.ndarray], which: slice = slice(None)) -> None:
        """
        Args:
            array: gives the arrays of `packed` by their names, whenever it is asked.
            which: these consecutive pictures only.

        Raises KeyError or ValueError when something is missing or of the wrong kind.
        """
        self._array, self._which = array, which
        self._centre, self._reach = _floats(array("face_centre")), _floats(array("face_reach"))
        if self._centre.shape != (len(self._reach), 3):
            raise ValueError("face_centre")
        self._rows = range(len(self._reach))[which]
        self._chunked = int(array("version")) > 1  # the first version kept all in one
        self._block = BLOCK if self._chunked else max(1, len(self._reach))
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0))
        refined = len(self._reach) and array(self._name(0)).shape[1:2] == (REFINED_POINTS,)
        self.points = REFINED_POINTS if refined else FACE_POINTS

    def __len__(self) -> int:
        return len(self._rows)

    def select(self, which: slice) -> Faces:
        """Those of consecutive pictures."""
        rows = self._rows[which]
        return Faces(self._array, slice(rows.start, rows.stop))

    def __call__(self, first: int, last: int) -> Array:
        """(last - first, points, 3) float32: those of the pictures with first <= number < last.

        Raises InputError when the file was damaged meanwhile.
        """
        rows = np.asarray(self._rows[first:last])
        out = np.empty((len(rows), self.points, 3), np.float32)
        for block in np.unique(rows // self._block).tolist():
            here = rows // self._block == block
            try:
                steps = self._steps(block)[rows[here] - block * self._block]
            except BROKEN as error:
                raise InputError("The file of the poses was damaged meanwhile.", "Run the command again.") from error
            out[here] = steps.astype(np.float32) * (self._reach[rows[here]] / 32767)[:, None, None]
            out[here] += self._centre[rows[here], None]
        return out

    def _name(self, block: int) -> str:
        return f"face_steps_{block}" if self._chunked else "face_steps"

    def _steps(self, block: int) -> np.ndarray:
        """(n, points, 3) int16: packed meshes. Raises what a damaged file raises."""
        if self._last[0] != block:
            steps = self._array(self._name(block))
            rows = min(self._block, len(self._reach) - block * self._block)
            if steps.dtype != np.int16 or steps.shape != (rows, self.points, 3):
                raise ValueError("face_steps")
            self._last = block, steps
        return self._last[1]

    def verify(self) -> None:
        """Read all of them. Raises what a damaged file raises."""
        for block in range(-(-len(self._reach) // self._block)):
            self._steps(block)


@dataclass(frozen=True)
class Motion:
    """A track whose face meshes are not in memory.

    track  all else; its face meshes are NaN and take no memory.
    crowd  (2, 2) float32: where the person of the track, and somebody beside them, stand in a picture near the
           beginning, x and y in its pixels; None when nobody else was seen, or nobody looked.
    """

    track: PoseTrack
    faces: Faces
    crowd: Array | None = None

    @staticmethod
    def of(array: Callable[[str], np.ndarray]) -> Motion:
        """Out of the arrays of `packed`; see `Faces`. Raises KeyError or ValueError when they are none."""
        if str(array("kind")) != KIND:
            raise ValueError("another kind of file")
        width, height = (int(v) for v in array("size"))
        fps = Fraction(*(int(v) for v in array("fps")))
        if min(width, height) < 1 or fps <= 0:
            raise ValueError("size or fps")
        faces = Faces(array)
        track = PoseTrack(
            body=_floats(array("body")),
            world=_floats(array("world")),
            face=unknown(len(faces), faces.points),
            hands=_floats(array("hands")),
            size=(width, height),
            fps=fps,
            missed=tuple(int(i) for i in array("missed")),
        )
        try:
            crowd = _floats(array("crowd"))
        except KeyError:
            return Motion(track, faces)
        if crowd.shape != (2, 2) or not np.isfinite(crowd).all():
            raise ValueError("crowd")
        return Motion(track, faces, crowd)

    def __len__(self) -> int:
        return len(self.track)

    def select(self, which: slice) -> Motion:
        """Consecutive pictures of it."""
        return Motion(self.track.select(which), self.faces.select(which), self.crowd)

    def whole(self) -> PoseTrack:
        """The track with its face meshes in memory."""
        return replace(self.track, face=self.faces(0, len(self)))


def packed(track: PoseTrack) -> dict[str, np.ndarray]:
    """The arrays of a motion file.

    The face meshes are kept as 16-bit steps from their centre; a step is 1/32767 of the mesh's largest extent in that
    picture, so that the error stays below 0.01 px for a face of 600 px.
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
        **{f"face_steps_{i // BLOCK}": steps[i : i + BLOCK] for i in range(0, len(steps), BLOCK)},
    }


def _floats(array: np.ndarray) -> Array:
    if array.dtype != np.float32:
        raise ValueError("not float32")
    return array


def save_motion(track: PoseTrack, path: str | Path) -> Path:
    """Writes a motion file (.npz, without pickle), which can be used wherever a driving video can. Returns its path.

    Written under a temporary name and moved into place. Raises StorageError when that fails.
    """
    path = Path(path)
    write(path, packed(track).items())
    return path


def write(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes arrays one by one as `numpy.savez_compressed` writes all at once. Raises StorageError when that fails."""
    try:
        with folders.replaced(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
            for name, array in arrays:
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    except OSError as error:
        raise StorageError(
            f"The motion file {path} cannot be written: {error.strerror or error}.",
            "Choose a folder that exists, is writable and has space left.",
        ) from error


def read(path: Path, name: str) -> np.ndarray:
    """One array of a file that `write` has written. Raises what a damaged file raises, `BROKEN`."""
    # `numpy.load` would leave a damaged file open.
    with path.open("rb") as file, NpzFile(file, allow_pickle=False) as arrays:  # type: ignore[arg-type]  # wrong stub
        array = arrays[name]
        if not isinstance(array, np.ndarray):  # a member that is no array comes as bytes
            raise ValueError(f"{name} is no array")
        return array


def joined(
    parts: Sequence[Path], strays: Callable[[Array], np.ndarray], crowd: Array | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The names and arrays of one motion out of those of its parts, all but the last of them `BLOCK` pictures long.

    strays: (T, 33, 4) → (T,) bool: pictures that count as missed after all.
    crowd: see `Motion`.
    """
    body = np.concatenate([read(part, "body") for part in parts])
    gone = strays(body)
    lost = gone | ~np.isfinite(body[:, 23:25, :2]).all(axis=(1, 2))
    yield from ((name, read(parts[0], name)) for name in ("kind", "version", "size", "fps"))
    if crowd is not None:
        yield "crowd", crowd
    yield "missed", np.flatnonzero(lost)
    for name in ("body", "world", "hands", "face_centre"):
        array = np.concatenate([read(part, name) for part in parts])
        array[gone] = np.nan
        yield name, array
    yield "face_reach", np.concatenate([read(part, "face_reach") for part in parts])
    for i in range(-(-len(body) // BLOCK)):
        part = min(i, len(parts) - 1)
        yield f"face_steps_{i}", read(parts[part], f"face_steps_{i - part}")


def bodies(parts: Sequence[Path], strays: Callable[[Array], np.ndarray]) -> Array:
    """(T, 33, 4) float32: the bodies of the motion that `joined` gives."""
    body = np.concatenate([read(part, "body") for part in parts])
    body[strays(body)] = np.nan
    return body


BROKEN: Final = (
    *(OSError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RecursionError, SyntaxError, tokenize.TokenError),
)


def load_motion(path: str | Path) -> PoseTrack:
    """Reads a motion file. Raises InputError when it is missing, damaged, newer, or another kind of file."""
    return open_motion(path).whole()


def open_motion(path: str | Path) -> Motion:
    """As `load_motion`, without holding the face meshes in memory: the file has to stay."""
    array = partial(read, Path(path))
    try:
        newer = str(array("kind")) == KIND and int(array("version")) > VERSION
        if not newer:
            motion = Motion.of(array)
            motion.faces.verify()
            return motion
    except FileNotFoundError as error:
        raise InputError(f"There is no motion file {path}.", "Check the name.") from error
    except BROKEN as error:
        raise InputError(
            f"{path} is not a motion file of retarget, or it is damaged.",
            "Give a video, or a motion file written by retarget.",
        ) from error
    raise InputError(
        f"The motion file {path} was written by a newer version of retarget.",
        "Update retarget, or estimate the poses again from the video.",
    )


def key(path: Path, *what: object) -> str:
    """The cache key of a file's content and of `what` was done with it.

    Raises InputError when the file cannot be read.
    """
    return hashlib.sha256(repr((VERSION, digest(path), *what)).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of all of a file, remembered until the file changes. Raises InputError when it cannot be read."""
    try:
        state = path.stat()
        return _digest(path.absolute(), state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", "Check the name.") from error


@lru_cache(maxsize=64)
def _digest(path: Path, *_: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def _folder() -> Path:
    return folders.cache_dir() / "poses"


def has(name: str) -> bool:
    """Whether a motion is kept under a key, damaged or not."""
    return (_folder() / f"{name}.npz").exists()


def fetch(name: str) -> Motion | None:
    """The motion kept under a key; None when there is none or it is damaged."""
    path = _folder() / f"{name}.npz"
    try:
        motion = open_motion(path)
    except InputError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: the last to be thrown out
    return motion


def keep(name: str, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Keeps a motion under a key and throws out what was not used for longest. Raises StorageError when it cannot."""
    folder = folders.made(_folder())
    write(folder / f"{name}.npz", arrays)
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
