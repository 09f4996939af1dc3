"""What the files of this package share: types, groups of joints, rows in blocks, soft limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from ..skeleton import J

Float = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

NOSE: Final = J["nose"]
EARS: Final = (J["left_ear"], J["right_ear"])
SHOULDERS: Final = (J["left_shoulder"], J["right_shoulder"])
WRISTS: Final = (J["left_wrist"], J["right_wrist"])
HIPS: Final = (J["left_hip"], J["right_hip"])
XY: Final = np.array([1, 1, 0], np.float32)
"""Takes the depth from an anchor: that of face meshes and hands has an origin of its own."""


def row_blocks(count: int, size: int = 4096) -> Iterator[slice]:
    """Rows, a block at a time: what is made in between stays small for tracks of any length."""
    yield from (slice(i, i + size) for i in range(0, count, size))


def soft(values: Float, free: float | Float, limit: float | Float) -> Float:
    """`values` untouched within ±`free`, beyond compressed smoothly towards ±`limit`."""
    room = np.maximum(limit - free, 1e-6)
    over = np.abs(values) - free
    return np.where(over <= 0, values, np.sign(values) * (free + room * np.tanh(np.maximum(over, 0) / room)))
