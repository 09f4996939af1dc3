"""The main job on true videos, with the true pose estimator, through the command line and from Python."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import retarget
from retarget import video
from retarget.avatar import Avatar, avatar_names
from retarget.cli import main
from retarget.errors import NobodyFound
from retarget.pose import estimate, estimate_images, save_motion
from retarget.types import Image
from retarget.video import open_reader, open_writer, probe, read_metadata

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_shared_home")]

EVAL = Path(__file__).parents[2] / "shared" / "clips" / "eval"
Out = pytest.CaptureFixture[str]


def read(path: Path, **options: Any) -> list[Image]:
    with open_reader(path, **options) as frames:
        return list(frames)


def psnr(a: np.ndarray, b: np.ndarray, inside: np.ndarray | None = None) -> float:
    error = (a.astype(float) - b) ** 2
    return float(10 * np.log10(255**2 / max(1e-3, float((error if inside is None else error[inside]).mean()))))


def run(capsys: Out, *words: object) -> tuple[int, list[dict[str, Any]]]:
    """A command with --json: its exit code and what it said."""
    capsys.readouterr()
    code = main([*map(str, words), "--json", "--quiet"])
    said = capsys.readouterr()
    return code, [json.loads(line) for line in (said.out + said.err).splitlines()]


# ------------------------------------------------------------------------------------------------ personalize


def test_the_avatar_is_complete(tuned_avatar: Avatar) -> None:
    avatar = Avatar.load("tuned")
    assert avatar == tuned_avatar
    assert avatar.size == (180, 240)
    assert avatar.fps == Fraction(24000, 1001)
    assert avatar.meta.frames == len(avatar.meta.extra["picked"]) == 3
    preview = cv2.imread(str(avatar.preview))
    assert preview.shape[0] == 1280
    stored = avatar.tensors()
    # The person is cut out, somewhere between a toe and the whole picture, and the plate shows what is behind.
    share = (stored["mattes"] > 127).mean((1, 2))
    assert (share > 0.05).all()
    assert (share < 0.5).all()
    assert (stored["seen"] > 0).mean() > 0.8
    quality = avatar.meta.quality
    assert quality["fg_psnr"] >= quality["fg_psnr_before"] - 1e-3
    assert quality["fg_ssim"] >= quality["fg_ssim_before"] - 5e-3  # trust goes by the loss


def test_driving_by_the_own_video_beats_copying(tuned_avatar: Avatar, short_me: Path, tmp_path: Path) -> None:
    out = retarget.drive(tuned_avatar, short_me, tmp_path / "self.mp4", align="none", smooth=0.0)
    info = probe(out)
    assert (info.width, info.height, info.frames, info.fps) == (180, 240, 42, Fraction(24000, 1001))
    made, truth = read(out), read(short_me)
    picked = tuned_avatar.meta.extra["picked"]
    ours, copied = [], []
    for i in range(0, 42, 2):
        if i in picked:
            continue
        ours.append(psnr(made[i], truth[i]))
        # The best that any of the three pictures could do.
        copied.append(max(psnr(truth[k], truth[i]) for k in picked))
    assert np.mean(ours) > np.mean(copied) + 1
    assert np.mean(np.array(ours) > copied) > 0.8


def test_a_photo_is_enough(short_me: Path, tmp_path: Path, capsys: Out) -> None:
    photo = tmp_path / "photo.png"
    (frame, *_) = read(short_me)
    cv2.imwrite(str(photo), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    code, said = run(capsys, "personalize", photo, "-k", 1, "-t", 1, "--size", 160)
    assert code == 0, said
    assert said[-1]["name"] == "photo"
    assert said[-1]["size"] == [160, 214]
    assert said[-1]["frames"] == 1
    motion = save_motion(estimate(short_me), tmp_path / "motion.npz")
    code, said = run(
        capsys, "drive", "--source", motion, "--out", tmp_path / "o.mp4", "--align", "none", "--smooth", 0, "--end", 0.1
    )
    assert code == 0, said
    made = read(tmp_path / "o.mp4")
    assert len(made) == 3
    assert psnr(made[0], cv2.resize(frame, (160, 214), interpolation=cv2.INTER_AREA)) > 20


# ------------------------------------------------------------------------------------------------ drive


def test_another_persons_dance(tuned_avatar: Avatar, example_dance: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "out.mp4"
    words = ("drive", "--avatar", "tuned", "--source", example_dance, "--out", out, "--end", 1)
    code, said = run(capsys, *words)
    assert code == 0, said
    assert said == [{"out": str(out), "avatar": "tuned", "avatar_id": tuned_avatar.id}]
    info = probe(out)
    assert (info.width, info.height, info.frames, info.fps) == (180, 240, 30, Fraction(30))
    assert info.has_audio
    assert "Synthetic media" in read_metadata(out)["comment"]
    assert tuned_avatar.id in read_metadata(out)["comment"]
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["out.mp4"]
    # The avatar's person, found again where the motion says: on the own floor, about as large as in the own video.
    track = estimate(out)
    assert not track.missed
    body, measured = track.body[:, :, 1], tuned_avatar.tensors()["track_body"][:, :, 1]
    assert np.ptp(body, axis=1).mean() == pytest.approx(np.ptp(measured, axis=1).mean(), rel=0.25)
    assert np.median(body[:, 29:].max(1)) == pytest.approx(np.median(measured[:, 29:].max(1)), abs=0.08 * 240)
    # In the own room: what is far from every person's place is the plate.
    plate = tuned_avatar.tensors()["plate"]
    assert psnr(read(out)[0][:30, :30], plate[:30, :30]) > 24

    # It is there already: only with --yes.
    before = out.read_bytes()
    code, said = run(capsys, *words)
    assert code == 2
    assert "exists already" in json.dumps(said)
    assert out.read_bytes() == before


def test_options_of_the_command_line(tuned_avatar: Avatar, example_dance: Path, tmp_path: Path, capsys: Out) -> None:
    source = ("drive", "--avatar", tuned_avatar.path, "--source", example_dance, "--end", 0.5, "--size", 160)
    code, said = run(
        capsys, *source, "--out", tmp_path / "a.mp4", "--start", 0.2, "--compare", "--no-audio", "--watermark",
        "--background", "#00ff00", "--output-smooth", 0.3,
    )  # fmt: skip
    assert code == 0, said
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.frames) == (160 + 160, 214, 9)
    assert not info.has_audio
    picture = read(tmp_path / "a.mp4")[0]
    np.testing.assert_allclose(picture[5:20, 170:190].mean((0, 1)), (0, 255, 0), atol=12)

    code, said = run(capsys, *source, "--out", tmp_path / "a.webm", "--end", 0.1, "--background", "transparent")
    assert code == 0, said
    command = [video.ffmpeg(), "-v", "error", "-c:v", "libvpx-vp9", "-i", str(tmp_path / "a.webm")]
    decoded = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgba", "pipe:1"], capture_output=True, check=True
    )
    alpha = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, 214, 160, 4)[..., 3]
    assert len(alpha) == 3
    assert (alpha < 10).mean() > 0.5
    assert (alpha > 245).mean() > 0.05
    assert read_metadata(tmp_path / "a.webm")["synthetic_media"] == "true"


def test_the_drivers_own_scene(tuned_avatar: Avatar, example_dance: Path, tmp_path: Path) -> None:
    out = retarget.drive(tuned_avatar, example_dance, tmp_path / "o.mp4", background="source", end=0.5, align="none")
    made, driver = read(out)[0], read(example_dance, end=0.1, size=(180, 240))[0]
    corner = (slice(0, 60), slice(0, 40))
    assert psnr(made[corner], driver[corner]) > 24
    assert psnr(made[corner], tuned_avatar.tensors()["plate"][corner]) < psnr(made[corner], driver[corner]) - 3


# ------------------------------------------------------------------------------------------------ what cannot be


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A room with nobody in it."""
    with open_writer(tmp_path / "empty.mp4", (160, 120), Fraction(25)) as write:
        for _ in range(6):
            write(np.full((120, 160, 3), 120, np.uint8))
    return tmp_path / "empty.mp4"


