"""What every stage of a strategy keeps: the budget at the projector, and the share that each later layer sees.

A strategy states its budget in one place: `StrategyConfig.keep` for the whole, or `StageConfig.keep` for a stage. The
`Allocation` computes from that, once per model, what each stage keeps; engine, reports, the vLLM plugin and
`vtc show --layers` all read it.

`keep` of a strategy is the mean over the language model's layers of the visual tokens that they see, as a fraction of
the image's visual tokens (float) or as a number (int). For a stage at the projector alone that is the fraction it
keeps; for a stage inside the encoder alone, the fraction that leaves the encoder. With stages inside the language
model:

- no keep: every stage does what its own budget or its published schedule says;
- with a stage in front of it (inside the encoder or at the projector): the published schedules inside stay as they are,
  and that stage keeps as much as the mean needs: keep / (mean share of the schedules). If that is more than
  everything, it keeps everything and the schedules are relaxed as in the next case;
- without one: the shares of all schedules are raised to one power. Power 1 is the published schedule, 0 keeps all.

Strategies that have both a stage inside the encoder and one at the projector have no keep of the whole: each of the two
has its own, both of them a fraction of the image's visual tokens, and the second keeps at most what the first kept. An
encoder's budget is counted crop by crop, before unpadding (LLaVA-NeXT) drops what shows no picture.

A stage's own keep inside the language model means the same, relative to the tokens that enter the language model.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from vtc.config import hybrid
from vtc.core.budget import Budget
from vtc.core.errors import ConfigError
from vtc.core.signals import Decoder

if TYPE_CHECKING:
    from vtc.config.strategy import StageConfig, StrategyConfig

LARGEST_POWER = 64.0
EPS = 1e-9


@dataclass(frozen=True)
class Drop:
    """One drop before decoder layer `layer` (moved in a hybrid language model, see `vtc.config.hybrid`): step `number`
    (0-based) of stage `index` among the strategy's decoder stages. share: the fraction of the visual tokens entering
    the stage that its published schedule keeps."""

    layer: int
    index: int
    number: int
    share: float


class Allocation:
    """What each stage of a strategy keeps on a language model of a given depth.

    encoder, projector: the budgets of the stages there, from which the count of every unit follows; None without one.
    steps: all drops inside the language model in the order in which they happen, see `counts`. stages: the strategy's
    decoder stages. decoder: may be left out where there are none. tokens: of an image, where the model fixes it, so
    that numbers of tokens can be checked too. Raises ConfigError for a keep that the layers cannot give.
    """

    def __init__(self, config: "StrategyConfig", decoder: Decoder | None = None, tokens: int | None = None):
        self.config, self.depth = config, 0 if decoder is None else decoder.depth
        self.stages: tuple[StageConfig, ...] = config.decoder
        if decoder is not None:
            hybrid.check(decoder, config)
        self.notes: list[str] = []
        drops = [drop for index in range(len(self.stages)) for drop in self._drops(index, decoder)]
        self.steps = tuple(sorted(drops, key=lambda drop: (drop.layer, drop.index, drop.number)))
        self.encoder, self.projector = self._budget(config.encoder), self._budget(config.projector)
        if self.stages and not self.config.keeps_all:
            self._check(tokens)

    def _drops(self, index: int, decoder: Decoder) -> list[Drop]:
        """The steps of one stage inside the language model; notes where they are not before the layers asked for."""
        stage, drops = self.stages[index].stage, {}
        asked = []
        for number, step in enumerate(stage.steps(decoder)):
            needs = () if decoder.softmax is None else stage.needs(decoder, number)
            layer = hybrid.drop_layer(decoder, step.layer, needs)
            drops[layer] = Drop(layer, index, number, step.share)
            asked.append((step.layer, needs))
        self.notes += hybrid.moved(self.stages[index].method, asked, decoder)
        return list(drops.values())

    @property
    def front(self) -> Budget | None:
        """The budget of what reaches the language model."""
        return self.encoder if self.projector is None else self.projector

    def entered(self, tokens: int) -> int:
        """Tokens of an image of one tile that reach the language model."""
        encoded = tokens if self.encoder is None else self.encoder.count(tokens)
        return encoded if self.projector is None else min(encoded, sum(self.projector.quotas([[tokens]])[0]))

    def mean(self, powers: tuple[float, ...] | None = None) -> float:
        """Mean over layers of the share of the entered tokens that they see, roundings aside. powers: one per decoder
        stage, 1 for all if None."""
        powers = powers or (1.0,) * len(self.stages)
        total, share, entered = 0.0, 1.0, {}
        for layer in range(self.depth):
            for step in (s for s in self.steps if s.layer == layer):
                share = min(share, entered.setdefault(step.index, share) * step.share ** powers[step.index])
            total += share
        return total / self.depth

    def counts(self, before: int, entered: int) -> list[int]:
        """Tokens left of one image after each of `steps`. before: visual tokens of the image; entered: those that
        reach the language model."""
        powers = self.powers(before, entered)
        count, entered_stage, counts = entered, {}, []
        for step in self.steps:
            power, stage = powers[step.index], self.stages[step.index].stage
            # A power is found up to rounding errors, which must not cost a token where a count is truncated.
            share = step.share if power == 1.0 else min(1.0, step.share**power + EPS)
            count = min(count, max(1, stage.count(entered_stage.setdefault(step.index, count), share)))
            counts.append(count)
        return counts

    def tokens_per_layer(self, before: int, entered: int) -> list[int]:
        """Visual tokens of one image that each layer sees."""
        counts = self.counts(before, entered)
        per_layer, present = [], entered
        for layer in range(self.depth):
            for step, count in zip(self.steps, counts, strict=True):
                present = count if step.layer == layer else present
            per_layer.append(present)
        return per_layer

    def aim(self, before: int, entered: int) -> tuple[int, int]:
        """Tokens of one image that enter, and that all layers together are to see; -1 where no budget departs from the
        published schedules. For stages that find their own numbers (see `vtc.core.signals.Aim`)."""
        if all(power == 1.0 for power in self.powers(before, entered)):
            return entered, -1
        return entered, sum(self.tokens_per_layer(before, entered))

    def powers(self, before: int, entered: int) -> tuple[float, ...]:
        """The power of each decoder stage for one image."""
        if self.config.keep is not None:
            fits = self.front is not None and not self.relaxed(before)
            power = 1.0 if fits else self._power(None, self.config.keep, before)
            return (power,) * len(self.stages)
        keeps = [stage.keep for stage in self.stages]
        return tuple(1.0 if k is None else self._power(i, k, entered) for i, k in enumerate(keeps))

    def relaxed(self, before: int) -> bool:
        """Whether an image is to keep more on average than the published schedules behind the first stage allow."""
        if not self.stages or self.front is None or self.config.keep is None:
            return False
        if self.front.scope == "per_request" and isinstance(self.config.keep, int):
            return False  # what is shared among images cannot be more than all of one
        return _fraction(self.config.keep, before) > self.mean() + EPS

    def _power(self, only: int | None, keep: float | int, tokens: int) -> float:
        """The power that gives the mean `keep`: of all stages, or of one with the others keeping all."""
        return self._solved_power(only, keep, None if isinstance(keep, float) else tokens)

    @lru_cache(maxsize=1024)  # noqa: B019 - there is one allocation per patch
    def _solved_power(self, only: int | None, keep: float | int, tokens: int | None) -> float:
        fraction = _fraction(keep, tokens)
        if fraction >= 1.0:
            return 0.0
        indices = range(len(self.stages)) if only is None else [only]

        def mean(power: float) -> float:
            return self.mean(tuple(power if i in indices else 0.0 for i in range(len(self.stages))))

        low, high = 0.0, LARGEST_POWER
        if fraction < mean(high):
            names = "+".join(self.stages[i].method for i in indices)
            first = next((step.layer for step in self.steps if step.index in indices and step.share < 1), None)
            why = f"all layers before its first drop, at layer {first} of {self.depth}, see all of them"
            possible = f"more than {mean(high) * (tokens or 1):.4g}, an earlier layer"
            if first is None:
                why, possible = "no step of its schedule removes any", "a schedule that does"
            elsewhere = "" if self.front else f", or a stage at the projector before it (such as hiprune+{names})"
            raise ConfigError(
                f"keep={keep!r} of the {f'{tokens} ' if tokens else ''}visual tokens as a mean over layers is out of "
                f"reach for {names}: {why}; possible: {possible}{elsewhere}"
            )
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) > fraction else (low, middle)
        # The published mean gives the published counts, halves included.
        return 1.0 if abs(high - 1.0) < EPS else high

    def _budget(self, stage: "StageConfig | None") -> Budget | None:
        keep = self.config.keep
        if stage is None:
            return None
        if keep is None:
            keep = stage.keep
        elif self.stages and isinstance(keep, int):
            keep = max(1, round(keep / self.mean()))
        elif self.stages and not self.config.keeps_all:
            keep = min(1.0, round(keep / self.mean(), 12))
        return Budget(keep, stage.scope, stage.rounding, getattr(stage.stage, "least", None))

    def _check(self, tokens: int | None) -> None:
        """Raises ConfigError before any prompt is seen, where fractions, or the tokens of an image, can tell."""
        keep, entered = self.config.keep, tokens
        if keep is not None:
            if isinstance(keep, float) or tokens is not None:
                self.powers(tokens or 1, tokens or 1)
            return
        if self.front is not None:
            shared = self.front.scope == "per_request" and isinstance(self.front.keep, int)
            entered = None if tokens is None or shared else self.front.count(tokens)
        for index, stage in enumerate(self.stages):
            keep = stage.keep
            if isinstance(keep, float) or keep is not None and entered is not None:
                self._power(index, keep, entered or 1)


def _fraction(keep: float | int, tokens: int | None) -> float:
    return keep if isinstance(keep, float) else keep / tokens
