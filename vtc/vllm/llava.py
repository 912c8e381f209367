"""LLaVA-1.5 served pruned: CLIP or SigLIP tower, one crop per image."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.core.layout import ImageLayout
from vtc.vllm.processing import PrunedInfo, PrunedProcessor
from vtc.vllm.pruned_model import PrunedModel, observe_output


class LlavaInfo(PrunedInfo, LlavaProcessingInfo):
    """Limits of LLaVA-1.5."""

    def largest_layouts(self) -> Iterator[ImageLayout]:
        """All images have one size."""
        side = self.get_hf_config().vision_config.image_size
        yield from self.settings.family.image_layouts({"pixel_values": torch.empty(1, 3, side, side, device="meta")})


class LlavaProcessor(PrunedProcessor, LlavaMultiModalProcessor):
    """Placeholders of LLaVA-1.5."""


class LlavaTower(PrunedModel):
    """The parts of vLLM's LLaVA models that strategies read."""

    def attention_modules(self) -> list[nn.Module]:
        """Those of the tower's loaded layers."""
        return [layer.self_attn.attn for layer in self.vision_tower.vision_model.encoder.layers]

    def observe_unprojected(self, record: Callable) -> None:
        """The hidden states that the projector receives, by their layer in the config."""
        chosen = self.config.vision_feature_layer
        depth = self.config.vision_config.num_hidden_layers

        def states(output: Tensor | list[Tensor]) -> None:
            if isinstance(chosen, int):
                record({chosen: output})
            else:
                record({layer: output[layer if layer >= 0 else depth + 1 + layer] for layer in chosen})

        observe_output(self.vision_tower.vision_model.encoder, states)

    def project(self, tokens: Tensor) -> Tensor:
        """The multi-modal projector."""
        return self.multi_modal_projector(tokens)


@MULTIMODAL_REGISTRY.register_processor(LlavaProcessor, info=LlavaInfo, dummy_inputs=LlavaDummyInputsBuilder)
class VtcLlavaForConditionalGeneration(LlavaTower, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` of vLLM with pruned images."""

    def arguments(self, kwargs: dict) -> dict:
        """The pixels [images, 3, H, W]."""
        return {"pixel_values": kwargs["pixel_values"]}

    def whole_embeds(self, kwargs: dict, layouts: list[ImageLayout]) -> list[Tensor]:
        """The stock class's embeddings."""
        return list(self._process_image_input(self._parse_and_validate_image_input(**kwargs)))
