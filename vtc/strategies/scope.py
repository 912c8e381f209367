"""SCOPE: greedily selects tokens that are salient to the encoder and together cover the image."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, EncoderFeatures, Features, Signal
from vtc.kernels.coverage import coverage_greedy
from vtc.kernels.gram import cosine_matrix
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

TOGETHER = 2**22  # cosines of several images in memory at once


def selection_order(
    features: Tensor, saliency: Tensor, count: int, alpha: float = 1.0, combine: str = "multi"
) -> Tensor:
    """The picks [B, count] in their order. features [B, N, D]; saliency [B, N], positive."""
    quality = saliency.to(features.device, torch.promote_types(saliency.dtype, torch.float32)).pow(alpha)
    size = max(1, TOGETHER // features.shape[1] ** 2)
    picks = []
    for part, weights in zip(features.split(size), quality.split(size), strict=True):
        # Coverage starts at 0, so a negative cosine never counts; the matrix is symmetric.
        covers = cosine_matrix(part).clamp_(min=0).transpose(1, 2)
        picks.append(coverage_greedy(covers, count, quality=weights, combine=combine))
    return torch.cat(picks)


@METHODS.register("scope")
@dataclass(frozen=True)
class Scope(Stage):
    """Keeps tokens that are salient and cover what the other kept ones do not, as in weighted facility location.

    A token covers another to the degree of their cosine; negative cosines count as 0. In each step the gain of a token
    is the increase in the coverage of all tokens, and the token with the largest gain * saliency ** alpha is added.
    Saliency is [CLS] attention; the question is not used.

    Knobs:
    - alpha: exponent of the saliency; with 0 only coverage counts.
    - combine: "multi" multiplies gain and saliency, "add" adds them (an ablation of the paper).
    - features: the features to compare: "encoder", the projector's input, or "projected", what the language model would
      receive.
    - layer: the encoder layer whose attention is read (index, or relative depth as a float); best the one whose output
      the projector receives.

    Paper: SCOPE, NeurIPS 2025, arXiv 2510.24214. Official code: kinredon/SCOPE @ 6bf7306 (no licence for the whole;
    the selector's file carries an Apache-2.0 header), LLaVA-1.5 and LLaVA-NeXT. Without [CLS], a third-party port in
    Tencent's AngelSlim @ 67394ce (Apache-2.0) is followed: on Qwen saliency is the attention received
    from all patches and features are the projected ones (the port reads large images by their mean query instead).
    Departures: attention is a mean over heads (the code: a sum), which only matters for "add". A token of
    length 0 covers nothing (the code: NaN). Each image is pruned on its own (the port pools the images of a prompt).
    LLaVA-NeXT tile by tile as published, but after the model's own unpadding, so padding never competes, and with
    kept tokens in raster order. Float32, ties to the lower index (the code ranks in half precision).
    """

    alpha: float = 1.0
    combine: Literal["multi", "add"] = "multi"
    features: Literal["encoder", "projected"] = "encoder"
    layer: int | float = -2

    needs_cls = True
    tile_scope = "per_tile"

    def __post_init__(self):
        if self.alpha < 0:
            raise ConfigError(f"alpha={self.alpha} is out of range; possible: an exponent of 0 or more")

    def needs(self, encoder: Encoder) -> tuple[Signal, Signal]:
        """The saliency, and the features to compare."""
        layer = encoder.layer(self.layer, "layer")
        saliency = ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer, "sum")
        return saliency, EncoderFeatures() if self.features == "encoder" else Features()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `selection_order`; exactly `count`."""
        saliency, features = (context[signal] for signal in self.needs(encoder))
        if context.count == context.tokens:
            every = torch.arange(context.tokens, device=features.device)
            return Selection(every.repeat(len(features), 1))
        return Selection(selection_order(features, saliency, context.count, self.alpha, self.combine).sort(1).values)
