"""Weights: found, pulled from a server that speaks the hub's protocol, verified, and never used when wrong."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save

from retarget import weights
from retarget.errors import InputError, WeightsError

REVISION = "0123456789abcdef0123456789abcdef01234567"
DATA = save({"w": np.arange(300_000, dtype=np.float32)})
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Hub:
    """The part of the hub's protocol that a download needs: `resolve` redirects to a file store with ranges."""

    url: str = ""
    store: str = ""
    """Another host, as the hub's file store is."""
    data: bytes = DATA
    etag: str = SHA256
    commit: str = REVISION
    status: int = 200
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """For each coming GET, how many bytes it gets before the connection breaks."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def gets(self) -> list[str | None]:
        """The Range headers of all downloads."""
        return [r for method, path, r in self.requests if method == "GET" and path.startswith("/store/")]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()

        def do_HEAD(self) -> None:
            hub.requests.append(("HEAD", self.path, self.headers.get("Range")))
            assert self.headers["authorization"] == "Bearer hf_secret"
            if hub.status != 200:
                error = {"X-Error-Code": "EntryNotFound"} if hub.status == 404 else {}
                self.answer(hub.status, {"Content-Length": "0", **error})
                return
            assert self.path == f"/some/repo/resolve/{REVISION}/dance.safetensors", self.path
            self.answer(
                302,
                {
                    "Location": f"{hub.store}/store/{hub.etag}",
                    "X-Repo-Commit": hub.commit,
                    "X-Linked-Size": str(len(hub.data)),
                    "X-Linked-Etag": f'"{hub.etag}"',
                    "ETag": '"of-the-pointer"',
                    "Content-Length": "0",
                },
            )

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            hub.requests.append(("GET", self.path, wanted))
            assert "authorization" not in self.headers  # the token is not for the file store
            assert self.path == f"/store/{hub.etag}", self.path
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and hub.ranges else 0
            body = hub.data[start:]
            length = {"Content-Length": str(len(body)), "ETag": f'"{hub.etag}"'}
            if wanted and hub.ranges:
                whole = len(hub.data)
                self.answer(206, {**length, "Content-Range": f"bytes {start}-{whole - 1}/{whole}"})
            else:
                self.answer(200, length)
            if hub.cut_after:
                self.wfile.write(body[: hub.cut_after.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = hub.url.replace("127.0.0.1", "localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hub
    huggingface_hub.close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "name": "dance", "kind": "model", "repo": "some/repo", "revision": REVISION, "file": "dance.safetensors",
        "sha256": SHA256, "bytes": len(DATA), "licence": "CC0-1.0", "corpus": "synthetic", "config": {"width": 8},
        **changes,
    }  # fmt: skip


@pytest.fixture
def manifest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest of these entries and use it; returns its folder."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(weights, "_folder", lambda: folder)

    def write(*entries: dict[str, Any], **changes: Any) -> Path:
        weights._read_manifest.cache_clear()
        (folder / "manifest.json").write_text(json.dumps({"schema": 1, "weights": entries, **changes}))
        return folder

    return write


def kept(tmp_path: Path) -> list[str]:
    """What lies in the hub's cache, without its locks."""
    found = (tmp_path / "hub").rglob("*")
    return sorted(p.name for p in found if not p.is_dir() and p.suffix != ".lock" and p.name != "CACHEDIR.TAG")


# The manifest.


def test_the_shipped_manifest_is_sound() -> None:
    for line in weights.entries():
        assert line.licence
        assert line.corpus
        assert line.repo is not None or (weights._folder() / line.file).is_file()
    assert weights.known("vgg19")
    assert not weights.known("carl")
    with pytest.raises(WeightsError, match="no weights called carl") as error:
        weights.entry("carl")
    assert "vgg19" in error.value.remedy


def test_bundled_weights_are_as_the_manifest_says() -> None:
    for line, state, path in weights.verify():
        assert state != "wrong", path
        if state == "bundled":
            assert path is not None
            assert path.stat().st_size == line.bytes


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../dance.safetensors"}, {"file": "/etc/passwd"}, {"file": "a/b.safetensors"}, {"file": "w.pth"},
        {"file": ".safetensors"}, {"revision": "main"}, {"revision": None}, {"repo": "repo"}, {"repo": "../x"},
        {"sha256": "abc"}, {"sha256": SHA256.upper()}, {"kind": "magic"}, {"name": ""}, {"mood": "good"},
    ],
)  # fmt: skip
def test_a_manifest_with_a_wrong_entry(manifest: Callable[..., Path], change: dict[str, Any]) -> None:
    manifest(entry(**change))
    with pytest.raises(WeightsError, match=r"manifest\.json is damaged"):
        weights.entries()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2, "weights": []}', '{"weights": []}'])
