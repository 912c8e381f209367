"""The systems that take turns in a row of `vtc bench`: the model as it is, with a strategy, and the strategy's oracle.

Usually they are one model object, patched or fed while its turn lasts. With compiled decoding each is a model object of
its own on the same weights, patched once: what was compiled for it stays valid over all rounds.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vtc.core.errors import ConfigError, shown
from vtc.core.hooks import Patchwork
from vtc.core.twin import twin
from vtc.patching import find_family


@dataclass(frozen=True)
class System:
    """One way of answering. inputs: of generate(); applied: given the family, what is applied to its model while it
    runs; get_report: given the model, the vtc report of its last run, or None; options: of generate(), for every run;
    ready: whether `applied` is in force all the time."""

    name: str
    family: object
    inputs: dict[str, Tensor]
    applied: Callable[[object], AbstractContextManager] = lambda family: nullcontext()
    get_report: Callable[[nn.Module], object] = lambda model: None
    options: dict = field(default_factory=dict)
    ready: bool = False

    @property
    def model(self) -> nn.Module:
        """The model that answers."""
        return self.family.model

    def context(self) -> AbstractContextManager:
        """In which the model is run."""
        return nullcontext() if self.ready else self.applied(self.family)

    def report(self) -> object:
        """The vtc report of the last run, or None."""
        return self.get_report(self.model)

    def generate(self, new_tokens: int, **more) -> object:
        """Stock generate()."""
        return self.model.generate(**self.inputs, **{"max_new_tokens": new_tokens, **self.options, **more})

    def uncompiled(self, new_tokens: int, **more) -> object:
        """The same with the same cache; steps are not compiled."""
        return self.generate(new_tokens, **({"disable_compile": True} if self.options else {}), **more)

    def ends(self, new_tokens: int) -> tuple[list[float], list[float] | None]:
        """Seconds from the start of generate() to the end of each forward of the model, which is when its logits are
        read: by the clock, and of this process's CPU time (None on a GPU)."""
        marks = _Marks(self.model.device)
        marks.set()
        self.generate(new_tokens, logits_processor=[marks])
        return marks.seconds()


class _Marks:
    """A logits processor that notes the time whenever generate() has read the logits of a forward, outside of what may
    be compiled."""

    def __init__(self, device: torch.device):
        self.device, self.gpu, self.noted = device, device.type == "cuda", []
        if self.gpu:
            torch.cuda.synchronize(device)

    def set(self) -> None:
        """A mark: on a GPU an event that the host does not wait for."""
        if self.gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.noted.append(event)
        else:
            self.noted.append((time.perf_counter(), time.process_time()))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.set()
        return scores

    def seconds(self) -> tuple[list[float], list[float] | None]:
        """From the first mark to each later one: by the clock, and of CPU time."""
        first, *later = self.noted
        if not self.gpu:
            return [mark[0] - first[0] for mark in later], [mark[1] - first[1] for mark in later]
        torch.cuda.synchronize(self.device)
        return [first.elapsed_time(mark) / 1000 for mark in later], None


def check_compiler(device: torch.device) -> None:
    """Raises ConfigError where torch.compile cannot translate what it traced."""
    if device.type != "cpu":
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"--compiled needs the C++ compiler {compiler!r} on a CPU; possible: install it, or set CXX")
    if " " in torch.__file__:
        raise ConfigError(
            f"--compiled: torch lies in a path with a space, {shown(torch.__file__)}, which its compiler cannot read; "
            "possible: an environment elsewhere"
        )


@contextmanager
def compiled(systems: list[System]) -> Iterator[list[System]]:
    """The same systems with a static cache and compiled decode steps, each on a model object of its own.

    Sizes are fixed in what is compiled: with three systems of three sizes, torch would otherwise compile the second one
    for any size. Raises ConfigError for a model whose modules cannot be copied.
    """
    torch.compiler.reset()
    try:
        with ExitStack() as stack:
            yield [_compiled(system, stack) for system in systems]
    finally:
        torch.compiler.reset()


def _compiled(system: System, stack: ExitStack) -> System:
    from transformers import CompileConfig

    model = twin(system.model, Patchwork(), system.model.modules())
    if model is None:
        raise ConfigError(
            "--compiled needs a model whose modules can be copied, and the forward of one was replaced (by accelerate "
            "or torch.compile); possible: without --compiled"
        )
    config = CompileConfig(dynamic=False)
    if model.device.type == "cpu":
        config.mode, config._compile_all_devices = None, True
    options = {"cache_implementation": "static", "compile_config": config}
    own = replace(system, family=find_family(model), options=options, ready=True)
    stack.enter_context(system.applied(own.family))
    return own


def graphs() -> int:
    """How many graphs torch.compile has made in this process so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
