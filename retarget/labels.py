"""Label maps: pictures that say of each pixel what it shows. Files → class numbers → colours. NumPy.

A map is a PNG with one number per pixel (grey, or the index into a palette): the class, `NONE` where there is none. Or
it is a picture in the colours of `PALETTE`, as a PNG or a frame of a video, whose compression the nearest colour undoes
but for the borders between classes.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from .errors import InputError, UsageError
from .pose.cache import digest
from .types import Image
from .video import MAX_PIXELS, open_reader, picture_size, probe, read_image, timestamps

Classes = npt.NDArray[np.uint8]
"""Class numbers, (H, W) or (T, H, W)."""

NONE: Final = 255
"""What a pixel without a class holds."""
MOST: Final = 128
"""Classes that there can be."""
PALETTE: Final = {
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70), "wall": (102, 102, 156),
    "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30), "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35), "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100),
    "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32),
}  # fmt: skip
"""The colours of classes 0 to 18: those that Cityscapes is evaluated by. Black stands for `NONE`."""
FAR: Final = 32.0
"""How far in RGB a colour may be from the nearest of the palette, and still be meant to be it."""
STRANGE: Final = 0.15
"""The share of pixels that may be farther: borders between classes, in compressed video."""
BLOCK: Final = 64
"""Maps of a video that are read at a time, while they are asked for one after the other."""
_COLOURS: Final = np.array([*PALETTE.values(), (0, 0, 0)], np.float32)
_STEP: Final = 4
"""Colours are looked up in a table with cells of so many steps per channel; those of the palette are 20 apart."""


@dataclass(frozen=True)
class LabelTrack:
    """The label maps of T consecutive pictures: what `PoseTrack` is for people.

    classes  (T, H, W) uint8: the class of each pixel, or `NONE`.
    fps      maps per second.
    """

    classes: Classes
    fps: Fraction = Fraction(25)

    def __len__(self) -> int:
        return len(self.classes)

    def scaled(self, size: tuple[int, int]) -> LabelTrack:
        """The maps in another size (width, height): each pixel the nearest one's class."""
        return replace(self, classes=np.stack([resized(one, size) for one in self.classes]))


