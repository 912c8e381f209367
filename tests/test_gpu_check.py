"""`make gpu-check` without a GPU: its kernel cases at small shapes in the interpreter, and what it says then."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests.helpers_triton import DEVICE
from tests.test_cli import run as cli
from vtc.bench import gpu, kernels
from vtc.bench.kernel_rows import KERNELS, line_of
from vtc.bench.results import FILE, read
from vtc.core.errors import ConfigError

SMALL = list(kernels.cases(small=True))


@pytest.mark.product(cases=4)
@pytest.mark.parametrize("case", SMALL, ids=[f"{case.kernel} {case.shape}" for case in SMALL])
def test_cases_pass_and_are_measured(case):
    """Both forms agree, are timed, and differ in nothing that the table would call an error."""
    row = kernels.measure(case, DEVICE, torch.float32, repeats=1)
    assert row.passed, row
    assert min(row.triton_seconds, row.reference_seconds) > 0
    line = line_of(row.to_dict())
    assert case.kernel in line
    assert "TOLERANCE" not in line
    assert "BEYOND ITS TOLERANCE" in line_of({**row.to_dict(), "passed": False})


def test_real_shapes_are_listed():
    """Each kernel of the small cases has one at a real model's size."""
    assert {case.kernel for case in SMALL} == {case.kernel for case in kernels.cases()}


def test_a_wrong_result_does_not_pass():
    """Numbers that are off, not a number, or picks that are worth less."""
    case, inputs = SMALL[0], ()
    right = torch.ones(3)
    assert kernels._error(case, inputs, right, right + 0.01) > kernels.TOLERANCE
    assert kernels._error(case, inputs, right, right * torch.nan) > kernels.TOLERANCE
    picks = kernels.KernelCase("picks", "", None, None, lambda chosen: float(chosen.sum()))
    assert kernels._error(picks, inputs, torch.tensor([2]), torch.tensor([1])) == 0.5
    assert kernels._error(picks, inputs, torch.tensor([2]), torch.tensor([3])) == 0.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so(capsys, tmp_path):
    """One line, exit code 2, nothing written."""
    assert gpu.main(["--output", str(tmp_path / "out")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failing_step_is_in_the_table(capsys, tmp_path):
    """A command that fails, and one that takes too long."""
    failed = gpu.run_step("a", ["false"], tmp_path / "a.log", 10)
    slow = gpu.run_step("b", ["sleep", "5"], tmp_path / "b.log", 0.1)
    assert (failed.verdict, slow.verdict) == ("failed", "out of time")


@pytest.fixture
def quick(monkeypatch):
    """Three kernel cases, the second of which breaks; the calls that were made."""
    calls = []

    def measure(case, device, dtype, repeats):
        calls.append(case.kernel)
        if case.kernel == "broken":
            raise RuntimeError("no such\n instruction")
        return kernels.KernelRow(case.kernel, case.shape, str(dtype), 0.0, True, True, 1e-3, 2e-3, 8, 16)

    cases = [SimpleNamespace(kernel=name, shape="N=8") for name in ("first", "broken", "last")]
    monkeypatch.setattr(kernels, "cases", lambda small=False: iter(cases))
    monkeypatch.setattr(kernels, "measure", measure)
    return calls


def checked(folder, overwrite=False):
    """The kernels' step on the CPU."""
    device = torch.device("cpu")
    return gpu.kernel_rows(gpu.kernel_results(folder, device, True, overwrite), device, True, 60)


def test_kernels_are_stored_and_resumed(quick, tmp_path):
    """A kernel that failed is tried again, the others are not; all of them are when it is asked for."""
    step = checked(tmp_path)
    assert (step.verdict, step.last_line) == ("failed", "2 of 3 within their tolerance")
    rows = read(tmp_path / "kernels", KERNELS)["rows"]
    assert [row["kernel"] for row in rows] == ["first", "broken", "last"]
    assert rows[1] == {"kernel": "broken", "shape": "N=8", "failed": "no such instruction"}
    quick.clear()
    assert checked(tmp_path).last_line == "2 of 3 within their tolerance, 2 of an earlier run"
    assert quick == ["broken"]
    quick.clear()
    checked(tmp_path, overwrite=True)
    assert quick == ["first", "broken", "last"]


def test_no_time_for_all_kernels(quick, tmp_path):
    """The verdict says so, and nothing is measured beyond the limit."""
    device = torch.device("cpu")
    step = gpu.kernel_rows(gpu.kernel_results(tmp_path, device, True, False), device, True, -1)
    assert (step.verdict, quick) == ("out of time", [])


def test_rows_of_other_kernels_are_refused(capsys, quick, tmp_path, monkeypatch):
    """A verdict on code that has changed since is none; `vtc bench compare` shows the two side by side."""
    checked(tmp_path)
    monkeypatch.setattr(gpu, "code_digest", lambda: "changed")
    with pytest.raises(ConfigError, match="code .* and changed; possible: another folder, or --overwrite"):
        checked(tmp_path)
    assert gpu.main(["--trial", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("vtc: error: --output")
    checked(tmp_path / "new")
    capsys.readouterr()
    code, out, _ = cli(capsys, "bench", "compare", tmp_path / "kernels", tmp_path / "new" / "kernels")
    assert (code, out.count("first"), out.count("failed"), out.count("2.0x")) == (0, 2, 2, 4)
    assert json.loads((tmp_path / "new" / "kernels" / FILE).read_text())["definitions"]["passed"]
