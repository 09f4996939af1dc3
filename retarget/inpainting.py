"""Filling what no picture shows: tones from around, detail from elsewhere. NumPy and OpenCV; no learning.

Detail is what the picture shows a few shifts away: the shift map of He and Sun (Statistics of Patch Offsets for Image
Completion, ECCV 2012), which opencv-contrib finds, on a small copy. Gradients are copied, not colours (Pérez et al.,
Poisson Image Editing, SIGGRAPH 2003), so that neither the hole's border nor where two shifts meet shows as a seam.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from .types import Array, Image

SIDE = 320
"""Long side of the small copy that tones are interpolated on, pixels."""
DETAIL, MOST = 400, 10_000
"""The same of the one that shifts are found on; it is smaller if more pixels than that would be missing there: a matter
of seconds."""
SHIFTS = 8
"""How many shifts fill a hole at most, and the share of it that each of them has to explain."""
LEAST = 0.01
COMMON = 32
"""Colours that the small copy has more often say nothing about where a pixel was copied from."""
CYCLES, SWEEPS = 3, 10
"""Of multigrid, and of over-relaxation on each of its levels; by how much the latter overshoots."""
OVER = 1.6

Mask = npt.NDArray[np.bool_]


class ShiftMap(NamedTuple):
    """Where each pixel of a hole is copied from.

    which   (h, w) uint8: number of a shift, at each pixel, on the small copy; meaningful in the hole.
    shifts  (dy, dx) of each, in pixels of the small copy.
    """

    which: npt.NDArray[np.uint8]
    shifts: list[tuple[int, int]]


def fill_holes(image: Image, hole: Mask) -> Image:
    """Fill the pixels of `hole` (H, W) of `image` (H, W, 3) uint8 RGB; others stay as they are, but for a narrow rim.

    Tones are interpolated (`interpolated`); where the picture has something that continues what is around the hole,
    its detail is copied. Without opencv-contrib, and where nothing fits, tones are all there is.
    """
    if not hole.any():
        return image
    if hole.all():
        return np.full_like(image, 127)
    calm = interpolated(image, hole)
    found = shift_map(image, hole)
    return calm if found is None else detailed(calm, hole, found)


def shift_map(image: Image, hole: Mask) -> ShiftMap | None:
    """What opencv-contrib would fill the hole with, as shifts; None where there is no telling, or no opencv-contrib."""
    if not hasattr(cv2, "xphoto"):
        return None
    h, w = hole.shape
    size = _small(hole, min(DETAIL, round(max(h, w) * float(MOST / hole.sum()) ** 0.5)))
    lab = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)
    missing = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.02
    if not missing.any() or missing.mean() > 0.9:
        return None
    filled = np.zeros_like(lab)
    cv2.xphoto.inpaint(lab, (~missing).astype(np.uint8) * 255, filled, cv2.xphoto.INPAINT_SHIFTMAP)
    known, copied = (x.astype(np.int32) @ (1 << 16, 1 << 8, 1) for x in (lab, filled))
    known[missing] = -1
    at = np.argwhere(missing)
    colours = copied[missing]
    # Rare colours say where they came from.
    order = np.argsort(known, axis=None, kind="stable")
    first, last = (np.searchsorted(known.ravel()[order], colours, side) for side in ("left", "right"))
    guesses = []
    for n in range(COMMON):
        told = (first + n < last) & (last - first <= COMMON)
        guesses.append(np.stack(np.divmod(order[first[told] + n], size[0]), 1) - at[told])
    shifts, votes = np.unique(np.concatenate(guesses), axis=0, return_counts=True)
    shifts = shifts[np.argsort(-votes, kind="stable")][: 5 * SHIFTS]
    inside = np.pad(known, ((0, 1), (0, 1)), constant_values=-1)
    fits = np.zeros((len(shifts), len(at)), bool)
    for row, shift in zip(fits, shifts, strict=True):
        y, x = (at + shift).T
        # What lies outside of the small copy is the padding.
        y, x = np.where((y < 0) | (y > size[1]), size[1], y), np.where((x < 0) | (x > size[0]), size[0], x)
        row[:] = inside[y, x] == colours
    return _fewest(missing, at, fits, [(int(y), int(x)) for y, x in shifts])


def _fewest(missing: Mask, at: npt.NDArray[np.int64], fits: Mask, shifts: list[tuple[int, int]]) -> ShiftMap | None:
    """The pixels `at` (N, 2) by few of the shifts that fit them, (S, N); what is left goes with its neighbours."""
    which, left = np.full(missing.shape, -1), np.ones(len(at), bool)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < SHIFTS and len(shifts):
        gain = (fits & left).sum(1)
        best = int(gain.argmax())
        if gain[best] < max(4, LEAST * len(at)):
            break
        new = fits[best] & left
        which[tuple(at[new].T)] = len(chosen)
        chosen.append(shifts[best])
        left &= ~new
    if not chosen:
        return None
    told = which >= 0
    away = (~told).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    by_label = np.zeros(nearest.max() + 1, np.uint8)
    by_label[nearest[told]] = which[told]
    return ShiftMap(np.asarray(cv2.medianBlur(by_label[nearest], 5), np.uint8), chosen)


def detailed(image: Image, hole: Mask, found: ShiftMap) -> Image:
    """`image` (H, W, 3) uint8, whose hole is filled with tones, with the detail of what is shifted into it."""
    h, w = hole.shape
    ys, xs = np.nonzero(hole)
    # One pixel more on each side: what is around the hole holds its border.
    y0, y1, x0, x1 = max(0, ys.min() - 1), min(h, ys.max() + 2), max(0, xs.min() - 1), min(w, xs.max() + 2)
    part = (slice(y0, y1), slice(x0, x1))
    which = cv2.resize(found.which, (w, h), interpolation=cv2.INTER_NEAREST)[part]
    inside, colours = hole[part], image[part].astype(np.float32)
    # 0: known; 1: tones; from 2 on: copied.
    source = inside.astype(np.int16)
    zoom = (h / found.which.shape[0], w / found.which.shape[1])
    for number, shift in enumerate(found.shifts):
        at = np.nonzero(inside & (which == number))
        y, x = (n + first + round(d * z) for n, first, d, z in zip(at, (y0, x0), shift, zoom, strict=True))
        there = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        there[there] = ~hole[y[there], x[there]]
        to = tuple(n[there] for n in at)
        colours[to] = image[y[there], x[there]]
        source[to] = number + 2
    # Across seams nothing changes in what is wanted; what the colours do change by is to be undone.
    excess = np.zeros_like(colours)
    for axis in (0, 1):
        seam = np.diff(source, axis=axis) != 0
        jump = np.where(seam[..., None], np.diff(colours, axis=axis), 0)
        before, after = ((slice(None), slice(n, None if n else -1))[1 - axis :] for n in (0, 1))
        excess[before] -= jump
        excess[after] += jump
    out = image.copy()
    out[part] = np.clip(colours + solved(excess, inside), 0, 255).round()
    return out


def solved(excess: Array, inside: Mask) -> Array:
    """The correction c (H, W, 3) with Δc = `excess` in the hole `inside` (H, W), 0 elsewhere; free at the border."""
    c = np.zeros_like(excess)
    for _ in range(CYCLES):
        c += _cycle(np.where(inside[..., None], excess - 4 * (_mean(c) - c), 0), inside)
    return c


def _cycle(excess: Array, inside: Mask) -> Array:
    """`solved`, roughly: on half the resolution first, then relaxed."""
    h, w = inside.shape
    c, sweeps = np.zeros_like(excess), 20 * SWEEPS
    if min(h, w) > 16:
        pad = ((0, h % 2), (0, w % 2))
        half = ((h + 1) // 2, 2, (w + 1) // 2, 2)
        # A coarse cell's Laplacian is what flows out of its four.
        coarse = np.pad(excess, (*pad, (0, 0))).reshape(*half, 3).sum((1, 3))
        covered = np.pad(inside, pad, mode="edge").reshape(half).mean((1, 3)) > 0.5
        start = cv2.resize(_cycle(coarse, covered), (2 * half[2], 2 * half[0]), interpolation=cv2.INTER_LINEAR)
        c, sweeps = np.asarray(start[:h, :w] * inside[..., None], np.float32), SWEEPS
    even = np.add.outer(np.arange(h), np.arange(w)) % 2 == 0
    for _ in range(sweeps):
        for cells in (inside & even, inside & ~even):
            c += np.where(cells[..., None], OVER * (_mean(c) - c - excess / 4), 0)
    return c


def _mean(c: Array) -> Array:
    """Of each pixel's four neighbours."""
    e = np.pad(c, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return np.asarray((e[:-2, 1:-1] + e[2:, 1:-1] + e[1:-1, :-2] + e[1:-1, 2:]) / 4, np.float32)


def _small(hole: Mask, side: int) -> tuple[int, int]:
    """Width and height of a small copy."""
    h, w = hole.shape
    scale = min(1.0, side / max(h, w))
    return max(4, round(w * scale)), max(4, round(h * scale))


def interpolated(image: Image, hole: Mask) -> Image:
    """Fill the pixels of `hole` (H, W) with tones of their surroundings.

    Each pixel is interpolated between the nearest known ones to its left and right, and between those above and below;
    the direction whose two ends look alike counts most: floors go on sideways, door frames downwards. What neither
    reaches is inpainted. Done on a small copy: there is no fine detail in it.
    """
    h, w = hole.shape
    size = _small(hole, SIDE)
    weight = cv2.resize((~hole).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(image.astype(np.float32) * ~hole[..., None], size, interpolation=cv2.INTER_AREA)
    missing = weight < 0.5
    known = np.clip(small / np.maximum(weight, 1e-3)[..., None], 0, 255)
    # Ends are averaged over a few pixels, so that noise draws no streaks.
    soft = cv2.GaussianBlur(np.where(missing[..., None], 0, known), (0, 0), 2.0)
    around = cv2.GaussianBlur((~missing).astype(np.float32), (0, 0), 2.0)
    ends = soft / np.maximum(around, 1e-3)[..., None]
    rows, row_trust = _between(ends, missing)
    columns, column_trust = (x.swapaxes(0, 1) for x in _between(ends.swapaxes(0, 1), missing.T))
    trust = row_trust + column_trust
    mixed = (rows * row_trust[..., None] + columns * column_trust[..., None]) / np.maximum(trust, 1e-6)[..., None]
    nothing = missing & (trust < 1e-3)
    filled = np.where(missing[..., None], mixed, known).astype(np.uint8)
    if nothing.any():
        filled = np.asarray(cv2.inpaint(filled, nothing.astype(np.uint8), 3, cv2.INPAINT_TELEA), np.uint8)
    calm = cv2.GaussianBlur(filled, (0, 0), 1.5)
    filled = np.where(missing[..., None], calm, filled).astype(np.uint8)
    big = cv2.resize(filled, (w, h), interpolation=cv2.INTER_LINEAR)
    mix = np.maximum(cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 1.5), hole)[..., None]
    return np.asarray(np.clip(image * (1 - mix) + big * mix, 0, 255), np.uint8)


def _between(image: Array, missing: Mask) -> tuple[Array, Array]:
    """Each missing pixel interpolated between the nearest known ones to its left and right.

    Returns the picture (H, W, 3) float32, and how far to trust it, (H, W): more where the two ends look alike and are
    near; 0 where one is outside of the picture.
    """
    h, w = missing.shape
    x = np.broadcast_to(np.arange(w), (h, w))
    left = np.maximum.accumulate(np.where(missing, -1, x), axis=1)
    right = np.minimum.accumulate(np.where(missing, w, x)[:, ::-1], axis=1)[:, ::-1]
    both = (left >= 0) & (right < w)
    row = np.arange(h)[:, None]
    a, b = image[row, np.clip(left, 0, w - 1)], image[row, np.clip(right, 0, w - 1)]
    share = ((x - left) / np.maximum(right - left, 1))[..., None]
    alike = np.exp(-np.abs(a - b).mean(2) / 12)
    trust = both * (alike + 0.02) / np.maximum(right - left, 1)
    return (a * (1 - share) + b * share).astype(np.float32), trust.astype(np.float32)
