"""The scene behind the person: mattes, the empty plate, camera shake. NumPy and OpenCV; no learning.

A plate is the masked temporal median of the clip (Dance Dance Generation §3.4 averages; the median also forgets passing
shadows), on frames aligned to where the camera stood last, with the places that were never seen filled from their
surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .inpainting import fill_holes
from .types import Array, Image

SHAKE = 0.002
"""Camera motion (fraction of the picture's diagonal) below which frames are used as they are."""
SPREAD = 0.15
"""How widely the corners of a scene are spread at least: the distance of their quartiles as a fraction of each side."""
MOVING = 0.03
"""Camera motion above which one plate cannot show the scene any more."""
_REST = np.eye(2, 3, dtype=np.float32)


@dataclass(frozen=True)
class Plate:
    """The empty scene.

    image    (H, W, 3) uint8 RGB.
    seen     (H, W) float32 in 0..1: share of the frames that show the scene here; 0 where it had to be filled.
    motion   how far the camera moved, as a fraction of the picture's diagonal.
    """

    image: Image
    seen: Array
    motion: float

    @property
    def camera_moves(self) -> bool:
        return self.motion > MOVING


def guided_filter(guide: Array, source: Array, radius: int, eps: float) -> Array:
    """Edge-preserving smoothing of `source` (H, W) along the edges of `guide` (H, W, 3), both float32 in 0..1.

    He, Sun, Tang: Guided Image Filtering (ECCV 2010), Eqs. 14-16, colour guide.
    """
    box = (2 * radius + 1, 2 * radius + 1)

    def mean(x: Array) -> Array:
        return np.asarray(cv2.blur(x, box), np.float32)

    m_i, m_p = mean(guide), mean(source)
    cov_ip = mean(guide * source[..., None]) - m_i * m_p[..., None]
    outer = (guide[..., :, None] * guide[..., None, :]).reshape(*guide.shape[:2], 9)
    m_outer = np.concatenate([mean(np.ascontiguousarray(outer[..., i : i + 3])) for i in (0, 3, 6)], 2)
    sigma = m_outer.reshape(*guide.shape[:2], 3, 3) - m_i[..., :, None] * m_i[..., None, :]
    sigma[..., range(3), range(3)] += eps
    a = np.linalg.solve(sigma, cov_ip[..., None])[..., 0]
    b = m_p - (a * m_i).sum(2)
    return np.asarray((mean(a) * guide).sum(2) + mean(b), np.float32)


def refine_matte(frame: Image, coarse: Array, plate: Plate | None = None) -> Array:
    """Snap the estimator's soft mask to the picture's edges.

    Args:
        frame: (H, W, 3) uint8 RGB.
        coarse: (H, W) float32 in 0..1, the segmentation network's upsampled output.
        plate: the empty scene, aligned with the frame; where it is known it tells person from background better than
            the mask near the mask's border.

    Returns:
        (H, W) float32 in 0..1.
    """
    h, w = coarse.shape
    person = coarse > 0.5
    if not person.any():
        return np.zeros_like(coarse)
    ys, xs = np.nonzero(coarse > 0.1)
    height = int(np.ptp(ys)) + 1
    reach = max(2, round(0.012 * height))
    y0, y1 = max(0, int(ys.min()) - 4 * reach), min(h, int(ys.max()) + 4 * reach + 1)
    x0, x1 = max(0, int(xs.min()) - 4 * reach), min(w, int(xs.max()) + 4 * reach + 1)
    rgb, soft = frame[y0:y1, x0:x1], coarse[y0:y1, x0:x1]
    logit = np.log(np.clip(soft, 0.02, 0.98) / (1 - np.clip(soft, 0.02, 0.98)))
    if plate is not None:
        behind = plate.image[y0:y1, x0:x1]
        lab = [cv2.cvtColor(x, cv2.COLOR_RGB2LAB).astype(np.float32) for x in (rgb, behind)]
        # Lightness counts less: the person's own shadow changes it, and is not the person.
        difference = np.sqrt((((lab[0] - lab[1]) * (0.5, 1, 1)) ** 2).sum(2))
        difference = cv2.GaussianBlur(difference, (0, 0), 1.0)
        known = np.clip(plate.seen[y0:y1, x0:x1] * 4, 0, 1)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        near = cv2.dilate((soft > 0.5).astype(np.uint8), kernel) - cv2.erode((soft > 0.5).astype(np.uint8), kernel)
        evidence = np.clip((difference - 10) / 8, -0.7, 1.0)
        logit = logit + near * known * 2.0 * np.where(evidence < 0, evidence * (soft < 0.8), evidence)
    probability = np.asarray(1 / (1 + np.exp(-logit)), np.float32)
    alpha = guided_filter(rgb.astype(np.float32) / 255, probability, max(2, reach), 3e-4)
    alpha = np.clip((alpha - 0.25) / 0.5, 0, 1)
    # Islands that hang on nothing are mistakes.
    count, component, stats, _ = cv2.connectedComponentsWithStats((alpha > 0.3).astype(np.uint8))
    if count > 2:
        small_ones = np.nonzero(stats[:, cv2.CC_STAT_AREA] < 0.02 * stats[1:, cv2.CC_STAT_AREA].max())[0]
        alpha[np.isin(component, small_ones)] = 0
    out = np.zeros((h, w), np.float32)
    out[y0:y1, x0:x1] = alpha
    return out


def unmix(frame: Image, matte: Array) -> Image:
    """The person's own colours under a soft matte: near its border they are continued from inside.

    Returns (H, W, 3) uint8: equal to `frame` where the matte is solid, extended outwards elsewhere, so that a moved
    part brings no rim of its old background along.
    """
    solid = (matte > 0.95).astype(np.float32)
    if solid.sum() < 20:
        return frame
    rgb = frame.astype(np.float32)
    known, weight = rgb * solid[..., None], solid
    filled, done = known.copy(), solid > 0
    for sigma in (1.5, 3.0, 6.0, 12.0):
        w = cv2.GaussianBlur(weight, (0, 0), sigma)
        c = cv2.GaussianBlur(known, (0, 0), sigma) / np.maximum(w, 1e-6)[..., None]
        new = ~done & (w > 0.02)
        filled[new] = c[new]
        done |= new
    filled[~done] = rgb[~done]
    keep = solid[..., None]
    return np.asarray(np.clip(keep * rgb + (1 - keep) * filled, 0, 255), np.uint8)


def camera_motion(first: Image, frame: Image, person: npt.NDArray[np.bool_]) -> tuple[Array | None, bool]:
    """The similarity (2, 3) float32 that carries `frame`'s pixels onto `first`'s, from background corners outside of
    `person` (H, W, the union of both persons).

    Returns:
        The transform, or None when it cannot be told; and whether the background has corners that were lost, as they
        are when the camera has moved far.
    """
    grey = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (first, frame)]
    allowed = (~person).astype(np.uint8) * 255
    corners = cv2.goodFeaturesToTrack(grey[0], 300, 0.01, 7, mask=allowed)
    if corners is None or len(corners) < 12:
        return None, False
    # In a bare room the only corners are those of the person's cast shadow: close together, and not at rest.
    height, width = grey[0].shape
    if (np.subtract(*np.quantile(corners[:, 0], (0.75, 0.25), 0)) < (SPREAD * width, SPREAD * height)).any():
        return None, False
    # Most corners look the same in the same place: the camera rests, whatever else moves (and repeats, and misleads).
    x, y = corners[:, 0].astype(int).T
    soft = [cv2.GaussianBlur(g, (0, 0), 1.5).astype(np.int16) for g in grey]
    if np.median(np.abs(soft[0] - soft[1])[y, x]) < 3:
        return _REST, False
    follow: Any = cv2.calcOpticalFlowPyrLK  # its stub does not know that the result may be left out
    moved, ok, _ = follow(grey[0], grey[1], corners, None, winSize=(21, 21), maxLevel=4)
    back, ok2, _ = follow(grey[1], grey[0], moved, None, winSize=(21, 21), maxLevel=4)
    good = (ok[:, 0] > 0) & (ok2[:, 0] > 0) & (np.abs(back - corners).max((1, 2)) < 1)
    if good.sum() < 12:
        return None, len(corners) > 40
    matrix, inliers = cv2.estimateAffinePartial2D(moved[good], corners[good], ransacReprojThreshold=1.5)
    if matrix is None or inliers.sum() < max(10, 0.4 * good.sum()):
        return None, len(corners) > 40
    return np.asarray(matrix, np.float32), False


