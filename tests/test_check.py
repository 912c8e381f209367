"""`vtc check`: every shipped method and family passes, each kind of wrong method fails its row, in one line."""

import importlib
import json

import pytest
import torch

import vtc
from tests import helpers_wrong
from tests.helpers import CLIPS, IN_ENCODER, model_of
from tests.test_cli import run
from vtc.check import behaviour, contract_table, outcome
from vtc.check.contract import CONTRACT
from vtc.check.outcome import Verdict, of_method
from vtc.check.trial import Tiny, Trial
from vtc.check.verdicts import Violation
from vtc.engine import reports
from vtc.engine.patch import Patch
from vtc.patches import FAMILIES
from vtc.patches._family import Family
from vtc.patches.llava import Llava

COUNT, ORDER, TIES, PRECISION, BATCH, PADDING, TWICE, ALL, DECODING, REPORT, REMOVED = CONTRACT
WRONG = {
    "Unsorted": (ORDER, "does not ascend"),
    "TooMany": (COUNT, "keeps 21 of 64 tokens where the budget says 20"),
    "Outside": (ORDER, "not inside 0 to 63"),
    "OfTheBatch": (BATCH, "prompt 0 in a batch padded on the left keeps different tokens"),
    "HalfScores": (PRECISION, "gives bfloat16"),
    "OwnPrecision": (PRECISION, "differently from the same numbers in float32"),
    "Unseeded": (TWICE, "in a second run keeps different tokens"),
    "HigherFirst": (TIES, "equal in every signal"),
    "Exits": (REPORT, "SystemExit: 0"),
    "Crashes": (REPORT, "ZeroDivisionError: "),
}


def place(name: str) -> str:
    """A wrong method as MODULE:CLASS."""
    return f"{helpers_wrong.__name__}:{name}"


def verdicts(name: str, family: str = "llava") -> dict[str, Verdict]:
    """The table of a method on one family, by property."""
    table = of_method(place(name), [family], {}, lambda what: None)
    return {row: found[family] for row, found in table.rows.items()}


QUICK = ("hiprune", "tome", "transprune")  # one at each site; the others' contract has its own tests in `make test`


@pytest.mark.product
@pytest.mark.parametrize("family", vtc.families())
@pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in vtc.strategies()]
)
def test_what_vtc_brings_keeps_the_contract(strategy, family):
    """Every property of every method on every family; on clips of methods that compare frames."""
    if strategy in CLIPS and FAMILIES[family].video is None:
        pytest.skip(f"{family} takes no clips; refused in test_video_models.py")
    table = of_method(strategy, [family], {}, lambda what: None)
    assert not [(name, verdict) for name, row in table.rows.items() if (verdict := row[family]).state == "FAILED"]
    undone = {name for name, row in table.rows.items() if row[family].state == "-"}
    own_counts = any(getattr(stage.stage, "own_counts", False) for stage in vtc.load_strategy(strategy, family).stages)
    assert undone <= {TIES, *([COUNT] if strategy in IN_ENCODER or own_counts else [])}


def test_a_good_method_passes_everything():
    assert {verdict.state for verdict in verdicts("Good").values()} == {"ok"}


@pytest.mark.product(cases=4)
@pytest.mark.parametrize("name", WRONG)
def test_each_kind_of_wrong_method_fails(name):
    """Its own property fails, with what was seen, in one line without control characters."""
    row, why = WRONG[name]
    found = verdicts(name)
    assert found[row].state == "FAILED"
    assert why in found[row].why
    assert all(verdict.why.isprintable() and len(verdict.why) < 500 for verdict in found.values())


@pytest.mark.full
def test_wrong_methods_fail_nothing_else():
    """A method that only ties wrongly, or only rounds, is not blamed for more."""
    for name in ("HigherFirst", "HalfScores", "OwnPrecision"):
        assert [row for row, verdict in verdicts(name).items() if verdict.state == "FAILED"] == [WRONG[name][0]]


