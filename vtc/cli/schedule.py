"""What a strategy does inside a language model of a given depth, without one."""

from functools import partial

from vtc import ConfigError

HIDDEN, MLP = 4096, 11008  # LLaVA-1.5-7B
DEPTHS = (32, 28, 80)  # decoder layers of LLaVA and Qwen2-VL with 7B, and of the largest


def table(config: object, family: str | None, layers: int, tokens: int) -> list[str]:
    """Lines that say how many of an image's `tokens` visual tokens each of `layers` decoder layers sees, and what that
    costs in layers of LLaVA-1.5-7B's size, in both conventions of `vtc.core.flops`.

    config: a StrategyConfig. Raises ConfigError for a schedule or budget that does not fit.
    """
    from vtc.core.flops import LanguageShape, paper_flops

    allocation = _allocation(config, family, layers, tokens)
    entered = allocation.entered(tokens)
    per_layer = allocation.tokens_per_layer(tokens, entered)
    first = [i for i in range(layers) if i == 0 or per_layer[i] != per_layer[i - 1]]
    lines = [f"{layers} decoder layers, counted from 0, and an image of {tokens} visual tokens:"]
    for start, end in zip(first, [*first[1:], layers], strict=True):
        name = f"layer {start}" if end == start + 1 else f"layers {start}-{end - 1}"
        lines.append(f"  {name.ljust(len(f'layers {layers}-{layers}'))}  {per_layer[start]:>{len(str(tokens))}}")
    if config.attention is not None:
        changed = config.attention.stage.layers(_decoder(family, layers), HIDDEN)
        where = f"layers {changed[0]}-{changed[-1]}" if changed else "no layer"
        lines.append(f"  {config.attention.method} changes attention in {where}, and drops nothing")
    mean = sum(per_layer) / layers
    shape = LanguageShape(layers, HIDDEN, HIDDEN // 128, HIDDEN // 128, 128, MLP, True, 2)
    paper_share, vtc_share = (
        _share(cost(per_layer), cost([tokens] * layers)) for cost in (partial(paper_flops, shape), shape.prefill_flops)
    )
    return [
        *lines,
        f"  mean {mean:.1f}, {mean / tokens:.1%} of the image's tokens",
        f"prefill FLOPs of these tokens alone with layers of hidden size {HIDDEN} and MLP size {MLP}:",
        f"  as papers count (a multiply-add is 1)       {paper_share}",
        f"  as vtc.report counts (a multiply-add is 2)  {vtc_share}",
    ]


def _share(after: int, before: int) -> str:
    return f"{after / 1e12:.3g} T of {before / 1e12:.3g} T, {after / before:.1%}"


def check_depths(config: object) -> None:
    """Raises ConfigError if the strategy fits language models of none of DEPTHS layers."""
    errors = []
    for depth in DEPTHS:
        try:
            _allocation(config, None, depth)
            return
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _allocation(config: object, family: str | None, layers: int, tokens: int | None = None):
    return config.allocate(_decoder(family, layers), tokens)


def _decoder(family: str | None, layers: int):
    from vtc.core.signals import Decoder
    from vtc.patches import FAMILIES

    return Decoder(family or "", layers, FAMILIES[family].softmax_layers(layers) if family else None)
