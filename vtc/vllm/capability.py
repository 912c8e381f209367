"""Which strategies can be served, on which families, and why not the others.

vLLM places an image's tokens in the prompt before a pixel is encoded, stores them by the image alone, and gives a
request's KV blocks one length for all layers. So a strategy fits if it acts at the projector, its number of kept
tokens follows from sizes and budget, and it does not read the question.
"""

from dataclasses import replace

from vtc.config.catalog import budget_for_tables
from vtc.config.knobs import as_lists
from vtc.config.resolve import resolve, resolve_written
from vtc.config.source import read_strategy
from vtc.config.strategy import StageConfig, StrategyConfig
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.core.signals import Encoder, TextEmbeddings, TextRelevance
from vtc.patches import FAMILIES
from vtc.strategies import available, shipped
from vtc.vllm.skeleton import served


def resolved(strategy: object, family: str, **overrides) -> StrategyConfig:
    """A strategy for a family, with the knobs that make its count exact unless they are given; see `resolve`."""
    written = read_strategy(strategy)
    config = resolve_written(written, family, **overrides)
    exact = {}
    for stage in config.stages:
        for knob, value in getattr(stage.stage, "fixed_count", {}).items():
            given = {knob, f"{stage.method}.{knob}"} & set(overrides)
            if not given and getattr(stage.stage, knob) != value:
                exact[f"{stage.method}.{knob}" if len(config.stages) > 1 else knob] = value
    return resolve_written(written, family, **exact, **overrides) if exact else config


def check(config: StrategyConfig, encoder: Encoder) -> StageConfig:
    """The one stage of a strategy that can be served; raises ConfigError or UnsupportedError where it cannot be."""
    misfit = _misfit(config, encoder)
    if misfit:
        servable = ", ".join(name for name in shipped() if not _misfit(resolved(name, encoder.family), encoder))
        raise UnsupportedError(f"strategy {config.name!r} {misfit[1]}; possible: {servable}")
    stage = config.projector
    for knob, value in stage.stage.fixed_count.items():
        if getattr(stage.stage, knob) != value:
            raise ConfigError(
                f"{knob}={as_lists(getattr(stage.stage, knob))!r} may keep fewer tokens than the budget, and vLLM must "
                f"know the number before the picture is encoded; possible: {knob}={value}"
            )
    if stage.scope == "per_request" and isinstance(config.keep, int):
        raise ConfigError(
            f"scope='per_request' with keep={config.keep} makes what is kept of an image depend on the other images "
            "of its prompt, but vLLM stores images one by one; possible: a fraction, or scope=per_image"
        )
    if stage.positions == "keep" and not FAMILIES[encoder.family].mrope:
        raise ConfigError(
            f"positions='keep' on {encoder.family}: vLLM numbers its tokens without gaps; possible: positions=compact"
        )
    return stage


def _misfit(config: StrategyConfig, encoder: Encoder) -> tuple[str, str] | None:
    """Why a method cannot be served whatever its budget, in short and in a sentence; None if it can be."""
    stage = config.projector
    if config.encoder is not None:
        return "inside the encoder", (
            f"drops or merges tokens inside the vision encoder ({config.encoder.method}), whose layers in vLLM are not "
            "those that vtc hooks"
        )
    if config.attention is not None:
        return "changes attention", (
            f"changes the attention of the language model ({config.attention.method}), whose kernels in vLLM keep its "
            "rows to themselves"
        )
    if config.decoder or stage is None:
        inside = ", ".join(dict.fromkeys(s.method for s in config.decoder))
        return "inside the language model", (
            f"drops tokens inside the language model ({inside}), but in vLLM the KV blocks of a request have one "
            "length for all layers"
        )
    if stage.stage.clips:
        return "clips only", "compares the frames of a clip, and the plugin prunes images"
    if stage.stage.adaptive:
        return "adaptive count", (
            "keeps a number of tokens that depends on the picture, but vLLM must know it before the picture is encoded"
        )
    signals = stage.stage.needs(encoder)
    if stage.stage.needs_text or any(isinstance(s, (TextEmbeddings, TextRelevance)) for s in signals):
        return "reads the question", "reads the question, but vLLM stores the tokens of an image by the image alone"
    return None


def with_keep(config: StrategyConfig, keep: float | int) -> StrategyConfig:
    """The strategy with another budget."""
    return replace(config, keep=keep, stages=tuple(replace(stage, keep=None) for stage in config.stages))


def table() -> str:
    """Strategies x families as a Markdown table, those from outside too: "yes", with the knob that the plugin sets
    where the published default may keep fewer tokens, or the reason why not."""
    families = served()
    lines = ["| strategy | " + " | ".join(families) + " |", "|---" * (len(families) + 1) + "|"]
    for name in available():
        cells = []
        for family in families:
            budget = budget_for_tables(name, family)
            published, exact = resolve(name, family, **budget), resolved(name, family, **budget)
            why = _misfit(exact, FAMILIES[family].published)
            changed = [
                f"{knob}={value}"
                for a, b in zip(published.stages, exact.stages, strict=True)
                for knob, value in getattr(b.stage, "fixed_count", {}).items()
                if getattr(a.stage, knob) != getattr(b.stage, knob)
            ]
            cells.append(f"no: {why[0]}" if why else "yes" + "".join(f", `{text}`" for text in changed))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
