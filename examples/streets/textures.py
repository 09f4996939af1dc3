"""Noise, colours, shapes and masonry: what textures are made of."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from drawing import Array, Colour, Rng

Pixel = tuple[int, int]


def noise(rng: Rng, shape: tuple[int, int], cells: tuple[float, float], octaves: int = 3) -> Array:
    """(h, w) float32 of about −1 … 1 that repeats; cells (h, w): texels per cell of the coarsest octave."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        n, m = (max(2, round(s / c * 2**octave)) for s, c in zip(shape, cells, strict=True))
        if n > shape[0] or m > shape[1]:
            break
        grid = cv2.copyMakeBorder(rng.uniform(-1, 1, (n, m)).astype(np.float32), 2, 2, 2, 2, cv2.BORDER_WRAP)
        h, w = round(shape[0] * (n + 4) / n), round(shape[1] * (m + 4) / m)
        big = cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)
        y, x = (h - shape[0]) // 2, (w - shape[1]) // 2
        total += big[y : y + shape[0], x : x + shape[1]] * 0.6**octave
    return total


def rgba(colours: Array) -> Array:
    """(h, w, 3) of any type → (h, w, 4) uint8, opaque."""
    return np.dstack([colours.clip(0, 255).astype(np.uint8), np.full(colours.shape[:2], 255, np.uint8)])


def masked(pixels: Array, mask: Array) -> Array:
    """RGBA times a mask (h, w) of 0 … 255."""
    return np.asarray((pixels * (mask[..., None] / 255.0)).astype(np.uint8))


def cut_out(pixels: Array, outline: Sequence[tuple[float, float]] | Array) -> Array:
    """RGBA with nothing outside of a polygon (N, 2) in shares of width and height."""
    h, w = pixels.shape[:2]
    mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(mask, [np.round(np.asarray(outline) * (w, h) * 16 - 8).astype(np.int32)], (255,), cv2.LINE_AA, 4)
    return masked(pixels, mask)


def hue(rng: Rng, saturation: tuple[float, float], value: tuple[float, float], at: float | None = None) -> Array:
    """A random RGB colour (3,), 0 … 255; at: its hue, 0 … 1."""
    h = rng.random() if at is None else (at + rng.normal(0, 0.02)) % 1
    hsv = np.array([[[h * 360, rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255)


# ------------------------------------------------------------------------------------------------ shapes in RGBA


def solid(colour: Colour) -> tuple[float, float, float, float]:
    """RGBA, opaque."""
    return (float(colour[0]), float(colour[1]), float(colour[2]), 255.0)


def line(art: Array, start: Pixel, end: Pixel, colour: Colour, thick: int, *, smooth: bool = True) -> None:
    cv2.line(art, start, end, solid(colour), thick, cv2.LINE_AA if smooth else cv2.LINE_8)


def rectangle(art: Array, corner: Pixel, opposite: Pixel, colour: Colour) -> None:
    cv2.rectangle(art, corner, opposite, solid(colour), -1)


def disc(art: Array, centre: Pixel, radius: int, colour: Colour) -> None:
    cv2.circle(art, centre, radius, solid(colour), -1, cv2.LINE_AA)


def ellipse(art: Array, centre: Pixel, axes: Pixel, colour: Colour, degrees: float = 0.0) -> None:
    cv2.ellipse(art, centre, axes, degrees, 0, 360, solid(colour), -1, cv2.LINE_AA)


def polygon(art: Array, points: Sequence[tuple[float, float]] | Array, colour: Colour) -> None:
    cv2.fillPoly(art, [np.round(points).astype(np.int32)], solid(colour), cv2.LINE_AA)


# ------------------------------------------------------------------------------------------------ surfaces


def surface(rng: Rng, kind: str, base: Colour, size: tuple[float, float], texels: float) -> Array:
    """Masonry (h, w, 3) float of size (width, height) in metres; kind: brick, panel, stone, planks or plain."""
    w, h = (max(4, round(s * texels)) for s in size)
    rough = noise(rng, (h, w), (texels * 3, texels * 2), 4) * 0.05 + 0.02 * rng.standard_normal((h, w), np.float32)
    y, x = (np.arange(h)[:, None] / texels).astype(np.float32), (np.arange(w)[None] / texels).astype(np.float32)
    if kind == "brick":
        row = np.floor(y / 0.16)
        brick = np.floor(x / 0.36 + 0.5 * (row % 2))
        rough += 0.1 * np.sin(brick * 12.9 + row * 78.2) * np.sin(brick * 3.7 - row * 5.1)
        joint = (y % 0.16 < 0.03) | ((x / 0.36 + 0.5 * (row % 2)) % 1 < 0.08)
        rough = np.where(joint, 0.22, rough)
    elif kind == "panel":
        rough -= 0.2 * ((y % 3.0 < 0.05) | (x % 3.0 < 0.05))
    elif kind == "stone":
        row = np.floor(y / 0.6)
        block = x / 1.1 + 0.5 * (row % 2)
        rough += 0.06 * np.sin(np.floor(block) * 12.9 + row * 78.2)
        rough -= 0.15 * ((y % 0.6 < 0.04) | (block % 1 < 0.04))
    elif kind == "planks":
        rough += 0.12 * np.sin(np.floor(x / 0.16) * 7.7) - 0.35 * (x % 0.16 < 0.025)
    stain = noise(rng, (1, w), (1, texels * 0.6), 3) * np.exp(-y / max(size[1] * 0.3, 0.5)) * 0.06
    ground = -0.15 * np.exp(-(size[1] - y) / 0.5)
    return np.asarray(cv2.merge([(1 + rough + stain + ground).astype(np.float32) * float(v) for v in base]))


def contact_shadow() -> Array:
    """RGBA (64, 64, 4), black that fades outwards."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    alpha = (1.25 - np.maximum(np.abs(x), np.abs(y)) ** 3 - (x**2 + y**2) * 0.5).clip(0, 1) ** 1.5
    out = np.zeros((64, 64, 4), np.uint8)
    out[..., 3] = alpha * 165
    return out
