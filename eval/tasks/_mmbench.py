"""The common base of MMBench in English and Chinese; see `mmbench_en.py` for the benchmark."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from vtc.core.errors import ConfigError, shown
from vtc.eval.metrics import aggregate
from vtc.eval.metrics.choice import mmbench_letter, vlmevalkit_letter
from vtc.eval.tasks import Task
from vtc.eval.tasks._prompts import lettered, qwen_choice
from vtc.eval.tasks._references import public
from vtc.eval.tasks._rows import first_id, hint_of, known, letter_of, name_of, options_of, text_of

IDS = ("lmms-lab-encoder/MMBench", "lmms-lab/MMBench")
ROTATIONS = 10**6  # index modulo this number identifies the question
INTRODUCTION = "There are several options:"


class MMBench(Task):
    """What both languages share. language: that of the rows. llava, lmms: the text after the options, by dialect."""

    splits = ("dev",)
    columns = ("question", "answer", ("A", "options"))
    language: ClassVar[str]
    llava: ClassVar[str]
    lmms: ClassVar[str]

    def wants(self, doc: Mapping) -> bool:
        """Whether the row is in the task's language, or does not give its language."""
        language = known(doc.get("language"))
        return language == self.language or not isinstance(language, str)

    def prompt(self, doc: Mapping) -> str:
        """Hint, question, options and instruction, in each dialect's order."""
        question, options, hint = text_of(doc, "question"), self._options(doc), hint_of(doc)
        if self.dialect == "qwen":
            return qwen_choice(question, options, hint)
        if self.dialect == "lmms":
            before = f"{hint} " if hint else ""
            return f"{before}{question} {INTRODUCTION}\n{lettered(options)}\n{self.lmms}"
        before = f"{hint}\n" if hint else ""
        return f"{before}{question}\n{lettered(options)}{self.llava}"

    def _options(self, doc: Mapping) -> dict[str, str]:
        if known(doc.get("options")) is not None:
            return options_of(doc["options"])
        return options_of({letter: doc.get(letter) for letter in "ABCDE"}, "columns A to E")

    def ident(self, doc: Mapping) -> str:
        """The index, which differs for each rotation, else the number of the row."""
        return first_id(doc, "index", "id")

    def group(self, doc: Mapping) -> str:
        """The question, which all rotations of its options share."""
        index = name_of(doc, "index")
        if index is not None and not index.strip().isdecimal():
            raise ConfigError(f"index={shown(doc['index'])}; possible: a whole number")
        return self.ident(doc) if index is None else str(int(index) % ROTATIONS)

    def category(self, doc: Mapping) -> str:
        """One of the six abilities (`L2-category`), else `category`."""
        return name_of(doc, "L2-category", "category") or self.name

    def reference(self, doc: Mapping) -> dict:
        """`answer`, a letter, and the options by letter; raises ConfigError if the answer is not public or not one of
        the options."""
        answer, options = public(known(doc["answer"]), self.name), self._options(doc)
        return {"answer": letter_of(answer, options), "options": options}

    def score(self, reference: Mapping, text: str) -> dict:
        """Whether the parsed letter is right; an answer without a letter is wrong."""
        find = vlmevalkit_letter if self.dialect == "qwen" else mmbench_letter
        letter = find(text, reference["options"])
        return {"correct": float(letter == reference["answer"]), "parsed": letter}

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """One question, right if all its rows are, and its numbers of rows and right rows."""
        category, right = rows[0]["category"], [row["score"]["correct"] for row in rows]
        hit = float(all(right))
        return {f"n/{category}": 1.0, f"correct/{category}": hit, "rows": float(len(rows)), "right": float(sum(right))}

    def figures(self, sums: Mapping) -> dict:
        """`accuracy` over questions (CircularEval), per category and as their mean `macro`; `vanilla` over rows."""
        return {**aggregate.accuracy(sums), "vanilla": aggregate.ratio(sums["right"], sums["rows"])}
