"""Qwen3-VL with a mixture of experts in the MLPs of its text model."""

from torch import nn

from vtc.core.errors import UnsupportedError
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches.qwen3_vl import Qwen3VL


@FAMILIES.register("qwen3_vl_moe")
class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL-MoE (`qwen3_vl_moe`), where every text layer has experts; costs count those that a token passes
    through.

    Source: `Qwen3VLMoeForConditionalGeneration` of transformers; "Qwen3-VL Technical Report", arXiv 2511.21631.
    """

    name = "qwen3_vl_moe"
    model_types = ("qwen3_vl_moe",)
    follows = "qwen2_5_vl"
    published = Encoder("qwen3_vl_moe", 27, False, tuple(range(27)), cell=4)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        dense = [i for i, layer in enumerate(self.language_model.layers) if not hasattr(layer.mlp, "experts")]
        if dense:
            raise UnsupportedError(
                f"text layers {', '.join(map(str, dense[:8]))} of {type(model).__name__} have no experts while others "
                "may, whose costs are not known; possible: a text model with experts in every layer"
            )

    @classmethod
    def text_sizes(cls) -> dict:
        """Sizes of the tiny text model: 4 experts, 2 of them active."""
        experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, router_aux_loss_coef=0.001)
        return {**super().text_sizes(), **experts}

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 6 decoder layers with GQA and experts, 2 planes."""
        from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

        model = cls.build(Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, **overrides)
        model.set_experts_implementation("eager")  # the default one has no float64
        return model
