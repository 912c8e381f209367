"""Gemma 3: a SigLIP tower whose patches are averaged to fewer tokens; images attend to themselves both ways."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtc.core.errors import ConfigError, UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.core.layout import ImageLayout, View, even_view, raster
from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._encoder import EncoderSite, Units
from vtc.patches._family import Family
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish, prompts

BEGIN, END = 121, 122
CROPS = "do_pan_and_scan"


@FAMILIES.register("gemma3")
class Gemma3(Family):
    """Gemma 3 (`gemma3`). No [CLS]; a visual token is the mean of a square of patches, and so is its score. Each image
    is a block whose tokens attend to each other both ways. Of a picture that pan-and-scan divides, each crop is an
    image of its own. The decoder has rotary embeddings for each kind of layer and norms after attention and MLP, so
    tokens are dropped at the projector only.

    Source: `Gemma3ForConditionalGeneration` of transformers; "Gemma 3 Technical Report", arXiv 2503.19786.
    """

    name = "gemma3"
    model_types = ("gemma3",)
    towers = ("siglip_vision_model",)
    marks = ("boi_token_index", "eoi_token_index")
    block_types = "token_type_ids"
    refuses = {
        "encoder": "its projector averages squares of a full grid of patches",
        "decoder": "its layers have rotary embeddings by kind and norms after attention and MLP",
        "attention": "its layers have rotary embeddings by kind and norms after attention and MLP",
    }
    published = Encoder("gemma3", 27, False, tuple(range(27)), 256)
    tower_path = "model.vision_tower"
    attention_path = r"(?:vision_model\.)?encoder\.layers\.(\d+)\.self_attn"

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.projector = self._site("model.multi_modal_projector")

    def describe_encoder(self) -> Encoder:
        """Every layer is global; the number of tokens is fixed."""
        depth = len(self.attention)
        return Encoder(self.name, depth, False, tuple(range(depth)), self._side() ** 2)

    def _side(self) -> int:
        """Tokens along the side of an image."""
        return int(self.model.config.mm_tokens_per_image**0.5)

    def _square(self) -> int:
        """Patches along the side of a token."""
        vision = self.tower.config
        return vision.image_size // vision.patch_size // self._side()

    def encoder_site(self) -> EncoderSite:
        """Refuses: the projector averages squares of a full grid."""
        raise UnsupportedError(
            f"{self.name} averages squares of patches behind its encoder, so tokens cannot be dropped inside the "
            "encoder; possible: a stage at the projector (`vtc list`)"
        )

    def units(self, images: list[ImageLayout]) -> Units:
        """Whole images."""
        return Units([image.tokens for image in images], list(range(len(images))))

    def sources(self, images: list[ImageLayout], arguments: dict) -> list[list[tuple[int, Tensor | None]]]:
        """An image is its own sequence."""
        return [[(i, None)] for i in range(len(images))]

    def image_layouts(self, arguments: dict) -> list[ImageLayout]:
        """One raster per picture or crop of pan-and-scan, pixels [crops, 3, H, W]."""
        return [raster(i, self._side(), self._side()) for i in range(len(arguments["pixel_values"]))]

    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """The whole picture, stretched to a square. Refuses pan-and-scan: nothing says what a crop shows."""
        if getattr(images, CROPS, None):
            raise UnsupportedError(f"{CROPS}=True: a crop's place is not known; possible: {CROPS}=False")
        (tile,) = layout.tiles
        return (even_view("picture", tile.offsets, tile.grid, size),)

    def random_pictures(self, visual: int, native: int | None, generator: torch.Generator) -> tuple[list[int], dict]:
        """Images of the model's fixed size."""
        each, side = self.encoder.tokens, self.tower.config.image_size
        if visual % each:
            raise ConfigError(
                f"--visual-tokens {visual} is not possible: an image of this model has {each}; possible: multiples of "
                f"{each}"
            )
        images = visual // each
        return [each] * images, {"pixel_values": torch.randn(images, 3, side, side, generator=generator)}

    def prompt_inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """With the types that make images blocks."""
        return {**super().prompt_inputs(ids), "token_type_ids": (ids == self.image_token_id).long()}

    def _pooled(self, x: Tensor) -> Tensor:
        """Patches [crops, P, ...] as tokens [crops, n, ...]: the mean of each square."""
        side, square = self._side(), self._square()
        return x.unflatten(1, (side, square, side, square)).mean((2, 4)).flatten(1, 2)

    def tile_scores(self, captured: list[Tensor], images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """captured: [crops, patches, ...] per call."""
        return [[row] for row in self._pooled(torch.cat(captured))]

    def pixel_scores(self, arguments: dict, images: list[ImageLayout], score: Callable) -> list[list[Tensor]]:
        """pixel_values [crops, 3, H, W]; a token shows its square of patches."""
        side = self.tower.config.patch_size * self._square()
        pixels = arguments["pixel_values"].unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
        return [[score(crop)] for crop in pixels.reshape(len(pixels), -1, 3, side**2)]

    def observe_unprojected(self, patchwork: Patchwork, record: Callable) -> None:
        """Records the projector's input."""
        patchwork.pre_hook(self.projector, lambda module, args, kwargs: record(args[0]))

    def unprojected(self, captured: list, images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """The mean of each token's patches, which the projector's norm receives."""
        return [[row] for row in self._pooled(torch.cat(captured))]

    def project(self, tokens: Tensor) -> Tensor:
        """The projector, whose squares are given a token in each patch."""
        side, square, width = self._side(), self._square(), tokens.shape[-1]
        crops = -(-len(tokens) // side**2)
        grid = torch.cat([tokens, tokens.new_zeros(crops * side**2 - len(tokens), width)])
        patches = grid.view(crops, side, 1, side, 1, width).expand(-1, -1, square, -1, square, -1)
        return self.projector(patches.reshape(crops, -1, width)).flatten(0, 1)[: len(tokens)]

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers on 16 x 16 patches, 64 tokens; 6 decoder layers with GQA, 4 with a sliding window."""
        from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

        vision = SiglipVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=64,
            patch_size=4, vision_use_head=False,
        )  # fmt: skip
        text = Gemma3TextConfig(
            **TEXT, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, bos_token_id=BOS, eos_token_id=EOS,
            pad_token_id=PAD, layer_types=["sliding_attention", "full_attention", "sliding_attention"] * 2,
        )  # fmt: skip
        torch.manual_seed(0)
        config = Gemma3Config(
            vision_config=vision, text_config=text, mm_tokens_per_image=64, image_token_index=IMAGE_TOKEN,
            boi_token_index=BEGIN, eoi_token_index=END, **overrides,
        )  # fmt: skip
        model = Gemma3ForConditionalGeneration(config)
        nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.03)
        return finish(model)

    @classmethod
    def tiny_inputs(cls, model: nn.Module, images: tuple[int, ...] = (1, 2, 1), seed: int = 0, **kwargs) -> dict:
        """Random pixels [images, 3, 64, 64] and prompts with their types."""
        pixels = torch.randn(sum(images), 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        inputs = prompts([[64] * n for n in images], seed, image=([BEGIN], [END]), **kwargs)
        inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
        return {**inputs, "pixel_values": pixels} if sum(images) else inputs
