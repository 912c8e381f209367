"""VisionZip: keeps [CLS] and the patches that it attends to, and merges the rest before the projector."""

from dataclasses import dataclass

from vtc.strategies import METHODS
from vtc.strategies.visiondrop_projector import VisionDropProjector


@METHODS.register("visionzip")
@dataclass(frozen=True)
class VisionZip(VisionDropProjector):
    """Keeps dominant tokens and merges the others into contextual ones; VisionDrop's first stage is this method.

    The two released codes do the same before the projector, so the rule is in `VisionDropProjector`: dominant
    tokens with [CLS] among them, and contextual ones that are evenly spaced targets plus the mean of the tokens
    merged into them (a sum, as in the code; the paper calls it merging). Only the share of contextual tokens differs.

    Knobs:
    - contextual: share of the budget for contextual tokens, of which there are round(count * contextual), halves to
      even. 5/32 gives the reported settings 54 + 10 of 64, 108 + 20 of 128 and 162 + 30 of 192, and 27 + 5 of 32 per
      tile.
    - layer: the encoder layer whose attention and keys are read (index, or relative depth as a float); best the one
      whose output the projector receives.

    Paper: VisionZip, arXiv 2412.04467. Official code: dvlab-research/VisionZip (Apache-2.0), LLaVA-1.5 and LLaVA-NeXT;
    its example has 54 + 10. Departures: those of `VisionDropProjector`, with the mean attention received as the score
    where there is no [CLS]. On LLaVA-NeXT each tile keeps its tokens together, [CLS] first, base crop first; the
    released code has the base crop like this, then the dominant tokens of all tiles in the order of the stitched image,
    the [CLS] of every tile, and the contextual tokens tile by tile. It does not remove the padding; here the model's
    own unpadding comes first, so padding never competes. Qwen is our extension.
    """

    contextual: float = 0.15625
