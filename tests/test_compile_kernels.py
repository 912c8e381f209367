"""Every Triton kernel compiles to machine code for GPUs that need not be there, and fits into their shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.full  # `make test` runs them in Triton's interpreter
def test_kernels_compile_for_gpus():
    """No kernel spills registers; none asks for more shared memory than the smallest of these GPUs has (163 KB)."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.helpers_compile"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows
    assert not [row for row in rows if int(row[-3]) > 163 * 1024 or int(row[-1]) > 64]
