"""Qwen3.5 and Qwen3.6 with a mixture of experts: as Qwen3.5, with other MLPs."""

from torch import nn

from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches.qwen3_5 import Qwen3_5


@FAMILIES.register("qwen3_5_moe")
class Qwen3_5Moe(Qwen3_5):
    """Qwen3.5 and Qwen3.6 with a mixture of experts (`qwen3_5_moe`), of which a token passes through a few and a shared
    one.

    Source: `Qwen3_5MoeForConditionalGeneration` of transformers.
    """

    name = "qwen3_5_moe"
    model_types = ("qwen3_5_moe",)
    follows = "qwen2_5_vl"
    published = Encoder("qwen3_5_moe", 27, False, tuple(range(27)), cell=4)

    @staticmethod
    def text_sizes() -> dict:
        """Sizes of the tiny text model."""
        sizes = {name: value for name, value in Qwen3_5.text_sizes().items() if name != "intermediate_size"}
        experts = dict(num_experts=4, num_experts_per_tok=2)
        return dict(sizes, moe_intermediate_size=32, shared_expert_intermediate_size=24, **experts)

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 6 decoder layers, every other with softmax attention and GQA; 2 of 4 experts."""
        from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

        # The grouped matrix product takes no float64, in which the tests run.
        overrides = {"experts_implementation": "eager", **overrides}
        return cls.build(Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, **overrides)
