"""Calls that reach every Triton kernel, in every form that differs to the compiler; see `tests/helpers_compile.py`.

The functions of `vtc/kernels/<op>/triton.py` are called directly, with CPU tensors that hold anything: nothing runs.
"""

CALLS: list = []
