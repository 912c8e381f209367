"""The cost of a prompt: prefill FLOPs and KV-cache bytes of the language model, from shapes alone."""

from dataclasses import dataclass

from torch import Tensor

FORMULA = (
    "per layer and prompt of n tokens, a multiply-add counts 2: 2n[2d*h*e + 2d*g*e] (q, o; k, v) + 4n^2*h*e (scores, "
    "values, causal half not deducted) + 2n*m*d*(3 if the MLP is gated else 2); a drop that looks at n tokens ahead "
    "adds 2n*d*g*e, and 2d*h*e for each query; embedding and LM head not counted"
)

LINEAR_FORMULA = (
    "q counts twice where attention is output-gated. A layer with linear attention (Gated DeltaNet) has instead of "
    "projections, scores and values 2n[d(2K + 3V + 2v) + w(2K + V) + 3V*k] (q, k, v, gate, output, two numbers for "
    "each value head; convolution; delta rule token by token), with K and V the widths of all key and value heads, k "
    "that of one key head, v value heads and a convolution of width w"
)

PAPER_FORMULA = (
    "as the papers count: per layer and image of n visual tokens 4nd^2 + 2n^2d + 3ndm, a multiply-add counts 1; text, "
    "grouped key-value heads, embedding and LM head not counted"
)


@dataclass(frozen=True)
class LinearAttention:
    """Layers with linear attention (Gated DeltaNet). layers: which; key_heads, value_heads v: heads of width key_dim k
    and value_dim; conv w: width of the causal convolution over queries, keys and values."""

    layers: frozenset[int]
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    conv: int

    def flops(self, tokens: int, hidden: int) -> int:
        """FLOPs of one layer's attention over `tokens` tokens of width `hidden`; see LINEAR_FORMULA."""
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        projections = hidden * (2 * keys + 3 * values + 2 * self.value_heads)
        return 2 * tokens * (projections + self.conv * (2 * keys + values) + 3 * values * self.key_dim)

    def state_bytes(self, size: int) -> int:
        """Bytes of one layer's state: the convolution's last inputs with `size` bytes each, and the recurrent state in
        float32."""
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        return self.conv * (2 * keys + values) * size + 4 * values * self.key_dim


@dataclass(frozen=True)
class LanguageShape:
    """The sizes of a language model that its cost depends on. layers; hidden d; heads h; kv_heads g; head_dim e; mlp m;
    gated: three MLP matrices instead of two; bytes: of one cached number; sliding: the layers with a sliding window;
    window: the tokens that these cache at most; output_gate: the query projection makes a gate of the same width, too;
    linear: the layers with linear attention, None if there are none."""

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
    output_gate: bool = False
    linear: LinearAttention | None = None

    @property
    def formula(self) -> str:
        """The formula of `prefill_flops` in words."""
        return FORMULA if self.linear is None else f"{FORMULA}. {LINEAR_FORMULA}"

    def is_linear(self, layer: int) -> bool:
        """Whether a layer has linear attention: a state of fixed size instead of keys and values."""
        return self.linear is not None and layer in self.linear.layers

    @property
    def softmax(self) -> tuple[int, ...] | None:
        """The layers with softmax attention, if others have linear attention."""
        return None if self.linear is None else tuple(i for i in range(self.layers) if not self.is_linear(i))

    @property
    def first_cached(self) -> int:
        """The first layer that caches keys and values."""
        return 0 if self.softmax is None else self.softmax[0]

    def layer_flops(self, tokens: int, layer: int = 0) -> int:
        """FLOPs of one decoder layer over a prompt of `tokens` tokens; see `formula`."""
        mlp = 2 * tokens * self.hidden * self.mlp * (3 if self.gated else 2)
        if self.is_linear(layer):
            return self.linear.flops(tokens, self.hidden) + mlp
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = 2 * tokens * self.hidden * ((3 if self.output_gate else 2) * query + 2 * key)
        return projections + 4 * tokens * tokens * query + mlp

    def ahead_flops(self, tokens: int, queries: int) -> int:
        """FLOPs of looking at a layer's attention ahead: keys of `tokens` tokens and `queries` queries, projected
        before any is dropped."""
        query = (2 if self.output_gate else 1) * self.heads * self.head_dim
        return 2 * self.hidden * (tokens * self.kv_heads * self.head_dim + queries * query)

    def prefill_flops(self, lengths: list[int]) -> int:
        """FLOPs of the prefill of one prompt whose layer l sees lengths[l] tokens."""
        return sum(self.layer_flops(n, layer) for layer, n in enumerate(lengths))

    def kv_bytes(self, lengths: list[int]) -> int:
        """Bytes cached for one prompt whose layer l holds lengths[l] tokens: keys and values, and in layers with linear
        attention a state that does not depend on the length."""
        each = 2 * self.kv_heads * self.head_dim * self.bytes
        held = [min(n, self.window) if layer in self.sliding else n for layer, n in enumerate(lengths)]
        return sum(
            self.linear.state_bytes(self.bytes) if self.is_linear(layer) else n * each for layer, n in enumerate(held)
        )


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