def trial() -> Trial:
    """A good method on the shared model of LLaVA."""
    return Trial(place("Good"), Tiny("llava", model=model_of("llava")), {})


def broken_keep_all(monkeypatch):
    """A patch that keeps everything writes on the model all the same."""
    put_on = Patch.put_on

    def wrong(self):
        put_on(self)
        self.patchwork.post_hook(self.family.model, lambda module, args, kwargs, out: out.logits.add_(1).sum() and None)

    monkeypatch.setattr(Patch, "put_on", wrong)


def broken_decoding(monkeypatch):
    """Positions at decode are off by one."""
    continued = Patch._continue

    def wrong(self, call, prompt, kwargs):
        continued(self, call, prompt, kwargs)
        kwargs["position_ids"] = kwargs["position_ids"] + 1

    monkeypatch.setattr(Patch, "_continue", wrong)


def broken_report(monkeypatch):
    """A report with another length of the cache."""
    lengths = reports.cache_lengths
    monkeypatch.setattr("vtc.engine.patch.cache_lengths", lambda *given: [n + 1 for n in lengths(*given)])


def broken_removal(monkeypatch):
    """Something stays."""
    take_off = Patch.take_off

    def wrong(self):
        take_off(self)
        self.family.model.left_behind = object()

    monkeypatch.setattr(Patch, "take_off", wrong)


@pytest.mark.parametrize(
    ("check", "broken", "why"),
    [
        (behaviour.keep_all, broken_keep_all, "keep=1.0 changes the logits"),
        (behaviour.decoding, broken_decoding, "the logits of step 1 computed anew are off by"),
        (behaviour.reported, broken_report, "lengths of the KV cache: the report says"),
        (behaviour.removed, broken_removal, "something is left on ''"),
    ],
)
def test_each_property_of_the_engine_can_fail(check, broken, why, monkeypatch):
    """The rows that no method can break by itself, with a patch that is wrong."""
    one = trial()
    check(one)
    broken(monkeypatch)
    with pytest.raises(Violation, match=why):
        check(one)
    vars(one.model).pop("left_behind", None)


def test_padding_that_is_looked_at_is_seen():
    """A method that reads what stands in the padding."""
    one = trial()
    behaviour.padding(one)
    run = one.run

    def reading(inputs=None, **changes):
        found = run(inputs, **changes)
        found.report.images[0].steps[0].kept += int(inputs["input_ids"][0, 0] + inputs["input_ids"][0, -1])
        return found

    one.run = reading
    with pytest.raises(Violation, match="with other ids in the padding on the left keeps different tokens"):
        behaviour.padding(one)


def test_what_is_refused_is_no_failure():
    """By one family: a dash with the reason, said once; by all: one line and exit code 2."""
    table = of_method(place("Fussy"), ["llava", "qwen2_vl"], {}, lambda what: None)
    assert {row["qwen2_vl"] for row in table.rows.values()} == {
        Verdict("-", "refused: fussy needs [CLS]; possible: llava")
    }
    assert table.holds
    with pytest.raises(vtc.ConfigError, match="nothing of .* could be checked: .*this method is never possible"):
        of_method(place("Refusing"), ["llava", "qwen2_vl"], {}, lambda what: None)


