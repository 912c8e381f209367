"""Quantized weights: a patched model computes what the same quantized model does on the kept tokens alone.

Logits are compared in float32 with a limit per kind: kernels that quantize activations (bitsandbytes int8) or unpack
weights in half precision (nf4) round a batch otherwise than a single prompt.
"""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, LlamaConfig, TorchAoConfig

import vtc
from tests.helpers import forward, generate, split
from tests.helpers_decoder import on
from tests.test_decoder_oracle import answers
from vtc.patches import FAMILIES
from vtc.patches._tiny import BOS, EOS, PAD, TEXT
from vtc.patching import find_family

torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-quantized")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: make test-quantized")
pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: make test-quantized")

WIDE = {**TEXT, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
PLAIN = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]  # too narrow for blocks of 64 weights
INT8 = torchao.Int8WeightOnlyConfig()
INT4 = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(32))
WAYS = {
    "torchao int8": (lambda: TorchAoConfig(INT8), 1e-4),
    "torchao int4": (lambda: TorchAoConfig(INT4, modules_to_not_convert=PLAIN), 1e-4),
    "bitsandbytes int8": (lambda: BitsAndBytesConfig(load_in_8bit=True), 2e-2),
    "bitsandbytes nf4": (
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=PLAIN), 2e-2,
    ),
    "compressed-tensors": (lambda: None, 1e-4),
}  # fmt: skip
AFTER_THE_ENCODER = ("hiprune", "visionzip", "fastv", "transprune", "hiprune+pyramiddrop")
STRATEGIES = (*AFTER_THE_ENCODER, "tome")  # the oracle does not redo the encoder
SINGLE = (2,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaVA with layers that are wide enough, as it was saved."""
    path = tmp_path_factory.mktemp("plain")
    text = LlamaConfig(**WIDE, head_dim=32, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    FAMILIES["llava"].tiny(text=text).float().save_pretrained(path)
    return path


def compress(folder: Path, to: Path) -> Path:
    """The checkpoint with the language model's weights as int8 and a scale for each row."""
    to.mkdir(exist_ok=True)
    weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        weights[name] = weight
        if "language_model" in name and name.endswith("proj.weight"):
            scale = weight.abs().amax(1, keepdim=True) / 127
            weights |= {name: (weight / scale).round().to(torch.int8), name + "_scale": scale}
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    int8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "config_groups": {"all": {"targets": ["Linear"], "format": "int-quantized", "weights": int8}},
        "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
    }  # fmt: skip
    (to / "config.json").write_text(json.dumps(config))
    (to / "generation_config.json").write_text((folder / "generation_config.json").read_text())
    return to


@pytest.fixture(scope="module", params=WAYS)
def quantized(request, folder, tmp_path_factory):
    """The model with quantized weights, its inputs, and the limit of its rounding."""
    config, limit = WAYS[request.param]
    if request.param == "compressed-tensors":
        folder = compress(folder, tmp_path_factory.mktemp("compressed"))
    kind = type(FAMILIES["llava"].tiny())
    given = {} if config() is None else {"quantization_config": config()}
    model = kind.from_pretrained(folder, dtype=torch.float32, **given).eval()
    return model, {images: inputs_of(model, images) for images in (SINGLE, (1, 2, 1))}, limit


def inputs_of(model, images: tuple[int, ...]) -> dict:
    """As the family's miniature has them, in float32."""
    inputs = FAMILIES["llava"].tiny_inputs(model, images)
    return {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}


def kept_of(model) -> list:
    """What every stage kept, image by image."""
    return [[step.kept.tolist() for step in image.steps] or image.kept.tolist() for image in vtc.report(model).images]


@pytest.mark.parametrize("strategy", AFTER_THE_ENCODER)
def test_equals_the_oracle(quantized, strategy):
    """A padded batch: the kept tokens alone, prompt by prompt, through the same quantized layers."""
    model, inputs, limit = quantized
    images = (1, 2, 1)
    out, report, expected = answers(model, inputs[images], strategy, "llava", images, steps=6)
    for b, answer in enumerate(expected):
        torch.testing.assert_close(out.logits[:, b], answer.logits[-6:], atol=limit, rtol=0)
    assert all(image.after < image.before for image in report.images)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_keeps_what_its_prompts_keep_alone(quantized, strategy):
    """Scores come from the quantized projections as they are, whatever else is in the batch; unpatching leaves no
    trace."""
    model, inputs, _ = quantized
    before = forward(model, inputs[SINGLE]).logits
    with on(model, strategy):
        forward(model, inputs[1, 2, 1])
        together, alone = kept_of(model), []
        for single in split(inputs[1, 2, 1]):
            forward(model, single)
            alone += kept_of(model)
    assert together == alone
    assert torch.equal(forward(model, inputs[SINGLE]).logits, before)


def test_weights_are_quantized(quantized, folder):
    """No way leaves the logits as they were."""
    model, inputs, _ = quantized
    plain = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    assert (forward(model, inputs[SINGLE]).logits - forward(plain, inputs[SINGLE]).logits).abs().max() > 1e-3


@pytest.mark.parametrize("config", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("strategy", ["hiprune", "fastv"])
def test_quantized_after_the_patch(folder, strategy, config):
    """torchao replaces weights in place: the same before the patch and after."""
    models = [type(FAMILIES["llava"].tiny()).from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2)]
    inputs, found = inputs_of(models[0], SINGLE), []
    for model, when in zip(models, ("before", "after"), strict=True):
        if when == "before":
            torchao.quantize_(model.model.language_model, copy.deepcopy(config))
        with on(model, strategy):
            if when == "after":
                torchao.quantize_(model.model.language_model, copy.deepcopy(config))
            found.append((generate(model, inputs, 6), kept_of(model)))
    assert torch.equal(found[0][0].tokens, found[1][0].tokens)
    assert torch.equal(found[0][0].logits, found[1][0].logits)
    assert found[0][1] == found[1][1]


@pytest.mark.skipif(
    not torch.cuda.is_available() or "VTC_QUANTIZED" not in os.environ,
    reason="GPTQ and AWQ kernels need a CUDA device, and a checkpoint: the environment variable VTC_QUANTIZED",
)
@pytest.mark.parametrize("strategy", ["hiprune", "fastv"])
def test_a_checkpoint_of_gptq_or_awq(strategy):
    """Prunes, and leaves no trace. The checkpoint is of a family's class."""
    folder = os.environ["VTC_QUANTIZED"]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", device_map="cuda").eval()
    inputs = find_family(model).tiny_inputs(model, SINGLE)
    inputs = {name: x.cuda().to(model.dtype) if x.is_floating_point() else x.cuda() for name, x in inputs.items()}
    before = forward(model, inputs).logits
    with on(model, strategy):
        generate(model, inputs, 4)
        assert vtc.report(model).average_share < 1
    assert torch.equal(forward(model, inputs).logits, before)
