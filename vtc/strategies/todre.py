"""ToDRE, second stage: all visual tokens leave the language model where the text hardly looks at them any more."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, TextToVisual
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step


def drops(share: Tensor, tau: float, back: Tensor | None = None) -> Tensor:
    """Whether the visual tokens go: bool, elementwise, of the shape of `share`.

    share: of the attention that the text pays, what goes to visual tokens. back: of the attention that visual tokens
    pay, what goes to the text after them; both have to be below tau. None for causal attention, where it is 0. NaN
    drops nothing.
    """
    return share < tau if back is None else (share < tau) & (back < tau)


@METHODS.register("todre")
@dataclass(frozen=True)
class ToDRE(DecoderStage):
    """Drops all visual tokens of an image before one layer, or none of them.

    They go if, of the attention that the text after the image pays in the layer before (head mean, summed over that
    text), less than tau goes to visual tokens.

    Knobs:
    - layer: layers that run before the drop (a number, or relative depth as a float); the attention of the last of them
      decides, and the layers after it see no visual token.
    - tau: share of the text's attention below which the visual tokens go.

    Paper: ToDRE, arXiv 2505.18757 (v2: 28 of 32 layers, tau 0.1). No official code. In the shipped strategy
    `todre_projector` comes first.
    Where the paper leaves room: its figure removes the tokens at the chosen layer and its text after it; layers are
    counted from 1 here and the tokens leave after the chosen one. Its second condition, on the attention that visual
    tokens pay to the text after them, always holds in a causal language model and is not computed. Of several images
    each is decided on its own, by the text after it and the visual tokens of the whole prompt. What is left keeps its
    rotary positions. The number kept depends on the prompt, so a budget (`keep`) counts this stage as keeping all.
    """

    layer: int | float = 0.875
    tau: float = 0.1

    adaptive = True

    def __post_init__(self):
        if not 0 <= self.tau <= 1:
            raise ConfigError(f"tau={self.tau} is out of range; possible: a share of attention, 0 (never) to 1")

    def steps(self, decoder: Decoder) -> tuple[Step]:
        """One step, after `layer` layers; what it keeps at most."""
        return (Step(decoder.layer(self.layer, "layer"), 1.0),)

    def count(self, entered: int, share: float) -> int:
        """All: what it keeps at most."""
        return entered

    def needs(self, decoder: Decoder, step: int) -> tuple[TextToVisual]:
        """The attention of the text in the last layer that sees every token."""
        return (TextToVisual(decoder.layer(self.layer, "layer") - 1),)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """All `tokens` of an image, valid or not: see `drops`."""
        (signal,) = self.needs(decoder, context.step)
        stays = ~drops(context[signal].to(context.device), self.tau)
        every = torch.arange(context.tokens, device=context.device)
        shape = len(stays), context.tokens
        return Selection(every.expand(shape).contiguous(), valid=stays.unsqueeze(1).expand(shape).contiguous())
