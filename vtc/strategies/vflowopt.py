"""VFlowOpt, later stages: drops the least important tokens inside the language model, by encoder importance."""

from dataclasses import dataclass

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, Importance
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step, steps_at


@METHODS.register("vflowopt")
@dataclass(frozen=True)
class VFlowOpt(DecoderStage):
    """Drops, before each listed layer, the tokens that `vflowopt_projector` scored least important.

    A merged token has the importance of its most important part. Neither text nor the language model is used.

    Knobs:
    - layers: layers before which tokens are dropped (0-based number, or relative depth as a float): 9 and 18 of 28, on
      LLaVA 10 and 20 of 32.
    - ratios: share of its n tokens that each step keeps: n - round(n * (1 - ratio)); those released for 25 %.
    - entering: share of the tokens that enters, in the form of the released search, instead of `ratios`. With a `keep`
      equal to `average` that share enters, or more if the last ratio would be above 1.
    - second: the first ratio, with `entering`.
    - average: over the layers, with `entering`; the last ratio follows from it, at most 1.

    Paper: VFlowOpt, ICCV 2025, arXiv 2508.05211. Official code: sihany077/VFlowOpt (CC BY-NC 4.0), LLaVA-OneVision
    only. Released ratios for other budgets are listed in `vflowopt_projector`, which has to come first. The average
    over layers that a budget sets is the paper's, except for the number of merged tokens.
    Departures: each image of a prompt on its own; at least one token is kept. Kept positions are those after the first
    stage, as in the code.
    """

    layers: tuple[int | float, ...] = (0.3214, 0.6429)
    ratios: tuple[float, ...] = (0.9833433139039235, 0.8773258179532721)
    entering: float | None = None
    second: float | None = None
    average: float = 0.25

    def __post_init__(self):
        for knob in ("entering", "second", "average"):
            value = getattr(self, knob)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{knob}={shown(value)} is out of range; possible: a share in (0, 1]")
        if (self.entering is None) != (self.second is None):
            raise ConfigError(f"entering={self.entering} and second={self.second}; possible: both, or neither")
        if any(not 0 < ratio <= 1 for ratio in self.ratios):
            raise ConfigError(f"ratios={shown(list(self.ratios))} is out of range; possible: shares in (0, 1]")

    def shares(self) -> tuple[float, ...]:
        """The tokens left after each step, as shares of those that entered."""
        shares, remaining = [], 1.0
        for ratio in self.ratios:
            remaining *= ratio
            shares.append(remaining)
        return tuple(shares)

    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """One step per listed layer."""
        return steps_at(self.layers, self.shares() if self.entering is None else self._planned(decoder), decoder)

    def _planned(self, decoder: Decoder) -> tuple[float, float]:
        """`shares` by `entering`, `second` and `average`."""
        if len(self.layers) != 2:
            raise ConfigError(f"entering={self.entering} with {len(self.layers)} layers; possible: 2 layers, or ratios")
        first, last = (decoder.layer(value, "layers") for value in self.layers)
        seen = self.entering * (first + (last - first) * self.second)
        left = (decoder.depth * self.average - seen) / (decoder.depth - last)
        if left <= 0:
            raise ConfigError(
                f"entering={self.entering} and second={self.second} are above average={self.average} before layer "
                f"{last}; possible: smaller ones"
            )
        return self.second, min(self.second, left / self.entering)

    def count(self, entered: int, share: float) -> int:
        """For a share of the released schedule, the result of its successive steps; for any other (a budget set
        by `keep`) that share, rounded to nearest. At least 1."""
        if share not in self.shares():
            return max(1, round(entered * share))
        remaining = entered
        for ratio in self.ratios[: self.shares().index(share) + 1]:
            remaining -= round(remaining * (1 - ratio))
        return max(1, remaining)

    def needs(self, decoder: Decoder, step: int) -> tuple[Importance]:
        """The scores of the stage at the projector."""
        return (Importance(),)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Top `count` by importance."""
        return Selection(topk_sorted(context[Importance()], context.count))
