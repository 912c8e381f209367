"""PiToMe: merges tokens after every layer of the vision encoder, those in the densest regions first."""

from dataclasses import dataclass

import torch

from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import Context, Encoder, Hidden
from vtc.kernels.joining import joined
from vtc.kernels.matching import best_partners, energy
from vtc.strategies import METHODS
from vtc.strategies.base import Cut, EncoderStage
from vtc.strategies.tome import match, most


@METHODS.register("pitome")
@dataclass(frozen=True)
class PiToMe(EncoderStage):
    """Merges a constant share of the tokens after every layer; isolated tokens are protected.

    The energy of a token is the mean over all tokens of ELU(cosine of hidden states - margin): high in dense regions.
    Of the 2r tokens with the highest energy, those at even ranks are merged into the most similar of those at odd
    ranks; a group becomes the plain mean of its tokens in this step, regardless of their sizes. The sequence then has
    the protected tokens by descending energy, followed by the groups; this order determines the pairing in the first
    layers, where tokens are matched as in `tome`, without energy. The margin decreases with the layer l: margin * (1 -
    l / depth). For the language model tokens are in the order of their places; a group has the place of its target.

    Knobs:
    - margin: the cosine above which two tokens count as close, in the first layer.
    - alpha: minus the limit of ELU far below the margin.
    - plain: share of the layers, starting at the first, that match without energy (released code: 13 of 24).

    The budget determines the share rho that each layer keeps: the largest that meets it, with r = floor(T - rho T) of T
    tokens merged; in layers without energy T includes [CLS]. At most half of the tokens are merged in one layer.

    Paper: PiToMe (Accelerating Transformers with Spectrum-Preserving Token Merging), arXiv 2405.16148, NeurIPS 2024;
    official code: hchautran/PiToMe @ 550b5dee, its form for LLaVA with CLIP: hidden states after the MLP as the
    metric, plain means, no sizes in attention, after layers up to the one that the projector reads. (The form for timm
    and BLIP uses keys as the metric and weights by size; the one for text uses another energy. Neither is included.)
    Departures: tokens reach the language model in the order of their places (the code: in that of the sequence); the
    last layers merge fewer if there is a remainder. On LLaVA-NeXT each crop merges within itself; on Qwen a token is a
    2 x 2 cell of patches, compared by their mean and merged patch by patch, across windows too: extensions. Float32,
    ties to the lower index.
    """

    margin: float = 0.9
    alpha: float = 1.0
    plain: float = 13 / 24

    def __post_init__(self):
        if not 0 <= self.plain <= 1:
            raise ConfigError(f"plain={self.plain} is out of range; possible: a share of the layers, 0 to 1")
        if not -1 <= self.margin <= 1:
            raise ConfigError(f"margin={self.margin} is out of range; possible: a cosine, -1 to 1")
        if not 0 < self.alpha <= torch.finfo(torch.float32).max:
            raise ConfigError(f"alpha={self.alpha} is out of range; possible: a number above 0, within float32")

    def is_plain(self, layer: int, encoder: Encoder) -> bool:
        """Whether a layer matches without energy."""
        return layer < round(encoder.depth * self.plain)

    def steps(self, encoder: Encoder) -> tuple[Cut, ...]:
        """One after every layer up to the one that the projector reads."""
        return tuple(Cut(layer) for layer in range(encoder.last + 1))

    def counts(self, tokens: int, target: int, encoder: Encoder) -> tuple[int, ...]:
        """The counts for the largest rho that reaches the target."""
        low, high, counts = 0.0, 1.0, self._counts(tokens, target, encoder, 0.0)
        if counts[-1] > target:
            raise ConfigError(
                f"{target} of {tokens} tokens are out of reach for merging behind {encoder.last + 1} layers, each of "
                f"which leaves at least half; possible: {counts[-1]} or more"
            )
        if target == tokens:
            return (tokens,) * (encoder.last + 1)
        for _ in range(50):
            middle = (low + high) / 2
            tried = self._counts(tokens, target, encoder, middle)
            low, high, counts = (middle, high, tried) if tried[-1] == target else (low, middle, counts)
        return counts

    def _counts(self, tokens: int, target: int, encoder: Encoder, rho: float) -> tuple[int, ...]:
        counts = [tokens]
        for layer in range(encoder.last + 1):
            plain, current = self.is_plain(layer, encoder), counts[-1]
            all_ = current + int(plain and encoder.has_cls)
            counts.append(max(target, current - min(int(all_ - rho * all_), most(current, encoder.has_cls and plain))))
        return tuple(counts[1:])

    def needs(self, encoder: Encoder, step: int) -> tuple[Hidden]:
        """The layer's output."""
        return (Hidden(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Plain matching, or matching among the tokens with the highest energy."""
        hidden, layer = context[Hidden()], context.step
        size = torch.ones(hidden.shape[:2], device=hidden.device, dtype=torch.float32)
        if self.is_plain(layer, encoder):
            return match(hidden, size, context.count, encoder.has_cls)
        r = context.tokens - context.count
        margin = self.margin * (1 - layer / encoder.depth)
        ranked = energy(hidden, margin, self.alpha).sort(dim=1, descending=True, stable=True).indices
        first, second, alone = ranked[:, : 2 * r : 2], ranked[:, 1 : 2 * r : 2], ranked[:, 2 * r :]
        _, partner = best_partners(hidden, first, second)
        merged = joined(torch.cat([alone, second], 1), first, second.gather(1, partner), size)
        return Selection(merged.keep, merge=Merge(merged.target, merged.weight), order=merged.order)
