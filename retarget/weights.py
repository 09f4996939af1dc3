"""Learned weights: found in the checkout or the package, else pulled from the hub into its cache; always verified.

`weights/manifest.json` lists them: name, kind, hub repo and revision, file, sha256, bytes, licence, corpus, config.
Files are safetensors: numbers and nothing else. A file whose sha256 is not the manifest's is never used. This is the
only module that talks to the hub; HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE mean what they mean to huggingface-hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from .errors import InputError, StorageError, WeightsError
from .types import Progress, Silent

if TYPE_CHECKING:
    import torch

SCHEMA: Final = 1
CHUNK: Final = 1 << 20
ENTRY: Final = {"meta": "{}", "pretrain": "{}-pretrain"}
"""What the weights of a model are called in the manifest."""
CRITICS: Final = "critics."
"""What the names of the critics' tensors begin with in a file of weights."""
STALLS: Final = 3
"""How often in a row a transfer may break without a byte having come before `pull` gives up."""

Kind = Literal["model", "perceptual"]
State = Literal["bundled", "cached", "missing", "wrong"]


@dataclass(frozen=True)
class Entry:
    """One line of the manifest.

    name      what `find` takes; a model's entry is called like the model.
    kind      `model`: the meta-learned start of a model; `perceptual`: features for a training loss, never needed.
    repo      on the hub; None when the file comes with the package only.
    revision  the full commit, so that nobody can exchange the file.
    file      a plain file name that ends in .safetensors.
    bytes     the file's size; None when the manifest does not know it.
    config    of the network, to build it.
    """

    name: str
    kind: Kind
    repo: str | None
    revision: str | None
    file: str
    sha256: str
    bytes: int | None
    licence: str
    corpus: str
    config: Mapping[str, Any]


def entries() -> tuple[Entry, ...]:
    """All weights that the manifest lists. Raises WeightsError when it is missing or damaged."""
    return _read_manifest(_folder() / "manifest.json")


def entry(name: str) -> Entry:
    """The manifest's line about `name`. Raises WeightsError when there is none."""
    known = {e.name: e for e in entries()}
    if name not in known:
        raise WeightsError(f"There are no weights called {name}.", f"There are: {', '.join(known) or 'none yet'}.")
    return known[name]


def known(name: str) -> bool:
    """Whether the manifest lists weights called `name`."""
    return any(e.name == name for e in entries())


def at_hand(name: str) -> Path | None:
    """The verified file of `name` if it is on this machine; never downloads.

    Raises WeightsError when there is no such entry, or the file that is here has the wrong sha256.
    """
    line = entry(name)
    path = _local(line)
    if path is not None:
        _check(line, path)
    return path


def is_here(line: Entry) -> bool:
    """Whether the file of an entry is on this machine, unverified."""
    return _local(line) is not None


def find(name: str, *, progress: Progress | None = None) -> Path:
    """The verified file of `name`, downloaded when it is not on this machine.

    Raises WeightsError when there is no such entry, the hub cannot be reached, or the sha256 is wrong.
    """
    return at_hand(name) or _download(entry(name), progress or Silent())


def load(name: str, *, progress: Progress | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of `name`, on the CPU, and the network's configuration. Raises like `find`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = find(name, progress=progress)
    try:
        return load_file(path), dict(entry(name).config)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}.", _AGAIN) from error


def load_file(path: Path) -> tuple[dict[str, torch.Tensor], str, dict[str, Any]]:
    """The tensors of a file that `save_file` wrote, on the CPU, its model's name and its network's configuration.

    Raises InputError when there is no such file, WeightsError when it is no file of `retarget train`, or holds NaN.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"There is no file {path}.", "Check the name.")
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise WeightsError(f"{path} holds values that are not numbers.", "Name another file.")
        return tensors, said["model"], dict(json.loads(said["config"]))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} does not hold weights that retarget train wrote.", "Name another file.") from error


def save_file(path: Path, tensors: Mapping[str, torch.Tensor], model: str, config: Mapping[str, Any]) -> None:
    """Write fp16 weights with their model's name and configuration; the file appears when it is complete."""
    import torch
    from safetensors.torch import save_file as save

    half = {k: t.detach().cpu().to(torch.float16).contiguous() for k, t in tensors.items()}
    part = path.with_name(f".{path.name}.part")
    save(half, part, {"model": model, "config": json.dumps(dict(config))})
    part.replace(path)


