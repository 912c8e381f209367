"""The errors that vtc raises: each message is one line that names the wrong value and what is possible."""


MOST, END = 480, 160  # characters of a message, and of its end where it is cut in the middle


class VtcError(Exception):
    """Base of every error that vtc raises on purpose; whatever values it quotes, the message stays one short line."""

    def __init__(self, message: object):
        line = " ".join(str(message).split())
        super().__init__(line if len(line) <= MOST else f"{line[: MOST - END - 5]} ... {line[-END:]}")


class ConfigError(VtcError, ValueError):
    """A strategy, budget, knob or file is not what it must be."""


class UnsupportedError(VtcError, NotImplementedError):
    """The model, or the way it is called, is something that vtc refuses rather than guesses at."""


class PatchError(VtcError, RuntimeError):
    """A patched forward could not do what its strategy asks (missing signal, nothing dropped, cache out of step)."""
