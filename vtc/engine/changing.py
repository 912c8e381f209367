"""A stage that changes attention, during one prefill and the decode steps that follow it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.core.changes import LayerChange
from vtc.core.report import Report
from vtc.engine import clock
from vtc.engine.received import Rows
from vtc.engine.rewriting import Attended, Marks, rewrite

if TYPE_CHECKING:
    from vtc.engine.inside import Plan
    from vtc.engine.state import PrunedPrompt


class Changes:
    """The changes made in one prefill: tokens are marked before a layer runs, and attention rows are rewritten in it.
    Marks are stored with the prompt; counts go into the report."""

    def __init__(self, plan: "Plan", prompt: "PrunedPrompt", report: Report):
        self.plan, self.prompt, self.report = plan, prompt, report
        self.segment, self.visual, self.rows = None, None, []

    @torch.no_grad()
    def mark(self, layer: int, hidden: Tensor, rows: Rows) -> None:
        """Marks tokens of a layer, given its input hidden states [B, S, D]."""
        start = clock.now()
        if self.segment is not rows.segment:
            self._enter(rows, hidden.device)
        valid = None if rows.valid is None else rows.valid.to(hidden.device)
        first = hidden.new_zeros(len(hidden), dtype=torch.long) if valid is None else valid.to(torch.uint8).argmax(1)
        marked = self.plan.attention.stage.mark(hidden, first, self.plan.decoder)
        marked = marked if valid is None else marked & valid
        self.prompt.marks[layer] = Marks(marked, self.visual.to(hidden.device))
        self.report.spent_inside(observe=clock.now() - start)

    def _enter(self, rows: Rows, device: torch.device) -> None:
        """Notes the visual tokens of a segment and the rows that may be changed: the text after the first image."""
        self.segment, prompts = rows.segment, range(len(rows.kept))
        self.visual = torch.stack([rows.visual(b) for b in prompts]).to(device)
        no_rows = torch.empty(0, dtype=torch.long, device=device)
        self.rows = [rows.text_columns(b, 0).to(device) if rows.kept[b] else no_rows for b in prompts]

    def prefill(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask, options: dict, out: tuple) -> tuple:
        """A layer's attention output with the changed rows in place."""
        start = clock.now()
        call, marks = Attended(query, key, value, mask, options, query.shape[2]), self.prompt.marks[layer]
        rows = [queries.to(query.device) for queries in self.rows]
        ranks = self.plan.ranks.holding(query.shape[1])
        out, counts = rewrite(self.plan.attention.stage, call, marks, rows, out)
        counts, heads = ranks.total(counts), ranks.count * query.shape[1]
        method, possible = self.plan.attention.method, [len(queries) * heads for queries in rows]
        self.report.attention.append(LayerChange(method, layer, possible, marks.marked.sum(1), counts))
        self.report.spent_inside(observe=clock.now() - start)
        return out


def decoded(
    plan: "Plan", prompt: "PrunedPrompt", layer: int, query: Tensor, key: Tensor, value: Tensor, mask, options: dict,
    out: tuple,
) -> tuple:  # fmt: skip
    """A layer's attention output for new tokens; all of their rows may be changed, using the marks of the prefill."""
    segment = max((s for s in prompt.segments if s.first <= layer), key=lambda s: s.first)
    ends = segment.width + prompt.seen - prompt.length
    call = Attended(query, key, value, mask, options, ends)
    rows = torch.arange(query.shape[2], device=query.device)
    return rewrite(plan.attention.stage, call, prompt.marks[layer], [rows] * len(query), out)[0]
