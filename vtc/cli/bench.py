"""`vtc bench`: what a strategy gains on this machine, what vtc's own parts cost, and two results side by side."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vtc import ConfigError
from vtc.cli.options import IMPORT, SETTING, overrides
from vtc.io.terminal import Terminal, say

bench = typer.Typer(rich_markup_mode=None)


@bench.callback(invoke_without_command=True)
def speed(
    context: typer.Context,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="An architecture with random weights, such as tiny, llava-1.5-7b; an unknown name lists all.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="DIR", help="A local model instead.")] = None,
    strategy: Annotated[
        str, typer.Option(metavar="S,S", help="Strategies or YAML files, or several as A+B.")
    ] = "hiprune",
    keep: Annotated[
        str, typer.Option(metavar="K,K", help="Budgets: fractions or counts; `own` is the strategy's own.")
    ] = "0.25",
    settings: Annotated[list[str] | None, SETTING] = None,
    batch_sizes: Annotated[str, typer.Option(metavar="B,B", help="Equal prompts at a time.")] = "1",
    prompt_lengths: Annotated[str, typer.Option(metavar="L,L", help="Tokens of a prompt that are not visual.")] = "64",
    visual_tokens: Annotated[
        str, typer.Option(metavar="N,N", help="Visual tokens of a prompt; the nearest that the model can have.")
    ] = "576",
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", help="Show one clip of N pictures, with all the visual tokens, instead of images."),
    ] = None,
    break_even: Annotated[
        bool,
        typer.Option("--break-even", help="Also 64,144,256,400,576 visual tokens, to find where it starts to pay."),
    ] = False,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Written by each run, 2 or more.")] = 16,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Decode with a static cache, in steps that generate() compiles.")
    ] = False,
    rounds: Annotated[int, typer.Option(metavar="N", help="Of baseline, strategy and oracle in turn.")] = 9,
    warmup: Annotated[int | None, typer.Option(metavar="N", help="Rounds before that. Default: 1; on a GPU 3.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="T", help="float32, bfloat16, float16. Default: bfloat16 on a GPU, else float32."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="D", help="Default: cuda if there is one, else cpu.")] = None,
    attention: Annotated[
        str | None, typer.Option(metavar="A", help="Default: flash_attention_2 where it is installed, else sdpa.")
    ] = None,
    kernels: Annotated[str, typer.Option(metavar="K", help="auto, reference, triton.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, pictures and words.")] = 0,
    output: Annotated[Path, typer.Option(metavar="DIR", help="For results.json and plots.")] = Path("results/bench"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """Time a model as it is, with a strategy, and as the strategy's oracle: the same model fed the chosen tokens.

    The three take turns in one process, and ratios are taken within each round. On a CPU the process's CPU time is
    measured too and decides where the clock disagrees. A noisy row gets up to twice the rounds; exit code 3 if it stays
    noisy. Rows are written as they come; the same command goes on where it stopped.

    \b
    Examples:
      vtc bench --preset tiny --strategy hiprune --keep 0.25
      vtc bench --preset llava-1.5-7b --strategy hiprune,fastv --keep 0.25,0.11 --visual-tokens 576,2880 \\
          --batch-sizes 1,8 --output results/h100
      vtc bench --preset qwen3-vl-mini --frames 16 --strategy divprune,hiprune --output results/clip
      vtc bench --preset tiny --break-even --output results/pays
      vtc bench compare results/a results/b
    """
    if context.invoked_subcommand is not None:
        return
    from vtc.bench.bar import Bar
    from vtc.bench.speed import SWEEP, SpeedOptions, numbers, run, texts
    from vtc.bench.speed_table import STILL_NOISY, lines, plot, table

    visual = numbers("--visual-tokens", visual_tokens)
    options = SpeedOptions(
        output, preset, model, texts("--strategy", strategy), texts("--keep", keep, "0.25,192"),
        numbers("--batch-sizes", batch_sizes, "1,8"), numbers("--prompt-lengths", prompt_lengths, "64,512"),
        (*SWEEP, *visual) if break_even else visual, new_tokens, rounds, warmup, dtype, device, attention, kernels,
        seed, overrides(settings), frames, compiled, overwrite,
    )  # fmt: skip
    results = run(options, Bar)
    Terminal(width=150).print(table(results.rows))
    for line in lines(results.rows):
        say(line)
    plot(results.rows, output)
    say(f"results  {output}")
    if any(row.get("noisy") for row in results.rows):
        raise typer.Exit(STILL_NOISY)


@bench.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that a command of vtc bench wrote.")],
    second: Annotated[Path, typer.Argument(metavar="DIR", help="Another one of the same command.")],
) -> None:
    """Show two results side by side; refused when they differ in anything but strategy and keep.

    Results of `vtc bench selection` may differ in their times alone, those of the kernels (`make gpu-check`) also in
    the kernels' code.

    \b
    Example:
      vtc bench compare results/hiprune results/fastv
      vtc bench compare results/serving-quarter results/serving-tenth
    """
    from vtc.bench import kernel_rows, selectors_table, speed_table
    from vtc.bench.kernel_rows import KERNELS
    from vtc.bench.results import read
    from vtc.bench.selectors_run import SELECTION
    from vtc.bench.serving import serving_table
    from vtc.bench.serving.ratios import SERVING
    from vtc.bench.speed_rows import SPEED

    tables = {
        SPEED.schema: speed_table, SERVING.schema: serving_table, SELECTION.schema: selectors_table,
        KERNELS.schema: kernel_rows,
    }  # fmt: skip
    a, b = (read(folder, SPEED, SERVING, SELECTION, KERNELS) for folder in (first, second))
    if a["schema"] != b["schema"]:
        raise ConfigError(f"{str(first)!r} and {str(second)!r} are of two benchmarks; possible: two folders of one")
    table = tables[a["schema"]].compared(a, b)
    say(f"A  {first}\nB  {second}")
    Terminal(width=170).print(table)


@bench.command()
def serving(
    strategies: Annotated[str, typer.Option(metavar="S,S", help="Beside the stock class.")] = "hiprune,divprune",
    keep: Annotated[str, typer.Option(metavar="K", help="A fraction or a number of tokens.")] = "0.25",
    concurrency: Annotated[str, typer.Option(metavar="N,N", help="Requests at once.")] = "1,8,32",
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="As for vtc bench; an unknown name lists all.")
    ] = "llava-mini",
    requests: Annotated[int, typer.Option(metavar="N", help="Of a cell, at least; and twice those at once.")] = 8,
    rounds: Annotated[int, typer.Option(metavar="N", help="In which the systems take turns.")] = 3,
    text: Annotated[int, typer.Option(metavar="N", help="Tokens of a prompt that are not visual.")] = 64,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Written for each request.")] = 16,
    dtype: Annotated[str, typer.Option(metavar="T", help="float32, bfloat16, float16.")] = "float32",
    block_size: Annotated[int, typer.Option(metavar="N", help="Tokens of a KV block.")] = 32,
    batched: Annotated[int, typer.Option(metavar="N", help="Tokens of a step at most.")] = 2048,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of an engine; 1 on a machine with other work. Default: one for each core."),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Let vLLM compile the model.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, pictures and words.")] = 0,
    output: Annotated[Path, typer.Option(metavar="DIR", help="For results.json and the engines' logs.")] = Path(
        "results/bench-serving"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
) -> None:
    """Measure KV blocks and requests per second of vLLM, unpruned and pruned, as ratios.

    One engine for each system; they take turns, and ratios are taken within each round. Cells are written as they come;
    the same command goes on where it stopped.

    \b
    Examples:
      vtc bench serving --strategies hiprune,divprune --keep 0.25 --output results/serving
      vtc bench serving --preset tiny --concurrency 1,2 --requests 2 --rounds 1
    """
    from vtc.bench.serving.serving_plot import plot
    from vtc.bench.serving.serving_table import lines, table
    from vtc.bench.serving.throughput import CORES, ServingOptions, run
    from vtc.bench.speed import numbers, texts

    options = ServingOptions(
        output, texts("--strategies", strategies), keep, numbers("--concurrency", concurrency, "1,8,32"), preset,
        requests, rounds, text, new_tokens, dtype, block_size, batched, CORES if threads is None else threads, compiled,
        seed,
    )  # fmt: skip
    results = run(options, shlex.join(["vtc", *sys.argv[1:]]), overwrite)
    Terminal(width=170).print(table(results.rows))
    for line in lines(results.rows, results.environment["cores"]):
        say(line)
    say(f"results  {output}, {plot(results.rows, output).name}")


@bench.command()
def selection(
    selectors: Annotated[str, typer.Option(metavar="A,B", help="Which ones.")] = "coverage,max-min,max-sum,dpp",
    sizes: Annotated[str, typer.Option(metavar="N,N", help="Visual tokens.")] = "256,576,1024,2880,4096,16384",
    picks: Annotated[str, typer.Option(metavar="K,K", help="Tokens kept.")] = "64,160,320",
    device: Annotated[str, typer.Option(metavar="D", help="cpu, or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, taken in turn; medians are shown.")] = 3,
    limit: Annotated[float, typer.Option(min=0, help="Seconds that the other form may take; else left out.")] = 60,
    against: Annotated[
        str, typer.Option(metavar="A", help="released: the authors' steps; definition: a plain loop.")
    ] = "definition",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of torch on a CPU. Default: one for each core.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    output: Annotated[Path, typer.Option(metavar="DIR", help="For results.json and selection.png.")] = Path(
        "results/bench-selection"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
) -> None:
    """Time each set selector alone, from features to picks: against the steps of the released code, or the definition
    as a plain loop, and against a random draw.

    Rows are written as they come; the same command goes on where it stopped.

    \b
    Examples:
      vtc bench selection --sizes 2880 --picks 320
      vtc bench selection --against released --selectors coverage,max-min,dpp --threads 1 --output results/released
      vtc bench selection --selectors coverage --device cuda --output results/h200
    """
    from vtc.bench.selectors_run import SelectionOptions, run
    from vtc.bench.selectors_table import plot, table
    from vtc.bench.speed import numbers, texts

    options = SelectionOptions(
        output, texts("--selectors", selectors), numbers("--sizes", sizes), numbers("--picks", picks), device, repeats,
        limit, seed, against, threads,
    )  # fmt: skip
    command = shlex.join(["vtc", *sys.argv[1:]])
    with Terminal(stderr=True).status("") as status:
        results = run(options, lambda row: status.update(f"vtc bench selection: {row}"), command, overwrite)
    Terminal(width=150).print(table(results.rows))
    say(f"results  {output}, {plot(results.rows, output).name}")
