"""Cars, vans, trucks and buses as meshes of textured quads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from drawing import CLASS, Array, Colour, Light, Quad, Rng, Texture, quad
from textures import cut_out, disc, hue, line, masked, polygon, rectangle, rgba, solid

TEXELS: Final = 56
"""Per metre."""
PAINTS: Final = (
    (225, 225, 222), (25, 26, 30), (120, 124, 128), (70, 74, 80), (160, 25, 25), (25, 50, 120), (180, 180, 184),
)  # fmt: skip
RED: Final = (165, 18, 22)
"""Of rear lights."""
GROUND: Final = 0.26
"""Metres below a vehicle's body."""


@dataclass
class Body:
    """The shape of a vehicle, which drives towards +z.

    profile   (z, y, half width) from its rear over the roof to its front, length / 2 being the front's z.
    faces     what is between two of these.
    belt      height of the windows' lower border; that of the roof where the side is drawn as one.
    """

    kind: str
    length: float
    half: float
    top: float
    belt: float
    profile: list[tuple[float, float, float]]
    faces: list[str]

    @property
    def tall(self) -> bool:
        return self.kind in ("bus", "truck")


def vehicle(rng: Rng, kind: str, light: Light) -> tuple[list[Quad], float, float]:
    """Quads around the origin, driving towards +z; its length and width in metres.

    kind: hatch, sedan, estate, suv, van, truck or bus.
    """
    paint = np.array(PAINTS[rng.integers(len(PAINTS))], np.float64) * rng.uniform(0.85, 1.1)
    if rng.random() < 0.25 or kind in ("bus", "truck"):
        paint = hue(rng, (0.1, 0.9), (0.3, 0.9))
    pane = light.haze * 0.3 + 12
    body = _body(rng, kind)
    mesh: list[Quad] = []
    label = CLASS.get(kind, CLASS["car"])
    for name, (z0, y0, w0), (z1, y1, w1) in zip(body.faces, body.profile, body.profile[1:], strict=False):
        wide, run = max(w0, w1), float(np.hypot(z1 - z0, y1 - y0))
        upper, lower = w1 / wide, w0 / wide
        edge = [(0.5 - upper / 2, 0), (0.5 + upper / 2, 0), (0.5 + lower / 2, 1), (0.5 - lower / 2, 1)]
        art = cut_out(_face(rng, name, kind, paint, pane, 2 * wide, run), edge)
        mesh.append(quad((-wide, y1, z1), (2 * wide, 0, 0), (0, y0 - y1, z0 - z1), Texture(art), label))
    sides = [(_flank(rng, body, paint, pane), body.belt, 0.0, body.half, body.half)]
    if body.belt < body.top:
        sides.append((_windows(rng, body, paint, pane), body.top, body.belt, body.profile[3][2], body.half))
    front = body.length / 2
    for art, y1, y0, x1, x0 in sides:
        left, right = Texture(art[:, ::-1]), Texture(art)
        mesh.append(quad((-x1, y1, front), (0, 0, -body.length), (x1 - x0, y0 - y1, 0), left, label))
        mesh.append(quad((x1, y1, -front), (0, 0, body.length), (x0 - x1, y0 - y1, 0), right, label))
    return mesh, body.length, 2 * body.half


def _body(rng: Rng, kind: str) -> Body:
    if kind == "bus":
        length, w, top = rng.uniform(9, 12), 1.25, 3.0
        e = length / 2
        profile = [(-e, 0.0, w), (-e, top, w), (e - 0.1, top, w), (e, 0, w)]
        return Body(kind, length, w, top, top, profile, ["rear", "roof", "front"])
    if kind == "truck":
        length, w, top = rng.uniform(6, 9), 1.2, rng.uniform(2.9, 3.5)
        e = length / 2
        cab = [(e - 1.9, 2.4, w), (e - 0.5, 2.4, w), (e - 0.1, 1.4, w), (e, 0.0, w)]
        profile = [(-e, 0.0, w), (-e, top, w), (e - 2, top, w), *cab]
        return Body(kind, length, w, top, top, profile, ["rear", "roof", "box", "roof", "windscreen", "front"])
    # Length, half the width, heights of roof and belt; lengths of the deck behind the rear window, and of this.
    length, w, top, belt, deck, back = {
        "hatch": (rng.uniform(3.6, 4.2), 0.86, 1.46, 0.92, 0.08, 0.5),
        "sedan": (rng.uniform(4.4, 4.9), 0.9, 1.43, 0.92, 0.75, 0.75),
        "estate": (rng.uniform(4.4, 4.8), 0.9, 1.5, 0.94, 0.06, 0.4),
        "suv": (rng.uniform(4.2, 4.8), 0.93, rng.uniform(1.62, 1.8), 1.08, 0.06, 0.35),
        "van": (rng.uniform(4.8, 5.6), 0.97, rng.uniform(1.95, 2.4), 1.2, 0.03, 0.1),
    }[kind]
    e = length / 2
    narrow, bonnet, slant = (0.1, 0.62, 0.65) if kind == "van" else (0.2, 0.5, 0.85)
    up, nose = w - narrow, e * bonnet
    profile = [(-e, 0, w), (-e, belt - 0.06, w), (-e + deck, belt, w), (-e + deck + back, top, up)]
    profile += [(nose - slant, top, up), (nose, belt, w), (e - 0.12, belt - 0.2, w), (e, 0, w)]
    faces = ["rear", "deck", "window", "roof", "windscreen", "bonnet", "front"]
    return Body(kind, length, w, top, belt, profile, faces)


