"""Paper cards: the shipped ones agree with themselves and with vtc, bad ones are refused in a line, commands."""

import json
import shlex
import statistics
from pathlib import Path

import pytest
import yaml

import vtc
from vtc.core.errors import ConfigError
from vtc.eval.papers import cards, commands, load_card
from vtc.eval.running.eval_settings import parse_model_args
from vtc.eval.tasks import DIALECTS, TASKS

CARDS = {name: load_card(name) for name in cards()}
MODELS = [pytest.param(model, id=f"{name}-{i}") for name, card in CARDS.items() for i, model in enumerate(card.models)]
CLOSE = 0.35  # of a printed average, in points
ODD = "does not follow from the printed scores"  # the remark of rows whose printed average is another


def numbers(row) -> dict:
    """All scores of a row, also of benchmarks that vtc has not got."""
    return {k: None if s is None else s.value for k, s in row.scores.items()} | dict(row.others or {})


def test_cards_are_shipped():
    """Each has its paper's address, says that nothing has been measured yet, and gives reasons for differences."""
    rows = [row for card in CARDS.values() for model in card.models for row in model.rows]
    scores = sum(score is not None for row in rows for score in row.scores.values())
    averages = sum(row.average is not None for row in rows if row.strategy != "none")
    page = (Path(__file__).resolve().parent.parent / "docs" / "evaluate.md").read_text(encoding="utf-8")
    counted = f"{len(CARDS)} files in `configs/papers/` hold {scores:,} published scores and {averages} averages "
    assert counted in " ".join(page.split())
    for card in CARDS.values():
        assert card.url.startswith("https://arxiv.org/abs/")
        assert 2023 < card.year < 2027
        assert card.measured.startswith("nothing")
        assert card.differs


@pytest.mark.parametrize("model", MODELS)
def test_numbers_are_within_their_scales(model):
    """Per cent up to 100, OCRBench up to 1000 points, MME up to 2000 or, in total, 2800; averages below 110 %."""
    for row in model.rows:
        for task, score in row.scores.items():
            if score is not None:
                total = score.figure == "total"
                most = (2800 if total else 2000) if task == "mme" else score.scale or TASKS[task].scale
                least = most / 20 if task == "mme" else 0
                assert least <= score.value <= most, (row.label, task)
        assert row.average is None or 20 < row.average < 110


@pytest.mark.parametrize("model", MODELS)
def test_rows_can_be_asked_of_vtc(model):
    """Every strategy resolves for the model's family with the budget or settings that the row asks for."""
    for row in model.rows:
        if row.strategy in (None, "none") or (row.asked is None and row.settings is None):
            continue
        vtc.load_strategy(row.strategy, model.family, **({"keep": row.asked} if row.settings is None else row.settings))
    assert model.family in (None, *vtc.families())
    assert {model.dialect_of(task) for row in model.rows for task in row.scores} <= {None, *DIALECTS}
    assert set(model.average_over) <= set(numbers(model.rows[0]))


@pytest.mark.parametrize("model", MODELS)
def test_printed_averages_follow_from_the_scores(model):
    """The mean of the scores in % of the full model's, where a row has all of them; rows that say so are really odd."""
    full = numbers(model.rows[0])
    for row in model.rows:
        mine = numbers(row)
        keys = model.average_over or tuple(mine)
        if row.average is None or not keys or any(mine.get(k) is None or full.get(k) is None for k in keys):
            continue
        if model.average_is is None:
            mean = 100 * statistics.fmean(mine[k] / full[k] for k in keys)
        elif model.average_is == "plain mean of the scores":
            mean = statistics.fmean(mine[k] for k in keys)
        else:
            continue
        assert (abs(mean - row.average) <= CLOSE) == (ODD not in row.remark), (row.label, mean, row.average)


def test_enough_averages_are_checked():
    """Of the rows with an average most have all their scores, so that the test above says something of them."""
    rows = [(m, r) for card in CARDS.values() for m in card.models for r in m.rows if r.average and not m.average_is]
    whole = [r for m, r in rows if r.scores and None not in [*numbers(r).values(), *numbers(m.rows[0]).values()]]
    assert len(whole) > 0.8 * len(rows) > 300


