"""InfographicVQA: questions about infographics, validation, 2,801 questions.

A row (only the columns used):

    {"questionId": "90001", "question": "What share of households has a cat?", "answers": ["26%", "26"],
     "image": <picture>}

Paper: https://arxiv.org/abs/2104.12756; site: https://rrc.cvc.uab.es/?ch=17.

Scored by ANLS like `docvqa`, in all dialects: a similarity of exactly 0.5 is kept.

Test results in papers come from the site, whose answers are not public; figures here are for validation.

Prompts: the question and the instruction to use a single word or phrase (LLaVA has no script for InfographicVQA, so
llava equals lmms); qwen has its own sentence. Pictures are several thousand pixels high: how much a model sees of them
depends on its processor's resolution. The column `ocr` of the hub is not used.
"""

from vtc.eval.data.docs import Source
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._anls import DocumentTask


@TASKS.register("infovqa")
class InfoVQA(DocumentTask):
    """ANLS on validation."""

    name = "infovqa"
    version = 2
    source = Source(("lmms-lab-encoder/DocVQA", "lmms-lab/DocVQA"), "InfographicVQA")
