"""How close a produced picture or video is to the true one; poses and masks of videos are mediapipe's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .errors import UsageError, VideoError
from .types import Array, Image, Progress, Silent

Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float64]

SMALLEST = 200
"""Pixels; a mask of no more than that measures nothing."""
VISIBLE = 0.6
"""Joints of a lower visibility are not measured."""
FACE = slice(0, 11)
"""The joints of the head among mediapipe's 33."""
WINDOW = 7
"""Side of the windows that SSIM compares, in pixels."""


FIGURES = ("psnr", "ssim", "mse", "fg_psnr", "fg_ssim", "face_ssim", "fg_sharpness", "diff_mse", "pose_error")
"""All that is measured."""


@dataclass(frozen=True)
class Scores:
    """Figures of a produced video, means over the compared frames; NaN where no frame could be measured.

    frames_produced, frames_truth  how many frames the videos have.
    psnr, ssim, mse   of the whole frame, 8 bit RGB.
    fg_psnr, fg_ssim  inside the true person's mask.
    face_ssim         in a box around the true face.
    fg_sharpness      gradients inside the mask, produced / true: below 1 is blurred, above 1 noisy.
    diff_mse          MSE of the differences of consecutive frames (Dance Dance Generation, Table 3).
    pose_error        mean distance of the visible joints, in % of the true height (pose error of Few-shot vid2vid §4,
                      made independent of the size); 100 for a frame that shows nobody.
    """

    frames_produced: int
    frames_truth: int
    psnr: float
    ssim: float
    mse: float
    fg_psnr: float
    fg_ssim: float
    face_ssim: float
    fg_sharpness: float
    diff_mse: float
    pose_error: float

    def as_dict(self) -> dict[str, int | float | None]:
        """By name, rounded to 4 digits after the point; None in place of NaN."""
        return {k: None if np.isnan(v) else round(v, 4) for k, v in asdict(self).items()}


def score(
    produced: str | Path, truth: str | Path, every: int = 1, progress: Progress | None = None, *, people: bool = True
) -> Scores:
    """Compare two videos frame by frame, as far as both go; frames of another size are scaled to the true ones'.

    Args:
        produced, truth: the videos.
        every: look at every so many-th frame only; differences are still those of consecutive frames.
        people: whether persons are looked for; without any, nothing but whole frames is measured.

    Raises:
        InputError, VideoError: a video that cannot be read, or is smaller than a window of SSIM.
        UsageError: `every` below 1.
    """
    from .video import open_reader, probe

    progress = progress or Silent()
    if every < 1:
        raise UsageError(f"Every {every}th frame cannot be measured.", "Use 1 or more.")
    infos = probe(produced), probe(truth)
    if min(infos[1].width, infos[1].height) < WINDOW:
        raise VideoError(f"{truth} is smaller than {WINDOW} x {WINDOW} pixels.", "Use a larger video.")
    count = min(info.frames for info in infos)
    rows: list[dict[str, float]] = []
    progress.stage(f"Measuring {Path(produced).name}", count)
    with open_reader(produced) as ps, open_reader(truth) as ts, _Judge() as judge:
        nobody = None if people else Sight(None, None, None)
        before: tuple[Image, Image] | None = None
        for i, (p, t) in enumerate(islice(zip(ps, ts, strict=False), count)):
            if i % every == 0:
                p = _sized(p, t)
                row = measure(p, t, nobody or judge(p, t))
                if before is not None:
                    row["diff_mse"] = difference_mse((_sized(before[0], t), p), (before[1], t))
                rows.append(row)
            before = p, t
            progress.advance()
    values = {key: [row[key] for row in rows if not np.isnan(row.get(key, np.nan))] for key in FIGURES}
    means = {key: float(np.mean(v)) if v else float("nan") for key, v in values.items()}
    return Scores(infos[0].frames, infos[1].frames, **means)


