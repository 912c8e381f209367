"""Lets `import torchvision` work beside a build of torch that it was not made for, such as a CPU build.

torchvision registers fake kernels for two operators of its C++ library even where that library did not load, and fails
because they do not exist. They are declared here first, without kernels: image transforms never call them.
`prepare.py` installs this file with a `.pth` line, so it acts in every process; it imports torch only with torchvision.
"""

import sys
from importlib.machinery import PathFinder

LIBRARIES = []  # declarations live as long as the object that made them


class Finder:
    """Finds torchvision as usual, and has `declare` run before its first line."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """The ordinary spec of torchvision, its loader told to declare first; None for every other module."""
        spec = PathFinder.find_spec(name, path, target) if name == "torchvision" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                if Finder in sys.meta_path:
                    sys.meta_path.remove(Finder)
                declare(module.__spec__.submodule_search_locations)
                execute(module)

            spec.loader.exec_module = exec_module
        return spec


def declare(folders):
    """Declares the operators unless torchvision's own library, in one of `folders`, loads."""
    import torch

    library = PathFinder.find_spec("torchvision._C", folders)
    try:
        torch.ops.load_library(library.origin)
    except (AttributeError, OSError):
        own = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            own.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LIBRARIES.append(own)


def install():
    """Puts the finder in front, once."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
