"""The `vtc` command: list, show, validate and check strategies, evaluate them on benchmarks.

Every error that vtc raises on purpose becomes one line on stderr and exit code 2.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vtc import ConfigError, VtcError, __version__
from vtc.cli.bench import bench
from vtc.cli.check import check
from vtc.cli.eval import evaluation
from vtc.cli.inspect import inspect
from vtc.cli.options import FAMILY, IMPORT, SETTING, family_names, known_family, overrides
from vtc.cli.report import report
from vtc.cli.schedule import check_depths, table
from vtc.cli.serve import CONTEXT, serve
from vtc.cli.sweep import sweep
from vtc.core.errors import one_line, reason
from vtc.io.terminal import say

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

INTERRUPTED = 130


def _version(requested: bool) -> None:
    if requested:
        say(f"vtc {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Training-free visual-token selection for vision-language models.

    \b
    Examples:
      vtc list
      vtc show hiprune --family qwen2_5_vl --keep 0.25
      vtc validate my_strategy.yaml
      vtc check hiprune
      vtc eval --model demo --strategy none,hiprune --keep 0.5,0.25 --tasks demo --limit 100 --output results/first
    """
    if context.invoked_subcommand is None:
        say(context.get_help())


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """List the strategies with their default budgets, and the model families.

    \b
    Examples:
      vtc list
      vtc list --json
    """
    strategies, families = _strategies(), family_names()
    if as_json:
        say(json.dumps({"strategies": strategies, "families": families}, indent=2))
        return
    width = max(len(s["name"]) for s in strategies)
    say(f"{'strategy'.ljust(width)}  default budget   description")
    for s in strategies:
        say(f"{s['name'].ljust(width)}  {s['budget'].ljust(15)}  {s['description']}")
    say(f"\nmodel families: {', '.join(families)}")


def _strategies() -> list[dict]:
    """Name, description and default budget, from what the names stand for alone: to resolve them would import torch.

    The budget is "schedule" where it is left to the stages: how many tokens which layer sees (`vtc show --layers`), and
    "none" for a method from outside that has to be told.
    """
    from vtc.config.source import read_strategy
    from vtc.strategies import METHODS, available

    strategies = []
    for name in available():
        try:
            raw = read_strategy(name)[0].data
            stages = raw["stages"]
            rows = (raw, *stages[:1]) if len(stages) == 1 else (raw,)
            budgets = [f"{key}={row[key]}" for row in rows for key in ("keep", "prune_ratio") if key in row]
            missing = name in METHODS.outside() and METHODS[name].site == "projector"
            budget, about = budgets[0] if budgets else "none" if missing else "schedule", raw.get("description", "")
        except (VtcError, TypeError) as error:
            budget, about = "unknown", f"error: {reason(error)}"
        strategies.append({"name": name, "budget": budget, "description": " ".join(str(about).split())})
    return strategies


@app.command()
def show(
    strategy: Annotated[str, typer.Argument(help="A shipped strategy, a YAML file, or several as A+B.")],
    family: Annotated[str | None, FAMILY] = None,
    keep: Annotated[str | None, typer.Option("--keep", metavar="K", help="Fraction (0.25) or count (192).")] = None,
    settings: Annotated[list[str] | None, SETTING] = None,
    layers: Annotated[int | None, typer.Option(metavar="N", min=2, help="Decoder layers, such as 32.")] = None,
    tokens: Annotated[int | None, typer.Option(metavar="M", min=1, help="Visual tokens of an image.")] = None,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """Print a strategy as YAML with every default filled in; the output is a strategy file again.

    Comments say what each knob means, and what is published where a family departs. Without --family the general
    defaults are shown, which a family's section of the file may override. With --layers and --tokens, comments above
    say how many of an image's tokens each layer of such a language model sees.

    \b
    Examples:
      vtc show hiprune
      vtc show hiprune --family qwen2_vl --keep 0.334
      vtc show hiprune --set alpha=0.2 --set object_layer=9 > mine.yaml
      vtc show hiprune+transprune --keep 0.2 --layers 32 --tokens 576
    """
    from vtc.config.annotated import annotated
    from vtc.config.resolve import resolve_written
    from vtc.config.source import read_strategy

    if (layers is None) != (tokens is None):
        raise ConfigError(f"--{'layers' if layers is None else 'tokens'} is missing; possible: both of them, or none")
    given = overrides(settings) | ({} if keep is None else {"keep": keep})
    written = read_strategy(strategy)
    config = resolve_written(written, family and known_family(family), **given)
    for line in [] if layers is None else table(config, family, layers, tokens):
        say(f"# {line}")
    say(annotated(config, written))


@app.command()
def validate(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A strategy's YAML file, the name of a shipped one, or several as A+B."),
    ],
    family: Annotated[str | None, FAMILY] = None,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """Check a strategy file for every model family (or one); no model is loaded. Exit code 1 if it fails anywhere.

    What happens inside the language model is tried on several depths, and fails if it suits none of them.

    \b
    Examples:
      vtc validate my_strategy.yaml
      vtc validate my_strategy.yaml --family llava
      vtc validate hiprune+my_strategy.yaml
    """
    from vtc.config.resolve import resolve_written
    from vtc.config.source import parts_of, read_strategy

    written = []
    for part in parts_of(file):
        try:
            written += read_strategy(part)
        except VtcError as error:
            if not Path(part).is_file():
                raise
            say(f"error: {error}")
            raise typer.Exit(1) from None
    failed = False
    for name in family_names() if family is None else [known_family(family)]:
        try:
            check_depths(resolve_written(written, name))
        except VtcError as error:
            failed = True
            say(f"{name}: error: {error}")
        else:
            say(f"{name}: ok")
    if failed:
        raise typer.Exit(1)


app.add_typer(evaluation, name="eval")
app.add_typer(bench, name="bench")
app.command()(check)
app.command()(sweep)
app.command()(report)
app.command()(inspect)
app.command(context_settings=CONTEXT)(serve)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 done with failures, 2 wrong input, 130 interrupted."""
    try:
        code = app(arguments, prog_name="vtc", standalone_mode=False)
    except (VtcError, OSError) as error:  # wrong input; no such file, no right to it, no room on the disk
        code = _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # typer brings its own copy of click in some versions, so its usage errors are recognised by their attributes.
        if not hasattr(error, "format_message"):
            raise
        what = reason(error.format_message()).rstrip(".")
        code = _fail(f"{what}; see `vtc --help` or `vtc COMMAND --help`")
    if code == INTERRUPTED:  # typer may have caught the interrupt itself
        say("vtc: interrupted; the same command goes on from here", error=True)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: object) -> int:
    say(f"vtc: error: {one_line(message)}", error=True)
    return 2
