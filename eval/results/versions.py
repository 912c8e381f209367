"""The software versions that a result was made with."""

import functools
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import vtc

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "pillow")


def version(package: str) -> str | None:
    """The installed version of a package, None if it is not installed."""
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """The git commit of the checkout that vtc runs from, with `+` if tracked files are modified; None without one."""
    root = Path(vtc.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=20, check=True)
        head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        return head + ("+" if git(["git", "status", "--porcelain", "-uno"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
