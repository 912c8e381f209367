"""What must hold of every method on every family, by name: the rows of the table that `vtc check` prints."""

from collections.abc import Callable

from vtc.check import calls, choices
from vtc.check.subject import Subject

CONTRACT: dict[str, Callable[[Subject], None]] = {
    "the number kept is the budget's": choices.number,
    "kept indices ascend, unique, inside": choices.order,
    "ties go to the lower index": choices.ties,
    "scores in float32, half precision runs": choices.precision,
    "a batch chooses as its images alone": calls.batch,
    "padding changes nothing": calls.padding,
    "two runs are equal": calls.deterministic,
    "keep=1.0 leaves the output as it was": calls.keep_all,
    "cached decoding equals recomputing": calls.decoding,
    "the report says what happened": calls.reported,
    "unpatching restores the model": calls.removed,
}
"""Each raises `Violation` or `DoesNotApply`; what else comes out of it is an error in the method or the family."""
