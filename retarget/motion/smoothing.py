"""Jitter taken out: the One-Euro filter over a track, Gaussians over one number."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from fractions import Fraction

import numpy as np

from ..pose.base import pixels_per_metre
from ..types import Array, PoseTrack
from .base import WRISTS, XY, Float, row_blocks
from .gaps import nose_of


def smooth(track: PoseTrack, strength: float) -> PoseTrack:
    """`track` without jitter: One-Euro filter (Casiez, Roussel, Vogel 2012) run forwards and backwards and averaged.

    Averaging both directions cancels the lag. Hands and face are filtered relative to wrist and nose, so that they stay
    attached. All thresholds are relative to the body's height and to seconds: neither the size of the picture nor the
    frame rate matters. Visibility stays as it is.

    Args:
        strength: 0 (untouched: the same object is returned) to 1 (strongest).
    """
    height = 1.65 * scale_of(track)
    if strength <= 0 or len(track) < 2 or not np.isfinite(height) or height <= 0:
        return track

    def filtered(values: Array, size: float = height) -> Array:
        return calmed(values, track.fps, strength, size)

    body = np.concatenate([filtered(track.body[..., :3]), track.body[..., 3:]], axis=2)
    wrists = track.body[:, WRISTS, None, :3] * XY
    hands, face = track.hands, track.face
    if np.isfinite(hands[:, :, 0, 0]).any():
        hands = np.stack([filtered(hands[:, i] - wrists[:, i]) for i in (0, 1)], axis=1)
        hands += body[:, WRISTS, None, :3] * XY
    if np.isfinite(face[:, 0, 0]).any():
        face = filtered(face - nose_of(track.body)) + nose_of(body)
    return replace(track, body=body, world=filtered(track.world, 1.65), hands=hands, face=face)


def scale_of(track: PoseTrack) -> float:
    """The track's median of `pixels_per_metre`; NaN when nobody was found."""
    scales = pixels_per_metre(track)
    scales = scales[np.isfinite(scales)]
    return float(np.median(scales)) if len(scales) else float("nan")


def calmed(values: Array, fps: Fraction, strength: float, size: float) -> Array:
    """Points (T, ..., 3) of a body of height `size`, filtered over time."""
    strength = min(float(strength), 1.0)
    return _one_euro(values, float(fps), lowest=0.7 / strength, beta=7.0 / strength / size)


def _one_euro(values: Array, fps: float, lowest: float, beta: float, derivative_cutoff: float = 1.0) -> Array:
    """The One-Euro filter over time, forwards and backwards, averaged. `values`: (T, ..., D) points; NaN restarts it.

    The cut-off is `lowest` + `beta` · speed (eq. 5), in Hz; the speed is the point's, the same for its D coordinates.
    """
    there = _OneEuro(values.shape[1:], fps, lowest, beta, derivative_cutoff)
    back = copy(there)
    blocks, begun = list(row_blocks(len(values), 1024)), []
    for rows in blocks:
        begun.append(copy(there))
        if rows != blocks[-1]:
            for now in values[rows]:
                there(now)
    out = np.empty(values.shape, np.float32)
    for rows, there in zip(reversed(blocks), reversed(begun), strict=True):  # forwards again, with little memory
        forwards = [there(now) for now in values[rows]]
        for i, one in zip(reversed(range(len(values))[rows]), reversed(forwards), strict=True):
            out[i] = (one + back(values[i])) / 2
    return out


class _OneEuro:
    """The filter in one direction, a picture at a time."""

    def __init__(
        self, shape: tuple[int, ...], fps: float, lowest: float, beta: float, derivative_cutoff: float
    ) -> None:
        self._fps, self._lowest, self._beta = fps, lowest, beta
        self._slow = _alpha(np.asarray(derivative_cutoff), fps)
        self._last: Float = np.full(shape, np.nan)
        self._slope: Float = np.zeros(shape)

    def __call__(self, values: Array) -> Float:
        now, last = values.astype(np.float64), self._last
        fresh = ~np.isfinite(last)
        step = np.where(fresh, 0.0, (now - np.where(fresh, 0.0, last)) * self._fps)
        slope = self._slope + self._slow * (np.nan_to_num(step) - self._slope)
        self._slope = np.where(fresh | ~np.isfinite(step), 0.0, slope)
        speed = np.linalg.norm(self._slope, axis=-1, keepdims=True)
        alpha = _alpha(self._lowest + self._beta * speed, self._fps)
        self._last = np.where(fresh | ~np.isfinite(now), now, last + alpha * (now - last))
        return self._last


def _alpha(cutoff: Float, fps: float) -> Float:
    """The smoothing factor of a cut-off frequency (eq. 6)."""
    return 1 / (1 + fps / (2 * np.pi * cutoff))


def gauss(values: Float, sigma: float) -> Float:
    """(T,) Gaussian smoothing, the ends held."""
    reach = max(1, round(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")
