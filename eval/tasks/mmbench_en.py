"""MMBench, English: multiple choice in 20 kinds of six abilities, each question asked with its options rotated.

The split `dev` has 4,329 rows (4,377 in the file of 2023-07-12 that LLaVA's scripts use), the rotations of 1,164
questions: the first row of a question has an `index` below 10^6, the others that number plus 10^6, 2 10^6, ... The
answers of `test` are not public; only the benchmark's server can score it.

    {"index": 241, "question": "Which of these is shown?", "hint": "nan", "answer": "A", "A": "a lake", "B": "a hill",
     "C": "nan", "D": "nan", "category": "image_scene", "L2-category": "coarse_perception", "source": "...",
     "split": "dev", "comment": "nan", "image": <picture>}

Rows with `options` (letter -> text) instead of columns, without an index, or with a `language` work too; `mmbench_en`
and `mmbench_cn` each use the rows of their own language.

Prompts: llava has hint, question and options on lines of their own, then LLaVA's sentence; lmms has hint and question
on one line, then `There are several options:`, the options, an empty line and the same sentence; qwen has its own form.
Hints and options that are missing, nan or empty are left out in every dialect.

Scoring without a judge: llava and lmms use MMBench's rules and then lmms-eval's letter finder (its
mmbench_en_dev_static; its mmbench_en_dev asks GPT, and guesses at random if that fails); qwen uses VLMEvalKit's exact
matching. An answer without a letter is wrong. LLaVA has no scoring of its own; its published numbers come from the
server. `accuracy` is CircularEval, as in papers: a question is right only if all its rotations are. `vanilla` is the
share of right rows. Categories are the six abilities.

Paper: https://arxiv.org/abs/2307.06281. Site and server: https://mmbench.opencompass.org.cn.
"""

from vtc.eval.data.docs import Source
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._mmbench import IDS, MMBench
from vtc.eval.tasks._prompts import LETTER


@TASKS.register("mmbench_en")
class MMBenchEn(MMBench):
    """CircularEval in English."""

    name = "mmbench_en"
    version = 2
    source = Source(IDS, "en")
    language = "en"
    llava = lmms = LETTER
    max_new_tokens = 1024
