"""Long videos: written in segments, from which an interrupted run can go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import folders
from ..types import Image
from .encoding import Encoder, Film
from .joining import join
from .writing import make_film

SEGMENT = 120
"""Frames in each finished piece of a long video."""


@contextmanager
def open_segments(
    folder: Path, out: str | Path, size: tuple[int, int], fps: Fraction, *, first: int = 0, **options: Any
) -> Iterator[Segments]:
    """As `open_writer`, for long videos: finished segments are kept in `folder`, from which another run can go on.

    When the block ends well, the segments are joined without being encoded again. As they always begin at the same
    frames, a video that was made in several runs has the same frames to the bit as one made in one go.

    Args:
        folder: of the unfinished work; nobody else may use it at the same time.
        out, size, fps: as for `open_writer`.
        first: frames that the segments in `folder` should hold already, a multiple of `SEGMENT`; what goes beyond is
            deleted. When they do not hold them, everything is: see `Segments.first`.
        options: the others of `open_writer`; `metadata` may change until the block ends.

    Raises as `open_writer` does.
    """
    film = make_film(out, size, fps, **options)
    segments = Segments(folder, film, first)
    with segments:
        yield segments
    join(film, *segments.finished(), token=folder.name)


class Segments:
    """Writes a video as segments, each by an encoder of its own; while one ends, the next takes frames already.

    first  the frame to go on with: all before it are there.
    """

    def __init__(self, folder: Path, film: Film, first: int) -> None:
        self._folder, self._film = folder, film
        self._encoder: Encoder | None = None
        self._ending: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        here = {int(path.stem): path for path in folder.glob(f"[0-9]*{film.piece}")}
        if first % SEGMENT or not here.keys() >= set(range(0, first, SEGMENT)):
            first = 0
        self.first = self._next = first
        self._starts = list(range(0, first, SEGMENT))
        for start, path in here.items():
            if start >= first:
                path.unlink()

    def _path(self, start: int) -> Path:
        return self._folder / f"{start:09d}{self._film.piece}"

    @property
    def full(self) -> bool:
        """Whether the running segment has all its `SEGMENT` frames, so that it has to be cut."""
        return self._encoder is not None and self._encoder.count >= SEGMENT

    def write(self, frame: Image) -> None:
        """Append one frame."""
        if self._encoder is None:
            self._encoder = Encoder(self._film, self._folder / f".{self._next:09d}.part", self._next).__enter__()
        self._encoder.write(frame)

    def cut(self, done: Callable[[], object] = lambda: None) -> None:
        """End the running segment, if there is one. `done` is called, in another thread, when it is safely on the disk.

        Raises what went wrong with the segment before this one.
        """
        self._settle()
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        path = self._path(self._next)
        self._starts.append(self._next)
        self._next += encoder.count

        def end() -> None:
            with encoder:
                encoder.finish()
                folders.flush(encoder.path)
                os.replace(encoder.path, path)
            done()

        self._ending = self._pool.submit(end)

    def _settle(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.result()

    def finished(self) -> tuple[list[Path], list[int]]:
        """The segments, and how many frames each has."""
        counts = [b - a for a, b in pairwise([*self._starts, self._next])]
        return [self._path(start) for start in self._starts], counts

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.cut()
                self._settle()
        finally:
            if self._encoder is not None:
                self._encoder.__exit__()
            self._pool.shutdown()