def test_a_damaged_manifest(manifest: Callable[..., Path], text: str) -> None:
    (manifest() / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match="is damaged"):
        weights.entries()


def test_a_name_twice(manifest: Callable[..., Path]) -> None:
    manifest(entry(), entry())
    with pytest.raises(WeightsError, match="twice"):
        weights.entries()


def test_no_entries_at_all(manifest: Callable[..., Path]) -> None:
    manifest()
    assert weights.entries() == ()
    assert weights.pull() == []
    assert weights.verify() == []


# Bundled files.


def test_a_bundled_file_is_used_without_the_hub(manifest: Callable[..., Path], hub: Hub) -> None:
    path = manifest(entry()) / "dance.safetensors"
    path.write_bytes(DATA)
    assert weights.find("dance") == path
    assert weights.verify() == [(weights.entry("dance"), "bundled", path)]
    tensors, config = weights.load("dance")
    assert tensors["w"].tolist()[:3] == [0, 1, 2]
    assert config == {"width": 8}
    assert hub.requests == []


@pytest.mark.reliability("2. Bad input", "weights with the wrong sha256", "one sentence, exit 4")
def test_a_bundled_file_with_the_wrong_hash_is_refused(manifest: Callable[..., Path], hub: Hub) -> None:
    path = manifest(entry()) / "dance.safetensors"
    path.write_bytes(DATA[:-1] + b"x")
    for use in (weights.find, weights.at_hand, weights.load, weights.pull):
        with pytest.raises(WeightsError, match="its sha256 is") as error:
            use("dance")
        assert str(path) in error.value.message
    assert weights.verify()[0][1] == "wrong"
    assert hub.requests == []


def test_a_bundled_file_that_is_missing(manifest: Callable[..., Path]) -> None:
    manifest(entry(repo=None, revision=None))
    assert weights.at_hand("dance") is None
    with pytest.raises(WeightsError, match="come with the package, and are missing"):
        weights.find("dance")


def test_a_file_that_is_no_safetensors(manifest: Callable[..., Path]) -> None:
    junk = b"numbers, honestly"
    folder = manifest(entry(repo=None, revision=None, sha256=hashlib.sha256(junk).hexdigest()))
    (folder / "dance.safetensors").write_bytes(junk)
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        weights.load("dance")


# What training writes.


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "b.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "a.bias": torch.randn(5, requires_grad=True),
        "one": torch.tensor(2.0),
        "cut": torch.randn(6, 6)[:, ::2],
    }
    before = {k: t.detach().clone() for k, t in tensors.items()}
    path = tmp_path / "weights.safetensors"
    weights.save_file(path, tensors, "dance", {"width": 24, "flow": 0.1})
    loaded, model, config = weights.load_file(path)
    assert (model, config) == ("dance", {"width": 24, "flow": 0.1})
    assert loaded.keys() == tensors.keys()
    for key, t in loaded.items():
        assert t.dtype == torch.float16
        assert not t.requires_grad
        assert torch.equal(t, before[key].half())
        assert torch.equal(tensors[key], before[key])
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    assert path.stat().st_size < 2 * sum(t.numel() for t in tensors.values()) + 800
    weights.save_file(path, {"x": torch.ones(1)}, "other", {})
    assert weights.load_file(path) == ({"x": torch.ones(1)}, "other", {})


def test_saving_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    weights.save_file(path, {"x": torch.ones(1)}, "dance", {})

    def full(tensors: Any, part: Path, metadata: Any) -> None:
        part.write_bytes(b"a little")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        weights.save_file(path, {"x": torch.zeros(1)}, "dance", {})
    assert weights.load_file(path)[0]["x"] == 1


def test_a_file_that_training_did_not_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*none\.safetensors") as missing:
        weights.load_file(tmp_path / "none.safetensors")
    assert missing.value.remedy
    with pytest.raises(InputError, match="no file"):
        weights.load_file(tmp_path)
    path = tmp_path / "w.safetensors"
    weights.save_file(path, {"x": torch.ones(100)}, "dance", {})
    whole = path.read_bytes()
    for data in (b"", b"numbers, honestly", whole[:60], whole[:-5], DATA, save({"x": np.ones(1)}, {"model": "dance"}),
                 save({"x": np.ones(1)}, {"model": "dance", "config": "{"}),
                 save({"x": np.ones(1)}, {"model": "dance", "config": "[3]"})):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"w\.safetensors does not hold weights that retarget train wrote") as e:
            weights.load_file(path)
        assert e.value.remedy


