"""HallusionBench: yes-or-no questions about misleading pictures, in sets; 951 with a picture.

    {"category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", "figure_id": "1",
     "question_id": "0", "question": "Is the left line longer than the right line?",
     "gt_answer": "1", "gt_answer_details": "Yes, ...", "filename": "./VD/illusion/0_1.png", "image": <picture>}

`gt_answer` is 1 for yes. The split `non_image` has the questions without a picture; together there are 1,129.

Prompt: the bare question (llava, which has no script for it, and lmms); with ` Please answer yes or no.` (qwen).
Scoring without a judge, in all dialects: an answer that contains `yes` in any case means yes, any other no. The paper
and lmms-eval ask GPT-4 instead, so their numbers are not comparable. `aAcc` is the share of right answers, `qAcc` the
share of questions answered correctly for every picture of their set, `fAcc` the share of pictures with all questions
answered correctly. A set (category, subcategory, set_id) is scored, limited and resampled as a whole.

Paper: https://arxiv.org/abs/2310.14566. Data and scoring: https://github.com/tianyi-lab/HallusionBench; the rule
without a judge: https://github.com/EvolvingLMMs-Lab/lmms-eval, tasks/hallusion_bench/evaluate_hb.py.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.docs import Source
from vtc.eval.metrics import aggregate
from vtc.eval.metrics.yesno import hallusion
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import QWEN_YES_NO
from vtc.eval.tasks._rows import plain, text_of

LABELS = {"yes": "1", "no": "0"}


@TASKS.register("hallusion")
class Hallusion(Task):
    """Misleading pictures, scored by string comparison."""

    name = "hallusion"
    version = 2
    source = Source(("lmms-lab-encoder/HallusionBench", "lmms-lab/HallusionBench"))
    splits = ("image", "non_image")
    columns = ("question", "gt_answer", "category", "subcategory", "set_id", "figure_id", "question_id")
    max_new_tokens = 128
    primary = "aAcc"

    def prompt(self, doc: Mapping) -> str:
        """The bare question; in Qwen's dialect with the instruction to answer yes or no."""
        return text_of(doc, "question") + (QWEN_YES_NO if self.dialect == "qwen" else "")

    def ident(self, doc: Mapping) -> str:
        """category/subcategory/set/figure/question."""
        return "/".join([self.group(doc), *(plain(doc[name], name) for name in ("figure_id", "question_id"))])

    def group(self, doc: Mapping) -> str:
        """The set, as qAcc and fAcc combine answers only within sets."""
        return "/".join(plain(doc[name], name) for name in ("category", "subcategory", "set_id"))

    def category(self, doc: Mapping) -> str:
        """VD (the picture is needed) or VS (it supplements)."""
        return plain(doc["category"], "category")

    def needs_picture(self, doc: Mapping) -> bool:
        """True, unless the row says that it has no picture: `visual_input` 0."""
        return str(doc.get("visual_input")).strip() != "0"

    def reference(self, doc: Mapping) -> dict:
        """`answer`, 1 for yes and 0 for no, and the ids of question and figure within the set; raises ConfigError for
        any other answer."""
        names = {name: plain(doc[f"{name}_id"], f"{name}_id") for name in ("question", "figure")}
        answer = plain(doc["gt_answer"], "gt_answer").strip()
        if answer not in LABELS.values():
            raise ConfigError(f"gt_answer={shown(doc['gt_answer'])}; possible: 1 for yes, 0 for no")
        return {"answer": answer, **names}

    def score(self, reference: Mapping, text: str) -> dict:
        """Whether the answer is right; `question` and `figure` are for `tally`."""
        parsed = hallusion(text)
        names = {name: reference[name] for name in ("question", "figure")}
        return {"correct": float(LABELS[parsed] == reference["answer"]), "parsed": parsed, **names}

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """The answers, questions and figures of one set: how many there are, and how many are all right."""
        sums = aggregate.tally(rows)
        for name in ("question", "figure"):
            right: dict[str, list[float]] = defaultdict(list)
            for row in rows:
                right[row["score"][name]].append(row["score"]["correct"])
            sums[f"all_{name}s"] = float(len(right))
            sums[f"right_{name}s"] = float(sum(all(marks) for marks in right.values()))
        return sums

    def figures(self, sums: Mapping) -> dict:
        """`aAcc`, `qAcc`, `fAcc`, and the share of right answers per category."""
        accuracies = aggregate.accuracy(sums)
        return {
            "aAcc": accuracies["accuracy"],
            "qAcc": aggregate.ratio(sums["right_questions"], sums["all_questions"]),
            "fAcc": aggregate.ratio(sums["right_figures"], sums["all_figures"]),
            **{name: value for name, value in accuracies.items() if name.startswith(aggregate.PER_CATEGORY)},
        }
