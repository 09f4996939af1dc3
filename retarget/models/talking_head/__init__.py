"""`talking-head`: Few-Shot Adversarial Learning of Realistic Neural Talking Head Models (Zakharov et al. 2019).

    K pictures x and their landmark drawings y ─ embedder E(x, y; φ) ─ mean ê (Eq. 1) ─ P ê ─┐ AdaIN
                                         landmark drawing of the frame to draw ─ generator G(y, ê; ψ, P) ─ picture
    fine-tuned (§3.3): the AdaIN coefficients are ψ', which started at P ê_NEW, and E is not asked any more

Blocks, places of self-attention, widths and the order of things are those of §3.4 and supplement A.4; they give the
numbers of parameters that §3.4 states (`paper`: E 15 million, G with P 38 million, the critic's V 20 million), and what
the paper leaves open is as in BigGAN, which it cites: nearest-neighbour enlargement, 1 + γ in AdaIN, attention as in
Self-Attention GAN. A picture is a head in a square: `portraits` cuts it out.

Where it departs from the paper: G answers a matte in a fourth channel, and the head is laid over the plate through it,
so that it can stand before another scene. The embedder's pictures are made square by repeating their borders.

    config     TalkingHeadConfig, and what the model takes and gives: HeadIdentity, HeadCondition, HeadPair, Embeddings
    networks   the blocks; E and V: Trunk; G: Generator
    objective  ProjectionCritic, TalkingHeadObjective
    model      TalkingHead

Each uses only those above it.
"""

from .config import UNKNOWN, Embeddings, HeadCondition, HeadIdentity, HeadPair, TalkingHeadConfig
from .model import TalkingHead
from .networks import Generator, SelfAttention, Trunk, adain
from .objective import ProjectionCritic, TalkingHeadObjective, hinge, match_loss

__all__ = [
    "UNKNOWN",
    "Embeddings",
    "Generator",
    "HeadCondition",
    "HeadIdentity",
    "HeadPair",
    "ProjectionCritic",
    "SelfAttention",
    "TalkingHead",
    "TalkingHeadConfig",
    "TalkingHeadObjective",
    "Trunk",
    "adain",
    "hinge",
    "match_loss",
]
