"""What all served models have in common behind the encoder: a mixin that stands before the stock model class."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.logger import init_logger

from vtc.core.errors import UnsupportedError
from vtc.core.signals import EncoderFeatures, Unprojected
from vtc.vllm.processing import COUNT
from vtc.vllm.refusals import refuse_engine
from vtc.vllm.selecting import Selector, kept_features, portions
from vtc.vllm.settings import REQUEST_KEEP, ServedStrategy

LOGGER = init_logger("vllm.vtc")
NAMES = ("query", "key", "value", "cu_seqlens")
"""The arguments of vLLM's encoder attention, in order."""


def mean_over_ranks(local: Tensor) -> Tensor:
    """Means over the heads of this tensor-parallel rank as means over all heads, the same on every rank."""
    ranks = get_tensor_model_parallel_world_size()
    return local if ranks == 1 else tensor_model_parallel_all_reduce(local.contiguous()) / ranks


class PrunedModel:
    """Selects in `embed_multimodal`. A model class says where its attention is, what its projector is and what it
    receives.

    `attention_modules()`: vLLM's encoder attention, one module per loaded layer. `observe_unprojected(record)`: has
    record called with what the family's `unprojected` takes. `project(tokens)`: see `Family.project`.
    `whole_embeds(kwargs, layouts)`: per image its tokens [tokens, D] before pruning. `arguments(kwargs)`: as those of
    transformers' `get_image_features`.
    """

    def __init__(self, *, vllm_config, prefix: str = ""):
        settings = ServedStrategy.of(vllm_config.model_config.hf_config)
        needs = settings.stage.stage.needs(settings.family.encoder)
        refuse_engine(vllm_config, needs)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        strategy, largest_keep = settings.strategy, settings.max_keep
        LOGGER.info(
            "vtc: images pruned by %s, keep %s, at most %s by request", strategy.name, strategy.keep, largest_keep
        )
        self.pruning, self.portion = settings, vllm_config.scheduler_config.max_num_batched_tokens
        self.selector = Selector(settings, mean_over_ranks, self.project)
        modules = self.attention_modules()
        for layer in self.selector.layers:
            self._observe(layer, modules[layer])
        if any(isinstance(signal, (Unprojected, EncoderFeatures)) for signal in needs):
            self.observe_unprojected(self.selector.record_unprojected)

    def _observe(self, layer: int, module: nn.Module) -> None:
        """Records q and k of an encoder attention module, which vLLM calls before its own kernel, after any RoPE."""
        windowed = layer not in self.pruning.family.encoder.global_layers
        if windowed and getattr(module.attn_backend, "name", "") == "FLASHINFER":
            raise UnsupportedError(
                f"mm_encoder_attn_backend=FLASHINFER does not tell the windows of layer {layer}; possible: FLASH_ATTN, "
                f"or one of the layers {list(self.pruning.family.encoder.global_layers)}"
            )

        def heads(x: Tensor, count: int) -> Tensor:
            return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)

        def before(module, args, kwargs):
            given = {**dict(zip(NAMES, args)), **kwargs}
            query, key = heads(given["query"], module.num_heads), heads(given["key"], module.num_kv_heads)
            self.selector.record(layer, query, key, module.scale, given.get("cu_seqlens"))

        module.register_forward_pre_hook(before, with_kwargs=True)

    def embed_multimodal(self, **kwargs: object) -> list[Tensor]:
        """Per image the embeddings [k, D] of its kept tokens (wider where positions travel along).

        vLLM's budget for a step counts kept tokens and so lets more images through than without pruning; they are
        encoded in portions of that budget in unpruned tokens, so that the encoder takes no more memory.
        """
        counts, keeps = kwargs.pop(COUNT, None), kwargs.pop(REQUEST_KEEP, None)
        if kwargs.get("pixel_values") is None:
            return []
        counts, keeps = counts.flatten().tolist(), keeps.flatten().tolist()
        layouts = self.pruning.family.image_layouts(self.arguments(kwargs))
        embeddings = []
        for first, stop in portions([layout.tokens for layout in layouts], self.portion):
            embeddings += self._embed(self.part(kwargs, first, stop), counts[first:stop], keeps[first:stop])
        return embeddings

    def _embed(self, kwargs: dict, counts: list[int], keeps: list[float]) -> list[Tensor]:
        arguments = self.arguments(kwargs)
        layouts, run = self.pruning.family.image_layouts(arguments), None
        with torch.no_grad():
            if all(keep == 1.0 for keep in keeps):  # nothing to choose, so nothing to record
                embeds = self.whole_embeds(kwargs, layouts)
            else:
                with self.selector.recording(arguments, layouts) as run:
                    embeds = self.whole_embeds(kwargs, layouts)
        kept = self.selector.rows(run, embeds, keeps)
        images = zip(layouts, kept, embeds, counts, strict=True)
        return [self.finish(layout, rows, kept_features(rows, unpruned, n)) for layout, rows, unpruned, n in images]

    def part(self, kwargs: dict, first: int, stop: int) -> dict:
        """The arguments of the images from `first` up to but not including `stop`."""
        return {name: value[first:stop] for name, value in kwargs.items()}

    def finish(self, layout, kept, features: Tensor) -> Tensor:
        """The features of an image's kept tokens as the runner takes them."""
        return features


def observe_output(module: nn.Module, record: Callable) -> None:
    """Has record called with each output of a module."""
    module.register_forward_hook(lambda module, args, output: record(output))
