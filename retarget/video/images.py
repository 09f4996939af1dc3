"""Picture files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast

import numpy as np

from ..errors import InputError
from ..types import Image
from .process import check_file, command, guarded_input, output

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""How the names of pictures end."""
MAX_PIXELS = 100_000_000
"""The largest picture that is opened, and the largest frame of a video."""


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, by their suffixes, in order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)


def is_image(path: str | Path) -> bool:
    """Whether the file is a picture, by its first bytes (JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, HEIC)."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            head = file.read(32)
    except (OSError, ValueError):
        return False
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (head[:2] == b"BM" and head[14:18] in (b"\x28\0\0\0", b"\x0c\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or _is_heif(head)
    )


def _is_heif(head: bytes) -> bool:
    brands = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
    return head[4:8] == b"ftyp" and head[8:12] in brands


def read_image(path: str | Path) -> Image:
    """A picture as RGB uint8 (H, W, 3): upright by its EXIF tag, 16 bit brought to 8, transparency laid over white.

    Of an animation the first picture. Raises InputError for what is missing, no picture, broken or above MAX_PIXELS.
    """
    import cv2

    path = Path(path)
    check_file(path)
    if not is_image(path):
        raise InputError(f"{path} is not a picture.", "Give a JPEG, PNG, WebP, BMP or TIFF file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).", "Copy the file again.") from error
    if _is_heif(data[:32]):
        raise InputError(f"{path} is a HEIC or AVIF picture, which is not supported.", "Save it as JPEG or PNG first.")
    broken = InputError(f"{path} is a broken picture.", "Open and save it again, or take another one.")
    size = picture_size(data)
    if size is None:  # then nobody knows how much memory it would take
        raise broken
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"{path} has {size[0]} x {size[1]} pixels, more than {MAX_PIXELS // 1_000_000} megapixels.",
            "Scale the picture down first.",
        )
    if _is_cut_short(data):  # OpenCV would fill the rest with grey
        raise broken
    if data.startswith(b"GIF8"):  # OpenCV is often built without it
        one = command(*guarded_input(path, "-f", "gif"), "-frames:v", "1", "-c:v", "png", "-f", "image2pipe", "pipe:1")
        data = output(one)
    raw = np.frombuffer(data, np.uint8)
    try:
        if not raw.size:
            raise broken
        upright = cv2.imdecode(raw, cv2.IMREAD_COLOR)
        full = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise broken from error
    if upright is None or full is None:
        raise broken
    image = np.ascontiguousarray(upright[..., ::-1])
    if full.ndim == 3 and full.shape[2] == 4 and full.shape[:2] == image.shape[:2]:
        top = {1: 255.0, 2: 65535.0}.get(full.dtype.itemsize, 1.0)
        cover = full[..., 3:].astype(np.float32) / top
        colour = full[..., 2::-1].astype(np.float32) * (255.0 / top)
        image = np.round(colour * cover + 255.0 * (1 - cover)).clip(0, 255).astype(np.uint8)
    return cast("Image", image)


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) by the header of a JPEG, PNG, GIF, BMP, WebP or TIFF, before any rotation; None if unclear."""

    def number(at: int, length: int, order: Literal["big", "little"]) -> int:
        return int.from_bytes(data[at : at + length], order)

    if data.startswith(b"\x89PNG"):
        return number(16, 4, "big"), number(20, 4, "big")
    if data.startswith(b"GIF8"):
        return number(6, 2, "little"), number(8, 2, "little")
    if data.startswith(b"BM"):
        top = number(22, 4, "little")
        return number(18, 4, "little"), min(top, 2**32 - top)
    if data.startswith(b"RIFF"):
        if data[12:16] == b"VP8X":
            return number(24, 3, "little") + 1, number(27, 3, "little") + 1
        if data[12:16] == b"VP8L":
            bits = number(21, 4, "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return number(26, 2, "little") & 0x3FFF, number(28, 2, "little") & 0x3FFF
    if data.startswith((b"II", b"MM")):
        order: Literal["big", "little"] = "little" if data.startswith(b"II") else "big"
        table = number(4, 4, order)
        sides = {}
        for i in range(number(table, 2, order)):
            at = table + 2 + 12 * i
            sides[number(at, 2, order)] = number(at + 8, 2 if number(at + 2, 2, order) == 3 else 4, order)
        return (sides[256], sides[257]) if {256, 257} <= sides.keys() else None
    frame = _jpeg_frame(data)
    return (number(frame + 7, 2, "big"), number(frame + 5, 2, "big")) if frame else None


def _jpeg_frame(data: bytes) -> int:
    """Where the frame header (SOFn) of a JPEG begins; 0 when there is none."""
    at = 2
    while data.startswith(b"\xff\xd8") and at + 9 < len(data) and data[at] == 0xFF:
        mark = data[at + 1]
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            return at
        lone = mark == 0x01 or 0xD0 <= mark <= 0xD8
        at += 1 if mark == 0xFF else 2 if lone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _is_cut_short(data: bytes) -> bool:
    """Whether the end mark of a JPEG (behind the frame header: thumbnails have one too) or PNG is missing."""
    frame = _jpeg_frame(data)
    return (frame > 0 and data.find(b"\xff\xd9", frame) < 0) or (data.startswith(b"\x89PNG") and b"IEND" not in data)