def resized(classes: Classes, size: tuple[int, int]) -> Classes:
    """A map (H, W) in another size (width, height): each pixel the nearest one's class."""
    return np.asarray(cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


# ------------------------------------------------------------------------------------------------ one map


def read_map(path: Path) -> Classes:
    """The classes (H, W) of a PNG.

    Raises InputError for a file that is no PNG or broken, whose numbers are no classes, or whose colours are not those
    of `PALETTE`.
    """
    try:
        data = path.read_bytes()
        bits, kind = _head(data)
        if kind in (2, 6):  # colours
            return from_colours(read_image(path), path.name)
        width, height = picture_size(data) or (0, 0)
        if width * height > MAX_PIXELS:
            raise InputError(f"{path} has more than {MAX_PIXELS // 1_000_000} megapixels.", "Scale the map down first.")
        found = cv2.imdecode(np.frombuffer(_numbers(data), np.uint8), cv2.IMREAD_UNCHANGED)
        if found is None:
            raise ValueError("its pixels cannot be decoded")
    except (OSError, ValueError, LookupError, struct.error, cv2.error) as error:
        raise InputError(
            f"{path} is no readable PNG.", "Save label maps as PNG, one number or one colour per class."
        ) from error
    numbers = found if found.ndim == 2 else found[..., 0]
    if kind == 0 and bits < 8:  # which were stretched to 0..255
        numbers = numbers // (255 // (2**bits - 1))
    if ((numbers >= MOST) & (numbers != NONE)).any():
        raise InputError(
            f"{path} holds the number {int(numbers[numbers != NONE].max())}, which is no class.",
            f"Number the classes from 0; {NONE} stands for pixels without one.",
        )
    return np.asarray(numbers, np.uint8)


def write_map(path: Path, classes: Classes) -> None:
    """Write classes (H, W) as a PNG with one number per pixel."""
    path.write_bytes(cv2.imencode(".png", classes)[1].tobytes())


def _head(data: bytes) -> tuple[int, int]:
    """Bits per channel and kind of colours of a PNG. Raises ValueError or LookupError for anything else."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("no PNG")
    return data[24], data[25]


def _numbers(data: bytes) -> bytes:
    """The same PNG with what is behind its palette's indices grey of that very number, so that colours are indices;
    only what tells its pixels is kept. Raises ValueError or struct.error when it is cut short."""
    out, at = [data[:8]], 8
    grey = bytes(level for level in range(256) for _ in range(3))
    while True:
        length, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if len(body) < length:
            raise ValueError("it is cut short")
        if name == b"PLTE":
            body = grey[: 3 * 2 ** data[24]]
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            out.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
        if name == b"IEND":
            return b"".join(out)
        at += 12 + length


def _tables() -> tuple[Classes, npt.NDArray[np.bool_]]:
    """Of each cell of colours, the nearest class, and whether it is far from it."""
    middle = np.arange(0, 256, _STEP, dtype=np.float32) + (_STEP - 1) / 2
    cells = np.stack(np.meshgrid(middle, middle, middle, indexing="ij"), -1).reshape(-1, 3)
    distance = np.stack([((cells - colour) ** 2).sum(1) for colour in _COLOURS])
    nearest = distance.argmin(0)
    return np.where(nearest < len(PALETTE), nearest, NONE).astype(np.uint8), distance.min(0) > FAR**2


_nearest: list[tuple[Classes, npt.NDArray[np.bool_]]] = []


def from_colours(picture: Image, name: str) -> Classes:
    """The classes (H, W) whose colours in `PALETTE` are the nearest to those of a picture (H, W, 3).

    Raises InputError, which calls the picture `name`, when they are not near: it is no label map.
    """
    if not _nearest:
        _nearest.append(_tables())
    classes, far = _nearest[0]
    red, green, blue = (picture[..., c].astype(np.int32) // _STEP for c in range(3))
    cell = (red * (256 // _STEP) + green) * (256 // _STEP) + blue
    if far[cell].mean() > STRANGE:
        raise InputError(
            f"{name} is no label map: its colours are not those of Cityscapes' classes.",
            "Give maps in these colours (docs/models.md), or PNGs with one number per pixel.",
        )
    return np.asarray(classes[cell], np.uint8)


def coloured(classes: Classes) -> Image:
    """Classes (H, W) as a picture (H, W, 3) RGB: in the colours of `PALETTE`, and in others of those beyond it."""
    colours = np.zeros((256, 3), np.uint8)
    hues = np.array([[[int(67 * i) % 180, 120, 220] for i in range(NONE)]], np.uint8)
    colours[:NONE] = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0]
    colours[: len(PALETTE)] = _COLOURS[:-1]
    return colours[classes]


# ------------------------------------------------------------------------------------------------ many maps


class LabelMaps:
    """Label maps in a row, read as they are asked for: a folder of PNGs, in order of their names, or a video.

    path  of the folder or video.
    fps   maps per second.
    full  (width, height) of the maps in their files; `size` of those that are given out.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: tuple[int, int] | None = None,
        classes: int = MOST,
        fps: Fraction = Fraction(25),
        start: float = 0.0,
        end: float | None = None,
    ) -> None:
        """
        Args:
            size: (width, height) of the maps that are given out; None: as in their files.
            classes: how many there may be.
            fps: of a folder.
            start, end: the piece that is taken, in seconds.

        Raises:
            InputError: no maps, or maps of different sizes. And what `video` raises.
            UsageError: nothing lies in the piece.
        """
        self.path, self._classes, self._start, self._end = path, classes, start, end
        self._held: tuple[int, list[Classes]] = (0, [])
        self._last = -1
        self.files: list[Path] | None = None
        if path.is_dir():
            self.files, self.fps = _files(path), fps
            shapes = [_size(file) for file in self.files]
            if odd := [file for file, shape in zip(self.files, shapes, strict=True) if shape != shapes[0]]:
                raise InputError(
                    f"{odd[0]} is not as large as {self.files[0].name}, {shapes[0][0]} x {shapes[0][1]} pixels.",
                    "Give label maps of one size.",
                )
            times = np.arange(len(self.files)) / float(fps)
            chosen = (times >= start - 1e-6) & (times < (np.inf if end is None else end - 1e-6))
            self.files = [file for file, inside in zip(self.files, chosen, strict=True) if inside]
            if not self.files:
                raise UsageError(
                    f"{path} has no label map after {start:g} s: it has {len(times)}, {float(fps):g} per second.",
                    "Give an earlier --start.",
                )
            self.full, self._count = shapes[0], len(self.files)
        else:
            info = probe(path)
            self.fps, self.full = info.fps, (info.width, info.height)
            self._count = len(timestamps(path, start, end))
        self.size = size or self.full

    def __len__(self) -> int:
        return self._count

    def select(self, index: Sequence[int]) -> LabelTrack:
        """Some of them: quickly, one after the other.

        Raises InputError for one that cannot be read, or holds a class that there is not.
        """
        found = [resized(self._read(int(i)), self.size) for i in index]
        return LabelTrack(np.stack(found) if found else np.zeros((0, *self.size[::-1]), np.uint8), self.fps)

    def every(self, step: int) -> Iterator[Classes]:
        """Every so many-th map (H, W) from the first on. Raises as `select`."""
        # One after the other is how a video is read quickly.
        for i in range(0, len(self), 1 if self.files is None else step):
            classes = self._read(i)
            if i % step == 0:
                yield resized(classes, self.size)

    def pictures(self, first: int, size: tuple[int, int]) -> Iterator[Image]:
        """The maps from the first on, coloured, in another size (width, height)."""
        for i in range(first, len(self)):
            yield coloured(resized(self._read(i), size))

    def _read(self, index: int) -> Classes:
        if self.files is not None:
            return self._known(read_map(self.files[index]), self.files[index].name)
        first, maps = self._held
        ahead, self._last = BLOCK if index == self._last + 1 else 1, index
        if not first <= index < first + len(maps):
            with open_reader(self.path, start=self._start, end=self._end, skip=index) as frames:
                maps = [
                    self._known(from_colours(frame, self.path.name), f"frame {index + n} of {self.path.name}")
                    for n, frame in enumerate(islice(frames, ahead))
                ]
            first = index
            self._held = first, maps
        return maps[index - first]

    def _known(self, classes: Classes, name: str) -> Classes:
        beyond = (classes >= self._classes) & (classes != NONE)
        if beyond.any():
            raise InputError(
                f"{name} holds class {int(classes[beyond].max())}, and the avatar knows {self._classes}, from 0 on.",
                f"Number the classes as when it was made; {NONE} stands for pixels without one.",
            )
        return classes


def _files(folder: Path) -> list[Path]:
    found = sorted((p for p in folder.iterdir() if p.suffix.lower() == ".png"), key=in_order)
    if not found:
        raise InputError(f"The folder {folder} holds no label maps.", "Put PNGs into it, one per picture.")
    return found


def in_order(path: Path) -> list[tuple[int, str]]:
    """By which files are sorted: their names, numbers in them by their value."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.findall(r"[0-9]+|[^0-9]+", path.name)]


def _size(path: Path) -> tuple[int, int]:
    try:
        with path.open("rb") as file:
            size = picture_size(file.read(64))
    except OSError:
        size = None
    if size is None:
        raise InputError(f"{path} is no readable PNG.", "Save label maps as PNG.")
    return size


def content(path: Path) -> str:
    """SHA-256 of a folder's maps and their order, or of a video. Raises InputError when they cannot be read."""
    if not path.is_dir():
        return digest(path)
    return hashlib.sha256("".join(digest(file) for file in _files(path)).encode()).hexdigest()
