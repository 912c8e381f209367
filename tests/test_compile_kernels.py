"""Every Triton kernel compiles to machine code for GPUs that need not be there, and fits into their shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers_compile import SHARED

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.full  # `make test` runs them in Triton's interpreter
def test_kernels_compile_for_gpus():
    """No kernel spills registers; none asks for more shared memory than its GPU has (sm_80: A100; 86: A10, as much as
    RTX 4090 and L40S have; 90: H100), also where a launch says that sizes and pointers are divisible by 16."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.helpers_compile"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert {(row[1], row[2]) for row in rows} == {("sm_80", "any"), ("sm_86", "aligned"), ("sm_90", "aligned")}
    most = {f"sm_{capability}": size for capability, size in SHARED.items()}
    assert not [row for row in rows if int(row[-3]) > most[row[1]] or int(row[-1]) > 64]
