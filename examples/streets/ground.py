"""Road, sidewalks, verges and yards: their texture and classes, and how they are seen."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from drawing import CLASS, Array, Camera, Canvas, Light, Rng, Texture
from street import Street
from textures import noise

from retarget.labels import Classes

PERIOD: Final = 80.0
"""Metres after which the ground repeats."""
TEXELS: Final = (40, 24)
"""Per metre, across and along."""
CURB: Final = 0.16
"""Metres."""


class Ground:
    """The plane y = 0 of a street. texture (h, w): x from −reach to reach, z from 0 to PERIOD."""

    def __init__(self, rng: Rng, street: Street) -> None:
        self.street = street
        h, w = round(PERIOD * TEXELS[1]), round(2 * street.reach * TEXELS[0])
        x, z = (np.arange(w) + 0.5) / TEXELS[0] - street.reach, (np.arange(h) + 0.5)[:, None] / TEXELS[1]
        rough = noise(rng, (h, w), (TEXELS[1] * 6, TEXELS[0] * 2), 5)
        fine = rng.standard_normal((h, w), np.float32)
        art = _asphalt(rng, street, x, rough, fine)
        _markings(rng, street, art, x, z, rough)
        _sides(rng, street, art, x, z, rough, fine)
        self.texture = Texture(art.clip(0, 255).astype(np.uint8))
        grain = cv2.GaussianBlur(rng.normal(0, 1, (512, 512)).astype(np.float32), (0, 0), 1.0)
        self.grain = (grain * 0.16 + noise(rng, (512, 512), (60, 60), 4) * 0.05).astype(np.float32)

    def draw(self, canvas: Canvas) -> None:
        """Draw all that is below the horizon."""
        camera = canvas.camera
        top, x, _, _ = _seen(camera, 0.5)
        canvas.labels[top:] = self._classes(x)
        top, x, z, depth = _seen(camera, 1.0)
        colours = self._colours(x, z, depth, camera)
        colours *= self._light(x, z, canvas.light)
        clear = np.exp(-depth / canvas.light.sight)[:, None, None].astype(np.float32)
        canvas.colours[top:] = (colours * clear + canvas.light.haze.astype(np.float32) * (1 - clear)).clip(0, 255)

    def _classes(self, x: Array) -> Classes:
        """Those at x (h, w)."""
        out, half = np.empty(x.shape, np.uint8), self.street.half
        inner = [CLASS[name] for name in ("road", "sidewalk", "terrain", "sidewalk")]
        for i, far in enumerate((-x, x)):
            verge = max(half + self.street.verge[i], half + CURB)
            borders = np.array([half, half + CURB, verge, self.street.front[i]])
            numbers, where = np.array([*inner, self.street.yards[i]], np.uint8), far >= 0
            out[where] = numbers[np.searchsorted(borders, far[where], side="right")]
        return out

    def _colours(self, x: Array, z: Array, depth: Array, camera: Camera) -> Array:
        """RGB (h, w, 3) at x, z (h, w), in bands of rows by how much the texture has to be reduced there."""
        out = np.empty((*x.shape, 3), np.float32)
        long = depth**2 / (camera.focal * camera.position[1]) * TEXELS[1]
        broad = depth / camera.focal * TEXELS[0]
        level = np.stack([(np.log2(np.maximum(v, 1e-3)) + 0.3).clip(0, 8).astype(int) for v in (broad, long)], 1)
        starts = [0, *(np.flatnonzero((np.diff(level, axis=0) != 0).any(1)) + 1), len(level)]
        reach = self.street.reach
        for i, j in pairwise(starts):
            source = self.texture.reduced(2.0 ** (level[i, 0] - 0.3), 2.0 ** (level[i, 1] - 0.3))
            h, w = source.shape[:2]
            u = ((x[i:j] + reach) * (w / (2 * reach)) - 0.5).clip(0, w - 1)
            v = (z[i:j] % PERIOD) * (h / PERIOD) - 0.5
            out[i:j] = cv2.remap(source, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        near = int(np.searchsorted(-depth, -12.0))
        grain = cv2.remap(self.grain, x[near:] * 90 % 511, z[near:] * 90 % 511, cv2.INTER_LINEAR)
        out[near:] *= (1 + grain * np.exp(-depth[near:, None] / 4))[..., None]
        return out

    def _light(self, x: Array, z: Array, light: Light) -> Array:
        """RGB (h, w, 3) by which colours are multiplied."""
        up, dark = np.array([0.0, 1, 0]), self.street.shadows.sampled(x, z)[..., None]
        bright, dull = light.towards(up), light.towards(up, 1.0)
        return np.asarray(bright.astype(np.float32) + dark * (dull - bright).astype(np.float32))


def _seen(camera: Camera, scale: float) -> tuple[int, Array, Array, Array]:
    """The first row of a picture, scaled, that is all ground; x and z (h, w) from there on, and depth (h,) of rows."""
    wide, high = (round(n * scale) for n in camera.size)
    f, cx, cy = (n * scale for n in (camera.focal, *camera.centre))
    right, up, ahead = camera.axes
    a = ((np.arange(wide, dtype=np.float32) + 0.5 - cx) / f)[None]
    b = ((np.arange(high, dtype=np.float32) + 0.5 - cy) / f)[:, None]
    fall = ahead[1] - up[1] * b
    top = int(np.argmax(fall[:, 0] < -1e-3))
    t = camera.position[1] / -fall[top:]
    x = (camera.position[0] + t * (ahead[0] + a * right[0] - b[top:] * up[0])).astype(np.float32)
    z = (camera.position[2] + t * (ahead[2] + a * right[2] - b[top:] * up[2])).astype(np.float32)
    return top, x, z, t[:, 0]


def _asphalt(rng: Rng, street: Street, x: Array, rough: Array, fine: Array) -> Array:
    """RGB (h, w, 3) float of a road with tracks, patches, cracks and manhole covers."""
    half, reach = street.half, street.reach
    tone = np.full(3, rng.uniform(62, 125)) * (1 + rng.normal(0, 0.03, 3))
    art: Array = cv2.merge([(1 + 0.09 * rough + 0.05 * fine) * float(v) for v in tone])
    tracks = sum(np.exp(-(((np.abs(x - s) - 0.75) / 0.3) ** 2)) for s in (street.lane, street.oncoming))
    art *= (1 + rng.uniform(-0.1, 0.08) * tracks)[None, :, None].astype(np.float32)
    for _ in range(int(rng.integers(0, 14))):
        left, z = rng.uniform(-half, half - 1), rng.uniform(0, PERIOD - 8)
        part = art[int(z * TEXELS[1]) : int((z + rng.uniform(1, 8)) * TEXELS[1])]
        columns = slice(int((left + reach) * TEXELS[0]), int((left + rng.uniform(0.6, 2.2) + reach) * TEXELS[0]))
        part[:, columns] *= rng.uniform(0.75, 1.12)
    cracks = np.zeros(rough.shape, np.uint8)
    for _ in range(int(rng.integers(0, 30))):
        steps = np.cumsum(rng.normal(0, 1, (14, 2)) * (9, 7) + rng.normal(0, 4, 2), 0)
        start = rng.uniform(-half, half) + reach, rng.uniform(0, PERIOD)
        cv2.polylines(cracks, [(steps + np.array(start) * TEXELS).astype(np.int32)], False, (255,), 1, cv2.LINE_AA)
    art *= (1 - 0.35 / 255 * cracks.astype(np.float32))[..., None]
    axes = (round(0.34 * TEXELS[0]), round(0.34 * TEXELS[1]))
    for _ in range(3):
        at = round((rng.uniform(-half, half) * 0.7 + reach) * TEXELS[0]), int(rng.uniform(0, len(art)))
        cv2.ellipse(art, at, axes, 0, 0, 360, (tone * 0.5).tolist(), -1)
    return art


def _markings(rng: Rng, street: Street, art: Array, x: Array, z: Array, rough: Array) -> None:
    """Paint the lanes' borders, parking spaces and the crossing."""
    paint = np.array([225, 224, 216]) if rng.random() < 0.8 else np.array([228, 184, 70])
    strong = rng.uniform(0.4, 1)
    worn = ((0.85 - 0.35 * (rough > rng.uniform(-0.1, 0.9))) * strong)[..., None]
    half, crossing, x = street.half, street.crossing, x[None]

    def lay(where: Array) -> None:
        art[where] += (paint - art[where]) * worn[where]

    dash, gap = float(rng.choice([2.0, 4.0, 5.0])), 8.0
    style = rng.choice(["dashed", "dashed", "solid", "double", "none"])
    if half > 3.4 and style != "none":
        far = np.abs(x - street.middle)
        if style == "dashed":
            lay((far < 0.07) & (z % gap < dash))
        elif style == "solid":
            lay((far < 0.07) & (z > 0))
        else:
            lay((far > 0.07) & (far < 0.2) & (z > 0))
    for side, parking in zip((-1, 1), street.parking, strict=True):
        if parking:
            far = side * x - (half - parking)
            lay((np.abs(far) < 0.06) & (z % 2 < 1.0) | (far > 0) & (far < parking) & (z % 6.4 < 0.12))
        elif rng.random() < 0.4:
            lay((np.abs(side * x - half + 0.35) < 0.06) & (z > 0))
    if crossing > 0:
        lay((np.abs(z - crossing) < 1.6) & (np.abs(x) < half - 0.3) & (x % 1.0 < 0.5))
        lay((np.abs(z - crossing + 3) < 0.2) & (x > street.middle) & (x < half - street.parking[1]))


