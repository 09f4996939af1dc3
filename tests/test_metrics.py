"""Metrics against hand-made cases, scikit-image, and the scoring tool."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from retarget import metrics
from retarget.errors import InputError, UsageError, VideoError
from retarget.types import Image
from retarget.video import open_reader, open_writer

TOOL = Path(__file__).parents[2] / "shared" / "score.py"
ALL = np.ones((40, 50), bool)


def noise(seed: int, shape: tuple[int, int] = (40, 50)) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def flat(value: int, shape: tuple[int, int] = (40, 50)) -> Image:
    return np.full((*shape, 3), value, np.uint8)


def smooth(seed: int) -> Image:
    return cv2.normalize(
        cv2.GaussianBlur(noise(seed).astype(np.float32), (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX
    ).astype(np.uint8)


def mask(pixels: int) -> metrics.Mask:
    inside = np.zeros(40 * 50, bool)
    inside[:pixels] = True
    return inside.reshape(40, 50)


def write(path: Path, frames: list[Image]) -> Path:
    with open_writer(path, frames[0].shape[1::-1], Fraction(24), crf=4) as append:
        for frame in frames:
            append(frame)
    return path


# Pictures.


@pytest.mark.parametrize(
    "pair",
    [(noise(0), noise(1)), (smooth(0), smooth(1)), (smooth(2), np.roll(smooth(2), 1, 0)), (flat(0), flat(255))],
    ids=["noise", "smooth", "shifted", "flat"],
)
def test_agrees_with_scikit_image(pair: tuple[Image, Image]) -> None:
    truth, full = structural_similarity(*pair, channel_axis=2, full=True)
    found = metrics.ssim_map(*pair)
    np.testing.assert_allclose(found, full, atol=1e-9)
    assert metrics.ssim(found) == pytest.approx(truth, abs=1e-12)
    error = float(metrics.squared_error(*pair).mean())
    assert metrics.psnr(error) == pytest.approx(peak_signal_noise_ratio(*pair), abs=1e-5)


def test_psnr() -> None:
    assert metrics.psnr(255**2) == 0
    assert metrics.psnr(1) == pytest.approx(48.1308, abs=1e-4)
    assert metrics.psnr(0) == pytest.approx(108.1308, abs=1e-4)


def test_foreground_sees_only_what_is_inside() -> None:
    truth, inside = smooth(3), mask(1000)
    produced = truth.copy()
    produced[~inside] = 255 - produced[~inside]
    assert metrics.foreground_psnr(produced, truth, inside) == pytest.approx(108.1308, abs=1e-4)
    assert metrics.foreground_psnr(produced, truth, ALL) < 20
    far = mask(16 * 50)  # 4 rows away from what differs: no window reaches there
    assert metrics.foreground_ssim(produced, truth, far) == pytest.approx(1)
    assert metrics.foreground_ssim(produced, truth, ~inside) < 0.2
    assert metrics.foreground_psnr(flat(110), flat(100), inside) == pytest.approx(28.1308, abs=1e-4)


def test_a_small_mask_measures_nothing() -> None:
    pair = noise(0), noise(1)
    for figure in (metrics.foreground_psnr, metrics.foreground_ssim):
        assert np.isnan(figure(*pair, mask(200)))
        assert np.isfinite(figure(*pair, mask(201)))
    thin = np.zeros((40, 50), bool)
    thin[:, 10:14] = thin[:, 30:34] = True  # 320 pixels, none of them 2 inside
    assert np.isnan(metrics.foreground_sharpness(*pair, thin))


def test_sharpness() -> None:
    truth = smooth(4)
    assert metrics.foreground_sharpness(truth, truth, ALL) == 1
    assert metrics.foreground_sharpness(cv2.GaussianBlur(truth, (0, 0), 3), truth, ALL) < 0.8
    ramp = np.repeat(np.arange(0, 100, 2, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    inner = ALL.copy()
    inner[:, [0, -1]] = False  # gradients are mirrored at the borders
    assert metrics.foreground_sharpness(ramp // 2, ramp, inner) == pytest.approx(0.5)


def test_difference_mse() -> None:
    still = flat(50), flat(50)
    assert metrics.difference_mse((flat(90), flat(90)), still) == 0  # wrong, but it does not flicker
    assert metrics.difference_mse((flat(50), flat(53)), still) == 9
    assert metrics.difference_mse((flat(53), flat(50)), (flat(50), flat(53))) == 36  # no wrap-around of 8 bit


# Poses.


def body(height: float = 100) -> metrics.Map:
    """Joints on a vertical line, the first at the top; all visible."""
    out = np.zeros((33, 3))
    out[:, 1] = np.linspace(0, height, 33)
    out[:, 2] = 1
    return out


def test_pose_error() -> None:
    truth = body(200)
    moved = truth + np.array([3, 4, 0])
    assert metrics.pose_error(truth, truth) == 0
    assert metrics.pose_error(moved, truth) == pytest.approx(2.5)
    assert metrics.pose_error(None, truth) == 100
    moved[5, :2] = 1e6
    hidden = truth.copy()
    hidden[5, 2] = 0.6
    assert metrics.pose_error(moved, hidden) == pytest.approx(2.5)
    hidden[7:, 2] = 0.1
    assert np.isnan(metrics.pose_error(moved, hidden))  # 6 joints are too few
    hidden[7, 2] = 0.7
    assert np.isfinite(metrics.pose_error(moved, hidden))


def test_face_box() -> None:
    joints = np.zeros((33, 3))
    joints[:11, 0] = np.linspace(80, 120, 11)
    joints[:11, 1] = 60
    joints[:, 2] = 1
    assert metrics.face_box(joints, (400, 400)) == (72, 32, 128, 88)  # half a side: 1.3 · 40 / 2 + 2
    assert metrics.face_box(joints, (400, 70)) == (72, 32, 128, 70)
    assert metrics.face_box(joints - np.array([90, 0, 0]), (400, 400)) == (0, 32, 38, 88)
    assert metrics.face_box(joints + np.array([350, 0, 0]), (400, 400)) is None  # outside
    assert metrics.face_box(joints * (1, 1, 0.6), (400, 400)) is None  # hidden


def test_measure() -> None:
    truth = smooth(5)
    produced = truth.copy()
    produced[20:, :] = 0
    joints = body(30)
    joints[:11, :2] = np.linspace((20, 5), (26, 11), 11)
    row = metrics.measure(produced, truth, metrics.Sight(mask(750), joints, None))
    assert row["psnr"] == metrics.psnr(row["mse"])
    assert row["mse"] == pytest.approx(float((truth[20:].astype(float) ** 2).sum() / truth.size), rel=1e-6)
    assert row["fg_psnr"] > 100  # rows 0 to 14
    assert row["fg_ssim"] == pytest.approx(1)
    assert row["face_ssim"] == pytest.approx(1)
    assert row["ssim"] < 0.8
    assert row["pose_error"] == 100
    assert set(metrics.measure(produced, truth, metrics.Sight(None, None, joints))) == {"psnr", "ssim", "mse"}


def test_scores_as_dict() -> None:
    nothing = metrics.Scores(3, 4, *[float("nan")] * len(metrics.FIGURES))
    assert [f.name for f in fields(nothing)] == ["frames_produced", "frames_truth", *metrics.FIGURES]
    values = replace(nothing, psnr=20.123456).as_dict()
    assert values["psnr"] == 20.1235
    assert values["pose_error"] is None
    assert (values["frames_produced"], values["frames_truth"]) == (3, 4)


# Videos.


@pytest.fixture
def piece(example_me: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Ten frames, and their worse copy: smaller, blurred, noisy, two frames longer."""
    with open_reader(example_me, start=2, end=2.5) as reader:
        frames = list(reader)
    rng = np.random.default_rng(0)

    def worse(frame: Image) -> Image:
        small = cv2.GaussianBlur(cv2.resize(frame, (360, 480)), (0, 0), 1.2)
        return np.clip(small + rng.normal(0, 6, small.shape), 0, 255).astype(np.uint8)

    return write(tmp_path / "worse.mp4", list(map(worse, frames))), write(tmp_path / "truth.mp4", frames[:10])


