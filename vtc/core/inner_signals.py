"""Signals that are observed inside a model while it runs; import them from `vtc.core.signals`, which has them all."""

from dataclasses import dataclass


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


@dataclass(frozen=True)
class KeyNorms:
    """L1 length of the keys (after RoPE, all heads) that decoder layer `layer` computed for each visual token, observed
    while it runs. -> [B, N] float32."""

    layer: int


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
