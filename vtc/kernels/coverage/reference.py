"""Greedy coverage in plain torch: a dense loop, and a lazy one that returns the same picks for a fraction of the work.

The gain of a candidate is always the same sum: its row of the candidate-major matrix [N, R], minus the coverage,
clamped at 0, added up along the contiguous axis. On the CPU torch adds up each row of two or more in the same way, so a
gain has the same bits in either form and any batch, and candidates with equal rows tie exactly. Other devices choose
the way by the number of rows, so the dense form, which always takes the same number, is the one for them.

The lazy form needs no slack for rounding. Coverage only rises; subtracting, clamping and adding in a fixed order are
each monotone in floating point, as rounding is; so a gain from an earlier step is an upper bound of the present one in
the very bits in which both are computed. The candidate with the largest bound, the first of them if several are equal,
is therefore the pick of the dense loop as soon as its own bound is up to date. A pick that gains nothing changes no
coverage and leaves all gains up to date.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = {"cpu": 2**18, "other": 2**26}  # entries of the matrix that are subtracted and summed at once
SMALL = 2**16  # entries of a matrix that a step reads as fast as it decides what to leave out
BATCH = 8  # bounds brought up to date at once, doubled while a step goes on
HIDDEN, TAKEN = -1.0, -torch.inf  # in the place of a gain, which is never negative: excluded, picked


@torch.no_grad()
def coverage_greedy(
    weights: Tensor,
    k: int,
    *,
    excluded: Tensor | None = None,
    method: str | None = None,
    quality: Tensor | None = None,
    combine: str = "multi",
) -> Tensor:
    """Picks the token that raises f(S) = sum over rows r of max over j in S of weights[r, j] most, again and again.

    f of the empty set is 0. Ties, steps in which nothing is gained too, go to the lower index.

    Memory: weights [N, R] candidate-major, one unit at a time, and a block. That copy is not made where `weights` is a
    transposed view of float32 or float64 storage [B, N, R]: build it so when it is large (the softmax over rows of a
    symmetric matrix is a softmax over its columns, transposed). `weights` isn't changed.

    Args:
        weights: [B, R, N], finite and not negative: how well token j serves row r. Float32 inside (float64 for
            float64 weights).
        k: how many to pick, 0..N.
        excluded: bool [B, N], True for tokens that are not to be picked. If k exceeds the others, they come last, in
            the order of their indices.
        method: "lazy": gains from earlier steps as upper bounds, and only the largest are renewed, which reads a few
            per cent of the matrix per step but looks at numbers on the host. "dense": all gains in every step, without
            waiting for the device. None: lazy on the CPU for all but small matrices, else dense. On the CPU
            the picks are the same.
        quality: [B, N], not negative: what raises f by g is worth g times the token's quality (combine "multi"), or g
            plus it ("add"), and the token of the largest worth is picked. None: g alone. Ties go to the lower index,
            also where everything is covered and all are worth 0.

    Returns:
        LongTensor [B, k], in the order of the picks, without duplicates.

    Raises:
        ValueError: a shape, a dtype, k, a method or a combine that doesn't fit.

    Source: MMTok (arXiv 2508.18264), whose code sums over the other axis, so that sums differ from these by rounding,
    and which repeats index 0 where there are more picks than tokens that are not excluded; with quality SCOPE (arXiv
    2510.24214). Lazy evaluation: Minoux, Accelerated greedy algorithms for maximizing submodular set functions, 1978.
    """
    check(weights, k, excluded, method, quality, combine)
    units, length, n = weights.shape
    lazy = method == "lazy" or (method is None and weights.device.type == "cpu" and length * n > SMALL)
    limit = BLOCK["cpu" if weights.device.type == "cpu" else "other"]
    together = 1 if lazy else max(1, limit // max(1, length * n))
    order = torch.empty(units, k, dtype=torch.long, device=weights.device)
    for b in range(0, units if k else 0, together):
        part = slice(b, b + together)
        hidden = None if excluded is None else excluded[part]
        worth = _worth(None if quality is None else quality[part].to(weights.device), combine)
        order[part] = (_lazy if lazy else _dense)(candidate_major(weights[part]), k, hidden, limit, worth)
    return order


def check(
    weights: Tensor,
    k: int,
    excluded: Tensor | None,
    method: str | None,
    quality: Tensor | None = None,
    combine: str = "multi",
) -> None:
    """Raises ValueError for arguments that don't fit."""
    if weights.ndim != 3 or not weights.is_floating_point():
        raise ValueError(f"weights are {weights.dtype} {list(weights.shape)}; possible: floats [B, R, N]")
    units, length, n = weights.shape
    if not 0 <= k <= n:
        raise ValueError(f"k={k} for {n} tokens; possible: 0 to {n}")
    if excluded is not None and (tuple(excluded.shape) != (units, n) or excluded.dtype != torch.bool):
        raise ValueError(f"excluded is {excluded.dtype} {list(excluded.shape)}; possible: bool [{units}, {n}]")
    if method not in (None, "lazy", "dense"):
        raise ValueError(f"method={method!r}; possible: 'lazy', 'dense' or None")
    if quality is not None and tuple(quality.shape) != (units, n):
        raise ValueError(f"quality is {quality.dtype} {list(quality.shape)}; possible: floats [{units}, {n}]")
    if combine not in ("multi", "add"):
        raise ValueError(f"combine={combine!r}; possible: 'multi' or 'add'")


