"""MMBench, Chinese: the questions of `mmbench_en` translated, with the same columns, figures and scoring; 4,329 rows.

    {"index": 241, "question": "图中是什么？", "hint": "nan", "answer": "A", "A": "湖", "B": "山", "C": "nan",
     "D": "nan", "category": "image_scene", "L2-category": "coarse_perception", "source": "...", "split": "dev",
     "comment": "nan", "image": <picture>}

Prompts: llava as in English, with LLaVA's Chinese sentence; lmms as in English, with the introduction and another
Chinese sentence; qwen in Qwen's own form, which ends in Chinese if any text is Chinese. lmms-eval's Chinese prompts
include a hint that is just the text nan; here it is left out. Rows of CCBench, which have no index, are accepted.

Paper: https://arxiv.org/abs/2307.06281. Site and server: https://mmbench.opencompass.org.cn.
Scoring: see `mmbench_en`.
"""

from vtc.eval.data.docs import Source
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._mmbench import IDS, MMBench
from vtc.eval.tasks._prompts import LETTER_CN


@TASKS.register("mmbench_cn")
class MMBenchCn(MMBench):
    """CircularEval in Chinese."""

    name = "mmbench_cn"
    version = 2
    source = Source(IDS, "cn")
    language = "cn"
    llava = LETTER_CN
    lmms = "\n请直接使用所提供的选项字母作为答案回答。"
    max_new_tokens = 256
