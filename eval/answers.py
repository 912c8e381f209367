"""From docs to rows: prompt, generate, count, score. A sample that fails gives a row that says so."""

import contextlib
import functools
from collections.abc import Sequence
from types import TracebackType

import torch

import vtc
from vtc.errors import PatchError
from vtc.eval.downsample import Downsample
from vtc.eval.models import Loaded
from vtc.eval.plan import Run
from vtc.eval.tasks import Task
from vtc.eval.timing import PARTS, Stopwatch


class Answerer:
    """A model made ready for one run by `with`: patched, or with smaller pictures, and with the stopwatch on.

    Calling it with docs answers them in one generate() call and returns their rows, in order.
    """

    def __init__(self, loaded: Loaded, run: Run, task: Task, max_new_tokens: int):
        self.loaded, self.run, self.task, self.max_new_tokens = loaded, run, task, max_new_tokens
        self.downsample = Downsample(loaded, run.config.stages[0].budget) if run.kind == "downsample" else None
        self.notes: list[str] = []

    def __enter__(self) -> "Answerer":
        with contextlib.ExitStack() as stack:
            if self.run.kind == "vtc":
                stack.enter_context(vtc.patched(self.loaded.model, self.run.config.dump()))
            self.watch = stack.enter_context(Stopwatch(self.loaded.family))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def __call__(self, docs: Sequence[dict]) -> list[dict]:
        """Rows of the docs. If the batch raises, its docs are tried one by one, and only the culprit's row fails.

        Raises PatchError if a budget below 1 dropped nothing: figures of such a run would be a lie.
        """
        try:
            rows = self._answer(docs)
        except Exception as error:
            if len(docs) > 1:
                return [row for doc in docs for row in self([doc])]
            rows = [self._failed(docs[0], error)]
        for row in rows:
            self._check_drop(row)
        return rows

    def _answer(self, docs: Sequence[dict]) -> list[dict]:
        loaded = self.loaded
        prompts = [self.task.prompt(doc) for doc in docs]
        pictures = [self.task.images(doc) for doc in docs]
        full: list[int | None] = [None] * len(docs)
        if self.downsample is not None:
            pictures, full = zip(*[self.downsample.apply(mine) for mine in pictures])
        inputs = loaded.encode(prompts, pictures)
        placed = loaded.visual_tokens(inputs)
        generate = functools.partial(loaded.answer, inputs, self.max_new_tokens)
        with torch.inference_mode():
            answers, report, seconds = self.watch.measure(generate, self._report)
        counts = [(n if before is None else before, n) for before, n in zip(full, placed)]
        if report is not None:
            self.notes = report.notes
            counts = [
                (
                    sum(i.before for i in report.images if i.prompt == b),
                    sum(i.after for i in report.images if i.prompt == b),
                )
                for b in range(len(docs))
            ]
        lengths = inputs["attention_mask"].sum(1).tolist()
        texts = loaded.processor.batch_decode(answers, skip_special_tokens=True)
        measured = zip(docs, prompts, counts, placed, lengths, texts, loaded.new_tokens(answers))
        share = {part: None if value is None else value / len(docs) for part, value in seconds.items()}
        return [self._row(*parts, share, len(docs)) for parts in measured]

    def _row(self, doc, prompt: str, counts: tuple, placed: int | None, length: int, text: str, written: int,
             seconds: dict, batch: int) -> dict:  # fmt: skip
        text_in = None if placed is None else length - placed
        scores = self.task.score(doc, text.strip())
        return {
            **self._names(doc), "question": prompt, "reference": self.task.reference(doc), "text": text.strip(),
            "score": scores, "correct": scores["correct"], "visual_before": counts[0], "visual_after": counts[1],
            "text_in": text_in, "tokens_out": written,
            "prefill_flops": [self._flops(text_in, n) for n in counts],
            "seconds": seconds, "batch": batch, "error": None,
        }  # fmt: skip

    def _names(self, doc: dict) -> dict:
        return {"id": self.task.ident(doc), "group": self.task.group(doc)}

    def _failed(self, doc: dict, error: Exception) -> dict:
        reason = " ".join(str(error).split())[:500]
        empty = dict.fromkeys(("text", "score", "correct", "visual_before", "visual_after", "text_in", "tokens_out"))
        known = {"question": None, "reference": None}
        with contextlib.suppress(Exception):  # whatever raised may be what would be called here
            known = {"question": self.task.prompt(doc), "reference": self.task.reference(doc)}
        return {
            **self._names(doc), **known, **empty, "prefill_flops": [None, None], "seconds": dict.fromkeys(PARTS),
            "batch": 1, "error": f"{type(error).__name__}: {reason}",
        }  # fmt: skip

    def _report(self):
        """The patch's account of the call; None where there is no patch, or one that keeps everything."""
        if self.run.kind != "vtc" or self.run.config.keeps_all:
            return None
        return vtc.report(self.loaded.model)

    def _flops(self, text: int | None, visual: int | None) -> int | None:
        """Prefill FLOPs of the language model for one prompt, by the formula of vtc's own report."""
        if self.loaded.family is None or text is None:
            return None
        shape = self.loaded.family.language_shape()
        return shape.prefill_flops([text + visual] * shape.layers)

    def _check_drop(self, row: dict) -> None:
        lossless = self.run.kind == "none" or (self.downsample is not None and self.downsample.mode == "blur")
        before, after = row["visual_before"], row["visual_after"]
        if lossless or not before or before == 1 or self.run.config.keeps_all:
            return
        keep = self.run.keep
        if after >= before and not (isinstance(keep, int) and keep >= before):
            raise PatchError(
                f"{self.run.name}: sample {row['id']} kept all {before} visual tokens where the budget asks for fewer"
            )
