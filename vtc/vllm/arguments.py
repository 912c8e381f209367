"""The words of a `vllm serve` command line: read without vLLM, and checked with it."""

import contextlib
import difflib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace

import yaml

from vtc.errors import ConfigError
from vtc.vllm.options import refuse_engine
from vtc.vllm.settings import Settings

OVERRIDES = "hf_overrides"
SHORT = {"pp": "pipeline_parallel_size", "cc": "compilation_config", "sc": "speculative_config"}
"""Short forms of the options that are read here."""


def split(words: Sequence[str]) -> list[list[str]]:
    """Every option with the words of its value."""
    found = []
    for word in words:
        if not found or re.match(r"--?[A-Za-z]", word):
            found.append([])
        found[-1].append(word)
    return found


def parse(option: Sequence[str]) -> tuple[str, object]:
    """An option's name as vLLM stores it, and its value: JSON where it is that, else text; True where there is none.

    Raises ConfigError for a word that is no option. `--name.key value` is `name` with {key: value}.
    """
    first, equals, value = option[0].partition("=")
    if not first.startswith("-"):
        raise ConfigError(f"{first!r} is no option of vllm serve; possible: --NAME VALUE after the model")
    name, *path = first.lstrip("-").split(".")
    name = SHORT.get(name, name).replace("-", "_")
    rest = [value] * bool(equals) + list(option[1:])
    if name == OVERRIDES and any(key.endswith("+") for key in path):
        raise ConfigError(f"{first} adds to a list, which vtc does not read; possible: --hf-overrides JSON")
    found: object = True if not rest else rest[0] if len(rest) == 1 else rest
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = json.loads(found)
    for key in reversed(path):
        found = {key: found}
    return name, found


def merged(old: object, new: object) -> object:
    """`new` over `old`: two mappings key by key, everything else as a whole."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def values(words: Sequence[str]) -> dict[str, object]:
    """The options by name, those of a `--config` file too, on which the command line has precedence."""
    found: dict[str, object] = {}
    for name, value in map(parse, split(words)):
        found[name] = merged(found.get(name), value)
    return {**_file(found["config"]), **found} if "config" in found else found


def _file(path: object) -> dict[str, object]:
    try:
        with open(str(path), encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}; possible: a YAML file of options") from None
    if not isinstance(data, dict):
        raise ConfigError(f"--config {path} is no mapping; possible: a YAML file of options")
    return {str(key).replace("-", "_"): value for key, value in data.items()}


def with_overrides(words: Sequence[str], ours: Mapping[str, object]) -> list[str]:
    """The same words with `ours` in `--hf-overrides`, beside what they name there.

    Raises ConfigError where both name a key, or where theirs is no JSON object.
    """
    theirs = values(words).get(OVERRIDES, {})
    if not isinstance(theirs, Mapping):
        raise ConfigError(f"--hf-overrides {theirs!r} is no object; possible: JSON such as {{\"key\": 1}}")
    both = sorted(set(theirs) & set(ours))
    if both:
        raise ConfigError(f"--hf-overrides names {', '.join(both)}, which vtc sets; possible: without")
    rest = [word for option in split(words) if parse(option)[0] != OVERRIDES for word in option]
    return ["--hf-overrides", json.dumps({**theirs, **ours}), *rest]


def refuse(given: Mapping[str, object], settings: Settings) -> None:
    """Raises UnsupportedError for an option that cannot go with pruning, as far as it stands on the command line;
    ConfigError for processor arguments that are no object."""
    compilation = given.get("compilation_config")
    compilation = compilation if isinstance(compilation, Mapping) else {}
    kwargs = given.get("mm_processor_kwargs", {})
    if not isinstance(kwargs, Mapping):
        raise ConfigError(f"--mm-processor-kwargs {kwargs!r} is no object; possible: JSON such as {{\"key\": 1}}")
    tower, stages = "enable_tower_connector_lora", given.get("pipeline_parallel_size")
    mm = {"mm_encoder_tp_mode": None, **given}
    config = SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=SimpleNamespace(**mm)),
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages if isinstance(stages, int) else 1),
        compilation_config=SimpleNamespace(**compilation),
        lora_config=SimpleNamespace(**{tower: given.get(tower, False)}),
        speculative_config=given.get("speculative_config"),
        ec_transfer_config=given.get("ec_transfer_config"),
    )
    refuse_engine(config, settings.stage.stage.needs(settings.family.encoder))


def check(model: str, words: Iterable[str], settings: Settings) -> str:
    """Has vLLM read and check the options as `vllm serve` would, up to the start of an engine; returns how far it came.

    Quiet. Raises ConfigError in one line for what vLLM does not know or accept, and as `refuse_engine`.
    """
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"  # read once, when vLLM is imported
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext

        found = _read(model, list(words))
        if current_platform.is_unspecified():
            return "read by vLLM, not tried: it finds no device here"
        try:
            config = AsyncEngineArgs.from_cli_args(found).create_engine_config(UsageContext.OPENAI_API_SERVER)
        except (ValueError, TypeError, OSError, RuntimeError, NotImplementedError, ImportError) as error:
            reason = " ".join(str(error).split()).partition(" [type=")[0].split(" Value error, ")[-1]
            raise ConfigError(f"vLLM does not accept this: {reason[:300]}") from None
    refuse_engine(config, settings.stage.stage.needs(settings.family.encoder))
    return "accepted by vLLM"


def _read(model: str, words: list[str]) -> object:
    """What vLLM's own parser makes of the words; raises ConfigError."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    command = cmd_init()[0]
    own = command.subparser_init(parser.add_subparsers(dest="subparser"))

    def wrong(message: str) -> None:
        unknown = re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", message) if "unrecognized" in message else []
        known = [name for name in own._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(unknown[0].replace("_", "-"), known, 3, 0.7) if unknown else []
        raise ConfigError(f"vllm serve: {message}; possible: {', '.join(near) or 'see `vllm serve --help=all`'}")

    parser.error = own.error = wrong
    found = parser.parse_args(["serve", model, *words])
    found.model = model
    try:
        command.validate(found)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"vllm serve: {error}") from None
    return found
