"""InternVL3 and InternVL3.5 (the "-hf" models): equal tiles and a thumbnail, 2 x 2 patches joined to a token."""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from vtc.core.errors import UnsupportedError
from vtc.core.layout import CropGroup, ImageLayout
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset
from vtc.patches._shuffle import Shuffled, same_size
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish, prompts


def _config(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int) -> object:
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    text = Qwen2Config(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=32768, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, bos_token_id=151643, eos_token_id=151645,
        tie_word_embeddings=False,
    )  # fmt: skip
    vision = InternVLVisionConfig(attention_bias=True)
    return InternVLConfig(vision_config=vision, text_config=text, image_token_id=151667, tie_word_embeddings=False)


@FAMILIES.register("internvl")
class InternVL(Shuffled):
    """InternVL3 / 3.5 (`internvl`). [CLS] comes first; a visual token is a block of 2 x 2 patches. An image is an
    unbroken run of placeholders: its tiles in raster order, then the thumbnail, if there are several tiles; how the
    tiles are arranged is not told. Frames of a clip are images.

    Source: `InternVLForConditionalGeneration` of transformers; "InternVL3", arXiv 2504.10479, and "InternVL3.5",
    arXiv 2508.18265.
    """

    name = "internvl"
    model_types = ("internvl",)
    may_have_cls = True
    most_crops = 13
    towers = ("internvl_vision",)
    tower_path = "model.vision_tower"
    attention_path = r"encoder\.layer\.(\d+)\.attention"
    published = Encoder("internvl", 24, True, tuple(range(24)), tiled=True, thumbnail=256)
    presets = {
        "internvl3-8b": Preset(
            partial(_config, hidden=3584, mlp=18944, layers=28, heads=28, kv_heads=4, vocab=151674), 7_944_373_760,
            "InternVL3-8B",
        )
    }  # fmt: skip

    def describe_encoder(self) -> Encoder:
        """As in the other families with blocks; raises UnsupportedError for a config that reads no single layer or
        keeps [CLS] among the patches."""
        config = self.model.config
        strategy, read, depth = config.vision_feature_select_strategy, config.vision_feature_layer, len(self.attention)
        if strategy != "default" or not isinstance(read, int):
            raise UnsupportedError(
                f"vision_feature_select_strategy={strategy!r} with vision_feature_layer={read!r} does not give whole "
                "blocks of patches of one layer; possible: default, one layer"
            )
        encoder, output = super().describe_encoder(), depth + read if read < 0 else read - 1
        return Encoder(**{**vars(encoder), "output": output})

    def sides(self) -> tuple[int, int, int]:
        """From the configs of model and tower."""
        vision = self.tower.config
        block = round(1 / self.model.config.downsample_ratio)
        return same_size(self.tower, vision.image_size), same_size(self.tower, vision.patch_size), block

    def image_groups(self, places: list[Tensor], tokens: Callable[[], Tensor]) -> list[CropGroup]:
        """An unbroken run of placeholders is an image."""
        counts, after = [], None
        for crop in places:
            first, last = int(crop[0]), int(crop[-1])
            if first == after:
                counts[-1] += 1
            else:
                counts.append(1)
            after = last + 1
        return [CropGroup(n) for n in counts]

    def columns(self, images: object, size: tuple[int, int], layout: ImageLayout) -> int:
        """By the rule of the image processor: the arrangement whose shape is nearest to the image's."""
        rule = getattr(sys.modules[type(images).__module__], "get_optimal_tiled_canvas", None)
        side, tiles = self.sides()[0], len(layout.tiles) - 1
        if rule is None:
            raise UnsupportedError(
                f"{type(images).__name__} does not say how it arranges tiles; possible: the processor that belongs to "
                "the model"
            )
        columns, rows = rule(size, (side, side), images.min_patches, images.max_patches)
        if columns * rows != tiles:
            raise UnsupportedError(
                f"the image processor gives {rows} x {columns} tiles where the model saw {tiles}; possible: the "
                "processor that belongs to the model"
            )
        return columns

    def hidden(self, output: object, arguments: dict) -> Tensor:
        """The layer that the config, or the call, names."""
        layer = arguments.get("vision_feature_layer")
        layer = self.model.config.vision_feature_layer if layer is None else layer
        return output.last_hidden_state if layer == -1 else output.hidden_states[layer]

    def project(self, tokens: Tensor) -> Tensor:
        """The multi-modal projector."""
        return self.inner.multi_modal_projector(tokens)

    def random_pictures(self, visual: int, native: int | None, generator: torch.Generator) -> tuple[list[int], dict]:
        """Images of up to 12 tiles and a thumbnail, in about equal parts."""
        counts, pixels = self.random_images(visual, generator)
        return [n * self.encoder.thumbnail for n in counts], {"pixel_values": pixels}

    def image_ids(self, tokens: int) -> list[int]:
        """The placeholders between the marks, whose ids are the two before theirs in the published models."""
        return [self.image_token_id - 2, *[self.image_token_id] * tokens, self.image_token_id - 1]

    @classmethod
    def tiny(cls, text: object = None, **overrides) -> nn.Module:
        """4 encoder layers on an 8 x 8 grid of patches, 16 tokens a crop. text: a text config (default Qwen2, GQA)."""
        from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

        vision = InternVLVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=32,
            patch_size=4, attention_bias=True, layer_scale_init_value=0.7,
        )  # fmt: skip
        torch.manual_seed(0)
        config = InternVLConfig(
            vision_config=vision,
            text_config=text or Qwen2Config(**TEXT, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD),
            image_token_id=IMAGE_TOKEN, image_seq_length=16, tie_word_embeddings=False, **overrides,
        )  # fmt: skip
        return finish(with_positions(InternVLForConditionalGeneration(config)))

    @classmethod
    def tiny_inputs(cls, model: nn.Module, images: tuple[int, ...] = (1, 2, 1), seed: int = 0, **kwargs) -> dict:
        """Random pixels [crops, 3, 32, 32] of images of 3, 1, 5 and 4 crops."""
        counts = [[3, 1, 5, 4][i % 4] for i in range(sum(images))]
        tokens = iter([16 * n for n in counts])
        marks = [IMAGE_TOKEN - 2], [IMAGE_TOKEN - 1]
        inputs = prompts([[next(tokens) for _ in range(n)] for n in images], seed, image=marks, **kwargs)
        if counts:
            generator = torch.Generator().manual_seed(seed)
            inputs["pixel_values"] = torch.randn(sum(counts), 3, 32, 32, generator=generator)
        return inputs


def with_positions(model: nn.Module) -> nn.Module:
    """The model with random embeddings of [CLS] and of positions, which start as zeros."""
    embeddings = model.model.vision_tower.embeddings
    for parameter in (embeddings.cls_token, embeddings.position_embeddings):
        torch.nn.init.normal_(parameter, std=0.02)
    return model
