"""GLM-4.1V: grids and positions as Qwen2-VL; a strided convolution joins patches before the merger; clips of frames."""

from torch import Tensor, nn

from vtc.core.hooks import Patchwork
from vtc.core.layout import ImageLayout
from vtc.core.signals import Encoder
from vtc.kernels.transfer import upload
from vtc.patches import FAMILIES
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT, finish
from vtc.patches.qwen2_vl import Qwen2VL, by_tile

START, END, VIDEO, VIDEO_START, VIDEO_END = 121, 122, 123, 124, 125
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


@FAMILIES.register("glm4v")
class Glm4V(Qwen2VL):
    """GLM-4.1V (`glm4v`). Every encoder layer is global; a token's score is the mean of its patches' scores, but the
    projector receives one row for each token. Frames of a clip have the id of images.

    Source: `Glm4vForConditionalGeneration` of transformers; "GLM-4.1V-Thinking: Towards Versatile Multimodal Reasoning
    with Scalable Reinforcement Learning", arXiv 2507.01006.
    """

    name = "glm4v"
    model_types = ("glm4v",)
    marks = ("image_start_token_id", "image_end_token_id")
    follows = "qwen2_5_vl"
    frames_apart = True
    published = Encoder("glm4v", 24, False, tuple(range(24)), cell=4)

    def token_ids(self) -> dict[str, int]:
        """One id for both."""
        return dict.fromkeys(("image", "video"), self.image_token_id)

    def placeholders(self, ids: Tensor, types: Tensor | None, kind: str) -> Tensor:
        """By the types; without them, or with those of the prompt alone beside drafted tokens, by whether a clip has
        begun and not ended."""
        visual = ids == self.image_token_id
        if types is not None and types.shape == ids.shape:
            return visual & (types == {"image": 1, "video": 2}[kind])
        begun, ended = (ids == getattr(self.model.config, f"video_{name}_token_id") for name in ("start", "end"))
        inside = begun.long().cumsum(1) > ended.long().cumsum(1)
        return visual & (inside if kind == "video" else ~inside)

    def clip_ids(self, tokens: list[int]) -> list[int]:
        """Its frames, as images stand, between the marks of a clip."""
        config = self.model.config
        return [config.video_start_token_id, *super().clip_ids(tokens), config.video_end_token_id]

    def observe_unprojected(self, patchwork: Patchwork, record) -> None:
        """Records the input of the merger, which the convolution has made."""
        patchwork.pre_hook(self.tower.merger, lambda module, args, kwargs: record(args[0]))

    def unprojected(self, captured: list, images: list[ImageLayout], arguments: dict) -> list[list[Tensor]]:
        """The convolution's output."""
        rows, order = captured[0], self.token_order(arguments)
        return by_tile(rows if order is None else rows[upload(order, rows.device)], images)

    def encoder_features(self, tokens: Tensor) -> Tensor:
        """The rows as they are."""
        return tokens

    def project(self, tokens: Tensor) -> Tensor:
        """The merger."""
        return self.tower.merger(tokens)

    @classmethod
    def tiny_clips(cls, model: nn.Module, media: tuple[str, ...] = ("c", "c", "cc"), seed: int = 0, **kwargs) -> dict:
        """Clips alone, or images alone: the stock model takes one kind in a call."""
        inputs = super().tiny_clips(model, media, seed, **kwargs)
        types = cls(model).prompt_inputs(inputs["input_ids"]).get("mm_token_type_ids")
        return inputs if types is None else {**inputs, "mm_token_type_ids": types}

    @staticmethod
    def tiny_clip(frames: int, each: int) -> list[int]:
        """A timestamp of one word after each (pair of) frames."""
        frame = [START, *[IMAGE_TOKEN] * each, END]
        return [VIDEO_START, *(i for f in range(frames) for i in (*frame, 60 + f)), VIDEO_END]

    @staticmethod
    def vision_sizes() -> dict:
        """Sizes of the tiny encoder."""
        return dict(
            depth=4, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64, image_size=32, patch_size=4,
            temporal_patch_size=2,
        )  # fmt: skip

    @staticmethod
    def text_sizes() -> dict:
        """Sizes of the tiny text model."""
        return dict(TEXT, rope_parameters=dict(ROPE), bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 6 decoder layers with GQA."""
        from transformers import Glm4vConfig, Glm4vForConditionalGeneration

        return cls.build(Glm4vConfig, Glm4vForConditionalGeneration, **overrides)

    @classmethod
    def build(cls, config_class: type, model_class: type, **overrides) -> nn.Module:
        """The tiny model of these classes."""
        import torch

        torch.manual_seed(0)
        return finish(model_class(config_class(
            vision_config=cls.vision_sizes(), text_config=cls.text_sizes(), image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO, image_start_token_id=START, image_end_token_id=END,
            video_start_token_id=VIDEO_START, video_end_token_id=VIDEO_END, **overrides,
        )))  # fmt: skip
