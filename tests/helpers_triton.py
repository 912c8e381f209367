"""Where Triton kernels are tested: on a GPU if there is one, else in Triton's interpreter on the CPU."""

from collections.abc import Callable

import torch

from vtc.kernels import backend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def both(run: Callable[[], object]) -> tuple[object, object]:
    """What `run` gives with the reference, and with Triton."""
    with backend.use("reference"):
        expected = run()
    with backend.use("triton"):
        return expected, run()
