"""Checks of arguments that the torch and the Triton version of the matching kernels share."""

from torch import Tensor


def check_partners(metric: Tensor, first: Tensor, second: Tensor) -> None:
    """Raises ValueError for shapes that `best_partners` does not take."""
    if metric.ndim != 3 or first.ndim != 2 or second.ndim != 2 or not len(metric) == len(first) == len(second):
        shapes = ", ".join(str(tuple(x.shape)) for x in (metric, first, second))
        raise ValueError(f"metric must be [B, N, e], first [B, n] and second [B, m], got shapes {shapes}")
    if first.shape[1] and not second.shape[1]:
        raise ValueError("second is empty; possible: at least one token to be a partner")


def check_energy(metric: Tensor) -> None:
    """Raises ValueError for a shape that `energy` does not take."""
    if metric.ndim != 3:
        raise ValueError(f"metric must be [B, N, e], got shape {tuple(metric.shape)}")
