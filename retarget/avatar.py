"""An avatar: what `personalize` writes and `drive` reads. A folder of four files, none of which can carry code.

avatar.json             who and how: `AvatarMeta`
references.safetensors  the K references, their poses and mattes, the plate: any named arrays
model.safetensors       the fine-tuned network; missing when the avatar uses the shipped weights as they are
preview.png             what `personalize` made of the input, for people
"""

from __future__ import annotations

import json
import math
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from . import __version__, folders
from .errors import AvatarError, StorageError, UsageError
from .types import Image

if TYPE_CHECKING:
    import torch

    Tensor = npt.NDArray[Any] | torch.Tensor
    Arrays = dict[str, npt.NDArray[Any]]

SCHEMA: Final = 1
META, TENSORS, STATE, PREVIEW = "avatar.json", "references.safetensors", "model.safetensors", "preview.png"
FILES: Final = {META: 1 << 20, TENSORS: 4 << 30, STATE: 4 << 30, PREVIEW: 64 << 20}
"""The files of an avatar and the most bytes each may have when it comes from somebody else."""
LARGEST: Final = 16_384
"""Pixels of the longer side of an avatar's picture."""
_BOMB: Final = 50, 64 << 20
"""An archive may unpack to so many times its own size (photographic frames: less than ten), or to so many bytes."""
_EXPORT: Final = "Give the zip file that retarget avatars export wrote."
_ROOM: Final = "Make room or make the folder writable; the environment variable RETARGET_HOME chooses another one."
_AGAIN: Final = "Run retarget personalize again."


@dataclass(frozen=True)
class AvatarMeta:
    """What an avatar knows about itself; everything here is JSON.

    name       the avatar's name: also its folder's, and what `--avatar` takes.
    model      name in `models.MODELS`, and
    config     the network's configuration, to build it again.
    size       (width, height) of the working picture in pixels.
    fps        of the video it was made from.
    frames     K, the number of references.
    options    the options of the run that made it.
    weights    sha256 of the weights that fine-tuning started from; None when it started from nothing learned.
    quality    figures measured on left-out references.
    extra      whatever else the maker records.
    id         32 hexadecimal digits; goes into the metadata of every video.
    created    ISO 8601, UTC.
    version    of retarget.
    """

    name: str
    model: str
    size: tuple[int, int]
    frames: int
    config: Mapping[str, Any] = field(default_factory=dict)
    fps: Fraction = Fraction(25)
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    quality: Mapping[str, float | None] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat())
    version: str = __version__

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "fps": str(self.fps), "size": list(self.size)}

    @classmethod
    def from_json(cls, data: Any, where: Path) -> AvatarMeta:
        """Raises AvatarError when `data`, read from `where`, is not the description of an avatar."""
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise AvatarError(f"{where} does not describe an avatar.", _AGAIN)
        if data["schema"] > SCHEMA:
            raise AvatarError(
                f"The avatar {where.parent} was made by a newer retarget ({data.get('version', 'unknown version')}).",
                "Update retarget, or run retarget personalize again.",
            )
        try:
            known = {f.name: data[f.name] for f in fields(cls)}
            width, height = known["size"]
            # Fraction("1e999999999") would compute for hours.
            if not re.fullmatch(r"[0-9]{1,9}(/[0-9]{1,9})?", str(known["fps"])):
                raise ValueError(f"fps is {str(known['fps'])[:40]}")
            meta = cls(**{**known, "size": (width, height), "fps": Fraction(known["fps"])})
            if datetime.fromisoformat(meta.created).tzinfo is None:
                raise ValueError("created has no time zone")
            numbers = (width, height, meta.frames)
            texts = (meta.name, meta.model, meta.id, meta.version, meta.weights or "")
            groups = (meta.config, meta.options, meta.quality, meta.extra)
            if (
                not all(isinstance(t, str) for t in texts)
                or not all(isinstance(g, dict) for g in groups)
                or not all(type(n) is int for n in numbers)
                or not all(v is None or isinstance(v, (int, float)) for v in meta.quality.values())
            ):
                raise TypeError("a field has the wrong type")
            if min(numbers) <= 0 or meta.fps <= 0 or max(meta.size) > LARGEST:
                raise ValueError("a number cannot be")
            if not re.fullmatch(r"[0-9a-f]{32}", meta.id):  # goes into the metadata of videos
                raise ValueError("the id cannot be")
            check_name(meta.name)
        except (KeyError, TypeError, ValueError, ArithmeticError, UsageError) as error:
            raise AvatarError(f"{where} is damaged: {error}.", _AGAIN) from error
        return meta


