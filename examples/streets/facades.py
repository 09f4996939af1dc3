"""The fronts of houses: walls with windows, balconies, doors and shops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from drawing import Array, Colour, Rng
from textures import hue, noise, surface
from weather import Weather


@dataclass
class Style:
    """What the houses of a street have in common.

    kinds    of walls: those of `surface`, and "glass".
    colours  of walls, (3,) each.
    frame    colour of window frames.
    glass    colour of panes.
    shops    the share of houses at the sidewalk that have one.
    lit      the share of windows with a lamp on.
    """

    kinds: list[str]
    colours: list[Array]
    frame: Array
    glass: Array
    shops: float
    lit: float

    def paint(self, rng: Rng) -> Array:
        """The colour (3,) of a house."""
        return np.asarray(self.colours[rng.integers(len(self.colours))] * rng.uniform(0.85, 1.1))


def random_style(rng: Rng, weather: Weather, urban: float) -> Style:
    colours = [hue(rng, (0.03, 0.38), (0.55, 0.95), at) for at in rng.uniform(0.02, 0.15, 4)]
    colours += [hue(rng, (0.0, 0.16), (0.4, 0.92)) for _ in range(2)]
    kinds = ["plain", "brick", "panel", "stone", "glass"]
    chosen = list(rng.choice(kinds, int(rng.integers(1, 4)), replace=False, p=[0.38, 0.3, 0.12, 0.12, 0.08]))
    if "brick" in chosen:
        colours += [np.array([150, 78, 60]) * rng.uniform(0.7, 1.1), np.array([176, 140, 104]) * rng.uniform(0.8, 1.1)]
    frame = np.array([235, 234, 228]) if rng.random() < 0.6 else hue(rng, (0, 0.5), (0.1, 0.5))
    pane = weather.light.haze * rng.uniform(0.3, 0.5) + 10
    return Style(chosen, colours, frame, pane, rng.uniform(0, 1) * urban, 0.3 if weather.dusk else 0.02)


def glass(rng: Rng, h: int, w: int, style: Style) -> Array:
    """A pane (h, w, 3) that reflects the sky, with a curtain or a lamp behind it."""
    fall = np.linspace(rng.uniform(0.9, 1.4), rng.uniform(0.35, 0.7), h)[:, None, None]
    pane = style.glass * fall * np.ones((h, w, 1))
    slant = (np.arange(w)[None] + np.arange(h)[:, None] * 0.6 + rng.integers(0, 60)) % 60
    pane = pane * np.where(slant < 14, 1.18, 1.0)[..., None]
    if rng.random() < style.lit:
        pane = pane * 0.3 + np.array([250, 200, 120]) * rng.uniform(0.5, 0.9)
    elif rng.random() < 0.35 and w > 3:
        k = max(1, int(w * rng.uniform(0.15, 0.4)))
        cloth = hue(rng, (0, 0.2), (0.6, 0.85)) * 0.7
        pane[:, :k] = pane[:, :k] * 0.3 + cloth * 0.7
        pane[:, -k:] = pane[:, -k:] * 0.3 + cloth * 0.7
    return np.asarray(pane)


@dataclass
class Wall:
    """A wall (h, w, 3) float, whose places are (x, y, width, height) in metres from its lower left corner."""

    pixels: Array
    height: float
    texels: float
    base: Array
    style: Style

    def part(self, x: float, y: float, dx: float, dy: float) -> Array:
        """The pixels of a place, a view."""
        top, left = round((self.height - y - dy) * self.texels), round(x * self.texels)
        bottom, right = top + max(1, round(dy * self.texels)), left + max(1, round(dx * self.texels))
        return self.pixels[max(0, top) : max(0, bottom), max(0, left) : right]

    def fill(self, x: float, y: float, dx: float, dy: float, colour: Colour, mix: float = 1.0) -> None:
        part = self.part(x, y, dx, dy)
        part[:] = part * (1 - mix) + np.asarray(colour) * mix

    def window(self, rng: Rng, x: float, y: float, dx: float, dy: float, bars: int) -> None:
        edge, frame = 0.07, self.style.frame
        self.fill(x - 0.14, y - 0.14, dx + 0.28, 0.14, self.base * 1.15)
        self.fill(x - edge, y - edge, dx + 2 * edge, dy + 2 * edge, frame)
        pane = self.part(x, y, dx, dy)
        if pane.size:
            pane[:] = glass(rng, pane.shape[0], pane.shape[1], self.style)
            pane[: max(1, round(0.12 * self.texels))] *= 0.6
        for i in range(1, bars):
            self.fill(x + dx * i / bars - 0.03, y, 0.06, dy, frame)


def facade(rng: Rng, style: Style, width: float, height: float, texels: float, shop: bool, base: Array) -> Array:
    """The front of a house, (h, w, 3) float; width, height in metres; base: its colour (3,)."""
    kind = str(rng.choice(style.kinds))
    pixels = surface(rng, "plain" if kind == "glass" else kind, base, (width, height), texels)
    wall = Wall(pixels, height, texels, base, style)
    ground = rng.uniform(3.2, 4.2) if shop else rng.uniform(2.8, 3.4)
    rise, bay = rng.uniform(2.7, 3.4), rng.uniform(1.9, 3.6)
    bays = max(1, int((width - 0.6) / bay))
    bay = (width - 0.6) / bays
    share = (0.9, 0.8) if kind == "glass" else (rng.uniform(0.35, 0.65), rng.uniform(0.45, 0.62))
    bars, balconies = int(rng.integers(1, 4)), rng.random() < 0.3
    columns = rng.random(bays) < 0.5
    rail = hue(rng, (0, 0.4), (0.2, 0.8))
    band = rng.random() < 0.4
    for floor in range(int((height - ground - 0.5) / rise)):
        y = ground + floor * rise
        if band:
            wall.fill(0, y - 0.05, width, 0.18, base * 1.18)
            wall.fill(0, y - 0.11, width, 0.06, base * 0.6)
        for i in range(bays):
            x = 0.3 + bay * (i + 0.5 - share[0] / 2)
            wall.window(rng, x, y + rise * 0.28 * (share[1] < 0.7), bay * share[0], rise * share[1], bars)
            if balconies and columns[i]:
                _balcony(wall, x, y, bay * share[0], rail)
    if shop:
        parts = max(1, round(width / rng.uniform(4, 7)))
        for i in range(parts):
            _shop(rng, wall, i * (width / parts), width / parts, ground)
    else:
        door = int(rng.integers(bays))
        for i in range(bays):
            x = 0.3 + bay * i
            if i == door:
                paint = hue(rng, (0.2, 0.7), (0.2, 0.6))
                wall.fill(x + bay / 2 - 0.65, 0, 1.3, 2.45, base * 1.2)
                wall.fill(x + bay / 2 - 0.5, 0.1, 1.0, 2.2, paint)
                wall.fill(x + bay / 2 - 0.35, 1.3, 0.7, 0.7, style.glass * 0.6)
            else:
                wall.window(rng, x + bay * (0.5 - share[0] / 2), 1.0, bay * share[0], 1.4, bars)
    wall.fill(0, height - 0.35, width, 0.35, base * 1.12)
    wall.fill(0, height - 0.5, width, 0.15, base * 0.6)
    if kind != "glass":
        wall.fill(0, 0, width, 0.4, base * 0.6, 0.6)
    return pixels


def _balcony(wall: Wall, x: float, y: float, width: float, rail: Array) -> None:
    """In front of a window so wide."""
    wall.fill(x - 0.35, y, width + 0.7, 0.95, rail, 0.8)
    wall.fill(x - 0.35, y - 0.12, width + 0.7, 0.14, wall.base * 0.75)
    for k in np.arange(0, width + 0.6, 0.2):
        wall.fill(x - 0.35 + k, y, 0.05, 0.9, rail * 0.55)


def _shop(rng: Rng, wall: Wall, x: float, width: float, height: float) -> None:
    """A shop window, a door, and a sign with letters above them; sometimes an awning."""
    paint, style = hue(rng, (0.1, 0.9), (0.25, 0.9)), wall.style
    wall.fill(x + 0.15, 0, width - 0.3, height - 0.5, paint * 0.55)
    pane = wall.part(x + 0.35, 0.5, width - 0.7, height - 1.5)
    if pane.size:
        goods = noise(rng, (pane.shape[0], pane.shape[1]), (wall.texels * 0.7, wall.texels * 0.5), 2)
        lamp = np.array([235, 205, 150]) * (0.75 if style.lit > 0.2 else 0.35)
        pane[:] = glass(rng, pane.shape[0], pane.shape[1], style) * 0.6 + lamp * (0.5 + 0.5 * goods[..., None])
    wall.fill(x + width * 0.6, 0.05, 1.0, min(2.3, height - 1.1), paint * 0.35)
    wall.fill(x + width * 0.6 + 0.1, 0.2, 0.8, 1.9, style.glass * 0.5)
    wall.fill(x + 0.15, height - 0.95, width - 0.3, 0.65, paint)
    for k in range(int(rng.integers(3, 9))):
        wall.fill(x + width * 0.25 + k * 0.28, height - 0.8, 0.18, 0.34, 255 - paint * 0.8)
    if rng.random() < 0.35:
        wall.fill(x + 0.2, height - 1.7, width - 0.4, 0.8, hue(rng, (0.2, 0.9), (0.4, 0.9)))
        for k in np.arange(0.2, width - 0.4, 0.8):
            wall.fill(x + k, height - 1.7, 0.4, 0.8, (230, 228, 220))
