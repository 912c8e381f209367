"""LLaVA-1.5: one crop per image, CLIP or SigLIP tower, any text model that `LlavaForConditionalGeneration` takes."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from vtc.core.errors import ConfigError, UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.layout import ImageLayout, Tile, View, boxes, on_picture, raster
from vtc.core.signals import Encoder
from vtc.kernels.transfer import upload
from vtc.patches import FAMILIES
from vtc.patches._encoder import EncoderSite, Units
from vtc.patches._family import Family
from vtc.patches._preset import Preset
from vtc.patches._resizing import resizing_of
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish, prompts

CLS_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}


def clip_config(**sizes) -> object:
    """LLaVA's vision tower: CLIP ViT-L/14 at 336 pixels, or with other sizes."""
    from transformers import CLIPVisionConfig

    large = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    return CLIPVisionConfig(**{**large, "image_size": 336, "patch_size": 14, "projection_dim": 768, **sizes})


def llama_config(hidden: int, mlp: int, layers: int, heads: int, vocab: int) -> object:
    """The config of a text model like Vicuna."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        vocab_size=vocab, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def _config(vision: dict, **text) -> object:
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=clip_config(**vision), text_config=llama_config(**text), image_token_id=text["vocab"] - 64,
        image_seq_length=576, vision_feature_select_strategy="default", vision_feature_layer=-2,
    )  # fmt: skip


def _processor(config: object, tokenizer: object) -> object:
    from transformers import CLIPImageProcessor, LlavaProcessor

    side = config.vision_config.image_size
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def _preset(vision: dict, text: dict, parameters: int, description: str) -> Preset:
    return Preset(partial(_config, vision, **text), parameters, description, _processor)


VICUNA_7B = dict(hidden=4096, mlp=11008, layers=32, heads=32, vocab=32064)
_VICUNA_13B = dict(hidden=5120, mlp=13824, layers=40, heads=40, vocab=32064)
# As deep as the real tower, with the same head size: methods observe a fixed number of layers, and the cost of scoring
# a layer relative to the layer itself depends on the head size.
_SMALL_TOWER = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=24, num_attention_heads=4)
_BASE_TOWER = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
_SMALL = dict(hidden=384, mlp=1024, layers=8, heads=6, vocab=8192)
_BASE = dict(hidden=1024, mlp=2816, layers=12, heads=16, vocab=32064)


@FAMILIES.register("llava")
class Llava(Family):
    """LLaVA-1.5 (`llava`). Only a CLIP tower has [CLS]; a grid of side image_size / patch_size in raster order.

    Source: `LlavaForConditionalGeneration` of transformers; "Improved Baselines with Visual Instruction Tuning",
    arXiv 2310.03744.
    """

    name = "llava"
    model_types = ("llava",)
    may_have_cls = True
    towers = tuple(CLS_TOWERS)
    tower_path = "model.vision_tower"
    served = "vtc.vllm.llava:VtcLlavaForConditionalGeneration"
    published = Encoder("llava", 24, True, tuple(range(24)), 576, output=22)
    presets = {
        "tiny": _preset(_SMALL_TOWER, _SMALL, 39_954_048, "LLaVA, 24 + 8 layers; for a CPU in seconds"),
        "llava-mini": _preset(_BASE_TOWER, _BASE, 307_623_424, "LLaVA, CLIP of base size and 12 layers; for a CPU"),
        "llava-1.5-7b": _preset({}, VICUNA_7B, 7_063_427_072, "LLaVA-1.5-7B"),
        "llava-1.5-13b": _preset({}, _VICUNA_13B, 13_350_839_296, "LLaVA-1.5-13B"),
    }
    attention_path = r"(?:vision_model\.)?encoder\.layers\.(\d+)\.self_attn"

    def describe_encoder(self) -> Encoder:
        """Depth, [CLS] and tokens per image of the tower."""
        vision, strategy = self.tower.config, self.model.config.vision_feature_select_strategy
        has_cls = CLS_TOWERS[vision.model_type]
        if strategy != ("default" if has_cls else "full"):
            raise UnsupportedError(
                f"vision_feature_select_strategy={strategy!r} with a {vision.model_type} tower does not give a full "
                f"grid of patches; possible: {'default' if has_cls else 'full'}"
            )
        depth, read = len(self.attention), self.model.config.vision_feature_layer
        output = None if not isinstance(read, int) else depth + read if read < 0 else read - 1
        return Encoder(self.name, depth, has_cls, tuple(range(depth)), self.tokens_per_image(vision), output=output)

    def encoder_site(self) -> EncoderSite:
        """The tower's layers; refuses a config that reads several layers, or none."""
        read = self.model.config.vision_feature_layer
        if not isinstance(read, int) or not 0 <= self.encoder.last < self.encoder.depth:
            raise UnsupportedError(
                f"vision_feature_layer={read!r}: tokens cannot be dropped inside an encoder of which several layers, "
                "or none, are read; possible: one layer, or a stage at the projector"
            )
        return EncoderSite(self, self.blocks, self.inner.multi_modal_projector, ("layer_norm2", "mlp"), packed=False)

    def units(self, images: list[ImageLayout]) -> Units:
        """The crops, each with as many patches as the first crop of its image, which is never unpadded."""
        crops = [(image.tiles[0].tokens, i) for i, image in enumerate(images) for _ in image.tiles]
        return Units([tokens for tokens, _ in crops], [i for _, i in crops])

    def sources(self, images: list[ImageLayout], arguments: dict) -> list[list[tuple[int, Tensor | None]]]:
        """The patches of each tile in its crop."""
        crop_tokens = [image.tiles[0].tokens for image in images]
        return [
            [(tile.crop, None if tile.tokens == n else tile.patches) for tile in image.tiles]
            for image, n in zip(images, crop_tokens, strict=True)
        ]

    def tokens_per_image(self, vision) -> int | None:
        """Visual tokens of an image where the family fixes them."""
        return (vision.image_size // vision.patch_size) ** 2

    def image_layouts(self, arguments: dict) -> list[ImageLayout]:
        """One full raster per image, from the size of the pixels [images, 3, H, W]."""
        pixels, patch = arguments["pixel_values"], self.tower.config.patch_size
        rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return [raster(i, rows, columns) for i in range(pixels.shape[0])]

    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """One raster on the centre of the image, which is cropped if it is not square; see `resizing_of`."""
        (tile,), patch = layout.tiles, self.tower.config.patch_size
        high, wide = (n * patch for n in tile.grid)
        prepared, scale, shift = resizing_of(images, size)
        if (prepared[0] // patch, prepared[1] // patch) != tile.grid:
            raise UnsupportedError(
                f"the image processor gives {prepared[0]} x {prepared[1]} pixels where the model saw {high} x {wide}; "
                "possible: the processor that belongs to the model"
            )
        rows, columns = tile.patches // tile.grid[1], tile.patches % tile.grid[1]
        shown = boxes(rows, columns, (patch, patch)), torch.tensor([[0.0, 0.0, wide, high]], dtype=torch.float64)
        return (View("picture", tile.offsets, *(on_picture(x, size, scale, shift) for x in shown)),)

    def random_pictures(self, visual: int, native: int | None, generator: torch.Generator) -> tuple[list[int], dict]:
        """Several images of one size; with `native`, of the size that comes closest."""
        vision = self.tower.config
        side = native or vision.image_size // vision.patch_size
        images = -(-visual // side**2)
        if native is not None:
            side = max(2, round((visual / images) ** 0.5))
        elif visual % side**2:
            raise ConfigError(
                f"--visual-tokens {visual} is not possible: an image of this model has {side**2}; possible: multiples "
                f"of {side**2}, or a preset"
            )
        size = side * vision.patch_size
        return [side**2] * images, {"pixel_values": torch.randn(images, 3, size, size, generator=generator)}

    def native_side(self) -> int | None:
        """The tower's own side, if every image has the same number of tokens."""
        vision = self.tower.config
        return None if self.encoder.tokens is None else vision.image_size // vision.patch_size

    def fit_tower(self, arguments: dict) -> None:
        """New position embeddings for another number of patches."""
        vision = self.tower.config
        side = arguments["pixel_values"].shape[-1] // vision.patch_size
        if side != vision.image_size // vision.patch_size:
            resize_tower(self.tower, side)

    def tile_scores(self, captured: list[Tensor], images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """captured: [crops, N] per call; a tile takes all patches of its crop, or those left after unpadding."""
        return self.by_tile(captured[0] if len(captured) == 1 else torch.cat(captured), images, arguments)

    def by_tile(self, x: Tensor, images: list[ImageLayout], arguments: dict, lead: int = 0) -> list[list[Tensor]]:
        """Rows x [crops, lead + N, ...] of all crops, sorted by image and tile; the `lead` rows of [CLS] stay first."""
        first = torch.arange(lead)

        def rows(tile: Tile) -> Tensor:
            crop = x[tile.crop]
            if tile.tokens + lead == len(crop):
                return crop
            return crop[upload(torch.cat([first, tile.patches + lead]), crop.device)]

        return [[rows(tile) for tile in image.tiles] for image in images]

    def crop_counts(self, images: list[ImageLayout], arguments: dict) -> list[int]:
        """Crops of each image, or frames of each clip."""
        return [len(image.tiles) for image in images]

    def pixel_scores(self, arguments: dict, images: list[ImageLayout], score: Callable) -> list[list[Tensor]]:
        """pixel_values [crops, 3, H, W], or [images, crops, 3, H, W] with filler after an image's crops."""
        pixels, patch = arguments["pixel_values"], self.tower.config.patch_size
        if pixels.ndim == 5:
            pixels = torch.cat([x[:n] for x, n in zip(pixels, self.crop_counts(images, arguments), strict=True)])
        patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)
        crops = patches.reshape(len(pixels), -1, 3, patch**2)
        return self.tile_scores([torch.stack([score(crop) for crop in crops])], images, arguments)

    def observe_unprojected(self, patchwork: Patchwork, record: Callable) -> None:
        """Records the tower's hidden states."""
        patchwork.post_hook(self.tower, lambda module, args, kwargs, output: record(output.hidden_states))

    def unprojected(self, captured: list, images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """The configured layer's hidden states (several layers are concatenated, as in the model)."""
        layers = arguments.get("vision_feature_layer") or self.model.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        hidden = torch.cat([torch.cat([states[layer] for layer in layers], -1) for states in captured])
        return self.by_tile(hidden, images, arguments, int(self.encoder.has_cls))

    def project(self, tokens: Tensor) -> Tensor:
        """The multi-modal projector."""
        return self.inner.multi_modal_projector(tokens)

    @classmethod
    def tiny(cls, tower: str = "clip", text: object = None, **overrides) -> nn.Module:
        """4 encoder layers on an 8 x 8 grid. tower: "clip" or "siglip"; text: a text config (default Llama, GQA)."""
        from transformers import (
            CLIPVisionConfig,
            LlamaConfig,
            LlavaConfig,
            LlavaForConditionalGeneration,
            SiglipVisionConfig,
        )

        sizes = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 4,
        }
        vision = CLIPVisionConfig(**sizes) if tower == "clip" else SiglipVisionConfig(**sizes)
        torch.manual_seed(0)
        config = LlavaConfig(
            vision_config=vision,
            text_config=text or LlamaConfig(**TEXT, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD),
            image_token_id=IMAGE_TOKEN,
            image_seq_length=64,
            vision_feature_select_strategy="default" if tower == "clip" else "full",
            **overrides,
        )
        return finish(LlavaForConditionalGeneration(config))

    @classmethod
    def tiny_inputs(cls, model: nn.Module, images: tuple[int, ...] = (1, 2, 1), seed: int = 0, **kwargs) -> dict:
        """Random pixels [images, 3, 32, 32] and prompts."""
        pixels = torch.randn(sum(images), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        inputs = prompts([[64] * n for n in images], seed, **kwargs)
        return {**inputs, "pixel_values": pixels} if sum(images) else inputs


def resize_tower(tower: nn.Module, side: int, seed: int = 0) -> None:
    """Gives a CLIP tower with random weights a grid of side x side patches: only the position embeddings are new."""
    tower.config.image_size = side * tower.config.patch_size
    name, old = next((n, m) for n, m in tower.named_modules() if hasattr(m, "position_embedding"))
    weight = old.position_embedding.weight
    with torch.random.fork_rng([weight.device] if weight.is_cuda else []), weight.device:
        torch.manual_seed(seed)
        new = type(old)(tower.config).to(weight.dtype)
        torch.nn.init.normal_(new.position_embedding.weight, std=0.02)
    new.class_embedding, new.patch_embedding = old.class_embedding, old.patch_embedding
    parent, _, leaf = name.rpartition(".")
    setattr(tower.get_submodule(parent), leaf, new.eval())
