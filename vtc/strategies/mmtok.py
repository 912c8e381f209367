"""MMTok: greedily selects the tokens that best cover the question's words and the image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, EncoderFeatures, Features, Signal, TextEmbeddings
from vtc.kernels.coverage import coverage_greedy
from vtc.kernels.products import half_product, product
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

TOGETHER = 2**20  # weight entries of several images in memory at once
NONE = 1e-8  # a norm below this counts as this


@torch.no_grad()
def weights(
    text: Tensor, projected: Tensor, unprojected: Tensor, alpha: float = 0.5, tau_v: float = 0.2, tau_t: float = 0.02
) -> Tensor:
    """How well each visual token represents each word and each visual token: [B, m + N, N].

    text [B, m, D], projected [B, N, D], unprojected [B, N, E], compared by cosine. Each row is a softmax over the
    tokens, divided by the number of such rows: m for words (temperature tau_t), N for tokens (tau_v, times alpha).
    The memory layout is [B, N, m + N], token by token as `coverage_greedy` reads it, without a second N x N matrix.
    """
    device, dtype = projected.device, torch.promote_types(projected.dtype, torch.float32)
    text, projected, unprojected = (x.to(device, dtype) for x in (text, projected, unprojected))
    text, unprojected = normalize(text, dim=-1, eps=NONE), normalize(unprojected, dim=-1, eps=NONE)
    norms = torch.linalg.vector_norm(projected, dim=-1).clamp(min=NONE)
    (batch, words), tokens = text.shape[:2], projected.shape[1]
    out = projected.new_empty(batch, tokens, words + tokens)
    for rows, t, v, norm, u in zip(out, text, projected, norms, unprojected):
        of_words, of_tokens = rows[:, :words], rows[:, words:]
        torch.mul(product(t, v.t()).t(), (1 / norm)[:, None], out=of_words)
        _spread(of_words, of_words.amax(0), tau_t, 1 / max(words, 1))
        half_product(u, of_tokens) if device.type == "cpu" else torch.mm(u, u.t(), out=of_tokens)
        # The largest cosine of a token is its own: 1 but for rounding, or 0 of a vector that is 0.
        _spread(of_tokens, (of_tokens.diagonal() > 0).to(dtype), tau_v, alpha / tokens)
    return out.transpose(1, 2)


def _spread(cosines: Tensor, largest: Tensor, temperature: float, total: float) -> None:
    """Softmax over the first axis, in place; each column then sums to `total`. largest: about the largest of each."""
    cosines.sub_(largest).div_(temperature).exp_()
    cosines.mul_(total / cosines.sum(0))


def select_tokens(weights: Tensor, count: int, excluded: Tensor | None = None) -> Selection:
    """Greedily selects the `count` tokens that cover `weights` [B, R, N] best.

    excluded [B, N] bool: tokens that must not be chosen, such as padding; a unit with fewer than `count` other tokens
    keeps only these (`valid` marks them).
    """
    keep = coverage_greedy(weights, count, excluded=excluded).sort(1).values
    if excluded is None:
        return Selection(keep)
    last, order = excluded.gather(1, keep).sort(dim=1, stable=True)
    return Selection(keep.gather(1, order), valid=~last)


@METHODS.register("mmtok")
@dataclass(frozen=True)
class MMTok(Stage):
    """Keeps the tokens that together cover the words of the question and all visual tokens, as in maximum coverage.

    Each word and each visual token distributes its weight over the visual tokens by a softmax of cosines: between
    input embeddings and projected tokens for words, between the projector's inputs for tokens. The value of a set is
    the sum, over all words and tokens, of the largest weight in it; tokens are added greedily by marginal gain (see
    `vtc.kernels.coverage`).

    Knobs:
    - alpha: weight of the visual tokens, relative to 1 for the words.
    - tau_v: temperature of the softmax of each visual token.
    - tau_t: temperature of the softmax of each word.
    - keywords: remove stop words and the benchmarks' instructions.
    - prefix: text before the question.

    Paper: MMTok, ICLR 2026, arXiv 2508.18264. Official code: Ironieser/MMTok (Apache-2.0).
    Departures: each image is pruned by the last question of its own prompt (the code has one question per call). A
    prompt without a question is used as a whole; the code inserts a sentence of its own. Cosines in float32 (the code
    normalises in the model's precision), ties to the lower index. For LLaVA-1.5 the code excludes the padding of images
    that were made square. Here nothing is excluded, as in the paper's main tables: stock processors centre-crop the
    image and do not pad, and LLaVA-NeXT removes its padding itself. For images that were padded beforehand, use
    `vtc.core.text.padding_patches` with `select_tokens`, which never chooses a token twice as the code can. A number of
    tokens is divided among LLaVA-NeXT's tiles (the code has a fixed number for each). SigLIP and Qwen2-VL, where
    nothing is published, follow LLaVA and Qwen2.5-VL. The paper's variant with a small answering model is not included.
    """

    alpha: float = 0.5
    tau_v: float = 0.2
    tau_t: float = 0.02
    keywords: bool = True
    prefix: str = ""

    tile_scope = "per_tile"

    def __post_init__(self):
        if not 0 <= self.alpha < float("inf"):
            raise ConfigError(f"alpha={self.alpha} is out of range; possible: a number from 0")
        for name in ("tau_v", "tau_t"):
            if not 0.001 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; possible: a number from 0.001")

    @property
    def needs_text(self) -> bool:
        """True, unless the question is used unchanged: then the prompt's ids are enough."""
        return self.keywords or bool(self.prefix)

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """Words, and the tokens after and before the projector."""
        return TextEmbeddings(self.keywords, self.prefix), Features(), EncoderFeatures()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `weights` and `select_tokens`; exactly `count`."""
        if context.count == context.tokens:
            every = torch.arange(context.tokens, device=context.device)
            return Selection(every.expand(len(context.ordinals), -1).contiguous())
        signals = [context[signal] for signal in self.needs(encoder)]
        units, size = len(context.ordinals), max(1, TOGETHER // context.tokens**2)
        kept = []
        for i in range(0, units, size):
            # Weights one by one, so that no sum depends on the batch; small images are selected together.
            weights_of_units = [
                weights(*(x[b : b + 1] for x in signals), self.alpha, self.tau_v, self.tau_t)
                for b in range(i, min(i + size, units))
            ]
            together = weights_of_units[0] if len(weights_of_units) == 1 else torch.cat(weights_of_units)
            kept.append(select_tokens(together, context.count).keep)
        return Selection(torch.cat(kept))
