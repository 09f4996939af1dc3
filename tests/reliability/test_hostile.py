"""Hostile input: files that point elsewhere, archives that break out, pickles, names that could be options."""

from __future__ import annotations

import ast
import json
import os
import shutil
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retarget import folders, perceptual_metrics, pose, video, weights
from retarget.avatar import Avatar, avatar_names
from retarget.errors import InputError, RetargetError
from retarget.training import corpus
from retarget.video import is_image, open_reader, open_writer, probe, read_image, read_metadata

SECTION = "4. Hostile input"
Run = Callable[..., Any]
CPU = ("--device", "cpu")
PACKAGE = Path(folders.__file__).parent


# ------------------------------------------------------------------------------------------------ files pointing else


class Elsewhere:
    """A web server and a file, and whether anybody has asked for them."""

    def __init__(self, folder: Path, secret: Path) -> None:
        self.requests: list[str] = []
        self.secret = folder / "secret.mp4"
        shutil.copy(secret, self.secret)
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                self.send_response(404)
                self.end_headers()

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        os.utime(self.secret, (0, self.secret.stat().st_mtime))

    def touched(self) -> bool:
        """Whether a request came, or the secret file was read (its access time, where the file system keeps it)."""
        return bool(self.requests) or self.secret.stat().st_atime != 0


