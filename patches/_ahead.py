"""What a layer projects when vtc looks at its attention ahead: keys of all columns, queries of the last, no values.

The layer's own attention module runs, as a shallow copy that shares its parameters and hooks; only its projections are
other objects. So nothing on the model changes, and another thread may run the same layer meanwhile.
"""

from torch import Tensor, nn

NAMES = ("q_proj", "k_proj", "v_proj")


class _Last(nn.Module):
    """A projection of the columns from `first` on; what it gives for others is 0."""

    def __init__(self, projection: nn.Module, first: int):
        super().__init__()
        self.projection, self.first = projection, first

    def forward(self, x: Tensor) -> Tensor:
        rows = self.projection(x[:, self.first :])
        out = rows.new_zeros(*x.shape[:-1], rows.shape[-1])
        out[:, self.first :] = rows
        return out


class _Absent(nn.Module):
    """In the place of a projection whose outputs nobody reads: zeros that take no memory. width: of an output."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], self.width)


def looking_ahead(attention: nn.Module, first: int) -> nn.Module:
    """The attention module of a decoder layer, which projects queries of hidden states [B, S, D] only from column
    `first` on and no values. The module itself where its projections are not three plain layers."""
    parts = dict(attention._modules)
    if any(not hasattr(parts.get(name), "weight") for name in NAMES):
        return attention
    copy = object.__new__(type(attention))
    vars(copy).update(vars(attention))
    parts["q_proj"] = _Last(parts["q_proj"], first)
    if type(parts["v_proj"]) is nn.Linear and not hasattr(parts["v_proj"].weight, "placements"):
        parts["v_proj"] = _Absent(parts["v_proj"].out_features)
    vars(copy)["_modules"] = parts
    return copy
