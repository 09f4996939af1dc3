"""`few-shot-vid2vid`: Few-shot Video-to-Video Synthesis (Wang et al. 2019), §3.

    K examples ─ E_F ─ q ─┐
    their maps ─ E_A ─────┴─ attention ─ q ─ E_P ─ θ_H ─┐                        (Eq. 7)
    maps ─ E_A ───────────┘                             │
    maps ───────────────────────────────────────────────┴─ H ─ h̃ ─┐              (Eqs. 8-10)
    the most similar example, moved by a flow ─────────────────────┴─ h̃' ─┐      (Eq. 11)
    the frame before, moved by a flow ─────────────────────────────────────┴─ x̃  (Eq. 2)

"Semantic images" s are pose maps, face sketches or label maps (`FewShotConfig.conditioning`). What was drawn last and
its maps are the state (Eq. 1).

What the paper leaves open, and what was chosen:
* Sizes are those of the code that its authors published, the preset `paper`: 32 to 1024 channels, six levels of which
  the four finest have generated weights, kernels of 1×1 in the modulation branches, three linear layers in E_P, four
  levels in W and M with six residual blocks, spectral and batch normalisation, τ = 1.
* "We average pool q^l": to a grid of `grid` × `grid`, as there; E_P^l makes of each channel of it the filters of one
  output channel, its last bias is as large as θ^l. γ's bias begins at 1, so that Eq. 10 begins as no modulation.
* One α has to fit the q^l of all levels: keys are pooled to the same grid, N = `grid`². The softmax over all places of
  all examples is scaled by √C, as in the transformer that the paper cites.
* H begins with a convolution of the small semantic map, as the SPADE generator that the paper cites.
* p_S becomes smaller from level to level by averaging, since a strided kernel of 1×1 would leave pixels out.
* W and M, for the frame before and for the example, are one network with two heads each, as in vid2vid.

Where it departs from the paper: with poses and faces, all pictures x, e and h have a fourth channel, a matte, and hold
the person alone: what is drawn is the person before a scene, which the user may exchange. Label maps paint the whole
picture. The preset `small` folds pixels, so that the networks work at half the resolution, and normalises per picture.
Of a person the head counts by itself, too (`FewShotObjective.HEAD`).

    config             FewShotConfig, and what the model takes and gives: Semantic, Examples, Past, Moved
    networks           H: Synthesis of SpadeBlocks, with `pointwise`; W and M: FlowNetwork
    weight_generation  E: E_F, E_A and the attention, WeightGeneration; E_P, WeightGenerator
    objective          FewShotObjective, warping_loss
    model              FewShotVid2Vid

Each uses only those above it.
"""

from .config import Examples, FewShotConfig, Moved, Past, Semantic
from .model import FewShotVid2Vid
from .networks import FlowNetwork, SpadeBlock, Synthesis, pointwise
from .objective import FewShotObjective, warping_loss
from .weight_generation import WeightGeneration, WeightGenerator

__all__ = [
    "Examples",
    "FewShotConfig",
    "FewShotObjective",
    "FewShotVid2Vid",
    "FlowNetwork",
    "Moved",
    "Past",
    "Semantic",
    "SpadeBlock",
    "Synthesis",
    "WeightGeneration",
    "WeightGenerator",
    "pointwise",
    "warping_loss",
]
