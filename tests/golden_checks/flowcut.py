"""FlowCut: an encoder's weights and input -> what it leaves, the language model's drop, and LLaVA-NeXT's packing."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

import vtc
from vtc.config.resolve import resolve
from vtc.core.layout import ImageLayout, VisionRun
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder
from vtc.engine.sequence import Sequence
from vtc.engine.survivors import finish, left_of
from vtc.engine.watch import Needs, Watch
from vtc.patches import FAMILIES
from vtc.patches._tiny import IMAGE_TOKEN, TEXT
from vtc.patches.llava_next import LlavaNext, anyres_tiles


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """The fields of each part are named in the functions below."""
    parts = {"vit-clip": check_clip, "vit-qwen2vl": check_qwen, "llm": check_llm, "anyres-pack": check_pack}
    parts[params["part"]](tensors, params)


def load(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """The weights of a file whose names begin with `prefix`, all of the module's."""
    module.load_state_dict({k.removeprefix(prefix): x.float() for k, x in tensors.items() if k.startswith(prefix)})


def clip(params: dict, crops: int) -> nn.Module:
    """A LLaVA model (of several crops: LLaVA-NeXT, whose crops share a schedule) with the encoder's sizes."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=params["hidden"], intermediate_size=params["intermediate"], image_size=336, patch_size=14,
        num_hidden_layers=params["num_layers"], num_attention_heads=params["heads"], hidden_act=params["act"],
        layer_norm_eps=params["ln_eps"],
    )  # fmt: skip
    common = {"vision_config": vision, "text_config": LlamaConfig(**TEXT), "image_token_id": IMAGE_TOKEN}
    if crops == 1:
        return LlavaForConditionalGeneration(LlavaConfig(**common)).eval()
    pinpoints = [[336, 336 * (crops - 1)]]
    return LlavaNextForConditionalGeneration(LlavaNextConfig(**common, image_grid_pinpoints=pinpoints)).eval()


def encode(model: nn.Module, given: nn.Module, entering: Tensor, pictures: dict, keep: object, **knobs):
    """The run of the encoder under flowcut, `entering` in place of what the module `given` returns."""
    handle = given.register_forward_hook(lambda *_: entering)
    try:
        with vtc.patched(model, "flowcut", keep=keep, **knobs), torch.no_grad():
            return model.model.get_image_features(**pictures, return_dict=True)
    finally:
        handle.remove()


def stages(run: VisionRun) -> list[list[int]]:
    """[layer, tokens of each unit after it] of every cut that took some."""
    lead = run.inside.sequence.lead
    assert all(len(set(left)) == 1 for _, _, left in run.inside.reach)
    return [[layer, left[0] - lead] for layer, _, left in run.inside.reach]


def check_clip(tensors: dict[str, Tensor], params: dict) -> None:
    """weights.layers.*; inputs_embeds [B, 1 + N, D], [CLS] first; keep_idx [B, T]; kept_hidden [B, T, D]."""
    entering, target = tensors["inputs_embeds"].float(), params["target_patches"]
    crops = len(entering)
    model = clip(params, crops)
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    load(tower.encoder.layers, tensors, "weights.layers.")
    pixels = torch.zeros(crops, 3, 336, 336)
    pictures = {"pixel_values": pixels}
    if crops > 1:
        pictures = {"pixel_values": pixels[None], "image_sizes": torch.tensor([[336, 336 * (crops - 1)]])}
    knobs = {"ratio": 1.0}
    output = encode(model, tower.pre_layrnorm, entering, pictures, target * crops, **knobs)
    run = output._vtc_run
    assert stages(run) == params["stages_layer_keep"]
    places = torch.cat([group.place for group in run.inside.sequence.groups])
    assert places.tolist() == tensors["keep_idx"].tolist()
    hidden = output.hidden_states[-2][:, 1:]
    torch.testing.assert_close(hidden, tensors["kept_hidden"], rtol=0, atol=2e-4)


def check_qwen(tensors: dict[str, Tensor], params: dict) -> None:
    """weights.blocks.*; hidden_in [P, D]; rotary_freqs [P, e / 2]; keep_patch_idx [8K]; kept_hidden [8K, D], what
    enters the merger; merge_groups [2K, 4]."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": params["depth"], "embed_dim": params["hidden"], "num_heads": params["heads"], "hidden_size": 64}
    ratio = tensors["weights.blocks.0.mlp.fc1.weight"].shape[0] // params["hidden"]
    model = FAMILIES["qwen2_vl"].build(Qwen2VLConfig, Qwen2VLForConditionalGeneration)
    config = model.config
    for key, value in {**vision, "mlp_ratio": ratio}.items():
        setattr(config.vision_config, key, value)
    model = type(model)(config).eval()
    tower = model.model.visual
    load(tower.blocks, tensors, "weights.blocks.")
    grid = torch.tensor([params["grid_thw"]])
    width = config.vision_config.in_channels * config.vision_config.temporal_patch_size * 16
    pixels = torch.zeros(int(grid.prod()), width)
    merging, angles = [], []
    handles = [
        tower.merger.register_forward_pre_hook(lambda module, args: merging.append(args[0])),
        tower.blocks[0].register_forward_pre_hook(
            lambda module, args, kwargs: angles.append(kwargs["position_embeddings"]), with_kwargs=True
        ),
    ]
    target = 2 * params["target_num_llm"]
    entering = tensors["hidden_in"].float()
    output = encode(
        model, tower.patch_embed, entering, {"pixel_values": pixels, "image_grid_thw": grid}, target, ratio=1.0
    )
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(angles[0][0][:, :8].float(), tensors["rotary_freqs"].cos(), rtol=0, atol=1e-5)
    run = output._vtc_run
    assert stages(run) == params["stages_layer_keep"]
    place = run.inside.sequence.groups[0].place[0]
    assert place.tolist() == tensors["keep_patch_idx"].tolist()
    assert place.view(-1, 4).tolist() == tensors["merge_groups"].tolist()
    assert run.left[0].positions[0].tolist() == list(range(target))
    torch.testing.assert_close(merging[0], tensors["kept_hidden"], rtol=0, atol=2e-4)