def test_methods_made_for_clips_are_tried_on_clips(monkeypatch):
    """Where the family takes any, those that keep images whole and those that do not; a clip has several frames there.
    A family without tiny clips says so in its column."""
    found = {}
    for family in ("llava", "llava_onevision", "llava_next_video", "qwen2_vl"):
        tiny = Tiny(family, model=model_of(family))
        found[family] = [Trial(strategy, tiny, {}).kind for strategy in ("vidcom2", "flashvid", "hiprune")]
        if family != "llava":
            evs = Trial("evs", tiny, {})
            assert all(layout.frames > 1 for row in tiny.layouts(evs.inputs) for layout in row)
            singles = [tiny.layouts(one, (n,)) for one, n in zip(tiny.singles(evs.inputs), (1, 2, 1), strict=True)]
            assert [len(row) for (row,) in singles] == [1, 2, 1]
    assert found.pop("llava") == ["image"] * 3
    assert list(found.values()) == [["video", "video", "image"]] * 3
    monkeypatch.setattr(FAMILIES["qwen2_vl"], "tiny_clips", Family.tiny_clips)
    with pytest.raises(vtc.ConfigError, match="has no tiny_clips to be tried on; possible: to define them"):
        of_method("evs", ["qwen2_vl"], {}, lambda what: None)


def test_a_family_that_transformers_does_not_have_yet(monkeypatch):
    """It does not fail: its column says which version brings it."""
    monkeypatch.setattr(FAMILIES["qwen2_vl"], "since", "99.1")
    table = of_method(place("Good"), ["llava", "qwen2_vl"], {}, lambda what: None)
    later = Verdict("-", "refused: qwen2_vl is in transformers 99.1 and later; possible: a newer version of it")
    assert {row["qwen2_vl"] for row in table.rows.values()} == {later}


def test_a_family_whose_tiny_is_another_family(monkeypatch):
    """Its column says so."""
    monkeypatch.setattr(Llava, "tiny", vtc.patches.FAMILIES["qwen2_vl"].tiny)
    with pytest.raises(vtc.ConfigError, match="tiny.. of 'llava' gives a model of family 'qwen2_vl'"):
        of_method("hiprune", ["llava"], {}, lambda what: None)


def test_the_command(capsys, monkeypatch):
    """Tables, reasons below them, and exit code 1 for a method that fails; the same as JSON. Three families for all."""
    command, names = importlib.import_module("vtc.cli.check"), ["gemma3", "llava", "qwen2_vl"]
    assert command.family_names() == vtc.families()
    monkeypatch.setattr(command, "family_names", lambda: names)
    monkeypatch.setattr(contract_table, "COLUMNS", 2)
    monkeypatch.setattr(outcome, "USUAL", ("hiprune", "divprune"))
    code, out, _ = run(capsys, "check", place("Crashes"))
    assert code == 1
    lines = out.splitlines()
    heads = [line.split()[1:] for line in lines if line.startswith(place("Crashes"))]
    assert [name for names in heads for name in names] == names
    counts = [line.removeprefix(COUNT).split() for line in lines if line.startswith(COUNT)]
    assert counts == [["FAILED"] * len(names) for names in heads]
    assert "\x1b" not in out
    assert lines[-1].startswith(f"FAILED  10 of {len(CONTRACT)} properties ({', '.join(names)}): ZeroDivisionError")
    assert len(lines) == (1 + len(CONTRACT)) * len(heads) + 1
    code, out, _ = run(capsys, "check", "llava", "--json", "--keep", "0.5")
    data = json.loads(out)
    assert (code, data["kind"], data["holds"]) == (0, "family", True)
    assert list(data["properties"]) == list(CONTRACT)
    assert data["properties"][TIES]["divprune"]["state"] == "-"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["hipprune"], "unknown strategy 'hipprune': did you mean 'hiprune'"),
        (["os:nothing"], "os has no 'nothing'"),
        (["os:sep"], "possible: a class derived from Stage or DecoderStage"),
        (["hiprune", "--set", "beta=1"], "unknown key in the overrides of 'hiprune' 'beta'"),
        (["hiprune", "--keep", "2.5"], "keep=2.5"),
    ],
)
def test_bad_input(words, why, capsys):
    """One line, exit code 2."""
    code, _, err = run(capsys, "check", *words)
    assert code == 2
    assert why in err
    assert err.count("\n") == 1


def test_random_numbers_are_left_alone():
    """Of the caller."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    verdicts("Good")
    assert torch.equal(torch.rand(1), expected)