# The corpus of what is shipped.

ROOT = Path(__file__).parent.parent
CLIPS = ROOT.parent / "shared" / "clips"


@pytest.mark.skipif(not (ROOT / "weights" / "corpus.json").exists(), reason="no trained weights are shipped")
@pytest.mark.parametrize("part", ["bodies", "heads", "streets"])
def test_nothing_was_trained_on_that_is_for_measuring(part: str) -> None:
    corpus = json.loads((ROOT / "weights" / "corpus.json").read_text(encoding="utf-8"))
    corpus = corpus.get(part, corpus)
    persons, digests = corpus["persons"], corpus["sha256"]
    assert persons
    assert digests
    assert {clip.partition("_")[0] for clip in digests} == set(persons)
    for person in persons:
        seed = re.fullmatch(r"s(\d+)", person)
        assert seed, f"{person} is not a person of the generator"
        assert int(seed[1]) < 1000, f"{person} is for measuring"
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests.values())
    assert len(set(digests.values())) == len(digests)
    real = {weights.sha256(path): path for path in CLIPS.rglob("*") if path.is_file()}
    assert not [f"{clip} is {real[digest]}" for clip, digest in digests.items() if digest in real]


def test_shipped_weights_fit_their_models() -> None:
    """Each of a model's entries that comes with the package builds and loads."""
    from retarget.models import MODELS, build

    for line in weights.entries():
        path = weights._folder() / line.file
        if line.kind == "model" and path.is_file():
            assert line.bytes == path.stat().st_size
            tensors, config = weights.load(line.name)
            entry = line.name.removesuffix("-pretrain")
            name = entry if entry in MODELS else entry.removesuffix("-head").removesuffix("-scene")
            assert line.name in {form.format(entry) for form in weights.ENTRY.values()}
            model = build(name, config)
            if name != entry:
                assert model.subject == entry.removeprefix(f"{name}-")
            model.load_state_dict({k: t for k, t in tensors.items() if not k.startswith("critics.")})
            with safe_open(path, "pt") as file:
                said = file.metadata()
            assert (said["model"], json.loads(said["config"])) == (name, config)


# The hub.


def test_pull(manifest: Callable[..., Path], hub: Hub, tmp_path: Path, counting: Any) -> None:
    manifest(entry())
    assert weights.at_hand("dance") is None
    assert not weights.is_here(weights.entry("dance"))
    assert weights.verify()[0][1] == "missing"
    seen = counting()
    [(line, path)] = weights.pull(progress=seen)
    assert line.name == "dance"
    assert path.read_bytes() == DATA
    assert (seen.total, seen.done) == (len(DATA), len(DATA))
    assert kept(tmp_path) == sorted([SHA256, "dance.safetensors"])
    assert weights.verify() == [(line, "cached", path)]
    before = len(hub.requests)
    assert weights.find("dance") == weights.at_hand("dance") == path
    assert weights.load("dance")[0]["w"].shape == (300_000,)
    assert len(hub.requests) == before  # from the cache


def test_huggingface_hub_itself_finds_the_file(manifest: Callable[..., Path], hub: Hub) -> None:
    manifest(entry())
    path = weights.find("dance")
    found = huggingface_hub.hf_hub_download("some/repo", "dance.safetensors", revision=REVISION, local_files_only=True)
    assert Path(found) == path


def test_a_broken_transfer_goes_on_where_it_stopped(manifest: Callable[..., Path], hub: Hub, counting: Any) -> None:
    manifest(entry())
    hub.cut_after = [400_000, 300_000]
    seen = counting()
    assert weights.find("dance", progress=seen).read_bytes() == DATA
    first, *later = hub.gets()
    assert first in (None, "bytes=0-")
    assert len(later) == 2
    starts = [int(str(r).removeprefix("bytes=").rstrip("-")) for r in later]
    assert 0 < starts[0] <= 400_000
    assert starts[0] < starts[1] <= 700_000
    assert seen.done == len(DATA)


