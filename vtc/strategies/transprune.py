"""TransPrune: drops inside the language model, by token transition variation and attention from the text."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, DecoderAttention, Signal, Transition
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step, steps_at

RATIOS = {"high": (0.875, 0.625, 0.125), "low": (0.5, 0.25, 0.0667), "combined": (0.5, 0.25, 0.125)}
EPS = 1e-8


def score_tokens(ttv: Tensor | None, iga: Tensor | None, alpha: float, terms: str = "shares") -> Tensor:
    """alpha * TTV + (1 - alpha) * IGA, each [B, N] and first divided by its sum over the image's N tokens (plus 1e-8);
    not divided with terms="raw".

    A term that is None counts as 0. -> [B, N] float32, or float64 if a term is.
    """
    parts = []
    for share, term in ((alpha, ttv), (1 - alpha, iga)):
        if term is not None:
            term = term.to(torch.promote_types(term.dtype, torch.float32))
            parts.append(share * (term if terms == "raw" else term / (term.sum(-1, keepdim=True) + EPS)))
    return sum(parts[1:], parts[0])


@METHODS.register("transprune")
@dataclass(frozen=True)
class TransPrune(DecoderStage):
    """Keeps tokens whose norm and direction change much in the layers just run (token transition variation, TTV) and
    that the text after the image attends to in the next layer (instruction-guided attention, IGA).

    TTV of a layer: that of its attention plus that of its MLP, each between the norm before it and the residual sum
    after it, see `vtc.kernels.transition`. It is summed over the accumulated layers and carried through each drop.

    Knobs:
    - layers: layers before which tokens are dropped (0-based, which is the number of layers run; or relative depth as a
      float); 7, 9 and 12 of 32 are published.
    - schedule: shares of the tokens that entered, int(N * share) of them. "high" is the released one, 0.875, 0.625 and
      0.125; "low" (inferred: it reproduces the paper's FLOPs); "combined" (inferred from the paper's tables), after a
      method at the projector.
    - ratios: custom shares instead of a schedule.
    - alpha: weight of TTV against IGA; 1 = TTV alone, 0 = IGA alone.
    - accumulate: first and last layer to sum, counted from 1 (or relative depth); null = from the first to the
      last of `layers`.
    - terms: "shares": each term is divided by its sum over the image's tokens first, as in the code; "raw": TTV and IGA
      are added as they are, as in the paper's eq. 6.

    Paper: TransPrune, CVPR 2026, arXiv 2507.20630. Official code: liaolea/TransPrune (MIT), where the two terms are
    added without alpha, which is alpha=0.5 up to a factor of 2; 1 - c where the paper writes 1 - |c|. This follows the
    code; its departures from the paper: 1 - c, and terms divided by their sums, which changes about a fifth of the
    picks on random data (terms="raw" is the paper's).
    Departures: any batch, padded or not (the code takes one prompt with one image and drops the mask); the softmax of
    TTV runs over all real tokens of the prompt, in float32 (the code's in the model's precision); several images are
    scored independently, each with all text after it; on models with fewer key heads each serves its group of query
    heads; a drop leaves at least one token; ties to the lower index. Positions are renumbered after each drop as in the
    code. For Qwen no code is published: layers 7, 9 and 12 of 28 reproduce the printed FLOPs; its 2-D positions are
    kept, which renumbering would flatten. If layers coincide on a shallow model the smallest share applies.
    """

    layers: tuple[int | float, ...] = (0.21875, 0.28125, 0.375)
    schedule: Literal["high", "low", "combined"] = "high"
    ratios: tuple[float, ...] | None = None
    alpha: float = 0.5
    accumulate: tuple[int | float, int | float] | None = None
    terms: Literal["shares", "raw"] = "shares"

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha} is out of range; possible: 0 to 1")
        if self.schedule not in RATIOS:
            raise ConfigError(f"schedule={self.schedule!r} is unknown; possible: {', '.join(RATIOS)}")

    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """One step per listed layer; raises ConfigError for one before which no layer is accumulated."""
        steps = steps_at(self.layers, RATIOS[self.schedule] if self.ratios is None else self.ratios, decoder)
        for step in steps if self.alpha > 0 else ():
            if not self._accumulated(decoder, steps, step.layer):
                prefix = "" if self.accumulate is None else f"accumulate={list(self.accumulate)}: "
                raise ConfigError(
                    f"{prefix}no layer to sum before the drop at layer {step.layer} of {decoder.depth}; possible: "
                    f"[first, last] with first at most {steps[0].layer} and last at least first"
                )
        return steps

    def _accumulated(self, decoder: Decoder, steps: tuple[Step, ...], before: int) -> range:
        """The layers, 0-based, whose TTV counts for a drop before layer `before`."""
        first, last = steps[0].layer, steps[-1].layer
        if self.accumulate is not None:
            first, last = (decoder.layer(value, "accumulate") for value in self.accumulate)
        return range(max(0, first - 1), min(last, before))

    def needs(self, decoder: Decoder, step: int) -> tuple[Signal, ...]:
        """TTV of each accumulated layer that has run, and the attention of the text in the next layer."""
        steps = self.steps(decoder)
        layer = steps[step].layer
        ttv = tuple(Transition(l) for l in self._accumulated(decoder, steps, layer)) if self.alpha > 0 else ()
        iga = (DecoderAttention(layer, "after", ahead=True),) if self.alpha < 1 else ()
        return ttv + iga

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Top `count` of `score_tokens`."""
        needed = self.needs(decoder, context.step)
        rows = [context[signal] for signal in needed if isinstance(signal, Transition)]
        ttv = torch.stack(rows).sum(0) if rows else None
        iga = context[needed[-1]] if self.alpha < 1 else None
        return Selection(topk_sorted(score_tokens(ttv, iga, self.alpha, self.terms), context.count))
