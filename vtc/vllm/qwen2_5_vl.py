"""Qwen2.5-VL served pruned: as Qwen2-VL, but in window order, which the family undoes."""

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.vllm.processing import PrunedProcessor
from vtc.vllm.qwen2_vl import PrunedQwen, QwenDummies, QwenInfo


class Qwen2_5VLInfo(QwenInfo, Qwen2_5_VLProcessingInfo):
    """Limits of Qwen2.5-VL."""


class Qwen2_5VLProcessor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):
    """Placeholders of Qwen2.5-VL."""


class Qwen2_5VLDummies(QwenDummies, Qwen2_5_VLDummyInputsBuilder):
    """Dummy images of Qwen2.5-VL."""


@MULTIMODAL_REGISTRY.register_processor(Qwen2_5VLProcessor, info=Qwen2_5VLInfo, dummy_inputs=Qwen2_5VLDummies)
class VtcQwen2_5_VLForConditionalGeneration(PrunedQwen, Qwen2_5_VLForConditionalGeneration):
    """`Qwen2_5_VLForConditionalGeneration` of vLLM with pruned images."""
