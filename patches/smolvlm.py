"""SmolVLM and SmolVLM2: as Idefics3, with the classes of its own that transformers has for it."""

from torch import nn

from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches.idefics3 import Idefics3


@FAMILIES.register("smolvlm")
class SmolVLM(Idefics3):
    """SmolVLM / SmolVLM2 (`smolvlm`). See `Idefics3`. Frames of a clip are images of one crop.

    Source: `SmolVLMForConditionalGeneration` of transformers; "SmolVLM: Redefining small and efficient multimodal
    models", arXiv 2504.05299.
    """

    name = "smolvlm"
    model_types = ("smolvlm",)
    towers = ("smolvlm_vision",)
    published = Encoder("smolvlm", 27, False, tuple(range(27)), tiled=True, thumbnail=81)
    blank_crop = True

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers on an 8 x 8 grid of patches, 16 tokens a crop."""
        from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

        return cls.build(SmolVLMConfig, SmolVLMForConditionalGeneration, **overrides)
