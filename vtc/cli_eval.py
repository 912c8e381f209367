"""`vtc eval`: its options, handed to `vtc.eval`."""

from pathlib import Path
from typing import Annotated

import typer

from vtc.cli_options import SETTING, overrides


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
                "Shipped strategies or YAML files, or several as A+B; also `none` (the model as it is, run once) and "
                "`downsample` (a smaller picture)."
            ),
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="K,K",
            help=(
                "Budgets: fractions of the visual tokens (0.25) or counts (192), as a mean over the decoder layers. "
                "Default: each strategy's own."
            ),
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
      vtc eval --model demo --strategy none,transprune,hiprune+transprune --output results/inside
      vtc eval --suite demo --output results/demo
      vtc eval --model path/to/llava-1.5-7b-hf --model_args dtype=float16,attn_implementation=sdpa \\
          --strategy none,hiprune --keep 192,128,64 --output results/llava
    """
    from vtc.eval.runner import evaluate
    from vtc.eval.settings import settings_from

    options = {
        "model": model, "model_args": model_args, "strategy": strategy, "keep": keep, "set": overrides(settings),
        "tasks": tasks, "split": split, "limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens,
        "seed": seed, "device": device, "output": output, "overwrite": overwrite or None,
    }  # fmt: skip
    if evaluate(settings_from(suite, options)):
        raise typer.Exit(1)
