"""DocVQA: questions about scanned pages of documents, validation, 5,349 questions.

A row (only the columns used):

    {"questionId": "40001", "question": "To whom is the letter addressed?", "answers": ["Mr. Jones", "Jones"],
     "image": <picture>}

Paper: https://arxiv.org/abs/2007.00398; site: https://rrc.cvc.uab.es/?ch=17.

Scored by ANLS (https://arxiv.org/abs/1905.13648) as in Qwen-VL's script and lmms-eval, in all dialects: a similarity of
exactly 0.5 is kept (the definition makes it 0), and lengths are those of the texts before white space and case are
normalised (VLMEvalKit: after).

Test results in papers come from the site, whose answers are not public; figures here are for validation.

Prompts: the question and the instruction to use a single word or phrase (LLaVA has no script for DocVQA, so llava
equals lmms); qwen has its own sentence. Pages are large: how much a model sees of them depends on its processor's
resolution.
"""

from vtc.eval.data.docs import Source
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._anls import DocumentTask


@TASKS.register("docvqa")
class DocVQA(DocumentTask):
    """ANLS on validation."""

    name = "docvqa"
    version = 2
    source = Source(("lmms-lab-encoder/DocVQA", "lmms-lab/DocVQA"), "DocVQA")
