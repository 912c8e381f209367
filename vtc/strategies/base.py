"""The contract of a method: a frozen dataclass of knobs that names its signals and computes a Selection."""

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

    A subclass never sees a model: it declares the signals that it needs of an encoder, and receives tensors.

    site: where the stage acts. grid: it needs the tokens as one raster. needs_cls: it ranks by a [CLS] query (see
    ClsAttention for encoders without one). adaptive: the number kept depends on the picture and is at most
    `context.count`, unless it says otherwise. gives_score: its selections have scores, for stages inside the language
    model. fixed_count: values of knobs with which exactly `context.count` are kept, where other values may
    keep fewer. tile_scope: the scope (see `Budget`) on images of several tiles, unless the strategy states one.
    strategy: of a method from outside of vtc, the strategy that its name stands for, as a mapping or a YAML file;
    without `stages` in it, this method alone.
    """

    site: ClassVar[str] = "projector"
    grid: ClassVar[bool] = False
    needs_cls: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    gives_score: ClassVar[bool] = False
    fixed_count: ClassVar[Mapping[str, object]] = {}
    tile_scope: ClassVar[str] = "per_image"
    strategy: ClassVar[Mapping[str, object] | Traversable | Path | None] = None

    @property
    def needs_text(self) -> bool:
        """Whether it reads the question, so that a processor must be given to `vtc.patch`."""
        return False

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """The signals to collect, layers resolved to indices; raises ConfigError beyond the encoder's depth."""
        return ()

    @abstractmethod
    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Chooses `context.count` of `context.tokens` tokens in each of the B units."""


@dataclass(frozen=True)
class Cut:
    """One step inside the vision encoder. layer: 0-based encoder layer. within: between its attention and its MLP; else
    behind the layer."""

    layer: int
    within: bool = False


@dataclass(frozen=True)
class EncoderStage(ABC):
    """A method that drops or merges visual tokens inside the vision encoder, in one or several steps.

    Units are the encoder's sequences (crops, packed images) with the [CLS] left out, which always stays. The tokens of
    a unit are what the projector makes a visual token of: where it joins patches (Qwen), whole cells of them, unless
    `singly`. `context.grid` is None once tokens are gone. The other attributes are those of a Stage.
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
        """Whether a token that holds several attracts attention like as many: + log(size) on its key's logits."""
        return False

    def singly(self, encoder: Encoder) -> bool:
        """Whether patches are chosen one by one where the projector joins several: it then joins neighbours among the
        survivors, which take the first places of the image."""
        return False

    @abstractmethod
    def steps(self, encoder: Encoder) -> tuple[Cut, ...]:
        """The steps in the order in which they run; raises ConfigError beyond the layer that the projector reads."""

    @abstractmethod
    def counts(self, tokens: int, target: int, encoder: Encoder) -> tuple[int, ...]:
        """What each step leaves of a unit of `tokens` tokens that is to leave the encoder with `target` of them:
        exactly, or, if `adaptive`, at least. Raises ConfigError for a target that the steps cannot reach."""

    @abstractmethod
    def needs(self, encoder: Encoder, step: int) -> tuple[Signal, ...]:
        """The signals that step number `step` (0-based) reads: of layers since the step before it."""

    @abstractmethod
    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Chooses `context.count` of the `context.tokens` that are left in each of the B units (if `adaptive`, that
        many or more; the last step exactly that many)."""


@dataclass(frozen=True)
class Step:
    """One drop inside the language model. layer: 0-based decoder layer, the first to see fewer tokens. share: the
    fraction of the visual tokens that entered the language model which this layer sees, in (0, 1]."""

    layer: int
    share: float


@dataclass(frozen=True)
class DecoderStage(ABC):
    """A method that drops visual tokens between decoder layers, in one or several steps; units are whole images.

    The shares of its steps are the published schedule. A budget (`keep`) raises all of them to one power, so that the
    mean over layers meets it; see `vtc.config.allocation`. own_counts: how many stay in a step follows the prompt and
    may be more than `context.count`; their mean over layers is the budget's. strategy: as of a Stage.
    """

    site: ClassVar[str] = "decoder"
    grid: ClassVar[bool] = False
    needs_cls: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    own_counts: ClassVar[bool] = False
    strategy: ClassVar[Mapping[str, object] | Traversable | Path | None] = None

    @abstractmethod
    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """The steps, by strictly rising layer; raises ConfigError beyond the decoder's depth."""

    @abstractmethod
    def needs(self, decoder: Decoder, step: int) -> tuple[Signal, ...]:
        """The signals that step number `step` (0-based) reads, layers resolved to indices."""

    def count(self, entered: int, share: float) -> int:
        """Tokens kept of an image that entered the language model with `entered` tokens; at least 1."""
        return max(1, int(entered * share))

    @abstractmethod
    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Chooses `context.count` of the `context.tokens` that are left in each of the B images."""


@dataclass(frozen=True)
class AttentionStage(ABC):
    """A method that drops nothing and changes what rows of the language model's attention give to each token.

    The rows are those of text after a prompt's first image, at prefill and while decoding; every other row, and every
    head of these that is left as it was, is the model's own. strategy: as of a Stage.
    """

    site: ClassVar[str] = "attention"
    grid: ClassVar[bool] = False
    needs_cls: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    strategy: ClassVar[Mapping[str, object] | Traversable | Path | None] = None

    @abstractmethod
    def layers(self, decoder: Decoder, width: int) -> tuple[int, ...]:
        """The 0-based layers in which it acts, ascending. width: of a hidden state. Raises ConfigError beyond both."""

    @abstractmethod
    def mark(self, hidden: Tensor, first: Tensor, decoder: Decoder) -> Tensor:
        """The tokens [B, S] bool to remember of one of these layers, from what enters it at prefill: hidden [B, S, D].
        first [B]: the column of each prompt's first token."""

    @abstractmethod
    def change(self, attention: Tensor, marked: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Attention [B, H, Q, N] as it is to be, and which rows [B, H, Q] bool are other than they were. marked,
        visual [B, N] bool: tokens that `mark` chose, and those of images."""


def steps_at(
    layers: tuple[int | float, ...], shares: tuple[float, ...], decoder: Decoder, knobs: tuple = ("layers", "ratios")
) -> tuple[Step, ...]:
    """Steps from two lists of equal length. Where layers fall together on a shallow model, the last (smallest) share
    counts. Layers must not fall, shares must lie in (0, 1] and not rise; raises ConfigError, which calls both by their
    names in `knobs`."""
    where, ratios = knobs
    if not layers or len(layers) != len(shares):
        raise ConfigError(f"{len(layers)} {where} and {len(shares)} {ratios}; possible: as many of one as of the other")
    resolved = [decoder.layer(value, where) for value in layers]
    if resolved != sorted(resolved):
        raise ConfigError(f"{where}={list(layers)} do not rise; possible: layers in the order in which they run")
    if any(not 0 < share <= 1 for share in shares) or sorted(shares, reverse=True) != list(shares):
        raise ConfigError(f"{ratios}={list(shares)} must not rise; possible: shares in (0, 1], each at most the last")
    return tuple(Step(*pair) for pair in dict(zip(resolved, shares, strict=True)).items())