def _sides(rng: Rng, street: Street, art: Array, x: Array, z: Array, rough: Array, fine: Array) -> None:
    """Paint curbs, sidewalks, verges and yards."""
    half = street.half
    stone = np.full(3, rng.uniform(130, 190))
    slab = np.array([168, 162, 152]) * rng.uniform(0.65, 1.15) * (1 + rng.normal(0, 0.05, 3))
    tile = (rng.uniform(0.3, 1.2), rng.uniform(0.3, 1.2))
    groove = 0.2 if rng.random() < 0.7 else 0.0
    for i, far in enumerate((-x, x)):
        paved = far > half
        u, v = x[paved][None] / tile[0], z / tile[1]
        joint = (u % 1 < 0.04 / tile[0]) | (v % 1 < 0.05 / tile[1])
        cells = 0.04 * np.sin(np.floor(u) * 12.9 + np.floor(v) * 78.2)
        shade = (1 + 0.06 * rough[:, paved] + 0.04 * fine[:, paved] - groove * joint) * (1 + cells)
        art[:, paved] = slab * shade[..., None]
        grown = (far > half + 0.15) & (far < half + street.verge[i])
        if street.yards[i] == CLASS["terrain"]:
            grown |= far > street.front[i]
        tint = 1 + rough[:, grown][..., None] * np.array([0.08, 0, -0.08], np.float32)
        shade = 1 + 0.14 * rough[:, grown] + 0.16 * fine[:, grown]
        art[:, grown] = street.plants.grass * shade[..., None] * tint
        curb, gutter = (far > half) & (far < half + CURB), (far > half - 0.22) & (far <= half)
        art[:, curb] = stone * (1 + 0.05 * fine[:, curb] - 0.25 * (z % 1.0 < 0.06))[..., None]
        art[:, gutter] *= 0.72
