"""One body's motion, danced by another body in its place.

The fit follows one idea: a pose is a tree of bone vectors in pixels. Each vector keeps its direction and its
foreshortening and is multiplied by the ratio of the two people's true lengths of that bone; the tree is then put where
the avatar stands, its lowest point as high above the avatar's floor as the driver's is above theirs. Nothing is an
angle, so lying, crouching and standing on the hands are no special cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..pose.base import pixels_per_metre, unknown
from ..skeleton import FACE_JOINTS, FACE_POINTS
from ..types import Array, PoseTrack, Progress, Silent
from .attitude import Meshes, attitude
from .base import SHOULDERS, WRISTS, XY, Float, row_blocks, soft
from .body import BONE, Body, body_of
from .expression import Expressions
from .gaps import fill
from .placing import nearest, place_of
from .smoothing import gauss
from .tree import LOWER, made_up, tree_of
from .turning import limited


def fit(track: PoseTrack, body: Body, *, size: tuple[int, int], progress: Progress | None = None) -> PoseTrack:
    """The driver's motion danced by the avatar's body in the avatar's place (`--align auto`).

    - Bones get the avatar's lengths; directions and foreshortening stay the driver's. The head is the avatar's own
      (joints and face mesh), with the driver's expression, turned like the driver's, as far as the avatar was seen to
      turn and 35 degrees more.
    - The lowest point of the body is as high above the avatar's floor, in leg lengths, as the driver's above theirs.
      Without the avatar's feet the shoulders take the floor's place.
    - Steps sideways keep their length in body sizes; the travel is shifted or compressed when the body would leave
      the picture. Walking nearer or farther changes the size by at most a third.
    - Legs that the driver's pictures do not show are the avatar's own, standing.

    Args:
        track: the driver's, gaps filled; rows of NaN stay NaN.
        body: the avatar's.
        size: (width, height) of the avatar's picture in the result.
        progress: told what had to be made up.
    """
    body = body if body.size == size else body.scaled(size)
    if not track.found.any():
        return replace(track, size=size)
    expressions = None if body.face is None else Expressions(body.face, track.face)
    fitted = fit_piecewise(track, Meshes.of(track.face, body.face), expressions, body, progress or Silent())
    face, hands = fitted.details(slice(None), track.face, track.hands)
    return replace(track, body=fitted.body, world=fitted.world(track.world), face=face, hands=hands, size=size)


class Fitted(NamedTuple):
    """What `fit` makes of a track: small at once, large a piece at a time.

    body     (T, 33, 4).
    details  some pictures, and the driver's face meshes and hands there, (n, N, 3) and (n, 2, 21, 3) → the avatar's.
    world    the driver's world coordinates (T, 33, 3) → the fitted ones.
    """

    body: Array
    details: Callable[[slice, Array, Array], tuple[Array, Array]]
    world: Callable[[Array], Array]


def fit_piecewise(
    track: PoseTrack, meshes: Meshes, expressions: Expressions | None, body: Body, say: Progress
) -> Fitted:
    """See `fit`; of the track the body and the world coordinates are looked at. Expressions: None without a face."""
    mine, fps = body_of(replace(track, face=unknown(len(track), FACE_POINTS))), float(track.fps)
    ratio = _ratios(body, mine)
    points = track.body[..., :3]
    hidden = _hidden(mine, body)
    if hidden:
        say.warn(f"The driving video hardly shows the {' and '.join(hidden)}; there the avatar keeps its own pose.")

    nearer = np.log(np.maximum(_calm(pixels_per_metre(track), fps), 1e-6) / mine.scale)
    if "hips" in hidden:
        nearer[:] = 0  # a head and shoulders do not tell it
    near = nearest(body)
    kept = np.where(nearer > 0, soft(nearer, 0.6 * near, near), soft(nearer, 0.18, 0.3))
    grow = np.exp(kept - nearer)[:, None, None]  # 1 while the distance hardly changes
    shown = np.exp(kept)[:, None, None]
    own = track.body.copy()
    posed = own[..., :3]
    for rows in row_blocks(len(track)):
        tree = tree_of(points[rows].astype(np.float64), ratio, grow[rows])
        posed[rows] = made_up(tree, body, hidden, shown[rows])

    turned, pivot, visible = attitude(track, meshes, body, fps)
    turned = limited(turned, body.turn)
    shoulders = points[:, SHOULDERS].astype(np.float64).mean(axis=1, keepdims=True)
    neck = (pivot[:, None] - shoulders) * ratio[BONE["neck"]] * grow
    ear = posed[:, SHOULDERS].astype(np.float64).mean(axis=1, keepdims=True) + neck
    posed[:, FACE_JOINTS] = ear + shown * np.einsum("tij,nj->tni", turned, body.head.astype(np.float64))

    leg = (ratio[BONE["upper_leg"]] + ratio[BONE["lower_leg"]]) / 2 * grow[:, 0, 0]
    place = place_of(points, posed, body, mine, leg, kept, hidden, fps)
    posed[..., :2] += place[:, None]
    ear[..., :2] += place[:, None]

    for name in hidden:
        own[:, LOWER[name], 3] = body.rest[LOWER[name], 3]
    before, after = (xyz[:, WRISTS, None].astype(np.float64) * XY for xyz in (points, posed))

    def details(rows: slice, face: Array, hands: Array) -> tuple[Array, Array]:
        hand = ratio[BONE["lower_arm"]] * grow[rows, None]
        hands = ((hands - before[rows]) * hand + after[rows]).astype(np.float32)
        if expressions is None:
            return np.full((len(hands), FACE_POINTS, 3), np.nan, np.float32), hands
        mesh = shown[rows] * np.einsum("tij,tnj->tni", turned[rows], expressions(face)) + ear[rows] * XY
        return np.where(visible[rows, None, None], mesh, np.nan).astype(np.float32), hands

    def world(metres: Array) -> Array:
        tree = tree_of(metres.astype(np.float64), ratio * mine.scale / body.scale, np.ones((1, 1, 1)))
        return tree.astype(np.float32)

    return Fitted(own, details, world)


def _ratios(body: Body, mine: Body) -> Float:
    """(9,) avatar's bone lengths over the driver's; where one was not seen, the median of the others."""
    ratio = (body.lengths / np.maximum(mine.lengths, 1e-3)).astype(np.float64)
    known = ratio[np.isfinite(ratio)]
    whole = float(np.median(known)) if len(known) else _extent(body) / max(_extent(mine), 1e-3)
    ratio[~np.isfinite(ratio)] = whole
    return ratio.clip(0.7 * whole, 1.4 * whole)


def _extent(body: Body) -> float:
    """The size of a head, pixels."""
    points = body.head
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


def _hidden(mine: Body, body: Body) -> list[str]:
    """Which of hips, knees and feet the driver lacks though the avatar has them."""
    shares = zip(LOWER, mine.lower, body.lower, strict=True)
    return [name for name, driver, avatar in shares if driver < 0.25 and avatar >= 0.25]


def _calm(values: Float, fps: float, window: float = 0.5) -> Float:
    """(T,) the slow part of values over time: running median, then Gaussian, `window` seconds wide. NaN is held."""
    values = fill(values[:, None].astype(np.float32), 0, hold=True)[:, 0].astype(np.float64)
    reach = round(window * fps)
    if reach < 1 or len(values) < 3:
        return np.full(len(values), np.median(values))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)
    return gauss(np.median(windows, axis=1), window * fps)


def scale_to(track: PoseTrack, size: tuple[int, int]) -> PoseTrack:
    """The poses where they stand in the source picture, that picture scaled to `size` (`--align none`).

    With equal aspects (within 2 %) this is plain resizing. Otherwise the aspect is kept: the whole source picture is
    scaled to fit inside `size` and centred.
    """
    (w, h), (width, height) = track.size, size
    if abs(w * height / (h * width) - 1) <= 0.02:
        return track.scaled(size)
    s = min(width / w, height / h)
    shift = np.array([(width - s * w) / 2, (height - s * h) / 2, 0], np.float32)
    factor = np.float32(s)
    body = track.body.copy()
    body[..., :3] = body[..., :3] * factor + shift
    return replace(track, body=body, face=track.face * factor + shift, hands=track.hands * factor + shift, size=size)
