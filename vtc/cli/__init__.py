"""The `vtc` command, one command a file; `app` puts them together."""

from vtc.cli.app import main

__all__ = ["main"]
