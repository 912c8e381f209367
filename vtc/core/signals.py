"""The signals that a stage can request, the facts about encoder and decoder, and the Context, its input."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from vtc.core.errors import ConfigError, shown
from vtc.core.signals_inside import (
    Aim,
    Carried,
    ClsValueAttention,
    DecoderAttention,
    DecoderKeys,
    EncoderAttention,
    FinalHidden,
    Hidden,
    ImageAttention,
    Importance,
    KeyNorms,
    Sizes,
    TextInformation,
    TextPivots,
    TextToVisual,
    Transition,
    UnturnedAttention,
    ValueNorms,
)


@dataclass(frozen=True)
class AttentionColumns:
    """The attention that each visual token receives in encoder layer `layer` from all queries (including a [CLS]
    query), averaged over heads, and averaged ("mean") or summed ("sum") over queries. -> [B, N] float32."""

    layer: int
    reduce_queries: str = "mean"


@dataclass(frozen=True)
class ClsAttention:
    """Softmax attention of the [CLS] query to each visual token in encoder layer `layer`, head mean, not renormalised
    after the [CLS] key is dropped. On an encoder without [CLS] the query is the mean of all queries of the image
    (per head, after RoPE). joined: treats all heads concatenated as a single head. -> [B, N] float32."""

    layer: int
    joined: bool = False


@dataclass(frozen=True)
class ImportantAttention:
    """The attention that each visual token receives in encoder layer `layer` from important queries, averaged over them
    and over heads. A query is important if its token itself receives more than `t` times the mean attention; if none
    does, the one that receives most is. -> [B, N] float32."""

    layer: int
    t: float


@dataclass(frozen=True)
class PatchEntropy:
    """The entropy of the grey values of each visual token's pixels in the encoder's input, as a softmax over all tokens
    of its crop. released: how they are converted to 8 bits, see `vtc.kernels.entropy`. -> [B, N] float32."""

    released: bool = True


@dataclass(frozen=True)
class PatchAttention:
    """The attention that each visual token receives from the others in encoder layer `layer`, excluding its own
    and a [CLS] query's; averaged over heads, summed over queries. -> [B, N] float32."""

    layer: int


@dataclass(frozen=True)
class Features:
    """The projected visual features, as the language model would receive them. -> [B, N, D]."""


@dataclass(frozen=True)
class EncoderKeys:
    """The attention keys of encoder layer `layer` (including bias and any RoPE, unscaled), averaged over heads, or with
    all heads concatenated (joined), without [CLS]. -> [B, N, e]."""

    layer: int
    joined: bool = False


@dataclass(frozen=True)
class EncoderFeatures:
    """The projector's input for each visual token, without [CLS]; if it merges several patches into a token (Qwen),
    their mean. -> [B, N, D]."""


@dataclass(frozen=True)
class TextEmbeddings:
    """The language model's input embeddings of the words of the prompt's question. -> [B, m, D].

    keywords: remove stop words and the benchmarks' answer instructions, see `vtc.core.text`; needs a tokenizer.
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
class ClipPatches:
    """The projector's input for each visual token, mapped by CLIP's visual projection alone and not normalised. Needs a
    CLIP model. -> [B, N, p]."""


@dataclass(frozen=True)
class ClipWords:
    """Each token of the question in CLIP's common space, including the start and end tokens; a question of more than 77
    tokens is truncated. Needs a CLIP model. -> [B, m, p]."""


@dataclass(frozen=True)
class Unprojected:
    """The projector's input for each visual token, for merging before the projector: see `Merge.unprojected`. It is
    recorded for a stage that requests it, but is not in the Context."""


Signal = (
    AttentionColumns
    | ClsAttention
    | PatchAttention
    | ImportantAttention
    | PatchEntropy
    | Features
    | EncoderKeys
    | ClsValueAttention
    | ValueNorms
    | Sizes
    | Carried
    | EncoderFeatures
    | TextEmbeddings
    | TextRelevance
    | ClipPatches
    | ClipWords
    | Unprojected
    | Transition
    | DecoderAttention
    | ImageAttention
    | KeyNorms
    | UnturnedAttention
    | TextInformation
    | EncoderAttention
    | Aim
    | Hidden
    | Importance
    | FinalHidden
    | TextPivots
    | TextToVisual
    | DecoderKeys
)


@dataclass(frozen=True)
class Encoder:
    """The facts about the vision encoder that a strategy can use before the encoder runs.

    depth: attention layers. output, last: the layer whose output the projector receives. cell: adjacent patches of the
    encoder's sequence that the projector merges into a visual token. has_cls: a [CLS] token exists. global_layers:
    layers whose attention spans the whole image (all of them, except in encoders with windowed layers). tokens: visual
    tokens of an image if the family fixes it, else None. tiled: an image may be several crops. thumbnail: tokens of the
    first of these, which shows the whole image.
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
    """The facts about the language model that a strategy can use before it runs. depth: its layers. softmax: those with
    softmax attention, ascending, if others have linear attention (see `vtc.config.hybrid`); None: all of them."""

    family: str
    depth: int
    softmax: tuple[int, ...] | None = None

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


class Extent(NamedTuple):
    """The place of one of several tiles: rows x columns tokens in a row-major run, the first of them at (top, left) of
    the grid that all tiles but the first form together, or at (None, None) if their arrangement is unknown. The first
    tile shows the whole image by itself, at (0, 0)."""

    rows: int
    columns: int
    top: int | None
    left: int | None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Context:
    """The input of a stage: B units (images or tiles) with the same N tokens, the same grid and the same budget.

    count: tokens to keep in each. grid: (rows, columns) when the tokens are a full raster, else None. step: the current
    step (0-based) of a stage inside a model. ordinals [B]: the index of each unit within its own prompt (for seeding
    that does not depend on the batch). signals: the tensors that the stage requested, by signal. tiles: if several
    tiles compete, the place of each, in the order of their tokens. images [B]: inside the encoder, the index of each
    unit's image. frames: of a unit that is a whole clip, whose tokens are those of its equal frames in order; else 0.
    asked: the fraction that the budget asks for, from which `count` is rounded; None if it asks for a number of tokens.
    """

    tokens: int
    count: int
    grid: tuple[int, int] | None
    ordinals: tuple[int, ...]
    device: object
    signals: Mapping[Signal, Tensor] = field(default_factory=dict)
    step: int = 0
    tiles: tuple[Extent, ...] = ()
    images: tuple[int, ...] = ()
    frames: int = 0
    asked: float | None = None

    def __getitem__(self, signal: Signal) -> Tensor:
        return self.signals[signal]

    @property
    def share(self) -> float:
        """The fraction of the tokens to keep, before rounding."""
        return self.count / self.tokens if self.asked is None else self.asked

    @property
    def columns(self) -> int:
        """Columns of the grid; raises ConfigError when the tokens are not a raster (several tiles competing)."""
        if self.grid is None:
            raise ConfigError(
                "this method needs a token grid, and several tiles compete here; possible: scope=per_tile"
            )
        return self.grid[1]
