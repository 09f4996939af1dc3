"""Fixtures of all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retarget.types import Silent

# As `retarget` sets it, which test modules import after torch: waiting threads that spin make torch ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Cores are shared out among the workers already.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ("reliability.report", "made_avatars")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Avatars, caches and settings of a test live in its own folder."""
    monkeypatch.setenv("RETARGET_HOME", str(tmp_path / "home"))


@pytest.fixture
def example_me() -> Path:
    """A synthetic person showing themselves: 480x640, 24 frames/s, 249 frames, silent."""
    return EXAMPLES / "me.mp4"


@pytest.fixture
def example_dance() -> Path:
    """A synthetic person dancing: 480x640, 30 frames/s, 240 frames, AAC sound."""
    return EXAMPLES / "dance.mp4"


class Counting(Silent):
    """How far a stage got."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0

    def stage(self, title: str, total: int | None = None) -> None:
        self.total = total

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.done += steps


@pytest.fixture
def counting() -> type[Counting]:
    """A listener that counts."""
    return Counting


# ------------------------------------------------------------------------------------------------ a made-up person


class Puppet:
    """A person of capsules, whose pose, matte and colours are known exactly.

    Faces the camera: the person's left is on the right of the picture.
    """

    size = (128, 160)
    """(width, height) of its pictures."""
    scale = 84.0
    """Pixels per metre."""

    def body(
        self,
        left: tuple[float, float] = (25, 25),
        right: tuple[float, float] = (25, 25),
        *,
        legs: float = 8,
        reach: tuple[float, float] = (0, 0),
        at: tuple[float, float] = (64, 76),
        scale: float = scale,
        turn: float = 0,
    ) -> np.ndarray:
        """(33, 4) float32.

        left, right: angles of upper and lower arm from hanging down, outwards, in degrees; reach: how far (m) the left
        and right wrist are before (-) or behind (+) the body; at: where the middle of the hips is; turn: about it.
        """
        p = np.zeros((33, 3))
        p[:11] = [
            (0, -0.64, -0.1), (0.015, -0.67, -0.08), (0.03, -0.67, -0.08), (0.045, -0.67, -0.08),
            (-0.015, -0.67, -0.08), (-0.03, -0.67, -0.08), (-0.045, -0.67, -0.08), (0.08, -0.65, 0), (-0.08, -0.65, 0),
            (0.025, -0.59, -0.08), (-0.025, -0.59, -0.08),
        ]  # fmt: skip
        for side, (sign, angles, z) in enumerate(((1, left, reach[0]), (-1, right, reach[1]))):
            a, b = np.radians(angles)
            c = np.radians(legs)
            shoulder, hip = np.array([sign * 0.165, -0.5, 0]), np.array([sign * 0.1, 0, 0])
            elbow = shoulder + 0.28 * np.array([sign * np.sin(a), np.cos(a), 0]) + (0, 0, z / 2)
            wrist = elbow + 0.25 * np.array([sign * np.sin(b), np.cos(b), 0]) + (0, 0, z / 2)
            along, across = np.array([sign * np.sin(b), np.cos(b), 0]), np.array([np.cos(b), -sign * np.sin(b), 0])
            knee = hip + 0.4 * np.array([sign * np.sin(c), np.cos(c), 0])
            ankle = knee + 0.4 * np.array([sign * np.sin(c), np.cos(c), 0])
            p[[11 + side, 13 + side, 15 + side]] = shoulder, elbow, wrist
            p[17 + side] = wrist + 0.08 * along - 0.025 * across
            p[19 + side] = wrist + 0.08 * along + 0.025 * across
            p[21 + side] = wrist + 0.05 * along + 0.03 * across
            p[[23 + side, 25 + side, 27 + side]] = hip, knee, ankle
            p[29 + side] = ankle + np.array([-sign * 0.01, 0.05, 0.02])
            p[31 + side] = ankle + np.array([sign * 0.06, 0.06, -0.1])
        angle = np.radians(turn)
        p[:, :2] = p[:, :2] @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        out = np.ones((33, 4), np.float32)
        out[:, :3] = p * scale + (*at, 0)
        return out

    def track(self, *bodies: np.ndarray, size: tuple[int, int] = size, details: bool = False):
        """A track of these bodies; with `details` also face meshes and hands, rigid with head and wrists."""
        from retarget.types import PoseTrack

        n = len(bodies)
        body = np.stack(bodies).astype(np.float32)
        face = np.full((n, 468, 3), np.nan, np.float32)
        hands = np.full((n, 2, 21, 3), np.nan, np.float32)
        if details:
            rng = np.random.default_rng(3)
            u = rng.uniform(-1, 1, (468, 2))
            # The eyes span the head: across, and from the eyes to the mouth downwards.
            across = (body[:, 7, :3] - body[:, 8, :3])[:, None]
            down = (body[:, [9, 10], :3].mean(1) - body[:, [2, 5], :3].mean(1))[:, None]
            face = body[:, None, 0, :3] + 0.5 * u[:, :1] * across + u[:, 1:] * down
            v = rng.uniform(0, 1, (21, 2)) - (0, 0.5)
            v[0] = 0
            for side in (0, 1):
                wrist = body[:, 15 + side, :3]
                tips = body[:, [17 + side, 19 + side], :3]
                along, wide = tips.mean(1) - wrist, tips[:, 1] - tips[:, 0]
                hands[:, side] = wrist[:, None] + v[:, :1] * along[:, None] + v[:, 1:] * wide[:, None]
        world = (body[:, :, :3] - body[:, [23, 24], :3].mean(1, keepdims=True)) / self.scale
        return PoseTrack(body, world, face.astype(np.float32), hands, size, Fraction(25))

    def with_irises(self, track):
        """A track of face meshes of 478 points: irises in the middle of the eyes' corners, 2 px in radius."""
        rim = 2 * np.array([(0, 0, 0), (1, 0, 0), (0, -1, 0), (-1, 0, 0), (0, 1, 0)], np.float32)
        eyes = [track.face[:, corners].mean(1, keepdims=True) + rim for corners in ([33, 133], [263, 362])]
        return replace(track, face=np.concatenate([track.face, *eyes], axis=1))

    def matte(self, body: np.ndarray, size: tuple[int, int] = size) -> np.ndarray:
        """(H, W) float32: exact, with edges one pixel wide."""
        return 1 - np.prod([1 - shape for shape in self.shapes(body, size).values()], axis=0, dtype=np.float32)

    def shapes(self, body: np.ndarray, size: tuple[int, int] = size) -> dict[str, np.ndarray]:
        """(H, W) float32 of each limb, torso and head by itself."""
        y, x = np.mgrid[: size[1], : size[0]].astype(np.float32) + 0.5
        p = body[:, :2]
        metre = float(np.linalg.norm(p[[11, 12]].mean(0) - p[[23, 24]].mean(0))) / 0.5
        ears = p[[7, 8]].mean(0)
        bones = {"head": (ears, ears, 0.11), "neck": (p[[11, 12]].mean(0), ears, 0.05)}
        for i in range(5):
            top, bottom = (p[a] + i / 4 * (p[b] - p[a]) for a, b in ((11, 12), (23, 24)))
            bones[f"torso{i}"] = (top, bottom, 0.07)
        for side, name in enumerate(("left", "right")):
            for part, (a, b, r) in {
                "upper_arm": (11, 13, 0.045), "lower_arm": (13, 15, 0.04), "hand": (15, 19, 0.035),
                "upper_leg": (23, 25, 0.08), "lower_leg": (25, 27, 0.055), "foot": (29, 31, 0.04),
            }.items():  # fmt: skip
                bones[f"{name}_{part}"] = (p[a + side], p[b + side], r)
        out = {}
        for name, (a, b, radius) in bones.items():
            d = b - a
            s = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(float(d @ d), 1e-6), 0, 1)
            distance = np.hypot(x - a[0] - s * d[0], y - a[1] - s * d[1])
            out[name] = np.clip(radius * metre - distance + 0.5, 0, 1).astype(np.float32)
        return out

    def cloth(self, seed: int = 0, size: tuple[int, int] = size, sigma: float = 1.0) -> np.ndarray:
        """(H, W, 3) uint8: a random pattern with detail of about `sigma` pixels."""
        import cv2

        noise = np.random.default_rng(seed).normal(0, 1, (size[1], size[0], 3))
        noise = cv2.GaussianBlur(noise, (0, 0), sigma) if sigma else noise
        return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)

    def picture(self, body: np.ndarray, plate: np.ndarray, seed: int = 0) -> np.ndarray:
        """(H, W, 3) uint8: the person in `cloth`, before `plate`."""
        size = plate.shape[1::-1]
        matte = self.matte(body, size)[..., None]
        return np.round(self.cloth(seed, size) * matte + plate * (1 - matte)).astype(np.uint8)

    def gathered(self, *bodies: np.ndarray, details: bool = False, size: tuple[int, int] = size):
        """References that show the puppet in these poses, each in another pattern of cloth, before one plate."""
        from retarget.background import Plate
        from retarget.references import Gathered

        plate = self.cloth(99, size, 3.0)
        track = self.track(*bodies, size=size, details=details)
        pictures = np.stack([self.picture(b, plate, seed=k) for k, b in enumerate(bodies)])
        return Gathered(
            frames=np.stack([self.cloth(k, size) for k in range(len(bodies))]),
            mattes=np.stack([self.matte(b, size) for b in bodies]),
            windows=tuple(replace(track.select([k]), missed=()) for k in range(len(bodies))),
            plate=Plate(plate, np.ones(plate.shape[:2], np.float32), 0.0),
            track=track,
            fps=Fraction(25),
            picked=tuple(10 * k for k in range(len(bodies))),
            pictures=pictures,
        )