def make_plate(frames: Sequence[Image], masks: Sequence[Array]) -> Plate:
    """The empty scene out of frames with a person in them.

    Args:
        frames: N pictures (H, W, 3) uint8 RGB of one camera; a moderate number (≤ 64) spread over the clip is best.
        masks: N coarse person masks (H, W) float32 in 0..1.
    """
    h, w = frames[0].shape[:2]
    reach = max(3, round(0.02 * h))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    person = [cv2.dilate((m > 0.15).astype(np.uint8), kernel) > 0 for m in masks]
    anchor = len(frames) // 2
    found = [camera_motion(frames[anchor], f, person[anchor] | mine) for f, mine in zip(frames, person, strict=True)]
    moves = [2 * MOVING if lost else _shift(matrix, w, h) for matrix, lost in found]
    # Frames in the middle have the most in common with the others; a camera that drifts is shown where it ended up.
    last = next((matrix for matrix, _ in reversed(found) if matrix is not None), _REST)
    back = np.asarray(cv2.invertAffineTransform(last), np.float32)
    stack, free = [], []
    for frame, mine, (matrix, _) in zip(frames, person, found, strict=True):
        onto = _then(_REST if matrix is None else matrix, back)
        if _shift(onto, w, h) > SHAKE:
            stack.append(np.asarray(cv2.warpAffine(frame, onto, (w, h), flags=cv2.INTER_LINEAR), np.uint8))
            free.append(cv2.warpAffine(mine.astype(np.uint8), onto, (w, h), borderValue=(1,)) == 0)
        else:
            stack.append(frame)
            free.append(~mine)
    seen = np.mean(free, axis=0, dtype=np.float32)
    image = np.empty_like(frames[0])
    for top in range(0, h, 64):  # in strips: the sort needs every frame at once
        rows = slice(top, top + 64)
        values = np.stack([s[rows] for s in stack]).astype(np.int16)
        ok = np.stack([f[rows] for f in free])
        values[~ok] = 1000
        values.sort(axis=0)
        count = np.maximum(ok.sum(0), 1)
        low, high = (count - 1) // 2, count // 2
        pick = [np.take_along_axis(values, n[None, ..., None].repeat(3, -1), 0)[0] for n in (low, high)]
        image[rows] = np.clip((pick[0] + pick[1] + 1) // 2, 0, 255)
    # The rim of what was never seen still shows the person: it is filled too.
    rare = (seen == 0).astype(np.uint8)
    wide = cv2.dilate(rare, kernel) > 0
    image = fill_holes(image, wide & (seen < 0.15) if len(frames) > 2 else wide)
    return Plate(image, seen, float(np.quantile(moves, 0.9)))


def seen_from(plate: Plate, frame: Image, mask: Array) -> Plate:
    """`plate` as the camera saw it that took `frame` (H, W, 3), in which a person covers `mask` (H, W) in 0..1."""
    h, w = frame.shape[:2]
    matrix, _ = camera_motion(frame, plate.image, mask > 0.15)
    if matrix is None or _shift(matrix, w, h) <= SHAKE:
        return plate
    image = cv2.warpAffine(plate.image, matrix, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Plate(np.asarray(image, np.uint8), np.asarray(cv2.warpAffine(plate.seen, matrix, (w, h))), plate.motion)


def _then(first: Array, second: Array) -> Array:
    """Two transforms (2, 3), one after the other."""
    return np.asarray(second @ np.vstack([first, [[0, 0, 1]]]), np.float32)


def _shift(matrix: Array | None, w: int, h: int) -> float:
    """How far a transform (2, 3) moves a corner of the picture, as a fraction of its diagonal."""
    if matrix is None:
        return 0.0
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]], np.float32)
    return float(np.abs(corners @ matrix.T - corners[:, :2]).max() / np.hypot(h, w))


def solid_colour(code: str, size: tuple[int, int]) -> Image:
    """A plain plate of `#rrggbb` in `size` (width, height)."""
    value = int(code.lstrip("#"), 16)
    colour = np.array([value >> 16 & 255, value >> 8 & 255, value & 255], np.uint8)
    return np.broadcast_to(colour, (size[1], size[0], 3)).copy()


def cover(image: Image, size: tuple[int, int]) -> Image:
    """`image` scaled to cover `size` (width, height) and cropped around its centre."""
    h, w = image.shape[:2]
    scale = max(size[0] / w, size[1] / h)
    new = (max(size[0], round(w * scale)), max(size[1], round(h * scale)))
    big = cv2.resize(image, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    x, y = (new[0] - size[0]) // 2, (new[1] - size[1]) // 2
    return np.ascontiguousarray(big[y : y + size[1], x : x + size[0]], np.uint8)
