"""Trees, bushes and hedges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from drawing import CLASS, Array, Camera, Light, Quad, Rng, Texture, Thing, quad
from shadows import Shadows
from textures import disc, ellipse, line, polygon, solid


@dataclass
class Plants:
    """What grows in a street: four trees of two species; hedge; bush; grass: RGB (3,)."""

    grass: Array
    trees: list[Texture]
    hedge: Texture
    bush: Texture

    def tree(self, rng: Rng) -> Texture:
        return self.trees[rng.integers(len(self.trees))]


def random_plants(rng: Rng, light: Light) -> Plants:
    season = str(rng.choice(["summer", "summer", "spring", "autumn"]))
    greens = {"summer": (78, 108, 42), "spring": (112, 146, 58), "autumn": (158, 112, 40)}
    base, variety = np.array(greens[season]), 0.3 if season == "autumn" else 0.1
    grass = np.array([96, 122, 56]) * rng.uniform(0.75, 1.15) * (1 + rng.normal(0, 0.08, 3))
    sun = np.array([light.sun[0], -light.sun[1]]) * (0.3 if light.overcast else 1.0)
    sun[1] -= 0.4
    trees = []
    for species in rng.choice(["round", "oval", "poplar", "conifer"], 2, replace=False, p=[0.4, 0.35, 0.1, 0.15]):
        for _ in range(2):
            colour = base * (1 + rng.normal(0, variety, 3)).clip(0.5, 1.6) * rng.uniform(0.85, 1.15)
            if species == "conifer":
                colour = np.array([48, 78, 52]) * rng.uniform(0.8, 1.2)
            trees.append(Texture(_tree(rng, str(species), colour, sun)))
    hedge = Texture(_hedge(rng, 6.0, 1.6, base * rng.uniform(0.7, 1.0), sun))
    return Plants(grass, trees, hedge, Texture(_hedge(rng, 1.6, 1.2, base * rng.uniform(0.8, 1.2), sun)))


def plant(x: float, z: float, height: float, texture: Texture, shadows: Shadows, layer: int | None = None) -> Thing:
    """A tree or bush that turns its front to the camera, and its shadow."""
    width = height * texture.size[0] / texture.size[1]

    def quads(camera: Camera, time: float) -> list[Quad]:
        side = camera.facing(x, z) * width
        start = np.array([x, height, z]) - side / 2
        return [quad(start, side, (0, -height, 0), texture, CLASS["vegetation"], "round")]

    shadows.ellipse(x, z, width * 0.35, height * 0.6)
    return Thing(x, z, quads, layer=layer)


def _leaves(rng: Rng, canvas: Array, clusters: Array, colour: Array, sun: Array, count: int, size: float) -> None:
    """Draw foliage into RGBA: clusters (N, 3) of x, y, radius; sun (2,) in the picture's plane; size in texels."""
    for x, y, r in clusters:
        disc(canvas, (round(x), round(y)), round(r * 0.82), colour * 0.45)
    centre, spread = clusters[:, :2].mean(0), np.ptp(clusters[:, :2], axis=0) + 2 * clusters[:, 2].max()
    chosen = clusters[rng.choice(len(clusters), count, p=clusters[:, 2] ** 2 / (clusters[:, 2] ** 2).sum())]
    turn, out = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    offset = np.stack([np.cos(turn), np.sin(turn)], 1) * out[:, None]
    points = chosen[:, :2] + offset * chosen[:, 2:]
    bright = 0.62 + 0.28 * (offset @ sun) + 0.35 * ((points - centre) / spread * 2) @ sun + rng.normal(0, 0.12, count)
    order = np.argsort(bright + rng.normal(0, 0.2, count))
    tints = colour * (1 + rng.normal(0, 0.05, (count, 3)))
    for i in order:
        axes = (max(1, round(size * rng.uniform(0.6, 1.3))), max(1, round(size * rng.uniform(0.4, 0.8))))
        at = (round(points[i, 0]), round(points[i, 1]))
        shade = (tints[i] * bright[i].clip(0.42, 1.25)).clip(0, 255)
        ellipse(canvas, at, axes, shade, float(rng.integers(180)))


def _tree(rng: Rng, species: str, colour: Array, sun: Array) -> Array:
    """RGBA (576, 432, 4), a tree whose foot is in the middle of the lower border."""
    h, w = 576, 432
    canvas = np.zeros((h, w, 4), np.uint8)
    bark = np.array([88, 72, 58]) * rng.uniform(0.6, 1.2)
    foot = rng.uniform(9, 15)
    n = 26
    if species == "conifer":
        y = np.linspace(40, 500, n)
        reach = (y - 20) / 480 * w * 0.33
        clusters = np.stack([w / 2 + rng.uniform(-1, 1, n) * reach, y, 14 + reach * 0.4], 1)
    else:
        wide, tall, middle, dense = {
            "round": (0.3, 0.25, 0.36, 1), "oval": (0.22, 0.3, 0.38, 1), "poplar": (0.1, 0.36, 0.42, 0.6),
        }[species]  # fmt: skip
        turn, out = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.random(n))
        x, y = w / 2 + np.cos(turn) * out * wide * w, middle * h + np.sin(turn) * out * tall * h
        clusters = np.stack([x, y, rng.uniform(0.08, 0.16, n) * w * dense], 1)
    lean = rng.uniform(-12, 12)
    feet, top = [(w / 2 - foot, h), (w / 2 + foot, h)], h * 0.4
    polygon(canvas, [*feet, (w / 2 + foot * 0.5 + lean, top), (w / 2 - foot * 0.5 + lean, top)], bark)
    lit = 2 if sun[0] > 0 else -2
    line(canvas, (w // 2 + lit * 3, h), (round(w / 2 + lean + lit), round(top)), bark * 1.35, 4)
    for x, y, _ in clusters[:9]:
        line(canvas, (round(w / 2 + lean * 0.7), round(h * 0.62)), (round(x), round(y)), bark * 0.8, 4)
    _leaves(rng, canvas, clusters, colour, sun, 2300, 7.0)
    return canvas


def _hedge(rng: Rng, width: float, height: float, colour: Array, sun: Array) -> Array:
    """RGBA of foliage, with a ragged upper border; width, height in metres."""
    texels = min(48.0, 700 / width)
    h, w = round(height * texels), round(width * texels)
    canvas = np.zeros((h, w, 4), np.uint8)
    canvas[round(h * 0.22) :] = solid(colour * 0.4)
    n = max(4, round(width * 3))
    y = rng.uniform(0.2, 1, n) * h
    clusters = np.stack([np.linspace(0, w, n), y, np.full(n, min(h * 0.2, texels * 0.5))], 1)
    _leaves(rng, canvas, clusters, colour, np.array([sun[0] * 0.3, -1.0]), round(width * 160), texels * 0.07)
    return canvas
