"""Options of vLLM that cannot go with pruning, refused by name at start-up."""

from vtc.core.errors import UnsupportedError
from vtc.core.signals import Features, Signal
from vtc.vllm.settings import REQUEST_KEEP

NO_SUCH = "without it"


def refuse_processing(mm_config: object) -> None:
    """Raises UnsupportedError for an option of the multimodal config that the processor cannot honour."""
    if getattr(mm_config, "enable_mm_embeds", False):
        raise UnsupportedError(
            "enable_mm_embeds: embeddings made elsewhere carry no attention to choose by; possible: without it"
        )
    if REQUEST_KEEP in (getattr(mm_config, "mm_processor_kwargs", None) or {}):
        raise UnsupportedError(
            f"mm_processor_kwargs of the server names {REQUEST_KEEP}; possible: keep under vtc in hf_overrides for the "
            f"server, {REQUEST_KEEP} in a request"
        )


def refuse_engine(config: object, needs: tuple[Signal, ...]) -> None:
    """Raises UnsupportedError for an option of a VllmConfig that would skip or misplace the selection.

    needs: the strategy's signals.
    """
    mm, parallel, compilation = config.model_config.multimodal_config, config.parallel_config, config.compilation_config
    refuse_processing(mm)
    needs_attention = any(not isinstance(signal, Features) for signal in needs)
    lora, tower = config.lora_config, "enable_tower_connector_lora"
    checks = {
        "mm_encoder_tp_mode='data' keeps the attention of an image on one rank": (
            needs_attention and mm.mm_encoder_tp_mode == "data", "mm_encoder_tp_mode='weights'"),
        "compile_mm_encoder hides the encoder's attention": (
            getattr(compilation, "compile_mm_encoder", False), NO_SUCH),
        "cudagraph_mm_encoder replays the encoder without the selection": (
            getattr(compilation, "cudagraph_mm_encoder", False), NO_SUCH),
        "pipeline_parallel_size above 1 was never tried with pruned images": (
            parallel.pipeline_parallel_size > 1, "tensor_parallel_size"),
        "speculative decoding was never tried with pruned images": (config.speculative_config is not None, NO_SUCH),
        f"{tower} counts the tokens of the tower by the placeholders": (
            lora is not None and getattr(lora, tower, False), "LoRA of the language model only"),
        "ec_transfer_config (an encoder of its own) was never tried with pruned images": (
            getattr(config, "ec_transfer_config", None) is not None, NO_SUCH),
        "video_pruning_rate: videos are not served pruned": (bool(getattr(mm, "video_pruning_rate", None)), NO_SUCH),
    }  # fmt: skip
    for problem, (present, possible) in checks.items():
        if present:
            raise UnsupportedError(f"{problem}; possible: {possible}")
