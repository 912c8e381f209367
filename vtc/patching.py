"""The public way in: patch, unpatch, patched, report."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from vtc.config.resolve import resolve_written
from vtc.config.source import read_strategy
from vtc.config.strategy import Strategy, StrategyConfig
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.core.hooks import let_compiled_see_hooks
from vtc.core.registry import unknown
from vtc.core.report import Report
from vtc.core.signals import Encoder
from vtc.engine.patch import Patch

if TYPE_CHECKING:
    from vtc.patches._family import Family

Model = TypeVar("Model", bound=nn.Module)

ATTRIBUTE = "_vtc_patch"


def find_family(model: nn.Module) -> "Family":
    """The model's family, looked over but not touched. Raises UnsupportedError for a model that is not supported."""
    from vtc.patches import FAMILIES
    from vtc.patches._refused import REFUSED

    kind = getattr(getattr(model, "config", None), "model_type", None)
    by_type: dict[str, type[Family]] = {t: FAMILIES[name] for name in FAMILIES for t in FAMILIES[name].model_types}
    if not isinstance(model, nn.Module) or kind is None:
        raise UnsupportedError(
            f"{type(model).__name__} is no transformers model; possible: a loaded "
            f"...ForConditionalGeneration of {', '.join(by_type)}"
        )
    if hasattr(model, "get_base_model") or hasattr(model, "_orig_mod"):
        raise UnsupportedError(f"{type(model).__name__} wraps a model; possible: patch the wrapped model itself")
    if kind not in by_type and kind in REFUSED:
        raise UnsupportedError(f"{kind} is not supported: {REFUSED[kind]}; possible: {', '.join(sorted(by_type))}")
    if kind not in by_type:
        raise UnsupportedError(unknown("family", kind, sorted(by_type)))
    return by_type[kind](model)


def check_fits(config: StrategyConfig, encoder: Encoder) -> None:
    """Raises ConfigError or UnsupportedError when a strategy asks for what this encoder's images cannot give."""
    stage = config.projector
    scope = "per_image" if stage is None else stage.scope
    for keep in (config.keep, *(front.keep for front in (config.encoder, stage) if front is not None)):
        if isinstance(keep, int) and encoder.tokens is not None and scope != "per_request" and keep > encoder.tokens:
            raise ConfigError(
                f"keep={keep} is more than the {encoder.tokens} visual tokens of an image of this model; "
                f"possible: 1 to {encoder.tokens}, or a fraction"
            )
    if stage is not None and stage.stage.grid and encoder.tiled and scope != "per_tile":
        raise ConfigError(
            f"scope={scope!r} lets the tiles of an image compete, but {stage.method} needs one raster of tokens; "
            "possible: per_tile"
        )


def check_clips(config: StrategyConfig, family: "Family") -> None:
    """Raises UnsupportedError for a method that compares frames on a family of which vtc takes no clips."""
    from vtc.patches import FAMILIES

    stage = config.projector
    if stage is not None and getattr(stage.stage, "clips", False) and family.video is None:
        possible = ", ".join(name for name in FAMILIES if FAMILIES[name].video is not None)
        raise UnsupportedError(
            f"{stage.method} compares the frames of clips, and vtc takes no clips of {family.name}; possible: a method "
            f"for images, or a model of {possible}"
        )


def patch(
    model: Model,
    strategy: Strategy = "hiprune",
    keep: float | int | str | None = None,
    *,
    prune_ratio: float | None = None,
    scope: str | None = None,
    positions: str | None = None,
    processor: object = None,
    clip: object = None,
    **knobs: Any,
) -> Model:
    """Makes the model drop visual tokens by a strategy; returns the same model. Patching again replaces the strategy.

    model: a stock ...ForConditionalGeneration of a supported family. strategy: a name, a YAML file, a mapping, a method
    (its class, an instance, or MODULE:CLASS), or several of these to compose, as a list or as "hiprune+transprune".
    keep: float in (0, 1] = fraction of the visual tokens kept, int >= 1 = tokens kept, both as a mean over the language
    model's layers (`vtc.config.allocation` says how several stages share it); prune_ratio: fraction removed instead.
    scope, positions, knobs: override the YAML (see `vtc show`); in a composition also as METHOD.KNOB. processor: the
    model's processor, for strategies that read the question (mmtok). clip: (CLIPModel, its tokenizer), for cdpruner
    and visiontrim with relevance="clip".
    Raises ConfigError or UnsupportedError in one line, before the model is touched.
    """
    given = {"keep": keep, "prune_ratio": prune_ratio, "scope": scope, "positions": positions}
    overrides = {**{k: v for k, v in given.items() if v is not None}, **knobs}
    written = read_strategy(strategy)
    family = find_family(model)
    config = resolve_written(written, family.name, **overrides)
    check_fits(config, family.encoder)
    check_clips(config, family)
    new, before = Patch(family, config, processor, clip), current(model)
    unpatch(model)
    try:
        _put_on(model, new)
    except BaseException:
        new.take_off()
        if before is not None:
            _put_on(model, before)
        raise
    return model


def _put_on(model: nn.Module, new: Patch) -> None:
    let_compiled_see_hooks()
    new.put_on()
    setattr(model, ATTRIBUTE, new)


def unpatch(model: Model) -> Model:
    """Restores the model exactly: no hook, attribute or config is left. Does nothing on an unpatched model."""
    present = current(model)
    if present is not None:
        present.take_off()
        let_compiled_see_hooks()
        delattr(model, ATTRIBUTE)
    return model


@contextmanager
def patched(
    model: Model,
    strategy: Strategy = "hiprune",
    keep: float | int | str | None = None,
    **options: Any,
) -> Iterator[Model]:
    """`patch` for the length of a with-block; whatever happens inside, the model is restored.

    A patch that was on the model before is put back afterwards.
    """
    before = current(model)
    patch(model, strategy, keep, **options)
    try:
        yield model
    finally:
        unpatch(model)
        if before is not None:
            _put_on(model, before)


def current(model: nn.Module) -> Patch | None:
    """The patch that is on the model."""
    present: Patch | None = vars(model).get(ATTRIBUTE)
    return present


def report(model: nn.Module) -> Report:
    """What the last call did: of this thread if it made one, else of any. A call that continues a pruned prompt belongs
    to that prompt's report.

    Raises ConfigError when the model is not patched, keeps everything, or saw no image in the last call.
    """
    present = current(model)
    if present is None:
        raise ConfigError("this model is not patched; possible: vtc.patch(model, STRATEGY) first")
    outcome = present.last_outcome()
    if isinstance(outcome, str):
        raise ConfigError(f"there is nothing to report: {outcome}; possible: a prompt with an image, keep below 1.0")
    return outcome
