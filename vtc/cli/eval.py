"""`vtc eval`: its options, handed to `vtc.eval`; `vtc eval score` and `vtc eval tasks`."""

from pathlib import Path
from typing import Annotated

import typer

from vtc import ConfigError
from vtc.cli.options import IMPORT, SETTING, overrides
from vtc.io.terminal import Terminal

evaluation = typer.Typer(rich_markup_mode=None)

TASKS = typer.Option("--tasks", "--task", metavar="T,T", help="Benchmarks; `vtc eval tasks` names them. Default: demo.")
DIALECT = typer.Option(
    metavar="NAME",
    help="Prompts and scoring: llava (LLaVA's scripts), lmms (lmms-eval), qwen (VLMEvalKit for Qwen-VL).",
)
PLACE = typer.Option(
    "--dataset-path",
    metavar="PATH|T=PATH,..",
    help="Data from a local folder or file (parquet, arrow, JSON lines) or another hub id, for all tasks or per task.",
)
VIDEOS = typer.Option(metavar="DIR|T=DIR,..", help="Folder of the videos. Default: that of a local data file.")
FRAMES = typer.Option(metavar="N", help="Evenly spaced frames of each video. Default: the task's own.")
AGAINST = typer.Option(metavar="P,P", help="Paper cards, shipped or FILE.yaml: print measured beside published.")


@evaluation.callback(invoke_without_command=True)
def eval_(
    context: typer.Context,
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
    tasks: Annotated[str | None, TASKS] = None,
    dialect: Annotated[str | None, DIALECT] = None,
    dataset_path: Annotated[str | None, PLACE] = None,
    videos: Annotated[str | None, VIDEOS] = None,
    frames: Annotated[str | None, FRAMES] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of the benchmark. Default: the task's own.")
    ] = None,
    limit: Annotated[str | None, typer.Option(metavar="N", help="Only the first N samples, in whole groups.")] = None,
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
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system turn before each question.")] = None,
    pad_square: Annotated[
        bool, typer.Option("--pad-square", help="Pad pictures to squares first, as LLaVA-1.5's own code does.")
    ] = False,
    against: Annotated[str | None, AGAINST] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the results (needed).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start these runs anew.")] = False,
    modules: Annotated[list[str] | None, IMPORT] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=("Take the options from a YAML file, shipped or your own; options given here win."),
        ),
    ] = None,
) -> None:
    """Answer benchmark questions with the model as it is and with pruned visual tokens, and compare.

    A run that was interrupted goes on where it stopped when the same command is given again, on as many processes as
    there are then. Exit code 1 if any sample failed.

    \b
    Examples:
      vtc eval --model demo --strategy hiprune --keep 0.25 --tasks demo --limit 200 --output results/hiprune
      vtc eval --model demo --strategy none,random,hiprune --keep 0.5,0.25,0.11 --output results/grid
      vtc eval --model demo --strategy none,transprune,hiprune+transprune --output results/inside
      vtc eval --suite demo --output results/demo
      vtc eval --model path/to/llava-1.5-7b-hf --model_args dtype=float16,attn_implementation=sdpa \\
          --strategy none,hiprune --keep 192,128,64 --tasks gqa,pope,textvqa_ocr --pad-square --against hiprune \\
          --output results/llava
      vtc eval --model demo --strategy none --tasks mmbench_en --dataset-path my/mmbench --output results/mmbench
      vtc eval --model path/to/qwen2.5-vl --strategy none,divprune --keep 0.25 --tasks videomme --videos my/videos \\
          --frames 32 --dialect qwen --output results/videomme
      accelerate launch --num_processes 8 -m vtc.eval --model ... (the same options; on CPUs with --multi_gpu)
      vtc eval --against hiprune                        (the command lines that would measure a paper's card)
      vtc eval --against hiprune --output results/llava (results that are there beside it)
      vtc eval score results/llava
    """
    options = {
        "model": model, "model_args": model_args, "strategy": strategy, "keep": keep, "set": overrides(settings),
        "tasks": tasks, "dialect": dialect, "dataset_path": dataset_path, "videos": videos, "frames": frames,
        "split": split, "limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": seed,
        "device": device, "system": system, "pad_square": pad_square or None, "against": against, "output": output,
        "overwrite": overwrite or None,
    }  # fmt: skip
    if context.invoked_subcommand is not None:
        _without({**options, "suite": suite}, f"before `{context.invoked_subcommand}`; possible: behind it")
        return
    if against is not None and not (model or strategy or suite):
        _without({**options, "against": None, "output": None}, "without --model and --strategy; possible: --output")
        from vtc.eval.papers import show
        from vtc.eval.running.eval_settings import split_list

        return show(split_list("against", against), output, Terminal())
    from vtc.eval.runner import evaluate
    from vtc.eval.running.eval_settings import settings_from

    if evaluate(settings_from(suite, options)):
        raise typer.Exit(1)


def _without(options: dict, why: str) -> None:
    """Raises ConfigError for an option that would be ignored."""
    given = [name for name, value in options.items() if value]
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} has no effect {why}")


@evaluation.command()
def score(
    place: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of `vtc eval`, or files of answers.")],
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", "--task", metavar="T", help="The benchmark of files of answers; of a folder, only these."
        ),
    ] = None,
    dialect: Annotated[str | None, DIALECT] = None,
    dataset_path: Annotated[str | None, PLACE] = None,
    against: Annotated[str | None, AGAINST] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """Score saved answers again, without a model.

    A folder of `vtc eval` gets its results anew from its sample logs (with another --dialect, in a folder of their own
    inside it). Other answers are rows of .jsonl, .jsonl.gz or .json files with the columns of the benchmark and the
    answer in `text`, `pred`, `prediction`, `response` or `answer_text`; right answers that they lack come from
    --dataset-path.

    \b
    Examples:
      vtc eval score results/llava
      vtc eval score results/llava --dialect lmms
      vtc eval score pope_answers.jsonl.gz --tasks pope
    """
    from vtc.eval.score import score_answers, score_folder

    if (place / "samples").is_dir():
        _without({"dataset_path": dataset_path}, "on a folder of `vtc eval`, whose logs hold the right answers")
        score_folder(place, tasks, dialect, against, as_json)
    else:
        _without({"against": against}, "on files of answers; possible: a folder of `vtc eval`")
        score_answers(place, tasks, dialect, dataset_path, as_json)


@evaluation.command("tasks")
def tasks_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """List the benchmarks: where their data is, their splits, and the figure that tables show.

    \b
    Examples:
      vtc eval tasks
    """
    from vtc.eval.showing.listing import list_tasks

    list_tasks(as_json)
