"""Faces as meshes: where a head is, how it is turned, what it expresses; the head's square in the picture. NumPy.

A mesh is taken apart into size, place and rotation of the head and its shape in the head's own frame (`heads`); what
of the shape differs from the person's neutral face is the expression (`motion.transferred`). `fit` puts the driver's
expression and movement onto the avatar's neutral face: landmarks of another person are what Few-Shot Adversarial
Talking Heads (§5) names as its limit, because a model draws the person whose proportions it is shown.

The head's frame: x to the person's left, y down, z to the back of the head; origin in the middle of the firm points,
those above the mouth; unit: their root mean square distance from there. Pictures as in `types.PoseTrack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from .errors import NobodyFound
from .motion import FOREHEAD, LIDS, NOSE_BASE, SIDES, neutral, rotations, soft, transferred
from .skeleton import HAND_POINTS, IRISES, JOINTS
from .types import Array, Image, PoseTrack

Float = npt.NDArray[np.float64]

CROP: Final = 1.8
"""Side of a head's square in heights of its face mesh, which ends at hairline and chin."""
CALM: Final = 0.5
"""Sigma, in seconds, of the smoothing that squares are tracked with."""
FEATHER: Final = 0.08
"""Share of a square's side over which it fades into the picture it is pasted into."""
WINDOW: Final = 256
"""Pictures whose meshes are held at a time."""
SAMPLE: Final = 600
"""The most pictures that tell what the driver's face is like at rest."""
_REMEDY: Final = "Use pictures that show a face, large and from the front."
FIRM: Final = (
    *(6, 168, 197, 195, 5, 4, 1, 2, 98, 327, 10, 151, 9, 8, 109, 338, 67, 297, 103, 332, 54, 284, 21, 251, 162, 389),
    *(127, 356, 234, 454, 93, 323, 33, 133, 263, 362, 116, 345, 117, 346, 118, 347, 50, 280, 129, 358, 122, 351),
)
"""Points that speech, smiles and blinks hardly move: forehead, temples, nose, the eyes' corners, cheekbones."""


class Heads(NamedTuple):
    """Heads of T pictures. NaN where no face was found."""

    rotation: Float
    """(T, 3, 3): the head's frame → the camera's (x right, y down, z away)."""
    size: Float
    """(T,) pixels per unit of the head's frame."""
    place: Float
    """(T, 3) the origin of the head's frame in pixels."""
    shape: Float
    """(T, N, 3) the mesh in the head's frame."""


def typical(face: Array) -> Float:
    """The median (N, 3), in the head's frame, of face meshes (T, N, 3), x, y, z in pixels, all of one person.

    Raises ValueError when no picture has a face.
    """
    mesh = face.astype(np.float64)
    mesh = mesh[np.isfinite(mesh).all(axis=(1, 2))]
    if not len(mesh):
        raise ValueError("no face in any picture")
    frames = _frame(mesh)
    # From the picture that looks into the camera most straight: its depth is known best.
    first = int(frames[:, 2, 2].argmax())
    template = (mesh[first] - mesh[first, FIRM].mean(axis=0)) @ frames[first]
    for _ in range(3):
        middle = np.median(heads(face, template).shape[np.isfinite(face).all(axis=(1, 2))], axis=0)
        template = middle @ _frame(middle[None])[0]
    return template


def heads(face: Array, template: Float) -> Heads:
    """Take face meshes (T, N, 3), x, y, z in pixels, apart; rotations are those that turn the firm points of the
    person's own `template` (`typical`) best into theirs (Kabsch 1976)."""
    mesh = face.astype(np.float64)
    lost = ~np.isfinite(mesh).all(axis=(1, 2))
    mesh = np.where(lost[:, None, None], template, mesh)
    firm = mesh[:, FIRM]
    place = firm.mean(axis=1)
    size = np.sqrt(((firm - place[:, None]) ** 2).sum(axis=2).mean(axis=1))
    rotation = rotations(template[list(FIRM)], firm)
    shape = np.einsum("tni,tij->tnj", mesh - place[:, None], rotation) / size[:, None, None]
    out = Heads(rotation, size, place, shape)
    for values in out:
        values[lost] = np.nan
    return out


def _frame(mesh: Float) -> Float:
    """(T, 3, 3): the axes of the head as columns, from the mesh (T, N, 3) itself: left along the ears, down the nose,
    into the head."""
    left = mesh[:, SIDES[1]] - mesh[:, SIDES[0]]
    down = mesh[:, NOSE_BASE] - mesh[:, FOREHEAD]
    x = left / np.linalg.norm(left, axis=1, keepdims=True)
    z = np.cross(x, down)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=2)


class Driver(Protocol):
    """Poses of consecutive pictures, as `PoseTrack` and `motion.Movement` hold them."""

    @property
    def fps(self) -> Fraction: ...

    def __len__(self) -> int: ...

    def select(self, index: Sequence[int]) -> PoseTrack: ...


