"""examples/streets: the videos and label maps of made-up streets that it writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import retarget
from retarget import weights
from retarget.labels import PALETTE, read_map
from retarget.streets import opened
from retarget.video import open_reader, open_writer

EXAMPLE = Path(__file__).parent.parent / "examples" / "streets"
CLASS = {name: number for number, name in enumerate(PALETTE)}
SEED = 3
"""A street along which the camera drives, with the sky and houses in view."""


@dataclass
class Written:
    """pictures (2, 64, 128, 3) and labels (2, 64, 128) of a street, and their files."""

    video: Path
    maps: Path

    def __post_init__(self) -> None:
        with open_reader(self.video) as frames:
            self.pictures = np.stack(list(frames)).astype(float)
        self.labels = np.stack([read_map(path) for path in sorted(self.maps.iterdir())])


def generate(out: Path, count: int) -> list[Written]:
    words = [EXAMPLE, out, "--first", SEED, "--count", count, "--frames", 2, "--height", 64]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = [f"s{SEED + i:03d}" for i in range(count)]
    assert done.stdout.split() == names
    return [Written(out / "streets" / f"{name}.mp4", out / "maps" / name) for name in names]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streets")


@pytest.fixture(scope="module")
def street(out: Path) -> Written:
    return generate(out, 1)[0]


def spread(picture: np.ndarray, labels: np.ndarray) -> float:
    """How much the pixels of a class differ from its mean colour: little where labels are those of the picture."""
    same = [picture[labels == number] for number in np.unique(labels)]
    return sum(float(((pixels - pixels.mean(0)) ** 2).sum()) for pixels in same) / picture.size


def test_what_is_written(street, out):
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "maps/s003/0000.png", "maps/s003/0001.png", "streets/s003.mp4",
    ]  # fmt: skip
    assert street.pictures.shape == (2, 64, 128, 3)
    assert street.labels.shape == (2, 64, 128)
    film, maps = opened([street.video], street.maps)
    assert (len(film), film.fps, film.size) == (2, 8, (128, 64))
    assert np.array_equal(np.concatenate([maps.select([i]).classes for i in (0, 1)]), street.labels)


def test_classes_are_where_they_belong(street):
    assert street.labels.max() < len(PALETTE)
    assert (street.labels[:, -6:, 48:80] == CLASS["road"]).all()
    assert (street.labels[:, :4] == CLASS["sky"]).any()
    assert not (street.labels[:, 40:] == CLASS["sky"]).any()
    assert {CLASS["sidewalk"], CLASS["building"], CLASS["vegetation"], CLASS["car"]} <= {*np.unique(street.labels)}


def test_the_camera_moves_a_little(street):
    assert 0.8 < (street.labels[0] == street.labels[1]).mean() < 0.99
    assert 1 < np.abs(street.pictures[0] - street.pictures[1]).mean() < 30


def test_maps_belong_to_their_pictures(street):
    for i in (0, 1):
        picture, labels = street.pictures[i], street.labels[i]
        assert picture[labels == CLASS["sky"]].mean() > picture[labels == CLASS["road"]].mean() + 30
        own = spread(picture, labels)
        assert own < 0.95 * spread(picture, street.labels[1 - i])
        assert own < 0.6 * spread(picture, labels[:, ::-1])
        for shift in ((2, 0), (-2, 0), (0, 2), (0, -2)):
            assert own < 0.85 * spread(picture, np.roll(labels, shift, (0, 1)))


def test_another_run_adds_other_streets_and_leaves_what_is_there(street, out):
    files = [street.video, *sorted(street.maps.iterdir())]
    before = [path.stat().st_mtime_ns for path in files]
    _, other = generate(out, 2)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert np.abs(other.pictures - street.pictures).mean() > 15
    assert (other.labels != street.labels).mean() > 0.1
    assert spread(street.pictures[0], street.labels[0]) < 0.7 * spread(street.pictures[0], other.labels[0])


@pytest.mark.slow
@pytest.mark.usefixtures("in_shared_home")
def test_a_street_drives_by_label_maps(tmp_path):
    """With what was learned from other streets: what maps that were not seen make is the street that they are of."""
    words = [EXAMPLE, tmp_path, "--first", 1001, "--frames", 16, "--height", 128]
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
    video, maps = tmp_path / "streets" / "s1001.mp4", tmp_path / "maps" / "s1001"
    with open_reader(video) as frames:
        pictures = np.stack(list(frames)).astype(float)
    for name, times in (("known", range(10)), ("driving", range(10, 16))):
        (tmp_path / name).mkdir()
        for t in times:
            shutil.copy(maps / f"{t:04d}.png", tmp_path / name)
    with open_writer(tmp_path / "known.mp4", (256, 128), Fraction(8), crf=1) as append:
        for picture in pictures[:10]:
            append(picture.astype(np.uint8))
    street = retarget.personalize(
        tmp_path / "known.mp4",
        labels=str(tmp_path / "known"),
        model="few-shot-vid2vid",
        frames=3,
        steps=5,
        name="street",
    )
    assert street.meta.weights == weights.entry("few-shot-vid2vid-scene").sha256
    with open_reader(retarget.drive(street, tmp_path / "driving", tmp_path / "out.mp4")) as frames:
        drawn = np.stack(list(frames)).astype(float)
    assert drawn.shape == pictures[10:].shape

    def error(truth: np.ndarray) -> float:
        return float(((drawn - truth) ** 2).mean())

    right = error(pictures[10:])

    assert right < 0.7 * error(pictures[10:, :, ::-1])
    assert right < error(pictures[10:][::-1])
    assert right < ((pictures[9] - pictures[10:]) ** 2).mean()
