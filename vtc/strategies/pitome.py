"""PiToMe: behind every layer of the vision encoder tokens merge, first those in the most crowded places."""

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
    """Merges a constant share of the tokens behind every layer; tokens that stand alone are protected.

    The energy of a token is the mean over all tokens of ELU(cosine of hidden states - margin): high in crowded places.
    Of the 2r tokens with the highest energy those at even ranks join the most similar of those at odd ranks; a group
    becomes the plain mean of its tokens of this step, whatever these hold. The sequence then has the protected tokens
    by falling energy, then the groups, which decides who meets whom in the first layers: there, tokens are matched as
    in `tome`, without energy. The margin falls with the layer l: margin * (1 - l / depth). For the language model
    tokens stand in the order of their places; a group has the place of the token that the others joined.

    Knobs:
    - margin: the cosine from which on two tokens count as close, in the first layer.
    - alpha: what ELU tends to far below the margin, with the sign changed.
    - plain: share of the layers, from the first on, that match without energy (released code: 13 of 24).

    The budget decides the share rho that each layer leaves: the largest that reaches it, r = floor(T - rho T) of T
    tokens; in layers without energy T counts the [CLS] as well. At most half of the tokens join in one layer.

    Paper: PiToMe (Accelerating Transformers with Spectrum-Preserving Token Merging), arXiv 2405.16148, NeurIPS 2024;
    official code: hchautran/PiToMe @ 550b5dee, its form for LLaVA with CLIP: hidden states behind the MLP as the
    metric, plain means, no sizes in attention, after layers up to the one that the projector reads. (The form for timm
    and BLIP has keys as the metric and weights by size; the one for text another energy. Neither is built.) Departures:
    the order for the language model is that of places, the code's that of the sequence; the last layers merge fewer
    where the target does not divide. On LLaVA-NeXT each crop merges within itself; on Qwen a token is a 2 x 2 cell of
    patches, compared by their mean and merged patch by patch, across windows too: extensions. Float32, ties to the
    lower index.
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
        """One behind every layer that matters to the projector's input."""
        return tuple(Cut(layer) for layer in range(encoder.last + 1))

    def counts(self, tokens: int, target: int, encoder: Encoder) -> tuple[int, ...]:
        """What the largest rho leaves that reaches the target."""
        low, high, found = 0.0, 1.0, self._counts(tokens, target, encoder, 0.0)
        if found[-1] > target:
            raise ConfigError(
                f"{target} of {tokens} tokens are out of reach for merging behind {encoder.last + 1} layers, each of "
                f"which leaves at least half; possible: {found[-1]} or more"
            )
        if target == tokens:
            return (tokens,) * (encoder.last + 1)
        for _ in range(50):
            middle = (low + high) / 2
            mine = self._counts(tokens, target, encoder, middle)
            low, high, found = (middle, high, mine) if mine[-1] == target else (low, middle, found)
        return found

    def _counts(self, tokens: int, target: int, encoder: Encoder, rho: float) -> tuple[int, ...]:
        left = [tokens]
        for layer in range(encoder.last + 1):
            plain, now = self.is_plain(layer, encoder), left[-1]
            all_ = now + int(plain and encoder.has_cls)
            left.append(max(target, now - min(int(all_ - rho * all_), most(now, encoder.has_cls and plain))))
        return tuple(left[1:])

    def needs(self, encoder: Encoder, step: int) -> tuple[Hidden]:
        """The layer's output."""
        return (Hidden(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Plain matching, or the most crowded tokens among themselves."""
        hidden, layer = context[Hidden()], context.step
        size = torch.ones(hidden.shape[:2], device=hidden.device, dtype=torch.float32)
        if self.is_plain(layer, encoder):
            return match(hidden, size, context.count, encoder.has_cls)
        r = context.tokens - context.count
        margin = self.margin * (1 - layer / encoder.depth)
        ranked = energy(hidden, margin, self.alpha).sort(dim=1, descending=True, stable=True).indices
        first, second, alone = ranked[:, : 2 * r : 2], ranked[:, 1 : 2 * r : 2], ranked[:, 2 * r :]
        _, partner = best_partners(hidden, first, second)
        found = joined(torch.cat([alone, second], 1), first, second.gather(1, partner), size)
        return Selection(found.keep, merge=Merge(found.target, found.weight), order=found.order)
