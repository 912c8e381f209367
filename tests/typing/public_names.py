"""Every public name of vtc with its types, for mypy alone: `make lint` checks it in the checkout, `make wheel-check`
against the wheel. Where `type: ignore` stands, a mistake must be found: strict mypy refuses one that is not needed."""

from pathlib import Path
from typing import assert_type

from matplotlib.figure import Figure
from torch import nn

import vtc
from vtc.config.strategy import StrategyConfig
from vtc.core.report import Report
from vtc.drafting import Draft
from vtc.strategies.uniform import Uniform


class Model(nn.Module):
    """Stands for a class of transformers."""


class UniformLike(Uniform):
    """Stands for a method of one's own."""


def right(model: Model, processor: object) -> None:
    """Calls as the documentation has them; the model keeps its class."""
    assert_type(vtc.__version__, str)
    assert_type(vtc.families(), list[str])
    assert_type(vtc.strategies(), list[str])
    assert_type(vtc.load_strategy("hiprune", "llava", keep=0.5), StrategyConfig)
    assert_type(vtc.patch(model, "hiprune", keep=0.25, alpha=0.1), Model)
    assert_type(vtc.patch(model, ["hiprune", Path("mine.yaml")], prune_ratio=0.5, processor=processor), Model)
    assert_type(vtc.patch(model, [UniformLike(), UniformLike, "fastv"], keep=0.5), Model)
    assert_type(vtc.patch(model, UniformLike(), keep=0.5), Model)
    assert_type(vtc.report(model), Report)
    assert_type(vtc.report(model).kv_lengths, list[int | None])
    assert_type(vtc.report(model).images[0].stages, list[tuple[str, int, int]])
    assert_type(vtc.unpatch(model), Model)
    with vtc.patched(model, {"stages": [{"method": "uniform"}]}, keep=64) as same:
        assert_type(same, Model)
    assert_type(vtc.draft(model, "hiprune", keep=0.1), Draft)
    assert_type(vtc.inspect(model, processor, "picture.png", "What is this?", keep=[0.5, 0.25]), Figure)


def errors(model: Model) -> None:
    """One base, and kinds that built-in classes catch too."""
    try:
        vtc.patch(model)
    except vtc.ConfigError as error:
        assert_type(error, vtc.ConfigError)
        known: ValueError = error
        raise known from error
    except (vtc.PatchError, vtc.UnsupportedError) as error:
        base: vtc.VtcError = error
        raise base from error


def wrong(model: Model) -> None:
    """Mistakes that a type checker finds."""
    vtc.patch(model, 3)  # type: ignore[arg-type]
    vtc.patch(model, Model)  # type: ignore[arg-type]
    vtc.patch("llava", "hiprune")  # type: ignore[type-var]
    vtc.patch(model, "hiprune", keep=[0.5])  # type: ignore[arg-type]
    vtc.patch(model, scope=1)  # type: ignore[arg-type]
    vtc.load_strategy(3)  # type: ignore[arg-type]
    vtc.strategies("llava")  # type: ignore[call-arg]
    vtc.families().get("llava")  # type: ignore[attr-defined]
    vtc.report(model).kv_length  # type: ignore[attr-defined]  # noqa: B018
    vtc.pacth(model)  # type: ignore[attr-defined]
