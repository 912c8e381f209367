"""MMMU, validation: 900 questions from college exams in 30 subjects, with one or more pictures; most have options.

    {"id": "validation_Accounting_1", "question": "<image 1> What does the firm earn?", "options": "['$7', '$8']",
     "answer": "B", "question_type": "multiple-choice", "image_1": <picture>, "image_2": null, ..., "image_7": null,
     "explanation": "", "topic_difficulty": "Medium", "subfield": "Managerial Accounting", "img_type": "['Tables']"}

`options` is a list written as text, empty for open questions (`question_type` open), whose `answer` may be such a list.

Prompt: the question, the options, an empty line, and LLaVA's sentence for letters or, for open questions, for short
answers (lmms, and llava, which has no script for it). Each picture is inserted at its first mention `<image k>` in
question or options; later mentions stay as text. lmms-eval drops the text between two mentions of one picture, and
orders pictures by their numbers even if they are mentioned in another order. qwen: the pictures first, then Qwen's own
form, whose text keeps the mentions; its last sentence is always English, and open questions have none.

Scoring, in all dialects, is the official rule (see `vtc.eval.metrics.mmmu`), with one departure: if no letter is found
the official code guesses at random; here the answer is wrong, and `unparsed` is the share of such answers. `accuracy`
is over all 900, `macro` the mean over subjects. lmms-eval before 0.7.3 scored open answers wrongly, and it treats an
open `answer` with several references as one text.

Paper: https://arxiv.org/abs/2311.16502. Scoring: https://github.com/MMMU-Benchmark/MMMU, eval/eval_utils.py.
"""

import re
from collections.abc import Mapping, Sequence

from vtc.core.errors import ConfigError
from vtc.eval.data.docs import FOLDER, Source
from vtc.eval.data.pictures import nothing, picture
from vtc.eval.metrics import aggregate
from vtc.eval.metrics.mmmu import mmmu_choice, mmmu_open, mmmu_open_score
from vtc.eval.tasks import PICTURE, TASKS, Task
from vtc.eval.tasks._prompts import LETTER, QWEN_CHOICE, SHORT, lettered
from vtc.eval.tasks._rows import letter_of, list_or_mapping, listed, options_of, plain, text_of

MENTION = re.compile(r"<image (\d+)>")


@TASKS.register("mmmu_val")
class MmmuVal(Task):
    """College exams."""

    name = "mmmu_val"
    version = 2
    source = Source(("lmms-lab-encoder/MMMU", "lmms-lab/MMMU"))
    splits = ("validation", "dev")
    columns = ("question", "answer")
    pictures = tuple(f"image_{k}" for k in range(1, 8))
    inline = True
    max_new_tokens = 128

    def prompt(self, doc: Mapping) -> str:
        """Question, options and instruction, with `PICTURE` in place of the pictures."""
        text, options = text_of(doc, "question"), lettered(_options(doc))
        if self.dialect == "qwen":
            text = f"Question: {text}" + (f"\nOptions:\n{options}\n{QWEN_CHOICE}" if options else "")
            return PICTURE * len(self._named(doc)) + text.rstrip()
        text += f"\n{options}\n{LETTER}" if options else f"\n{SHORT}"
        for number in self._named(doc):
            text = text.replace(f"<image {number}>", PICTURE, 1)
        return PICTURE.join(part.strip() for part in text.split(PICTURE))

    def _named(self, doc: Mapping) -> list[str]:
        """The numbers of the pictures, in the order of the prompt."""
        numbers = MENTION.findall("\n".join([text_of(doc, "question"), *_options(doc).values()]))
        return sorted(set(numbers), key=int) if self.dialect == "qwen" else list(dict.fromkeys(numbers))

    def images(self, doc: Mapping) -> list:
        """The pictures that are mentioned, in the order of the prompt; raises ConfigError if one is missing, and if the
        question mentions none."""
        columns = [f"image_{number}" for number in self._named(doc)]
        for column in columns:
            if nothing(doc.get(column)):
                raise ConfigError(f"mmmu_val: {self.ident(doc)!r} names a picture that is not in column {column!r}")
        if not columns:
            raise ConfigError(f"mmmu_val: {self.ident(doc)!r} names no picture; possible: <image 1> in the question")
        return [picture(doc[column], doc.get(FOLDER)) for column in columns]

    def category(self, doc: Mapping) -> str:
        """The subject, from the id."""
        return re.sub(r"^[^_]*_|_\d+$", "", self.ident(doc)) or self.name

    def reference(self, doc: Mapping) -> dict:
        """`answer`, and `options` by letter if there are any; raises ConfigError for an answer that is no option."""
        options, answer = _options(doc), doc["answer"]
        if options:
            return {"answer": letter_of(answer, options), "options": options}
        if isinstance(answer, list) or str(answer).startswith("["):
            answers = [plain(one, "answer") for one in listed(answer, "answer")]
            return {"answer": answers or plain(None, "answer")}
        return {"answer": plain(answer, "answer")}

    def score(self, reference: Mapping, text: str) -> dict:
        """Whether the letter, or one of the candidates in an open answer, is right."""
        if options := reference.get("options"):
            letter = mmmu_choice(text, options)
            return {"correct": float(letter == reference["answer"]), "parsed": letter}
        candidates = [str(candidate) for candidate in mmmu_open(text)]
        return {"correct": mmmu_open_score(text, reference["answer"]), "parsed": candidates}

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """The numbers of rows and right ones per subject, and of unparsed answers."""
        return {**aggregate.tally(rows), "unparsed": float(sum(row["score"]["parsed"] is None for row in rows))}

    def figures(self, sums: Mapping) -> dict:
        """`accuracy` overall and per subject, `macro`, `unparsed`."""
        n = sum(sums[f"n/{name}"] for name in aggregate.names(sums))
        return {**aggregate.accuracy(sums), "unparsed": aggregate.ratio(sums["unparsed"], n)}


def _options(doc: Mapping) -> dict[str, str]:
    """The options by letter, empty for an open question; raises ConfigError if a choice question has none."""
    if list_or_mapping(doc.get("options"), "options") or doc.get("question_type") == "multiple-choice":
        return options_of(doc.get("options"))
    return {}
