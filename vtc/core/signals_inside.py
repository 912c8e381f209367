"""The signals of stages inside the encoder and inside the language model; `vtc.core.signals` has them all."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Transition:
    """Token transition variation of decoder layer `layer` (0-based): how far its attention and its MLP change the
    length and the direction of a token, over all tokens of the prompt. See `vtc.kernels.transition`. -> [B, N]
    float32. Measured when the layer runs, carried through every later drop."""

    layer: int


@dataclass(frozen=True)
class DecoderAttention:
    """Causal softmax attention that each visual token receives in decoder layer `layer`, averaged over heads and over
    the chosen queries, not renormalised. -> [B, N] float32.

    queries: "last" (the last prompt token), "after" (all text after the image; the last prompt token if there is
    none), "raters" (of these the text tokens that agree with the image more than the mean of them, in what enters the
    language model; see `vtc.kernels.raters`), "image" (the image's own tokens that are left). ahead: computed before
    the layer runs, from its own norm, projections and rotary positions, on the tokens that are about to enter it; else
    observed while it runs.
    """

    layer: int
    queries: str
    ahead: bool = True


@dataclass(frozen=True)
class UnturnedAttention:
    """The attention that each visual token receives from the raters (see `DecoderAttention`) in decoder layer `layer`,
    divided by the product of two vectors of ones turned by their rotary positions, over sqrt(head dim); the mean over
    raters and over that share of the heads which then give the image most. Observed while the layer runs.
    -> [B, N] float32."""

    layer: int
    heads: float


@dataclass(frozen=True)
class KeyNorms:
    """L1 length of the keys (after RoPE, all heads) that decoder layer `layer` computed for each visual token, observed
    while it runs. -> [B, N] float32."""

    layer: int


@dataclass(frozen=True)
class TextInformation:
    """How much the attention of the text after the image (of the last prompt token, if there is none) in decoder layer
    `layer` tells about the image's tokens that are left: mutual information in bits, summed over heads (see
    `vtc.kernels.information`), and the number of these text tokens; observed while the layer runs, and kept from then
    on. read: on the host, read there once in a prefill. -> [B, 2] float64."""

    layer: int
    read: bool = False


@dataclass(frozen=True)
class EncoderAttention:
    """For a stage inside the language model: `ClsAttention` of the encoder (`AttentionColumns` without [CLS]) in
    `encoder_layer` (index, or relative depth as a float); 0 for structural tokens. -> [B, N] float32."""

    encoder_layer: int | float


@dataclass(frozen=True)
class Aim:
    """The tokens of the image that entered the language model, and how many its layers together are to see by the
    strategy's budget, -1 where the published schedule holds. -> [B, 2] float64."""


@dataclass(frozen=True)
class Hidden:
    """The hidden states of the visual tokens that are about to enter a layer of the language model, or as they stand at
    a step inside the encoder (a cell: its patches' mean). -> [B, N, D]."""


@dataclass(frozen=True)
class Importance:
    """The scores that the stage at the projector gave the visual tokens, see `Selection.score`, carried through every
    later drop. -> [B, N]."""


@dataclass(frozen=True)
class FinalHidden:
    """The hidden states of the visual tokens that are about to enter a layer, through the model's final norm.
    -> [B, N, D]."""


@dataclass(frozen=True)
class TextPivots:
    """`FinalHidden` of the `count` text tokens after the image with the longest keys (`KeyNorms`) in decoder layer
    `layer`, longest first; fewer where there is less text. -> [B, p, D]."""

    layer: int
    count: int


@dataclass(frozen=True)
class TextToVisual:
    """Of the attention that the text after the image pays in decoder layer `layer` (head mean, summed over that text),
    the share that goes to all visual tokens of the prompt that are left; observed while the layer runs. -> [B]."""

    layer: int


@dataclass(frozen=True)
class DecoderKeys:
    """The keys (after RoPE) of decoder layer `layer`, averaged over key heads, computed before the layer runs.
    -> [B, N, e]."""

    layer: int


@dataclass(frozen=True)
class ClsValueAttention:
    """Softmax over all values of encoder layer `layer` of their unscaled products with the value of [CLS], head mean,
    not renormalised after [CLS] itself is dropped. On an encoder without [CLS] the mean of all values of the image
    stands in for it. -> [B, N] float32."""

    layer: int


@dataclass(frozen=True)
class ValueNorms:
    """L1 length of each visual token's head-mean value in layer `layer` of the encoder, or of the decoder for a stage
    in it; observed while the layer runs. -> [B, N] float32."""

    layer: int


@dataclass(frozen=True)
class Sizes:
    """Inside the encoder: how many original tokens each token holds after the merges so far. -> [B, N] float32."""


@dataclass(frozen=True)
class Carried:
    """Inside the encoder: what this stage gave as `Selection.carry` at its last step, for the tokens that are left;
    zero at the first. -> [B, N] float32."""


@dataclass(frozen=True)
class ImageAttention:
    """Softmax over the image's own tokens that are left of their products with the last prompt token in decoder layer
    `layer`, divided by sqrt(head dim): of its query with their keys (after RoPE), or (values) of its value with their
    values; head mean. Observed while the layer runs. -> [B, N] float32."""

    layer: int
    values: bool = False
