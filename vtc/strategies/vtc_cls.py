"""VTC-CLS: the tokens with the most [CLS] attention, summed over the last few encoder layers."""

from dataclasses import dataclass

import torch

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import ClsAttention, Context, Encoder
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@METHODS.register("vtc_cls")
@dataclass(frozen=True)
class VtcCls(Stage):
    """Keeps the top tokens by [CLS] attention, averaged over heads and summed over layers start_layer..end_layer.

    Knobs:
    - start_layer: first encoder layer counted (index, or relative depth as a float).
    - end_layer: last encoder layer counted (index, or relative depth as a float).

    On encoders with windowed layers (Qwen2.5-VL) the same number of layers is counted backwards from end_layer
    among those with global attention, because attention within different windows is not comparable.

    Paper: arXiv 2412.05819 (three layers backwards from the penultimate one: 20, 21, 22 of 24).
    Official code: THU-MIG/VTC-CLS @ e41ac9b (Apache-2.0), where start_layer is a command-line argument without a
    documented value; the released default of 16 is `start_layer=16`.
    Departures: the official code is LLaVA-1.5 at batch 1; here each image is ranked on its own, LLaVA-NeXT splits
    the budget evenly over its tiles, and on an encoder without [CLS] (SigLIP, Qwen) the query is the mean of all
    queries of the image. These three are our extensions, not the authors'. Float32, ties to the lower index.
    """

    start_layer: int | float = -4
    end_layer: int | float = -2

    needs_cls = True
    tile_scope = "per_tile"

    def needs(self, encoder: Encoder) -> tuple[ClsAttention, ...]:
        """One [CLS] row per counted layer."""
        start, end = encoder.layer(self.start_layer, "start_layer"), encoder.layer(self.end_layer, "end_layer")
        if start > end:
            raise ConfigError(
                f"start_layer={self.start_layer} lies after end_layer={self.end_layer} of {encoder.depth}"
            )
        counted = [layer for layer in encoder.global_layers if layer <= end][-(end - start + 1) :]
        if not counted:
            raise ConfigError(
                f"end_layer={self.end_layer} lies before the first layer with global attention; "
                f"possible: one of {list(encoder.global_layers)} or later"
            )
        return tuple(ClsAttention(layer) for layer in counted)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Top `count` of the summed rows."""
        rows = torch.stack([context[signal].float() for signal in self.needs(encoder)])
        return Selection(topk_sorted(rows.sum(0), context.count))
