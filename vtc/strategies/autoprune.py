"""AutoPrune: a drop after every layer of the language model, along a curve that depends on question and image."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import Aim, Context, Decoder, DecoderAttention, EncoderAttention, Hidden, Signal, TextInformation
from vtc.kernels.logistic import Curve, curve, merged_count, plain_count
from vtc.kernels.merge import merged_slots
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step
from vtc.strategies.sparsevlm import recycle

FIRST, TEXT = 2.5, 0.3  # tokens after the first layer, over the target; weight of the text in their score
NOMINAL = 100_000, 1.0  # tokens and bits of the curve that budgets are computed with


def first_score(image: Tensor, relation: Tensor, information: Tensor) -> Tensor:
    """The score [B, N] after the first layer: [CLS] attention [B, N], plus the text's attention [B, N] weighted by its
    mutual information [B]."""
    return TEXT * information.to(relation).unsqueeze(1) * relation + image.to(relation)


@METHODS.register("autoprune")
@dataclass(frozen=True)
class AutoPrune(DecoderStage):
    """Drops tokens after every layer, at a rate set by the mutual information between text and image attention.

    After the first layer, int(2.5 * target) tokens are kept by [CLS] attention in the encoder plus the text's
    attention, the latter weighted by its mutual information with the visual tokens (bits, summed over heads). The
    information in the second layer sets the slope of a logistic curve, max(k0 - gamma * information, 0), whose level is
    searched so that the mean over layers is the target. After each further layer, as many of the tokens that the text
    attends to most are kept as the curve allows; the best of the dropped ones merge into a few (as in `sparsevlm`),
    which come after the others in the sequence and compete from then on.

    Knobs:
    - target: mean over layers of the tokens kept after each, as a share of the tokens that enter; 64 of 576.
    - k0: slope of the curve at zero information.
    - gamma: decrease of the slope per bit.
    - x0: centre of the curve, a number of layers, 14.9 of 32.
    - layer: the encoder layer whose attention is read (index, or relative depth as a float).

    Paper: AutoPrune ("Each Complexity Deserves a Pruning Policy"), NeurIPS 2025, arXiv 2509.23931. Official code:
    AutoLab-SAI-SJTU/AutoPrune @ e4a9918 (Apache-2.0), LLaVA-1.5 and LLaVA-NeXT.
    Departures: the number of tokens in a layer depends on prompt and image, their mean does not. The published target
    counts the tokens kept after each layer, including the last, but not the first layer's full pass; a budget set by
    `keep` counts what each layer sees, as everywhere in vtc, and is met by the same search. No noise in the densities,
    and merged tokens are means (the code adds up to 1e-6 to densities, and 1e-6 to the divisor). Several images,
    batches and padding are our additions; each image has its own curve, based on the text after it, or the last prompt
    token if there is none. Row-end tokens have no [CLS] attention and score 0 for it. Without [CLS], the mean attention
    received in the encoder is used instead; Qwen, whose 2-D positions are kept, is our extension.
    Language models with linear attention in some layers are refused: the curve counts on the attention of each.
    Information in float64 (the code: the model's precision). Float32, ties to the lower index.
    """

    target: float = 0.1111
    k0: float = 0.4
    gamma: float = 0.2
    x0: float = 14.9
    layer: int | float = -2

    needs_cls = True
    adaptive = True
    own_counts = True
    every_layer = True

    def __post_init__(self):
        if not 0 < self.target <= 1:
            raise ConfigError(f"target={self.target} is out of range; possible: a share in (0, 1]")
        for knob in ("k0", "gamma"):
            if getattr(self, knob) < 0:
                raise ConfigError(f"{knob}={getattr(self, knob)} is out of range; possible: 0 or more")

    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """One before each layer but the first, with the shares of the curve at 1 bit, which budgets are based on."""
        tokens, bits = NOMINAL
        shares = [count / tokens for count in self.plan(tokens, -1, bits, decoder.depth).counts]
        falling = accumulate(shares[: decoder.depth - 1], min)
        return tuple(Step(layer, share) for layer, share in enumerate(falling, 1))

    def needs(self, decoder: Decoder, step: int) -> tuple[Signal, ...]:
        """The text's attention in the layer just run, its information, the budget; [CLS] or hidden states."""
        relation = DecoderAttention(step, "after", ahead=False)
        extra = (EncoderAttention(self.layer),) if step == 0 else (Hidden(),)
        return (relation, TextInformation(min(step, 1), read=step > 0), Aim(), *extra)

    def plan(self, entered: int, total: int, bits: float, depth: int) -> Curve:
        """The curve of an image. total: the tokens that all layers together see, or -1 for the published target."""
        layers, target = depth, depth * self.target * entered
        if total >= 0:
            layers, target = depth - 1, max(depth - 1, total - entered)
        first = max(1, min(int(FIRST * target / layers), entered))
        return curve(entered, first, max(self.k0 - self.gamma * bits, 0.0), self.x0, layers, target)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Keeps as many tokens as each image's curve gives, regardless of `context.count`."""
        relation, information, aim, extra = (context[signal] for signal in self.needs(decoder, context.step))
        # The first count does not depend on the information, which the host therefore reads later.
        bits = information[:, 0].tolist() if context.step else [0.0] * len(aim)
        curves = [self.plan(int(n), int(t), own, decoder.depth) for (n, t), own in zip(aim.tolist(), bits, strict=True)]
        if context.step == 0:
            score = first_score(extra, relation, information[:, 0] / information[:, 1])
            return padded(
                [Selection(topk_sorted(s[None], min(c.counts[0], context.tokens))) for s, c in zip(score, curves)]
            )
        return padded([self._unit(context, relation[b : b + 1], extra[b : b + 1], c) for b, c in enumerate(curves)])

    @staticmethod
    def _unit(context: Context, relation: Tensor, hidden: Tensor, planned: Curve) -> Selection:
        """Selects for one image after the second or a later layer."""
        plain = min(plain_count(planned.counts[0], planned.fractions[context.step - 1]), context.tokens)
        kept = topk_sorted(relation, plain)
        _, groups = recycle(relation, hidden, kept, merged_count(context.tokens - plain), ranked=False, eps=0.0)
        keep, order, target, weight = merged_slots(kept, groups)
        return Selection(keep, merge=Merge(target, weight), order=order)


def padded(units: list[Selection]) -> Selection:
    """Combines Selections of single units, which may keep different numbers, into one."""
    width = max(unit.keep.shape[1] for unit in units)

    def rows(name: str, fill: Tensor) -> Tensor:
        return torch.cat([torch.cat([getattr(u, name), fill[None, getattr(u, name).shape[1] :]], 1) for u in units])

    valid = torch.stack([torch.arange(width) < unit.keep.shape[1] for unit in units])  # on the host, which knows it
    slots = torch.arange(width, device=units[0].keep.device)
    keep = rows("keep", torch.zeros_like(slots))
    if units[0].merge is None:
        return Selection(keep, valid)
    merge = Merge(*(torch.cat([getattr(unit.merge, name) for unit in units]) for name in ("target", "weight")))
    return Selection(keep, valid, merge, rows("order", slots))
