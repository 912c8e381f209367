"""The vLLM plugin."""


def register() -> None:
    """Does nothing yet."""
