"""The switch between reference and Triton: what is chosen when, and what is said when it cannot be."""

import threading

import pytest
import torch

from tests.helpers_triton import DEVICE
from vtc.kernels import backend

HALF, DOUBLE = torch.zeros(2, device=DEVICE), torch.zeros(2, device=DEVICE, dtype=torch.float64)


def test_automatic_choice_follows_the_device():
    """Triton for CUDA tensors where it is installed; a tensor elsewhere, or none at all, does not bring it in."""
    assert backend.triton_wanted(HALF) == (DEVICE.type == "cuda" and backend.INSTALLED)
    assert not backend.triton_wanted(HALF, torch.zeros(2))
    assert not backend.triton_wanted(torch.zeros(2, device="meta"))


def test_float64_is_the_references():
    """Whatever is forced."""
    with backend.use("triton"):
        assert backend.triton_wanted(HALF, None)
        assert not backend.triton_wanted(HALF, DOUBLE)


def test_contexts_nest_and_end(monkeypatch):
    """The innermost counts; the environment counts where there is none; an error leaves nothing behind."""

    def fail():
        with backend.use("auto"):
            assert backend.choice() == "auto"
            raise KeyError

    monkeypatch.setenv(backend.VARIABLE, "reference")
    assert backend.choice() == "reference"
    with backend.use("triton"):
        with pytest.raises(KeyError):
            fail()
        assert backend.choice() == "triton"
    assert backend.choice() == "reference"


def test_other_threads_are_left_alone():
    """A block in one thread does not change what another one gets."""
    seen = []
    with backend.use("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend.choice()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.parametrize("word", ["gpu", "Triton", ""])
def test_unknown_words(word, monkeypatch):
    """One line with what is possible, from code and from the environment."""
    with pytest.raises(ValueError, match="possible: auto, reference, triton"), backend.use(word):
        pass
    if word:
        monkeypatch.setenv(backend.VARIABLE, word)
        with pytest.raises(ValueError, match=f"kernels='{word}' is unknown"):
            backend.triton_wanted(HALF)


def test_forced_where_it_cannot_run(monkeypatch):
    """On the CPU without the interpreter, and without Triton."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with backend.use("triton"):
        with pytest.raises(RuntimeError, match="forced on cpu tensors; possible: CUDA tensors, or TRITON_INTERPRET=1"):
            backend.triton_wanted(torch.zeros(2))
        monkeypatch.setattr(backend, "INSTALLED", False)
        with pytest.raises(RuntimeError, match="Triton is not installed; possible: auto, reference"):
            backend.triton_wanted(torch.zeros(2))


def test_tuning_can_be_pinned(monkeypatch):
    """All configurations for the autotuner, or the first alone."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.delenv(backend.TUNING, raising=False)
    assert backend.space([1, 2, 3]) == [1, 2, 3]
    monkeypatch.setenv(backend.TUNING, "0")
    assert backend.space([1, 2, 3]) == [1]
    monkeypatch.delenv(backend.TUNING)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.space([1, 2, 3]) == [1]