@pytest.mark.parametrize("name", CARDS)
def test_commands_ask_for_every_row(name):
    """Each row of a prunable model with scores is asked for by one line, whose options are possible ones."""
    asked = set()
    for line in commands(CARDS[name]):
        words = shlex.split(line)
        assert words[:2] == ["vtc", "eval"]
        words = [w for w in words[2:] if w != "--pad-square"]
        pairs = list(zip(words[::2], words[1::2]))
        options = dict(pairs)
        parse_model_args(options["--model_args"])
        assert options["--against"] == name
        assert options.get("--dialect") in (None, *DIALECTS)
        settings = tuple(sorted(value for key, value in pairs if key == "--set"))
        for strategy in options["--strategy"].split(","):
            for keep in [None] if strategy == "none" else options.get("--keep", "").split(","):
                for task in options["--tasks"].split(","):
                    sets = () if strategy == "none" else settings
                    asked.add((options["--model"], strategy, keep or None, sets, task))
    for model in CARDS[name].models:
        for row in model.rows:
            keep = None if row.asked is None else str(row.asked)
            settings = tuple(sorted(f"{k}={v}" for k, v in (row.settings or {}).items()))
            wanted = {(model.checkpoint, row.strategy, keep, settings, t) for t, s in row.scores.items() if s}
            possible = model.family and row.strategy and (row.strategy == "none" or keep or row.settings is not None)
            if possible and any(any(r.scores.values()) for r in model.rows):
                assert wanted <= asked, row.label


SMALL = """
title: A paper
url: https://arxiv.org/abs/2501.00001
year: 2025
source: made up
models:
  - checkpoint: llava-hf/llava-1.5-7b-hf
    family: llava
    dialect: llava
    rows:
      - {strategy: none, label: Full, scores: {gqa: 60}, average: 100}
      - {strategy: hiprune, label: HiPrune, keep: 64, scores: {gqa: 50.5}}
measured: nothing
differs: [a reason]
"""


def test_a_card_of_ones_own(tmp_path):
    """A YAML file is read like a shipped card, and named after itself."""
    (tmp_path / "mine.yaml").write_text(SMALL, encoding="utf-8")
    card = load_card(tmp_path / "mine.yaml")
    assert card.name == "mine"
    assert card.models[0].rows[1].scores["gqa"].value == 50.5


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title: A paper", "titel: A paper", "unknown key 'titel': did you mean 'title'?"),
        ("year: 2025\n", "", "'year' is missing"),
        ("year: 2025", "year: soon", "year='soon'; possible: a whole number"),
        ("https://arxiv.org/abs/2501.00001", "arxiv", "url='arxiv'; possible: an address"),
        ("{gqa: 60}", "{gqs: 60}", "models[0].rows[0].scores: unknown task 'gqs': did you mean 'gqa'"),
        ("gqa: 50.5", "gqa: high", "models[0].rows[1].scores.gqa='high'; possible: a number as printed, or null"),
        ("gqa: 50.5", "gqa: .nan", "scores.gqa=nan; possible: a number"),
        ("gqa: 50.5", "gqa: true", "scores.gqa=True; possible: a number"),
        ("gqa: 50.5", "gqa: {value: 5, figur: x}", "rows[1].scores.gqa unknown key 'figur': did you mean 'figure'"),
        ("strategy: hiprune", "strategy: hiprun", "rows[1].strategy: unknown strategy 'hiprun': did you mean"),
        ("keep: 64", "keep: 1.5", "rows[1].keep=1.5; possible: tokens"),
        ("keep: 64", "keep: 64, set: {keep: 1.5}", "rows[1].set.keep=1.5; possible: tokens"),
        ("keep: 64", "keep: 64, set: {keep: 96, R: 1}", "possible: keep alone, or settings without it"),
        ("keep: 64", "keep: 64, set: 5", "rows[1].set=5; possible: a mapping"),
        ("strategy: none, label: Full", "strategy: none, label: Full, keep: 9", "a budget for strategy 'none'"),
        ("strategy: none", "strategy: null", "models[0].rows must begin with the full model"),
        ("family: llava", "family: lama", "models[0].family: unknown family 'lama': did you mean 'llava'"),
        ("dialect: llava", "dialect: lava", "models[0].dialect: unknown dialect 'lava': did you mean 'llava'"),
        ("differs: [a reason]", "differs: []", "differs=[]; possible: a list that is not empty"),
        ("year: 2025", "year: [", "is not valid (safe) YAML"),
    ],
)
def test_a_bad_card_is_one_clear_line(tmp_path, old, new, said):
    """The message is one line that names the place, the value and what is possible."""
    assert SMALL.count(old) == 1
    (tmp_path / "mine.yaml").write_text(SMALL.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_card(tmp_path / "mine.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("paper card 'mine': ") or "valid (safe) YAML" in message
    assert said in message


@pytest.mark.parametrize(("name", "said"), [("hiprun", "did you mean 'hiprune'"), ("no/such.yaml", "FILE.yaml")])
def test_an_unknown_card_names_those_that_exist(name, said):
    with pytest.raises(ConfigError, match="unknown paper card") as caught:
        load_card(name)
    assert said in str(caught.value)


def test_shipped_cards_are_plain_yaml():
    """Safe YAML without aliases or tags, so that any reader gets the same."""
    for name, file in cards().items():
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert json.loads(json.dumps(raw)) == raw, name
