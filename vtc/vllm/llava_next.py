"""LLaVA-NeXT served pruned: a base crop and tiles per image. How many tokens an image gives follows from its size."""

from collections.abc import Iterator

from torch import Tensor
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.core.layout import ImageLayout
from vtc.vllm.llava import LlavaTower
from vtc.vllm.processing import PrunedInfo, PrunedProcessor


class LlavaNextInfo(PrunedInfo, LlavaNextProcessingInfo):
    """Limits of LLaVA-NeXT."""

    def largest_layouts(self) -> Iterator[ImageLayout]:
        """Pictures that fill a tiling of the config; one of them has the most kept tokens."""
        for height, width in self.get_hf_config().image_grid_pinpoints:
            yield from self.settings.family.image_layouts({"image_sizes": [[height, width]]})


class LlavaNextProcessor(PrunedProcessor, LlavaNextMultiModalProcessor):
    """Placeholders of LLaVA-NeXT."""


@MULTIMODAL_REGISTRY.register_processor(LlavaNextProcessor, info=LlavaNextInfo, dummy_inputs=LlavaDummyInputsBuilder)
class VtcLlavaNextForConditionalGeneration(LlavaTower, LlavaNextForConditionalGeneration):
    """`LlavaNextForConditionalGeneration` of vLLM with pruned images. Newline tokens are dropped with the rows
    that they end."""

    def arguments(self, kwargs: dict) -> dict:
        """The pictures' sizes [images, 2] (height, width)."""
        return {"image_sizes": kwargs["image_sizes"]}

    def whole_embeds(self, kwargs: dict, layouts: list[ImageLayout]) -> list[Tensor]:
        """The stock class's embeddings, without encoding the crops that only fill up a batch."""
        crops = [pixels[: len(layout.tiles)] for pixels, layout in zip(kwargs["pixel_values"], layouts, strict=True)]
        image_input = self._parse_and_validate_image_input(**{**kwargs, "pixel_values": crops})
        return list(self._process_image_input(image_input))
