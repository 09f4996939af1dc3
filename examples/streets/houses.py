"""What stands beside the sidewalks: houses, gardens, fences, and what closes the view."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from drawing import CLASS, Quad, Rng, Texture, Thing, across, along, fixed, quad
from facades import facade
from plants import plant
from street import Street
from textures import cut_out, hue, rgba, surface

FAR_HOUSES: Final = -3
FAR_TREES: Final = -2
BACKDROP: Final = -1
PLOTS: Final = 0
"""Layers: the lowest is drawn first, and 0 is that of what is beside the sidewalks."""
DEPTH: Final = 9.0
"""Metres of a house."""
PIECE: Final = 5
"""Metres of long quads that are drawn at once, so that each is shown in a resolution that fits."""


def houses(rng: Rng, street: Street) -> list[Thing]:
    things: list[Thing] = []
    for side, front in zip((-1, 1), street.front, strict=True):
        setback = 0.0 if rng.random() < 0.3 + 0.6 * street.urban else rng.uniform(2, 6)
        z = -12.0 - rng.uniform(0, 8)
        fence = str(rng.choice(["wall", "fence", "vegetation", "none"]))
        while z < street.end:
            width = float(rng.uniform(6, 12) if street.urban < 0.4 else rng.uniform(9, 25))
            gap = rng.random() < 0.38 - 0.25 * street.urban
            if gap:
                width = float(rng.uniform(3, 9))
            things += _plot(rng, street, side, front, z, z + width, setback, gap, fence)
            z += width
        things += _backdrop(rng, street, side, front + 22)
    return things + _far_end(rng, street)


def _backdrop(rng: Rng, street: Street, side: int, x: float) -> list[Thing]:
    """What is seen between the houses."""
    things = []
    for z in np.arange(-10.0, street.end, 30.0):
        tall = rng.uniform(3, 9) if street.urban < 0.5 else rng.uniform(6, 16)
        if rng.random() < 0.5:
            texture, label = street.plants.hedge, CLASS["vegetation"]
        else:
            art = facade(rng, street.style, 30, tall, 8, False, street.style.paint(rng))
            texture, label = Texture(rgba(art)), CLASS["building"]
        things.append(fixed(side * x, z, [along(side, x, z, z + 30, 0, tall, texture, label)], BACKDROP))
    return things


def _far_end(rng: Rng, street: Street) -> list[Thing]:
    """What is seen at the end of the street."""
    things, x, z = list[Thing](), -60.0, street.end + 20
    while x < 60:
        width = rng.uniform(10, 24)
        tall = rng.uniform(6, 14) + 10 * street.urban
        art = facade(rng, street.style, width, tall, 6, False, street.style.paint(rng))
        house = across(x, x + width, 0, tall, z, Texture(rgba(art)), CLASS["building"])
        things.append(fixed(x, z, [house], FAR_HOUSES))
        x += width
    for x in rng.uniform(-30, 30, 14):
        tall = rng.uniform(5, 12)
        things.append(plant(x, street.end + 10, tall, street.plants.tree(rng), street.shadows, FAR_TREES))
    return things


def _plot(
    rng: Rng, street: Street, side: int, x: float, z0: float, z1: float, setback: float, gap: bool, fence: str
) -> list[Thing]:
    """What stands beside the sidewalk between z0 and z1: a house, if it is no gap, plants and a fence."""
    quads = [] if gap else _house(rng, street, side, x, z0, z1, setback)
    kind = str(rng.choice(["wall", "fence", "vegetation", "none"])) if gap else fence
    plants = []
    if setback > 0 or gap:
        for _ in range(int(rng.integers(0, 3))):
            far = rng.uniform(2, 8) if gap else rng.uniform(1.2, max(1.3, setback - 0.5))
            z = rng.uniform(z0, z1)
            if rng.random() < 0.4 or gap:
                height, texture = rng.uniform(4, 9), street.plants.tree(rng)
            else:
                height, texture = rng.uniform(0.7, 1.6), street.plants.bush
            plants.append(plant(side * (x + far), z, height, texture, street.shadows, PLOTS))
        if kind != "none":
            quads += _fence(rng, street, side, x, z0, z1, kind)
    return [fixed(side * x, z0, quads, PLOTS), *plants]


def _house(rng: Rng, street: Street, side: int, x: float, z0: float, z1: float, setback: float) -> list[Quad]:
    """Its gable, its roof and its front, and its shadow."""
    style, urban, building = street.style, street.urban, CLASS["building"]
    front, texels = x + setback, street.trajectory.texels(x, z0)
    coarse = min(texels, 20)
    tall = rng.uniform(4, 9) + (rng.uniform(2, 21) * urban if rng.random() < 0.4 + 0.6 * urban else 0)
    base = style.paint(rng)
    shop = setback == 0 and rng.random() < style.shops
    art = rgba(facade(rng, style, z1 - z0, tall, texels, shop, base))
    ridge = rng.uniform(1.8, 3.2) if tall < 11 and rng.random() < 0.8 else 0.0
    kind = "brick" if "brick" in style.kinds else "plain"
    gable = surface(rng, kind, base * 0.95, (DEPTH, tall + ridge), coarse)
    for y in np.arange(2.0, tall - 1.5, 3.0):
        rows = slice(int((tall + ridge - y - 1.3) * coarse), int((tall + ridge - y) * coarse))
        for at in (2.0, 5.5):
            gable[rows, int(at * coarse) : int((at + 1) * coarse)] = style.glass * 0.8
    side_art = rgba(gable)
    if ridge:
        share = ridge / (tall + ridge)
        side_art = cut_out(side_art, [(0, 1), (0, share), (0.5, 0), (1, share), (1, 1)])
    left = front if side > 0 else -front - DEPTH
    quads = [across(left, left + DEPTH, 0, tall + ridge, z0, Texture(side_art), building)]
    if ridge:
        tiles = surface(rng, "planks", hue(rng, (0.1, 0.6), (0.25, 0.6), 0.03), (z1 - z0, 5), min(texels, 16))
        start, way = (z0, z1 - z0) if side < 0 else (z1, z0 - z1)
        top, slope = (side * (front + DEPTH / 2), tall + ridge, start), (-side * DEPTH / 2, -ridge, 0)
        quads.append(quad(top, (0, 0, way), slope, Texture(rgba(tiles)), building))
    edges = np.linspace(0, art.shape[1], max(1, round((z1 - z0) / PIECE)) + 1).round().astype(int)
    for a, b in pairwise(edges):
        near, far = z0 + a / art.shape[1] * (z1 - z0), z0 + b / art.shape[1] * (z1 - z0)
        if side > 0:
            near, far = z1 - (far - z0), z1 - (near - z0)
        quads.append(along(side, front, near, far, 0, tall, Texture(art[:, a:b]), building))
    street.shadows.block(side * front, side * (front + DEPTH), z0, z1, tall + ridge / 2)
    return quads


def _fence(rng: Rng, street: Street, side: int, x: float, z0: float, z1: float, kind: str) -> list[Quad]:
    """A wall, a fence or a hedge, as its class is called."""
    tall, texels, wide = float(rng.uniform(1.0, 2.2)), min(28.0, street.trajectory.texels(x, z0)), z1 - z0
    if kind == "wall":
        colour = street.style.paint(rng) * 0.8
        art = rgba(surface(rng, str(rng.choice(["brick", "stone", "plain"])), colour, (wide, tall), texels))
        art[: max(1, round(0.12 * texels)), :, :3] = colour * (1.15 if colour.max() < 220 else 1.0)
    elif kind == "fence":
        art = rgba(surface(rng, "planks", hue(rng, (0.0, 0.5), (0.25, 0.85), 0.08), (wide, tall), texels))
        if rng.random() < 0.5:
            gaps = (np.arange(art.shape[1]) / texels) % 0.16 < 0.055
            art[:, gaps] = 0
            art[round(art.shape[0] * 0.2) : round(art.shape[0] * 0.3)] = (130, 110, 90, 255)
    quads, parts = [], max(1, round(wide / PIECE))
    for k in range(parts):
        a, b = k / parts, (k + 1) / parts
        if kind == "vegetation":
            piece = street.plants.hedge
        else:
            start = round(a * art.shape[1])
            piece = Texture(art[:, start : max(start + 1, round(b * art.shape[1]))])
        quads.append(along(side, x + 0.1, z0 + a * wide, z0 + b * wide, 0, tall, piece, CLASS[kind]))
    return quads
