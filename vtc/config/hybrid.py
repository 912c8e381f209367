"""Language models some of whose layers have linear attention: where their stages drop, and which layers these read.

A layer with linear attention has no attention weights, keys or values to show. So, in a hybrid language model:

- a drop that reads the coming layer (attention or keys computed ahead) takes place before the next layer with softmax
  attention, its own if it has it, and reads that one; behind the last of them, before the last;
- a signal observed while a layer runs is that of the last layer with softmax attention up to it; if none ran before the
  drop, the drop moves behind the first one;
- steps of a method that come to lie before the same layer become one, with the last one's share;
- hidden states and transitions are those of any layer, and stay as they are;
- a method that needs softmax attention in every layer is refused.
"""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vtc.core.errors import UnsupportedError
from vtc.core.signals import (
    Decoder,
    DecoderAttention,
    DecoderKeys,
    ImageAttention,
    KeyNorms,
    Signal,
    TextInformation,
    TextPivots,
    TextToVisual,
    UnturnedAttention,
    ValueNorms,
)

if TYPE_CHECKING:
    from vtc.config.strategy import StrategyConfig

OBSERVED = (
    DecoderAttention, ImageAttention, KeyNorms, TextInformation, TextPivots, TextToVisual, UnturnedAttention, ValueNorms
)  # fmt: skip


def is_ahead(signal: Signal) -> bool:
    """Whether a signal is computed from the coming layer, before that runs."""
    return isinstance(signal, DecoderKeys) or isinstance(signal, DecoderAttention) and signal.ahead


def drop_layer(decoder: Decoder, layer: int, needs: tuple[Signal, ...]) -> int:
    """The layer before which a drop takes place that reads `needs` and is asked for before `layer`."""
    if decoder.softmax is None:
        return layer
    if any(map(is_ahead, needs)):
        return next((i for i in decoder.softmax if i >= layer), decoder.softmax[-1])
    if any(isinstance(signal, OBSERVED) for signal in needs):
        return max(layer, decoder.softmax[0] + 1)
    return layer


def source(decoder: Decoder, signal: Signal, drop: int) -> Signal:
    """What stands in for a signal at a drop before layer `drop`: the same of a layer that can show it."""
    if decoder.softmax is None or not (is_ahead(signal) or isinstance(signal, OBSERVED)):
        return signal
    if is_ahead(signal):
        return dataclasses.replace(signal, layer=drop)
    seen = [i for i in decoder.softmax if i <= signal.layer]
    return dataclasses.replace(signal, layer=seen[-1] if seen else decoder.softmax[0])


def every_layer(config: "StrategyConfig") -> list[str]:
    """The methods of a strategy that need softmax attention in every layer."""
    changing = [] if config.attention is None else [config.attention.method]
    return [stage.method for stage in config.decoder if stage.stage.every_layer] + changing


def check(decoder: Decoder, config: "StrategyConfig") -> None:
    """Raises UnsupportedError for a method that a hybrid language model cannot have."""
    refused = [] if decoder.softmax is None else every_layer(config)
    if refused:
        raise UnsupportedError(
            f"{refused[0]} needs softmax attention in every layer, and {decoder.depth - len(decoder.softmax)} of the "
            f"{decoder.depth} layers of this {decoder.family} language model have linear attention; possible: a method "
            "with a few drops (fastv, pyramiddrop), or one at the projector"
        )


def moved(method: str, steps: list[tuple[int, tuple[Signal, ...]]], decoder: Decoder) -> list[str]:
    """A note for the report if the steps of a method, each a layer and what it reads, are not where they were asked for
    in this language model, else none."""
    drops = [drop_layer(decoder, layer, needs) for layer, needs in steps]
    asked = {signal.layer for _, needs in steps for signal in needs if isinstance(signal, (*OBSERVED, DecoderKeys))}
    read = {
        source(decoder, signal, drop).layer
        for drop, (_, needs) in zip(drops, steps, strict=True)
        for signal in needs
        if isinstance(signal, (*OBSERVED, DecoderKeys))
    }
    if drops == [layer for layer, _ in steps] and asked == read:
        return []
    return [
        f"{method} drops before {_layers(drops)} (asked: {_layers([layer for layer, _ in steps])}) and reads "
        f"{_layers(read)} (asked: {_layers(asked)}), since others have linear attention"
    ]


def _layers(numbers: Iterable[int]) -> str:
    layers = sorted(set(numbers))
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))
