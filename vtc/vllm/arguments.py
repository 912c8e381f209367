"""The words of a `vllm serve` command line, read without vLLM and checked with it."""

import contextlib
import difflib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from vtc.core.errors import ConfigError, cut, reason, shown
from vtc.io.plain_yaml import load
from vtc.vllm.refusals import refuse_engine
from vtc.vllm.settings import ServedStrategy

OVERRIDES = "hf_overrides"
SHORT = {"pp": "pipeline_parallel_size", "cc": "compilation_config", "sc": "speculative_config"}
"""Short forms of the options that are read here."""

OWN = ("strategy", "keep", "max_keep", "set", "check")
TEXTS = ("config", "revision", "hf_config_path")
FLAGS = ("enable_tower_connector_lora", "enable_mm_embeds", "trust_remote_code", "trust_request_mm_kwargs")
NESTED = ("mm_processor_kwargs", "ec_transfer_config", "compilation_config", "speculative_config")
READ = (
    *OWN, *TEXTS, *FLAGS, *NESTED, OVERRIDES, "pipeline_parallel_size", "mm_encoder_tp_mode", "video_pruning_rate",
    "served_model_name", "dtype", "model",
)  # fmt: skip
"""What vtc has to see: vLLM also takes unique beginnings of its options, which would go around the checks here."""


def split(words: Sequence[str]) -> list[list[str]]:
    """Each option with the words of its value; raises ConfigError for words that are neither."""
    options: list[list[str]] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            options.append([word])
        elif not options or word.startswith("-") and not re.fullmatch(r"-\d*", word):
            possible = "--NAME=VALUE" if options else "--NAME VALUE after the model"
            raise ConfigError(f"{shown(word)} is no option of vllm serve; possible: {possible}")
        else:
            options[-1].append(word)
    return options


def parse(option: Sequence[str]) -> tuple[str, object]:
    """An option's name as vLLM stores it, and its value: parsed as JSON where it is JSON, else text; True without one.

    Raises ConfigError for a word that is no option. `--name.key value` is `name` with {key: value}, `--no-name` of a
    flag is `name` with False.
    """
    first, equals, value = option[0].partition("=")
    if not re.fullmatch(r"--?[A-Za-z][\w-]*(\.[^.\s]+)*", first):
        raise ConfigError(f"{shown(first)} is no option of vllm serve; possible: --NAME VALUE after the model")
    spelled, *path = first.lstrip("-").split(".")
    value_words = [value] * bool(equals) + list(option[1:])
    name = _name(first, spelled)
    if name == OVERRIDES and any(key.endswith("+") for key in path):
        raise ConfigError(f"{shown(first)} adds to a list, which vtc does not read; possible: --hf-overrides JSON")
    if (path or name in TEXTS) and len(value_words) != 1:
        raise ConfigError(f"{shown(first)} has {len(value_words)} values; possible: {cut(first, 100)}=VALUE")
    parsed: object = True if not value_words else value_words[0] if len(value_words) == 1 else value_words
    if isinstance(parsed, str) and name not in TEXTS:
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(parsed)
    for key in reversed(path):
        parsed = {key: parsed}
    if name.removeprefix("no_") in FLAGS and name.startswith("no_"):
        return name.removeprefix("no_"), False
    return name, parsed


def _name(first: str, spelled: str) -> str:
    """The option that the part of a word before dots and `=` names; raises ConfigError for an abbreviation or an option
    of vtc."""
    name = SHORT.get(spelled, spelled).replace("-", "_")
    long = [f"--{n.replace('_', '-')}" for n in READ if n.startswith(name) and n != name and first.startswith("--")]
    long = long or [f"-{n}" for n in SHORT if n.startswith(spelled) and n != spelled and not first.startswith("--")]
    if long and name not in READ:
        raise ConfigError(f"{shown(first)} is an abbreviation; possible: {' or '.join(long)}, in full")
    if name in OWN:
        raise ConfigError(f"{shown(first)} is an option of vtc serve; possible: on the command line, before any --")
    if name == "model":
        raise ConfigError("--model stands beside MODEL; possible: vtc serve MODEL, then all other options")
    return name


