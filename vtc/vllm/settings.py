"""The settings of a served model: written into the overrides of its config, read back in every process."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PretrainedConfig

from vtc.config.knobs import known_keys
from vtc.config.strategy import StageConfig, StrategyConfig
from vtc.core.budget import Budget, parse_keep
from vtc.core.errors import ConfigError
from vtc.core.layout import ImageLayout
from vtc.patching import check_fits
from vtc.vllm.capability import check, resolved, with_keep
from vtc.vllm.skeleton import architecture, family_name, loaded_layers, skeleton

ATTRIBUTE = "vtc"
KEYS = ("strategy", "name", "keep", "max_keep", "knobs")
REQUEST_KEEP = "vtc_keep"
"""What a request's `mm_processor_kwargs` may set, and the field that carries it with an image."""

SELECTION = 1
"""Counts changes of the plugin that change what is kept, for caches shared between servers."""


def overrides(
    config: PretrainedConfig,
    strategy: object = "hiprune",
    keep: float | int | str | None = None,
    max_keep: float | int | str | None = None,
    **knobs,
) -> dict:
    """What `LLM(hf_overrides=...)` and `--hf-overrides` take to serve a model pruned.

    config: the model's transformers config. strategy, keep, knobs: as for `vtc.patch`; resolved here, so that files
    are read once. max_keep: the most that a request may ask for (default: keep).
    Raises ConfigError or UnsupportedError in one line.
    """
    family = family_name(config)
    given = {} if keep is None else {"keep": parse_keep(keep)}
    chosen = resolved(strategy, family, **given, **knobs)
    largest_keep = chosen.keep if max_keep is None else parse_keep(max_keep)
    ServedStrategy(chosen, largest_keep, skeleton(config))
    row = {"name": chosen.name, "strategy": chosen.dump(), "max_keep": largest_keep}
    return {"architectures": [architecture(family)], ATTRIBUTE: row}


@dataclass(frozen=True)
class ServedStrategy:
    """A strategy on a model that is served.

    strategy: resolved, with the keep of requests that name none. max_keep: the most that one may name; the server's
    budgets are sized by it. family: the model's, see `skeleton`.
    Raises ConfigError or UnsupportedError where the strategy cannot be served on it.
    """

    strategy: StrategyConfig
    max_keep: float | int
    family: object

    def __post_init__(self):
        stage = check(self.strategy, self.family.encoder)
        for keep in (self.strategy.keep, self.max_keep):
            self._checked(keep)
        loaded = loaded_layers(self.family.model.config, self.family.encoder.depth)
        for signal in stage.stage.needs(self.family.encoder):
            if getattr(signal, "layer", 0) >= loaded:
                raise ConfigError(
                    f"layer {signal.layer} of the vision tower is not loaded: vLLM stops at layer {loaded - 1}, whose "
                    f"output the projector receives; possible: layers up to {loaded - 1}"
                )

    def _checked(self, keep: float | int) -> StageConfig:
        config = with_keep(self.strategy, keep)
        check_fits(config, self.family.encoder)
        return check(config, self.family.encoder)

    @classmethod
    def of(cls, config: PretrainedConfig) -> "ServedStrategy":
        """The settings in a served model's config; raises ConfigError where there are none or they are wrong."""
        raw = getattr(config, ATTRIBUTE, None)
        if not isinstance(raw, Mapping):
            raise ConfigError(
                f"the config has {ATTRIBUTE}={raw!r}; possible: hf_overrides with "
                f'{{"{ATTRIBUTE}": {{"strategy": "hiprune", "keep": 0.25}}}}'
            )
        known_keys(raw, KEYS, f"{ATTRIBUTE} in hf_overrides")
        knobs = dict(raw.get("knobs") or {})
        if raw.get("keep") is not None:
            knobs["keep"] = parse_keep(raw["keep"])
        chosen = resolved(raw.get("strategy", "hiprune"), family_name(config), **knobs)
        largest_keep = chosen.keep if raw.get("max_keep") is None else parse_keep(raw["max_keep"])
        return cls(replace(chosen, name=str(raw.get("name", chosen.name))), largest_keep, skeleton(config))

    @property
    def keep(self) -> float | int:
        """The keep of a request that names none."""
        return self.strategy.keep

    @property
    def stage(self) -> StageConfig:
        """The one stage of the strategy."""
        return self.strategy.projector

    @cached_property
    def own_positions(self) -> bool:
        """Whether kept tokens have positions that are known only once they are chosen (M-RoPE, positions="keep")."""
        return self.family.mrope and self.stage.positions == "keep"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that changes what is kept, except the keep of a request."""
        row = [SELECTION, self.family.name, {**self.strategy.dump(), "description": "", "keep": None}]
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]

    def request_keep(self, given: object) -> float | int:
        """The keep of a request, checked; `given` is what it named, None if nothing. Raises ConfigError."""
        if given is None:
            return self.keep
        keep = parse_keep(given)
        self._checked(keep)
        return keep

    def budget(self, keep: float | int) -> Budget:
        """The stage's budget with this keep."""
        return with_keep(self.strategy, keep).allocate().projector

    def count(self, layout: ImageLayout, keep: float | int) -> int:
        """Tokens that an image gives to the prompt: as many as `vtc.patch` keeps with the same keep.

        Raises ConfigError for more than `max_keep` would give.
        """
        kept, max_kept = (self._count(layout, k) for k in (keep, self.max_keep))
        if kept > max_kept:
            raise ConfigError(
                f"keep={keep} keeps {kept} of the {layout.tokens} tokens of an image, more than the {max_kept} of this "
                f"server's max_keep={self.max_keep}; possible: at most {self.max_keep}, or a server with a larger "
                "max_keep"
            )
        return kept

    def _count(self, layout: ImageLayout, keep: float | int) -> int:
        budget = self.budget(keep)
        if budget.keeps_all:
            return layout.tokens
        return sum(sum(counts) for counts in budget.quotas([[tile.tokens for tile in layout.tiles]]))


def packed(keep: float | int) -> float:
    """A keep as one number: a fraction as it is, a number of tokens as its negative."""
    return keep if isinstance(keep, float) else float(-keep)


def unpacked(number: float) -> float | int:
    """The keep that `packed` made into this number."""
    return number if number > 0 else int(-number)
