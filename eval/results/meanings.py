"""The meaning of the numbers in results, in the words used in results.json."""

from vtc.eval.results.compare import SAME
from vtc.eval.results.statistics import REPLICATES

TOKENS = {
    "visual_before": "visual tokens of a sample's images without pruning",
    "visual_after": "those that the last decoder layer sees at prefill",
    "visual_average": "those that a decoder layer sees on average",
    "kept": "visual_average / visual_before, what a fraction as budget asks for",
}
FIGURES = {
    "value": "from the scores of the logged answers; primary: printed times scale",
    "stderr": f"standard deviation over {REPLICATES} bootstrap replicates (seed 0) that draw groups of samples",
    "ci95": "2.5 and 97.5 percentiles of the replicates",
}
PARTS = ("vision", "selection", "prefill", "decode", "total")  # of the seconds of a generate() call
SECONDS = {
    "vision": "the vision encoder's forward without the time of observing its attention",
    "selection": "observing signals, selecting tokens and packing, before and in the language model (vtc.report)",
    "prefill": "the language model's first forward without the time of selection in it",
    "decode": "from the end of prefill to the end of generate(): every further step, output head and choice of tokens",
    "total": "all of generate(); what the parts leave over is projector, embedding and bookkeeping",
}
MODES = {  # of `downsample`
    "grid": "the picture is made smaller, so that the encoder makes about `keep` x as many tokens",
    "blur": (
        "this model always makes the same number of tokens, so the picture is made smaller by sqrt(keep) and large "
        "again: it then holds the information of fewer tokens, while the number of tokens stays"
    ),
}
COMPARED = {
    "comparable": "the same model, and of the task the same " + ", ".join(SAME),
    "relative": "primary figure / that of none, on the samples that both answered; error: paired bootstrap over groups",
    "difference": "primary figure - that of none, likewise; p: two-sided, by paired bootstrap",
    "mcnemar": "exact test; b: only none was right, c: only the run was; null unless all scores are 0 or 1",
    "loyalty": "share of answers that are those of none, right or wrong (arXiv 2506.00479)",
    "sensitive": (
        "mean score on the samples that none gets right (>= 0.5) and the named downsample run, of the same keep if "
        "there is one, else the smallest, does not get as well (group A of VTC-Bench, arXiv 2510.07143)"
    ),
    "average": "mean of relative over the named tasks, which are taken as independent",
}