def check_llm(tensors: dict[str, Tensor], params: dict) -> None:
    """query_last [Hq, d], key and value [Hkv, S, d] of one layer; score [n] and keep_idx [K], relative to the image."""
    start, n, layer = params["visual_start"], params["visual_num"], params["llm_layer_0based"]
    stage = resolve("flowcut", "llava_next").decoder[0].stage
    decoder = Decoder("llava_next", 32)
    assert stage.steps(decoder)[0].layer == layer + 1
    key, value = tensors["key"].float()[None], tensors["value"].float()[None]
    query = torch.zeros(1, params["q_heads"], params["seq_len"], params["head_dim"])
    query[0, :, -1] = tensors["query_last"].float()
    needs = stage.needs(decoder, 0)
    watch = Watch(Needs([needs]), None, 1)
    watch.attention(layer, query, key, None, SimpleNamespace(ends=[params["seq_len"]], before=0), value)
    columns = torch.arange(start, start + n)
    signals = {signal: watch.look(signal, 0, 0, columns, None)[None] for signal in needs}
    context = Context(n, params["target"], None, (0,), torch.device("cpu"), signals)
    assert stage.select(context, decoder).keep[0].tolist() == tensors["keep_idx"].tolist()
    from vtc.strategies.flowcut import flow

    torch.testing.assert_close(flow(*(signals[s] for s in needs))[0], tensors["score"], rtol=1e-4, atol=1e-5)


def check_pack(tensors: dict[str, Tensor], params: dict) -> None:
    """keep_idx [crops, T] of each crop; packed_order [n, 2]: (crop, patch) as they reach the language model."""
    width, height = params["image_size_wh"]
    keep = tensors["keep_idx"].long()
    tokens, tiles = anyres_tiles((height, width), tuple(params["tiles_hw"]), 24)
    layout = ImageLayout(tokens, tiles)
    sequence = Sequence([576] * len(keep), [(keep.shape[1],)] * len(keep), 1, False, 1)
    sequence.advance(
        torch.zeros(576 * len(keep), 1), [(sequence.groups[0], Selection(keep))], [[keep.shape[1]] * len(keep)]
    )
    plan = SimpleNamespace(singly=False)
    run = VisionRun(images=[layout], insides=[SimpleNamespace(sequence=sequence, plan=plan, finished=True)])
    finish(SimpleNamespace(sources=lambda images, _: LlavaNext.sources(None, images, {})), run, {})
    (kept,) = left_of(run, [0], torch.device("cpu"))
    source = torch.full((tokens, 2), -1)
    for tile in tiles:
        source[tile.offsets] = torch.stack([torch.full_like(tile.patches, tile.crop), tile.patches], 1)
    assert len(kept.offsets) == params["n_packed"]
    assert source[kept.offsets].tolist() == tensors["packed_order"].tolist()
