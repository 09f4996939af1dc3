"""What the tests of this folder share: small broken and odd files, and commands as a person types them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reliability.fuzz import Stand, children, good_files

from retarget import errors, pose, video
from retarget.cli import main
from retarget.types import Image
from retarget.video import open_writer

CLIPS = Path(__file__).parents[3] / "shared" / "clips"


def ffmpeg(*arguments: object) -> bytes:
    """Run ffmpeg to make or look into a file of a test."""
    command = [video.ffmpeg(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout


@pytest.fixture(scope="session")
def make() -> Callable[..., bytes]:
    return ffmpeg


# ------------------------------------------------------------------------------------------------ commands


@dataclass
class Said:
    """What came of a command with --json: its exit code, the error or the result, and what it told meanwhile."""

    code: int
    error: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    told: str = ""


@pytest.fixture
def retarget(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """A command line; whatever it ends with is one sentence with a remedy, and no traceback."""

    def run(*words: object) -> Said:
        capfd.readouterr()
        code = main(["--json", *map(str, words)])
        out, told = capfd.readouterr()
        assert "Traceback" not in out + told
        last = json.loads(out.splitlines()[-1])
        error = last.pop("error", {})
        assert bool(error) == (code != 0)
        if error:
            assert error["exit_code"] == code > 1
            assert issubclass(getattr(errors, error["type"]), errors.RetargetError)
            assert error["message"].endswith((".", ")", "?"))
            assert "\n" not in error["message"]
            assert error["remedy"]
        return Said(code, error, last, told)

    return run


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[None]:
    """No process, no temporary file and no output is left when the test ends."""
    before = children()
    yield
    assert children() <= before
    left = [
        p for p in tmp_path.rglob("*") if p.name.endswith((".tmp", ".part")) or p.name.startswith((".retarget", "out."))
    ]
    assert left == []


# ------------------------------------------------------------------------------------------------ a cast


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Stand]:
    """One small good file of each kind by its suffix, and the stand-in for the pose estimator that knows the person."""
    return good_files(tmp_path_factory.mktemp("good"))


@pytest.fixture
def files(good: tuple[dict[str, Path], Stand]) -> dict[str, Path]:
    return good[0]


@pytest.fixture
def stand(good: tuple[dict[str, Path], Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in at work: everybody is found everywhere, at once."""
    monkeypatch.setattr(pose, "make_estimator", lambda options: good[1])


@pytest.fixture(scope="session")
def packed(good: tuple[dict[str, Path], Stand], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported avatar of the good video."""
    out = tmp_path_factory.mktemp("packed") / "good.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETARGET_HOME", str(out.parent / "home"))
        patch.setattr(pose, "make_estimator", lambda options: good[1])
        make = ("personalize", good[0][".mp4"], "-k", 2, "-t", 0, "--size", 64, "--name", "good", "--device", "cpu")
        for words in (make, ("avatars", "export", "good", out)):
            assert main([*map(str, words), "--quiet"]) == 0
    return out


@pytest.fixture
def avatar(packed: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """The avatar `good` in the home of the test; its folder."""
    assert main(["avatars", "import", str(packed), "--json"]) == 0
    return Path(json.loads(capfd.readouterr().out)["path"])


# ------------------------------------------------------------------------------------------------ frames that are known


def numbered(number: int, size: tuple[int, int] = (96, 64)) -> Image:
    """A grey picture that carries its number as six black or white columns, and whose upper third is darker."""
    image = np.full((size[1], size[0], 3), 128, np.uint8)
    for bit in range(6):
        image[:, bit * size[0] // 6 : (bit + 1) * size[0] // 6] = 235 if number >> bit & 1 else 60
    image[: size[1] // 3] //= 2
    return image


def number_of(image: Image) -> int:
    """The number of a picture that stands upright; -1 of any other."""
    grey = image.astype(float).mean(2)
    high, wide = grey.shape
    low = [grey[high // 2 :, int((b + 0.3) * wide / 6) : int((b + 0.7) * wide / 6)].mean() for b in range(6)]
    top = [grey[: high // 4, int((b + 0.3) * wide / 6) : int((b + 0.7) * wide / 6)].mean() for b in range(6)]
    if not all(abs(t - v / 2) < 25 for t, v in zip(top, low, strict=True)):
        return -1
    return sum(1 << bit for bit, value in enumerate(low) if value > 147)


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 numbered frames, 96x64, 25 frames/s, nearly without loss, silent."""
    out = tmp_path_factory.mktemp("counted") / "counted.mp4"
    with open_writer(out, (96, 64), Fraction(25), crf=1) as write:
        for i in range(30):
            write(numbered(i))
    return out


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips, on the machines that have it."""
    if not CLIPS.is_dir():
        pytest.skip("the real clips are not here")
    return CLIPS
