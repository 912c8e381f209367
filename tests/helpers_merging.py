"""What methods that merge make of tokens, written out token by token for the oracles."""

import functools

import torch
from torch import Tensor

from vtc.strategies.sparsevlm import split

# Methods that merge at the projector; the oracles do not redo that.
MERGED_BEFORE = (
    "visiondrop_projector",
    "visionzip",
    "apet_projector",
    "recoverable",
    "vflowopt_projector",
    "prunesid",
    "visiontrim",
    "vscan_projector",
    "flashvid",
)
ORDERED = ("visiondrop", "sparsevlm", "autoprune")  # strategies that put merged tokens last


def merging_of(stage, steps):
    """What makes merged hidden states of the images' steps in a stage inside the language model (see `Drop.merging`),
    or None; not for VisionDrop, which the oracle knows."""
    if stage.method == "sparsevlm":
        members = [members_of(step.flows) for step in steps]
        return functools.partial(recycled, members, [split(step.before, step.after)[1] for step in steps])
    if stage.method == "autoprune" and steps[0].layer > 1:
        members = [members_of(step.flows) for step in steps]
        counts = [clusters_of(step, mine) for step, mine in zip(steps, members, strict=True)]
        return functools.partial(recycled, members, counts, divisor=0.0)
    if stage.method == "apet":
        return functools.partial(reconstructed, stage.stage.basis)
    return None


def members_of(flows) -> dict[int, list[int]]:
    """The places in an image's run that flow into each."""
    found = {}
    for flow in flows:
        for place, into in zip(*(x.tolist() for x in flow.places()), strict=True):
            found.setdefault(into, []).append(place)
    return found


def clusters_of(step, members) -> int:
    """How many of a step's tokens are merged ones of AutoPrune, by its rules for their number and for that of the
    tokens that flow into them. The last one may have nothing but itself in it; then it does not matter."""
    kept, found = step.kept.tolist(), set()
    for plain in range(step.after + 1):
        gone = step.before - plain
        some = min(gone, int(0.3 * gone) + 1)
        count = some // 10 + 1 if gone else 0
        if plain + count == step.after and sum(len(members[place]) for place in kept[plain:]) == some:
            found.add(count)
    return min(found)


def recycled(members, counts, x: Tensor, hidden, view, drop, runs: list[Tensor], divisor: float = 1e-6) -> Tensor:
    """SparseVLM: the last tokens are the mean of what flows into them, divided by its number plus 1e-6."""
    out = x.clone()
    for run, kept, count, mine in zip(runs, drop.kept, counts, members, strict=True):
        for place in kept[len(kept) - count :].tolist():
            assert place in mine[place]
            assert not set(mine[place]) & set(kept[: len(kept) - count].tolist())
            out[0, run[place]] = x[0, run[mine[place]]].sum(0) / (len(mine[place]) + divisor)
    return out


def reconstructed(basis: int, x: Tensor, hidden: Tensor, view, drop, runs: list[Tensor]) -> Tensor:
    """ApET: see `apet`, on the tokens that are left of each image."""
    out = x.clone()
    for run, kept in zip(runs, drop.kept, strict=True):
        order = [place for place in view.order.tolist() if place in set(run.tolist())]
        places, tokens = apet(hidden[0, order], len(kept), basis, by_error=True, made_of=x[0, order])
        assert [order[i] for i in places] == run[kept].tolist()
        out[0, run[kept]] = tokens
    return out


def apet(x: Tensor, count: int, many: int, by_error=False, own: float = 0.0, first: int = 0, made_of=None):
    """The kept tokens of x [n, D], ascending, and what becomes of them [count, D]; or of the rows of another tensor, by
    the same weights."""
    made_of = x if made_of is None else made_of
    if count == len(x):
        return list(range(count)), made_of
    basis = [first]
    while len(basis) < min(many, max(1, count - 1)):
        away = [min(float((a - x[j]).square().sum()) for j in basis) for a in x]
        basis.append(away.index(max(away)))
    s = x[basis]
    fit = x @ s.T @ torch.linalg.inv(s @ s.T + 1e-5 * torch.eye(len(s), dtype=x.dtype))
    errors = (x - fit @ s).norm(dim=1).tolist()
    listed = sorted(range(len(x)), key=lambda i: (-errors[i], i))[:count]
    swaps = min(len(basis), count - 1)
    strong, weak = listed[: count - swaps], listed[count - swaps :]
    members = {i: [i] for i in strong}
    for i in range(len(x)):
        if i not in listed:
            alike = [float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in strong]
            members[strong[alike.index(max(alike))]].append(i)
    tokens = {i: made_of[mine].mean(0) for i, mine in members.items()}
    for i, j in zip(weak if by_error else sorted(weak), basis, strict=False):
        tokens[i] = (1 - own) * made_of[j] + own * made_of[i]
    kept = sorted(listed)
    return kept, torch.stack([tokens[i] for i in kept])
