"""The part of the report about stages that change attention."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class LayerChange:
    """One decoder layer (0-based) at prefill. stage: the method; rows: heads x text rows after an image that could be
    changed, per prompt; marked, changed [B]: tokens that the method marked, rows that it changed, per prompt, on the
    device."""

    stage: str
    layer: int
    rows: list[int]
    marked: Tensor = field(repr=False)
    changed: Tensor = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        counts = {"marked": self.marked.tolist(), "changed": self.changed.tolist()}
        return {"stage": self.stage, "layer": self.layer, "rows": self.rows, **counts}


def in_words(changes: list[LayerChange]) -> str:
    """One line for all layers."""
    names, layers = "+".join(dict.fromkeys(c.stage for c in changes)), [c.layer for c in changes]
    changed, rows = sum(int(c.changed.sum()) for c in changes), sum(sum(c.rows) for c in changes)
    touched = sum(bool(c.changed.any()) for c in changes)
    return (
        f"{changed} of {rows} rows by {names} (heads x text after an image, layers {layers[0]}-{layers[-1]}), in "
        f"{touched} of {len(layers)} layers"
    )
