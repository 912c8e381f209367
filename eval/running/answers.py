"""From docs to rows: prompt, generate, count, score. A sample that fails gives a row with its error."""

import contextlib
import functools
import gc
import math
from collections.abc import Mapping, Sequence
from types import TracebackType

import torch

import vtc
from vtc.core.errors import PatchError
from vtc.eval.models import Loaded
from vtc.eval.results import counts
from vtc.eval.results.meanings import PARTS
from vtc.eval.results.scoring import failure
from vtc.eval.running.agreement import agreement, last_state, whole_state
from vtc.eval.running.downsample import Downsample
from vtc.eval.running.plan import Run
from vtc.eval.running.timing import Stopwatch
from vtc.eval.tasks import PICTURE, Task


class Answerer:
    """A context manager that prepares a model for one run: patched, or with smaller pictures, and timed.

    Calling it with docs answers them, in one generate() call if memory allows, and returns their rows and times, in
    order. agreement: rows have that, too, see `vtc.eval.running.agreement`; None where pictures are made smaller and
    on an unknown family. system, pad_square: see `vtc.eval.models.Loaded.encode`.
    """

    def __init__(
        self, loaded: Loaded, run: Run, task: Task, max_new_tokens: int, agreement: bool = False, **encoding
    ):  # fmt: skip
        self.loaded, self.run, self.task, self.max_new_tokens = loaded, run, task, max_new_tokens
        self.agreement, self.encoding = agreement, encoding
        self.downsample = Downsample(loaded, run.config.allocate().projector) if run.kind == "downsample" else None
        self.notes: list[str] = []
        self.most: int | None = None  # the most samples at a time that fit into memory, once known

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

    def __call__(self, docs: Sequence[Mapping]) -> list[tuple[dict, dict]]:
        """(row, times) of each doc. If a batch does not fit into memory, it and all later ones are halved until they
        do; if it raises anything else, its docs are tried one by one, and only the row of the failing one has an error.

        Raises PatchError if a budget below 1 dropped nothing: the figures of such a run would be misleading.
        """
        results, waiting = [], list(docs)
        while waiting:
            batch = waiting[: self.most or len(waiting)]
            try:
                answered = self._answer(batch)
            except Exception as error:
                too_much, reason = _out_of_memory(error), error
                if len(batch) == 1:
                    answered = [self._failed(batch[0], error)]
                elif too_much:
                    answered = None
                else:
                    answered = [one for doc in batch for one in self([doc])]
                del error
            if answered is None:
                self._halve(len(batch), reason)
                continue
            results += answered
            waiting = waiting[len(batch) :]
        for row, _ in results:
            self._check_drop(row)
        return results

    def _halve(self, size: int, reason: Exception) -> None:
        self.most = size // 2
        note = f"out of memory with {size} samples at a time, went on with {self.most}"
        self.notes = [*[n for n in self.notes if not n.startswith("out of memory")], note]
        reason.__traceback__ = None  # it holds the tensors of the call that failed
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _answer(self, docs: Sequence[Mapping]) -> list[tuple[dict, dict]]:
        loaded = self.loaded
        questions = [self.task.asked(doc) for doc in docs]
        prompts = [row["prompt"] for row in questions]
        pictures = [self.task.images(doc) for doc in docs]
        clips = [self.task.clips(doc) for doc in docs]
        full: list[int | None] = [None] * len(docs)
        if self.downsample is not None:
            pictures, full = zip(*[self.downsample.apply(prompt_images) for prompt_images in pictures])
        inputs = loaded.encode([self._parts(prompt) for prompt in prompts], pictures, clips=clips, **self.encoding)
        placed = loaded.visual_tokens(inputs)
        generate = functools.partial(loaded.answer, inputs, self.max_new_tokens)
        get_report = self._report if any(pictures) or any(clips) else lambda: None
        compared = self.agreement and self.downsample is None and loaded.family is not None
        agreed: dict = {"agreement": [None] * len(docs)} if self.agreement else {}
        with torch.inference_mode():
            whole = whole_state(loaded, inputs) if compared else None
            measure = functools.partial(self.watch.measure, generate, get_report)
            if whole is None:
                answers, report, seconds = measure()
            else:
                (answers, report, seconds), state = last_state(loaded.family.language_model, measure)
                agreed = {"agreement": agreement(whole, state)}
        lengths = inputs["attention_mask"].sum(1).tolist()
        text_in = [None if n is None else length - n for n, length in zip(placed, lengths)]
        if report is None:
            shape = None if loaded.family is None else loaded.family.language_shape()
            full_counts = [n if before is None else before for before, n in zip(full, placed)]
            measured = [counts.of_prompt(*sample_counts, shape) for sample_counts in zip(full_counts, placed, text_in)]
        else:
            self.notes = list(dict.fromkeys([*self.notes, *report.notes]))
            measured = counts.of_report(report)
        texts = loaded.processor.batch_decode(answers, skip_special_tokens=True)
        share = {part: None if value is None else value / len(docs) for part, value in seconds.items()}
        written = loaded.new_tokens(answers)
        return [
            (
                self._row(questions[b], texts[b].strip())
                | {"images": len(pictures[b]) + len(clips[b]), **measured[b]}
                | {"text_in": text_in[b], "tokens_out": written[b]}
                | {name: values[b] for name, values in agreed.items()}
                | {"error": None},
                {"batch": len(docs), "seconds": share},
            )
            for b in range(len(docs))
        ]

    def _parts(self, prompt: str) -> str | list[str | None]:
        """A prompt in the form that `Loaded.encode` takes, split where its pictures are."""
        if not self.task.inline or PICTURE not in prompt:
            return prompt
        first, *later = prompt.split(PICTURE)
        parts = [first, *(part for text in later for part in (None, text))]
        return [part for part in parts if part != ""]

    def _row(self, question: Mapping, text: str) -> dict:
        return {**question, "text": text, "score": self.task.score(question["reference"], text)}

    def _failed(self, doc: Mapping, error: Exception) -> tuple[dict, dict]:
        empty = dict.fromkeys(("text", "score", "images", "text_in", "tokens_out"))
        known = {**self.task.names(doc), "prompt": None, "reference": None}
        with contextlib.suppress(Exception):  # this may be what raised the error
            known = self.task.asked(doc)
        row = {**known, **empty, **counts.nothing(), "error": failure(error)}
        return row, {"batch": 1, "seconds": dict.fromkeys(PARTS)}

    def _report(self):
        """The patch's report on the call; None without a patch, or if it keeps everything."""
        if self.run.kind != "vtc" or self.run.config.keeps_all:
            return None
        return vtc.report(self.loaded.model)

    def _check_drop(self, row: dict) -> None:
        lossless = self.run.kind == "none" or (self.downsample is not None and self.downsample.mode == "blur")
        before, average, images = row["visual_before"], row["visual_average"], row["images"]
        if lossless or not before or not self.run.config.drops:
            return
        keep = self.run.keep
        if counts.dropped_nothing(keep, images, before, average):
            limit = "fewer" if keep is None else keep if isinstance(keep, int) else math.ceil(keep * before)
            raise PatchError(
                f"{self.run.name}: sample {row['id']} kept all {before} visual tokens where the budget asks for {limit}"
            )


def _out_of_memory(error: Exception) -> bool:
    """Whether GPU or main memory ran out; on the CPU only the message says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
