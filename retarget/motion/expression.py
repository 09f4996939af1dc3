"""Expressions: how a face differs from the same face at rest, and the driver's on the avatar's face.

Faces are meshes (N, 3) in a frame of their own, in units of the root mean square distance of their firm points from
these points' middle. With irises (478 points in place of 468), gaze is an expression of the eyes, which is measured
against their corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..skeleton import FACE_CONTOURS, FACE_POINTS, IRISES
from ..types import Array
from .attitude import Meshes
from .head import CHIN

Double = npt.NDArray[np.float64]

LEAST_EYE: Final = 0.02
"""The least opening of a neutral eye, in units of the head's frame, that lids are scaled by."""
MOUTH: Final = (61, 291)
"""The mouth's corners, right and left."""
LIPS: Final = tuple(sorted({*FACE_CONTOURS["lips_outer"], *FACE_CONTOURS["lips_inner"]}))
GAP: Final = (13, 14)
"""The inner lips' middle, above and below."""
BROWS: Final = tuple(sorted({i for name, line in FACE_CONTOURS.items() if "brow" in name for i in line}))
LIDS: Final = (
    ((33, 133), (159, 145), (246, 161, 160, 159, 158, 157, 173, 7, 163, 144, 145, 153, 154, 155)),
    ((263, 362), (386, 374), (466, 388, 387, 386, 385, 384, 398, 249, 390, 373, 374, 380, 381, 382)),
)
"""Per eye, right and left: its corners, the middle of its lids, and all points of the lids."""
MOBILE: Final = (*LIPS, *(n for _, _, lids in LIDS for n in lids), *BROWS, CHIN)
"""What speech, smiles and blinks move most."""
REACH: Final = 0.25
"""How far around these points, in units of the head, a face moves with them."""
ASIDE: Final = (0.5, 0.8)
"""Cosines of the angle to the camera: none of an expression is believed below the first, all of it above the second."""


class Expressions:
    """The driver's expressions on the avatar's face.

    About mouth, eyes and brows; all else keeps the avatar's shape, and a head that is turned away its rest: what a mesh
    tells of cheeks and of profiles is the driver's bones, and noise.
    """

    def __init__(self, template: Array, some: Array) -> None:
        """
        Args:
            template: (N, 3) the avatar's face mesh at rest, from the front, in pixels.
            some: (T, M, 3) the driver's, in pictures of all kinds; NaN where no face was found.
        """
        self._template, self._size = template, float(Meshes.of(template[None], template).spread[0])
        self._theirs = self._shapes(template[None])[0][0]
        apart = np.linalg.norm(self._theirs[:, None] - self._theirs[list(MOBILE)], axis=2).min(axis=1)
        self._share = np.exp(-0.5 * (apart / REACH) ** 2)
        shapes, facing = self._shapes(some[np.isfinite(some).all(axis=(1, 2))])
        shapes = shapes[facing > ASIDE[1]]
        self._mine = neutral(shapes) if len(shapes) else None

    def __call__(self, face: Array) -> Double:
        """(T, N, 3) the template with the expressions of the driver's face meshes (T, M, 3); at rest where there is
        none."""
        out = np.repeat(self._template[None].astype(np.float64), len(face), axis=0)
        found = np.isfinite(face).all(axis=(1, 2))
        if self._mine is not None and found.any():
            shapes, facing = self._shapes(face[found])
            seen = np.clip((facing - ASIDE[0]) / (ASIDE[1] - ASIDE[0]), 0, 1)[:, None] * self._share
            moved = transferred(shapes, self._mine, self._theirs) - self._theirs
            out[found] += seen[..., None] * moved * self._size
        return out

    def _shapes(self, face: Array) -> tuple[Double, Double]:
        """(T, M, 3): faces turned as the template is, in their own units; (T,) how far each faces the camera."""
        found = Meshes.of(face, self._template)
        shapes = np.einsum("tni,tij->tnj", face - found.middle[:, None], found.turn) / found.spread[:, None, None]
        return shapes, found.turn[:, 2, 2]


def neutral(shape: Double) -> Double:
    """The neutral face (N, 3) among shapes (T, N, 3): the median of those with the mouth shut and open eyes.

    Of these there are as many as are among the quarter with the least open mouths and in the half with the most open
    eyes; if none, the former. Of a single picture nothing but itself is known.
    """
    shape = shape[np.isfinite(shape).all(axis=(1, 2))]
    gap = np.linalg.norm(shape[:, GAP[0]] - shape[:, GAP[1]], axis=1)
    eyes = np.min([np.linalg.norm(shape[:, a] - shape[:, b], axis=1) for _, (a, b), _ in LIDS], axis=0)
    shut = gap <= np.quantile(gap, 0.25)
    both = shut & (eyes >= np.median(eyes))
    middle: Double = np.median(shape[both if both.any() else shut], axis=0)
    return middle


def transferred(shape: Double, mine: Double, theirs: Double) -> Double:
    """The expressions of shapes (T, N, 3) of somebody with the neutral face `mine`, on the neutral face `theirs`.

    Each point moves as it does in `shape`, lips by the ratio of the mouths' widths. Lids close by the same share of
    their opening: eyes that are shut there are shut here, however large. Irises are as many eye widths from the middle
    of the eye's corners as in `shape`, wherever `theirs` look; they stay there, in their eyes, if `shape` has none.

    Returns:
        (T, M, 3): as many points as `theirs` has.
    """
    moved = (shape - mine)[:, :FACE_POINTS]
    width = [float(np.linalg.norm(face[MOUTH[0]] - face[MOUTH[1]])) for face in (theirs, mine)]
    moved[:, LIPS] *= width[0] / max(width[1], 1e-6)
    for corners, (above, below), lids in LIDS:
        openings = [abs(float(face[below, 1] - face[above, 1])) for face in (theirs, mine)]
        # Eyes that are shut in what passes for neutral tell nothing of how far they open.
        ratio = openings[0] / openings[1] if min(openings) > LEAST_EYE else 1.0
        around = moved[:, corners].mean(axis=1, keepdims=True)
        moved[:, lids] = around + (moved[:, lids] - around) * ratio
    out: Double = theirs[:FACE_POINTS] + moved
    if len(theirs) == FACE_POINTS:
        return out
    for (corners, _, _), iris in zip(LIDS, map(list, IRISES), strict=True):
        rest = theirs[iris] - _middle(theirs, corners)
        if len(mine) > FACE_POINTS:
            ratio = _width(theirs, corners) / max(_width(mine, corners), 1e-6)
            own = mine[iris] - _middle(mine, corners)
            gaze = shape[:, iris] - _middle(shape, corners)
            # The iris is as large as theirs.
            rest = ratio * (gaze - own + own[:1]) + rest - rest[:1]
        out = np.concatenate([out, _middle(out, corners) + np.broadcast_to(rest, (len(out), len(iris), 3))], axis=1)
    return out


def _middle(face: Double, corners: Sequence[int]) -> Double:
    """(..., 1, 3): the middle of an eye's corners in meshes (..., N, 3)."""
    middle: Double = face[..., list(corners), :].mean(axis=-2, keepdims=True)
    return middle


def _width(face: Double, corners: Sequence[int]) -> float:
    """Of an eye of one mesh."""
    return float(np.linalg.norm(face[corners[0]] - face[corners[1]]))
