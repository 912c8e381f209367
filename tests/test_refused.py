"""Models that are refused by name: one line with the reason, and the reason still stands in transformers' own file."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from torch import nn

import vtc
from tests.helpers import refused
from vtc.patches import FAMILIES
from vtc.patches._refused import REFUSED
from vtc.patching import find_family

OMNI = "use_audio_in_video", "self.talker"
FACTS = {
    "gemma3n": ("gemma3n", "per_layer_inputs", "is_kv_shared_layer"),
    "gemma4": ("gemma4", "per_layer_inputs", "is_kv_shared_layer"),
    "gemma4_unified": ("gemma4_unified", "self.patch_dense = nn.Linear"),
    "fuyu": ("fuyu", "self.vision_embed_tokens = nn.Linear"),
    "qwen2_5_omni": ("qwen2_5_omni", *OMNI),
    "qwen2_5_omni_thinker": ("qwen2_5_omni", *OMNI[:1]),
    "qwen3_omni_moe": ("qwen3_omni_moe", *OMNI),
    "qwen3_omni_moe_thinker": ("qwen3_omni_moe", *OMNI[:1]),
    "mllama": ("mllama", "class MllamaCrossAttentionDecoderLayer"),
    "idefics": ("idefics", "class IdeficsGatedCrossAttentionLayer"),
    "blip-2": ("blip_2", "self.query_tokens = nn.Parameter"),
    "instructblip": ("instructblip", "self.query_tokens = nn.Parameter"),
    "instructblipvideo": ("instructblipvideo", "self.query_tokens = nn.Parameter"),
    "idefics2": ("idefics2", "self.perceiver_resampler = "),
    "kosmos-2": ("kosmos2", "self.latent_query = nn.Parameter"),
    "chameleon": ("chameleon", "self.vqmodel = "),
    "emu3": ("emu3", "self.vqmodel = "),
    "llama4": ("llama4", "attn_temperature_tuning", "create_chunked_causal_mask"),
    "paligemma": ("paligemma", "bidirectional", "token_type_ids"),
    "phi4_multimodal": ("phi4_multimodal", "self.embed_tokens_extend = Phi4MultimodalFeatureEmbedding"),
    "florence2": ("florence2", "encoder_hidden_states=encoder_outputs[0]"),
}
"""By model type: the folder in transformers, and what its modeling file must hold for the reason to be true."""


def of_type(kind: str) -> nn.Module:
    """A module that says it is a model of this type."""
    module = nn.Module()
    module.config = SimpleNamespace(model_type=kind)
    return module


@pytest.mark.parametrize("kind", REFUSED)
def test_one_line_with_the_reason(kind):
    """And what is possible instead."""
    refused(lambda: vtc.patch(of_type(kind), "hiprune", keep=0.3), kind, REFUSED[kind], "possible: gemma3, ")


@pytest.mark.parametrize("kind", REFUSED)
def test_the_reason_holds(kind):
    """In the installed transformers."""
    folder, *words = FACTS[kind]
    if importlib.util.find_spec(f"transformers.models.{folder}") is None:
        pytest.skip(f"transformers {transformers.__version__} has no {folder}")
    spec = importlib.util.find_spec(f"transformers.models.{folder}.modeling_{folder}")
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert [word for word in words if word not in source] == []
    assert f'model_type = "{kind}"' in Path(spec.origin).with_name(f"configuration_{folder}.py").read_text("utf-8")


def test_a_family_from_outside_comes_first(monkeypatch):
    """Whoever writes a family for such a model can use it; other unknown types get the general line."""
    monkeypatch.setattr(FAMILIES["llava"], "model_types", ("llava", "gemma4"))
    with pytest.raises(vtc.UnsupportedError, match="has no module 'model'"):
        find_family(of_type("gemma4"))
    refused(lambda: find_family(of_type("gemma9")), "unknown family 'gemma9': did you mean")
    assert not set(REFUSED) & {kind for name in FAMILIES if name != "llava" for kind in FAMILIES[name].model_types}