@dataclass(frozen=True)
class Avatar:
    """An avatar on disk. Cheap to hold: arrays are read when they are asked for.

    meta    what it knows about itself; its most used fields are attributes here, too.
    path    its folder.
    held    its arrays and its network's parameters, if `opened` has read them.
    """

    meta: AvatarMeta
    path: Path
    held: tuple[Arrays, Arrays] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def load(cls, name: str | Path) -> Avatar:
        """The avatar of this name, or in this folder.

        Raises AvatarError when there is none, or it is damaged or of a newer version.
        """
        return _whole(_find(name), _read)

    def opened(self) -> Avatar:
        """The avatar as it is now, its arrays in memory: all of one version, whoever replaces it meanwhile or later.

        Raises AvatarError like `load`.
        """

        def read(folder: Path) -> Avatar:
            return replace(_read(folder), held=(_load_tensors(folder / TENSORS), _load_state(folder)))

        return _whole(self.path, read)

    @property
    def name(self) -> str:
        return self.meta.name

    @property
    def id(self) -> str:
        return self.meta.id

    @property
    def model(self) -> str:
        return self.meta.model

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the working picture in pixels."""
        return self.meta.size

    @property
    def fps(self) -> Fraction:
        return self.meta.fps

    @property
    def preview(self) -> Path:
        return self.path / PREVIEW

    @property
    def bytes(self) -> int:
        """What the avatar takes on disk."""
        return sum(f.stat().st_size for n in FILES if (f := self.path / n).is_file())

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that `personalize` saved, by name."""
        return self.held[0] if self.held else _whole(self.path, lambda folder: _load_tensors(folder / TENSORS))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The fine-tuned network's parameters, by name; empty when it was not fine-tuned."""
        return self.held[1] if self.held else _whole(self.path, _load_state)


