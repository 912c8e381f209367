"""`make gpu-check` without a GPU: its kernel cases at small shapes in the interpreter, and what it says then."""

import pytest
import torch

from tests.helpers_triton import DEVICE
from vtc.bench import gpu, kernels

SMALL = list(kernels.cases(small=True))


@pytest.mark.parametrize("case", SMALL, ids=[f"{case.kernel} {case.shape}" for case in SMALL])
def test_cases_pass_and_are_measured(case):
    """Both forms agree, are timed, and differ in nothing that the table would call an error."""
    row = kernels.measure(case, DEVICE, torch.float32, repeats=1)
    assert row.passed, row
    assert min(row.triton_seconds, row.reference_seconds) > 0
    assert case.kernel in gpu.line_of(row)


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
