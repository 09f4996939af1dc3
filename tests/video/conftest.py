"""Numbered frames, and videos of them."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retarget import video
from retarget.types import Image
from retarget.video import open_reader, open_writer

COLOURS = [
    *((191, 191, 191), (191, 191, 0), (0, 191, 191), (0, 191, 0), (191, 0, 191), (191, 0, 0), (0, 0, 191)),
    *((255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 150, 130), (90, 60, 40)),
]
UNEVEN = [i * 0.04 + 0.04 * (i // 3) + 0.01 * (i // 7) for i in range(40)]


def ffmpeg(*arguments: object) -> bytes:
    """Run ffmpeg to make or look into a file of a test."""
    command = [video.ffmpeg(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def numbered(number: int, size: tuple[int, int] = (96, 64)) -> Image:
    """A grey picture that carries its number as ten black or white columns."""
    image = np.full((size[1], size[0], 3), 128, np.uint8)
    for bit in range(10):
        image[:, bit * size[0] // 10 : (bit + 1) * size[0] // 10] = 235 if number >> bit & 1 else 20
    return image


def number_of(image: Image) -> int:
    wide = image.shape[1]
    middle = [image[:, int((bit + 0.3) * wide / 10) : int((bit + 0.7) * wide / 10)].mean() for bit in range(10)]
    return sum(1 << bit for bit, grey in enumerate(middle) if grey > 128)


def numbers(path: Path, **options: float) -> list[int]:
    with open_reader(path, **options) as frames:  # type: ignore[arg-type]
        return [number_of(frame) for frame in frames]


def bars() -> Image:
    return np.repeat(np.repeat(np.array([COLOURS], np.uint8), 32, axis=1), 48, axis=0)


def opencv(path: Path) -> list[Image]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        good, frame = capture.read()
        if not good:
            return frames
        frames.append(frame[..., ::-1])


@pytest.fixture(scope="session")
def long_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 numbered frames at 24000/1001 frames/s, B-frames, a key frame every 2 s, sound from 0.1 s earlier on."""
    folder = tmp_path_factory.mktemp("gop")
    with open_writer(folder / "raw.mp4", (96, 64), Fraction(24000, 1001), crf=1) as write:
        for i in range(200):
            write(numbered(i))
    out = folder / "gop.mp4"
    ffmpeg(
        *("-itsoffset", "0.1", "-i", folder / "raw.mp4", "-f", "lavfi", "-i", "sine=d=8"),
        *("-c:v", "libx264", "-g", 48, "-sc_threshold", 0, "-bf", 3, "-qp", 5, "-c:a", "aac", out),
    )
    return out


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 numbered frames of a variable rate."""
    out = tmp_path_factory.mktemp("vfr") / "vfr.mp4"
    with open_writer(out, (96, 64), Fraction(20), timestamps=UNEVEN, crf=1) as write:
        for i in range(40):
            write(numbered(i))
    return out
