"""The outcomes of a property other than that it holds."""


class Violation(Exception):
    """A property does not hold; the text says what was observed."""


class DoesNotApply(Exception):
    """A property says nothing about this method; the text says why."""