def merged(old: object, new: object) -> object:
    """`new` over `old`: two mappings key by key, everything else as a whole."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def values(words: Sequence[str]) -> dict[str, object]:
    """The options by name, those of a `--config` file too, on which the command line has precedence.

    Raises ConfigError for an option that vtc reads in several forms: which of them wins in vLLM depends on the form.
    """
    options = split(words)
    files = [value for name, value in map(parse, options) if name == "config"]
    if len(files) > 1:
        raise ConfigError(f"--config stands {len(files)} times; possible: once")
    result: dict[str, object] = {}
    forms: dict[str, set[str]] = {}
    for option in [*(split(_file(str(files[0]))) if files else []), *options]:
        name, value = parse(option)
        result[name] = merged(result.get(name), value)
        start, dot, _ = option[0].partition("=")[0].partition(".")
        forms.setdefault(name, set()).add(start.replace("_", "-") + dot if dot else "")
    for name in NESTED:
        if len(forms.get(name, ())) > 1:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is given in several forms; possible: {option} JSON, once")
    return result


def _file(path: str) -> list[str]:
    """The words that vLLM makes of a file of options; raises ConfigError."""
    what, possible = f"--config {shown(path)}", "a YAML file of options"
    if not path.endswith((".yaml", ".yml")):
        raise ConfigError(f"{what} does not end in .yaml or .yml; possible: {possible}")
    data = load(Path(path), what, possible)
    if not isinstance(data, dict):
        raise ConfigError(f"{what} is no mapping; possible: {possible}")
    words = []
    for key, value in data.items():
        if not isinstance(key, str) or key == "config":
            raise ConfigError(f"{what} has the key {shown(key)}; possible: names of options without --")
        if value is False:  # vLLM leaves it out, or negates it
            words += [f"--no-{key}"] * (key.replace("-", "_") in FLAGS)
        elif value is True:
            words.append(f"--{key}")
        else:
            listed = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            words += [f"--{key}", *map(str, listed)] if listed else []
    return words


def with_overrides(words: Sequence[str], overrides: Mapping[str, object]) -> list[str]:
    """The same words with `overrides` in `--hf-overrides`, beside what these contain already.

    Raises ConfigError where both have a key, or where the words' own are no JSON object.
    """
    user_overrides = values(words).get(OVERRIDES, {})
    if not isinstance(user_overrides, Mapping):
        raise ConfigError(f'--hf-overrides {shown(user_overrides)} is no object; possible: JSON such as {{"key": 1}}')
    both = sorted(set(user_overrides) & set(overrides))
    if both:
        raise ConfigError(f"--hf-overrides names {', '.join(both)}, which vtc sets; possible: without")
    other_words = []
    for option in split(words):
        name, value = parse(option)
        if name != OVERRIDES:  # vLLM reads a file only where --config is a word of its own
            other_words += ["--config", str(value)] if name == "config" else option
    return ["--hf-overrides", json.dumps({**user_overrides, **overrides}), *other_words]


def refuse(given: Mapping[str, object], settings: ServedStrategy) -> None:
    """Raises UnsupportedError for an option that cannot go with pruning, as far as it stands on the command line;
    ConfigError for a value that is no object or no number where it has to be one."""
    compilation, kwargs = (given.get(name, {}) for name in ("compilation_config", "mm_processor_kwargs"))
    if type(compilation) is int:  # a level
        compilation = {}
    for name, value in (("compilation-config", compilation), ("mm-processor-kwargs", kwargs)):
        if not isinstance(value, Mapping):
            raise ConfigError(f'--{name} {shown(value)} is no object; possible: JSON such as {{"key": 1}}')
    tower, stages = "enable_tower_connector_lora", given.get("pipeline_parallel_size", 1)
    if type(stages) is not int:
        raise ConfigError(f"--pipeline-parallel-size {shown(stages)} is no whole number; possible: 1")
    mm = {"mm_encoder_tp_mode": None, **given}
    config = SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=SimpleNamespace(**mm)),
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
        compilation_config=SimpleNamespace(**compilation),
        lora_config=SimpleNamespace(**{tower: given.get(tower, False)}),
        speculative_config=given.get("speculative_config"),
        ec_transfer_config=given.get("ec_transfer_config"),
    )
    refuse_engine(config, settings.stage.stage.needs(settings.family.encoder))


def check(model: str, words: Iterable[str], settings: ServedStrategy) -> str:
    """Has vLLM read and check the options as `vllm serve` would, up to the start of an engine; returns how far it got.

    Quiet. Raises ConfigError in one line for what vLLM does not know or accept, and as `refuse_engine`.
    """
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"  # read once, when vLLM is imported
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext

        arguments = _read(model, list(words))
        if current_platform.is_unspecified():
            return "read by vLLM, not tried: it finds no device here"
        try:
            config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
        except Exception as error:
            why = reason(error, 10_000).partition(" [type=")[0].split(" Value error, ")[-1]
            raise ConfigError(f"vLLM does not accept this: {cut(why, 300)}") from None
    refuse_engine(config, settings.stage.stage.needs(settings.family.encoder))
    return "accepted by vLLM"


def _read(model: str, words: list[str]) -> object:
    """What vLLM's own parser makes of the words; raises ConfigError."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    command = cmd_init()[0]
    serve_parser = command.subparser_init(parser.add_subparsers(dest="subparser"))

    def wrong(message: str) -> None:
        unknown = re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", message) if "unrecognized" in message else []
        known = [name for name in serve_parser._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(unknown[0].replace("_", "-"), known, 3, 0.7) if unknown else []
        raise ConfigError(f"vllm serve: {message}; possible: {', '.join(near) or 'see `vllm serve --help=all`'}")

    parser.error = serve_parser.error = wrong
    try:
        arguments = parser.parse_args(["serve", model, *words])
        arguments.model = model
        command.validate(arguments)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"vllm serve: {reason(error)}") from None
    return arguments
