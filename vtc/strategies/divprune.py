"""DivPrune: the tokens that lie furthest from each other among the projected features."""

from dataclasses import dataclass

from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features
from vtc.kernels.diversity import maxmin_greedy
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@METHODS.register("divprune")
@dataclass(frozen=True)
class DivPrune(Stage):
    """Keeps a set of tokens whose smallest cosine distance to each other is large, by a greedy choice.

    The first token is the one whose nearest other token is furthest. Each further one is the token whose nearest chosen
    token is furthest. No attention and no text is looked at, and there are no knobs.

    Paper: DivPrune, arXiv 2503.02175. Official code: vbdi/divprune (CC BY-NC 4.0), LLaVA-1.5 and LLaVA-NeXT.
    A fraction is rounded to nearest, halves to even, as in the code (`rounding: round`).
    Departures: no token is chosen twice (the code repeats tokens where all features are equal). The prompt may be any
    (the code assumes 35 tokens before the image and looks at the first image only). On LLaVA-NeXT the code chooses
    from the base crop, the tiles and the newline tokens together; here (`scope: per_image`) from base crop and tiles
    together, since newline tokens stand for rows that are no longer there, and a fraction counts without them. Qwen is
    an extension of ours. Float32, ties to the lower index (the code ranks in float16).
    """

    def needs(self, encoder: Encoder) -> tuple[Features]:
        """The projected features."""
        return (Features(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `vtc.kernels.diversity`."""
        order = maxmin_greedy(context[Features()], context.count)
        return Selection(order.sort(dim=1).values)
