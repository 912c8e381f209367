"""Strategies, checked and resolved for one model family, and back to plain data."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.config.allocation import Allocation
from vtc.config.knobs import as_lists
from vtc.core.signals import Decoder
from vtc.strategies.base import AttentionStage, DecoderStage, EncoderStage, Stage

POSITIONS = ("keep", "compact")

Method = Stage | DecoderStage | EncoderStage | AttentionStage
Method |= type[Stage] | type[DecoderStage] | type[EncoderStage] | type[AttentionStage]
Strategy = str | Path | Mapping[str, Any] | Method | Sequence[Any]
"""What `vtc.patch` takes: a name, a file, a mapping, a method, or several of these."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of a strategy, as it is asked for.

    method: its name, or MODULE:CLASS. keep: of this stage alone; None where `StrategyConfig.keep` is for the whole, and
    for a decoder method's published schedule. scope, rounding: see `vtc.core.budget.Budget`. positions: "keep"
    (survivors retain the rotary positions that they have) or "compact" (renumbered without gaps).
    """

    method: str
    stage: Stage | DecoderStage | EncoderStage | AttentionStage
    keep: float | int | None
    scope: str
    rounding: str
    positions: str

    def options(self) -> dict:
        """Scope, rounding and positions, as far as they mean something for the stage."""
        positions = {"positions": self.positions}
        if self.stage.site in ("decoder", "attention"):
            return positions
        scope = {} if self.stage.site == "encoder" else {"scope": self.scope}
        return {**scope, "rounding": self.rounding, **positions}


@dataclass(frozen=True)
class StrategyConfig:
    """A strategy resolved for one model family: nothing in it is left to defaults.

    keep: the budget of the whole, a mean over the language model's layers (see `vtc.config.allocation`); None when
    every stage has its own. stages: at most one inside the encoder, at most one at the projector, then those inside the
    language model, then at most one that changes its attention.
    """

    name: str
    description: str
    keep: float | int | None
    stages: tuple[StageConfig, ...]

    @property
    def keeps_all(self) -> bool:
        """True for keep=1.0: the model is then left entirely alone."""
        return isinstance(self.keep, float) and self.keep == 1.0

    @property
    def drops(self) -> bool:
        """Whether any token can be dropped: not with keep=1.0, nor if attention is all that changes."""
        return not self.keeps_all and any(s.stage.site != "attention" for s in self.stages)

    @property
    def encoder(self) -> StageConfig | None:
        """The stage inside the encoder, if there is one."""
        return next((s for s in self.stages if s.stage.site == "encoder"), None)

    @property
    def projector(self) -> StageConfig | None:
        """The stage between encoder and language model, if there is one."""
        return next((s for s in self.stages if s.stage.site == "projector"), None)

    @property
    def decoder(self) -> tuple[StageConfig, ...]:
        """The stages that drop inside the language model."""
        return tuple(s for s in self.stages if s.stage.site == "decoder")

    @property
    def attention(self) -> StageConfig | None:
        """The stage that changes the language model's attention, if there is one."""
        return next((s for s in self.stages if s.stage.site == "attention"), None)

    def allocate(self, decoder: Decoder | None = None, tokens: int | None = None) -> Allocation:
        """What each stage keeps on a language model; see `vtc.config.allocation`, whose errors are raised."""
        return Allocation(self, decoder, tokens)

    def dump(self) -> dict:
        """The resolved strategy as plain data; `vtc.patch` takes it back as YAML and does the same again.

        What is equal for all stages stands at the top.
        """
        rows = [s.options() for s in self.stages]
        common = {key: rows[0][key] for key in rows[0] if all(row.get(key) == rows[0][key] for row in rows)}
        stages = []
        for s, row in zip(self.stages, rows, strict=True):
            options = {} if s.keep is None else {"keep": s.keep}
            options |= {key: value for key, value in row.items() if key not in common}
            knobs = {key: as_lists(value) for key, value in dataclasses.asdict(s.stage).items()}
            stages.append({"method": s.method, **options, **knobs})
        overall = {} if self.keep is None else {"keep": self.keep}
        return {"description": self.description, **overall, **common, "stages": stages}
