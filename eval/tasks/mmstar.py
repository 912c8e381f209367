"""MMStar: 1,500 multiple-choice questions that need the picture, 250 in each of six categories with three axes each.

    {"index": 0, "question": "What is on the chair?\\nOptions: A: A cat., B: A hat., C: A book., D: Nothing.",
     "answer": "B", "category": "coarse perception", "l2_category": "image scene and topic",
     "meta_info": {"source": "...", "split": "...", "image_path": "..."}, "image": <picture>}

Prompt: the question, which includes its options, and LLaVA's sentence without its full stop (lmms, and llava, which has
no script for it); Qwen's own form (qwen), with the options parsed from the question or, if that fails, with the whole
question and Qwen's last sentence.
Scoring: lmms-eval's letter finder in all dialects. `average` is lmms-eval's figure, the mean over the 18 axes; a
category's figure is the mean over its three axes. `accuracy` is the share of right answers, as in the paper and
VLMEvalKit. The axes differ in size, so the two figures differ a little.

Paper: https://arxiv.org/abs/2403.20330. Site: https://mmstar-benchmark.github.io. Scoring:
https://github.com/EvolvingLMMs-Lab/lmms-eval, tasks/mmstar/utils.py.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from vtc.eval.data.docs import Source
from vtc.eval.metrics import aggregate
from vtc.eval.metrics.choice import find_letter, mmstar
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import LETTER, QWEN_CHOICE, QWEN_YES_NO, qwen_choice
from vtc.eval.tasks._rows import first_id, letter_of, plain, text_of

OPTIONS = re.compile(r"(.*)\nOptions:\s*A: (.*), B: (.*), C: (.*), D: (.*)", re.DOTALL)


@TASKS.register("mmstar")
class MMStar(Task):
    """Questions that need the picture; the primary figure is the mean over axes."""

    name = "mmstar"
    version = 2
    source = Source(("Lin-Chen/MMStar",))
    splits = ("val",)
    columns = ("question", "answer", "category", "l2_category")
    max_new_tokens = 128
    primary = "average"

    def prompt(self, doc: Mapping) -> str:
        """The question and the instruction."""
        question = text_of(doc, "question").strip()
        if self.dialect != "qwen":
            return question.replace(QWEN_YES_NO, "") + LETTER.rstrip(".")
        match = OPTIONS.fullmatch(question)
        if match is None:
            return f"Question: {question}\n{QWEN_CHOICE}"
        return qwen_choice(match[1], match.groups()[1:])

    def ident(self, doc: Mapping) -> str:
        """The index, else the row's number."""
        return first_id(doc, "index", "id")

    def category(self, doc: Mapping) -> str:
        """One of the six categories."""
        return plain(doc["category"], "category")

    def reference(self, doc: Mapping) -> dict:
        """`answer`, a letter, and `axis`, the `l2_category`; raises ConfigError for an answer that is no option."""
        match = OPTIONS.fullmatch(text_of(doc, "question").strip())
        options = dict(zip("ABCD", match.groups()[1:] if match else "ABCD"))
        return {"answer": letter_of(doc["answer"], options), "axis": plain(doc["l2_category"], "l2_category")}

    def score(self, reference: Mapping, text: str) -> dict:
        """Whether the parsed letter is right; `axis` is for `tally`."""
        letter = find_letter(text, "ABCD") or None
        return {"correct": mmstar(text, reference["answer"]), "parsed": letter, "axis": reference["axis"]}

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """The numbers of rows and right ones, per category and axis."""
        return aggregate.tally([{**row, "category": f"{row['category']}/{row['score']['axis']}"} for row in rows])

    def figures(self, sums: Mapping) -> dict:
        """`average` over axes, `accuracy` over rows, and per category the mean over its axes."""
        flat = aggregate.accuracy(sums)
        axes: dict[str, list] = defaultdict(list)
        for name in aggregate.names(sums):
            axes[name.partition("/")[0]].append(flat[aggregate.PER_CATEGORY + name])
        per = {aggregate.PER_CATEGORY + category: aggregate.mean(values) for category, values in axes.items()}
        return {"average": flat["macro"], "accuracy": flat["accuracy"], **per}