@pytest.fixture
def elsewhere(tmp_path: Path, files: dict[str, Path]) -> Iterator[Elsewhere]:
    place = Elsewhere(tmp_path, files[".mp4"])
    thread = threading.Thread(target=place.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield place
    place.server.shutdown()
    thread.join()
    place.server.server_close()


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + kind + data


def with_reference(good: bytes, target: str) -> bytes:
    """An MP4 whose media data are said to be in another file (`dref` with a location instead of "in this file")."""
    at = good.index(b"dref") - 4
    size = int.from_bytes(good[at : at + 4], "big")
    location = target.encode() + b"\0"
    alias = box(b"url ", b"\0\0\0\0", location)  # flags 0: not in this file
    new = box(b"dref", b"\0\0\0\0", struct.pack(">I", 1), alias)
    grown = len(new) - size
    data = bytearray(good[:at] + new + good[at + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):  # the boxes around it grow
        head = data.rindex(name, 0, at) - 4
        data[head : head + 4] = (int.from_bytes(data[head : head + 4], "big") + grown).to_bytes(4, "big")
    return bytes(data)


PLAYLISTS: dict[str, Callable[[str, str], str]] = {
    "list.m3u8": lambda url, file: f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}/a.ts\n"
    f"#EXTINF:1,\n{file}\n#EXT-X-ENDLIST\n",
    "hls.mp4": lambda url, file: f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}/a.ts\n#EXTINF:1,\nfile://{file}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": lambda url, file: f"ffconcat version 1.0\nfile '{file}'\nfile '{url}/a.mp4'\n",
    "concat.mp4": lambda url, file: f"ffconcat version 1.0\nfile '{file}'\n",
    "dash.mpd": lambda url, file: '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    "<Period>"
    f'<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{url}/a.mp4</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "session.sdp": lambda url, file: "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "drawing.mp4": lambda url, file: f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    f'<image xlink:href="{url}/a.png" width="9" height="9"/>'
    f'<image xlink:href="file://{file}" width="9" height="9"/></svg>',
    "imf.xml": lambda url, file: '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
    f"<Id>{url}</Id></CompositionPlaylist>",
    "link.mp4": lambda url, file: f"{url}/a.mp4\n",
    "old.asx": lambda url, file: f'<asx version="3.0"><entry><ref href="{url}/a.mp4"/></entry></asx>',
    "real.mov": lambda url, file: f"RTSPtext\n{url}/a.mp4\n",
}  # fmt: skip


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(
    SECTION, "playlists and addresses in disguise (m3u8, ffconcat, mpd, sdp, svg, …)", "exit 3, open nothing"
)
@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists(name: str, elsewhere: Elsewhere, retarget: Run, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(PLAYLISTS[name](elsewhere.url, str(elsewhere.secret)))
    for command in (
        ("drive", "--source", path, "--out", tmp_path / "out.mp4", *CPU),
        ("personalize", path, "-k", 1, "-t", 0, *CPU),
    ):
        assert retarget(*command).code == 3
    for look in (probe, read_metadata, read_image):
        with pytest.raises(InputError):
            look(path)
    assert not elsewhere.touched()


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(
    SECTION, "an MP4 whose media data are in another file or on a server (dref)", "opens nothing else"
)
def test_external_media_data(elsewhere: Elsewhere, files: dict[str, Path], retarget: Run, tmp_path: Path) -> None:
    good = files[".mp4"].read_bytes()
    for target in (f"{elsewhere.url}/a.mp4", f"file://{elsewhere.secret}", str(elsewhere.secret), "secret.mp4"):
        path = tmp_path / "reference.mp4"
        path.write_bytes(with_reference(good, target))
        assert probe(path).width == 96  # otherwise the file is intact, and would be read
        said = retarget("drive", "--source", path, "--out", tmp_path / "o.mp4", "--yes", *CPU)
        assert said.code in (0, 3)
    assert not elsewhere.touched()


def ebml(name: str, *content: bytes) -> bytes:
    data = b"".join(content)
    return bytes.fromhex(name) + (len(data) | 1 << 56).to_bytes(8, "big") + data


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(SECTION, "Matroska with linked segments and ordered chapters", "opens nothing else")
def test_linked_segments(elsewhere: Elsewhere, files: dict[str, Path], make: Run, tmp_path: Path) -> None:
    make("-i", files[".mp4"], "-c", "copy", tmp_path / "good.mkv")
    data = (tmp_path / "good.mkv").read_bytes()
    uid = bytes(range(16))
    chapter = ebml("b6", ebml("73c4", b"\1"), ebml("91", b"\0"), ebml("6e67", uid), ebml("80", ebml("85", b"x")))
    chapters = ebml("1043a770", ebml("45b9", ebml("45dd", b"\1"), chapter))  # an edition with ordered chapters
    at = data.index(bytes.fromhex("1549a966"))  # before the segment's info
    wide = 9 - data[at + 4].bit_length()  # bytes of the size
    size = int.from_bytes(data[at + 4 : at + 4 + wide], "big") & (1 << 7 * wide) - 1
    begin, end = at + 4 + wide, at + 4 + wide + size
    after = str(elsewhere.secret).encode()
    info = ebml("1549a966", data[begin:end], ebml("3eb923", uid), ebml("3e83bb", after), ebml("3c83ab", after))
    segment = data.index(bytes.fromhex("18538067"))
    unknown = data[: segment + 4] + b"\1" + b"\xff" * 7
    path = tmp_path / "linked.mkv"
    path.write_bytes(unknown + info + chapters + data[end:])
    with suppress(InputError), open_reader(path) as frames:
        assert len(list(frames)) <= probe(files[".mp4"]).frames
    assert not elsewhere.touched()


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(
    SECTION, "names that mean something to ffmpeg (%d.png, concat:, http:, pipe:, -vf)", "are names of files"
)
@pytest.mark.parametrize(
    "name", ["%d.png", "frame%03d.jpg", "concat:1.png|2.png", "http:", "pipe:0", "-vf", "subfile,,x", "cache:x"]
)
def test_names_that_mean_something(
    name: str, files: dict[str, Path], tmp_path: Path, retarget: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(3):  # what a pattern would find
        shutil.copy(files[".png"], f"{number}.png")
        shutil.copy(files[".jpg"], f"frame{number:03d}.jpg")
    said = retarget("drive", "--source", name, "--out", "out.mp4", *CPU)
    assert said.code == 3  # there is none of that name
    if "%" in name:  # ffmpeg would take a video of that name for a pattern, and is kept from it
        Path(name).write_bytes(files[".mp4"].read_bytes())
        with pytest.raises(InputError):
            probe(name)
        shutil.copy(files[Path(name).suffix], name)
        assert read_image(name).shape == read_image(files[Path(name).suffix]).shape
    else:
        Path(name).write_bytes(files[".mp4"].read_bytes())
        assert probe(name).frames == probe(files[".mp4"]).frames
    assert retarget("personalize", "-k", 1, "-t", 0, "--size", 64, *CPU, "--", name).code == 0


@pytest.mark.usefixtures("stand", "avatar")
@pytest.mark.reliability(
    SECTION, "what a user names, on ffmpeg's command line", "only behind `file:`, never as an option"
)
def test_what_ffmpeg_is_told(
    files: dict[str, Path], tmp_path: Path, retarget: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    commands: list[list[str]] = []
    start = subprocess.Popen.__init__

    def watched(self: Any, arguments: Any, *rest: Any, **options: Any) -> None:
        if not options.get("shell") and arguments[0] == video.ffmpeg():
            commands.append(list(arguments))
        start(self, arguments, *rest, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", watched)
    odd = tmp_path / "-x y:z|%d;'\" $(touch evil).mp4"
    shutil.copy(files[".mp4"], odd)
    scene = tmp_path / "-scene;,[a].mp4"
    shutil.copy(files[".mp4"], scene)
    out = tmp_path / "-o,=[x];'.mp4"
    said = retarget("drive", "--source", odd, "--background", scene, "--out", out, "--compare", *CPU)
    assert said.code == 0, said
    assert len(commands) > 3
    inputs = 0
    for command in commands:
        for word, before in zip(command[1:], command, strict=False):
            if str(tmp_path) in word or any(path.name in word for path in (odd, scene, out)):
                assert word.startswith("file:/"), word
            if before == "-i":
                inputs += 1
                assert word.startswith(("file:/", "pipe:")), word
        if any(word.startswith("file:") and word.endswith((odd.name, scene.name)) for word in command):
            assert "-protocol_whitelist" in command
            assert command[command.index("-protocol_whitelist") + 1] == "file,pipe"
    assert inputs
    assert not (tmp_path / "evil").exists()


# ------------------------------------------------------------------------------------------------ avatars of strangers


def repacked(good: Path, out: Path, **changes: Any) -> Path:
    """The exported avatar with other fields in its description."""
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["avatar.json"] = json.dumps({**json.loads(members["avatar.json"]), **changes}).encode()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(
    SECTION, "`avatars import` of an archive that leads out of its folder", "exit 3, writes nothing"
)
@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil-retarget", "..\\evil", "avatar.json/../../evil", "a/../../../evil", "evil.pkl"]
)
def test_an_archive_that_leads_out(name: str, packed: Path, tmp_path: Path, retarget: Run) -> None:
    shutil.copy(packed, tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "a") as archive:
        archive.writestr(name, b"evil")
    before = set(tmp_path.rglob("*"))
    assert retarget("avatars", "import", tmp_path / "bad.zip").code == 3
    assert not Path("/tmp/evil-retarget").exists()
    assert {p for p in tmp_path.rglob("*") if "evil" in p.name} == set()
    assert {p for p in set(tmp_path.rglob("*")) - before if p.is_file() and p.suffix != ".lock"} == set()
    assert avatar_names() == []


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(SECTION, "`avatars import` of an avatar that is called as a path", "exit 3, writes nothing")
@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", ".hidden", "-x", "a\0b", "x\n"])
def test_an_avatar_called_as_a_path(name: str, packed: Path, tmp_path: Path, retarget: Run) -> None:
    said = retarget("avatars", "import", repacked(packed, tmp_path / "bad.zip", name=name))
    assert said.code == 3 or (name == "x\n" and said.result["name"] == "x")  # white space around a name is left out
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(SECTION, "`avatars import` of a bomb", "exit 3 before it is unpacked")
def test_a_bomb(packed: Path, tmp_path: Path, retarget: Run) -> None:
    with zipfile.ZipFile(packed) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            if name != "references.safetensors":
                archive.writestr(name, data)
        with archive.open("references.safetensors", "w") as member:
            for _ in range(200):
                member.write(bytes(1 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 3 << 20
    said = retarget("avatars", "import", tmp_path / "bomb.zip")
    assert said.code == 3
    assert "unpacks to 20" in said.error["message"]
    assert avatar_names() == []


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(SECTION, "`avatars import` packed in an unusual way (LZMA, BZIP2)", "exit 3")
@pytest.mark.parametrize("way", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_ways_of_packing(way: int, packed: Path, tmp_path: Path, retarget: Run) -> None:
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name), way if name == "avatar.json" else zipfile.ZIP_STORED)
    said = retarget("avatars", "import", tmp_path / "x.zip")
    assert said.code == 3
    assert "packed in an unknown way" in said.error["message"]


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(SECTION, "`avatars import` that would fill the disk", "exit 6 before it is unpacked")
def test_an_import_that_does_not_fit(packed: Path, retarget: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    said = retarget("avatars", "import", packed)
    assert said.code == 6
    assert "more than is free" in said.error["message"]


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(
    SECTION, "an avatar that links to a file elsewhere", "nothing but tensors is ever read from it"
)
def test_an_avatar_of_links(avatar: Path, tmp_path: Path, retarget: Run, files: dict[str, Path]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    (avatar / "references.safetensors").unlink()
    (avatar / "references.safetensors").symlink_to(secret)
    said = retarget("drive", "--avatar", "good", "--source", files[".npz"], "--out", tmp_path / "out.mp4", *CPU)
    assert said.code == 3
    assert "the secret" not in said.told + json.dumps(said.error)


# ------------------------------------------------------------------------------------------------ pickles


class Poison:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def poison(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a poisoned file; at the end of the test nobody may have swallowed it."""
    import pickle

    target = tmp_path / "swallowed"
    bad = Poison(target)

    def make(name: str) -> Path:
        path = tmp_path / name
        if path.suffix == ".npz":
            array = np.array([bad], dtype=object)
            names = ("kind", "version", "size", "fps", "body", "offsets", "frames", "masks")
            np.savez(path, **dict.fromkeys(names, array))  # type: ignore[arg-type]
        elif path.suffix == ".pth":
            torch.save({"features.0.weight": bad}, path)
        else:
            path.write_bytes(pickle.dumps(bad))
        return path

    with pytest.MonkeyPatch.context():
        yield make
    assert not target.exists()
    pickle.loads(pickle.dumps(bad))
    assert target.exists()  # it would have worked


@pytest.mark.usefixtures("stand", "avatar")
@pytest.mark.reliability(
    SECTION, "poisoned .npz, .safetensors, avatars, weights, corpus", "refused; nothing in them runs"
)
def test_poison(
    poison: Callable[[str], Path], retarget: Run, tmp_path: Path, files: dict[str, Path], avatar: Path
) -> None:
    said = retarget("drive", "--source", poison("motion.npz"), "--out", tmp_path / "out.mp4", *CPU)
    assert said.code == 3
    with pytest.raises(InputError):
        pose.load_motion(tmp_path / "motion.npz")
    said = retarget("personalize", files[".png"], "-k", 1, "-t", 0, "--init", poison("w.safetensors"), *CPU)
    assert said.code == 4
    with pytest.raises(RetargetError):
        weights.load_file(tmp_path / "w.safetensors")
    assert retarget("avatars", "import", poison("avatar.zip")).code == 3
    shutil.copy(poison("r.safetensors"), avatar / "references.safetensors")
    assert retarget("drive", "--source", files[".npz"], "--out", tmp_path / "out.mp4", *CPU).code == 3
    folder = tmp_path / "corpus"
    folder.mkdir()
    shutil.copy(poison("clip.npz"), folder / "clip.npz")
    with pytest.raises(ValueError, match=r"allow_pickle|Object arrays"), np.load(folder / "clip.npz") as kept:
        kept["frames"]


@pytest.mark.reliability(
    SECTION, "poisoned .pth of LPIPS or FID in torch's folder of downloads", "left out; nothing in it runs"
)
@pytest.mark.parametrize("never", ["", "1"])
def test_poisoned_weights_of_the_figures(
    never: str, poison: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loaders of both libraries, as they are: one says `weights_only`, one relies on torch's default."""
    import hashlib
    import sys
    from types import ModuleType

    class Trunk(torch.nn.Module):
        def __init__(self, **_: Any) -> None:
            super().__init__()
            self.net = torch.nn.Linear(1, 1)

    def inception(name: str, features: list[str], feature_extractor_weights_path: str) -> Any:
        return torch.load(feature_extractor_weights_path, weights_only=None)  # torch_fidelity leaves it open

    lpips, fidelity = ModuleType("lpips"), ModuleType("torch_fidelity")
    inside = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    lpips.LPIPS, inside.FeatureExtractorInceptionV3 = Trunk, inception  # type: ignore[attr-defined]
    for module in (lpips, fidelity, inside):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    if never:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", never)  # as some set it to have peace
    (tmp_path / "checkpoints").mkdir()
    for constant in ("ALEXNET", "INCEPTION"):
        bad = poison("bad.pth")
        name = f"{constant}-{hashlib.sha256(bad.read_bytes()).hexdigest()[:8]}.pth"  # its sha256 is as it should be
        bad.rename(tmp_path / "checkpoints" / name)
        monkeypatch.setattr(perceptual_metrics, constant, f"https://example.org/{name}")
    found = perceptual_metrics.find(torch.device("cpu"))
    assert (found.lpips, found.inception) == (None, None)
    assert len([note for note in found.notes if "cannot be used" in note]) == 2
    assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "") == never
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.reliability(SECTION, "pickle in the source", "nowhere")
def test_no_pickle_in_the_source() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
                assert not {n.split(".")[0] for n in names} & {
                    "pickle",
                    "dill",
                    "cloudpickle",
                    "joblib",
                    "shelve",
                    "marshal",
                }
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called not in ("eval", "exec", "__import__", "os.system", "os.popen"), path
                assert options.get("allow_pickle") != "True", path
                assert options.get("shell") in (None, "False"), path
                if called == "torch.load":
                    assert options.get("weights_only") == "True", path
                assert called != "torch.save", path


def test_corpora_are_read_without_pickle() -> None:
    """`numpy.load` refuses objects unless it is told otherwise: nobody tells it."""
    import inspect

    assert inspect.signature(np.load).parameters["allow_pickle"].default is False
    assert "np.load" in Path(corpus.__file__).read_text()


# ------------------------------------------------------------------------------------------------ what is written


@pytest.mark.reliability(SECTION, "an avatar's id in the metadata of videos", "32 hexadecimal digits or refused")
def test_what_goes_into_the_metadata(packed: Path, tmp_path: Path, retarget: Run) -> None:
    for number, bad in enumerate(("x" * 32, "0" * 31 + "\n", "\0", "0" * 32 + "\n[STREAM]", 7)):
        assert retarget("avatars", "import", repacked(packed, tmp_path / f"{number}.zip", id=bad)).code == 3


@pytest.mark.reliability(SECTION, "metadata with line breaks and section marks", "come back as they were written")
def test_metadata_is_not_read_as_syntax(tmp_path: Path) -> None:
    odd = {"comment": "a=b;c\n[STREAM]\n#x\\", "title": "[CHAPTER]\nTIMEBASE=1/1"}
    with open_writer(tmp_path / "o.mkv", (32, 32), Fraction(25), metadata=odd) as write:
        write(np.zeros((32, 32, 3), np.uint8))
    read = read_metadata(tmp_path / "o.mkv")
    assert {key: read[key] for key in odd} == odd


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(SECTION, "special files (FIFO, device) for input", "exit 3 at once")
@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "/dev/stdin"])
def test_special_files(kind: str, retarget: Run, tmp_path: Path) -> None:
    path = Path(kind)
    if kind == "fifo":
        path = tmp_path / "fifo.mp4"
        os.mkfifo(path)
    said = retarget("personalize", path, "-k", 1, "-t", 0, *CPU)
    assert said.code == 3
    assert not is_image(path)
    if kind == "fifo":
        assert retarget("avatars", "import", path).code == 3


def test_the_home_is_the_tests(avatar: Path) -> None:
    """What these tests prove is proved in a folder of their own."""
    assert Avatar.load("good").path == avatar
    assert folders.avatars_dir() == avatar.parent