class Talk:
    """The driver's movement on the avatar's face, to be drawn picture by picture; `fit` makes all of it at once.

    Shape (but for its depth) and place are the avatar's; expression, gaze, turns of the head, and its movements about
    where it slowly drifts to (`CALM`) the driver's. Irises there are if the avatar's meshes have them. Where the
    driver's face was not found, the nearest picture's is taken. Meshes are held for `WINDOW` pictures at a time.

    size  (width, height) of the avatar's picture, inside of which the head is kept.
    fps   pictures per second.
    """

    def __init__(self, driver: Driver, avatar: PoseTrack, size: tuple[int, int], still: Array | None = None) -> None:
        """
        Args:
            driver: gaps filled, smoothed.
            avatar: poses of the avatar's person in their picture; the more, the better it is known what their face is
                like at rest.
            still: (K, 33, 4) the bodies of the references; all bodies of `avatar` unless they are given.

        Raises:
            NobodyFound: one of the two shows no face.
        """
        self.size, self.fps, self._driver = size, driver.fps, driver
        if not np.isfinite(avatar.face).all(axis=(1, 2)).any():
            raise NobodyFound("No face was found in the avatar's pictures.", _REMEDY)
        theirs = heads(avatar.face, typical(avatar.face))
        some = driver.select(np.unique(np.linspace(0, len(driver) - 1, SAMPLE).round().astype(int)).tolist()).face
        try:
            self._template = typical(some)
        except ValueError:
            raise NobodyFound("No face was found in the driving video.", _REMEDY) from None
        self._rest = neutral(heads(some, self._template).shape)
        other = neutral(theirs.shape)
        # What is straight ahead for one is so for the other: the axes hang on few points, this on all firm ones.
        other = other @ rotations(other[list(FIRM)], self._rest[None, FIRM])[0].T
        # Depth is a guess from one view: only the driver's own errs like the driver's rotations, and both cancel out.
        both = min(len(other), len(self._rest))
        depth = other[:, 2].copy()
        other[:both, 2] = self._rest[:both, 2]
        for (corners, _, _), iris in zip(LIDS, map(list, IRISES), strict=True):
            if len(other) > both:  # irises of its own lie in its eyes as they did
                other[iris, 2] += (other[list(corners), 2] - depth[list(corners)]).mean()
        self._other = other

        windows = [range(i, min(i + WINDOW, len(driver))) for i in range(0, len(driver), WINDOW)]
        found = [heads(driver.select(rows).face, self._template) for rows in windows]
        sizes, places = (np.concatenate(x) for x in ([f.size for f in found], [f.place for f in found]))
        known = np.flatnonzero(np.isfinite(sizes))
        after = np.searchsorted(known, np.arange(len(sizes))).clip(max=len(known) - 1)
        before = (after - 1).clip(min=0)
        rows = np.arange(len(sizes))
        self._nearest = np.where(rows - known[before] < known[after] - rows, known[before], known[after])
        sizes, places, fps = sizes[self._nearest], places[self._nearest], float(self.fps)
        self._about = float(np.nanmedian(theirs.size))
        self._larger = sizes / calm(sizes, fps)
        self._home = np.nanmedian(theirs.place, axis=0)
        self._drift = (places - calm(places, fps)) / calm(sizes, fps)[:, None] * self._about
        bodies = avatar.body if still is None else still
        apart = np.abs(bodies[..., :2] - np.median(avatar.body[..., :2], axis=0)).mean(axis=(1, 2))
        self._body = bodies[np.nan_to_num(apart, nan=np.inf).argmin()]
        self._held: tuple[int, Array] = (-1, some[:1])

    def __len__(self) -> int:
        return len(self._nearest)

    def select(self, index: Sequence[int]) -> PoseTrack:
        """The poses of some pictures. The body is not driven: it stays as in the picture where it is most as usual."""
        rows = np.asarray(index)
        found = heads(np.concatenate([self._mesh(int(n)) for n in self._nearest[rows]]), self._template)
        mesh = np.einsum("tnj,tij->tni", transferred(found.shape, self._rest, self._other), found.rotation)
        mesh *= (self._about * self._larger[rows])[:, None, None]
        drift = self._drift[rows]
        drift[:, :2] = _inside(mesh[..., :2] + self._home[:2], drift[:, :2], self.size)
        mesh += (self._home + drift)[:, None]
        count = len(rows)
        body = self._body[None].repeat(count, 0).astype(np.float32)
        return PoseTrack(
            body, np.full((count, len(JOINTS), 3), np.nan, np.float32), mesh.astype(np.float32),
            np.full((count, 2, HAND_POINTS, 3), np.nan, np.float32), self.size, self.fps,
        )  # fmt: skip

    def _mesh(self, row: int) -> Array:
        """(1, N, 3): the driver's face in one picture."""
        if self._held[0] != row:
            self._held = row, self._driver.select([row]).face
        return self._held[1]


def fit(track: PoseTrack, avatar: PoseTrack, size: tuple[int, int]) -> PoseTrack:
    """The driver's track on the avatar's face, see `Talk`."""
    return Talk(track, avatar, size).select(range(len(track)))