@pytest.mark.reliability("2. Bad input", "no person in the video", "one sentence, exit 3")
def test_a_video_without_a_person(tuned_avatar: Avatar, empty: Path, tmp_path: Path, capsys: Out) -> None:
    names = avatar_names()
    for words in (
        ("personalize", empty, "-k", 1, "-t", 0),
        ("drive", "--avatar", "tuned", "--source", empty, "--out", tmp_path / "o.mp4"),
    ):
        code, said = run(capsys, *words)
        assert code == NobodyFound.exit_code
        assert "No person was found in empty.mp4" in json.dumps(said)
    assert not (tmp_path / "o.mp4").exists()
    assert avatar_names() == names


@pytest.mark.reliability("2. Bad input", "K is more than the frames of the video", "one sentence, exit 3")
def test_more_pictures_than_the_video_has(short_me: Path, tmp_path: Path, capsys: Out) -> None:
    frames = read(short_me, end=0.15)
    assert len(frames) == 4
    with open_writer(tmp_path / "few.mp4", (180, 240), Fraction(25)) as write:
        for frame in frames:
            write(frame)
    code, said = run(capsys, "personalize", tmp_path / "few.mp4", "-k", 5, "-t", 0)
    assert code == NobodyFound.exit_code
    assert "only 4 frames, fewer than the 5" in json.dumps(said)
    assert "few" not in avatar_names()


# ------------------------------------------------------------------------------------------------ a real person


@pytest.mark.skipif(not (EVAL / "f13_me.mp4").exists(), reason="the real clips are not here")
def test_a_real_person(tmp_path: Path) -> None:
    me, truth = EVAL / "f13_me.mp4", EVAL / "f13_drive.mp4"
    avatar = retarget.personalize(me, frames=3, steps=0, size=200, name="real")
    out = retarget.drive(avatar, truth, tmp_path / "o.mp4", align="none", smooth=0.0, end=1.0)
    made, true = read(out), read(truth, end=1.0, size=avatar.size)
    assert len(made) == len(true)
    stored = avatar.tensors()
    some = range(0, len(true), 4)
    references = stored["pose_body"]
    ours, copied = [], []
    for i, (track, mask) in zip(some, estimate_images([true[i] for i in some]), strict=True):
        nearest = np.abs(references[:, 11:, :2] - track.body[0, 11:, :2]).sum((1, 2)).argmin()
        ours.append(psnr(made[i], true[i], mask > 0.5))
        copied.append(psnr(stored["frames"][nearest], true[i], mask > 0.5))
    assert np.mean(ours) > np.mean(copied) + 0.5
