"""`vtc inspect`: pictures of what strategies keep, drop and merge."""

from pathlib import Path
from typing import Annotated

import typer

from vtc import ConfigError
from vtc.cli.options import IMPORT, SETTING, overrides
from vtc.io.terminal import say


def inspect(
    model: Annotated[str | None, typer.Option(metavar="M", help="`demo`, a local directory, or a hub id.")] = None,
    model_args: Annotated[
        str | None,
        typer.Option("--model_args", "--model-args", metavar="K=V,K=V", help="Passed to from_pretrained: dtype, ..."),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="The picture. Default, for the demo model: one of its benchmark.")
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A clip instead: a folder of pictures of one size, sorted by name."),
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Default, without --image: the benchmark's own.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Which picture of the demo benchmark. Default: 0.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(metavar="S,S", help="Strategies or YAML files, or several as A+B. Default: hiprune.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="K,K", help="Budgets: fractions (0.25) or counts (192), as a mean over layers. Default: own."
        ),
    ] = None,
    settings: Annotated[list[str] | None, SETTING] = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of an answer. Default: 32.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Default: cuda if there is one, else cpu.")] = None,
    saved: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Draw a selection.json again; no model is loaded or run."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Default: results/inspect; with --from the folder of the file."),
    ] = None,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """Show which patches of a picture or clip strategies keep, drop and merge at each stage, and what the model then
    answers.

    Writes inspect.png, inspect.html, and selection.json with picture.png, from which both are drawn again by --from. A
    row is a strategy, a column a stage: at the projector, then before a layer of the language model.

    \b
    Examples:
      vtc inspect --strategy hiprune,mmtok,random --keep 0.11
      vtc inspect --model demo --image photo.png --question "What color is the ring?" --strategy hiprune+transprune
      vtc inspect --model path/to/llava-1.5-7b-hf --model_args dtype=float16 --image photo.jpg \\
          --question "What is written on the sign?" --strategy hiprune,visionzip --keep 64 --output results/sign
      vtc inspect --model path/to/Qwen3-VL-4B-Instruct --frames clip/ --question "What happens?" --strategy divprune
      vtc inspect --from results/sign/selection.json --output elsewhere
    """
    run_options = {
        "--model": model, "--model_args": model_args, "--image": image, "--frames": frames, "--question": question,
        "--sample": sample, "--strategy": strategy, "--keep": keep, "--set": settings,
        "--max-new-tokens": max_new_tokens, "--device": device,
    }  # fmt: skip
    if saved is not None:
        given = [name for name, value in run_options.items() if value]
        if given:
            raise ConfigError(f"{given[0]} has no effect on what is saved; possible beside --from: --output")
        from vtc.eval.inspect.record import read
        from vtc.eval.inspect.write import show

        record, picture = read(saved)
        files = show(record, picture, output or (saved if saved.is_dir() else saved.parent))
    else:
        from vtc.eval.inspect.command import run
        from vtc.eval.inspect.write import write

        record, picture = run(
            model or "demo", model_args, image, frames, question, sample, strategy or "hiprune", keep,
            overrides(settings), max_new_tokens or 32, device,
        )  # fmt: skip
        files = write(record, picture, output or Path("results/inspect"))
    for line in [_line("full model", record["full"]["answer"], record["tokens"])] + [
        _line(run["strategy"], run["answer"], run["average"]) for run in record["runs"]
    ]:
        say(line)
    for path in files:
        say(str(path))


def _line(name: str, answer: str, tokens: float) -> str:
    return f"{name.ljust(24)} {tokens:>7.1f} tokens in the average layer  {' '.join(answer.split())}"
