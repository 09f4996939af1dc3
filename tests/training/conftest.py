"""A small world to train on: puppets on film, an estimator that knows them, and the corpus that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

FPS = Fraction(5)


class Inline:
    """A pool that does everything at once, in this process: what a test replaces is replaced there, too."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None:
        pass


@dataclass
class Film:
    """Clips of puppets, and what is known of them.

    shown  clip → its bodies; estimated: the names of the clips that the estimator was asked about.
    """

    puppet: Any
    shown: dict[str, list[np.ndarray]] = field(default_factory=dict)
    pictures: dict[str, list[np.ndarray]] = field(default_factory=dict)
    estimated: list[str] = field(default_factory=list)
    lost: dict[str, list[int]] = field(default_factory=dict)
    """Clip → frames in which the estimator sees nobody."""

    def bodies(self, seed: int, count: int = 8, scale: float = 84.0) -> list[np.ndarray]:
        """A dance."""
        rng = np.random.default_rng(seed)
        a, b, c, d = rng.uniform(15, 60, 4)
        return [
            self.puppet.body(
                (a + 9 * i, b + 9 * i), (c, d + 5 * i), legs=6 + i % 3, at=(62 + i % 4, 78), scale=scale
            )
            for i in range(count)
        ]  # fmt: skip

    def picture(self, body: np.ndarray, seed: int, size: tuple[int, int] = (128, 160)) -> np.ndarray:
        matte = self.puppet.matte(body, size)[..., None]
        cloth, plate = self.puppet.cloth(seed, size, 2.5), self.puppet.cloth(900 + seed, size, 5.0)
        return np.round(cloth * matte + plate * (1 - matte)).astype(np.uint8)

    def shoot(
        self, folder: Path, name: str, seed: int = 0, *, person: int | None = None, count: int = 8,
        scale: float = 84.0, size: tuple[int, int] = (128, 160),
    ) -> Path:  # fmt: skip
        """Film a dance: its seed decides the motion, `person` (by default the same) cloth and scene."""
        from retarget.video import open_writer

        path = folder / f"{name}.mp4"
        bodies = self.bodies(seed, count, scale)
        self.shown[name] = bodies
        self.pictures[name] = [self.picture(b, seed if person is None else person, size) for b in bodies]
        with open_writer(path, size, FPS, crf=4) as write:
            for picture in self.pictures[name]:
                write(picture)
        return path

    def track(self, name: str, size: tuple[int, int]) -> Any:
        track = self.puppet.track(*self.shown[name], size=size, details=True)
        for i in self.lost.get(name, []):
            for points in (track.body, track.face, track.hands):
                points[i] = np.nan
        return replace(track, fps=FPS, missed=tuple(self.lost.get(name, [])))

    # What takes the place of the estimator.

    def estimate(self, path: Path, *_: Any, **__: Any) -> Any:
        self.estimated.append(path.stem)
        size = self.pictures[path.stem][0].shape[1::-1]
        return self.track(path.stem, size)

    def estimate_images(self, images: Sequence[np.ndarray], *_: Any) -> list[tuple[Any, np.ndarray]]:
        name = self.estimated[-1]
        found = []
        for image in images:
            errors = [np.abs(cv2.resize(p, image.shape[1::-1]).astype(int) - image).mean() for p in self.pictures[name]]
            body = self.shown[name][int(np.argmin(errors))]
            size = self.pictures[name][0].shape[1::-1]
            matte = self.puppet.matte(body, size)
            found.append((None, cv2.resize(matte, image.shape[1::-1])))
        return found


def visible(folder: Path) -> list[str]:
    """The names of the files in a folder, but for the lock."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


@pytest.fixture(scope="session")
def films(puppet) -> Film:
    return Film(puppet)


def replaced(patch: pytest.MonkeyPatch, film: Film) -> None:
    """The estimator is the film's, and everything happens in this process."""
    patch.setattr("retarget.pose.estimate", film.estimate)
    patch.setattr("retarget.pose.estimate_images", film.estimate_images)
    patch.setattr("concurrent.futures.ProcessPoolExecutor", Inline)


@pytest.fixture
def film(puppet, monkeypatch: pytest.MonkeyPatch) -> Film:
    film = Film(puppet)
    replaced(monkeypatch, film)
    return film


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are drawn in this process."""
    monkeypatch.setattr("retarget.training.tasks.ProcessPoolExecutor", Inline)


PEOPLE: Mapping[str, tuple[str, ...]] = {"anna": ("a", "b"), "bert": ("a",), "carl": ("a", "b"), "dora": ("a", "b")}
"""Persons of the corpus and their clips; dora is for validation."""


@pytest.fixture(scope="session")
def corpus_folder(puppet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three persons to train on and one to validate with, in pictures of 64 × 80 pixels, 8 frames a clip."""
    from retarget.training.prepare import PrepareOptions, prepare

    folder = tmp_path_factory.mktemp("world")
    film = Film(puppet)
    rows = ["clip,person,split"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETARGET_HOME", str(folder / "home"))
        replaced(patch, film)
        (folder / "clips").mkdir()
        for number, (person, takes) in enumerate(PEOPLE.items()):
            for take, letter in enumerate(takes):
                film.shoot(folder / "clips", f"{person}_{letter}", 10 * number + take, person=number)
                rows.append(f"{person}_{letter},{person},{'val' if person == 'dora' else 'train'}")
        (folder / "table.csv").write_text("\n".join(rows))
        prepare([folder / "clips"], folder / "corpus", PrepareOptions(side=64, fps=5, table=str(folder / "table.csv")))
    return folder / "corpus"
