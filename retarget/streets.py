"""Street scenes: pictures with their label maps → references; the maps that a scene is driven by.

What `gathering` and `motion` do for people. There is nobody to be found, no pose, and nothing behind: the scene is the
whole picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
import numpy.typing as npt

from .background import Plate
from .errors import InputError, UsageError
from .labels import NONE, PALETTE, Classes, LabelMaps, content, in_order, resized
from .pose.base import empty_track
from .pose.cache import digest
from .references import Gathered, working_size
from .types import Image, Progress
from .video import Colour, is_image, open_reader, probe, read_image

if TYPE_CHECKING:
    from .avatar import Avatar
    from .drive import DriveOptions

CANDIDATES: Final = 64
"""Pictures among which the references are chosen."""
LOOK: Final = 32
"""Pixels per side at which maps are compared with each other."""
SQUEEZE: Final = 0.02
"""By how much of their height the proportions of driving maps may differ from the avatar's."""


def class_count(maps: Path, pick: Sequence[int] = ()) -> int:
    """How many classes the label maps take that references are chosen among, and those that are picked: as many as
    `labels.PALETTE` has, or more if there are more."""
    found = LabelMaps(maps)
    if found.files is None:
        return len(PALETTE)
    looked = sorted({*_some(len(found)), *(n for n in pick if 0 <= n < len(found))})
    return max(counted(found.select([i]).classes) for i in looked)


def counted(classes: Classes) -> int:
    """How many classes maps take: as many as `labels.PALETTE` has, or more if there are more."""
    return max(len(PALETTE), 1 + int(classes[classes != NONE].max(initial=0)))


def gathered(
    paths: Sequence[Path],
    maps: Path,
    *,
    count: int,
    size: int,
    pick: Sequence[int] = (),
    progress: Progress,
) -> Gathered:
    """References out of pictures with label maps; all have empty poses and are in the matte from border to border.

    Args:
        paths: a video, or pictures, which are taken in the order of their names.
        maps: a folder or video with one map for each picture.
        count, size, pick: K; the short side; which pictures, instead of choosing those whose maps are most different.

    Raises:
        InputError: pictures and maps that do not belong together; what `labels` and `video` raise.
        UsageError: `pick` outside of them.
    """
    film, known = opened(paths, maps)
    if outside := [n for n in pick if not 0 <= n < len(film)]:
        raise UsageError(
            f"There is no picture {outside[0]}: there are {len(film)}, counted from 0.", "Pick others with --pick."
        )
    if pick:
        picked = list(pick)
    else:
        some = _some(len(known))
        progress.stage("Choosing frames", len(some))
        looks = []
        for i in some:
            looks.append(resized(known.select([i]).classes[0], (LOOK, LOOK)))
            progress.advance()
        picked = [some[n] for n in choose(np.stack(looks), count)]
    if len(picked) < count and not pick:
        progress.note(f"There are {len(film)} pictures: K is {len(film)}, not {count}.")
    wh = working_size(*film.size, size)
    shown = film.read(picked)
    return scene(
        np.stack([cv2.resize(shown[i], wh, interpolation=cv2.INTER_AREA) for i in picked]).astype(np.uint8),
        np.concatenate([known.select([i]).scaled(wh).classes for i in picked]),
        film.fps,
        picked,
        film.colour,
    )


def opened(paths: Sequence[Path], maps: Path) -> tuple[Film, LabelMaps]:
    """Pictures and their label maps. Raises InputError when they do not belong together, and what `labels` and `video`
    raise."""
    film = Film(paths)
    known = LabelMaps(maps)
    if len(film) != len(known):
        raise InputError(
            f"{film.name} has {len(film)} pictures, and {maps.name} has {len(known)} label maps.",
            "Give one map per picture.",
        )
    if film.size != known.full:
        raise InputError(
            "The pictures have {} x {} pixels, and the label maps {} x {}.".format(*film.size, *known.full),
            "Give maps as large as their pictures.",
        )
    return film, known


def scene(
    pictures: npt.NDArray[np.uint8], labels: Classes, fps: Fraction, picked: Sequence[int], colour: Colour = "bt601"
) -> Gathered:
    """The references that pictures (K, H, W, 3) RGB and their label maps (K, H, W) are."""
    whole = np.ones(labels.shape, np.float32)
    nobody = empty_track(len(pictures), (labels.shape[2], labels.shape[1]), fps)
    return Gathered(
        frames=pictures,
        mattes=whole,
        windows=tuple(nobody.select([k]) for k in range(len(pictures))),
        plate=Plate(pictures[0], whole[0], 0.0),
        track=nobody,
        fps=fps,
        picked=tuple(picked),
        pictures=pictures,
        colour=colour,
        labels=labels,
    )