def check_name(name: str) -> str:
    """`name` in the form in which it is stored.

    Raises UsageError when an avatar cannot be called so: names become folders, on any system.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not 0 < len(name) <= 64:
        raise UsageError("An avatar's name has 1 to 64 characters.", "Choose another with --name.")
    bad = sorted({c for c in name if c in '/\\:*?"<>|' or not c.isprintable()})
    if bad or name.startswith((".", "-")) or name.endswith("."):
        what = f"contain {' '.join(map(repr, bad))}" if bad else "begin with a dot or a dash, or end with a dot"
        raise UsageError(f"An avatar's name cannot {what}: {name!r}.", "Choose another with --name.")
    return name


def name_for(path: str | Path) -> str:
    """The avatar's name when none is given: the input's, without its suffix and without what names cannot contain."""
    path = Path(path).absolute()
    text = unicodedata.normalize("NFC", path.name if path.is_dir() else path.stem)
    text = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in text)
    return text.strip(" .-")[:64].strip(" .-") or "avatar"


def save_avatar(
    name: str,
    meta: AvatarMeta,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor] | None,
    preview: Image,
) -> Avatar:
    """Write an avatar into the user's data folder; one of the same name is replaced once the new one is complete.

    Args:
        name: its name; `meta.name` is set to it.
        meta: what it knows about itself.
        tensors: arrays of any shape and dtype that safetensors knows.
        state: the fine-tuned network's parameters; None or empty when it was not fine-tuned.
        preview: (H, W, 3) uint8 RGB.

    Raises:
        UsageError: the name cannot be used.
        StorageError: the folder cannot be written, or the disk is full.
    """
    name = check_name(name)
    with alone():
        with _new_folder(name) as folder:
            _save_tensors(folder / TENSORS, tensors)
            if state:
                _save_tensors(folder / STATE, state)
            _write_png(folder / PREVIEW, preview)
            write_meta(folder, replace(meta, name=name))
        return Avatar.load(name)


def list_avatars() -> list[Avatar]:
    """All readable avatars of the user, the one personalised last first."""
    found = []
    for name in avatar_names():
        with suppress(AvatarError):
            found.append(_whole(folders.avatars_dir() / name, _read))
    return sorted(found, key=lambda a: datetime.fromisoformat(a.meta.created), reverse=True)


def avatar_names() -> list[str]:
    """The names of all avatars of the user, damaged ones too, in alphabetical order."""
    home = folders.avatars_dir()
    if not home.is_dir():
        return []
    if any(home.glob(f".*{OLD}")):
        with suppress(StorageError), alone(patience=0):  # it may be somebody's who is at it right now
            pass

    def there() -> set[str]:
        return {p.name for p in home.iterdir() if p.is_dir() and not p.name.startswith(".")}

    # One that is being replaced meanwhile has its name before, its old name, or its name after.
    return sorted(there() | set(_put_aside(home)) | there())


def latest_avatar() -> Avatar:
    """The avatar that was personalised last. Raises AvatarError when there is none."""
    avatars = list_avatars()
    if not avatars:
        raise AvatarError("There is no avatar yet.", "Make one: retarget personalize me.mp4")
    return avatars[0]


def remove(name: str) -> None:
    """Delete the avatar called `name`, also when it is damaged. Raises AvatarError when there is none."""
    path = folders.avatars_dir() / check_name(name)
    if path.name not in avatar_names():
        raise _unknown(name)
    with alone(), _storage(path):
        gone = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.rename(gone)
        except FileNotFoundError:  # somebody else removed it
            raise _unknown(name) from None
        shutil.rmtree(gone)


@contextmanager
def alone(*, patience: float = folders.PATIENCE) -> Iterator[None]:
    """Nobody else writes avatars meanwhile. What killed processes left unfinished is finished or deleted first.

    Reading needs no lock. Raises StorageError when another process writes for longer than `patience` seconds.
    """
    home = folders.made(folders.avatars_dir())
    with folders.locked(home, "The folder of avatars", patience=patience):
        with _storage(home):
            for name in _put_aside(home):
                old = home / f".{name}{OLD}"
                if (home / name).exists():
                    shutil.rmtree(old)
                else:
                    old.rename(home / name)
        folders.sweep(home, older=0)
        yield


OLD: Final = ".old"
"""What the hidden name of an avatar ends with that is being replaced."""


def _put_aside(home: Path) -> list[str]:
    """The names of avatars that were put aside to be replaced; the process may have ended before the new one came."""
    return [p.name[1 : -len(OLD)] for p in home.glob(f".*{OLD}") if p.is_dir()]


Read = TypeVar("Read")


def _whole(path: Path, read: Callable[[Path], Read]) -> Read:
    """What `read` makes of the avatar in `path`, all of one version: once more when it was replaced meanwhile.

    Folders are replaced as a whole, and no file in them ever changes.
    """
    aside = path.with_name(f".{path.name}{OLD}")
    for _ in range(100):
        # While it is being replaced, there is the old one; the new one may have come since we looked.
        folder = next((p for p in (path, aside, path) if p.is_dir()), path)
        before = _version(folder)
        try:
            result = read(folder)
        except (AvatarError, OSError):
            if _version(folder) == before:
                raise
        else:
            if _version(folder) == before:
                return result
    raise AvatarError(f"The avatar {path} is replaced again and again.", "Try again later.")


def _version(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def export(avatar: Avatar, file: str | Path) -> Path:
    """Write `avatar` as one zip file, to be read by `import_avatar`.

    Raises StorageError when `file` cannot be written.
    """
    file = Path(file)
    if not file.parent.is_dir():
        raise StorageError(f"The folder {file.parent} does not exist.", "Create it, or choose another.")
    with _storage(file), folders.replaced(file) as temporary:

        def write(folder: Path) -> None:
            _read(folder)
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for name in FILES:
                    if (folder / name).is_file():
                        archive.write(folder / name, name)

        _whole(avatar.path, write)
    return file


def import_avatar(file: str | Path, name: str | None = None, *, overwrite: bool = False) -> Avatar:
    """Take in an avatar that `export` wrote, perhaps somebody else's: nothing in the file is trusted.

    Args:
        file: the zip file.
        name: its name here; None keeps its own.
        overwrite: whether an avatar of the same name may be replaced.

    Raises:
        AvatarError: not such a file, damaged, unsafe, or the name is taken.
        StorageError: the user's folder cannot be written.
    """
    file = Path(file)
    if not file.is_file():
        raise AvatarError(f"There is no file {file}.", _EXPORT)
    try:
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive, file)
            meta = AvatarMeta.from_json(json.loads(archive.read(META)), file / META)
            name = check_name(name if name is not None else meta.name)
            with alone():
                if name in avatar_names() and not overwrite:
                    raise AvatarError(f"There is already an avatar called {name}.", "Give another name with --name.")
                with _new_folder(name) as folder:
                    for info in archive.infolist():
                        _extract(archive, info, folder / info.filename)
                    write_meta(folder, replace(meta, name=name))
                    _check_files(folder)
                return Avatar.load(name)
    except _BROKEN as error:
        raise AvatarError(
            f"{file} is no exported avatar, or it is damaged ({error}).", "Export it once more."
        ) from error


_BROKEN: Final = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, LookupError, ArithmeticError),
)
"""What `zipfile` and `json` raise for files that are not what they say."""


def _unknown(name: str | Path) -> AvatarError:
    names = avatar_names()
    if not names:
        return AvatarError(f"There is no avatar called {name}.", "Make one: retarget personalize me.mp4")
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return AvatarError(f"There is no avatar called {name}.", f"There are: {', '.join(names[:12])}{more}.")


def _find(name: str | Path) -> Path:
    """A known name first, so that a folder of that name in the working directory changes nothing."""
    text = unicodedata.normalize("NFC", str(name))
    if text in avatar_names():
        return folders.avatars_dir() / text
    path = Path(name).expanduser()
    if path.is_dir() and str(name):
        if not (path / META).is_file():
            raise AvatarError(f"The folder {path} is no avatar: it has no {META}.", _AGAIN)
        return path.absolute()
    raise _unknown(name)


def _read(path: Path) -> Avatar:
    try:
        data = json.loads((path / META).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AvatarError(f"The avatar {path} is damaged: it has no {META}.", _AGAIN) from error
    except (OSError, ValueError, RecursionError) as error:
        raise AvatarError(f"{path / META} cannot be read: {error}.", _AGAIN) from error
    meta = AvatarMeta.from_json(data, path / META)
    folder = path
    if path.parent == folders.avatars_dir():  # somebody may have renamed the folder
        if path.name.startswith("."):
            path = path.with_name(path.name[1 : -len(OLD)])
        meta = replace(meta, name=path.name)
    _check_files(folder)
    return Avatar(meta, path)


def _check_files(folder: Path) -> None:
    """Read the tables of contents of both tensor files; they tell of a file that was cut short."""
    from safetensors import SafetensorError, safe_open

    for file in (folder / TENSORS, folder / STATE):
        if file.name == STATE and not file.exists():
            continue
        try:
            with safe_open(file, "numpy"):
                pass
        except FileNotFoundError as error:
            raise AvatarError(f"The avatar {folder} is damaged: it has no {file.name}.", _AGAIN) from error
        except (SafetensorError, OSError) as error:
            raise AvatarError(f"{file} is damaged: {error}.", _AGAIN) from error


def _load_tensors(file: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise AvatarError(f"{file} is damaged: {error}.", _AGAIN) from error


def _load_state(folder: Path) -> dict[str, npt.NDArray[Any]]:
    return _load_tensors(folder / STATE) if (folder / STATE).exists() else {}


def _save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.numpy import save_file

    save_file({key: _as_array(value) for key, value in tensors.items()}, file)


def _as_array(value: Tensor) -> npt.NDArray[Any]:
    if not isinstance(value, np.ndarray):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()  # numpy has no bfloat16
    return np.ascontiguousarray(value)


def _write_png(file: Path, image: Image) -> None:
    import cv2

    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not ok:
        raise ValueError(f"a picture of shape {image.shape} cannot be a PNG")
    file.write_bytes(data.tobytes())


def write_meta(folder: Path, meta: AvatarMeta) -> None:
    """Describe the avatar in `folder`."""
    text = json.dumps(_plain(meta.to_json()), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / META).write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """`value` in JSON's types; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


@contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    """A temporary folder that becomes the avatar `name` when the block ends well; nothing is left of it otherwise.

    Only for whoever is `alone`.
    """
    home = folders.avatars_dir()
    final, old = home / name, home / f".{name}{OLD}"
    with _storage(final):
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=home))
        try:
            yield temporary
            temporary.chmod(0o755)
            for path in (*temporary.iterdir(), temporary):
                folders.flush(path)
            if final.exists():
                final.rename(old)
            temporary.rename(final)
            folders.flush(home)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    """Failures to write `path` as sentences."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.", _ROOM) from error
    except SafetensorError as error:  # safetensors wraps the system's errors
        raise StorageError(f"{path} cannot be written: {error}.", _ROOM) from error


def _check_archive(archive: zipfile.ZipFile, file: Path) -> None:
    infos = archive.infolist()
    names = [info.filename for info in infos]
    strange = [n for n in names if n not in FILES]
    links = [i.filename for i in infos if stat.S_ISLNK(i.external_attr >> 16)]
    if strange or links or len(set(names)) != len(names):
        raise AvatarError(
            f"{file} holds what no avatar has ({', '.join(map(repr, (strange + links)[:3])) or 'a file twice'}).",
            "Import only files that retarget avatars export wrote.",
        )
    if missing := {META, TENSORS}.difference(names):
        raise AvatarError(f"{file} is no exported avatar: it has no {' and no '.join(sorted(missing))}.", _EXPORT)
    for info in infos:
        if info.file_size > FILES[info.filename]:
            raise AvatarError(f"{info.filename} in {file} would be {info.file_size >> 20} MiB.", "Do not import it.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise AvatarError(f"{info.filename} in {file} is packed in an unknown way.", _EXPORT)
    whole, packed = sum(info.file_size for info in infos), file.stat().st_size
    if whole > max(_BOMB[0] * packed, _BOMB[1]):
        raise AvatarError(f"{file} unpacks to {whole >> 20} MiB, which no avatar does.", "Do not import it.")
    home = folders.made(folders.avatars_dir())
    if whole > shutil.disk_usage(home).free:
        raise StorageError(f"{file} would take {whole >> 20} MiB in {home}, more than is free.", _ROOM)


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Unpack one file, and no more of it than the archive announced."""
    left = info.file_size
    with archive.open(info) as source, target.open("xb") as out:
        while chunk := source.read(1 << 20):
            left -= len(chunk)
            if left < 0:
                raise AvatarError(f"{info.filename} is larger than its archive says.", "Do not import it.")
            out.write(chunk)
