"""A resolved strategy as YAML that explains itself: what each knob means, and its default for each family."""

import textwrap
from collections.abc import Sequence

import yaml

from vtc.config.knobs import as_lists, meanings
from vtc.config.resolve import resolve_written
from vtc.config.source import Written
from vtc.config.strategy import POSITIONS, StrategyConfig
from vtc.core.budget import ROUNDINGS, SCOPES
from vtc.core.errors import VtcError
from vtc.patches import FAMILIES

WIDTH = 100
OPTIONS = {
    "keep": "visual tokens that stay, as a fraction (0.25) or a number (192)",
    "scope": f"what a number of tokens is counted over: {', '.join(SCOPES)}",
    "rounding": f"of fraction x tokens: {', '.join(ROUNDINGS)}",
    "positions": f"of the tokens that stay, as they were or without gaps: {', '.join(POSITIONS)}",
}


def annotated(config: StrategyConfig, written: Sequence[Written]) -> str:
    """The dump of `config` as YAML with comments. written: what it was resolved from, which has the
    defaults."""
    defaults, dump = _Defaults(written), config.dump()
    lines = []
    for key, value in dump.items():
        if key != "stages":
            note = defaults.note(None, key, value) if key in OPTIONS else ""
            lines += [*_comment(OPTIONS.get(key, ""), note), *_yaml(key, value)]
    lines.append("stages:")
    for place, (stage, row) in enumerate(zip(config.stages, dump["stages"], strict=True)):
        described = OPTIONS | meanings(type(stage.stage))
        block = []
        for key, value in row.items():
            note = "" if key == "method" else defaults.note(place, key, value)
            block += [*_comment(described.get(key, ""), note), *_yaml(key, value)]
        lines += [f"{'  ' if i else '- '}{line}" for i, line in enumerate(block)]
    return "\n".join(lines)


class _Defaults:
    """A strategy without overrides, for any family and for each."""

    def __init__(self, written: Sequence[Written]):
        self.general = resolve_written(written)
        self.by_family = {}
        for family in FAMILIES.names():
            try:
                self.by_family[family] = resolve_written(written, family)
            except VtcError:  # not for this family
                continue

    def note(self, place: int | None, key: str, value: object) -> str:
        """The default of a key where `value` or a family departs from it. place: of the stage; None for what is the
        same for all."""
        general = _value(self.general, place, key)
        families: dict[str, list[str]] = {}
        for family, config in self.by_family.items():
            family_value = _value(config, place, key)
            if family_value != general:
                families.setdefault(_flow(family_value), []).append(family)
        if general is None and key == "keep" or not families and value == general:
            return ""
        return "; ".join([f"default: {_flow(general)}", *(f"{v} on {', '.join(f)}" for v, f in families.items())])


def _value(config: StrategyConfig, place: int | None, key: str) -> object:
    if place is None and key == "keep":
        return config.keep
    stage = config.stages[place or 0]  # the stage at the projector, which has scope and rounding, comes first
    return as_lists(getattr(stage if key in OPTIONS else stage.stage, key))


def _flow(value: object) -> str:
    """A value in one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _yaml(key: str, value: object) -> list[str]:
    return yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True).rstrip("\n").split("\n")


def _comment(meaning: str, note: str) -> list[str]:
    return [f"# {line}" for text in (meaning.removesuffix("."), note) for line in _wrapped(text)]


def _wrapped(text: str) -> list[str]:
    """Lines of WIDTH; a name such as paper-general stays whole."""
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