def fingerprint(paths: Sequence[Path], maps: Path) -> str:
    """SHA-256 of pictures and label maps, and their order. Raises InputError when they cannot be read."""
    files = [digest(path) for path in sorted(paths, key=in_order)]
    return hashlib.sha256("".join([*files, content(maps)]).encode()).hexdigest()


def choose(looks: Classes, count: int) -> list[int]:
    """Those of N maps (N, h, w) that together are most similar to all of them, the most typical first.

    Greedy: each one added lessens the most the sum, over all maps, of the share of pixels in which the most similar
    chosen one differs.
    """
    flat = looks.reshape(len(looks), -1)
    cost = np.stack([(flat != one).mean(1) for one in flat])
    best, chosen = np.full(len(flat), 2.0), list[int]()
    for _ in range(min(count, len(flat))):
        left = np.minimum(cost, best[:, None]).sum(0)
        left[chosen] = np.inf
        chosen.append(int(left.argmin()))
        best = np.minimum(best, cost[:, chosen[-1]])
    return chosen


def driver(source: Path, avatar: Avatar, options: DriveOptions, progress: Progress) -> LabelMaps:
    """The maps to draw, at the size of the avatar's picture.

    Those of a folder, which show as many per second as the avatar's video, are all read once: what cannot be drawn is
    told before the first one is.

    Raises:
        UsageError: options for people, or a motion file.
        InputError: no label maps, other classes than the avatar's, other proportions than its picture's.
    """
    if source.suffix == ".npz":
        raise UsageError(
            f"{source.name} holds the motion of a person, and the avatar {avatar.name} shows scenes.",
            "Give --source a folder or a video of label maps.",
        )
    if options.background != "plate":
        raise UsageError(
            f"--background {options.background} needs a person who stands before it; {avatar.name} shows scenes.",
            "Leave it out.",
        )
    maps = LabelMaps(
        source, size=avatar.size, classes=int(avatar.meta.config["classes"]), fps=avatar.fps, start=options.start,
        end=options.end,
    )  # fmt: skip
    maps.select([0])
    (width, height), (own, high) = maps.full, avatar.size
    if abs(width * high / own - height) > SQUEEZE * height + 1:
        raise InputError(
            f"The label maps in {source.name} have {width} x {height} pixels, and the avatar's picture {own} x {high}.",
            "Cut them to its proportions.",
        )
    if maps.files is not None:
        progress.stage("Looking at the label maps", len(maps))
        for i in range(len(maps)):
            maps.select([i])
            progress.advance()
    return maps


class Film:
    """Pictures in a row: a video, or files, in the order of their names.

    fps   pictures per second; of files, 25.
    size  (width, height).
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = sorted(paths, key=in_order)
        first = self.paths[0]
        self.video = None if is_image(first) else probe(first)
        self.name = first.name if len(paths) == 1 else first.absolute().parent.name
        self.fps = Fraction(25) if self.video is None else self.video.fps
        self.colour = "bt601" if self.video is None else self.video.colour
        if self.video is None:
            height, width = read_image(first).shape[:2]
            self.size = (width, height)
        else:
            self.size = (self.video.width, self.video.height)

    def __len__(self) -> int:
        return len(self.paths) if self.video is None else self.video.frames

    def read(self, numbers: Sequence[int]) -> dict[int, Image]:
        """Some of the pictures, by their numbers. Raises InputError when they are not all of one size."""
        found = {}
        for n in numbers:
            if self.video is None:
                found[n] = read_image(self.paths[n])
            else:
                with open_reader(self.video.path, skip=n) as frames:
                    found[n] = next(frames)
            if found[n].shape[1::-1] != self.size:
                raise InputError(
                    f"{self.paths[n].name} is not as large as {self.paths[0].name}.", "Give pictures of one size."
                )
        return found

    def every(self, step: int) -> Generator[Image, None, None]:
        """Every so many-th picture from the first on. Raises InputError when they are not all of one size."""
        if self.video is None:
            for n in range(0, len(self), step):
                yield self.read([n])[n]
        else:
            with open_reader(self.video.path) as frames:
                yield from islice(frames, 0, None, step)


def _some(count: int) -> list[int]:
    """Up to `CANDIDATES` of so many pictures, evenly spread."""
    found: list[int] = np.unique(np.linspace(0, count - 1, CANDIDATES).round().astype(int)).tolist()
    return found
