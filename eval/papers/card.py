"""A paper card: the published numbers of a paper, to compare runs with. The shipped ones are `configs/papers/*.yaml`.

    title: ...
    url: https://arxiv.org/abs/...
    year: 2025
    source: where the numbers were read, and which of them are doubtful
    models:
      - checkpoint: llava-hf/llava-1.5-7b-hf   # what vtc loads
        used: liuhaotian/llava-v1.5-7b         # what the paper used, if different
        family: llava                          # null: vtc cannot prune it
        dialect: llava                         # null: the paper does not say
        dialects: {gqa: lmms}                  # tasks with another one
        tokens: 576                            # visual tokens of an image without pruning
        settings: {pad_square: true, system: TEXT, model_args: {dtype: float16}}
        splits: {vqav2: test-dev}              # if the paper's split is not the task's default
        note: TEXT
        average_is: TEXT                       # if it is not the mean of the scores in % of the full model's
        average_over: [gqa, mme]               # if it is that mean, but only over these
        rows:
          - {strategy: none, label: Vanilla, scores: {gqa: 61.9, mme: {figure: total, value: 1862}}, average: 100}
          - {strategy: hiprune, label: HiPrune, keep: 192, scores: {gqa: 59.2, mme: null}, average: 99.3}
    measured: what has been measured with vtc so far
    differs: [a reason why our number can differ, ...]

The first row of a model is the full one. A row's `strategy` is null if vtc does not have the method. `keep` is the
paper's budget (tokens, or a fraction; null if it gives none), and `set`, if given, is what vtc needs instead:
{keep: 216} another budget, where the paper counts the tokens left after layer 2 and vtc their mean over the layers;
{R: 0.75} settings of the strategy; {} its published schedule. `others` are scores on benchmarks that vtc does not have,
`remark` is a note on the row. Numbers are as printed: points for MME and OCRBench, else per cent; a mapping names the
figure if it is not the task's primary one, and the scale if it is not the task's own. null: the paper prints none.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FULL = "none"  # the strategy of the full model's row


@dataclass(frozen=True)
class Score:
    """A published number. figure: None for the task's primary one; scale: None for the task's own."""

    value: float
    figure: str | None = None
    scale: float | None = None


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table; see the module. set: None if vtc takes the paper's `keep` as it is."""

    strategy: str | None
    label: str
    scores: Mapping[str, Score | None]
    keep: int | float | None = None
    set: Mapping[str, object] | None = None
    others: Mapping[str, float | None] | None = None
    average: float | None = None
    remark: str = ""

    @property
    def asked(self) -> int | float | None:
        """The `--keep` of vtc for this row; None for the full model, and if `settings` give the budget."""
        return self.keep if self.set is None else self.set.get("keep")

    @property
    def settings(self) -> dict | None:
        """The settings that replace `--keep`; None if there is a `--keep`, or the paper gives no budget."""
        return None if self.set is None or "keep" in self.set else dict(self.set)


@dataclass(frozen=True)
class Setting:
    """How the model was prompted and loaded: model_args are arguments of from_pretrained and of the processor."""

    pad_square: bool = False
    system: str | None = None
    model_args: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Model:
    """One checkpoint with its rows, the full model first; see the module."""

    checkpoint: str
    family: str | None
    dialect: str | None
    rows: tuple[PublishedRow, ...]
    used: str | None = None
    dialects: Mapping[str, str] | None = None
    tokens: int | None = None
    settings: Setting = Setting()
    splits: Mapping[str, str] | None = None
    note: str = ""
    average_is: str | None = None
    average_over: tuple[str, ...] = ()

    def dialect_of(self, task: str) -> str | None:
        """The dialect of one task, None if the paper does not say."""
        return (self.dialects or {}).get(task, self.dialect)


@dataclass(frozen=True)
class PaperCard:
    """The published numbers of one paper. name: the stem of the card's file."""

    name: str
    title: str
    url: str
    year: int
    source: str
    models: tuple[Model, ...]
    measured: str
    differs: tuple[str, ...]
