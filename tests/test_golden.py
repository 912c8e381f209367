"""Parity with the authors' code: every golden file of every folder in VTC_GOLDEN_DIR (see tests/golden/README.md).

Without the variable these are tests/golden and, where it exists, ../shared/golden. What a file of a method holds and
how it is compared stands in tests/golden_checks/<method>.py; a method without such a file is skipped.
"""

import importlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vtc.kernels.coverage import coverage_greedy
from vtc.strategies.mmtok import weights

ROOT = Path(__file__).resolve().parent.parent
CHECKS = {path.stem for path in (ROOT / "tests" / "golden_checks").glob("[!_]*.py")}
ELSEWHERE = {
    "metrics": "compared in tests/test_metrics_golden.py",
    "realdata": "scored in tests/test_eval_score.py and tests/test_tasks_realdata.py",
}
TEXT = (".md", ".txt")


@dataclass(frozen=True)
class Case:
    """One file to check, or why there is none: `skip` is harmless, `fail` is not."""

    name: str
    method: str = ""
    file: Path | None = None
    skip: str | None = None
    fail: str | None = None


def roots() -> list[Path]:
    """The folders of golden vectors."""
    named = [Path(part) for part in os.environ.get("VTC_GOLDEN_DIR", "").split(os.pathsep) if part]
    default = [ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"]
    found = named or [path for path in default if path.is_dir()]
    return list({path.resolve(): None for path in found})


def is_data(path: Path) -> bool:
    """Whether a file has to be checked: everything but documentation and hidden files."""
    return (
        not path.is_dir() and path.suffix not in TEXT and path.name[0] != "." and path.name not in ("LICENSE", "NOTICE")
    )


def cases_of(root: Path) -> list[Case]:
    """A case for each file of each method in a folder of golden vectors."""
    label = "/".join(root.parts[-2:])
    if not root.is_dir():
        return [Case(label, fail=f"{root} is not a folder")]
    cases = [Case(f"{label}/{p.name}", fail="lies in no method's folder") for p in sorted(root.iterdir()) if is_data(p)]
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name[0] not in "._"]
    if not folders:
        cases.append(Case(label, fail=f"{root} holds no folder of a method"))
    for folder in folders:
        method, name = folder.name, f"{label}/{folder.name}"
        if method not in CHECKS:
            cases.append(Case(name, skip=f"{method}: {ELSEWHERE.get(method, 'no parity check yet')}"))
            continue
        files = [p for p in sorted(folder.rglob("*")) if is_data(p)]
        cases += [Case(f"{name}/{p.relative_to(folder).with_suffix('')}", method, p) for p in files]
        if not files:
            cases.append(Case(name, method, fail=f"{folder} holds no vectors"))
    return cases


