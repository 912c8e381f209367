"""The settings of `vtc eval`: command-line options, which override those of a suite, checked before work starts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from os.path import isfile
from pathlib import Path

from vtc.core.errors import ConfigError, shown
from vtc.core.registry import unknown
from vtc.eval.data.docs import SUFFIXES, local
from vtc.io.plain_yaml import load, parse

GENERATED = ("demo", "demo_video")  # the tasks that take no data
_NUMBERS = {"limit": 1, "frames": 1, "batch_size": 1, "max_new_tokens": 1, "seed": 0}  # the least value of each


@dataclass(frozen=True)
class EvalSettings:
    """One grid of runs: strategies x keeps x tasks on one model.

    keeps: as text, None for each strategy's own budget. overrides: knobs and budget options for every strategy.
    batch_size, max_new_tokens, device, split, limit: None for the default of the model or task. dataset_path: data
    locations by task, with "" for all tasks that are not listed. videos: folders of videos, in the same form. frames:
    of each video, None for the task's own number. system: the text of a system turn. pad_square: pad pictures to
    squares with the processor's mean colour. against: paper cards to compare with. agreement: also run each sample
    unpruned, see `vtc.eval.running.agreement`.
    """

    output: Path
    model: str = "demo"
    model_args: dict = field(default_factory=dict)
    strategies: tuple[str, ...] = ("none",)
    keeps: tuple[str | None, ...] = (None,)
    overrides: dict = field(default_factory=dict)
    tasks: tuple[str, ...] = ("demo",)
    dialect: str = "llava"
    split: str | None = None
    dataset_path: dict = field(default_factory=dict)
    videos: dict = field(default_factory=dict)
    frames: int | None = None
    limit: int | None = None
    batch_size: int | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    device: str | None = None
    system: str | None = None
    pad_square: bool = False
    agreement: bool = False
    against: tuple[str, ...] = ()
    overwrite: bool = False

    def __post_init__(self):
        for name, least in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not least <= value < 2**63):
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} {shown(value)} is out of range; possible: a whole number >= {least}")
        if self.dataset_path and all(task in GENERATED for task in self.tasks):
            raise ConfigError(
                f"--dataset-path {shown(next(iter(self.dataset_path.values())))} is not for task {self.tasks[0]!r}, "
                "which generates its data; possible: --tasks with the benchmark of the data"
            )
        for name in ("strategies", "keeps", "tasks"):
            twice = {v for v in getattr(self, name) if getattr(self, name).count(v) > 1}
            if twice:
                values = ", ".join(sorted(map(repr, twice)))
                raise ConfigError(f"{values} is given twice; possible: each of {name} once")

    def place(self, task: str) -> str | None:
        """The location of a task's data, None for the task's default; raises ConfigError.

        A path for several tasks is a folder that has the data of each under the task's name.
        """
        if task in self.dataset_path:
            return self.dataset_path[task]
        shared = self.dataset_path.get("")
        if shared is None or task in GENERATED:
            return None
        named = [place for suffix in ("", *SUFFIXES) if local(place := str(Path(shared) / (task + suffix)))]
        if named:
            return named[0]
        if sum(other not in GENERATED for other in self.tasks) > 1:
            raise ConfigError(
                f"--dataset-path {shown(shared)} has nothing for task {task!r}; possible: a folder with {task}/ in it, "
                f"or {task}=PATH"
            )
        return shared

    def task(self, kind: type) -> object:
        """The benchmark of this class in the dialect, with the videos and frames of one that takes them."""
        clips = {"frames": self.frames, "videos": self.videos.get(kind.name, self.videos.get(""))}
        return kind(dialect=self.dialect, **(clips if kind.takes_clips else {}))


_LISTS = {"strategy": "strategies", "keep": "keeps", "tasks": "tasks", "against": "against"}
_PLAIN = (
    "model", "dialect", "split", "limit", "frames", "batch_size", "max_new_tokens", "seed", "device", "system",
    "pad_square", "overwrite",
)  # fmt: skip


_TEXT, _WORD, _NESTED = "text", "true or false", "KEY=VALUE,KEY=VALUE or a mapping of names to values"
_KINDS = {
    **dict.fromkeys(("model", "dialect", "split", "device", "system", "output"), (_TEXT, (str, Path))),
    **dict.fromkeys(("pad_square", "overwrite"), (_WORD, bool)), "set": ("a mapping of names to values", Mapping),
    **dict.fromkeys(("model_args", "dataset_path", "videos"), (_NESTED, (str, Mapping))),
}  # fmt: skip


def _typed(options: Mapping) -> None:
    """Raises ConfigError for an option of a suite with the wrong type."""
    for name, (possible, kinds) in _KINDS.items():
        value = options.get(name, "")
        named = not isinstance(value, Mapping) or all(isinstance(key, str) for key in value)
        if name in options and not (isinstance(value, kinds) and named):
            raise ConfigError(f"--{name.replace('_', '-')} {shown(value)} is not possible; possible: {possible}")


def settings_from(suite: str | None, options: Mapping) -> EvalSettings:
    """Settings from command-line options (None: not given), which override those of the suite file.

    Raises ConfigError in one line for an unknown suite or option, and if the model or the output folder is missing.
    """
    given = {key: value for key, value in options.items() if value is not None and value != {}}
    merged = {**(_suite(suite, list(options)) if suite else {}), **given}
    for needed in ("model", "strategy", "output"):
        if needed not in merged:
            raise ConfigError(f"--{needed} is missing; see `vtc eval --help`")
    _typed(merged)
    values = {key: merged[key] for key in _PLAIN if key in merged}
    values |= {key: int(text) for key in _NUMBERS if re.fullmatch("[0-9]{1,20}", text := str(values.get(key)))}
    values |= {field_: split_list(key, merged[key]) for key, field_ in _LISTS.items() if key in merged}
    overrides = merged.get("set", {})
    if "keep" in overrides:
        raise ConfigError("--set keep=... is not possible here; possible: --keep")
    model_args = parse_model_args(merged.get("model_args", {}))
    folders = {}
    for name in ("dataset_path", "videos"):
        folders[name] = parse_places(merged.get(name, {}), name)
        if name in given:
            check_places(folders[name], values.get("tasks"), name)
    return EvalSettings(output=Path(merged["output"]), overrides=overrides, model_args=model_args, **folders, **values)


def check_places(places: Mapping, tasks: tuple[str, ...] | None, option: str = "dataset_path") -> None:
    """Raises ConfigError for data locations that no task of the run would use."""
    option = option.replace("_", "-")
    if tasks is None:
        raise ConfigError(
            f"--{option} {shown(next(iter(places.values())))} has data, but --tasks does not say of what; "
            "possible: --tasks with the benchmark of the data, see `vtc eval tasks`"
        )
    for task in places:
        if task and task not in tasks:
            raise ConfigError(unknown(f"task in --{option}", task, list(tasks)))


def _suite(name: str, possible: list[str]) -> dict:
    folder = files("vtc.configs") / "eval"
    shipped = {f.name[: -len(".yaml")]: f for f in folder.iterdir() if f.name.endswith(".yaml")}
    if name not in shipped and not isfile(name):
        raise ConfigError(unknown("suite", name, [*sorted(shipped), "FILE.yaml"]))
    raw = load(shipped.get(name, Path(name)), f"suite {shown(name)}", "a file that can be read")
    if not isinstance(raw, dict):
        kind = type(raw).__name__
        raise ConfigError(f"suite {shown(name)} holds {kind}; possible: a mapping of {', '.join(possible)}")
    for key in raw:
        if key not in possible:
            raise ConfigError(unknown(f"option in suite {shown(name)}", key, possible))
    return {key: value for key, value in raw.items() if value is not None}


def split_list(name: str, value: object) -> tuple[str, ...]:
    """The texts of a comma-separated list or of a YAML list; raises ConfigError for an empty entry."""
    parts = value if isinstance(value, list) else str(value).split(",")
    parts = tuple(str(part).strip() for part in parts)
    if not all(parts):
        raise ConfigError(f"--{name} {shown(value)} has an empty entry; possible: values and commas, such as a,b")
    return parts


def parse_places(value: str | Mapping, name: str = "dataset_path") -> dict[str, str]:
    """Locations by task ("" for all) from `PATH` or `task=PATH,task=PATH`; raises ConfigError for an empty path."""
    if isinstance(value, Mapping):
        return {str(key): str(path) for key, path in value.items()}
    places = {}
    for part in value.split(",") if re.match(r"\w+=", value) else [value]:
        task, _, path = part.partition("=") if re.match(r"\w+=", part) else ("", "=", part)
        if not path.strip():
            option = f"--{name.replace('_', '-')} {shown(value)}"
            raise ConfigError(f"{option} has an empty path; possible: PATH, or task=PATH,task=PATH")
        places[task] = path.strip()
    return places


def parse_model_args(value: str | Mapping) -> dict:
    """Keyword arguments from text such as `dtype=float16,attn_implementation=sdpa`; values are parsed as (safe) YAML.

    Raises ConfigError for text that is not a KEY=VALUE list.
    """
    if isinstance(value, Mapping):
        return dict(value)
    args = {}
    for part in value.split(","):
        key, sign, text = part.partition("=")
        if not sign or not key.strip().isidentifier():
            raise ConfigError(f"--model_args {shown(part)} is no argument; possible: KEY=VALUE, such as dtype=float16")
        args[key.strip()] = parse(text, f"--model_args {shown(part)}: the value")
    return args
