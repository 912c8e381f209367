"""VAR: moves attention of text from sink tokens to the other visual tokens; nothing is dropped."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.signals import Decoder
from vtc.strategies import METHODS
from vtc.strategies.base import AttentionStage

Preset = Literal["paper-general", "paper-hallucination", "paper-vision-centric", "released-config"]
# Share moved, minimum share of visual attention that is not on sinks.
PRESETS = {
    "paper-general": (0.6, 0.8),
    "paper-hallucination": (0.6, 0.5),
    "paper-vision-centric": (0.6, 0.9),
    "released-config": (0.4, 0.5),
}
# Published sink dimensions, by family, number of layers and hidden size.
DIMENSIONS = {
    ("llava", 32, 4096): (1415, 2533),
    ("llava", 40, 5120): (2100, 4743),
    ("llava_next", 40, 5120): (2100, 4743),
    ("qwen2_vl", 28, 3584): (458, 2570),
}
EPS = 1e-6


@METHODS.register("var")
@dataclass(frozen=True)
class Var(AttentionStage):
    """Moves a share of the text's attention on sinks to visual non-sink tokens, in heads that attend to the image.

    A token is a sink of a layer if, in the layer's input, one of a few dimensions is tau times the root mean square of
    all. A head of a text row is changed if it pays at least `min_image_attention` to visual tokens, and at least the
    share `min_nonsink_share` of that to non-sinks. There every sink, visual or not, loses `move_fraction` of its
    attention, and the visual non-sinks receive the total in proportion to their attention; the sum of a row does not
    change. Sinks are found once, at prefill, and used for every later token.

    Knobs:
    - preset: the values of the next three if they are null. The paper's presets move 0.6 and do not change the last
      layer: "paper-general" requires a non-sink share of 0.8, "paper-hallucination" 0.5 and "paper-vision-centric" 0.9;
      "released-config" moves 0.4, requires 0.5 and changes the last layer, too.
    - move_fraction: share of the attention on each sink to move, in [0, 1] (the code's p is the share that stays).
    - min_nonsink_share: minimum share of a head's attention to visual tokens that is on non-sinks, in [0, 1] (the
      code's rho is 1 minus this).
    - last_layer: whether the last layer is changed.
    - min_image_attention: minimum attention of a head to visual tokens, in [0, 1].
    - tau: multiple of the root mean square that makes a sink.
    - dimensions: the dimensions to check; empty: the published ones if family, depth and width identify the model, else
      the `discovered` largest of each prompt's first token in the layer.
    - discovered: how many dimensions to find.
    - first_layer: the first layer to change, counted from 0 (relative depth as a float).

    Paper: See What You Are Told: Visual Attention Sink in Large Multimodal Models, ICLR 2025, arXiv 2503.03321.
    Official code: seilk/VisAttnSink @ 98e62d6c (licence not recorded by us). The paper's values are second-hand.
    Departures: only heads of the rows in question are recomputed, in float32, next to whatever attention backend the
    model uses (the code uses eager attention); prompts of a batch have their own sinks (the code takes one prompt).
    With several images, all visual tokens that a row sees count together, and rows are text after the first image. The
    paper also changes text before an image, where no visual token is seen and its own threshold changes nothing. Its
    shares are divided with the code's 1e-6 for each visual token. The presets of the paper call a token a sink at tau,
    and change layers without a visual sink; "released-config" requires more than tau and does not change such layers,
    as in the code. On Qwen2.5-VL nothing is published, on LLaVA-NeXT with 7B it depends on the language model:
    dimensions are found there, from the first token of the prompt, where the paper looks at the BOS token.
    """

    preset: Preset = "paper-general"
    move_fraction: float | None = None
    min_nonsink_share: float | None = None
    last_layer: bool | None = None
    min_image_attention: float = 0.2
    tau: float = 20.0
    dimensions: tuple[int, ...] = ()
    discovered: int = 2
    first_layer: int | float = 2

    def __post_init__(self):
        for knob in ("move_fraction", "min_nonsink_share", "min_image_attention"):
            value = getattr(self, knob)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{knob}={value} is out of range; possible: a share in [0, 1]")
        if not self.tau > 0:
            raise ConfigError(f"tau={self.tau} is out of range; possible: a number > 0, such as 20")
        if self.discovered < 1:
            raise ConfigError(f"discovered={self.discovered} is out of range; possible: 1 or more")
        if any(d < 0 for d in self.dimensions):
            raise ConfigError(f"dimensions={list(self.dimensions)} has one below 0; possible: indices from 0 on")

    @property
    def of_paper(self) -> bool:
        """Whether the paper's definitions apply where the released code differs."""
        return self.preset != "released-config"

    @property
    def shares(self) -> tuple[float, float]:
        """Share moved, and minimum share of visual attention on non-sinks."""
        moved, nonsink = PRESETS[self.preset]
        return (
            moved if self.move_fraction is None else self.move_fraction,
            nonsink if self.min_nonsink_share is None else self.min_nonsink_share,
        )

    def layers(self, decoder: Decoder, width: int) -> tuple[int, ...]:
        """From `first_layer` on, with or without the last."""
        if any(d >= width for d in self.dimensions):
            raise ConfigError(
                f"dimensions={list(self.dimensions)} is beyond the {width} of this {decoder.family} language model; "
                f"possible: 0 to {width - 1}, or an empty list"
            )
        last = not self.of_paper if self.last_layer is None else self.last_layer
        return tuple(range(decoder.layer(self.first_layer, "first_layer"), decoder.depth - (not last)))

    def mark(self, hidden: Tensor, first: Tensor, decoder: Decoder) -> Tensor:
        """Finds the sinks of a layer."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        width = hidden.shape[2]
        known = self.dimensions or DIMENSIONS.get((decoder.family, decoder.depth, width), ())
        if known:
            size = hidden[..., list(known)].abs().amax(-1)
        else:
            start = hidden.gather(1, first[:, None, None].expand(-1, 1, width))[:, 0]
            largest = start.abs().topk(min(self.discovered, width), dim=-1).indices
            size = hidden.gather(2, largest[:, None].expand(-1, hidden.shape[1], -1)).abs().amax(-1)
        times = size / (hidden.square().mean(-1) + EPS).sqrt()
        return times >= self.tau if self.of_paper else times > self.tau

    def change(self, attention: Tensor, marked: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Redistributes the rows that attend to the image."""
        moved, nonsink = self.shares
        sinks, targets = marked[:, None, None], (visual & ~marked)[:, None, None]
        useful = (attention * targets).sum(-1)
        on_sinks = (attention * (marked & visual)[:, None, None]).sum(-1)
        on_image = useful + on_sinks
        share = on_sinks / (on_image + EPS * visual.sum(-1)[:, None, None])
        changed = (share <= 1 - nonsink) & (on_image >= self.min_image_attention) & (useful > 0)
        changed = changed & (marked if self.of_paper else marked & visual).any(-1)[:, None, None]
        budget = moved * (attention * sinks).sum(-1)
        more = (budget / useful.where(changed, torch.ones_like(useful))).unsqueeze(-1)
        factor = torch.where(sinks, 1 - moved, torch.where(targets, 1 + more, torch.ones_like(more)))
        return torch.where(changed.unsqueeze(-1), attention * factor, attention), changed
