"""POPE: is an object in the picture? Yes-or-no questions about COCO pictures, half with each answer.

Absent objects in the questions are random, popular (frequent in COCO) or adversarial (they often occur together with
objects in the picture): three categories of 3,000 questions on the hub, 9,000 in all. LLaVA's own list has 8,910 (2,910
random ones), so figures of its scripts differ a little from those on the hub's data.

    {"id": "0", "question_id": "1", "question": "Is there a snowboard in the image?", "answer": "yes",
     "image_source": "COCO_val2014_000000310196", "category": "adversarial", "image": <picture>}

The splits `adversarial`, `popular` and `random` are those of the hub's config Full. A row may have its answer in
`label` instead, as in LLaVA's and POPE's own files.

Prompt: the question and LLaVA's sentence for short answers (llava, lmms); ` Please answer yes or no.` (qwen).
How answers are read (see `vtc.eval.metrics.yesno`): in llava, the form that papers use, anything that does not say no
is yes; in lmms the whole answer must be yes or no, and other answers are left out of precision and recall; in qwen
(VLMEvalKit) the answer must contain exactly one of the two words, and counts as no otherwise if the label is yes. The
figure of papers is `f1`, the mean of the three categories' F1; VLMEvalKit prints the F1 of all questions together,
`f1_pooled`. `yes_ratio` is the share of yes among the answers; lmms-eval uses the same name for the share among the
labels, `yes_labels`. Precision, recall and F1 with denominator 0 are 0, as printed by lmms-eval and VLMEvalKit, while
LLaVA's script crashes.

Paper: https://arxiv.org/abs/2305.10355. Scoring: https://github.com/haotian-liu/LLaVA, llava/eval/eval_pope.py.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vtc.eval.data.docs import Docs, Source, open_source
from vtc.eval.metrics import aggregate
from vtc.eval.metrics.yesno import detection, pope_llava, pope_lmms, pope_vlmevalkit
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import QWEN_YES_NO, short_answer
from vtc.eval.tasks._rows import first_id, name_of, text_of, yes_or_no

READ = {"llava": pope_llava, "lmms": pope_lmms, "qwen": pope_vlmevalkit}
COUNTS = ("tp", "fp", "fn", "tn", "other")
COUNTED = {("yes", "yes"): "tp", ("yes", "no"): "fp", ("no", "yes"): "fn", ("no", "no"): "tn"}  # (answer, label)


@TASKS.register("pope")
class Pope(Task):
    """Hallucinated objects: accuracy, precision, recall, F1 and yes ratio per category."""

    name = "pope"
    version = 2
    source = Source(("lmms-lab-encoder/POPE", "lmms-lab/POPE"))
    splits = ("test", "adversarial", "popular", "random")
    columns = ("question", ("answer", "label"))
    max_new_tokens = 128
    primary = "f1"

    def load(self, split: str, place: str | None) -> Docs:
        """All rows of a split; the splits of single categories are in a separate config."""
        source = self.source if split == "test" else replace(self.source, config="Full")
        return open_source(self.name, source, split, self.pictures, place)

    def prompt(self, doc: Mapping) -> str:
        """The question and the instruction for the answer."""
        question = text_of(doc, "question").strip()
        return question + QWEN_YES_NO if self.dialect == "qwen" else short_answer(question, self.dialect)

    def ident(self, doc: Mapping) -> str:
        """Category and number, as numbers on the hub start from 1 in each category."""
        return f"{self.category(doc)}/{first_id(doc, 'question_id', 'id')}"

    def category(self, doc: Mapping) -> str:
        """adversarial, popular or random."""
        return name_of(doc, "category") or self.name

    def reference(self, doc: Mapping) -> str:
        """yes or no; raises ConfigError for any other label."""
        return yes_or_no(doc["label"] if "label" in doc else doc["answer"], repr(self.ident(doc)))

    def score(self, reference: str, text: str) -> dict:
        """Whether the answer is right; `label` is the right answer."""
        parsed = READ[self.dialect](text)
        return {"correct": float(parsed == reference), "parsed": parsed, "label": reference}

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """Per category true and false positives and negatives, other answers, and labels that are yes."""
        sums: dict[str, float] = defaultdict(float)
        for row in rows:
            answer, label = row["score"]["parsed"], row["score"]["label"]
            if answer is None and label == "yes" and self.dialect == "qwen":
                answer = "no"
            sums[f"n/{row['category']}"] += 1
            sums[f"yes/{row['category']}"] += float(label == "yes")
            sums[f"{COUNTED.get((answer, label), 'other')}/{row['category']}"] += 1
        return dict(sums)

    def figures(self, sums: Mapping) -> dict:
        """`f1`, the mean over categories, all five figures per category and over all questions, and `yes_labels`."""
        categories = aggregate.names(sums)
        zero = 0.0 * sums[f"n/{categories[0]}"]
        counts = {c: [sums.get(f"{name}/{c}", zero) for name in COUNTS] for c in categories}
        per = {c: _detection(*counts[c]) for c in categories}
        pooled = _detection(*(sum(column) for column in zip(*counts.values())))
        figures = {"f1": aggregate.mean([per[c]["f1"] for c in categories])}
        figures |= {{"f1": "f1_pooled"}.get(name, name): value for name, value in pooled.items()}
        n, yes = (sum(sums.get(f"{name}/{c}", zero) for c in categories) for name in ("n", "yes"))
        figures["yes_labels"] = aggregate.ratio(yes, n)
        return figures | {f"{name}/{c}": value for c in categories for name, value in per[c].items()}


def _detection(*counts) -> dict:
    """`detection` with 0 for undefined figures; nan only if there are no questions at all."""
    nonzero = sum(counts) > 0
    return {name: np.where(nonzero & np.isnan(value), 0.0, value)[()] for name, value in detection(*counts).items()}
