"""Splits the time of a generate() call into vision, selection, prefill and decode."""

from collections.abc import Callable
from types import TracebackType

from torch import nn

from vtc.engine import clock
from vtc.eval.results.meanings import PARTS


class Stopwatch:
    """A context manager with timing hooks on a family's tower and language model.

    Enter it after the model is patched: the patch's own pre-hook on the language model then runs before the timing of
    prefill starts. Without a family only the total is known. Not thread-safe.
    """

    def __init__(self, family: object | None):
        self.family = family
        self._handles: list = []
        self._reset()

    def _reset(self) -> None:
        self.vision = self.prefill = 0.0
        self.prefill_end: float | None = None

    def __enter__(self) -> "Stopwatch":
        if self.family is not None:
            tower, language = self.family.tower, self.family.language_model
            self._handles = [
                tower.register_forward_pre_hook(self._start),
                tower.register_forward_hook(self._tower_done),
                language.register_forward_pre_hook(self._start_prefill),
                language.register_forward_hook(self._prefill_done),
            ]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _start(self, module: nn.Module, args: tuple) -> None:
        self._begin = clock.now()

    def _tower_done(self, module: nn.Module, args: tuple, output: object) -> None:
        self.vision += clock.now() - self._begin

    def _start_prefill(self, module: nn.Module, args: tuple) -> None:
        if self.prefill_end is None:
            self._begin = clock.now()

    def _prefill_done(self, module: nn.Module, args: tuple, output: object) -> None:
        if self.prefill_end is None:
            self.prefill_end = clock.now()
            self.prefill = self.prefill_end - self._begin

    def measure(self, call: Callable, report: Callable) -> tuple[object, object, dict]:
        """Runs `call`; returns its result, the vtc report that `report` then returns (or None), and seconds per part
        (None: unknown)."""
        self._reset()
        with clock.exact():
            start = clock.now()
            output = call()
            end = clock.now()
        vtc_report = report()
        seconds = dict.fromkeys(PARTS) | {"total": end - start}
        if self.prefill_end is not None:
            observe, select, *inside = (0.0,) * 4 if vtc_report is None else _spent(vtc_report)
            seconds |= {
                "vision": self.vision - (observe - inside[0]),
                "selection": observe + select,
                "prefill": self.prefill - sum(inside),
                "decode": end - self.prefill_end,
            }
        return output, vtc_report, seconds


def _spent(report) -> tuple[float, ...]:
    """The seconds of observing and of selecting, in total and within the language model."""
    return report.observe_seconds, report.select_seconds, report.observe_inside, report.select_inside