def _inside(points: Float, drift: Float, size: tuple[int, int]) -> Float:
    """Movements (T, 2) of points (T, N, 2), shortened so that these stay in the picture; what is outside without any
    movement stays where it is."""
    low = np.minimum(0, -points.min(axis=1))
    high = np.maximum(0, np.array(size) - points.max(axis=1))
    down, up = (soft(np.abs(drift), 0.5 * room, room) for room in (-low, high))
    out: Float = np.where(drift < 0, -down, up)
    return out


def calm(values: Float, fps: float, sigma: float = CALM) -> Float:
    """Values (T, ...) smoothed by a Gaussian over time, `sigma` seconds wide; the ends are continued."""
    reach = max(1, round(3 * sigma * fps))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (sigma * fps)) ** 2)
    flat = values.reshape(len(values), -1)
    longer = np.concatenate([flat[:1].repeat(reach, 0), flat, flat[-1:].repeat(reach, 0)])
    smooth = [np.convolve(column, kernel / kernel.sum(), "valid") for column in longer.T]
    return np.stack(smooth, axis=1).reshape(values.shape)


# ------------------------------------------------------------------------------------------------ squares


def boxes(track: PoseTrack, *, still: float = 1.5) -> Float:
    """The squares around the head, (T, 3): x, y of the middle and side, in pixels; tracked, smoothed over time.

    Where the head stays in one place, that is, one square that is no more than `still` times as large holds all of
    them, it is that for all pictures: the scene behind it stands still, too. Squares lie inside of the picture, and are
    the smaller where it is too small.

    Raises NobodyFound when no picture has a face.
    """
    face = track.face[..., :2].astype(np.float64)
    rows = np.flatnonzero(np.isfinite(face).all(axis=(1, 2)))
    if not len(rows):
        raise NobodyFound("No face was found.", _REMEDY)
    low, high = face[rows].min(axis=1), face[rows].max(axis=1)
    # A turned or nodding head's mesh is less high or wide, but hardly less of both.
    side = CROP * (high - low).max(axis=1)
    found = np.concatenate([(low + high) / 2, side[:, None]], axis=1)
    nearest = np.abs(np.arange(len(face))[:, None] - rows).argmin(axis=1)
    tracked = calm(found[nearest], float(track.fps))
    half = tracked[:, 2:] / 2
    first, last = (tracked[:, :2] - half).min(axis=0), (tracked[:, :2] + half).max(axis=0)
    side_of_all = float((last - first).max())
    if side_of_all <= still * float(np.median(tracked[:, 2])):
        tracked[:] = np.append((first + last) / 2, side_of_all)
    tracked[:, 2] = tracked[:, 2].clip(max=min(track.size))
    tracked[:, :2] = tracked[:, :2].clip(tracked[:, 2:] / 2, np.array(track.size) - tracked[:, 2:] / 2)
    return tracked


def cut(picture: Image, box: Float, side: int) -> Image:
    """The square `box` (x, y, side) of a picture, `side` pixels wide; borders are repeated."""
    zoom = side / box[2]
    if zoom < 1:  # a warp alone would skip pixels
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.5 * (1 / zoom - 1) + 1e-3), np.uint8)
    matrix = _matrix(box, side)
    return np.asarray(cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def paste(photo: Image, square: Image, box: Float) -> Image:
    """`square` back in the place of `photo` that `cut` took it from, its edges fading over `FEATHER` of its side."""
    side = square.shape[0]
    edge = max(1, round(FEATHER * side))
    ramp = np.clip(np.minimum(np.arange(side), np.arange(side)[::-1]) / edge, 0, 1)
    # No ramp where the square ends with the photo.
    height, width = photo.shape[:2]
    ramps = []
    for middle, length in zip(box[:2], (width, height), strict=True):
        one = ramp.copy()
        if middle - box[2] / 2 <= 0:
            one[: side // 2] = 1
        if middle + box[2] / 2 >= length:
            one[side // 2 :] = 1
        ramps.append(one)
    mask = (ramps[1][:, None] * ramps[0]).astype(np.float32)
    back = cv2.invertAffineTransform(_matrix(box, side))
    flags = cv2.INTER_AREA if box[2] < side else cv2.INTER_CUBIC
    # Borders are repeated in the square, so that the mask alone decides where it ends.
    there = cv2.warpAffine(square, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    share = cv2.warpAffine(mask, back, (width, height))[..., None]
    return np.asarray(np.round(photo + (there.astype(np.float32) - photo) * share), np.uint8)


def _matrix(box: Float, side: int) -> Float:
    """(2, 3): pixels of the picture → those of the square, both counted from the middle of the first one."""
    zoom = side / box[2]
    corner = np.asarray(box[:2], np.float64) - box[2] / 2
    return np.concatenate([np.eye(2) * zoom, ((0.5 - corner) * zoom - 0.5)[:, None]], axis=1)
