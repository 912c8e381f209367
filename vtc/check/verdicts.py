"""How a property ends that does not simply hold."""


class Violation(Exception):
    """A property does not hold; the text says what was seen."""


class DoesNotApply(Exception):
    """A property says nothing about this method; the text says why."""