def pull(name: str | None = None, *, progress: Progress | None = None) -> list[tuple[Entry, Path]]:
    """Make one entry, or all of them, be on this machine. Raises like `find`."""
    names = [e.name for e in entries()] if name is None else [name]
    return [(entry(n), find(n, progress=progress)) for n in names]


def verify() -> list[tuple[Entry, State, Path | None]]:
    """Each entry, whether its file is on this machine with the right sha256, and where."""
    result: list[tuple[Entry, State, Path | None]] = []
    for line in entries():
        path = _local(line)
        state: State = "missing"
        if path is not None:
            good = sha256(path) == line.sha256
            state = ("bundled" if path.parent == _folder() else "cached") if good else "wrong"
        result.append((line, state, path))
    return result


def sha256(path: Path) -> str:
    """The hash of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


_AGAIN: Final = "Run retarget weights pull."


def _folder() -> Path:
    """Where manifest.json is: inside of the installed package, or beside it in a checkout."""
    packaged = Path(__file__).parent / "_weights"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "weights"


@cache
def _read_manifest(path: Path) -> tuple[Entry, ...]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']} is not {SCHEMA}")
        lines = tuple(Entry(**line) for line in data["weights"])
        for line in lines:
            _check_entry(line)
        if len({line.name for line in lines}) != len(lines):
            raise ValueError("a name is there twice")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"The list of weights {path} is damaged: {error}.", "Install retarget again.") from error
    return lines


def _check_entry(line: Entry) -> None:
    patterns = {
        "name": r"[a-z0-9][a-z0-9_.-]*",
        "kind": r"model|perceptual",
        "file": r"[A-Za-z0-9][\w.-]*\.safetensors",
        "sha256": r"[0-9a-f]{64}",
    }
    if line.repo is not None or line.revision is not None:
        patterns |= {"repo": r"\w[\w.-]*/\w[\w.-]*", "revision": r"[0-9a-f]{40}"}
    for key, pattern in patterns.items():
        if not re.fullmatch(pattern, str(getattr(line, key)), re.ASCII):
            raise ValueError(f"{line.name!r} has the {key} {getattr(line, key)!r}")


def _local(line: Entry) -> Path | None:
    """Where the file of an entry is on this machine, unverified."""
    bundled = _folder() / line.file
    if bundled.is_file() and (line.repo is None or line.kind == "model"):
        return bundled
    if line.repo is None:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # a machine that only trains
        return None

    found = try_to_load_from_cache(line.repo, line.file, revision=line.revision)
    return Path(found) if isinstance(found, str) else None


def _check(line: Entry, path: Path) -> None:
    """Raises WeightsError when the file does not have the manifest's sha256."""
    if (got := sha256(path)) != line.sha256:
        raise WeightsError(
            f"{path} is not the {line.name} of the manifest: its sha256 is {got[:12]}…, not {line.sha256[:12]}….",
            "Delete the file; if you did not change it, take care where it comes from.",
        )


