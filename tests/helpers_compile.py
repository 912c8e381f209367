"""Compiles Triton kernels for a GPU that need not be there: launches are caught, compiled to machine code, not run.

The interpreter accepts much that the compiler refuses. Only for a process of its own without TRITON_INTERPRET, because
a kernel decides when it is defined whether it is interpreted. A launch tells the compiler that pointers and sizes are
divisible by 16 where they are, and code for these may need more shared memory and registers; so kernels are compiled
with that said of all of them (`aligned`), and for one GPU without. `python -m tests.helpers_compile` prints what each
kernel that the files `tests/compiled_*.py` call takes of a GPU. Each of these has a list CALLS of functions without
arguments that call `vtc/kernels/<op>/triton.py` directly, in every form that differs to the compiler, with CPU tensors
that hold anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
    torch.bool: "i1", torch.uint8: "u8", torch.int8: "i8",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """One kernel as compiled. capability: 80, 90, ...; aligned: see the top of the file; shared: bytes; options: of the
    launch that differ between configurations; spills: bytes of local memory as the assembler reports them, -1 if it
    does not."""

    name: str
    capability: int
    aligned: bool
    signature: tuple
    options: tuple
    shared: int
    spills: int


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


TARGETS = ((80, False), (86, True), (90, True))
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a kernel may have at most (CUDA programming guide, technical specifications)."""


@contextmanager
def compiling(targets: tuple[tuple[int, bool], ...] = TARGETS) -> Iterator[list[Compiled]]:
    """Within this context launches are compiled for each capability, aligned or not, and not run; gives what was
    compiled."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    found: dict[tuple, Compiled] = {}

    def launch(self, *args, grid, warmup=False, **kwargs):
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages", "num_ctas", "maxnreg") if k in kwargs}
        given = {**{p.name: p.default for p in self.params if p.has_default}, **dict(zip(self.arg_names, args))}
        given |= {k: v for k, v in kwargs.items() if k in self.arg_names}
        fixed = {p.name: given[p.name] for p in self.params if p.is_constexpr or given[p.name] is None}
        signature = {n: "constexpr" if n in fixed else _type_of(given[n]) for n in self.arg_names}
        shapes = tuple(grid(given)) if callable(grid) else tuple(grid)
        assert 1 <= len(shapes) <= 3, f"{self.__name__}: grid {shapes}"
        for capability, aligned in targets:
            given_types, constants = tuple(signature.items()), tuple(map(repr, fixed.items()))
            key = self.__name__, capability, aligned, given_types, constants, repr(options)
            if key in found:
                continue
            numbers = [i for i, n in enumerate(self.arg_names) if signature[n] not in ("constexpr", "fp32", "i1")]
            attrs = {(i,): [["tt.divisibility", 16]] for i in numbers if aligned}
            source = ASTSource(self, signature=signature, constexprs=fixed, attrs=attrs)
            done = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)
            spills = _spills(done.asm["ptx"], capability)
            found[key] = Compiled(
                self.__name__,
                capability,
                aligned,
                given_types,
                tuple(options.items()),
                done.metadata.shared,
                spills,
            )

    def tune(self, *args, **kwargs):
        self.nargs = dict(zip(self.arg_names, args))
        for config in self.configs:
            self.fn.run(*args, **{**kwargs, **config.all_kwargs()})

    before = JITFunction.run, Autotuner.run
    JITFunction.run, Autotuner.run = launch, tune
    try:
        yield _Values(found)
    finally:
        JITFunction.run, Autotuner.run = before


class _Values(list):
    def __init__(self, found: dict):
        super().__init__()
        self._found = found

    def __iter__(self):
        return iter(self._found.values())

    def __len__(self):
        return len(self._found)


def _spills(ptx: str, capability: int) -> int:
    """Bytes that a thread spills, as the assembler says."""
    import re
    import subprocess
    import tempfile

    from triton.knobs import nvidia

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = f"sm_{capability}{'a' if capability == 90 else ''}"
        command = [nvidia.ptxas.path, "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
    match = re.search(r"(\d+) bytes spill stores", done.stderr)
    return int(match[1]) if match else -1


def main() -> None:
    """Compiles everything and prints a table."""
    import importlib
    from pathlib import Path

    with compiling() as found:
        for file in sorted(Path(__file__).parent.glob("compiled_*.py")):
            for call in importlib.import_module(f"tests.{file.stem}").CALLS:
                call()
    for c in sorted(found, key=lambda c: (c.name, c.capability)):
        form = "aligned" if c.aligned else "any"
        options = str(dict(c.options))
        print(f"{c.name:32} sm_{c.capability}  {form:7} {options:40} shared {c.shared:>7}  spills {c.spills}")


if __name__ == "__main__":
    main()
