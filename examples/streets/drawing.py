"""Textured quads in the world, the camera and the light that show them, and the canvas they are drawn on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from retarget.labels import PALETTE, Classes

Array = npt.NDArray[Any]
Rng = np.random.Generator
Colour = Sequence[float] | Array
"""RGB, 0 … 255."""
Vector = Sequence[float] | Array
"""(3,), metres: x to the right, y up, z along the street."""
Shading = Literal["flat", "round", "unlit"]

CLASS: Final = {name: number for number, name in enumerate(PALETTE)}
NEAR: Final = 0.3
"""Metres in front of the camera at which quads are cut."""


class Texture:
    """RGB or premultiplied RGBA (h, w, 3 or 4) uint8, and as needed reduced by powers of two per axis."""

    def __init__(self, pixels: Array) -> None:
        self.pixels = np.ascontiguousarray(pixels)
        self.opaque = bool(pixels.shape[2] == 3 or pixels[..., 3].min() == 255)
        self._levels = {(0, 0): self.pixels}

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def reduced(self, across: float, down: float) -> Array:
        """The level for so many texels per pixel."""
        w, h = self.size
        x, y = (int(np.clip(np.log2(max(n, 1e-3)) + 0.4, 0, np.log2(s))) for n, s in ((across, w), (down, h)))
        if (x, y) not in self._levels:
            size = max(w >> x, 1), max(h >> y, 1)
            self._levels[x, y] = cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA)
        return self._levels[x, y]


@dataclass
class Quad:
    """A textured parallelogram, seen from the side that u × v points to.

    origin, u, v  (3,) its upper left corner, and its edges to the right and downwards.
    label         its class; None leaves those below.
    shading       "flat": by its own direction; "round": as something round; "unlit": it shines by itself.
    """

    origin: Array
    u: Array
    v: Array
    texture: Texture
    label: int | None
    shading: Shading = "flat"

    def __post_init__(self) -> None:
        (a, b, c), (d, e, f) = self.u.tolist(), self.v.tolist()
        normal = np.array([b * f - c * e, c * d - a * f, a * e - b * d])
        self.normal = normal / max(float(normal @ normal) ** 0.5, 1e-9)


def quad(origin: Vector, u: Vector, v: Vector, texture: Texture, label: int | None, shading: Shading = "flat") -> Quad:
    return Quad(np.asarray(origin, float), np.asarray(u, float), np.asarray(v, float), texture, label, shading)


def along(side: int, x: float, z0: float, z1: float, y0: float, y1: float, texture: Texture, label: int) -> Quad:
    """An upright quad at the street's left (side −1) or right (+1), facing it."""
    start, step = (z0, z1 - z0) if side < 0 else (z1, z0 - z1)
    return quad((side * x, y1, start), (0, 0, step), (0, y0 - y1, 0), texture, label)


def across(
    x0: float, x1: float, y0: float, y1: float, z: float, texture: Texture, label: int, shading: Shading = "flat"
) -> Quad:
    """An upright quad across the street, facing those who come."""
    return quad((x0, y1, z), (x1 - x0, 0, 0), (0, y0 - y1, 0), texture, label, shading)


def flat(x0: float, x1: float, z0: float, z1: float, texture: Texture, label: int | None) -> Quad:
    """A quad on the ground."""
    return quad((x0, 0, z1), (x1 - x0, 0, 0), (0, 0, z0 - z1), texture, label)


@dataclass
class Camera:
    """Its pictures' (width, height), position, axes (right, up, ahead), focal length and principal point in pixels."""

    size: tuple[int, int]
    position: Array
    axes: Array
    focal: float
    centre: tuple[float, float]

    def __post_init__(self) -> None:
        """matrix (3, 3): vectors from the camera on → homogeneous pixels."""
        f, (x, y) = self.focal, self.centre
        self.matrix = np.array([[f, 0, x], [0, -f, y], [0, 0, 1]]) @ self.axes

    def facing(self, x: float, z: float) -> Array:
        """The horizontal direction (3,) to the right of somebody who looks from the camera to a point."""
        d = np.array([z - self.position[2], 0, self.position[0] - x])
        return np.asarray(d / max(np.linalg.norm(d), 1e-6))


@dataclass
class Light:
    """sun (3,) towards it; direct, ambient: RGB, 1 for white; haze: RGB; sight: metres at which haze is at 63 %."""

    sun: Array
    direct: Array
    ambient: Array
    haze: Array
    sight: float

    @property
    def overcast(self) -> bool:
        return bool(self.direct.max() < 0.1)

    def on(self, q: Quad, shadow: float = 0.0) -> Array:
        """RGB (3,) by which a quad's texture is multiplied; shadow: the share of sunlight that it lacks."""
        if q.shading == "unlit":
            return np.ones(3)
        if q.shading == "round":
            return np.asarray(self.ambient + self.direct * 0.55 * (1 - shadow))
        return self.towards(q.normal, shadow)

    def towards(self, normal: Array, shadow: float = 0.0) -> Array:
        """The same for a surface with a normal (3,)."""
        lit = max(0.0, float(normal @ self.sun)) * (1 - shadow)
        return np.asarray(self.ambient * (0.85 + 0.15 * normal[1]) + self.direct * lit)


