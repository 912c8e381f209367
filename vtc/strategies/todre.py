"""ToDRE, second stage: drops all visual tokens in the language model once the text hardly attends to them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, TextToVisual
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step


def drops(share: Tensor, tau: float, back: Tensor | None = None) -> Tensor:
    """Whether to drop the visual tokens: bool, elementwise, of the shape of `share`.

    share: the share of the text's attention that goes to visual tokens. back: the share of the visual tokens' attention
    that goes to the text after them; both have to be below tau. None for causal attention, where it is 0. NaN
    drops nothing.
    """
    return share < tau if back is None else (share < tau) & (back < tau)


@METHODS.register("todre")
@dataclass(frozen=True)
class ToDRE(DecoderStage):
    """Drops all visual tokens of an image before one layer, or none of them.

    They are dropped if less than the share tau of the attention from the text after the image in the previous layer
    (head mean, summed over that text) goes to visual tokens.

    Knobs:
    - layer: layers that run before the drop (a number, or relative depth as a float); the attention of the last of them
      decides, and the layers after it see no visual token.
    - tau: share of the text's attention below which the visual tokens are dropped.

    Paper: ToDRE, arXiv 2505.18757 (v2: 28 of 32 layers, tau 0.1). No official code. In the shipped strategy
    `todre_projector` comes first.
    Where the paper leaves room: its figure removes the tokens at the chosen layer and its text after it; layers are
    counted from 1 here and the tokens are dropped after the chosen one. Its second condition, on the attention from
    visual tokens to the text after them, always holds in a causal language model and is not computed. Of several images
    each is decided on its own, by the text after it and the visual tokens of the whole prompt. Remaining tokens keep
    their rotary positions. The number kept depends on the prompt, so a budget (`keep`) counts this stage as keeping
    all.
    """

    layer: int | float = 0.875
    tau: float = 0.1

    adaptive = True

    def __post_init__(self):
        if not 0 <= self.tau <= 1:
            raise ConfigError(f"tau={self.tau} is out of range; possible: a share of attention, 0 (never) to 1")

    def steps(self, decoder: Decoder) -> tuple[Step]:
        """One step, after `layer` layers, with the maximum it may keep."""
        return (Step(decoder.layer(self.layer, "layer"), 1.0),)

    def count(self, entered: int, share: float) -> int:
        """All tokens, the maximum it may keep."""
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