def _sized(picture: Image, like: Image) -> Image:
    if picture.shape == like.shape:
        return picture
    return np.asarray(cv2.resize(picture, like.shape[1::-1], interpolation=cv2.INTER_AREA), np.uint8)


# ------------------------------------------------------------------------------------------------ pictures


def squared_error(produced: Image, truth: Image) -> Array:
    """(H, W, 3): the squared differences of two 8 bit pictures of one size."""
    difference = produced.astype(np.float32) - truth
    return np.asarray(difference * difference, np.float32)


def psnr(mse: float) -> float:
    """The PSNR in dB for a mean squared error of 8 bit pictures; at most 108.13 (no error at all)."""
    return float(10 * np.log10(255**2 / max(mse, 1e-6)))


def ssim_map(produced: Image, truth: Image) -> Map:
    """(H, W, 3): the structural similarity around each pixel (Wang et al. 2004, Eq. 13), channel by channel.

    As scikit-image's `structural_similarity(..., channel_axis=2, full=True)` with its defaults: uniform windows, sample
    covariance, K1 = 0.01, K2 = 0.03, mirrored borders, double precision.
    """
    x, y = produced.astype(np.float64), truth.astype(np.float64)

    def mean(values: Map) -> Map:
        return np.asarray(cv2.blur(values, (WINDOW, WINDOW), borderType=cv2.BORDER_REFLECT), np.float64)

    sample = WINDOW**2 / (WINDOW**2 - 1)
    mx, my = mean(x), mean(y)
    variances = sample * (mean(x * x + y * y) - mx * mx - my * my)
    covariance = sample * (mean(x * y) - mx * my)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mx * my + c1) * (2 * covariance + c2)
    return np.asarray(top / ((mx * mx + my * my + c1) * (variances + c2)), np.float64)


def ssim(similarity: Map) -> float:
    """The mean of an `ssim_map` without its borders, where windows reach out of the picture."""
    rim = WINDOW // 2
    return float(similarity[rim:-rim, rim:-rim].mean())


def difference_mse(produced: tuple[Image, Image], truth: tuple[Image, Image]) -> float:
    """MSE between the changes from the first to the second frame of each pair (Dance Dance Generation, Table 3)."""
    (p0, p1), (t0, t1) = produced, truth
    return float((((p1.astype(np.float32) - p0) - (t1.astype(np.float32) - t0)) ** 2).mean())


def foreground_psnr(produced: Image, truth: Image, inside: Mask) -> float:
    """PSNR in dB of the pixels `inside` (H, W); NaN when there are `SMALLEST` or fewer."""
    if inside.sum() <= SMALLEST:
        return float("nan")
    return psnr(float(squared_error(produced, truth).mean(2)[inside].mean()))


def foreground_ssim(produced: Image, truth: Image, inside: Mask) -> float:
    """SSIM of the pixels `inside` (H, W); NaN when there are `SMALLEST` or fewer."""
    return _mean_inside(ssim_map(produced, truth), inside)


def _mean_inside(similarity: Map, inside: Mask) -> float:
    return float(similarity.mean(2)[inside].mean()) if inside.sum() > SMALLEST else float("nan")


def foreground_sharpness(produced: Image, truth: Image, inside: Mask) -> float:
    """Mean gradient well `inside` (H, W), produced / true; NaN when that is `SMALLEST` or fewer pixels."""
    inner = cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) > 0
    if inner.sum() <= SMALLEST:
        return float("nan")
    shown, true = (_gradient(x)[inner].mean() for x in (produced, truth))
    return float(shown / max(true, 1e-6))


def _gradient(rgb: Image) -> Array:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


# ------------------------------------------------------------------------------------------------ poses


