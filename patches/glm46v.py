"""GLM-4.6V Flash: the parts of GLM-4.1V under classes of its own."""

from torch import nn

from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches.glm4v import Glm4V


@FAMILIES.register("glm46v")
class Glm46V(Glm4V):
    """GLM-4.6V Flash (`glm46v`), see GLM-4.1V.

    Source: `Glm46VForConditionalGeneration` of transformers; the report of GLM-4.1V, arXiv 2507.01006.
    """

    name = "glm46v"
    model_types = ("glm46v",)
    follows = "qwen2_5_vl"
    published = Encoder("glm46v", 24, False, tuple(range(24)), cell=4)

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """As GLM-4.1V's."""
        from transformers import Glm46VConfig, Glm46VForConditionalGeneration

        return cls.build(Glm46VConfig, Glm46VForConditionalGeneration, **overrides)

    @staticmethod
    def vision_sizes() -> dict:
        """Sizes of the tiny encoder."""
        return {**Glm4V.vision_sizes(), "model_type": "glm4v_vision"}

    @staticmethod
    def text_sizes() -> dict:
        """Sizes of the tiny text model."""
        return {**Glm4V.text_sizes(), "model_type": "glm4v_text"}
