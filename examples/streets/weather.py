"""Light and sky, and how the camera exposes what they show."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from drawing import Array, Light, Rng, Texture
from textures import noise, rgba

from retarget.types import Image


@dataclass
class Weather:
    light: Light
    sky: Texture
    dusk: bool


def random_weather(rng: Rng) -> Weather:
    kind = str(rng.choice(["sunny", "sunny", "cloudy", "overcast", "dusk"]))
    azimuth = rng.uniform(-np.pi, np.pi)
    altitude = np.radians(rng.uniform(8, 16) if kind == "dusk" else rng.uniform(25, 60))
    sun = np.array([np.sin(azimuth) * np.cos(altitude), np.sin(altitude), np.cos(azimuth) * np.cos(altitude)])
    direct, ambient, zenith, low = {
        "sunny": ((0.85, 0.79, 0.68), (0.56, 0.6, 0.67), (60, 110, 190), (178, 204, 228)),
        "cloudy": ((0.5, 0.48, 0.44), (0.72, 0.74, 0.78), (100, 135, 185), (196, 206, 216)),
        "overcast": ((0.0, 0.0, 0.0), (1.08, 1.1, 1.12), (165, 172, 182), (206, 210, 214)),
        "dusk": ((0.5, 0.3, 0.16), (0.5, 0.47, 0.52), (70, 84, 130), (225, 172, 138)),
    }[kind]
    haze = np.array(low) / 255 * rng.uniform(0.9, 1.0) * 255
    sight = rng.uniform(350, 1200) * (0.5 if kind == "overcast" else 1)
    strength = rng.uniform(0.88, 1.12)
    light = Light(sun, np.array(direct) * strength, np.array(ambient) * strength, haze, sight)
    h, w = 384, 1024
    y = np.linspace(1, 0, h)[:, None, None] ** 0.7
    sky = np.array(zenith) * y + haze * (1 - y)
    clouds = noise(rng, (h, w), (110, 260), 6)
    cover = {"sunny": rng.uniform(-0.2, 0.5), "cloudy": -0.3, "overcast": -0.9, "dusk": 0.0}[kind]
    thick = np.clip((clouds - cover) * 1.6, 0, 1)[..., None]
    if kind == "overcast":
        white = np.array([190, 195, 202]) * (1 + 0.08 * clouds[..., None])
    else:
        white = np.array([225, 165, 150] if kind == "dusk" else [248, 248, 248])
        white = white * (0.86 + 0.14 * clouds[..., None].clip(-1, 1))
    sky = sky * (1 - thick) + white * thick
    sky = sky * y**0.4 + haze * (1 - y**0.4)
    if sun[2] > 0 and kind != "overcast":
        column, row = (sun[0] / sun[2] + 2.5) / 5 * w, h * (1 - sun[1] / sun[2] / 1.3)
        far = np.hypot(np.arange(w)[None] - column, np.arange(h)[:, None] - row)[..., None]
        sky = sky + np.array(direct) * 150 * np.exp(-far / 60)
    return Weather(light, Texture(rgba(sky)), kind == "dusk")


@dataclass
class Exposure:
    """gain (3,) of RGB; contrast; vignette: how much darker the corners are, 0 … 1; grain: the noise's deviation."""

    gain: Array
    contrast: float
    vignette: float
    grain: float

    def taken(self, colours: Array, size: tuple[int, int], rng: Rng) -> Image:
        """Colours of any size → a picture of the size (width, height)."""
        picture = cv2.resize(colours, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j].astype(np.float32)
        edge = 1 - self.vignette * ((x**2 + y**2) / 2) ** 1.5
        picture = picture * (edge[..., None] * self.gain).astype(np.float32)
        picture = (picture - 110) * self.contrast + 110
        picture += rng.normal(0, self.grain, picture.shape[:2]).astype(np.float32)[..., None]
        return np.asarray(picture.clip(0, 255), np.uint8)


def random_exposure(rng: Rng) -> Exposure:
    gain = rng.uniform(0.9, 1.1) * rng.uniform(0.94, 1.06, 3)
    return Exposure(gain, rng.uniform(0.9, 1.2), rng.uniform(0.0, 0.3), rng.uniform(0.8, 2.5))
