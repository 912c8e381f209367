"""Settings for all tests: one thread each (tiny tensors, several workers), no network, the same examples every time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("vtc", deadline=None, derandomize=True)
settings.load_profile("vtc")
