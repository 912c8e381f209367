"""The errors that vtc raises: each message is one line that names the wrong value and what is possible."""


class VtcError(Exception):
    """Base of every error that vtc raises on purpose; whatever values it quotes, the message stays one line."""

    def __init__(self, message: object):
        super().__init__(" ".join(str(message).split()))


class ConfigError(VtcError, ValueError):
    """A strategy, budget, knob or file is not what it must be."""


class UnsupportedError(VtcError, NotImplementedError):
    """The model, or the way it is called, is something that vtc refuses rather than guesses at."""


class PatchError(VtcError, RuntimeError):
    """A patched forward could not do what its strategy asks (missing signal, nothing dropped, cache out of step)."""
