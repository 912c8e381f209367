"""The signals of stages inside the encoder and inside the language model; `vtc.core.signals` exports them all."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Transition:
    """Token transition variation of decoder layer `layer` (0-based): how much its attention and its MLP change the
    norm and the direction of a token, relative to all tokens of the prompt. See `vtc.kernels.transition`. -> [B, N]
    float32. Measured when the layer runs, and carried through every later drop."""

    layer: int


@dataclass(frozen=True)
class DecoderAttention:
    """Causal softmax attention that each visual token receives in decoder layer `layer`, averaged over heads and over
    the chosen queries, not renormalised. -> [B, N] float32.

    queries: "last" (the last prompt token), "after" (all text after the image; the last prompt token if there is
    none), "raters" (those of them whose input embeddings agree with the image more than their mean does; see
    `vtc.kernels.raters`), "image" (the image's own remaining tokens). ahead: computed before the layer runs, with its
    own norm, projections and rotary positions, on the tokens that are about to enter it; otherwise observed while it
    runs.
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
    """L1 norm of each visual token's keys (after RoPE, all heads) in decoder layer `layer`, observed while it runs.
    -> [B, N] float32."""

    layer: int


@dataclass(frozen=True)
class TextInformation:
    """The mutual information, in bits and summed over heads, between the text after the image (the last prompt token,
    if there is none) and the image's remaining tokens in the attention of decoder layer `layer` (see
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
    """The number of the image's tokens that entered the language model, and the total that its layers should see
    according to the strategy's budget, -1 if the published schedule applies. -> [B, 2] float64."""


@dataclass(frozen=True)
class Hidden:
    """The hidden states of the visual tokens that are about to enter a layer of the language model, or those at a
    step inside the encoder (a cell: its patches' mean). -> [B, N, D]."""


@dataclass(frozen=True)
class Importance:
    """The scores that the stage at the projector gave the visual tokens, see `Selection.score`, carried through every
    later drop. -> [B, N]."""


@dataclass(frozen=True)
class FinalHidden:
    """The hidden states of the visual tokens that are about to enter a layer, after the model's final norm.
    -> [B, N, D]."""


@dataclass(frozen=True)
class TextPivots:
    """`FinalHidden` of the `count` text tokens after the image with the longest keys (`KeyNorms`) in decoder layer
    `layer`, longest first; fewer if there is less text. -> [B, p, D]."""

    layer: int
    count: int


@dataclass(frozen=True)
class TextToVisual:
    """The total attention from the text after the image to all remaining visual tokens of the prompt in decoder layer
    `layer`, averaged over heads and queries; observed while the layer runs. -> [B]."""

    layer: int


@dataclass(frozen=True)
class DecoderKeys:
    """The keys (after RoPE) of decoder layer `layer`, averaged over key heads, computed before the layer runs.
    -> [B, N, e]."""

    layer: int


@dataclass(frozen=True)
class ClsValueAttention:
    """Softmax over the unscaled products of all values of encoder layer `layer` with the value of [CLS], head mean, not
    renormalised after [CLS] itself is dropped. On an encoder without [CLS], the mean of all values of the image is used
    instead. -> [B, N] float32."""

    layer: int


@dataclass(frozen=True)
class ValueNorms:
    """L1 norm of each visual token's head-mean value in layer `layer` of the encoder, or of the decoder for a stage in
    it; observed while the layer runs. -> [B, N] float32."""

    layer: int


@dataclass(frozen=True)
class Sizes:
    """Inside the encoder: the number of original tokens in each token after the merges so far. -> [B, N] float32."""


@dataclass(frozen=True)
class Carried:
    """Inside the encoder: the values of `Selection.carry` from this stage's last step, for the remaining tokens; zero
    at the first step. -> [B, N] float32."""


@dataclass(frozen=True)
class ImageAttention:
    """Softmax, over the image's own remaining tokens, of their products with the last prompt token in decoder layer
    `layer`, divided by sqrt(head dim): its query with their keys (after RoPE), or (values) its value with their values;
    head mean. Observed while the layer runs. -> [B, N] float32."""

    layer: int
    values: bool = False
