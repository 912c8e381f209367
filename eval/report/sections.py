"""Sections of comparable runs: the same model and samples, with the same prompts and scoring."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vtc.eval.report.read import Entry
from vtc.eval.results.compare import SAME
from vtc.eval.results.differences import differences as entries_apart

MODEL = "model"
ROUNDED = 0.05  # shares of tokens within this relative difference are one budget
BUDGETS = ("keep", "budget")  # keys of a resolved strategy that are budgets, not settings of the method
MOST_SERIES = 16
SHOWN = 40  # characters of a value in a label


@dataclass
class Section:
    """Comparable entries, the unpruned model first. conditions: per task, the values of `SAME`; labels: a unique label
    per entry; variants: the same without the seed; duplicates: the number of entries dropped as duplicate runs."""

    model: Mapping
    entries: list[Entry] = field(default_factory=list)
    conditions: dict[str, Mapping] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    duplicates: int = 0

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of their first run."""
        return list(self.conditions)

    def series(self) -> list[str]:
        """The series of colours and legend, without `none`: methods with their settings, or only methods if there would
        be too many series."""
        return sorted({self.series_of(i) for i, entry in enumerate(self.entries) if not entry.full})

    def series_of(self, i: int) -> str:
        """The series of an entry."""
        variants = {v for v, entry in zip(self.variants, self.entries) if not entry.full}
        return self.variants[i] if len(variants) <= MOST_SERIES else method_of(self.entries[i])


def method_of(entry: Entry) -> str:
    """The method's name, with a note if its pictures were only blurred."""
    return entry.run["method"]["name"] + (" (blur)" if entry.blurred else "")


def conditions(run: Mapping) -> dict[str, dict]:
    """Per task of a run, the conditions that must be equal for a comparison."""
    return {name: {key: task.get(key) for key in SAME} for name, task in run["tasks"].items()}


def split(entries: Iterable[Entry]) -> list[Section]:
    """Sections in which any two runs have the same model and, on each task that both have, the same conditions.

    The largest comes first; ties are in the order of their first run.
    """
    sections: list[Section] = []
    for entry in entries:
        new = conditions(entry.run)
        if not new:
            continue
        fits = (s for s in sections if s.model == entry.run["model"] and _agree(s.conditions, new))
        section = next(fits, None)
        if section is None:
            section = Section(entry.run["model"])
            sections.append(section)
        section.conditions = {**section.conditions, **{k: v for k, v in new.items() if k not in section.conditions}}
        if any(_keys(entry) == _keys(other) for other in section.entries):
            section.duplicates += 1
        else:
            section.entries.append(entry)
    for section in sections:
        section.entries.sort(key=lambda entry: not entry.full)
        section.labels, section.variants = _labels(section.entries)
    return sorted(sections, key=lambda section: -len(section.entries))


def _agree(known: Mapping, new: Mapping) -> bool:
    """Whether all shared tasks have equal conditions or, if there are none, dialects and prompts are the same."""
    shared = known.keys() & new.keys()
    if shared:
        return all(known[name] == new[name] for name in shared)
    prompts = [{(str(c["dialect"]), repr(c["prompt"])) for c in side.values()} for side in (known, new)]
    return prompts[0] == prompts[1]


def _keys(entry: Entry) -> tuple:
    return entry.name, *sorted((name, task["key"]) for name, task in entry.run["tasks"].items())


def differences(first: Section, other: Section) -> list[str]:
    """How two sections differ, such as `gqa: split 'test' instead of 'tune'`."""
    reasons = [f"{MODEL}: {text}" for text in _differ(first.model, other.model)]
    for task in other.tasks:
        if task not in first.conditions:
            reasons.append(f"task {task}, which only this section has")
            continue
        base, here = first.conditions[task], other.conditions[task]
        texts = _differ(base, here)
        if base["split"] != here["split"]:  # the other differences follow from it
            texts = [text for text in texts if not text.startswith(("ids ", "data.split "))]
        for text in texts:
            if text.startswith("ids "):
                sizes = [_samples(section, task) for section in (other, first)]
                text = "{} samples instead of {}".format(*sizes) if sizes[0] != sizes[1] else "different samples"
            reasons.append(f"{task}: {text}")
    return reasons


def _differ(base: Mapping, here: Mapping) -> list[str]:
    return [f"{place} {new!r} instead of {old!r}" for place, old, new in entries_apart(base, here)]


def _samples(section: Section, task: str) -> int:
    result = next(entry.run["tasks"][task] for entry in section.entries if task in entry.run["tasks"])
    return result["n"] + result["n_errors"]


def _labels(entries: list[Entry]) -> tuple[list[str], list[str]]:
    """Labels: the method, the settings in which its runs of equal budget differ, and seed and folder if needed; and
    variants, which have neither seed nor folder."""
    plain: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        plain[method_of(entry)].append(entry)
    varying = {name: _varying(members) for name, members in plain.items()}
    variants = []
    for entry in entries:
        settings = flat(entry.run)
        shown = [f"{_short(key, settings)}={_text(settings.get(key))}" for key in varying[method_of(entry)]]
        variants.append(" ".join([method_of(entry), *shown]))
    labels = _unique(list(variants), entries, lambda entry: f"seed {entry.run['seeds'].get('torch')}")
    return _unique(labels, entries, lambda entry: entry.source), variants


def _varying(entries: list[Entry]) -> list[str]:
    combinations: dict[str, set] = defaultdict(set)
    keys = sorted({key for entry in entries for key in flat(entry.run)})
    for entry in entries:
        settings = flat(entry.run)
        for key in keys:
            combinations[key].add((repr(entry.run["method"]["budget"]), repr(settings.get(key))))
    return [key for key in keys if len(combinations[key]) > len({budget for budget, _ in combinations[key]})]


def flat(run: Mapping) -> dict[str, object]:
    """The settings of the resolved strategy without budget and seed; those of stage i as `i.KEY`."""
    resolved = run["method"].get("resolved") or {}
    settings = {key: value for key, value in resolved.items() if key != "stages" and key not in BUDGETS}
    for i, stage in enumerate(resolved.get("stages", [])):
        settings |= {f"{i}.{key}": v for key, v in stage.items() if key not in (*BUDGETS, "seed", "method")}
    return settings


def _short(key: str, settings: Mapping) -> str:
    """A key without the stage's number if no other stage has it."""
    bare = key.partition(".")[2] or key
    return bare if sum((other.partition(".")[2] or other) == bare for other in settings) == 1 else key


def _text(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _unique(labels: list[str], entries: list[Entry], more) -> list[str]:
    """Appends `more` to labels that occur twice with the same budget, if that makes them different."""
    budgets = [entry.run["method"]["budget"] for entry in entries]
    unique = list(labels)
    for pair in dict.fromkeys(zip(labels, budgets)):
        same = [i for i, other in enumerate(zip(labels, budgets)) if other == pair]
        if len(same) > 1 and len({more(entries[i]) for i in same}) > 1:
            for i in same:
                unique[i] = f"{labels[i]} ({more(entries[i])})"
    return unique
