"""The interface of a model family: where its sites are, what its encoder is, how its images lie in the prompt."""

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from vtc.core.errors import UnsupportedError
from vtc.core.flops import LanguageShape
from vtc.core.hooks import Patchwork
from vtc.core.layout import CropGroup, ImageLayout, View, VisionRun, crop_groups
from vtc.core.signals import Encoder, Signal
from vtc.patches._decoder import DecoderSite
from vtc.patches._encoder import EncoderSite, Units
from vtc.patches._preset import Preset
from vtc.patches._reduce import reduce_attention
from vtc.patches._shape import language_shape
from vtc.patches._synthetic import Synthetic

COMPILED = "_orig_mod"  # where torch.compile keeps the module that it wraps


class Family(Synthetic):
    """A loaded model of a family. Constructing it changes nothing; a missing site raises UnsupportedError.

    model: the ...ForConditionalGeneration. inner: the model with vision and language parts. language_model: the
    decoder; tokens are dropped from its inputs. mrope: positions have 3 axes. tiled: an image may be several crops.
    towers: model types of the supported vision towers, None where the family has only one. sizes: the argument of
    `get_image_features` with the images' sizes, if these determine the layout; None if tensor shapes do. marks: names
    in the config of the token ids before and after an image's placeholders, if there are any. video: the arguments of
    `get_video_features`, each with the name that `get_image_features` has for it; None where clips are not supported.
    frames_apart: each frame of a clip has marks of its own. planes_method: the method of the text model that adds
    DeepStack planes, if it has any. groups_crops: only the prompt shows which crops form an image (`image_groups`);
    `image_layouts` then gives one layout per crop. block_types: the argument of the model with the types of the tokens,
    of which runs of 1 attend to each other both ways; None where attention is causal. refuses: the sites ("encoder",
    "decoder", "attention") at which stages cannot act in this family, each with the reason. clip_end: structural tokens
    at the end of a clip, added after `get_video_features` by older transformers. since: the version of transformers
    that brought its class, None if all supported versions have it. rounding: how far logits in float64 may be off where
    a part of the model computes in float32 whatever its type.

    Not inherited by subclasses: follows: the family whose section of a strategy file also applies to this one, if the
    file has none for it. served: its vLLM class as "module:Vtc" followed by the name of the architecture, None if it
    cannot be served. published: the encoder of its published 7B model, for tables. presets: its published
    architectures, by the names that `vtc bench --preset` takes.

    The class can be imported without transformers: a family's file imports transformers only inside functions.
    """

    model_types: ClassVar[tuple[str, ...]]
    may_have_cls: ClassVar[bool] = False
    mrope: ClassVar[bool] = False
    tiled: ClassVar[bool] = False
    towers: ClassVar[tuple[str, ...] | None] = None
    sizes: ClassVar[str | None] = None
    planes_method: ClassVar[str | None] = None
    groups_crops: ClassVar[bool] = False
    block_types: ClassVar[str | None] = None
    refuses: ClassVar[Mapping[str, str]] = {}
    clip_end: ClassVar[int] = 0
    since: ClassVar[str | None] = None
    rounding: ClassVar[float] = 0.0
    inner_path: ClassVar[str] = "model"
    language_path: ClassVar[str] = "model.language_model"
    attention_path: ClassVar[str]
    tower_path: ClassVar[str]
    follows: ClassVar[str | None] = None
    served: ClassVar[str | None] = None
    published: ClassVar[Encoder | None] = None
    presets: ClassVar[Mapping[str, Preset]] = {}

    def __init_subclass__(cls):
        for fact in ("follows", "served", "published", "presets"):
            setattr(cls, fact, vars(cls).get(fact, getattr(Family, fact)))

    def __init__(self, model: nn.Module):
        self.model = model
        self.inner = self._site(self.inner_path)
        self.language_model = self._site(self.language_path)
        self.tower = self._site(self.tower_path)
        kind = getattr(self.tower.config, "model_type", None)
        if self.towers is not None and kind not in self.towers:
            raise UnsupportedError(
                f"vision tower {kind!r} is not supported by {self.name}; possible: {', '.join(self.towers)}"
            )
        pattern = re.compile(self.attention_path)
        named = ((name.replace(f"{COMPILED}.", ""), module) for name, module in self.tower.named_modules())
        layers = {int(m[1]): module for name, module in named if (m := pattern.fullmatch(name))}
        self.attention = [layers[i] for i in sorted(layers)]
        parents = {id(child): module for module in self.tower.modules() for child in module.children()}
        self.blocks = [parents[id(module)] for module in self.attention]
        if not self.attention or any(not hasattr(module, "config") for module in self.attention):
            raise UnsupportedError(
                f"{self.tower_path} of {type(model).__name__} has no attention layers that can be observed; "
                f"possible: a stock {' or '.join(self.model_types)} model"
            )
        self.image_token_id: int = model.config.image_token_id
        self.encoder: Encoder = self.describe_encoder()

    def _site(self, path: str) -> nn.Module:
        try:
            site = self.model.get_submodule(path)
            return getattr(site, COMPILED, site)
        except AttributeError:
            raise UnsupportedError(
                f"{type(self.model).__name__} has no module {path!r}; possible: a stock "
                f"{' or '.join(self.model_types)} ...ForConditionalGeneration"
            ) from None

    @classmethod
    def positions(cls) -> str:
        """Positions of the kept tokens, unless a strategy sets them: "keep" with M-RoPE, whose rows and columns
        "compact" would flatten; else "compact"."""
        return "keep" if cls.mrope else "compact"

    @abstractmethod
    def describe_encoder(self) -> Encoder:
        """The description of the encoder for strategies; raises UnsupportedError for an unsupported tower."""

    @abstractmethod
    def image_layouts(self, arguments: dict) -> list[ImageLayout]:
        """The layout of each image, in prompt order, from the arguments of the model's `get_image_features`."""

    def clip_layouts(self, arguments: dict) -> list[ImageLayout]:
        """The layout of each clip, from the arguments of `get_video_features` under the names of `video`."""
        raise UnsupportedError(f"{self.name} takes no clips; possible: images")

    @classmethod
    def softmax_layers(cls, depth: int) -> tuple[int, ...] | None:
        """The layers with softmax attention in its published text models of this depth, None if all have it."""
        return None

    def clip_arguments(self, images: Callable, frames: Sequence, fps: float) -> tuple[dict[str, Tensor], int]:
        """Arguments of generate() for a clip of PIL frames, `fps` a second, made by an image processor, and its number
        of placeholders. Raises UnsupportedError where the video processor makes other ones."""
        raise UnsupportedError(f"clips of {self.name} need torchvision; possible: pip install torchvision")

    def image_groups(self, places: list[Tensor], tokens: Callable[[], Tensor]) -> list[CropGroup]:
        """The images of one prompt, in order (see `groups_crops`). places: of each crop, the places [n] of its tokens
        in the prompt. tokens: gives the prompt's ids [L], or other numbers that are equal for equal tokens."""
        raise NotImplementedError(f"{type(self).__name__} groups crops and has no image_groups")

    def layouts(self, inputs: dict) -> list[ImageLayout]:
        """The layout of each image of a batch of prompts, in order. inputs: of the model, with `input_ids`."""
        images = self.image_layouts(inputs) if inputs.get("pixel_values") is not None else []
        if not self.groups_crops or not images:
            return images
        ids = inputs["input_ids"].cpu()
        crops, is_image = [image.tokens for image in images], ids == self.image_token_id
        return VisionRun(images=images).grouped(crop_groups(self.image_groups, crops, is_image, lambda: ids)).images

    def token_ids(self) -> dict[str, int]:
        """The ids of the placeholders of images and clips."""
        ids = {"image": self.image_token_id, "video": getattr(self.model.config, "video_token_id", None)}
        return {kind: i for kind, i in ids.items() if i is not None}

    def placeholders(self, ids: Tensor, types: Tensor | None, kind: str) -> Tensor:
        """Which tokens [B, L] bool are placeholders of a kind ("image", "video"). types: the `mm_token_type_ids`."""
        return ids == self.token_ids()[kind]

    def plane_mergers(self) -> list[nn.Module]:
        """The modules of the tower that make the DeepStack planes, one for each."""
        return []

    @abstractmethod
    def views(self, images: object, size: tuple[int, int], layout: ImageLayout) -> tuple[View, ...]:
        """Which part of a picture of `size` (height, width) each token of its `layout` shows; of a clip, a view of each
        frame, named "frame 0" and so on. images: the image (or video) processor that prepared it. Structural tokens are
        in no view. Raises UnsupportedError for a processor whose resizing is not supported."""

    def packed_bounds(self, arguments: dict) -> list[int] | None:
        """Bounds of the sequences that an encoder concatenates and that attend only within themselves (in layers
        without windows), known without reading from the device; None if it packs nothing."""
        return None

    @abstractmethod
    def encoder_site(self) -> EncoderSite:
        """The layers of the encoder; raises UnsupportedError where tokens cannot be dropped between them."""

    @abstractmethod
    def units(self, images: list[ImageLayout]) -> Units:
        """The encoder's sequences in the run for these images, with all their tokens."""

    @abstractmethod
    def sources(self, images: list[ImageLayout], arguments: dict) -> list[list[tuple[int, Tensor | None]]]:
        """Per image and tile, its unit (see `units`) and the places [n] of its tokens in the unit's sequence, None
        where these are 0..n-1."""

    @abstractmethod
    def tile_scores(self, captured: list[Tensor], images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """Sorts the results of `reduce` for one signal, in call order, by image and tile: a tensor [n] per tile."""

    def pixel_scores(self, arguments: dict, images: list[ImageLayout], score: Callable) -> list[list[Tensor]]:
        """score(pixels [N, 3, p] of each token of a crop) -> [N], for every crop, sorted by image and tile. Raises
        UnsupportedError in a family that does not define which pixels a token shows."""
        raise UnsupportedError(f"{self.name} does not say which pixels a token shows; possible: another method")

    @abstractmethod
    def observe_unprojected(self, patchwork: Patchwork, record: Callable) -> None:
        """Calls `record` once per run of the encoder with the tensors that form the projector's input."""

    @abstractmethod
    def unprojected(self, captured: list, images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """The projector's input for the tokens of each tile: [n, D], or [1 + n, D] with [CLS] first."""

    def encoder_features(self, tokens: Tensor) -> Tensor:
        """`unprojected` tokens without [CLS], one row for each visual token."""
        return tokens[int(self.encoder.has_cls) :]

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Applies the projector to tokens [k, D] as returned by `unprojected` -> [k, hidden]."""

    def observe(self, patchwork: Patchwork, layer: int, record: Callable) -> None:
        """Calls `record` with the inputs of each attention call of an encoder layer (0-based), see
        `vtc.patches._observe.observe`."""
        from vtc.patches._observe import observe

        observe(patchwork, self.attention[layer], record)

    def reduce(
        self, signal: Signal, query: Tensor, key: Tensor, scale: float | None, cu_seqlens, value: Tensor | None = None
    ) -> Tensor:
        """Computes one signal from q [B, H, N, D], k and v of one attention call -> [B, N] float32 (keys: [B, N, D]),
        without [CLS].

        With `cu_seqlens` (flash attention over packed images; a list, or a tensor) each segment attends within itself.
        """
        return reduce_attention(self.encoder.has_cls, signal, query, key, scale, cu_seqlens, value)

    def decoder_site(self) -> DecoderSite:
        """The layers of the language model; raises UnsupportedError where tokens cannot be dropped between them."""
        return DecoderSite(self.language_model)

    def has_clip(self) -> bool:
        """Whether the encoder is a CLIP model's, which has a text tower to go with it."""
        return getattr(self.tower.config, "model_type", None) == "clip_vision_model"

    def language_shape(self) -> LanguageShape:
        """The decoder's sizes for FLOPs and KV bytes."""
        return language_shape(self.model.config.get_text_config(), self.language_model)
