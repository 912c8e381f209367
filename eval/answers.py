"""From docs to rows: prompt, generate, count, score. A sample that fails gives a row that says so."""

import contextlib
import functools
import math
from collections.abc import Sequence
from types import TracebackType

import torch

import vtc
from vtc.errors import PatchError
from vtc.eval import counts
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
                stack.enter_context(
                    vtc.patched(self.loaded.model, self.run.config.dump(), processor=self.loaded.processor)
                )
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
        told = self._report if any(pictures) else lambda: None
        with torch.inference_mode():
            answers, report, seconds = self.watch.measure(generate, told)
        lengths = inputs["attention_mask"].sum(1).tolist()
        text_in = [None if n is None else length - n for n, length in zip(placed, lengths)]
        if report is None:
            shape = None if loaded.family is None else loaded.family.language_shape()
            seen = [n if before is None else before for before, n in zip(full, placed)]
            measured = [counts.of_prompt(*given, shape) for given in zip(seen, placed, text_in)]
        else:
            self.notes = report.notes
            measured = counts.of_report(report)
        texts = loaded.processor.batch_decode(answers, skip_special_tokens=True)
        share = {part: None if value is None else value / len(docs) for part, value in seconds.items()}
        written = loaded.new_tokens(answers)
        return [
            self._row(docs[b], prompts[b], texts[b].strip())
            | {"images": len(pictures[b]), **measured[b], "text_in": text_in[b], "tokens_out": written[b]}
            | {"seconds": share, "batch": len(docs), "error": None}
            for b in range(len(docs))
        ]

    def _row(self, doc: dict, prompt: str, text: str) -> dict:
        scores = self.task.score(doc, text)
        return {
            **self._names(doc), "question": prompt, "reference": self.task.reference(doc), "text": text,
            "score": scores, "correct": scores["correct"],
        }  # fmt: skip

    def _names(self, doc: dict) -> dict:
        return {"id": self.task.ident(doc), "group": self.task.group(doc)}

    def _failed(self, doc: dict, error: Exception) -> dict:
        reason = " ".join(str(error).split())[:500]
        empty = dict.fromkeys(("text", "score", "correct", "images", "text_in", "tokens_out"))
        known = {"question": None, "reference": None}
        with contextlib.suppress(Exception):  # whatever raised may be what would be called here
            known = {"question": self.task.prompt(doc), "reference": self.task.reference(doc)}
        return {
            **self._names(doc), **known, **empty, **counts.nothing(), "seconds": dict.fromkeys(PARTS), "batch": 1,
            "error": f"{type(error).__name__}: {reason}",
        }  # fmt: skip

    def _report(self):
        """The patch's account of the call; None where there is no patch, or one that keeps everything."""
        if self.run.kind != "vtc" or self.run.config.keeps_all:
            return None
        return vtc.report(self.loaded.model)

    def _check_drop(self, row: dict) -> None:
        lossless = self.run.kind == "none" or (self.downsample is not None and self.downsample.mode == "blur")
        before, average, images = row["visual_before"], row["visual_average"], row["images"]
        if lossless or not before or self.run.config.keeps_all or average < before:
            return
        # Each image keeps at least one token, and its count may be rounded up.
        keep, most, asked = self.run.keep, images, "fewer"
        if isinstance(keep, int):
            most, asked = keep * images, keep
        elif keep is not None:
            most, asked = keep * before + images, math.ceil(keep * before)
        if most < before:
            raise PatchError(
                f"{self.run.name}: sample {row['id']} kept all {before} visual tokens where the budget asks for {asked}"
            )
