"""The errors that vtc raises: each message is one line that names the wrong value and what is possible."""

import logging
import pickle
import reprlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

LONGEST = 460
"""Maximum characters of a message; with the prefix that a command adds, the line stays below 500."""


class _Repr(reprlib.Repr):
    """A repr that is cheap for any value: few levels, few entries, few characters."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 100, 100
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 8

    def repr_int(self, value: int, level: int) -> str:
        """An integer, or its size: Python refuses to print one with thousands of digits."""
        return repr(value) if value.bit_length() <= 256 else f"<an integer of {value.bit_length()} bits>"


def shown(value: object, most: int = 100) -> str:
    """The repr of a value for a message, shortened in the middle to at most `most` characters."""
    return cut(_Repr().repr(value), most)


def cut(text: str, most: int) -> str:
    """The text, with its middle replaced by ... if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - most // 3 - 3]}...{text[len(text) - most // 3 :]}"


def reason(error: object, most: int = 250) -> str:
    """The message of an error, for use within another message; its type if the message is empty."""
    return cut(" ".join(str(error).split()), most) or type(error).__name__


def one_line(text: object) -> str:
    """A message as one printable line of at most LONGEST characters: white space becomes one space, control
    characters and lone surrogates are escaped."""
    line = cut(" ".join(str(text).split()), LONGEST)
    return cut("".join(c if c.isprintable() else repr(c)[1:-1] for c in line), LONGEST)


class VtcError(Exception):
    """The base of every error that vtc raises deliberately. The message is one short line, whatever it quotes."""

    def __init__(self, message: object):
        super().__init__(one_line(message))


class ConfigError(VtcError, ValueError):
    """A strategy, budget, knob or file is wrong."""


class UnsupportedError(VtcError, NotImplementedError):
    """vtc does not support the model, or the way in which it is called."""


class PatchError(VtcError, RuntimeError):
    """A patched forward could not do what its strategy requires (missing signal, nothing dropped, cache mismatch)."""


@contextmanager
def loading(what: str, possible: str = "a folder made by save_pretrained") -> Iterator[None]:
    """Turns any error raised while a model is loaded into one ConfigError that begins with `what`.

    For a folder that is damaged, or holds something other than a model, the libraries raise errors of any type. Their
    warnings are dropped; their log records are passed on at the end of the block, unless there was an error.
    """
    library, kept_back = logging.getLogger("transformers"), MemoryHandler(10_000, flushLevel=1000)
    handlers, library.handlers = library.handlers, [kept_back]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except VtcError:
        raise
    except pickle.UnpicklingError:
        raise ConfigError(f"{what}: its weights are a pickle of more than tensors; possible: safetensors") from None
    except Exception as error:
        raise ConfigError(f"{what}: {reason(error)}; possible: {possible}") from None
    finally:
        library.handlers = handlers
    for record in kept_back.buffer:
        library.handle(record)
