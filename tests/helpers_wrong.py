"""Methods that each break one property of the contract, to see that `vtc check` says which."""

from dataclasses import dataclass

import torch

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, Features
from vtc.kernels.topk import topk_sorted
from vtc.strategies.base import Stage


@dataclass(frozen=True)
class Good(Stage):
    """The tokens that receive most attention."""

    def needs(self, encoder):
        """One layer's attention."""
        return (AttentionColumns(1),)

    def scores(self, context):
        """[B, N]."""
        return context[AttentionColumns(1)]

    def select(self, context, encoder):
        """The best."""
        return Selection(topk_sorted(self.scores(context), context.count))


@dataclass(frozen=True)
class Unsorted(Good):
    """The best first."""

    def select(self, context, encoder):
        """Not sorted."""
        return Selection(self.scores(context).topk(context.count).indices)


@dataclass(frozen=True)
class TooMany(Good):
    """One more than asked."""

    def select(self, context, encoder):
        """count + 1."""
        return Selection(topk_sorted(self.scores(context), min(context.count + 1, context.tokens)))


@dataclass(frozen=True)
class Outside(Good):
    """Numbers that are no token's."""

    def select(self, context, encoder):
        """From the end of the raster on."""
        first = torch.arange(context.count - 1)
        return Selection(torch.cat([first, torch.tensor([-1])]).expand(len(context.ordinals), -1))


@dataclass(frozen=True)
class OfTheBatch(Good):
    """Compares images with the mean of all of them."""

    def scores(self, context):
        """The distance from that mean."""
        scores = super().scores(context)
        return (scores - scores.mean(0)).abs() if len(scores) > 1 else scores


@dataclass(frozen=True)
class HalfScores(Good):
    """Scores in half precision."""

    def scores(self, context):
        """Rounded."""
        return super().scores(context).bfloat16()


@dataclass(frozen=True)
class OwnPrecision(Good):
    """Sums up in the type in which the model runs."""

    def needs(self, encoder):
        """Vectors, which have the model's type."""
        return (Features(),)

    def scores(self, context):
        """Lengths."""
        return context[Features()].pow(2).sum(-1)


@dataclass(frozen=True)
class Unseeded(Good):
    """Draws from the global generator."""

    def scores(self, context):
        """Random."""
        return torch.rand(len(context.ordinals), context.tokens)


@dataclass(frozen=True)
class HigherFirst(Good):
    """Of equals, the last."""

    def select(self, context, encoder):
        """The best of the mirrored row."""
        kept = topk_sorted(self.scores(context).flip(1), context.count)
        return Selection((context.tokens - 1 - kept).flip(1))


@dataclass(frozen=True)
class Crashes(Good):
    """Divides by zero."""

    def select(self, context, encoder):
        """Never anything."""
        raise ZeroDivisionError("\x1b[31mnothing\nto divide")


@dataclass(frozen=True)
class Fussy(Good):
    """Only for encoders with [CLS]."""

    def needs(self, encoder):
        """Refused by name."""
        if not encoder.has_cls:
            raise ConfigError("fussy needs [CLS]; possible: llava")
        return super().needs(encoder)


@dataclass(frozen=True)
class Refusing(Good):
    """For nobody."""

    def needs(self, encoder):
        """Refused everywhere."""
        raise ConfigError("this method is never possible; possible: another one")


@dataclass(frozen=True)
class Exits(Good):
    """Ends the program as if all were well."""

    def select(self, context, encoder):
        """Not caught by `except Exception`."""
        raise SystemExit(0)
