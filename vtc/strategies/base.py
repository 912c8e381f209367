"""The interface of a method: a frozen dataclass of knobs that declares its signals and computes a Selection."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, Encoder, Signal


@dataclass(frozen=True)
class Stage(ABC):
    """One selection method with its knobs as typed dataclass fields.

    A subclass never sees a model: it declares the signals that it needs from an encoder, and receives tensors.

    site: where the stage acts. grid: it needs the tokens as one raster. needs_cls: it ranks by a [CLS] query (see
    ClsAttention for encoders without one). adaptive: the number kept depends on the image and is at most
    `context.count`, unless stated otherwise. gives_score: its selections have scores, for stages inside the language
    model. fixed_count: knob values with which exactly `context.count` tokens are kept, where other values may keep
    fewer. tile_scope: the scope (see `Budget`) on images of several tiles, unless the strategy sets one. clips: it
    compares the frames of a clip, and keeps images whole (see `least`). strategy: for a method from outside of vtc, the
    strategy that its name stands for, as a mapping or a YAML file; without `stages` in it, this method alone.
    """

    site: ClassVar[str] = "projector"
    grid: ClassVar[bool] = False
    clips: ClassVar[bool] = False
    needs_cls: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    gives_score: ClassVar[bool] = False
    fixed_count: ClassVar[Mapping[str, object]] = {}
    tile_scope: ClassVar[str] = "per_image"
    strategy: ClassVar[Mapping[str, object] | Traversable | Path | None] = None

    @property
    def needs_text(self) -> bool:
        """Whether it reads the question, so that `vtc.patch` needs a processor."""
        return False

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """The signals to collect, with layers as indices; raises ConfigError for a layer beyond the encoder's depth."""
        return ()

    def least(self, frames: int, each: int) -> int:
        """The fewest tokens that it keeps of a clip of `frames` frames of `each` tokens, whatever the budget says; an
        image is one frame. With `clips`, one frame is kept whole."""
        return 1

    @abstractmethod
    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Selects `context.count` of `context.tokens` tokens in each of the B units."""


@dataclass(frozen=True)
class Cut:
    """One step inside the vision encoder. layer: 0-based encoder layer. within: between its attention and its MLP; else
    after the layer."""

    layer: int
    within: bool = False


@dataclass(frozen=True)
class EncoderStage(ABC):
    """A method that drops or merges visual tokens inside the vision encoder, in one or several steps.

    Units are the encoder's sequences (crops, packed images) without [CLS], which is always kept. Each token of a unit
    becomes one visual token: where the projector merges patches (Qwen), it is a whole cell of them, unless `singly`.
    `context.grid` is None once tokens were dropped. The other attributes are those of a Stage.
    """

    site: ClassVar[str] = "encoder"
    grid: ClassVar[bool] = False
    needs_cls: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    fixed_count: ClassVar[Mapping[str, object]] = {}
    tile_scope: ClassVar[str] = "per_tile"
    strategy: ClassVar[Mapping[str, object] | Traversable | Path | None] = None

    @property
    def proportional(self) -> bool:
        """Whether attention is proportional: a merged token's key gets + log(size) on its logits."""
        return False

    def singly(self, encoder: Encoder) -> bool:
        """Whether patches are selected one by one although the projector merges several: it then merges neighbours
        among the kept ones, which take the first places of the image."""
        return False

    @abstractmethod
    def steps(self, encoder: Encoder) -> tuple[Cut, ...]:
        """The steps in execution order; raises ConfigError for one beyond the layer that the projector reads."""

    @abstractmethod
    def counts(self, tokens: int, target: int, encoder: Encoder) -> tuple[int, ...]:
        """The tokens left after each step of a unit that enters with `tokens` tokens and leaves with `target`: exact,
        or, if `adaptive`, minimum numbers. Raises ConfigError for a target that the steps cannot reach."""

    @abstractmethod
    def needs(self, encoder: Encoder, step: int) -> tuple[Signal, ...]:
        """The signals that step number `step` (0-based) needs, from layers since the previous step."""

    @abstractmethod
    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Selects `context.count` of the `context.tokens` remaining tokens in each of the B units (if `adaptive`, that
        many or more; in the last step exactly that many)."""


@dataclass(frozen=True)
class Step:
    """One drop inside the language model. layer: 0-based decoder layer, the first to see fewer tokens. share: the
    fraction, in (0, 1], of the visual tokens entering the language model that this layer sees."""

    layer: int
    share: float


@dataclass(frozen=True)
class DecoderStage(ABC):
    """A method that drops visual tokens between decoder layers, in one or several steps; units are whole images.

    The shares of its steps are the published schedule. A budget (`keep`) raises all of them to the same power, so that
    the mean over layers meets it; see `vtc.config.allocation`. own_counts: the number kept in a step depends on the
    prompt and may exceed `context.count`, while the mean over layers meets the budget. every_layer: it reads the
    attention of every layer, so that all of them must have softmax attention; other methods read the nearest that has
    (see `vtc.config.hybrid`). strategy: as in a Stage.
    """

    site: ClassVar[str] = "decoder"
    grid: ClassVar[bool] = False
    needs_cls: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    own_counts: ClassVar[bool] = False
    every_layer: ClassVar[bool] = False
    strategy: ClassVar[Mapping[str, object] | Traversable | Path | None] = None

    @abstractmethod
    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """The steps, by strictly ascending layer; raises ConfigError for one beyond the decoder's depth."""

    @abstractmethod
    def needs(self, decoder: Decoder, step: int) -> tuple[Signal, ...]:
        """The signals that step number `step` (0-based) needs, with layers as indices."""

    def count(self, entered: int, share: float) -> int:
        """Tokens kept of an image that entered the language model with `entered` tokens; at least 1."""
        return max(1, int(entered * share))

    @abstractmethod
    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Selects `context.count` of the `context.tokens` remaining tokens in each of the B images."""


@dataclass(frozen=True)
class AttentionStage(ABC):
    """A method that drops nothing and changes rows of the language model's attention.

    The rows are those of text after a prompt's first image, at prefill and while decoding; all other rows, and heads of
    these rows that are not changed, stay the model's own. strategy: as in a Stage.
    """

    site: ClassVar[str] = "attention"
    grid: ClassVar[bool] = False
    needs_cls: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    strategy: ClassVar[Mapping[str, object] | Traversable | Path | None] = None

    @abstractmethod
    def layers(self, decoder: Decoder, width: int) -> tuple[int, ...]:
        """The 0-based layers in which it acts, ascending. width: hidden size. Raises ConfigError beyond either."""

    @abstractmethod
    def mark(self, hidden: Tensor, first: Tensor, decoder: Decoder) -> Tensor:
        """The tokens [B, S] bool to mark in one of these layers, given its input at prefill: hidden [B, S, D]. first
        [B]: the column of each prompt's first token."""

    @abstractmethod
    def change(self, attention: Tensor, marked: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """The new attention [B, H, Q, N], and which rows [B, H, Q] bool were changed. marked, visual [B, N] bool: the
        tokens that `mark` returned, and those of images."""


def steps_at(
    layers: tuple[int | float, ...], shares: tuple[float, ...], decoder: Decoder, knobs: tuple = ("layers", "ratios")
) -> tuple[Step, ...]:
    """Steps from two lists of equal length. Where layers coincide on a shallow model, the last (smallest) share
    applies. Layers must not decrease; shares must lie in (0, 1] and not increase. Raises ConfigError, which calls both
    by their names in `knobs`."""
    where, ratios = knobs
    if not layers or len(layers) != len(shares):
        raise ConfigError(f"{len(layers)} {where} and {len(shares)} {ratios}; possible: as many of one as of the other")
    resolved = [decoder.layer(value, where) for value in layers]
    if resolved != sorted(resolved):
        raise ConfigError(f"{where}={list(layers)} do not rise; possible: layers in the order in which they run")
    if any(not 0 < share <= 1 for share in shares) or sorted(shares, reverse=True) != list(shares):
        raise ConfigError(f"{ratios}={list(shares)} must not rise; possible: shares in (0, 1], each at most the last")
    return tuple(Step(*pair) for pair in dict(zip(resolved, shares, strict=True)).items())