@dataclass
class Thing:
    """What is drawn as one: where on the ground it is, and its quads as the camera sees it at a time in seconds.

    place      (x, z) at a time, of vehicles, cycles and people, which darken the ground below, and lie in shadows.
    footprint  half the width and length of what they darken.
    layer      the lower ones are drawn first; None: by x.
    """

    x: float
    z: float
    quads: Callable[[Camera, float], list[Quad]]
    place: Callable[[float], tuple[float, float]] | None = None
    footprint: tuple[float, float] = (0.0, 0.0)
    layer: int | None = None


def fixed(x: float, z: float, quads: list[Quad], layer: int | None = None) -> Thing:
    """A thing that looks the same at all times."""
    return Thing(x, z, lambda camera, time: quads, layer=layer)


@dataclass
class Canvas:
    """Colours (2H, 2W, 3) and classes (H, W) of a frame."""

    colours: Array
    labels: Classes
    camera: Camera
    light: Light

    def draw(self, q: Quad, shadow: float = 0.0) -> None:
        """Draw a quad over what is there; shadow: the share of sunlight that it lacks."""
        camera, away = self.camera, q.origin - self.camera.position
        if q.normal @ away >= 0:
            return
        homography = camera.matrix @ np.array([q.u, q.v, away]).T
        (a, b, c), (d, e, f), (g, h, i) = homography.tolist()

        def project(s: float, t: float) -> tuple[float, float, float]:
            """Shares of u and v → pixels x and y, and depth."""
            depth = g * s + h * t + i
            return (a * s + b * t + c) / depth, (d * s + e * t + f) / depth, depth

        corners = _cut([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)], (g, h, i))
        if not corners:
            return
        xs, ys, _ = zip(*(project(s, t) for s, t in corners), strict=True)
        left, top = (max(0, int(max(min(v), 0) - 1) & ~1) for v in (xs, ys))
        right, bottom = (min(m, (int(max(v)) + 3) & ~1) for m, v in zip(camera.size, (xs, ys), strict=True))
        if left >= right or top >= bottom or max(xs) < 0 or max(ys) < 0:
            return
        size = (right - left, bottom - top)
        x, y, depth = project(*(sum(v) / len(corners) for v in zip(*corners, strict=True)))
        width, height = q.texture.size
        source = q.texture.reduced(
            width / max(np.hypot(a - x * g, d - y * g) / depth, 1e-3),
            height / max(np.hypot(b - x * h, e - y * h) / depth, 1e-3),
        )
        rows, columns = source.shape[:2]
        unit = np.array([[1 / columns, 0, 0.5 / columns], [0, 1 / rows, 0.5 / rows], [0, 0, 1]])
        shift = np.array([[1, 0, -0.5 - left], [0, 1, -0.5 - top], [0, 0, 1]])
        found = cv2.warpPerspective(
            source, shift @ homography @ unit, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        outline = [
            (round(max(-3e4, min(3e4, x - 0.5 - left)) * 16), round(max(-3e4, min(3e4, y - 0.5 - top)) * 16))
            for x, y in zip(xs, ys, strict=True)
        ]
        mask: Array = np.zeros(size[::-1], np.uint8)
        cv2.fillConvexPoly(mask, np.array(outline, np.int32), (255,), cv2.LINE_8, 4)
        part = self.colours[top:bottom, left:right]
        mix = self._shaded(q, depth, shadow)
        if q.texture.opaque:
            cv2.copyTo(cv2.transform(found, mix), mask, part)
        else:
            found = cv2.bitwise_and(found, found, mask=mask)
            mask = cv2.extractChannel(found, 3)
            behind = cv2.multiply(part, cv2.cvtColor(cv2.bitwise_not(mask), cv2.COLOR_GRAY2BGR), scale=1 / 255)
            part[:] = cv2.add(behind, cv2.transform(found, mix))
        if q.label is not None:
            half: Array = cv2.resize(mask, (size[0] // 2, size[1] // 2), interpolation=cv2.INTER_AREA)
            self.labels[top // 2 : bottom // 2, left // 2 : right // 2][half > 127] = q.label

    def _shaded(self, q: Quad, depth: float, shadow: float) -> Array:
        """The matrix (3, 4) from a texture's RGBA to what is seen of it through the haze."""
        far = 1 - np.exp(-depth / self.light.sight) if q.shading != "unlit" else 0.0
        mix = np.zeros((3, 4), np.float32)
        mix[(0, 1, 2), (0, 1, 2)] = self.light.on(q, shadow) * (1 - far)
        mix[:, 3] = self.light.haze / 255 * far
        return mix


def _cut(corners: list[tuple[float, float]], depth: tuple[float, float, float]) -> list[tuple[float, float]]:
    """What of a polygon in a quad's (s, t) lies beyond NEAR, where `depth` gives that of (s, t, 1)."""
    d = [depth[0] * s + depth[1] * t + depth[2] - NEAR for s, t in corners]
    out = []
    for i, (s, t) in enumerate(corners):
        if d[i] >= 0:
            out.append((s, t))
        n = (i + 1) % len(d)
        if (d[i] >= 0) != (d[n] >= 0):
            k = d[i] / (d[i] - d[n])
            out.append((s + k * (corners[n][0] - s), t + k * (corners[n][1] - t)))
    return out
