"""Body parts: cut out of the references, moved onto a driving pose, laid over each other.

Dance Dance Generation §3.1: a person is cut into parts; each part is moved by the affine transform that carries its
bone in the reference onto its bone in the driving pose. Beyond the paper, which moves the parts of one input frame:

* every part is taken from the best of the K references (or a cross-fade of two), chosen jointly over the body's tree so
  that neighbours prefer one picture (`choose`), by their poses, by how well they show each other (`blame`), and by what
  a net has learned of such choices (`models.choice`);
* what a part hides behind another part in one reference is completed from the other references (`cut`), a torso's cloth
  after it has been laid over theirs (`registration`), a leg no thicker than it is where it can be seen (`thickness`);
* the parts are laid over each other by depth (`Layout.order`), not in a fixed order;
* the head also follows the face mesh, a hand its joints, by a smooth residual field (`Layout.bend`).

Geometry is NumPy on a handful of points; pictures are torch, on the model's device.
"""

from .choosing import CLUES, choose, clues, cost
from .clothes import freed
from .cutting import Cutouts, cut, part_mattes
from .geometry import Skeleton, affines, body_scale, inverse, skeletons
from .judging import blame, errors
from .layout import Layout, LayoutState, Piece, contact, lay_out, render

__all__ = [
    "CLUES",
    "Cutouts",
    "Layout",
    "LayoutState",
    "Piece",
    "Skeleton",
    "affines",
    "blame",
    "body_scale",
    "choose",
    "clues",
    "contact",
    "cost",
    "cut",
    "errors",
    "freed",
    "inverse",
    "lay_out",
    "part_mattes",
    "render",
    "skeletons",
]
