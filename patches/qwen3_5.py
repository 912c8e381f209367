"""Qwen3.5 and Qwen3.6: Qwen3-VL's encoder without DeepStack, and a text model with linear attention in most layers."""

from torch import nn

from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset
from vtc.patches._tiny import BOS, EOS, PAD, TEXT
from vtc.patches.qwen2_vl import Qwen2VL
from vtc.patches.qwen3_vl import Qwen3VL, interleaved_rope

EVERY = 4  # of the published text models, the last of so many layers has softmax attention
LINEAR = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12,
    layer_types=["linear_attention", "full_attention"] * 3,
)  # fmt: skip
PUBLISHED_IDS = dict(
    image_token_id=248056, video_token_id=248057, vision_start_token_id=248053, vision_end_token_id=248054
)


def _config() -> object:
    from transformers import Qwen3_5Config

    text = dict(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=32, num_attention_heads=16, num_key_value_heads=4,
        head_dim=256, vocab_size=248320, max_position_embeddings=262144, rms_norm_eps=1e-6, eos_token_id=248044,
        linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        rope_parameters=interleaved_rope([11, 11, 10], 10000000.0, partial_rotary_factor=0.25),
    )  # fmt: skip
    vision = dict(depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, out_hidden_size=4096)
    return Qwen3_5Config(vision_config=vision, text_config=text, tie_word_embeddings=False, **PUBLISHED_IDS)


@FAMILIES.register("qwen3_5")
class Qwen3_5(Qwen2VL):
    """Qwen3.5 and Qwen3.6 (`qwen3_5`). Every encoder layer is global. In the published text models three of four layers
    have linear attention (Gated DeltaNet), which keeps a state of fixed size: stages inside the language model read the
    others, see `vtc.config.hybrid`, and a layer's state keeps what it absorbed before a later drop. Linear attention
    runs in float32 whatever the model's type.

    Source: `Qwen3_5ForConditionalGeneration` of transformers.
    """

    name = "qwen3_5"
    model_types = ("qwen3_5",)
    since = "5.2"
    rounding = 1e-4
    follows = "qwen2_5_vl"
    frames_apart = True
    published = Encoder("qwen3_5", 27, False, tuple(range(27)), cell=4)
    presets = {"qwen3.5-9b": Preset(_config, 9_409_813_744, "Qwen3.5-9B")}

    @classmethod
    def softmax_layers(cls, depth: int) -> tuple[int, ...]:
        """Every fourth."""
        return tuple(range(EVERY - 1, depth, EVERY))

    tiny_clip = staticmethod(Qwen3VL.tiny_clip)

    @staticmethod
    def vision_sizes() -> dict:
        """Sizes of the tiny encoder: Qwen3-VL's without planes."""
        return {name: value for name, value in Qwen3VL.vision_sizes().items() if name != "deepstack_visual_indexes"}

    @staticmethod
    def text_sizes() -> dict:
        """Sizes of the tiny text model."""
        rope = interleaved_rope([2, 1, 1], 10000.0, partial_rotary_factor=0.5)
        ends = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
        return dict(TEXT, head_dim=16, rope_parameters=rope, **LINEAR, **ends)

    tiny_clip = staticmethod(Qwen3VL.tiny_clip)

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 6 decoder layers, every other with softmax attention and GQA."""
        from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

        return cls.build(Qwen3_5Config, Qwen3_5ForConditionalGeneration, **overrides)
