"""The encoder site: a vision tower's layers, and how their hidden states hold the tokens of crops or packed images.

No part of a layer is reimplemented: hooks change the inputs and outputs of its modules.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from vtc.core.errors import UnsupportedError
from vtc.core.flops import EncoderShape
from vtc.core.hooks import Patchwork


@dataclass(frozen=True)
class Units:
    """The sequences of one run of the encoder. tokens: visual tokens of each (cells, for a tower with 2 x 2 mergers);
    images: the image that each belongs to."""

    tokens: list[int]
    images: list[int]


class EncoderSite:
    """The layers of a vision tower. Constructing it changes nothing; a missing part raises UnsupportedError.

    layers: blocks whose forward is h + attention(norm(h)), then h + mlp(norm(h)). packed: hidden states are [S, D]
    with images concatenated; else [crops, n, D]. lead: [CLS] rows before the tokens of a crop. projector: the module
    that outputs the visual tokens.
    """

    def __init__(self, family, layers: list[nn.Module], projector: nn.Module, names: tuple[str, str], packed: bool):
        self.tower, self.layers, self.projector, self.packed = family.tower, layers, projector, packed
        self.lead, self.depth = int(family.encoder.has_cls), family.encoder.depth
        self.attention, self.config = family.attention, family.model.config
        for name in names:
            if not all(hasattr(layer, name) for layer in layers):
                raise UnsupportedError(
                    f"{type(layers[0]).__name__} has no {name!r}: tokens cannot be merged inside this encoder; "
                    "possible: a stage at the projector (`vtc list`)"
                )
        self.norms, self.mlps = ([getattr(layer, name) for layer in layers] for name in names)

    def check(self, arguments: dict) -> None:
        """Raises UnsupportedError where a layer would be recomputed without its hooks' state, or where the arguments of
        `get_image_features` make the projector read another layer."""
        given, configured = arguments.get("vision_feature_layer"), getattr(self.config, "vision_feature_layer", None)
        if given is not None and given != configured:
            raise UnsupportedError(
                f"vision_feature_layer={given!r} is not the model's own {configured!r}, for which the stage inside the "
                "encoder was made; possible: config.vision_feature_layer before vtc.patch"
            )
        if self.tower.training and any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers):
            raise UnsupportedError(
                "gradient checkpointing would run an encoder layer again without its drops; possible: "
                "model.gradient_checkpointing_disable(), or a strategy without a stage inside the encoder"
            )

    def observe(self, patchwork: Patchwork, layer: int, record: Callable) -> None:
        """See `vtc.patches._observe.observe`."""
        from vtc.patches._observe import observe

        observe(patchwork, self.attention[layer], record)

    def shape(self) -> EncoderShape:
        """The encoder's sizes, for counting FLOPs."""
        attention = self.attention[0]
        heads = getattr(attention, "num_heads", None) or attention.config.num_attention_heads
        mlp = self.mlps[0]
        wide = [m.out_features for m in mlp.modules() if isinstance(m, nn.Linear)]
        return EncoderShape(self.depth, attention.head_dim * heads, max(wide), len(wide) > 2)