def _worth(quality: Tensor | None, combine: str) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What gains [B, n] are worth, of all tokens or of those at index [n]. It rises with the gain, as rounding does, so
    that bounds stay bounds."""

    def worth(gain: Tensor, index: Tensor | None = None) -> Tensor:
        if quality is None:
            return gain
        factor = (quality if index is None else quality[:, index]).to(gain.dtype)
        return gain * factor if combine == "multi" else gain + factor

    return worth


def candidate_major(weights: Tensor) -> Tensor:
    """Contiguous [B, N, R] from [B, R, N], float32 or float64; unit by unit, as torch is quicker to turn a matrix."""
    rows, dtype = weights.transpose(1, 2), torch.promote_types(weights.dtype, torch.float32)
    if rows.is_contiguous() and rows.dtype == dtype:
        return rows
    out = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    for target, source in zip(out, rows):
        target.copy_(source)
    return out


def _gains(rows: Tensor, covered: Tensor) -> Tensor:
    """Gains [B, n] of candidates, rows [B, n, R], over covered [B, 1, R]: the only place where they are computed."""
    return torch.sub(rows, covered).relu_().sum(2)


def _all_gains(rows: Tensor, covered: Tensor, limit: int) -> Tensor:
    """Gains [B, N] of all candidates, in blocks of equal size (the last one overlaps): see the top of the file."""
    units, n, length = rows.shape
    size = min(n, max(2, limit // max(1, units * length)))
    gains = rows.new_empty(units, n)
    for i in range(0, n, size):
        i = min(i, n - size)
        gains[:, i : i + size] = _gains(rows[:, i : i + size], covered)
    return gains


def _dense(rows: Tensor, k: int, excluded: Tensor | None, limit: int, worth: Callable) -> Tensor:
    """Picks [B, k] from rows [B, N, R], all gains renewed in every step."""
    units, n, length = rows.shape
    unit = torch.arange(units, device=rows.device)
    covered = rows.new_zeros(units, 1, length)
    taken = torch.zeros(units, n, dtype=torch.bool, device=rows.device)
    order = torch.empty(units, k, dtype=torch.long, device=rows.device)
    for i in range(k):
        gain = worth(_all_gains(rows, covered, limit))
        if excluded is not None:
            gain.masked_fill_(excluded, HIDDEN)
        pick = gain.masked_fill_(taken, TAKEN).argmax(1)
        order[:, i] = pick
        taken[unit, pick] = True
        torch.maximum(covered, rows[unit, pick][:, None], out=covered)
    return order


def _lazy(rows: Tensor, k: int, excluded: Tensor | None, limit: int, worth: Callable) -> Tensor:
    """Picks [1, k] from rows [1, N, R], gains renewed only where they may decide.

    bounds [N]: the last known gain. stale [N]: the same where it is of an earlier step, -inf where it is up to date. On
    a CPU the steps are so small that NumPy's view of the same memory decides in half the time.
    """
    _, n, length = rows.shape
    most = max(2, limit // max(1, length))
    covered = rows.new_zeros(1, 1, length)
    first = worth(_all_gains(rows, covered, limit))[0]
    if excluded is not None:
        first.masked_fill_(excluded[0], HIDDEN)
    bounds, old = first.cpu().numpy(), torch.full((n,), TAKEN, dtype=rows.dtype)
    stale, picks = old.numpy(), []
    while len(picks) < k:
        size, pick = BATCH, int(bounds.argmax())
        while stale[pick] != TAKEN:
            index = old.topk(min(size, most, n)).indices
            new = worth(_gains(rows.index_select(1, index.to(rows.device)), covered), index)[0].cpu().numpy()
            at = index.numpy()
            due = stale[at] != TAKEN
            bounds[at[due]], stale[at] = new[due], TAKEN
            size, pick = 2 * size, int(bounds.argmax())
        picks.append(pick)
        gained, bounds[pick] = bounds[pick] > 0, TAKEN
        if gained:
            torch.maximum(covered, rows[:, pick, None], out=covered)
            stale[:] = bounds
            stale[bounds < 0] = TAKEN
    return torch.tensor(picks, device=rows.device)[None]
