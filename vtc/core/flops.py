"""The cost of a prompt: prefill FLOPs and KV-cache bytes of the language model, from shapes alone."""

from dataclasses import dataclass

from torch import Tensor

FORMULA = (
    "per layer and prompt of n tokens, a multiply-add counts 2: 2n[2d*h*e + 2d*g*e] (q, o; k, v) + 4n^2*h*e (scores, "
    "values, causal half not deducted) + 2n*m*d*(3 if the MLP is gated else 2); embedding and LM head not counted"
)

PAPER_FORMULA = (
    "as the papers count: per layer and image of n visual tokens 4nd^2 + 2n^2d + 3ndm, a multiply-add counts 1; text, "
    "grouped key-value heads, embedding and LM head not counted"
)


@dataclass(frozen=True)
class LanguageShape:
    """The sizes of a language model that its cost depends on. layers; hidden d; heads h; kv_heads g; head_dim e; mlp m;
    gated: three MLP matrices instead of two; bytes: of one cached number; sliding: the layers with a sliding window;
    window: the tokens that these cache at most."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    gated: bool
    bytes: int
    sliding: frozenset[int] = frozenset()
    window: int | None = None

    def layer_flops(self, tokens: int) -> int:
        """FLOPs of one decoder layer over a prompt of `tokens` tokens; see FORMULA."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = 2 * tokens * self.hidden * (2 * query + 2 * key)
        attention = 4 * tokens * tokens * query
        mlp = 2 * tokens * self.hidden * self.mlp * (3 if self.gated else 2)
        return projections + attention + mlp

    def prefill_flops(self, lengths: list[int]) -> int:
        """FLOPs of the prefill of one prompt whose layer l sees lengths[l] tokens."""
        return sum(self.layer_flops(n) for n in lengths)

    def kv_bytes(self, lengths: list[int]) -> int:
        """Bytes of keys and values cached for one prompt whose layer l holds lengths[l] tokens."""
        held = [min(n, self.window) if layer in self.sliding else n for layer, n in enumerate(lengths)]
        return sum(2 * n * self.kv_heads * self.head_dim * self.bytes for n in held)


def paper_flops(shape: LanguageShape, tokens_per_layer: list[int]) -> int:
    """FLOPs of one image whose visual tokens in each layer are `tokens_per_layer`, as FastV, PyramidDrop and TransPrune
    print them; see PAPER_FORMULA. LLaVA-1.5-7B with all 576 tokens: 3.82 T."""
    d, m = shape.hidden, shape.mlp
    return sum(4 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in tokens_per_layer)


ENCODER_FORMULA = (
    "per layer and sequence of n tokens that attend to each other, of which m reach the MLP, a multiply-add counts 2: "
    "8nd^2 + 4n^2d + 2mdw(3 if the MLP is gated else 2); patch embedding and projector not counted"
)


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of a vision encoder that its cost depends on. layers; hidden d; mlp w; gated: three MLP matrices
    instead of two."""

    layers: int
    hidden: int
    mlp: int
    gated: bool

    def layer_flops(self, sequences: list[int], reach: int) -> int:
        """FLOPs of one layer on sequences of these lengths, `reach` of whose tokens reach the MLP; see
        ENCODER_FORMULA."""
        d = self.hidden
        attention = sum(8 * n * d * d + 4 * n * n * d for n in sequences)
        return attention + 2 * reach * d * self.mlp * (3 if self.gated else 2)


@dataclass(frozen=True)
class EncoderWork:
    """The work of one run of an encoder. before, after: per layer, the lengths of the sequences whose tokens attend to
    each other (or a tensor of their bounds, read only on access), and the tokens that reach the MLP."""

    shape: EncoderShape
    before: list[tuple[list[int] | Tensor, int]]
    after: list[tuple[list[int] | Tensor, int]]

    @property
    def flops(self) -> tuple[int, int]:
        """FLOPs (before, after); see ENCODER_FORMULA."""
        sides = self.before, self.after
        return tuple(sum(self.shape.layer_flops(_lengths(n), m) for n, m in side) for side in sides)


def _lengths(sequences: list[int] | Tensor) -> list[int]:
    return sequences if isinstance(sequences, list) else sequences.diff().tolist()
