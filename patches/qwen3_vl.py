"""Qwen3-VL: as Qwen2-VL, with patches of 16 pixels and DeepStack planes that enter the first decoder layers."""

from functools import partial

from torch import nn

from vtc.core.signals import Encoder
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset
from vtc.patches._tiny import BOS, EOS, PAD, TEXT
from vtc.patches._tiny_qwen import END, START, VIDEO
from vtc.patches.qwen2_vl import PUBLISHED_IDS, Qwen2VL

LARGE_TOWER = dict(depth=24, hidden_size=1024, intermediate_size=4096, deepstack_visual_indexes=[5, 11, 17])
SHAPE_TOWER = dict(depth=27, hidden_size=1152, intermediate_size=4304, deepstack_visual_indexes=[8, 16, 24])


def interleaved_rope(section: list[int], theta: float, **more) -> dict:
    """Rotary parameters of the text models since Qwen3-VL: time, rows and columns take turns among the frequencies."""
    return {"rope_type": "default", "mrope_section": section, "mrope_interleaved": True, "rope_theta": theta, **more}


def _small() -> object:
    from transformers import Qwen3VLConfig

    tower = dict(depth=12, hidden_size=256, intermediate_size=1024, num_heads=4, deepstack_visual_indexes=[2, 5, 8])
    text = dict(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2,
        head_dim=64, vocab_size=8192, max_position_embeddings=32768, bos_token_id=1, eos_token_id=2,
        rope_parameters=interleaved_rope([12, 10, 10], 5000000.0),
    )  # fmt: skip
    ids = {name: 8128 + i for i, name in enumerate(PUBLISHED_IDS)}
    return Qwen3VLConfig(
        vision_config={**tower, "out_hidden_size": 384}, text_config=text, tie_word_embeddings=True, **ids
    )


def _config(vision: dict, hidden: int, mlp: int, tied: bool) -> object:
    from transformers import Qwen3VLConfig

    text = dict(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, max_position_embeddings=262144, rms_norm_eps=1e-6, bos_token_id=151643,
        eos_token_id=151645, rope_parameters=interleaved_rope([24, 20, 20], 5000000.0),
    )  # fmt: skip
    return Qwen3VLConfig(
        vision_config={**vision, "num_heads": 16, "out_hidden_size": hidden}, text_config=text,
        tie_word_embeddings=tied, **PUBLISHED_IDS,
    )  # fmt: skip


@FAMILIES.register("qwen3_vl")
class Qwen3VL(Qwen2VL):
    """Qwen3-VL (`qwen3_vl`). Every encoder layer is global. After some of them a merger of its own makes a DeepStack
    plane, which the decoder adds to the visual tokens after its first layers; a plane's rows are dropped and merged
    with the tokens that they belong to.

    Source: `Qwen3VLForConditionalGeneration` of transformers; "Qwen3-VL Technical Report", arXiv 2511.21631; DeepStack
    is arXiv 2406.04334.
    """

    name = "qwen3_vl"
    model_types = ("qwen3_vl",)
    follows = "qwen2_5_vl"
    frames_apart = True
    planes_method = "_deepstack_process"
    published = Encoder("qwen3_vl", 27, False, tuple(range(27)), cell=4)
    presets = {
        "qwen3-vl-mini": Preset(_small, 31_976_064, "Qwen3-VL, 12 + 8 layers; for a CPU in seconds"),
        "qwen3-vl-4b": Preset(partial(_config, LARGE_TOWER, 2560, 9728, True), 4_437_815_808, "Qwen3-VL-4B"),
        "qwen3-vl-8b": Preset(partial(_config, SHAPE_TOWER, 4096, 12288, False), 8_767_123_696, "Qwen3-VL-8B"),
    }

    def plane_mergers(self) -> list[nn.Module]:
        """A merger for each plane."""
        return list(self.tower.deepstack_merger_list)

    @staticmethod
    def vision_sizes() -> dict:
        """Sizes of the tiny encoder; planes after its layers 0 and 2."""
        return {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 2],
        }

    @staticmethod
    def text_sizes() -> dict:
        """Sizes of the tiny text model."""
        rope = interleaved_rope([2, 3, 3], 10000.0)
        return dict(TEXT, head_dim=16, rope_parameters=rope, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)

    @staticmethod
    def tiny_clip(frames: int, each: int) -> list[int]:
        """A timestamp of three words before each (pair of) frames."""
        return [i for f in range(frames) for i in (100, 60 + f, 101, START, *[VIDEO] * each, END)]

    @classmethod
    def tiny(cls, **overrides) -> nn.Module:
        """4 encoder layers of 2 heads, 6 decoder layers with GQA, 2 planes."""
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        return cls.build(Qwen3VLConfig, Qwen3VLForConditionalGeneration, **overrides)