def _face(rng: Rng, name: str, kind: str, paint: Array, pane: Array, width: float, run: float) -> Array:
    """RGBA of the part of a vehicle that lies across it; width and run, from above to below, in metres."""
    w, h = round(width * TEXELS), max(4, round(run * TEXELS))
    art = np.zeros((h, w, 4), np.uint8)

    def fill(x0: float, x1: float, y0: float, y1: float, colour: Colour) -> None:
        """x outwards from the middle to both sides, y from above, in shares."""
        for side in (-1, 1):
            a, b = sorted((w / 2 * (1 + side * x0), w / 2 * (1 + side * x1)))
            rectangle(art, (round(a), round(y0 * h)), (round(b) - 1, round(y1 * h) - 1), colour)

    if name in ("window", "windscreen"):
        art[:] = solid(paint * 0.8)
        fill(0, 0.9, 0.08, 0.94, pane)
        fill(0, 0.88, 0.08, 0.4, pane * 1.25)
        if name == "windscreen":
            fill(0.25, 0.6, 0.72, 0.94, pane * 0.4)
        return art
    if name in ("roof", "bonnet", "deck", "box"):
        art[:] = solid(paint * (0.9 if name != "box" else 0.7))
        fill(0.9, 1, 0, 1, paint * 0.7)
        return art
    body = 1 - 0.27 / run
    shade = np.linspace(1.1, 0.7, max(1, round(body * h)))[:, None, None]
    art[: len(shade)] = rgba(paint * shade * np.ones((1, w, 1)))
    fill(0.62, 0.92, body - 0.05, 1.0, (18, 18, 20))
    fill(0, 1, body * 0.78, body, paint * 0.45 if rng.random() < 0.5 else (40, 40, 40))
    white = (232, 234, 230)
    if kind in ("bus", "truck"):
        fill(0.75, 0.95, body * 0.8, body * 0.88, RED if name == "rear" else white)
        if kind == "bus":
            fill(0, 0.9, 0.12, 0.55, pane)
            fill(0, 0.6, 0.03, 0.1, (20, 20, 20))
            fill(0, 0.4, 0.05, 0.08, (240, 160, 40))
        elif name == "front":
            fill(0, 0.9, 0.02, 0.1, pane)
        else:
            fill(0, 0.02, 0.02, body * 0.8, paint * 0.5)
    elif name == "rear":
        fill(0.68, 0.97, 0.1, 0.1 + rng.uniform(0.2, 0.34), RED)
        fill(0.7, 0.82, 0.2, 0.28, (235, 150, 120))
        fill(0, 1, 0, 0.03, paint * 0.6)
    else:
        fill(0.58, 0.95, 0.14, 0.36, white)
        fill(0.66, 0.84, 0.18, 0.32, (150, 155, 160))
        fill(0, 0.5, 0.2, 0.42, (22, 22, 25))
        fill(0, 0.5, 0.29, 0.31, (140, 140, 142))
    fill(0, 0.28, body * 0.62, body * 0.75, (236, 234, 222))
    fill(0, 0.2, body * 0.66, body * 0.71, (60, 60, 70))
    return art[::-1] if name == "front" else art


