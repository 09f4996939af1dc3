"""Portraits: videos and photos → squares around the head, which a model of heads learns from; and where they were.

The squares are files again, so that everything that is done with videos and photos of whole people is done with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np

from . import faces
from .errors import NobodyFound
from .folders import replace_file
from .gathering import LONGEST, moved_point
from .pose import PoseOptions, estimate, estimate_images
from .references import HOME, Gathered, working_size
from .types import Array, Image, PoseTrack, Progress
from .video import is_image, open_reader, open_writer, probe, read_image

CRF: Final = 6
"""Quality of the squares' video: nothing is lost that an eye sees."""


class Portrait(NamedTuple):
    """Squares, and the picture that a square goes back into."""

    paths: list[Path]
    """A video, or photos, in the order of the inputs."""
    home: Image
    """The first photo, or the video's first picture with a face."""
    box: Array
    """(3,) x, y of the middle, and side, of its square in `home`."""

    def of(self, gathered: Gathered) -> Gathered:
        """`gathered` from the squares, with the way back."""
        return replace(gathered, home=self.home, box=self.box)


def cropped(
    paths: Sequence[Path],
    folder: Path,
    *,
    size: int,
    person: str,
    whole: bool,
    restart: bool = False,
    progress: Progress,
) -> Portrait:
    """Cut heads out.

    Args:
        paths: one video, or photos.
        folder: for the squares.
        size: the most pixels per side of a square; never enlarged.
        person: see `PoseOptions`.
        whole: of a long video, all of it, and not the first minute.
        restart: without the poses that an interrupted run left.

    Raises:
        NobodyFound: a photo, or the video, shows no face. And what `video` and `pose` raise.
    """
    if all(is_image(path) for path in paths):
        progress.stage("Finding the face", len(paths))
        photos = []
        for number, path in enumerate(paths):
            (folder / str(number)).mkdir()
            photos.append(_photo(path, folder / str(number) / f"{path.stem}.png", size, person))
            progress.advance()
        return Portrait([p.paths[0] for p in photos], photos[0].home, photos[0].box)
    return _video(paths[0], folder / f"{paths[0].stem}.mp4", size, person, whole, restart, progress)


def _photo(path: Path, out: Path, size: int, person: str) -> Portrait:
    photo = read_image(path)
    before = photo.shape[1::-1]
    wh = working_size(before[0], before[1], HOME)
    photo = np.asarray(cv2.resize(photo, wh, interpolation=cv2.INTER_AREA), np.uint8)
    ((track, _),) = estimate_images([photo], PoseOptions(person=moved_point(person, before, wh)))
    box = _boxes(track, path)[0]
    done, code = cv2.imencode(".png", faces.cut(photo, box, _even(box[2], size))[..., ::-1])
    assert done
    replace_file(out, code.tobytes())
    return Portrait([out], photo, box.astype(np.float32))


def _video(path: Path, out: Path, size: int, person: str, whole: bool, restart: bool, progress: Progress) -> Portrait:
    info = probe(path)
    end = LONGEST if info.duration > LONGEST + 1 and not whole else None
    track = estimate(path, PoseOptions(person=person), end=end, restart=restart, progress=progress)
    boxes = _boxes(track, path)
    first = int(np.isfinite(track.face).all(axis=(1, 2)).argmax())
    side = _even(float(np.median(boxes[:, 2])), size)
    home: Image | None = None
    progress.stage("Cutting the head out", len(boxes))
    with (
        open_reader(path, end=end) as frames,
        open_writer(out, (side, side), info.fps, crf=CRF, colour=info.colour) as write,
    ):
        for i, (frame, box) in enumerate(zip(frames, boxes, strict=False)):
            if i == first:
                home = frame
            write(faces.cut(frame, box, side))
            progress.advance()
    assert home is not None
    wh = working_size(info.width, info.height, HOME)
    zoom = wh[0] / info.width
    home = np.asarray(cv2.resize(home, wh, interpolation=cv2.INTER_AREA), np.uint8)
    return Portrait([out], home, (boxes[first] * zoom).astype(np.float32))


def _boxes(track: PoseTrack, path: Path) -> faces.Float:
    try:
        return faces.boxes(track)
    except NobodyFound as error:
        raise NobodyFound(f"No face was found in {path.name}.", error.remedy) from None


def _even(side: float, size: int) -> int:
    return max(2, 2 * round(min(side, size) / 2))
