"""The picture that shows what an avatar is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from . import parts
from .device import Compute
from .labels import coloured
from .lessons import as_image, drawn
from .models.base import RetargetModel
from .references import Gathered, references, seen_in
from .types import Image

HEIGHT = 320
"""Of one row in pixels."""


def preview(
    gathered: Gathered, stored: Mapping[str, Any], model: RetargetModel, compute: Compute, shrink: int = 1
) -> Image:
    """Rows: the K references; their mattes; their parts in colours; then the plate, a reference, the moved parts of the
    others in its place, and what the fine-tuned model makes of them, drawn at 1 / `shrink` of its size. Of scenes: the
    K references; their label maps; then a reference, and what the model makes of the others. (H, W, 3) uint8."""
    count = min(len(gathered.frames), 8)
    others = "from the others" if len(gathered.frames) > 1 else "from itself"
    *moved, learned = _without(gathered, stored, model, compute, count - 1, shrink)
    last = [_titled(gathered.pictures[count - 1], "left out"), _titled(learned, f"{others}, learned")]
    rows = [[_titled(gathered.pictures[k], f"reference {gathered.picked[k]}") for k in range(count)]]
    if gathered.labels is not None:
        rows += [[_titled(coloured(gathered.labels[k]), "label map") for k in range(count)], last]
        return _stacked(rows)
    rows += [
        [_titled(_on_green(gathered.frames[k], gathered.mattes[k]), "matte") for k in range(count)],
        [_titled(_coloured(gathered, k), "parts") for k in range(count)],
        [_titled(gathered.plate.image, "background plate"), last[0], _titled(moved[0], f"{others}, moved"), last[1]],
    ]
    return _stacked(rows)


def _stacked(rows: Sequence[Sequence[Image]]) -> Image:
    width = max(sum(p.shape[1] for p in row) for row in rows)
    canvas = np.full((HEIGHT * len(rows), width, 3), 24, np.uint8)
    for y, row in enumerate(rows):
        x = 0
        for picture in row:
            canvas[y * HEIGHT : (y + 1) * HEIGHT, x : x + picture.shape[1]] = picture
            x += picture.shape[1]
    return canvas


@torch.inference_mode()
def _without(
    gathered: Gathered, stored: Mapping[str, Any], model: RetargetModel, compute: Compute, k: int, shrink: int
) -> list[Image]:
    """Reference `k` made of the others (or of itself, if it is the only one): of a person, of their moved parts; then,
    as of a scene, by the model."""
    from .models import build

    count = len(gathered.frames)
    size = (gathered.size[0] // shrink, gathered.size[1] // shrink)
    known = references(stored, [j for j in range(count) if j != k] or [k], size).to(compute.device)
    seen = seen_in(gathered.window(k).scaled(size)).to(compute.device)
    models = [model] if gathered.labels is not None else [build("dance"), model]
    made: list[Image] = []
    for one in models:
        one.to(compute.device).eval()
        # Learned or not, `dance` cuts the same parts out.
        if not made or type(one) is not type(models[0]):
            identity = one.encode(known)
        made.append(as_image(drawn(one, one.condition(seen, size[::-1]), identity, compute).rgb[0]))
    return made


def _titled(picture: Image, title: str) -> Image:
    height, width = picture.shape[:2]
    small = cv2.resize(picture, (max(1, round(width * HEIGHT / height)), HEIGHT), interpolation=cv2.INTER_AREA)
    for colour, thick in ((0, 3), (255, 1)):
        cv2.putText(small, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (colour,) * 3, thick, cv2.LINE_AA)
    return np.asarray(small, np.uint8)


def _on_green(frame: Image, matte: np.ndarray[Any, Any]) -> Image:
    return np.asarray(frame * matte[..., None] + np.array([0, 160, 60]) * (1 - matte[..., None]), np.uint8)


def _coloured(gathered: Gathered, k: int) -> Image:
    own, _, _ = parts.part_mattes(parts.skeletons(gathered.poses.select([k])), gathered.mattes[k])
    hues = np.array([[[180 * i // len(own), 200, 255] for i in range(len(own))]], np.uint8)
    colours = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    cover = np.minimum(own.sum(0), 1)[..., None]
    mixed = np.einsum("phw,pc->hwc", own, colours) / np.maximum(own.sum(0), 1e-3)[..., None]
    grey = cv2.cvtColor(gathered.pictures[k], cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    return np.asarray(np.clip(grey * (0.5 + 0.1 * (1 - cover)) + 0.5 * mixed * cover, 0, 255), np.uint8)
