"""The `vtc` command, one command a file; `app` puts them together."""

from vtc.cli.app import app, main

__all__ = ["app", "main"]
