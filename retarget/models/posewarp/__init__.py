"""`posewarp`: MetaPix's second base (Lee et al. 2020, §3, “Pose Transfer”): Balakrishnan et al. 2018, "Synthesizing
Images of Humans in Unseen Poses" (§ below are that paper's), from one reference to the driving pose. Layers and numbers
that the paper leaves open are those of its authors' implementation, which MetaPix builds on.

    reference ─ segmentation U-Net + prior (§3.1) ─ masks of ten limbs and the scene
    masked limbs ─ a similarity transform each, from its joints (§3.2) ─ moved limbs
    moved limbs + pose ─ person U-Net (§3.3) ─ person and matte ┐
    masked scene + pose ─ scene U-Net (§3.4) ─ scene ───────────┴─ blended by the matte (§3.5)

Of K references a picture is drawn from one (`sources`). Fine-tuning takes all pairs of them, both ways (MetaPix §3:
"use the C(K, 2) pairs from K frames"); a driving pose takes the reference whose joints are nearest, in metres, in three
dimensions and wherever the person stands, and stays with it unless another one is nearer by `STICKY`.

The objective's first stage is without critics; it is what MetaPix meta-learns. The second has one.

Where it departs from the paper:
* the paper crops people to one size in 256 × 256 pixels; here pictures are whole, at most `PosewarpConfig.side` on the
  short side, and all widths are in metres of the person, whom the paper's crop makes about 130 pixels per metre;
* the joints are the paper's fourteen, made of BlazePose's;
* a limb of which a joint was not found is not there; no limb grows or shrinks more than fourfold;
* unless `whole`, the nets are given what the product knows: the scene is the plate and there is no scene U-Net; the
  segmentation begins with the reference's matte, divided among the limbs; the person and the matte begin with the moved
  limbs, which the person U-Net corrects, instead of from nothing. A network that has learned nothing shows the moved
  limbs on the plate; one that has learned from other people is trusted as far as it helps on this person's pictures
  (`settle`), and never with the head: so small a head is not learned, and its own pixels are the face. With `whole`
  (the preset `paper`) everything is painted, as in the paper, as long as nobody asks for another scene.

    joints     JOINTS and LIMBS; joints_of, body_scale, heat_maps
    config     PosewarpConfig, and what the model takes and gives: PosewarpCondition, Pair, Sources, PosewarpState
    limbs      limb_priors, similarities, moved_limbs
    networks   PoseUNet, PairCritic
    objective  PosewarpObjective, vgg_loss
    model      Posewarp

Each uses only those above it.
"""

from .config import Pair, PosewarpCondition, PosewarpConfig, PosewarpState, Sources
from .joints import JOINTS, LIMBS, MIRRORED, body_scale, heat_maps, joints_of
from .limbs import limb_priors, moved_limbs, similarities
from .model import Posewarp
from .networks import PairCritic, PoseUNet
from .objective import PosewarpObjective, vgg_loss

__all__ = [
    "JOINTS",
    "LIMBS",
    "MIRRORED",
    "Pair",
    "PairCritic",
    "PoseUNet",
    "Posewarp",
    "PosewarpCondition",
    "PosewarpConfig",
    "PosewarpObjective",
    "PosewarpState",
    "Sources",
    "body_scale",
    "heat_maps",
    "joints_of",
    "limb_priors",
    "moved_limbs",
    "similarities",
    "vgg_loss",
]