@pytest.fixture(scope="session")
def puppet() -> Puppet:
    return Puppet()


# ------------------------------------------------------------------------------------------------ true runs, shared


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for avatars and cached poses that true runs share."""
    return tmp_path_factory.mktemp("shared") / "home"


@pytest.fixture
def in_shared_home(shared_home: Path, _home: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets a test use what other true runs have computed."""
    monkeypatch.setenv("RETARGET_HOME", str(shared_home))
    return shared_home


@pytest.fixture(scope="session")
def short_me(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every sixth frame of `example_me` in small: 180x240, 24000/1001 frames/s, 42 frames, silent."""
    from retarget.video import open_reader, open_writer

    out = tmp_path_factory.mktemp("clips") / "short me.mp4"
    with (
        open_reader(EXAMPLES / "me.mp4", size=(180, 240)) as frames,
        open_writer(out, (180, 240), Fraction(24000, 1001), crf=8) as write,
    ):
        for i, frame in enumerate(frames):
            if i % 6 == 0:
                write(frame)
    return out


@pytest.fixture(scope="session")
def tuned_avatar(shared_home: Path, short_me: Path) -> Iterator:
    """An avatar of three frames of `short_me`, fine-tuned for three steps."""
    from retarget.personalize import personalize

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETARGET_HOME", str(shared_home))
        yield personalize(short_me, frames=3, steps=3, name="tuned", device="cpu")


# ------------------------------------------------------------------------------------------------ processes to kill


class Nursery:
    """Starts processes that run Python code and have everything imported already (`nursery.py`)."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=EXAMPLES.parent,
        )  # fmt: skip
        assert self._told() == "ready"

    def _told(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, code: str, kill_after: float | None = None) -> int:
        """Run `code` to its end, or kill it (SIGKILL) after so many seconds. Its exit status, negative for a signal."""
        assert self.process.stdin is not None
        self.log.unlink(missing_ok=True)
        print(json.dumps([code, str(self.log), kill_after]), file=self.process.stdin, flush=True)
        return os.waitstatus_to_exitcode(int(self._told()))

    @property
    def said(self) -> str:
        """What the last one printed."""
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where processes are started to be killed. POSIX only."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.process.stdin.close()
    made.process.wait(60)
    made.process.stdout.close()
