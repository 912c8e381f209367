"""The fields of a row about the tokens and the cost of one prompt."""

import dataclasses

FIELDS = ("visual_before", "visual_after", "visual_average")
COSTS = ("prefill_flops", "paper_flops")


def of_report(report: object) -> list[dict]:
    """The fields of each prompt of a batch, from vtc's report on it.

    visual_before, visual_after, visual_average: visual tokens without pruning, in the last decoder layer, and on
    average over the decoder layers. prefill_flops: [before, after] of the language model, each layer with the tokens
    that it processes, and what is projected ahead of a drop. paper_flops: the same for only the visual tokens, as the papers count (None for a prompt without
    images). See `vtc.core.flops`.
    """
    rows = []
    for b, (whole, lengths) in enumerate(zip(report.prompts_before, report.prompt_lengths)):
        images = [image for image in report.images if image.prompt == b]
        layers, cost = len(lengths), report.shape.prefill_flops
        rows.append(
            {
                "visual_before": sum(image.before for image in images),
                "visual_after": sum(image.after for image in images),
                "visual_average": sum(sum(image.per_layer) for image in images) / layers,
                "prefill_flops": [cost([whole] * layers), cost(lengths) + report.ahead_flops(b)],
                "paper_flops": list(dataclasses.replace(report, images=images).paper_flops) if images else [None, None],
            }
        )
    return rows


def of_prompt(before: int | None, after: int | None, text: int | None, shape: object | None) -> dict:
    """The same fields for a prompt with the same tokens in all layers.

    before, after: visual tokens of the original and of the resized picture; text: the other tokens; shape: that of the
    language model, None if unknown.
    """
    flops = [None, None]
    if shape is not None and text is not None:
        flops = [shape.prefill_flops([text + visual] * shape.layers) for visual in (before, after)]
    return {**dict(zip(FIELDS, (before, after, after))), "prefill_flops": flops, "paper_flops": [None, None]}


def nothing() -> dict:
    """The same fields for a sample that failed."""
    return {**dict.fromkeys(FIELDS), **{cost: [None, None] for cost in COSTS}}


def dropped_nothing(keep: float | int | None, images: int, before: int, average: float) -> bool:
    """Whether a prompt kept all `before` visual tokens of its images although the budget `keep` asks for fewer.

    Each image keeps at least one token, and its number of tokens may be rounded up.
    """
    share = keep * before if isinstance(keep, float) else 0
    return average >= before > images * (keep if isinstance(keep, int) else 1) + share
