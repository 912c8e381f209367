"""ScienceQA: multiple-choice questions from school science; the 2,017 questions of the test set with a picture.

    {"question": "Which animal is a fish?", "choices": ["a cod", "a crab"], "answer": 0, "hint": "", "image": <picture>,
     "task": "closed choice", "grade": "grade3", "subject": "natural science", "topic": "biology",
     "category": "Classification", "skill": "Identify fish", "lecture": "...", "solution": "..."}

`answer` counts from 0. The hub's config ScienceQA-IMG has only questions with a picture; a local copy of ScienceQA-FULL
(4,241 questions, `image` null for those without one) gives both figures: `img`, which papers print as SQA, and `all`.
Rows with `ground_truth` (a letter), `n_choices` and `has_image` instead of the columns above can be scored, but not
asked.

Prompt: `Context: HINT` on a line of its own if there is a hint, the question, the options, LLaVA's sentence (llava and
lmms, which agree); Qwen's own form (qwen).
Scoring: in llava the answer must be a letter, or begin with one, a full stop and a space, or contain `The answer is X.`
once, and the letter must be one of the question's; in lmms and qwen it must be the letter in any case, or begin with
its capital and a full stop.

Paper: https://arxiv.org/abs/2209.09513. Scoring: https://github.com/haotian-liu/LLaVA, llava/eval/eval_science_qa.py;
https://github.com/EvolvingLMMs-Lab/lmms-eval, tasks/scienceqa/utils.py.
"""

from collections.abc import Mapping, Sequence

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.docs import Docs, Source, open_source
from vtc.eval.data.pictures import nothing
from vtc.eval.metrics import aggregate
from vtc.eval.metrics.choice import scienceqa_llava, scienceqa_lmms
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import LETTER, LETTERS, lettered, qwen_choice
from vtc.eval.tasks._references import public
from vtc.eval.tasks._rows import first_id, hint_of, known, letter_of, options_of, text_of

FLAG = "has_image"


@TASKS.register("scienceqa_img")
class ScienceQaImg(Task):
    """School science; the primary figure is that of questions with a picture."""

    name = "scienceqa_img"
    version = 2
    source = Source(("lmms-lab-encoder/ScienceQA", "lmms-lab/ScienceQA"), "ScienceQA-IMG")
    splits = ("test",)
    columns = ("question", "choices", ("answer", "ground_truth"))
    max_new_tokens = 16
    primary = "img"

    def load(self, split: str, place: str | None) -> Docs:
        """All rows of a split; rows of a local copy in parquet or arrow are marked by whether they have a picture."""
        docs = open_source(self.name, self.source, split, self.pictures, place)
        columns = getattr(docs.rows, "column_names", [])
        if place is not None and "image" in columns and FLAG not in columns:
            marks = [not nothing(row["image"]) for row in docs.rows.select_columns(["image"])]
            docs = Docs(docs.rows, docs.texts.add_column(FLAG, marks), docs.record, folder=docs.folder)
        return docs

    def prompt(self, doc: Mapping) -> str:
        """Context, question, options and instruction."""
        question, choices, hint = text_of(doc, "question"), options_of(doc["choices"], "choices"), hint_of(doc)
        if self.dialect == "qwen":
            return qwen_choice(question, choices, hint)
        return (f"Context: {hint}\n" if hint else "") + f"{question}\n{lettered(choices)}{LETTER}"

    def ident(self, doc: Mapping) -> str:
        """The row's id if it has one, else its number."""
        return first_id(doc, "question_id", "id")

    def category(self, doc: Mapping) -> str:
        """image or text, by whether there is a picture; rows without this information count as image."""
        return "image" if self.needs_picture(doc) else "text"

    def needs_picture(self, doc: Mapping) -> bool:
        """True, unless the row's mark or an empty column says that it has no picture."""
        return bool(doc[FLAG] if FLAG in doc else "image" not in doc or not nothing(doc["image"]))

    def reference(self, doc: Mapping) -> dict:
        """`answer`, a letter, and the number of choices; raises ConfigError for an answer that is not a choice."""
        answer = public(known(doc["ground_truth"] if "ground_truth" in doc else doc["answer"]), self.name)
        if known(doc.get("n_choices")) is not None:
            options = _unnamed(doc["n_choices"])
        else:
            options = options_of(doc["choices"], "choices")
        return {"answer": letter_of(answer, options), "n_choices": LETTERS.index(max(options)) + 1}

    def score(self, reference: Mapping, text: str) -> dict:
        """Whether the letter in the answer is right."""
        answer, n = reference["answer"], reference["n_choices"]
        if self.dialect == "llava":
            letter = scienceqa_llava(text, n)
            return {"correct": float(letter == answer), "parsed": letter}
        read = [letter for letter in LETTERS if scienceqa_lmms(text, letter)]
        return {"correct": scienceqa_lmms(text, answer), "parsed": read[0] if read else None}

    def remarks(self, rows: Sequence[Mapping]) -> list[str]:
        """The usual remarks, and how many questions have no picture and are left out of `img`."""
        text = sum(row["category"] == "text" for row in rows)
        return [
            *super().remarks(rows),
            *([f"{text} of {len(rows)} samples have no picture: not in `img`"] * bool(text)),
        ]

    def figures(self, sums: Mapping) -> dict:
        """`img`, `all`, and the same per category."""
        figures = aggregate.accuracy(sums)
        image = f"{aggregate.PER_CATEGORY}image"
        return {
            "img": figures.get(image, figures["accuracy"] * float("nan")),
            "all": figures["accuracy"],
            **{name: value for name, value in figures.items() if name.startswith(aggregate.PER_CATEGORY)},
        }


def _unnamed(number: object) -> dict[str, str]:
    """Options of which only the number is known; raises ConfigError for an impossible number."""
    if type(number) not in (int, float) or number not in range(2, len(LETTERS) + 1):
        raise ConfigError(f"n_choices={shown(number)}; possible: 2 to {len(LETTERS)}")
    return {letter: letter for letter in LETTERS[: int(number)]}
