"""Label maps: files → classes → colours, in folders and videos."""

from __future__ import annotations

import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget.errors import InputError, UsageError
from retarget.labels import MOST, NONE, PALETTE, LabelMaps, LabelTrack, coloured, content, in_order, read_map
from retarget.video import open_writer

CLASSES = np.array([[0, 1, 2, 13], [18, NONE, 10, 10], [7, 7, 8, 8]], np.uint8)


def png(path: Path, numbers: np.ndarray, *, kind: int = 0, bits: int = 8, palette: bytes = b"", extra: bytes = b""):
    """A PNG as other programs write it: grey (kind 0) or with a palette (3), with `bits` per pixel."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in numbers]
    else:
        spread = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=2)[:, :, 8 - bits :]
        rows = [np.packbits(row).tobytes() for row in spread.reshape(len(numbers), -1)]
    head = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], bits, kind, 0, 0, 0)
    data = [chunk(b"IHDR", head)]
    data += [chunk(b"PLTE", palette)] if palette else []
    data += [chunk(b"tRNS", extra)] if extra else []
    data += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))
    return path


def maps(folder: Path, count: int, shape: tuple[int, int] = (6, 8)) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        png(folder / f"m{i}.png", np.full(shape, i % 19))
    return folder


def test_numbers_are_classes(tmp_path):
    assert np.array_equal(read_map(png(tmp_path / "a.png", CLASSES)), CLASSES)
    assert np.array_equal(read_map(png(tmp_path / "b.png", CLASSES, bits=16)), CLASSES)
    few = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert np.array_equal(read_map(png(tmp_path / "c.png", few, bits=2)), few)
    assert np.array_equal(read_map(png(tmp_path / "d.png", few, bits=4)), few)


def test_a_palettes_indices_are_classes_whatever_their_colours(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, 3 * 256, np.uint8).tobytes()
    found = read_map(png(tmp_path / "a.png", CLASSES, kind=3, palette=colours, extra=b"\0\x80\xff"))
    assert np.array_equal(found, CLASSES)
    few = np.array([[0, 1, 2, 15]])
    assert np.array_equal(read_map(png(tmp_path / "b.png", few, kind=3, bits=4, palette=colours[:48])), few)


def test_colours_are_classes(tmp_path):
    picture = coloured(CLASSES)
    assert tuple(picture[0, 3]) == PALETTE["car"] == (0, 0, 142)
    assert tuple(picture[1, 1]) == (0, 0, 0)
    cv2.imwrite(str(tmp_path / "rgb.png"), picture[..., ::-1])
    rgba = np.dstack([picture[..., ::-1], np.full(CLASSES.shape, 255, np.uint8)])
    cv2.imwrite(str(tmp_path / "rgba.png"), rgba)
    for name in ("rgb.png", "rgba.png"):
        assert np.array_equal(read_map(tmp_path / name), CLASSES)
    everything = np.arange(MOST, dtype=np.uint8)[None]
    assert len({tuple(c) for c in coloured(everything)[0]}) == MOST


def test_the_documented_colours():
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (\d+) ([a-z ]+) \| (\d+), (\d+), (\d+) ", page)
    said = {int(row[0]): (row[1], tuple(map(int, row[2:]))) for row in rows}
    assert said == dict(enumerate(PALETTE.items()))


def test_what_is_no_label_map(tmp_path):
    whole = png(tmp_path / "whole.png", CLASSES)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:-20])
    cv2.imwrite(str(tmp_path / "map.jpg"), CLASSES)
    junk = (tmp_path / "map.jpg").rename(tmp_path / "junk.png")
    for path in (cut, junk, tmp_path / "missing.png"):
        with pytest.raises(InputError, match=rf"{path.name} is no readable PNG") as e:
            read_map(path)
        assert "PNG" in e.value.remedy
    with pytest.raises(InputError, match="number 200, which is no class") as e:
        read_map(png(tmp_path / "grey.png", np.array([[1, 200, 255]])))
    assert "255" in e.value.remedy
    with pytest.raises(InputError, match="number 300"):
        read_map(png(tmp_path / "deep.png", np.array([[1, 300]]), bits=16))
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), photo)
    with pytest.raises(InputError, match=r"photo\.png is no label map"):
        read_map(tmp_path / "photo.png")


def test_a_folder(tmp_path):
    folder = maps(tmp_path / "maps", 12)
    found = LabelMaps(folder, fps=Fraction(10), size=(4, 3))
    assert (len(found), found.fps, found.full, found.size) == (12, 10, (8, 6), (4, 3))
    track = found.select([2, 10, 11])
    assert track.classes.shape == (3, 3, 4)
    assert track.classes[:, 0, 0].tolist() == [2, 10, 11]  # by value: m10 comes after m2
    piece = LabelMaps(folder, fps=Fraction(10), start=0.2, end=0.5)
    assert piece.select(range(len(piece))).classes[:, 0, 0].tolist() == [2, 3, 4]
    pictures = list(piece.pictures(1, (16, 12)))
    assert [p.shape for p in pictures] == [(12, 16, 3)] * 2
    assert tuple(pictures[0][0, 0]) == PALETTE["wall"]
    with pytest.raises(UsageError, match="no label map after 5 s"):
        LabelMaps(folder, start=5.0)


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no label maps"):
        LabelMaps(tmp_path / "empty")
    folder = maps(tmp_path / "maps", 3)
    png(folder / "m1.png", np.zeros((5, 8)))
    with pytest.raises(InputError, match=r"m1\.png is not as large as m0\.png, 8 x 6"):
        LabelMaps(folder)
    with pytest.raises(InputError, match=r"m2\.png holds class 2, and the avatar knows 2"):
        LabelMaps(maps(tmp_path / "maps", 3), classes=2).select([0, 1, 2])


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A compressed video of 150 label maps, and these."""
    path, t = tmp_path_factory.mktemp("film") / "maps.mp4", np.arange(150)
    true = np.zeros((150, 64, 96), np.uint8)
    true[:, :20] = 10
    for i in t:
        true[i, 30:54, i // 3 : i // 3 + 30] = 13
        true[i, 24:60, 80:92] = (5, 8, 11)[i % 3]
    with open_writer(path, (96, 64), Fraction(30)) as write:
        for one in true:
            write(coloured(one))
    return path, true


def test_a_video(film):
    path, true = film
    found = LabelMaps(path)
    assert (len(found), found.fps, found.full) == (150, 30, (96, 64))
    every = np.concatenate([found.select([i]).classes for i in range(len(found))])
    assert (every == true).mean() > 0.98
    inside = true[:, 2:18, 2:-2]
    assert np.array_equal(every[:, 2:18, 2:-2], inside)
    assert np.array_equal(found.select([140, 3]).classes, every[[140, 3]])  # in any order
    piece = LabelMaps(path, start=1.0, end=2.0, size=(48, 32))
    assert len(piece) == 30
    expected = LabelTrack(every[30:60]).scaled((48, 32))
    assert np.array_equal(piece.select(range(30)).classes, expected.classes)


def test_a_video_of_something_else(short_me):
    with pytest.raises(InputError, match="is no label map") as e:
        LabelMaps(short_me).select([0])
    assert "docs/models.md" in e.value.remedy


def test_names_and_content(tmp_path):
    names = ["b_000010_a.png", "b_9_a.png", "a_000002.png", "b_9_b.png"]
    assert [p.name for p in sorted(map(Path, names), key=in_order)] == [
        "a_000002.png", "b_9_a.png", "b_9_b.png", "b_000010_a.png",
    ]  # fmt: skip
    folder = maps(tmp_path / "maps", 3)
    before = content(folder)
    assert before == content(folder)
    png(folder / "m3.png", CLASSES)
    assert content(folder) != before
