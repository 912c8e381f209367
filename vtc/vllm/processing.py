"""What all served models have in common in front of the encoder: counts, placeholders, hashes and limits.

Mixins for vLLM's ProcessingInfo and MultiModalProcessor of a model; they stand before the stock classes. The number of
kept tokens of an image is computed once, here, and travels with the image: placeholders, features and positions all
come from it.
"""

from collections.abc import Mapping
from functools import cached_property

import torch

from vtc.core.errors import ConfigError
from vtc.vllm.encoder_budget import Most, lower_encoder_budget
from vtc.vllm.refusals import refuse_processing
from vtc.vllm.settings import REQUEST_KEEP, ServedStrategy, packed

COUNT = "vtc_count"
"""The field that carries the number of kept tokens with an image."""


def without_ours(kwargs: Mapping[str, object]) -> dict[str, object]:
    """Processor arguments as the stock classes know them."""
    return {key: value for key, value in kwargs.items() if key != REQUEST_KEEP}


class PrunedInfo:
    """For a ProcessingInfo: reads the settings, names what changes the selection, and gives limits of kept tokens."""

    def __init__(self, ctx):
        super().__init__(ctx)
        _ = self.settings  # raises here, before any weights are loaded, for what cannot be served

    @cached_property
    def settings(self) -> ServedStrategy:
        """Read and checked once per process; raises ConfigError or UnsupportedError, which ends the start."""
        refuse_processing(self.ctx.model_config.multimodal_config)
        return ServedStrategy.of(self.ctx.model_config.hf_config)

    @property
    def model_id(self) -> str:
        """Part of the hash of every image, as is the keep of its request (see `PrunedProcessor.apply`)."""
        return f"{super().model_id}#vtc-{self.settings.fingerprint}"

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images only."""
        return {"image": None}

    def get_hf_processor(self, **kwargs: object):
        """The stock processor, which does not know our arguments."""
        return super().get_hf_processor(**without_ours(kwargs))

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The most tokens that an image gives to a prompt at `max_keep`: the encoder's budget and cache follow."""
        lower_encoder_budget()
        settings, layouts = self.settings, list(self.largest_layouts())
        kept = max(settings.count(layout, settings.max_keep) for layout in layouts)
        return {"image": Most(kept, max(layout.tokens for layout in layouts))}


class PrunedProcessor:
    """For a MultiModalProcessor: the request's keep into the hash, the count into the image's fields and the prompt."""

    def apply(self, inputs, *args, **kwargs):
        """Resolves the request's keep before anything is hashed, so that no user-given id can stand for two keeps.

        Raises ConfigError for a keep that is no number, out of range or not served, and for another name of ours.
        """
        given = inputs.hf_processor_mm_kwargs
        unknown = [name for name in given if name.startswith("vtc") and name != REQUEST_KEEP]
        if unknown:
            raise ConfigError(f"mm_processor_kwargs has {', '.join(unknown)}; possible: {REQUEST_KEEP}")
        keep = self.info.settings.request_keep(given.get(REQUEST_KEEP))
        inputs.hf_processor_mm_kwargs = {**given, REQUEST_KEEP: keep}
        return super().apply(inputs, *args, **kwargs)

    def _apply_hf_processor_main(self, mm_items, *args, **kwargs):
        # The name of the processor's arguments differs from version to version.
        args = [without_ours(value) if isinstance(value, Mapping) else value for value in args]
        kwargs = {name: without_ours(value) if isinstance(value, Mapping) else value for name, value in kwargs.items()}
        return super()._apply_hf_processor_main(mm_items, *args, **kwargs)

    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs):
        from vllm.multimodal.inputs import MultiModalFieldConfig

        if "image_embeds" in hf_inputs:
            raise ConfigError("image embeddings carry no attention to choose by; possible: the image itself")
        if "pixel_values" in hf_inputs:
            settings, keep = self.info.settings, hf_processor_mm_kwargs[REQUEST_KEEP]
            counts = [settings.count(layout, keep) for layout in settings.family.image_layouts(hf_inputs)]
            hf_inputs[COUNT] = torch.tensor(counts)
            hf_inputs[REQUEST_KEEP] = torch.full((len(counts),), packed(keep), dtype=torch.float64)
        vtc_fields = {name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in (COUNT, REQUEST_KEEP)}
        return {**super()._get_mm_fields_config(hf_inputs, without_ours(hf_processor_mm_kwargs)), **vtc_fields}

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        from vllm.multimodal.processing import PromptReplacement

        token = self.info.settings.family.image_token_id

        def placeholders(index: int) -> list[int]:
            return [token] * int(out_mm_kwargs["image"][index][COUNT].data)

        return [PromptReplacement(modality="image", target=[token], replacement=placeholders)]