def _flank(rng: Rng, body: Body, paint: Array, pane: Array) -> Array:
    """RGBA of a vehicle's side below its belt; it drives to the right."""
    length, belt, e = body.length, body.belt, body.length / 2
    w, h = round(length * TEXELS), round(belt * TEXELS)

    def spot(z: float, y: float) -> tuple[int, int]:
        return round((z + e) * TEXELS), round((belt - y) * TEXELS)

    def box(z0: float, y0: float, z1: float, y1: float, colour: Colour) -> None:
        rectangle(art, spot(z0, y0), spot(z1, y1), colour)

    shade = np.interp(np.linspace(0, 1, h), [0, 0.35, 0.45, 1], [1.12, 0.95, 1.02, 0.6])[:, None, None]
    outline = [spot(z, max(GROUND, min(y, belt))) for z, y, _ in body.profile]
    mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(mask, [np.array(outline, np.int32)], (255,), cv2.LINE_AA)
    art = masked(rgba(paint * shade * np.ones((1, w, 1))), mask)
    if body.kind == "bus":
        for z in np.arange(-e + 0.3, e - 1.2, 1.5):
            box(z, 2.6, z + 1.38, 1.35, pane)
            box(z + 0.2, 2.6, z + 0.7, 1.35, pane * 1.25)
        box(e - 1.3, 2.6, e - 0.2, 0.35, pane * 0.8)
        box(-e, 1.1, e - 1.4, 0.95, 255 - paint * 0.6)
    elif body.kind == "truck":
        box(-e, belt, e - 2, 0.9, hue(rng, (0, 0.6), (0.5, 0.95)))
        box(-e + 0.8, belt - 0.6, e - 3, 1.7, hue(rng, (0.3, 0.9), (0.3, 0.9)))
        box(-e, 0.9, e - 2, 0.5, (35, 35, 38))
        box(e - 1.5, 2.15, e - 0.5, 1.45, pane)
    else:
        for share in (-0.18, 0.1, 0.3):
            z = share * length - 0.1
            line(art, spot(z, belt), spot(z, 0.35), paint * 0.45, 1)
        for share in (-0.14, 0.06):
            z = share * length
            line(art, spot(z, belt - 0.14), spot(z + 0.16, belt - 0.14), paint * 0.4, 3, smooth=False)
        box(-e, belt - 0.15, -e + 0.16, belt - 0.32, RED)
        box(e - 0.3, belt - 0.26, e - 0.04, belt - 0.38, (225, 228, 225))
        line(art, spot(-e, 0.32), spot(e, 0.32), (30, 30, 32), 5, smooth=False)
    r = 0.48 if body.tall else 0.32
    y, x = np.arange(h)[:, None], np.arange(w)[None]
    wheels = np.zeros((h, w), bool)
    for z in (-length * (0.25 if body.tall else 0.3), length * 0.31):
        centre = spot(z, r)
        disc(art, centre, round((r + 0.07) * TEXELS), (12, 12, 14))
        disc(art, centre, round(r * TEXELS), (26, 26, 28))
        rim = np.full(3, rng.uniform(110, 190))
        disc(art, centre, round(r * 0.62 * TEXELS), rim)
        for k in range(5):
            turn = 2 * np.pi * k / 5
            line(art, centre, spot(z + np.cos(turn) * r * 0.55, r + np.sin(turn) * r * 0.55), rim * 0.45, 3)
        wheels |= (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (r * TEXELS) ** 2
    art[(y > (belt - GROUND) * TEXELS) & ~wheels] = 0
    return art


def _windows(rng: Rng, body: Body, paint: Array, pane: Array) -> Array:
    """RGBA of a vehicle's side above its belt; it drives to the right."""
    length, high = body.length, body.top - body.belt
    h, w = max(4, round(high * TEXELS)), round(length * TEXELS)
    art = np.zeros((h, w, 4), np.uint8)
    art[:] = solid(paint * 0.95)
    outline = np.array([((z + length / 2) / length, (body.top - y) / high) for z, y, _ in body.profile[2:6]])
    middle = outline.mean(0)
    inner = (outline - middle) * (0.9, 0.74) + middle
    if body.kind == "van" and rng.random() < 0.5:  # without windows in its rear
        inner[[0, 1], 0] = inner[[2], 0] - 0.14
    polygon(art, inner * (w, h), pane)
    gleam = np.array([inner[0] * 0.5 + inner[1] * 0.5, inner[1], inner[2], inner[2] * 0.6 + inner[3] * 0.4])
    polygon(art, gleam * (w, h), pane * 1.3)
    for post in (0.42, 0.6):
        x = round((inner[0, 0] * (1 - post) + inner[3, 0] * post) * w)
        line(art, (x, 0), (x, h), paint * 0.3, 3)
    return cut_out(art, outline)
