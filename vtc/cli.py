"""The `vtc` command: list, show and validate strategies, evaluate them on benchmarks.

Every error that vtc raises on purpose becomes one line on stderr and exit code 2.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vtc import ConfigError, VtcError, __version__

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

INTERRUPTED = 130

SETTING = typer.Option("--set", metavar="KEY=VALUE", help="Override a knob or part of the budget; may be repeated.")
FAMILY = typer.Option("--family", metavar="NAME", help="Model family, such as llava; `vtc list` names them.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vtc {__version__}")
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
      vtc eval --model demo --strategy none,hiprune --keep 0.5,0.25 --tasks demo --limit 100 --output results/first
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the strategies with their default budgets, and the model families.

    \b
    Examples:
      vtc list
      vtc list --json
    """
    strategies, families = _shipped_strategies(), _family_names()
    if as_json:
        typer.echo(json.dumps({"strategies": strategies, "families": families}, indent=2))
        return
    width = max(len(s["name"]) for s in strategies)
    typer.echo(f"{'strategy'.ljust(width)}  default budget   description")
    for s in strategies:
        typer.echo(f"{s['name'].ljust(width)}  {s['budget'].ljust(15)}  {s['description']}")
    typer.echo(f"\nmodel families: {', '.join(families)}")


def _shipped_strategies() -> list[dict]:
    """Name, description and default budget, from the YAML files alone: vtc.config would import torch first."""
    from importlib.resources import files

    import yaml

    found = []
    for file in sorted((files("vtc.configs") / "strategies").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            raw = yaml.safe_load(file.read_text(encoding="utf-8"))
            budget = next((f"{key}={raw[key]}" for key in ("keep", "prune_ratio") if key in raw), "none")
            found.append(
                {
                    "name": file.name[: -len(".yaml")],
                    "budget": budget,
                    "description": " ".join(str(raw.get("description", "")).split()),
                }
            )
    return found


def _family_names() -> list[str]:
    """The families by their files, which are named after them; importing them would load transformers."""
    import pkgutil

    import vtc.patches

    return sorted(m.name for m in pkgutil.iter_modules(vtc.patches.__path__) if not m.name.startswith("_"))


def _known_family(name: str) -> str:
    from vtc.registry import unknown

    if name not in _family_names():
        raise ConfigError(unknown("family", name, _family_names()))
    return name


@app.command()
def show(
    strategy: Annotated[str, typer.Argument(help="A shipped strategy or a YAML file.")],
    family: Annotated[str | None, FAMILY] = None,
    keep: Annotated[str | None, typer.Option("--keep", metavar="K", help="Fraction (0.25) or count (192).")] = None,
    settings: Annotated[list[str] | None, SETTING] = None,
) -> None:
    """Print a strategy as YAML with every default filled in; the output is a strategy file again.

    Without --family the general defaults are shown, which a family's section of the file may override.

    \b
    Examples:
      vtc show hiprune
      vtc show hiprune --family qwen2_vl --keep 0.334
      vtc show hiprune --set alpha=0.2 --set object_layer=9 > mine.yaml
    """
    import yaml

    from vtc.config import resolve

    overrides = _overrides(settings)
    if keep is not None:
        overrides["keep"] = keep
    dump = resolve(strategy, family and _known_family(family), **overrides).dump()
    typer.echo(yaml.safe_dump(dump, sort_keys=False, allow_unicode=True), nl=False)


def _overrides(settings: list[str] | None) -> dict:
    from vtc.knobs import parse_set

    return dict(parse_set(text) for text in settings or [])


@app.command()
def validate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A strategy's YAML file, or the name of a shipped one.")],
    family: Annotated[str | None, FAMILY] = None,
) -> None:
    """Check a strategy file for every model family (or one); no model is loaded. Exit code 1 if it fails anywhere.

    \b
    Examples:
      vtc validate my_strategy.yaml
      vtc validate my_strategy.yaml --family llava
    """
    from vtc.config import resolve
    from vtc.source import read

    if not Path(file).is_file():
        read(file)
    failed = False
    for name in _family_names() if family is None else [_known_family(family)]:
        try:
            resolve(file, name)
        except VtcError as error:
            failed = True
            typer.echo(f"{name}: error: {_one_line(error)}")
        else:
            typer.echo(f"{name}: ok")
    if failed:
        raise typer.Exit(1)


@app.command("eval")
def eval_(
    model: Annotated[str | None, typer.Option(metavar="M", help="`demo`, a local directory, or a hub id.")] = None,
    model_args: Annotated[
        str | None,
        typer.Option(
            "--model_args",
            "--model-args",
            metavar="K=V,K=V",
            help=("Passed to from_pretrained: dtype, attn_implementation, revision, device_map, ..."),
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="S,S",
            help=(
                "Shipped strategies or YAML files; also `none` (the model as it is, run once) and `downsample` (a "
                "smaller picture)."
            ),
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="K,K",
            help=("Budgets: fractions of the visual tokens (0.25) or counts (192). Default: each strategy's own."),
        ),
    ] = None,
    settings: Annotated[list[str] | None, SETTING] = None,
    tasks: Annotated[str | None, typer.Option(metavar="T,T", help="Benchmarks. Default: demo.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of the benchmark. Default: the task's own.")
    ] = None,
    limit: Annotated[str | None, typer.Option(metavar="N", help="Only the first N samples.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Samples per generate() call, padded on the left. Default: 1; 16 for the demo model."
        ),
    ] = None,
    max_new_tokens: Annotated[str | None, typer.Option(metavar="N", help="Default: the task's own.")] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="For torch, and for strategies that draw. Default: 0.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Default: cuda if there is one, else cpu.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the results (needed).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start these runs anew.")] = False,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=("Take the options from a YAML file, shipped or your own; options given here win."),
        ),
    ] = None,
) -> None:
    """Answer benchmark questions with the model as it is and with pruned visual tokens, and compare.

    A run that was interrupted goes on where it stopped when the same command is given again. Exit code 1 if any
    sample failed.

    \b
    Examples:
      vtc eval --model demo --strategy hiprune --keep 0.25 --tasks demo --limit 200 --output results/hiprune
      vtc eval --model demo --strategy none,random,hiprune --keep 0.5,0.25,0.11 --output results/grid
      vtc eval --suite demo --output results/demo
      vtc eval --model path/to/llava-1.5-7b-hf --model_args dtype=float16,attn_implementation=sdpa \\
          --strategy none,hiprune --keep 192,128,64 --output results/llava
    """
    from vtc.eval.runner import evaluate
    from vtc.eval.settings import settings_from

    options = {
        "model": model, "model_args": model_args, "strategy": strategy, "keep": keep, "set": _overrides(settings),
        "tasks": tasks, "split": split, "limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens,
        "seed": seed, "device": device, "output": output, "overwrite": overwrite or None,
    }  # fmt: skip
    if evaluate(settings_from(suite, options)):
        raise typer.Exit(1)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 done with failures, 2 wrong input, 130 interrupted."""
    try:
        code = app(arguments, prog_name="vtc", standalone_mode=False)
    except VtcError as error:
        code = _fail(_one_line(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # typer brings its own copy of click in some versions, so its usage errors are known by their looks.
        if not hasattr(error, "format_message"):
            raise
        what = " ".join(error.format_message().split()).rstrip(".")
        code = _fail(f"{what}; see `vtc --help` or `vtc COMMAND --help`")
    if code == INTERRUPTED:  # typer may have caught the interrupt itself
        print("vtc: interrupted; the same command goes on from here", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(line: str) -> int:
    print(f"vtc: error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
