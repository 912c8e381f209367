"""GLM-4.5V and GLM-4.6V: the encoder of GLM-4.1V before a mixture of experts."""

from dataclasses import replace

from torch import nn

from vtc.core.flops import LanguageShape
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches.glm4v import Glm4V


@FAMILIES.register("glm4v_moe")
class Glm4VMoe(Glm4V):
    """GLM-4.5V and GLM-4.6V (`glm4v_moe`). The first decoder layers are dense, the others a mixture of experts.

    Source: `Glm4vMoeForConditionalGeneration` of transformers; the report of GLM-4.1V, arXiv 2507.01006.
    """

    name = "glm4v_moe"
    model_types = ("glm4v_moe",)
    follows = "qwen2_5_vl"
    published = Encoder("glm4v_moe", 24, False, tuple(range(24)), cell=4)

    def language_shape(self) -> LanguageShape:
        """A token passes through the experts chosen for it and the shared ones; the MLP is the mean over layers."""
        text, shape = self.model.config.get_text_config(), super().language_shape()
        dense = min(text.first_k_dense_replace, text.num_hidden_layers)
        experts = text.moe_intermediate_size * (text.num_experts_per_tok + text.n_shared_experts)
        total = dense * text.intermediate_size + (text.num_hidden_layers - dense) * experts
        return replace(shape, mlp=round(total / text.num_hidden_layers))

    @staticmethod
    def text_sizes() -> dict:
        """Sizes of the tiny text model: a dense layer, then a shared expert and one of four, whose weight is then 1:
        the router computes weights in float32."""
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
        return {**Glm4V.text_sizes(), **experts}

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 6 decoder layers with GQA."""
        from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

        model = cls.build(Glm4vMoeConfig, Glm4vMoeForConditionalGeneration, **overrides)
        model.set_experts_implementation("eager")  # the default one knows no float64
        return model
