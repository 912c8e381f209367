"""Questions about documents, scored by the similarity of the answer to the nearest reference."""

from collections.abc import Mapping, Sequence

from vtc.eval.metrics import aggregate
from vtc.eval.metrics.short import anls
from vtc.eval.tasks._prompts import short_answer
from vtc.eval.tasks._references import ReferencesTask, public
from vtc.eval.tasks._rows import first_id, text_of


class DocumentTask(ReferencesTask):
    """Average normalised Levenshtein similarity, figure `anls`; the DocVQA family shares these columns."""

    splits = ("validation",)
    test_only_online = ("test",)
    max_new_tokens = 32
    primary = "anls"

    def ident(self, doc: Mapping) -> str:
        """The id of the question."""
        return first_id(doc, "questionId", "question_id")

    def prompt(self, doc: Mapping) -> str:
        """The question and the instruction to give a short answer."""
        return short_answer(text_of(doc, "question"), self.dialect)

    def score(self, reference: Sequence[str], text: str) -> dict:
        """The similarity to the nearest reference, 0 below 0.5; raises ConfigError without a reference."""
        return {"correct": anls(text, public(reference, self.name))}

    def figures(self, sums: Mapping) -> dict:
        """`anls`, the mean over questions."""
        return {"anls": aggregate.accuracy(sums)["accuracy"]}