def _download(line: Entry, progress: Progress) -> Path:
    """Pull a file into the hub's cache. What came of a broken transfer is kept, and the next one goes on from there;
    the file appears in the cache only once its sha256 is right."""
    if line.repo is None:
        raise WeightsError(
            f"The weights {line.name} come with the package, and are missing.", "Install retarget again."
        )
    if _offline():
        raise WeightsError(
            f"The weights {line.name} are not on this machine, and HF_HUB_OFFLINE forbids to fetch them.",
            "Unset HF_HUB_OFFLINE and run retarget weights pull.",
        )
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(line.repo, line.file, revision=line.revision, endpoint=endpoint)
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{line.repo.replace('/', '--')}" / "blobs"
    with _hub_errors(line):
        remote = get_hf_file_metadata(url, endpoint=endpoint)
        # Both become names in the cache: what a server says must not lead out of it.
        if not re.fullmatch(r"[\w-]{1,128}", str(remote.etag), re.ASCII) or remote.commit_hash != line.revision:
            raise WeightsError(
                f"The hub gave {line.name} an impossible name or another revision.", "Check HF_ENDPOINT, and try again."
            )
        size = min((n for n in (remote.size, line.bytes) if n is not None), default=None)
        blobs.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(blobs / f"{line.sha256}.lock"):
            part = blobs / f"{line.sha256}.part"
            progress.stage(f"Downloading {line.name}", size)
            _transfer(url, remote.location, part, size, progress)
            try:
                _check(line, part)
            except WeightsError as error:
                part.unlink()
                raise WeightsError(
                    f"What the hub sent as {line.name} is something else (wrong sha256), and was deleted.",
                    "Try again; if it stays so, report it and do not use that file.",
                ) from error
            part.replace(blobs / str(remote.etag))
        # The blob is there: this only gives it its name.
        found = hf_hub_download(
            line.repo, line.file, revision=line.revision, endpoint=endpoint, library_name="retarget"
        )
    return Path(found)


def _transfer(url: str, location: str, part: Path, size: int | None, progress: Progress) -> None:
    """Append to `part` until it is whole; a broken connection is taken up again where it stopped."""
    from urllib.parse import urljoin, urlsplit

    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    location = urljoin(url, location)
    headers = {**build_hf_headers(library_name="retarget"), "Accept-Encoding": "identity"}
    if urlsplit(location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the hub's token is nobody else's business
    done = part.stat().st_size if part.exists() else 0
    if size is not None and done > size:
        part.unlink()
        done = 0
    progress.advance(done)
    stalls = 0
    while size is None or done < size:
        before = done
        try:
            headers["Range"] = f"bytes={done}-"
            with get_session().stream("GET", location, headers=headers, follow_redirects=True) as response:
                hf_raise_for_status(response)
                if response.status_code != 206:  # the server starts from the beginning
                    progress.advance(-done)
                    done = 0
                with part.open("ab" if done else "wb") as file:
                    for chunk in response.iter_bytes():  # as they come: nothing is held back
                        file.write(chunk)
                        done += len(chunk)
                        progress.advance(len(chunk))
                        if size is not None and done > size:  # a server without end must not fill the disk
                            return
            if size is None:
                return
        except OSError:  # the disk, not the line
            raise
        except Exception as error:
            if not type(error).__module__.startswith("httpx"):
                raise
            stalls = stalls + 1 if done == before else 0
            if stalls >= STALLS:
                raise


@contextmanager
def _hub_errors(line: Entry) -> Iterator[None]:
    """Whatever huggingface-hub and its HTTP library raise, as a WeightsError."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{line.repo}/{line.file}"

    def reason(error: Exception) -> str:
        return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")

    try:
        yield
    except WeightsError:
        raise
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise WeightsError(f"The hub has no {where} (any more).", "Update retarget.") from error
    except HfHubHTTPError as error:
        raise WeightsError(f"The hub refused {where}: {reason(error)}.", "Try again later.") from error
    except OSError as error:
        if error.errno is None:
            raise WeightsError(f"The hub cannot be reached for {where}: {reason(error)}.", _ONLINE) from error
        raise StorageError(
            f"{where} cannot be written: {error.strerror}: {error.filename}.", "Make room, or move HF_HOME elsewhere."
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "huggingface_hub")):
            raise
        raise WeightsError(f"The hub cannot be reached for {where}: {reason(error)}.", _ONLINE) from error


_ONLINE: Final = "Check the connection, then run retarget weights pull: it goes on where it stopped."


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
