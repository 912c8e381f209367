"""MME: two questions about each picture, one with the answer yes and one with no, in 14 categories; 2,374 questions.

    {"question_id": "code_reasoning/0020.png", "category": "code_reasoning", "answer": "Yes",
     "question": "Is a python code shown in the picture? Please answer yes or no.", "image": <picture>}

Prompt: the question with LLaVA's sentence for short answers instead of ` Please answer yes or no.` (llava, lmms), or
unchanged (qwen). Answers are read in the same way in all dialects (`vtc.eval.metrics.yesno.mme`); the official tool,
which LLaVA's scripts call, keeps full stops and does not accept y and n, with the same result on LLaVA's answers.

In each category the shares of right questions (`acc`) and of pictures with both questions right (`acc+`), times 100,
add up to at most 200 points, here `accuracy/CATEGORY`. `perception`, the figure of most papers, is the sum over ten
categories (at most 2,000), `cognition` over four (at most 800), `total` over all. Under --limit, which never separates
the questions of a picture, they are sums over the categories that occur; the hub's rows begin with those of cognition.

Paper: https://arxiv.org/abs/2306.13394. Scoring: https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models,
branch Evaluation, eval_tool; https://github.com/EvolvingLMMs-Lab/lmms-eval, tasks/mme/utils.py.
"""

from collections.abc import Mapping, Sequence

from vtc.eval.data.docs import ROW, Source
from vtc.eval.metrics import aggregate
from vtc.eval.metrics.yesno import mme
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import QWEN_YES_NO, SHORT
from vtc.eval.tasks._rows import plain, text_of, yes_or_no

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@TASKS.register("mme")
class Mme(Task):
    """Perception and cognition in points."""

    name = "mme"
    version = 2
    source = Source(("lmms-lab-encoder/MME", "lmms-lab/MME"))
    splits = ("test",)
    columns = ("question", "answer", "category", "question_id")
    max_new_tokens = 16
    primary = "perception"
    scale = 1.0

    def prompt(self, doc: Mapping) -> str:
        """The question; in LLaVA's and lmms-eval's dialects its last sentence is replaced."""
        question = text_of(doc, "question").strip()
        return question if self.dialect == "qwen" else question.replace(QWEN_YES_NO, "") + SHORT

    def ident(self, doc: Mapping) -> str:
        """The picture and the question, as both questions have the same `question_id`."""
        return f"{self.group(doc)} {text_of(doc, 'question').replace(QWEN_YES_NO, '').strip()}"

    def group(self, doc: Mapping) -> str:
        """The picture."""
        category, name = self.category(doc), plain(doc["question_id"], "question_id")
        return name if name.startswith(f"{category}/") else f"{category}/{name}"

    def category(self, doc: Mapping) -> str:
        """One of the 14 categories."""
        return plain(doc["category"], "category")

    def reference(self, doc: Mapping) -> str:
        """yes or no; raises ConfigError for anything else."""
        return yes_or_no(doc["answer"], f"row {doc.get(ROW)}")

    def score(self, reference: str, text: str) -> dict:
        """Whether the answer is right; `parsed` is None if it is neither yes nor no."""
        parsed = mme(text)
        return {"correct": float(parsed == reference), "parsed": None if parsed == "other" else parsed}

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """The numbers of questions and pictures, and of right ones, by category; a picture needs both answers."""
        sums = aggregate.tally(rows)
        right = [row["score"]["correct"] for row in rows]
        both = float(len(right) == 2 and sum(right) == 2)
        return sums | {f"pictures/{rows[0]['category']}": 1.0, f"both/{rows[0]['category']}": both}

    def figures(self, sums: Mapping) -> dict:
        """`perception`, `cognition`, `total` and the categories, in points."""
        points = {
            c: 100 * (aggregate.ratio(sums[f"correct/{c}"], sums[f"n/{c}"])
                      + aggregate.ratio(sums[f"both/{c}"], sums[f"pictures/{c}"]))
            for c in aggregate.names(sums)
        }  # fmt: skip
        nothing = aggregate.mean(list(points.values())) * float("nan")

        def added(names: Sequence[str]):
            """The sum of points; a category missing in a bootstrap replicate counts as the mean of the others."""
            known = [points[c] for c in names if c in points]
            return aggregate.mean(known) * len(known) if known else nothing

        return {
            "perception": added(PERCEPTION),
            "cognition": added(COGNITION),
            "total": added((*PERCEPTION, *COGNITION)),
            **{aggregate.PER_CATEGORY + c: value for c, value in points.items()},
        }
