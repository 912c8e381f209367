"""What must hold of every method on every family, by name: the rows of the table that `vtc check` prints."""

from collections.abc import Callable

from vtc.check import behaviour, choices
from vtc.check.trial import Trial

CONTRACT: dict[str, Callable[[Trial], None]] = {
    "the number kept is the budget's": choices.number,
    "kept indices ascend, unique, inside": choices.order,
    "ties go to the lower index": choices.ties,
    "scores in float32, half precision runs": choices.precision,
    "a batch chooses as its images alone": behaviour.batch,
    "padding changes nothing": behaviour.padding,
    "two runs are equal": behaviour.deterministic,
    "keep=1.0 leaves the output as it was": behaviour.keep_all,
    "cached decoding equals recomputing": behaviour.decoding,
    "the report says what happened": behaviour.reported,
    "unpatching restores the model": behaviour.removed,
}
"""Each raises `Violation` or `DoesNotApply`; any other exception is an error in the method or the family."""
