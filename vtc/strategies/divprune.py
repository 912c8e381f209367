"""DivPrune: the most diverse set of projected features by max-min distance."""

from dataclasses import dataclass

from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features
from vtc.kernels.diversity import maxmin_greedy
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@METHODS.register("divprune")
@dataclass(frozen=True)
class DivPrune(Stage):
    """Keeps a set of tokens with a large minimum pairwise cosine distance, selected greedily.

    The first token is the one whose nearest other token is furthest. Each further one is the token whose nearest chosen
    token is furthest. Neither attention nor text is used, and there are no knobs.

    Paper: DivPrune, arXiv 2503.02175. Official code: vbdi/divprune (CC BY-NC 4.0), LLaVA-1.5 and LLaVA-NeXT.
    A fraction is rounded to nearest, halves to even, as in the code (`rounding: round`).
    Departures: no token is chosen twice (the code repeats tokens if all features are equal). Any prompt is supported
    (the code assumes 35 tokens before the image and uses the first image only). On LLaVA-NeXT the code selects from the
    base crop, the tiles and the newline tokens together; here (`scope: per_image`) from base crop and tiles together,
    since newline tokens mark rows that no longer exist; a fraction does not count them either. Qwen is our extension.
    Float32, ties to the lower index (the code ranks in float16).
    """

    def needs(self, encoder: Encoder) -> tuple[Features]:
        """The projected features."""
        return (Features(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `vtc.kernels.diversity`."""
        order = maxmin_greedy(context[Features()], context.count)
        return Selection(order.sort(dim=1).values)
