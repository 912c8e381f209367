"""What may be compared: runs on one model, on the same samples, asked and scored in the same way, make a section."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vtc.eval.report.read import Entry
from vtc.eval.results.compare import SAME
from vtc.eval.results.differences import differences as entries_apart

MODEL = "model"
ROUNDED = 0.05  # shares of tokens with a smaller ratio between them are one budget
BUDGETS = ("keep", "budget")  # of a resolved strategy: what is asked for, no setting of the method
MOST_SERIES = 16
SHOWN = 40  # characters of a value in a label


@dataclass
class Section:
    """Entries that are comparable, the unpruned model first. conditions: per task, the values of `SAME`; labels: per
    entry, unique; variants: the same without the seed; duplicates: entries left out since they are the same run."""

    model: Mapping
    entries: list[Entry] = field(default_factory=list)
    conditions: dict[str, Mapping] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    duplicates: int = 0

    @property
    def tasks(self) -> list[str]:
        """In the order of their first run."""
        return list(self.conditions)

    def series(self) -> list[str]:
        """What colours and legend tell apart, `none` left out: methods with their settings, or methods alone where
        those would be too many."""
        return sorted({self.series_of(i) for i, entry in enumerate(self.entries) if not entry.full})

    def series_of(self, i: int) -> str:
        """The series of an entry."""
        variants = {v for v, entry in zip(self.variants, self.entries) if not entry.full}
        return self.variants[i] if len(variants) <= MOST_SERIES else method_of(self.entries[i])


def method_of(entry: Entry) -> str:
    """The method's name; of pictures that were only blurred, that too."""
    return entry.run["method"]["name"] + (" (blur)" if entry.blurred else "")


def conditions(run: Mapping) -> dict[str, dict]:
    """Per task of a run, what must be equal for a comparison."""
    return {name: {key: task.get(key) for key in SAME} for name, task in run["tasks"].items()}


def split(entries: Iterable[Entry]) -> list[Section]:
    """Sections in which every two runs have the same model and, on each task that both have, the same conditions.

    The largest comes first, equal ones in the order of their first run.
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
    """Whether all shared tasks have equal conditions; runs that share none stay together if they are asked alike."""
    shared = known.keys() & new.keys()
    if shared:
        return all(known[name] == new[name] for name in shared)
    prompts = [{(str(c["dialect"]), repr(c["prompt"])) for c in side.values()} for side in (known, new)]
    return prompts[0] == prompts[1]


def _keys(entry: Entry) -> tuple:
    return entry.name, *sorted((name, task["key"]) for name, task in entry.run["tasks"].items())


def differences(first: Section, other: Section) -> list[str]:
    """What keeps two sections apart, as `gqa: split 'test' (there 'tune')`."""
    reasons = [f"{MODEL}: {text}" for text in _differ(first.model, other.model)]
    for task in other.tasks:
        if task not in first.conditions:
            reasons.append(f"task {task} (not there)")
            continue
        base, here = first.conditions[task], other.conditions[task]
        texts = _differ(base, here)
        if base["split"] != here["split"]:  # whatever else follows from it
            texts = [text for text in texts if not text.startswith(("ids ", "data.split "))]
        for text in texts:
            if text.startswith("ids "):
                sizes = [_samples(section, task) for section in (other, first)]
                text = "samples: {} (there {})".format(*sizes) if sizes[0] != sizes[1] else "samples: others"
            reasons.append(f"{task}: {text}")
    return reasons


def _differ(base: Mapping, here: Mapping) -> list[str]:
    return [f"{place} {new!r} (there {old!r})" for place, old, new in entries_apart(base, here)]


def _samples(section: Section, task: str) -> int:
    result = next(entry.run["tasks"][task] for entry in section.entries if task in entry.run["tasks"])
    return result["n"] + result["n_errors"]


def _labels(entries: list[Entry]) -> tuple[list[str], list[str]]:
    """Method and the settings in which runs of one method and budget differ; then seed and folder, if needed."""
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
    """The resolved strategy's settings without budget and seed, those of stage i as `i.KEY`."""
    resolved = run["method"].get("resolved") or {}
    settings = {key: value for key, value in resolved.items() if key != "stages" and key not in BUDGETS}
    for i, stage in enumerate(resolved.get("stages", [])):
        settings |= {f"{i}.{key}": v for key, v in stage.items() if key not in (*BUDGETS, "seed", "method")}
    return settings


def _short(key: str, settings: Mapping) -> str:
    """Without the stage's number where no other stage has the key."""
    bare = key.partition(".")[2] or key
    return bare if sum((other.partition(".")[2] or other) == bare for other in settings) == 1 else key


def _text(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _unique(labels: list[str], entries: list[Entry], more) -> list[str]:
    """Adds `more` to labels that stand twice with the same budget, if it tells them apart."""
    budgets = [entry.run["method"]["budget"] for entry in entries]
    unique = list(labels)
    for pair in dict.fromkeys(zip(labels, budgets)):
        same = [i for i, other in enumerate(zip(labels, budgets)) if other == pair]
        if len(same) > 1 and len({more(entries[i]) for i in same}) > 1:
            for i in same:
                unique[i] = f"{labels[i]} ({more(entries[i])})"
    return unique
