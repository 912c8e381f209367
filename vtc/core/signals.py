"""Signals that a stage can request, what it knows of encoder and decoder, and the Context that it computes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vtc.core.errors import ConfigError, shown


@dataclass(frozen=True)
class AttentionColumns:
    """The attention that each visual token receives in encoder layer `layer`, from all queries (a [CLS] query
    included), averaged over heads; over queries it is averaged ("mean") or summed ("sum"). -> [B, N] float32."""

    layer: int
    reduce_queries: str = "mean"


@dataclass(frozen=True)
class ClsAttention:
    """Softmax attention of the [CLS] query to each visual token in encoder layer `layer`, head mean, not renormalised
    after the [CLS] key is dropped. On an encoder without [CLS] the query is the mean of all queries of the image
    (per head, after RoPE). -> [B, N] float32."""

    layer: int


@dataclass(frozen=True)
class Features:
    """The projected visual features, as the language model would receive them. -> [B, N, D]."""


@dataclass(frozen=True)
class EncoderKeys:
    """The attention keys of encoder layer `layer` (bias and any RoPE included, unscaled), averaged over heads, [CLS]
    left out. -> [B, N, e]."""

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
class Hidden:
    """Inside the encoder: the hidden states at the step, [CLS] left out (a cell: its patches' mean). -> [B, N, D]."""


@dataclass(frozen=True)
class Sizes:
    """Inside the encoder: how many original tokens each token holds after the merges so far. -> [B, N] float32."""


@dataclass(frozen=True)
class Carried:
    """Inside the encoder: what this stage gave as `Selection.carry` at its last step, for the tokens that are left;
    zero at the first. -> [B, N] float32."""


@dataclass(frozen=True)
class EncoderFeatures:
    """What the projector receives for each visual token, [CLS] left out; where it joins several patches into a token
    (Qwen), their mean. -> [B, N, D]."""


@dataclass(frozen=True)
class TextEmbeddings:
    """Rows of the language model's input embeddings for the words of the prompt's question. -> [B, m, D].

    keywords: stop words and the benchmarks' answer instructions are left out, see `vtc.core.text`; needs a tokenizer.
    prefix: text put before the question. With `keywords` False and no prefix no tokenizer is needed: the ids of the
    prompt's text after the image are used.
    """

    keywords: bool = False
    prefix: str = ""


@dataclass(frozen=True)
class TextRelevance:
    """How similar each visual token is to the question in CLIP's common space: the cosine of the token (after post-norm
    and visual projection) and the text tower's embedding, averaged over text segments. Needs a CLIP model.
    -> [B, N]."""


@dataclass(frozen=True)
class Unprojected:
    """What the projector receives for each visual token, for merging before the projector: see `Merge.unprojected`. A
    stage that requests it has it recorded; it is not in the Context."""


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
    none), "image" (the image's own tokens that are left). ahead: computed before the layer runs, from its own norm,
    projections and rotary positions, on the tokens that are about to enter it; else observed while it runs.
    """

    layer: int
    queries: str
    ahead: bool = True


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


Signal = (
    AttentionColumns
    | ClsAttention
    | Features
    | EncoderKeys
    | ClsValueAttention
    | ValueNorms
    | Hidden
    | Sizes
    | Carried
    | EncoderFeatures
    | TextEmbeddings
    | TextRelevance
    | Unprojected
    | Transition
    | DecoderAttention
    | ImageAttention
    | KeyNorms
    | FinalHidden
    | TextPivots
    | TextToVisual
    | DecoderKeys
)


@dataclass(frozen=True)
class Encoder:
    """The facts about the vision encoder that a strategy can use before the encoder runs.

    depth: attention layers. output, last: the layer whose output the projector receives. cell: patches, next to each
    other in the encoder's sequence, that the projector joins into a visual token. has_cls: a [CLS] token exists.
    global_layers: layers whose attention spans the whole image (all of them, but for encoders with windowed layers).
    tokens: visual tokens of an image where the family fixes it, else None. tiled: an image may be several crops.
    thumbnail: tokens of the first of these, which shows the whole picture.
    """

    family: str
    depth: int
    has_cls: bool
    global_layers: tuple[int, ...]
    tokens: int | None = None
    tiled: bool = False
    thumbnail: int | None = None
    output: int | None = None
    cell: int = 1

    @property
    def last(self) -> int:
        """The layer whose output the projector receives."""
        return self.depth - 1 if self.output is None else self.output

    def layer(self, value: int | float, knob: str) -> int:
        """A layer knob as a 0-based index: int = index (negative counts from the end), float in (0, 1] = relative
        depth (0.375 of 24 layers is the 9th, index 8). Raises ConfigError beyond the depth."""
        if isinstance(value, float):
            if not 0.0 < value <= 1.0:
                raise ConfigError(f"{knob}={shown(value)} is no relative depth; possible: a float in (0, 1]")
            return max(0, round(self.depth * value) - 1)
        if not -self.depth <= value < self.depth:
            raise ConfigError(
                f"{knob}={shown(value)} is beyond the {self.depth} layers of this {self.family} encoder; "
                f"possible: {-self.depth} to {self.depth - 1}"
            )
        return value % self.depth


@dataclass(frozen=True)
class Decoder:
    """The facts about the language model that a strategy can use before it runs. depth: its layers."""

    family: str
    depth: int

    def layer(self, value: int | float, knob: str) -> int:
        """A layer knob as the number of layers that run before the drop (the 0-based index of the next layer): int =
        itself, float in (0, 1) = relative depth, rounded. At least 1, since one layer has to see the tokens. Raises
        ConfigError beyond the depth."""
        if self.depth < 2:
            raise ConfigError(f"this {self.family} language model has {self.depth} layer; possible: 2 or more")
        if isinstance(value, float):
            if not 0.0 < value < 1.0:
                raise ConfigError(f"{knob}={shown(value)} is no relative depth; possible: a float in (0, 1)")
            return min(max(1, round(self.depth * value)), self.depth - 1)
        if not 1 <= value < self.depth:
            raise ConfigError(
                f"{knob}={shown(value)} is beyond the {self.depth} layers of this {self.family} language model; "
                f"possible: 1 to {self.depth - 1}"
            )
        return value


@dataclass(frozen=True)
class Context:
    """The input of a stage: B units (images or tiles) with the same N tokens, the same grid and the same budget.

    count: tokens to keep in each. grid: (rows, columns) when the tokens are a full raster, else None. step: which of
    its steps a stage inside a model is at (0-based). ordinals [B]: the index of each unit within its own prompt (for
    seeding that does not depend on the batch). signals: the tensors that the stage requested, by signal. images [B]:
    inside the encoder, a number for the image of each unit.
    """

    tokens: int
    count: int
    grid: tuple[int, int] | None
    ordinals: tuple[int, ...]
    device: object
    signals: Mapping[Signal, Tensor] = field(default_factory=dict)
    step: int = 0
    images: tuple[int, ...] = ()

    def __getitem__(self, signal: Signal) -> Tensor:
        return self.signals[signal]

    @property
    def columns(self) -> int:
        """Columns of the grid; raises ConfigError when the tokens are no raster (several tiles competing)."""
        if self.grid is None:
            raise ConfigError(
                "this method needs a token grid, and several tiles compete here; possible: scope=per_tile"
            )
        return self.grid[1]