def read(file: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and parameters of a file; parameters are JSON values where they are JSON, else text. A JSON file is
    parameters only."""
    if file.suffix == ".json":
        return {}, json.loads(file.read_text(encoding="utf-8"))
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        params = {key: json_or_text(value) for key, value in (opened.metadata() or {}).items()}
    together = params.pop("params", {})
    return tensors, {**params, **together}


def json_or_text(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value


def check(case: Case) -> None:
    """Skips, fails or compares."""
    if case.skip:
        pytest.skip(case.skip)
    if case.fail:
        pytest.fail(case.fail)
    try:
        tensors, params = read(case.file)
    except Exception as error:  # whatever a broken file raises
        pytest.fail(f"{case.file} cannot be read: {error}")
    importlib.import_module(f"tests.golden_checks.{case.method}").check(tensors, params)


CASES = [case for root in roots() for case in cases_of(root)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case):
    check(case)


OWN = [case for case in cases_of(ROOT / "tests" / "golden") if case.file]
# What the authors' code returned, as opposed to what it was given: indices, masks, scores and what they lead to.
ANSWER = re.compile(
    r"(?:^|[._])(?:keep|kept|dominant|context|merged|scores?|importance|ttv|out|output|selected|selection|excluded"
    r"|gains|result|indices)(?:_|$)"
)


def fields_of(case: Case) -> dict[str, object]:
    """What a file holds, by name: its tensors, or from a JSON file the fields of all rows of its tables."""
    tensors, params = read(case.file)
    if case.file.suffix != ".json":
        return tensors
    rows = [(f"{table}.{row}", fields) for table, listed in params.items() for row, fields in enumerate(listed)]
    return {f"{place}.{name}": value for place, fields in rows for name, value in fields.items()}


def size_of(value: object) -> int:
    """How many numbers or letters a field holds."""
    return value.numel() if isinstance(value, torch.Tensor) else len(value)


def answers_of(case: Case) -> list[str]:
    """The fields of a file that are expected results and not empty."""
    return sorted(
        name
        for name, value in fields_of(case).items()
        if ANSWER.search(name) and not re.search("attn_out|mlp_out|layer_output", name) and size_of(value)
    )


def write_wrong(file: Path, case: Case, answer: str) -> None:
    """A copy of a case's file with one value of one expected result changed."""
    tensors, params = read(case.file)
    if case.file.suffix == ".json":
        table, row, name = answer.split(".")
        fields = params[table][int(row)]
        fields[name] = fields[name][:-1]
        file.write_text(json.dumps(params), encoding="utf-8")
        return
    wrong = tensors[answer].clone()
    last = wrong.view(-1)[-1:]
    last.copy_(last.logical_not() if wrong.dtype == torch.bool else last + 1)
    save_file({**tensors, answer: wrong}, file, {"params": json.dumps(params)})


ANSWERS = [(case, name) for case in OWN for name in answers_of(case)]


@pytest.mark.parametrize("case, answer", ANSWERS, ids=[f"{case.name}-{name}" for case, name in ANSWERS])
def test_a_wrong_answer_is_noticed(case, answer, tmp_path):
    """One value of one expected result changed, and the file does not pass."""
    file = tmp_path / f"wrong{case.file.suffix}"
    write_wrong(file, case, answer)
    with pytest.raises(AssertionError):
        check(Case("wrong", case.method, file))


def test_files_may_hold_other_parameters_than_published(tmp_path):
    """A file of MMTok with knobs that no paper names passes when its picks are right."""
    case = next(case for case in OWN if case.method == "mmtok" and case.file.suffix == ".safetensors")
    tensors, params = read(case.file)
    params |= {"alpha": 0.7, "vv_temperature": 0.3, "tv_temperature": 0.05}
    given = [tensors[name][None].double() for name in ("text_embeds", "vision_projected", "vision_preproj")]
    rows = weights(*given, alpha=0.7, tau_v=0.3, tau_t=0.05)
    order = coverage_greedy(rows, params["k"])[0]
    worth = rows[0, :, order].cummax(1).values.sum(0)
    tensors |= {
        "selected_order": order,
        "kept_sorted": order.sort().values,
        "gains": worth.diff(prepend=worth.new_zeros(1)),
    }
    save_file(
        tensors, tmp_path / "other.safetensors", {"params": json.dumps({**params, "objective": float(worth[-1])})}
    )
    check(Case("other", "mmtok", tmp_path / "other.safetensors"))


def test_every_file_has_an_answer():
    """No golden file passes the test above by having nothing to change."""
    assert not [case.name for case in OWN if not answers_of(case)]
    assert {case.method for case in OWN} == CHECKS


def test_nothing_is_passed_over(tmp_path):
    assert cases_of(tmp_path / "absent")[0].fail
    assert cases_of(tmp_path)[0].fail
    for folder in ("hiprune", "vtc_cls", "metrics", "unheard_of"):
        (tmp_path / folder).mkdir()
    (tmp_path / "loose.safetensors").touch()
    (tmp_path / "vtc_cls" / "broken.safetensors").write_bytes(b"\x08")
    (tmp_path / "vtc_cls" / "README.md").touch()
    by_name = {case.name.removeprefix("/".join(tmp_path.parts[-2:]) + "/"): case for case in cases_of(tmp_path)}
    assert set(by_name) == {"loose.safetensors", "hiprune", "vtc_cls/broken", "metrics", "unheard_of"}
    for name in ("loose.safetensors", "hiprune", "vtc_cls/broken"):
        with pytest.raises(pytest.fail.Exception):
            check(by_name[name])
    for name in ("metrics", "unheard_of"):
        with pytest.raises(pytest.skip.Exception, match=name):
            check(by_name[name])
