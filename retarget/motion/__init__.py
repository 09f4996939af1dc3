"""PoseTrack → PoseTrack: gaps filled, jitter smoothed, one body's motion fitted to another's body and place.

    driver's track ─ fill_gaps ─ smooth ─┬─ fit ──────► danced by the avatar's body in its place   (`--align auto`)
    avatar's track ─ body_of ─ Body ─────┘
    driver's track ─ fill_gaps ─ smooth ─── scale_to ─► where it stands in the driver's picture    (`--align none`)

`Movement` is either row for a whole video, with little memory. All else are pure functions of NumPy arrays.

    gaps       fill_gaps
    smoothing  smooth: the One-Euro filter
    body       body_of: a person measured; SEGMENTS, the bones whose lengths are compared
    head       a person's head measured: templates of joints and face mesh
    fitting    fit, scale_to; in it, one after another:
      tree       bone vectors get the avatar's lengths; legs that are not seen
      attitude   how the driver's head is turned, from face mesh or joints
      placing    floor, jumps, the way sideways
      expression what the driver's face does, on the avatar's
    movement   Movement
    turning    rotations and angles
    base       what these share: groups of joints, soft limits
"""

from .base import soft
from .body import body_of
from .expression import LIDS, neutral, transferred
from .fitting import fit, scale_to
from .gaps import fill_gaps
from .head import FOREHEAD, NOSE_BASE, SIDES
from .movement import Movement
from .smoothing import smooth
from .turning import rotations

__all__ = [
    "FOREHEAD",
    "LIDS",
    "NOSE_BASE",
    "SIDES",
    "Movement",
    "body_of",
    "fill_gaps",
    "fit",
    "neutral",
    "rotations",
    "scale_to",
    "smooth",
    "soft",
    "transferred",
]