def face_box(body: Map, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 of a square around the face in a picture of `size` (width, height); None when it is not seen.

    Args:
        body: (33, 3) x, y in pixels and visibility.
    """
    if not body[0, 2] > VISIBLE:
        return None
    face = body[FACE, :2]
    half = 1.3 * max(np.ptp(face[:, 0]), np.ptp(face[:, 1]), 6) / 2 + 2
    x0, y0 = np.maximum((face.mean(0) - half).astype(int), 0).tolist()
    x1, y1 = np.minimum((face.mean(0) + half).astype(int), size).tolist()
    return (x0, y0, x1, y1) if x1 - x0 > 6 and y1 - y0 > 6 else None


def pose_error(produced: Map | None, truth: Map) -> float:
    """Mean distance of the joints that are visible in the truth, in % of their height; 100 when `produced` is None.

    NaN when 6 or fewer are visible.

    Args:
        produced, truth: (33, 3) x, y in pixels and visibility.
    """
    if produced is None:
        return 100.0
    seen = truth[:, 2] > VISIBLE
    if seen.sum() <= 6:
        return float("nan")
    distances = np.linalg.norm(produced[:, :2] - truth[:, :2], axis=1)[seen]
    return float(100 * distances.mean() / max(np.ptp(truth[seen, 1]), 1))


@dataclass(frozen=True)
class Sight:
    """What an estimator sees in a pair of frames; None: nobody.

    inside    (H, W) bool: the person's mask in the true frame.
    truth, produced  (33, 3) joints in pixels of the true frame, and their visibility.
    """

    inside: Mask | None
    truth: Map | None
    produced: Map | None


def measure(produced: Image, truth: Image, sight: Sight) -> dict[str, float]:
    """The figures of one frame, by their names in `Scores`; what cannot be measured is missing or NaN."""
    mse, similarity = float(squared_error(produced, truth).mean()), ssim_map(produced, truth)
    row = {"psnr": psnr(mse), "ssim": ssim(similarity), "mse": mse}
    if sight.inside is not None:
        row["fg_psnr"] = foreground_psnr(produced, truth, sight.inside)
        row["fg_ssim"] = _mean_inside(similarity, sight.inside)
        row["fg_sharpness"] = foreground_sharpness(produced, truth, sight.inside)
    if sight.truth is not None:
        if box := face_box(sight.truth, (truth.shape[1], truth.shape[0])):
            row["face_ssim"] = float(similarity[box[1] : box[3], box[0] : box[2]].mean())
        row["pose_error"] = pose_error(sight.produced, sight.truth)
    return row


class _Judge:
    """Looks at the pairs of frames of two videos, one after the other, with one mediapipe graph for each video.

    Graphs remember the frames before. Context manager.
    """

    def __init__(self) -> None:
        self._graphs: list[Any] = []
        self._thread = ThreadPoolExecutor(1)
        self._settled = False  # both graphs have said what they say when they find their first person

    def __enter__(self) -> _Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        for graph in self._graphs:
            graph.close()

    def __call__(self, produced: Image, truth: Image) -> Sight:
        from .pose.mediapipe import _quiet

        with nullcontext() if self._settled else _quiet:
            if not self._graphs:
                from mediapipe.python.solutions.pose import Pose

                self._graphs = [Pose(model_complexity=1, enable_segmentation=masks) for masks in (True, False)]
            true, shown = self._graphs
            pending = self._thread.submit(shown.process, np.ascontiguousarray(produced))
            seen, other = true.process(np.ascontiguousarray(truth)), pending.result()
        mask = seen.segmentation_mask
        size = truth.shape[1], truth.shape[0]
        sight = Sight(None if mask is None else mask > 0.5, _joints(seen, size), _joints(other, size))
        self._settled |= sight.truth is not None and sight.produced is not None
        return sight


def _joints(result: Any, size: tuple[int, int]) -> Map | None:
    if result.pose_landmarks is None:
        return None
    found = [(p.x, p.y, p.visibility) for p in result.pose_landmarks.landmark]
    return np.asarray(np.array(found) * (*size, 1), np.float64)
