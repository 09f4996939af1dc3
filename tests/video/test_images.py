"""Pictures of every kind, and what is none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget.errors import InputError
from retarget.video import is_image, picture_size, read_image

from .conftest import bars


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    cv2.imwrite(str(path), bars()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_WEBP_QUALITY, 101])
    renamed = path.rename(tmp_path / "picture.dat")
    assert is_image(renamed)
    seen = read_image(renamed)
    assert seen.dtype == np.uint8
    assert seen.shape == bars().shape
    assert np.abs(seen.astype(int) - bars())[:, 12:20].max() <= 4
    assert picture_size(renamed.read_bytes()) == (bars().shape[1], 48)


def test_is_image_looks_inside(tmp_path: Path, example_me: Path) -> None:
    (tmp_path / "text.png").write_text("BM and nothing")
    assert not is_image(example_me)
    assert not is_image(tmp_path / "text.png")
    assert not is_image(tmp_path / "missing.png")
    assert not is_image(tmp_path)


def test_grey_16_bit_and_alpha(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 8, axis=0)
    cv2.imwrite(str(tmp_path / "grey16.png"), ramp)
    grey = read_image(tmp_path / "grey16.png")
    assert grey.shape == (8, 256, 3)
    assert (grey == np.arange(256)[None, :, None]).all()
    for depth, name in ((np.uint8, "a8.png"), (np.uint16, "a16.png")):
        top = np.iinfo(depth).max
        clear = np.zeros((4, 3, 4), depth)
        clear[:, 1] = (0, 0, top, top // 2 + 1)  # half red (BGRA)
        clear[:, 2] = (0, 0, top, top)
        cv2.imwrite(str(tmp_path / name), clear)
        seen = read_image(tmp_path / name)[0].astype(int)
        assert np.abs(seen - [[255, 255, 255], [255, 127, 127], [255, 0, 0]]).max() <= 1


def test_exif_rotation(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:10] = 255  # the top is white
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)  # to be turned 90 degrees with the clock
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + b"\0\0\0\0"
    (tmp_path / "turned.jpg").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    seen = read_image(tmp_path / "turned.jpg")
    assert seen.shape == (60, 40, 3)
    assert seen[:, -8:].min() > 230
    assert seen[:, :28].max() < 25


def test_cmyk_and_animations(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(bars()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - bars())[:, 12:20].max() <= 8
    flat = [pillow.new("RGB", (32, 24), colour) for colour in ("red", "lime")]
    for name in ("moving.gif", "moving.webp"):
        flat[0].save(tmp_path / name, save_all=True, append_images=flat[1:])
        assert np.abs(read_image(tmp_path / name).astype(int) - (255, 0, 0)).max() <= 8


def test_pictures_that_cannot_be(tmp_path: Path, example_me: Path) -> None:
    good = cv2.imencode(".png", bars())[1].tobytes()
    (tmp_path / "broken.png").write_bytes(good[:60])
    (tmp_path / "half.png").write_bytes(good[: len(good) // 2])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    (tmp_path / "half.jpg").write_bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:3000])
    (tmp_path / "half.gif").write_bytes(b"GIF89a" + bytes(20))
    (tmp_path / "empty.png").touch()
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(bomb + bytes(64))
    for path, words in [
        *((tmp_path / name, "broken") for name in ("broken.png", "half.png", "half.jpg", "half.gif")),
        (tmp_path / "empty.png", "empty"),
        (tmp_path / "missing.png", "no file"),
        (tmp_path / "phone.heic", "HEIC"),
        (tmp_path / "bomb.png", "100 megapixels"),
        (example_me, "not a picture"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            read_image(path)
        assert caught.value.remedy
        assert path.name in caught.value.message
