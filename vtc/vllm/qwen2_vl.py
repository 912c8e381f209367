"""Qwen2-VL served pruned, and what Qwen2.5-VL has in common with it: packed images, merged patches, M-RoPE."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.core.layout import ImageLayout
from vtc.engine.select import Kept
from vtc.vllm.compat import recompute_positions, waiting_allowed
from vtc.vllm.positions import Placed, add_places, attach, detach, initial
from vtc.vllm.processing import PrunedInfo, PrunedProcessor
from vtc.vllm.pruned_model import PrunedModel


class QwenInfo(PrunedInfo):
    """Limits of Qwen models."""

    def largest_layouts(self) -> Iterator[ImageLayout]:
        """The picture with the most patches that the image processor produces."""
        size, patch = self.get_image_size_with_most_features(), self.get_hf_config().vision_config.patch_size
        grid = [1, size.height // patch, size.width // patch]
        yield from self.settings.family.image_layouts({"image_grid_thw": [grid]})


class QwenDummies:
    """For a DummyInputsBuilder: no videos."""

    def get_dummy_text(self, mm_counts) -> str:
        """Placeholders of images."""
        return super().get_dummy_text({"image": mm_counts.get("image", 0)})

    def get_dummy_mm_data(self, seq_len, mm_counts, mm_options):
        """The largest images."""
        size = self.info.get_image_size_with_most_features()
        images = self._get_dummy_images(
            width=size.width, height=size.height, num_images=mm_counts.get("image", 0),
            overrides=mm_options.get("image"),
        )  # fmt: skip
        return {"image": images}


class PrunedQwen(PrunedModel):
    """A Qwen model of vLLM with pruned images; with positions="keep", kept tokens have their own positions."""

    supports_multimodal_pruning = True

    def __init__(self, *, vllm_config, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self.pruning.own_positions:
            recompute_positions(vllm_config)

    def attention_modules(self) -> list[nn.Module]:
        """Those of the vision blocks."""
        return [block.attn.attn for block in self.visual.blocks]

    def observe_unprojected(self, record: Callable) -> None:
        """What enters the patch merger; observed at its norm, because the merger itself may be called without hooks."""
        self.visual.merger.ln_q.register_forward_pre_hook(lambda module, args: record(args[0].flatten(0, -2)))

    def project(self, tokens: Tensor) -> Tensor:
        """The patch merger, on the patches of each token side by side."""
        return self.visual.merger(tokens.reshape(-1, tokens.shape[-1] // self.visual.spatial_merge_size**2))

    def arguments(self, kwargs: dict) -> dict:
        """The grids [images, 3] in patches."""
        return {"image_grid_thw": kwargs["image_grid_thw"]}

    def part(self, kwargs: dict, first: int, stop: int) -> dict:
        """As the mixin's; the patches of all images are packed into one sequence."""
        grids, pixels = kwargs["image_grid_thw"], kwargs["pixel_values"]
        start, end = (int(grids[:n].prod(-1).sum()) for n in (first, stop))
        return {**kwargs, "image_grid_thw": grids[first:stop], "pixel_values": pixels[start:end]}

    def whole_embeds(self, kwargs: dict, layouts: list[ImageLayout]) -> list[Tensor]:
        """The stock class's embeddings."""
        return list(self._process_image_input(self._parse_and_validate_image_input(**kwargs)))

    def finish(self, layout: ImageLayout, kept: Kept, features: Tensor) -> Tensor:
        """The features, followed by rows and columns where `recompute_mrope_positions` will need them."""
        if not self.pruning.own_positions:
            return features
        return attach(features, kept.offsets, layout.tiles[0].grid[1])

    def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Sequence) -> tuple[Tensor, int]:
        """Positions [3, L] of the pruned prompt, and the offset of the positions after it."""
        places = [feature.mm_position for feature in mm_features]
        grids = [feature.data["image_grid_thw"].data.tolist() for feature in mm_features]
        grids = self.pruning.family.grids({"image_grid_thw": grids})
        images = [Placed(place.offset, place.length, grid) for place, grid in zip(places, grids, strict=True)]
        return initial(len(input_tokens), images, self.pruning.own_positions)

    def recompute_mrope_positions(
        self,
        input_ids: Sequence[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Splits rows and columns off the embeddings of this part of a prompt and adds them to its positions."""
        pairs = [detach(rows) for rows in multimodal_embeddings]
        with waiting_allowed():
            if pairs:
                visual = torch.as_tensor(input_ids, device=mrope_positions.device) == self.pruning.family.image_token_id
                places = torch.cat([places for _, places in pairs])
                mrope_positions = add_places(mrope_positions, visual, num_computed_tokens, places)
            following = int(mrope_positions.max()) + 1
        return [features for features, _ in pairs], mrope_positions, following - mrope_positions.shape[1]


class Qwen2VLInfo(QwenInfo, Qwen2VLProcessingInfo):
    """Limits of Qwen2-VL."""


class Qwen2VLProcessor(PrunedProcessor, Qwen2VLMultiModalProcessor):
    """Placeholders of Qwen2-VL."""


class Qwen2VLDummies(QwenDummies, Qwen2VLDummyInputsBuilder):
    """Dummy images of Qwen2-VL."""


@MULTIMODAL_REGISTRY.register_processor(Qwen2VLProcessor, info=Qwen2VLInfo, dummy_inputs=Qwen2VLDummies)
class VtcQwen2VLForConditionalGeneration(PrunedQwen, Qwen2VLForConditionalGeneration):
    """`Qwen2VLForConditionalGeneration` of vLLM with pruned images."""
