"""Streets to practise on: videos of drives through made-up streets, and the label map of each frame. NumPy, OpenCV.

    python examples/streets OUT --count 20
    retarget personalize OUT/streets/s000.mp4 --labels OUT/maps/s000 --model few-shot-vid2vid

A scene is all drawn from the number in its name: the same number and options give the same street. Everything in it
comes of the code in this folder, which puts it into the public domain (CC0).

World: metres, x to the right, y up, z along the street, which is straight; the camera drives in the right half of it.
Everything that stands on the ground is made of planar quads with a texture, drawn from far to near: strip by strip of
the street from its sides to the camera's lane, in each by z. Planes along the street separate the strips, so the order
is right. Colours are drawn at twice the size; the classes are those that cover more than half of a pixel.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

from scene import Scene

from retarget.labels import write_map
from retarget.video import open_writer


def write(out: Path, number: int, frames: int, fps: Fraction, height: int) -> None:
    """Write a scene's video and label maps, unless they are there."""
    name = f"s{number:03d}"
    video, maps = out / "streets" / f"{name}.mp4", out / "maps" / name
    if video.exists() and len(list(maps.glob("*.png"))) == frames:
        return
    video.parent.mkdir(parents=True, exist_ok=True)
    maps.mkdir(parents=True, exist_ok=True)
    size = (2 * height, height)
    scene = Scene(number, frames, float(fps), size)
    with open_writer(video, size, fps, crf=14) as append:
        for i in range(frames):
            picture, labels = scene.frame(i)
            append(picture)
            write_map(maps / f"{i:04d}.png", labels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Videos of made-up streets, with their label maps.")
    parser.add_argument("out", type=Path, help="folder to which streets/ and maps/ are written")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--count", type=int, default=1, help="scenes")
    parser.add_argument("--frames", type=int, default=40, help="frames per scene")
    parser.add_argument("--fps", type=Fraction, default=Fraction(8))
    parser.add_argument("--height", type=int, default=256, help="of the pictures, which are twice as wide")
    wanted = parser.parse_args()
    for number in range(wanted.first, wanted.first + wanted.count):
        write(wanted.out, number, wanted.frames, wanted.fps, wanted.height)
        print(f"s{number:03d}", flush=True)


if __name__ == "__main__":
    main()