def test_what_came_before_giving_up_is_not_fetched_again(
    manifest: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    manifest(entry())
    hub.cut_after = [500_000] + [0] * weights.STALLS
    with pytest.raises(WeightsError, match="cannot be reached") as error:
        weights.find("dance")
    assert "goes on where it stopped" in error.value.remedy
    assert kept(tmp_path) == [f"{SHA256}.part"]
    assert weights.at_hand("dance") is None
    hub.requests.clear()
    assert weights.find("dance").read_bytes() == DATA
    [again] = hub.gets()
    assert 0 < int(str(again).removeprefix("bytes=").rstrip("-")) <= 500_000
    assert kept(tmp_path) == sorted([SHA256, "dance.safetensors"])


def test_a_server_without_ranges(manifest: Callable[..., Path], hub: Hub, counting: Any) -> None:
    manifest(entry())
    hub.ranges = False
    hub.cut_after = [400_000]
    seen = counting()
    assert weights.find("dance", progress=seen).read_bytes() == DATA
    assert seen.done == len(DATA)


@pytest.mark.parametrize(
    "data",
    [DATA[:-1] + b"x", DATA + b"more", DATA[:-10], save({"other": np.zeros(3)})],
    ids=["changed", "longer", "shorter", "another"],
)
@pytest.mark.reliability("4. Hostile input", "a hub that sends something else", "deleted, exit 4")
def test_a_file_that_is_something_else_is_refused(
    manifest: Callable[..., Path], hub: Hub, tmp_path: Path, data: bytes
) -> None:
    manifest(entry())
    hub.data = data
    with pytest.raises(WeightsError, match="wrong sha256"):
        weights.pull("dance")
    assert kept(tmp_path) == []
    assert weights.verify()[0][1] == "missing"


@pytest.mark.reliability("4. Hostile input", "a hub's file name that leads out of the cache", "refused, exit 4")
@pytest.mark.parametrize(
    "change", [{"etag": "../../../evil"}, {"etag": "/tmp/evil"}, {"etag": ".."}, {"commit": "../../evil"}]
)
def test_a_name_that_leads_out_of_the_cache(
    manifest: Callable[..., Path], hub: Hub, change: dict[str, str], tmp_path: Path
) -> None:
    manifest(entry())
    hub.__dict__.update(change)
    with pytest.raises(WeightsError, match="impossible name or another revision") as caught:
        weights.find("dance")
    assert caught.value.remedy
    assert hub.gets() == []
    assert kept(tmp_path) == []


@pytest.mark.reliability("4. Hostile input", "a hub that sends more than it should", "stops and deletes it, exit 4")
def test_a_server_that_sends_too_much(manifest: Callable[..., Path], hub: Hub, tmp_path: Path) -> None:
    manifest(entry())
    hub.data = DATA * 50
    with pytest.raises(WeightsError, match="something else"):
        weights.find("dance")
    assert len(hub.gets()) == 1
    assert kept(tmp_path) == []


@pytest.mark.reliability("2. Bad input", "weights with the wrong sha256", "one sentence, exit 4")
def test_a_cached_file_that_was_changed_is_refused(manifest: Callable[..., Path], hub: Hub) -> None:
    manifest(entry())
    path = weights.find("dance")
    path.resolve().write_bytes(DATA[:-1] + b"x")
    with pytest.raises(WeightsError, match="its sha256 is"):
        weights.find("dance")
    assert weights.verify()[0][1] == "wrong"


@pytest.mark.parametrize(
    ("status", "sentence"), [(404, "The hub has no some/repo"), (500, "refused"), (403, "refused")]
)
def test_the_hub_says_no(manifest: Callable[..., Path], hub: Hub, status: int, sentence: str, tmp_path: Path) -> None:
    manifest(entry())
    hub.status = status
    with pytest.raises(WeightsError, match=sentence):
        weights.find("dance")
    assert kept(tmp_path) == []


@pytest.mark.reliability("2. Bad input", "weights missing, offline", "one sentence, exit 4")
def test_offline(manifest: Callable[..., Path], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(entry())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids") as error:
        weights.find("dance")
    assert "weights pull" in error.value.remedy
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    path = weights.find("dance")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights.find("dance") == path  # from the cache


def test_a_hub_that_is_not_there(manifest: Callable[..., Path], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(entry())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(WeightsError, match="The hub cannot be reached") as error:
        weights.find("dance")
    assert "Check the connection" in error.value.remedy


def test_a_server_that_is_no_hub(manifest: Callable[..., Path], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(entry())
    monkeypatch.setattr(hub, "etag", "../../evil")
    with pytest.raises(WeightsError):
        weights.find("dance")