def test_a_video_compared_with_itself(piece: tuple[Path, Path]) -> None:
    scores = metrics.score(piece[1], piece[1], 3)
    assert (scores.frames_produced, scores.frames_truth) == (10, 10)
    assert (scores.mse, scores.diff_mse) == (0, 0)
    assert scores.psnr == scores.fg_psnr == metrics.psnr(0)
    for figure in ("ssim", "fg_ssim", "face_ssim", "fg_sharpness"):
        assert getattr(scores, figure) == pytest.approx(1)
    assert scores.pose_error == pytest.approx(0, abs=1e-4)


@pytest.mark.skipif(not TOOL.exists(), reason="the scoring tool is not here")
@pytest.mark.parametrize("every", [1, 2])
def test_agrees_with_the_scoring_tool(piece: tuple[Path, Path], every: int) -> None:
    run = subprocess.run(
        [sys.executable, str(TOOL), *map(str, piece), "--every", str(every)], capture_output=True, text=True, check=True
    )
    truth = json.loads(run.stdout)
    assert (truth["frames_produced"], truth["frames_truth"]) == (12, 10)
    assert truth["fg_sharpness"] < 0.95  # the copy is worse in every way that is measured
    assert truth["diff_mse"] > 1
    assert truth["pose_error"] > 0
    found = metrics.score(*piece, every).as_dict()
    assert list(found) == list(truth)
    assert found == pytest.approx(truth, rel=1e-3, abs=1.5e-3)


def test_a_video_without_a_person(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    video = write(tmp_path / "a.mp4", [flat(80, (120, 120)), flat(90, (120, 120))])
    scores = metrics.score(video, video).as_dict()
    assert scores["psnr"] == pytest.approx(108.1308, abs=1e-3)
    assert scores["diff_mse"] == 0
    assert {k for k, v in scores.items() if v is None} == {
        "fg_psnr",
        "fg_ssim",
        "face_ssim",
        "fg_sharpness",
        "pose_error",
    }
    assert capfd.readouterr().err == ""  # nor does mediapipe chatter


def test_one_frame_has_no_differences(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", [flat(80, (120, 120))])
    assert np.isnan(metrics.score(video, video).diff_mse)


def test_errors(tmp_path: Path) -> None:
    tiny = write(tmp_path / "tiny.mp4", [flat(0, (6, 8))])
    with pytest.raises(UsageError, match="0th"):
        metrics.score(tiny, tiny, 0)
    with pytest.raises(VideoError, match=r"tiny\.mp4"):
        metrics.score(tiny, tiny)
    with pytest.raises(InputError, match=r"none\.mp4"):
        metrics.score(tiny, tmp_path / "none.mp4")
