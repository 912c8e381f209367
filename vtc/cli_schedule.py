"""What a strategy does inside a language model of a given depth, without one."""

from vtc import ConfigError

DEPTHS = (32, 28, 80)  # decoder layers of LLaVA and Qwen2-VL with 7B, and of the largest


def table(config: object, family: str | None, layers: int, tokens: int) -> list[str]:
    """Lines that say how many of an image's `tokens` visual tokens each of `layers` decoder layers sees.

    config: a StrategyConfig. Raises ConfigError for a schedule or budget that does not fit.
    """
    schedule = _schedule(config, family, layers, tokens)
    entered = tokens if schedule.projector is None else sum(schedule.projector.quotas([[tokens]])[0])
    seen = schedule.tokens_per_layer(tokens, entered)
    first = [i for i in range(layers) if i == 0 or seen[i] != seen[i - 1]]
    lines = [f"{layers} decoder layers, counted from 0, and an image of {tokens} visual tokens:"]
    for start, end in zip(first, [*first[1:], layers], strict=True):
        name = f"layer {start}" if end == start + 1 else f"layers {start}-{end - 1}"
        lines.append(f"  {name.ljust(len(f'layers {layers}-{layers}'))}  {seen[start]:>{len(str(tokens))}}")
    mean = sum(seen) / layers
    return [*lines, f"  mean {mean:.1f}, {mean / tokens:.1%} of the image's tokens"]


def check_depths(config: object) -> None:
    """Raises ConfigError if the strategy fits language models of none of DEPTHS layers."""
    errors = []
    for depth in DEPTHS:
        try:
            _schedule(config, None, depth)
            return
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _schedule(config: object, family: str | None, layers: int, tokens: int | None = None):
    from vtc.schedule import Schedule
    from vtc.signals import Decoder

    return Schedule(config, Decoder(family or "", layers), tokens)
