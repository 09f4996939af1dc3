"""Bad input through the command line: one sentence, what to do, an exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from retarget import video, weights
from retarget.avatar import avatar_names
from retarget.types import Image
from retarget.video import open_reader, open_writer, probe

SECTION = "2. Bad input"
Run = Callable[..., Any]
CPU = ("--device", "cpu")


def case(name: str, expected: str, *values: object) -> object:
    return pytest.param(*values, id=name, marks=pytest.mark.reliability(SECTION, name, expected))


# ------------------------------------------------------------------------------------------------ no videos


@pytest.fixture
def broken(tmp_path: Path, files: dict[str, Path], make: Run) -> Callable[[str], Path]:
    """Makes a file that is no video, or only half of one."""

    def build(what: str) -> Path:
        path = tmp_path / "in" / f"{what}.mp4"
        path.parent.mkdir(exist_ok=True)
        good = files[".mp4"]
        if what == "text":
            path.write_text("This is no video.")
        elif what == "empty":
            path.touch()
        elif what == "folder":
            path.mkdir()
        elif what == "truncated":  # the index of this file is at its end
            path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
        elif what == "flipped":  # the index itself
            data = bytearray(good.read_bytes())
            for table in re.finditer(b"stsz", bytes(data)):
                data[table.start() : table.start() + 20] = bytes(
                    b ^ 0xFF for b in data[table.start() : table.start() + 20]
                )
            path.write_bytes(data)
        elif what == "no frames":
            make("-f", "lavfi", "-i", "testsrc2=s=64x64", "-frames:v", 0, "-c:v", "libx264", path)
        elif what == "sound only":
            make("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", path)
        elif what == "picture":
            shutil.copy(files[".jpg"], path)
        return path

    return build


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        case("not a video", "one sentence, exit 3", "text", "no video"),
        case("an empty file", "one sentence, exit 3", "empty", "empty"),
        case("a folder for a video", "one sentence, exit 3", "folder", "is a folder"),
        case("truncated video without its index", "one sentence, exit 3", "truncated", "no video"),
        case("bit-flipped video whose index is lost", "one sentence, exit 3", "flipped", "no video|no pictures"),
        case("no frames", "one sentence, exit 3", "no frames", "no pictures"),
        case("sound only", "one sentence, exit 3", "sound only", "no pictures"),
        case("a picture for a video", "one sentence, exit 3", "picture", "a picture"),
        case("a file that is not there", "one sentence, exit 3", "missing", "no file"),
    ],
)
def test_what_is_no_video(
    broken: Callable[[str], Path], retarget: Run, tmp_path: Path, what: str, words: str, files: dict[str, Path]
) -> None:
    path = broken(what)
    used = [("drive", "--source", path, "--out", tmp_path / "out.mp4", *CPU)]
    if what not in ("picture", "folder"):  # photos, and folders of them, make avatars
        used.append(("personalize", path, "-k", 1, "-t", 0, "--name", "new", *CPU))
    for command in used:
        said = retarget(*command)
        assert said.code == 3
        assert re.search(words, said.error["message"]), said.error
        assert path.name in said.error["message"]
    assert avatar_names() == ["good"]


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(SECTION, "truncated video whose index came first", "works as far as it goes, says so")
def test_half_a_video(files: dict[str, Path], make: Run, retarget: Run, tmp_path: Path) -> None:
    make("-i", files[".mp4"], "-c", "copy", "-an", "-movflags", "+faststart", tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) * 2 // 3])
    said = retarget("drive", "--source", tmp_path / "half.mp4", "--out", tmp_path / "o.mp4", *CPU)
    assert said.code == 0
    assert "damaged" in said.told
    assert 0 < probe(tmp_path / "o.mp4").frames < probe(tmp_path / "whole.mp4").frames


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(SECTION, "one frame", "works: an avatar of one frame, a video of one frame")
def test_one_frame(files: dict[str, Path], make: Run, retarget: Run, tmp_path: Path) -> None:
    make("-i", files[".mp4"], "-an", "-frames:v", 1, tmp_path / "one.mp4")
    assert retarget("personalize", tmp_path / "one.mp4", "-k", 1, "-t", 0, "--size", 64, *CPU).code == 0
    said = retarget("drive", "--source", tmp_path / "one.mp4", "--out", tmp_path / "o.mp4", *CPU)
    assert said.code == 0
    assert probe(tmp_path / "o.mp4").frames == 1


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(SECTION, "frames of 1×1", "one sentence, exit 3")
def test_frames_of_one_pixel(make: Run, retarget: Run, tmp_path: Path) -> None:
    make("-f", "lavfi", "-i", "color=gray:s=1x1:r=5:d=1", "-c:v", "ffv1", tmp_path / "dot.mkv")
    info = probe(tmp_path / "dot.mkv")
    assert (info.width, info.height, info.frames) == (1, 1, 5)
    said = retarget("personalize", tmp_path / "dot.mkv", "-k", 1, "-t", 0, *CPU)
    assert said.code == 3, said
    assert "only 1 x 1 pixels" in said.error["message"]


@pytest.mark.slow
@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(SECTION, "frames of 8k (7680×4320)", "works")
def test_frames_of_8k(files: dict[str, Path], make: Run, retarget: Run, tmp_path: Path) -> None:
    make(
        "-i",
        files[".mp4"],
        "-an",
        "-frames:v",
        2,
        "-vf",
        "scale=7680:4320",
        "-preset",
        "ultrafast",
        tmp_path / "8k.mp4",
    )
    assert retarget("personalize", tmp_path / "8k.mp4", "-k", 2, "-t", 0, "--size", 64, *CPU).code == 0
    said = retarget("drive", "--source", tmp_path / "8k.mp4", "--out", tmp_path / "o.mp4", "--compare", *CPU)
    assert said.code == 0
    assert probe(tmp_path / "o.mp4").frames == 2


@pytest.mark.slow
@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(SECTION, "frames larger than 100 megapixels", "one sentence, exit 3")
def test_frames_that_are_too_large(make: Run, retarget: Run, tmp_path: Path) -> None:
    make("-f", "lavfi", "-i", "color=s=16000x8000:r=1:d=1", "-c:v", "mjpeg", "-q:v", 31, tmp_path / "huge.avi")
    said = retarget("personalize", tmp_path / "huge.avi", "-k", 1, "-t", 0, *CPU)
    assert said.code == 3
    assert "100 megapixels" in said.error["message"]


@pytest.mark.usefixtures("avatar", "untouched")
@pytest.mark.reliability(SECTION, "a clock that jumps by a day", "one sentence, exit 3")
def test_a_clock_that_jumps(files: dict[str, Path], make: Run, retarget: Run, tmp_path: Path) -> None:
    make(
        *("-i", files[".mp4"], "-an", "-vf", "setpts=if(lt(N\\,4)\\,PTS\\,PTS+86400/TB)", "-fps_mode", "passthrough"),
        *("-c:v", "libx264", tmp_path / "jump.mkv"),
    )
    said = retarget("drive", "--source", tmp_path / "jump.mkv", "--out", tmp_path / "out.mp4", *CPU)
    assert said.code == 3
    assert "jumps by 86400 s at frame 4" in said.error["message"]


# ------------------------------------------------------------------------------------------------ photos


def jpeg_turned(data: bytes, orientation: int) -> bytes:
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + b"\0\0\0\0"
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


@pytest.mark.usefixtures("stand", "untouched")
@pytest.mark.parametrize(
    "kind",
    [
        case("photo turned by its EXIF tag", "upright avatar", "turned"),
        case("photo of 16 bit", "works", "deep"),
        case("photo with alpha", "works, over white", "alpha"),
        case("photo in CMYK", "works", "cmyk"),
        case("animated picture", "its first picture", "moving"),
        case("photos of different sizes", "the first one's size", "sizes"),
    ],
)
def test_photos(kind: str, files: dict[str, Path], retarget: Run, tmp_path: Path, make: Run) -> None:
    picture = cv2.imread(str(files[".png"]))
    high, wide = picture.shape[:2]
    given = tmp_path / "photo.png"
    if kind == "turned":
        lying = np.ascontiguousarray(np.rot90(picture))
        given = tmp_path / "photo.jpg"
        given.write_bytes(jpeg_turned(cv2.imencode(".jpg", lying)[1].tobytes(), 6))
    elif kind == "deep":
        cv2.imwrite(str(given), picture.astype(np.uint16) * 257)
    elif kind == "alpha":
        cv2.imwrite(str(given), np.dstack([picture, np.full((high, wide), 255, np.uint8)]))
    elif kind == "cmyk":
        pillow = pytest.importorskip("PIL.Image")
        given = tmp_path / "photo.jpg"
        pillow.fromarray(picture[..., ::-1]).convert("CMYK").save(given, quality=98)
    elif kind == "moving":
        given = tmp_path / "photo.gif"
        make("-i", files[".mp4"], "-an", given)
    else:
        given = tmp_path / "photos"
        given.mkdir()
        cv2.imwrite(str(given / "1.png"), picture)
        cv2.imwrite(str(given / "2.jpg"), cv2.resize(picture, (200, 111)))
        cv2.imwrite(str(given / "3.webp"), cv2.resize(picture, (50, 150)))
    said = retarget("personalize", given, "-k", 3, "-t", 0, "--size", 64, *CPU)
    assert said.code == 0, said
    assert said.result["size"] == [64, 2 * round(64 * high / wide / 2)]
    assert said.result["frames"] == (3 if kind == "sizes" else 1)
    stored = load_file(Path(said.result["path"]) / "references.safetensors")
    truth = cv2.resize(picture[..., ::-1], (64, said.result["size"][1]), interpolation=cv2.INTER_AREA)
    inside = stored["mattes"][0] > 250
    if kind != "sizes":  # of several, the most useful comes first
        assert np.abs(stored["frames"][0].astype(int) - truth)[inside].mean() < 12


@pytest.mark.usefixtures("stand", "untouched")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        case("a broken photo", "one sentence, exit 3", "half.png", "broken"),
        case("a picture that would take gigabytes", "one sentence, exit 3", "bomb.png", "100 megapixels"),
        case("a picture whose size nobody can tell", "one sentence, exit 3", "odd.tif", "broken"),
        case("a HEIC photo", "one sentence, exit 3", "phone.heic", "HEIC"),
    ],
)
def test_photos_that_cannot_be(what: str, words: str, files: dict[str, Path], retarget: Run, tmp_path: Path) -> None:
    good = files[".png"].read_bytes()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    (tmp_path / what).write_bytes(
        {
            "half.png": good[: len(good) // 2],
            "bomb.png": good[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + good[33:],
            "odd.tif": b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + bytes(64),
            "phone.heic": b"\0\0\0\x18ftypheic" + bytes(64),
        }[what]
    )
    said = retarget("personalize", tmp_path / what, "-k", 1, "-t", 0, *CPU)
    assert said.code == 3
    assert words in said.error["message"]
    assert what in said.error["message"]
    assert avatar_names() == []


# ------------------------------------------------------------------------------------------------ avatars and weights


def changed(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def stored(path: Path, **changes: np.ndarray | None) -> None:
    arrays: dict[str, Any] = load_file(path) | changes
    save_file({k: v for k, v in arrays.items() if v is not None}, path)


AVATARS: dict[str, Callable[[Path], object]] = {
    "no description": lambda p: (p / "avatar.json").unlink(),
    "description cut short": lambda p: (p / "avatar.json").write_text("{"),
    "deeply nested description": lambda p: (p / "avatar.json").write_text("[" * 100_000),
    "a rate that would take hours to read": lambda p: changed(p / "avatar.json", fps="1e999999999"),
    "an infinite size": lambda p: (p / "avatar.json").write_text(
        (p / "avatar.json").read_text().replace('"size": [', '"size": [Infinity, ').replace("Infinity, \n", "1e999,\n")
    ),
    "a size that is not its pictures'": lambda p: changed(p / "avatar.json", size=[320, 320]),
    "an id with a line break": lambda p: changed(p / "avatar.json", id="0" * 31 + "\n"),
    "a network that would take all memory": lambda p: changed(p / "avatar.json", config={"width": 10**6}),
    "a model that is unknown": lambda p: changed(p / "avatar.json", model="future"),
    "references cut short": lambda p: os.truncate(p / "references.safetensors", 1000),
    "references without a plate": lambda p: stored(p / "references.safetensors", plate=None),
    "frames of another shape": lambda p: stored(p / "references.safetensors", frames=np.zeros((2, 8, 8), np.uint8)),
    "poses of another shape": lambda p: stored(p / "references.safetensors", pose_body=np.zeros((1, 3), np.float32)),
    "poses without numbers": lambda p: stored(
        p / "references.safetensors", track_body=np.full((3, 33, 4), np.nan, np.float32),
        track_world=np.zeros((3, 33, 3), np.float32), track_face=np.zeros((3, 468, 3), np.float32),
        track_hands=np.zeros((3, 2, 21, 3), np.float32),
    ),
    "poses of astronomic size": lambda p: stored(
        p / "references.safetensors", pose_face=np.full((2, 468, 3), 1e30, np.float32)
    ),
    "network of another shape": lambda p: save_file({"trust": np.ones(99, np.float32)}, p / "model.safetensors"),
}  # fmt: skip


@pytest.mark.usefixtures("untouched")
@pytest.mark.reliability(SECTION, "damaged avatar, in sixteen ways", "one sentence, exit 3")
@pytest.mark.parametrize("damage", AVATARS)
def test_a_damaged_avatar(damage: str, avatar: Path, retarget: Run, files: dict[str, Path], tmp_path: Path) -> None:
    AVATARS[damage](avatar)
    said = retarget("drive", "--avatar", "good", "--source", files[".npz"], "--out", tmp_path / "out.mp4", *CPU)
    assert said.code == 3, said
    assert said.error["type"] == "AvatarError"
    assert "good" in said.error["message"]
    assert retarget_lists(retarget)


def retarget_lists(retarget: Run) -> bool:
    """One damaged avatar does not hide the others."""
    return main_code(["avatars", "list", "--quiet"]) == 0


def main_code(words: list[str]) -> int:
    from retarget.cli import main

    return main(words)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        case(
            "unknown avatar",
            "one sentence with the known ones, exit 3",
            ("--avatar", "nobody"),
            3,
            "no avatar called nobody",
        ),
        case("avatar of a newer version", "one sentence, exit 3", ("--avatar", "newer"), 3, "made by a newer retarget"),
    ],
)
def test_avatars_that_cannot_be(
    words: tuple[str, ...], code: int, told: str, avatar: Path, retarget: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(avatar, avatar.with_name("newer"))
    changed(avatar.with_name("newer") / "avatar.json", schema=99, version="9.9")
    said = retarget("drive", *words, "--source", files[".npz"], "--out", tmp_path / "out.mp4", *CPU)
    assert said.code == code
    assert told in said.error["message"]


@pytest.mark.usefixtures("stand", "untouched")
@pytest.mark.parametrize(
    ("what", "code", "told"),
    [
        case("weights missing, offline", "one sentence, exit 4", "offline", 4, "not on this machine"),
        case("weights with the wrong sha256", "one sentence, exit 4", "sha256", 4, "sha256"),
        case("weights of wrong shapes", "one sentence, exit 4", "shapes", 4, "do not fit"),
        case("weights that are no safetensors", "one sentence, exit 4", "text", 4, "does not hold weights"),
        case("weights that are not numbers", "one sentence, exit 4", "nan", 4, "not numbers"),
        case("weights that are not there", "one sentence, exit 3", "missing", 3, "no file"),
    ],
)
def test_weights(
    what: str,
    code: int,
    told: str,
    files: dict[str, Path],
    retarget: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init = tmp_path / "w.safetensors"
    if what in ("offline", "sha256"):
        line = weights.entry("dance").__dict__ | (
            {"repo": "some/repo", "revision": "0" * 40} if what == "offline" else {}
        )
        folder = tmp_path / "weights"
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"schema": 1, "weights": [line]}))
        if what == "sha256":
            (folder / line["file"]).write_bytes(b"something else")
        monkeypatch.setattr(weights, "_folder", lambda: folder)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        init = "meta"
    elif what == "text":
        init.write_text("no weights")
    elif what in ("shapes", "nan"):
        import torch

        tensors, model, config = weights.load_file(files[".safetensors"])
        name = next(k for k, v in tensors.items() if v.dim() > 1)
        tensors[name] = torch.zeros(3, 3) if what == "shapes" else torch.full_like(tensors[name], float("nan"))
        weights.save_file(init, tensors, model, config)
    said = retarget("personalize", files[".png"], "-k", 1, "-t", 0, "--size", 64, "--init", init, *CPU)
    assert said.code == code, said
    assert told in said.error["message"]
    assert avatar_names() == []


# ------------------------------------------------------------------------------------------------ places to write


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A file system of its own of so many kilobytes, perhaps one that can only be read."""
    mounted = []

    def mount(size: int, *options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        how = ",".join((f"size={size}k", *options))
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", how, "none", str(folder)], capture_output=True, check=False
        )
        if tried.returncode:
            pytest.skip("no file system may be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def noise(path: Path, count: int) -> Path:
    """A video that cannot be made small."""
    rng = np.random.default_rng(0)
    with open_writer(path, (256, 320), Fraction(25), crf=20) as write:
        for _ in range(count):
            write(rng.integers(0, 255, (320, 256, 3), np.uint8))
    return path


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(SECTION, "disk full while the video is written", "one sentence, exit 6, nothing half-written")
def test_a_full_disk_of_the_output(files: dict[str, Path], retarget: Run, small_disk: Run, tmp_path: Path) -> None:
    disk = small_disk(64)
    source = noise(tmp_path / "noise.mp4", 6)
    words = ("--source", source, "--compare", "--size", 256, "--yes", *CPU)
    said = retarget("drive", *words, "--out", disk / "out.mp4")
    assert said.code == 6, said
    assert "disk is full" in said.error["message"] or "free" in said.error["message"]
    assert list(disk.iterdir()) == []


@pytest.mark.usefixtures("stand", "untouched")
@pytest.mark.reliability(SECTION, "disk full while the avatar is written", "one sentence, exit 6, nothing half-written")
def test_a_full_disk_of_the_avatars(
    files: dict[str, Path], retarget: Run, small_disk: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(256)
    monkeypatch.setenv("RETARGET_HOME", str(disk))
    said = retarget("personalize", files[".png"], "-k", 1, "-t", 0, "--size", 96, "--name", "new", *CPU)
    assert said.code == 6, said
    assert avatar_names() == []
    assert not list((disk / "avatars").glob("*/*")) if (disk / "avatars").is_dir() else True


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(SECTION, "folder that can only be read", "one sentence, exit 6, before any work")
def test_a_folder_that_can_only_be_read(
    files: dict[str, Path], retarget: Run, small_disk: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(64, "ro")
    said = retarget("drive", "--source", files[".mp4"], "--out", disk / "out.mp4", *CPU)
    assert said.code == 6
    assert "cannot be written" in said.error["message"]
    assert "Poses" not in said.told
    monkeypatch.setenv("RETARGET_HOME", str(disk / "home"))
    said = retarget("personalize", files[".png"], "-k", 1, "-t", 0, *CPU)
    assert said.code == 6


@pytest.mark.usefixtures("stand", "avatar")
@pytest.mark.parametrize(
    ("what", "code"),
    [
        case("--out exists", "one sentence, exit 2; the old file stays", "exists", 2),
        case("--out is the source", "one sentence, exit 2; the source stays", "source", 2),
        case("--out is a link to the source", "one sentence, exit 2; the source stays", "link", 2),
        case("--out is a folder", "one sentence, exit 2", "folder", 2),
        case("--out in no folder", "one sentence, exit 6", "nowhere", 6),
        case("--out without a known suffix", "one sentence, exit 2", "suffix", 2),
        case("--out with a name of 300 letters", "one sentence, exit 3, before any work", "long", 3),
    ],
)
def test_outputs(what: str, code: int, files: dict[str, Path], retarget: Run, tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    shutil.copy(files[".mp4"], source)
    before = source.read_bytes()
    out = tmp_path / "there.mp4"
    out.write_bytes(b"old")
    (tmp_path / "link.mp4").symlink_to(source)
    (tmp_path / "folder.mp4").mkdir()
    chosen = {
        "exists": out, "source": source, "link": tmp_path / "link.mp4", "folder": tmp_path / "folder.mp4",
        "nowhere": tmp_path / "no" / "o.mp4", "suffix": tmp_path / "o.txt", "long": tmp_path / ("x" * 300 + ".mp4"),
    }[what]  # fmt: skip
    yes = ("--yes",) if what in ("source", "link") else ()
    said = retarget("drive", "--source", source, "--out", chosen, *yes, *CPU)
    assert said.code == code, said
    assert "Poses" not in said.told
    assert source.read_bytes() == before
    assert out.read_bytes() == b"old"


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.parametrize(
    "missing",
    [
        case("an encoder that is missing", "one sentence, exit 1", "encoder"),
        case("ffmpeg is missing", "one sentence, exit 1", "ffmpeg"),
    ],
)
def test_without_an_encoder(
    missing: str,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    true = video.ffmpeg()
    fake = tmp_path / "ffmpeg"
    fake.write_text(f'#!/bin/bash\nexec {true} "${{@//libx264/libx264_is_missing}}"\n')
    fake.chmod(0o755)

    def ffmpeg() -> str:
        if missing == "ffmpeg":
            raise RuntimeError("No ffmpeg exe could be found.")
        return str(fake)

    video.ffmpeg.cache_clear()
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", ffmpeg)
    try:
        code = main_code(["drive", "--source", str(files[".mp4"]), "--out", str(tmp_path / "out.mp4"), "--json", *CPU])
    finally:
        video.ffmpeg.cache_clear()
    said = json.loads(capfd.readouterr().out.splitlines()[-1])["error"]
    assert code == said["exit_code"] == 1
    assert ("lacks the encoder libx264_is_missing" if missing == "encoder" else "no ffmpeg") in said["message"]
    assert "pip install" in said["remedy"]


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.usefixtures("stand", "avatar", "untouched")
@pytest.mark.reliability(SECTION, "names with spaces, unicode, quotes, %d, leading dashes, `..`, protocols", "work")
@pytest.mark.parametrize(
    "name",
    ["-dash.mp4", "two words.mp4", "ü 漢字 '\" & $(x).mp4", "50 %d %05d.mp4", "http:x.mp4", "concat:a|b.mp4",
     "a\nb.mp4", "../up/v.mp4", "-i.mp4"],
)  # fmt: skip
def test_names(
    name: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retarget: Run
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "up").mkdir()
    monkeypatch.chdir(here)
    shutil.copy(files[".mp4"], name)
    (here / "made").mkdir()
    out = Path("made") / Path(name).name
    said = retarget("drive", "--source", name, "--out", out, *CPU)
    assert said.code == 0, said
    assert probe(out).frames == probe(files[".mp4"]).frames
    assert probe(out).has_audio
    said = retarget("personalize", "-k", 1, "-t", 0, "--size", 64, *CPU, "--", name)
    assert said.code == 0, said
    assert set(os.listdir(here)) == ({"made"} if "/" in name else {"made", name})
    assert os.listdir("made") == [out.name]


@pytest.mark.reliability(SECTION, "a name that is longer than any file's", "one sentence, exit 3")
def test_a_name_that_cannot_be(retarget: Run, tmp_path: Path) -> None:
    assert retarget("personalize", tmp_path / ("x" * 300), "-k", 1).code == 3
    assert retarget("drive", "--source", tmp_path / ("x" * 300), "--out", tmp_path / "o.mp4").code == 3


# ------------------------------------------------------------------------------------------------ who is in the picture


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    """Sixteen pictures of the person of `examples/me.mp4`, 180x240, spread over the clip."""
    from conftest import EXAMPLES

    with open_reader(EXAMPLES / "me.mp4", size=(180, 240)) as frames:
        return [frame for i, frame in enumerate(frames) if i % 15 == 0][:16]


def film(path: Path, pictures: list[Image]) -> Path:
    with open_writer(path, pictures[0].shape[1::-1], Fraction(8), crf=8) as write:
        for picture in pictures:
            write(picture)
    return path


def room(like: Image) -> Image:
    return np.full_like(like, 128)


MAKE = ("-t", 0, "--size", 128, *CPU)


@pytest.mark.slow
@pytest.mark.reliability(SECTION, "K is more than the frames that show the person", "one sentence, exit 3")
def test_a_person_in_too_few_frames(small: list[Image], retarget: Run, tmp_path: Path) -> None:
    clip = film(tmp_path / "few.mp4", small[:2] + [room(small[0])] * 10)
    said = retarget("personalize", clip, "-k", 5, *MAKE)
    assert said.code == 3
    assert "shows a person in only" in said.error["message"]
    assert "--frames" in said.error["remedy"]
    assert avatar_names() == []


@pytest.mark.slow
@pytest.mark.reliability(
    SECTION, "a person who leaves and comes back", "works; says in which pictures nobody was found"
)
def test_a_person_who_leaves(small: list[Image], retarget: Run, tmp_path: Path, avatar: Path) -> None:
    clip = film(tmp_path / "away.mp4", small[:5] + [room(small[0])] * 6 + small[5:10])
    said = retarget("personalize", clip, "-k", 3, *MAKE, "--name", "back")
    assert said.code == 0, said
    assert not set(said.result["extra"]["picked"]) & set(range(5, 11))
    assert "Nobody was found in 6 of the 16 pictures of away.mp4 (5-10)" in said.told
    said = retarget("drive", "--avatar", "back", "--source", clip, "--out", tmp_path / "o.mp4", *CPU)
    assert said.code == 0, said
    assert probe(tmp_path / "o.mp4").frames == 16


@pytest.mark.slow
@pytest.mark.reliability(
    SECTION, "several people", "says whom it took and how to choose another; the choice is kept to"
)
def test_several_people(small: list[Image], retarget: Run, tmp_path: Path) -> None:
    from conftest import EXAMPLES

    with open_reader(EXAMPLES / "dance.mp4", size=(120, 160)) as frames:
        others = [next(frames) for _ in range(8)]
    beside = [np.pad(o, ((80, 0), (0, 60), (0, 0)), mode="edge") for o in others]
    clip = film(tmp_path / "two.mp4", [np.hstack(pair) for pair in zip(small, beside, strict=False)])
    said = retarget("personalize", clip, "-k", 2, *MAKE, "--name", "a")
    assert said.code == 0, said
    assert "two.mp4 shows more than one person" in said.told
    place = said.told.partition("--person ")[2].partition(".")[0]
    assert float(place.split(",")[0]) > 180  # the smaller one, on the right
    first = load_file(Path(said.result["path"]) / "references.safetensors")["track_body"][:, :, 0].mean()
    said = retarget("personalize", clip, "-k", 2, *MAKE, "--name", "b", "--person", place)
    assert said.code == 0, said
    second = load_file(Path(said.result["path"]) / "references.safetensors")["track_body"][:, :, 0].mean()
    middle = said.result["size"][0] / 2
    assert first < middle < second
    said = retarget("personalize", film(tmp_path / "one.mp4", small[:4]), "-k", 2, *MAKE, "--name", "c")
    assert "more than one person" not in said.told


@pytest.mark.slow
@pytest.mark.reliability(SECTION, "half a body", "works, warns")
def test_half_a_body(small: list[Image], retarget: Run, tmp_path: Path) -> None:
    clip = film(tmp_path / "half.mp4", [np.ascontiguousarray(p[20:130]) for p in small[:8]])
    said = retarget("personalize", clip, "-k", 2, *MAKE, "--name", "half")
    assert said.code == 0, said
    assert "without their feet" in said.told
    whole = film(tmp_path / "whole.mp4", small[:8])
    said = retarget("drive", "--avatar", "half", "--source", whole, "--out", tmp_path / "o.mp4", *CPU)
    assert said.code == 0, said
    assert probe(tmp_path / "o.mp4").frames == 8
    said = retarget("personalize", whole, "-k", 2, *MAKE, "--name", "whole")
    assert "without their feet" not in said.told


@pytest.mark.slow
@pytest.mark.reliability(SECTION, "back view", "works, warns")
def test_from_behind(clips: Path, retarget: Run) -> None:
    said = retarget("personalize", clips / "photos" / "p09.jpg", "-k", 1, *MAKE, "--name", "back")
    assert said.code == 0, said
    assert "from behind only" in said.told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clip", "start", "told"),
    [
        case("upside down (breakdance)", "works", "f32", 2, ""),
        case("a camera that moves", "works, warns", "f33", 0, "The camera moves"),
        case("a camera that moves in the dark", "works", "f34", 0, ""),
    ],
)
def test_hard_clips(clip: str, start: float, told: str, clips: Path, retarget: Run, tmp_path: Path, make: Run) -> None:
    piece = tmp_path / "piece.mp4"
    make("-ss", start, "-i", clips / "train" / f"{clip}.mp4", "-t", 3, "-an", "-r", 8, "-vf", "scale=-2:256", piece)
    said = retarget("personalize", piece, "-k", 2, *MAKE, "--name", "hard")
    assert said.code == 0, said
    assert told in said.told
    said = retarget("drive", "--avatar", "hard", "--source", piece, "--out", tmp_path / "o.mp4", *CPU)
    assert said.code == 0, said
    assert probe(tmp_path / "o.mp4").frames == probe(piece).frames


@pytest.mark.slow
@pytest.mark.reliability(SECTION, "frames of 1×1 with the true pose estimator", "one sentence, exit 3")
@pytest.mark.parametrize("size", ["1x1", "20x900"])
def test_nobody_fits_in(size: str, make: Run, retarget: Run, tmp_path: Path) -> None:
    make("-f", "lavfi", "-i", f"color=gray:s={size}:r=5:d=1", "-c:v", "ffv1", tmp_path / "dot.mkv")
    said = retarget("personalize", tmp_path / "dot.mkv", "-k", 1, "-t", 0, *CPU)
    assert said.code == 3
    assert ("No person was found" if size == "20x900" else "pixels") in said.error["message"]


@pytest.mark.reliability("9. Exit codes", "as a command of the shell: a file that is no video", "one sentence, exit 3")
def test_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    command = [sys.executable, "-m", "retarget", "personalize", str(tmp_path / "text.mp4"), "-k", "1", *CPU]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 3
    assert "is no video, or it is broken" in said.stderr
    assert "Traceback" not in said.stdout + said.stderr
