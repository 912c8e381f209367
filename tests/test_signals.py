"""Observed scores against the full attention matrices of the same model in eager mode."""

import sys
from contextlib import contextmanager

import pytest
import torch

import vtc
from tests.helpers import build, inputs_of, model_of
from vtc.core.signals import AttentionColumns, ClsAttention, EncoderKeys, ImportantAttention, PatchAttention
from vtc.patching import find_family

CASES = [*vtc.families(), "llava-siglip"]
PICTURES = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")


def pictures_of(inputs):
    """What get_image_features takes."""
    return {k: inputs[k] for k in PICTURES if k in inputs}


@contextmanager
def eager_attention(attention):
    """The queries, keys and softmax weights of each eager call in these modules, by layer, in call order."""
    source = sys.modules[type(attention[0]).__module__]
    original, seen = source.eager_attention_forward, {i: [] for i in range(len(attention))}

    def recording(module, query, key, value, *args, **kwargs):
        output, weights = original(module, query, key, value, *args, **kwargs)
        place = [i for i, known in enumerate(attention) if known is module]
        if place:
            seen[place[0]].append((query, key, weights.double(), kwargs["scaling"]))
        return output, weights

    source.eager_attention_forward = recording
    try:
        yield seen
    finally:
        source.eager_attention_forward = original


def expected_scores(model, family, pictures, layer, kind):
    """A signal's values in the encoder's own order, call after call, from the full matrices."""
    with eager_attention(family.attention) as seen, torch.no_grad():
        model.model.get_image_features(**pictures)
    rows = []
    for query, key, weights, scale in apart(family, pictures, seen[layer]):
        if isinstance(kind, tuple):
            kind, t = kind
        if kind == "joined":
            query, key = (x.double().transpose(1, 2).flatten(2).unsqueeze(1) for x in (query, key))
            weights, scale = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(-1), query.shape[3] ** -0.5
        if kind == "important":
            received = weights.mean(1).mean(1)
            chosen = received > t * received.mean(1, keepdim=True)
            chosen[range(len(chosen)), received.argmax(1)] |= ~chosen.any(1)
            scores = torch.stack([w[c].mean(0) for w, c in zip(weights.mean(1), chosen, strict=True)])
        elif kind in ("cls", "joined") and family.encoder.has_cls:
            scores = weights[:, :, 0].mean(1)
        elif kind in ("cls", "joined"):
            pooled = query.double().mean(2, keepdim=True)
            scores = (pooled @ key.double().transpose(2, 3) * scale).softmax(-1)[:, :, 0].mean(1)
        elif kind == "others":
            own, first = weights.diagonal(0, 2, 3), int(family.encoder.has_cls)
            scores = (weights[:, :, first:].sum(2) - own.index_fill(2, torch.arange(first), 0)).mean(1)
        else:
            scores = weights.mean(1).mean(1) if kind == "mean" else weights.mean(1).sum(1)
        rows.append(scores[:, 1:] if family.encoder.has_cls else scores)
    return rows


def apart(family, pictures, calls):
    """The calls as one per sequence, where a mask keeps the images in a call apart."""
    if family.name != "mistral3":
        return calls
    ((query, key, weights, scale),) = calls
    sizes = [h // 4 * (w // 4) for h, w in pictures["image_sizes"].tolist()]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    spans = [slice(end - n, end) for n, end in zip(sizes, ends, strict=True)]
    assert all(float(weights[:, :, s, s].sum(-1).min()) > 1 - 1e-5 for s in spans)
    return [(query[:, :, s], key[:, :, s], weights[:, :, s, s], scale) for s in spans]


def in_tokens(model, family, pictures, rows):
    """The values sorted to images and tiles, by means of the model's own window order and the layouts."""
    layouts = family.image_layouts(pictures)
    if family.groups_crops:  # 8 x 8 patches in blocks of 2 x 2
        crops = torch.nn.functional.avg_pool2d(torch.cat(rows).view(-1, 1, 8, 8), 2).flatten(1)
        return [[crops[i]] for i in range(len(crops))]
    if family.name == "mistral3":
        grids = [(h // 4, w // 4) for h, w in pictures["image_sizes"].tolist()]
        maps = [row.view(1, *grid) for row, grid in zip(rows, grids, strict=True)]
        return [[torch.nn.functional.avg_pool2d(x, 2).flatten()] for x in maps]
    if "image_grid_thw" not in pictures:
        crops = torch.cat(rows)
        if family.name == "gemma3":  # 16 x 16 patches, of which 2 x 2 are averaged
            maps = crops.flatten(2).transpose(1, 2) if crops.ndim == 3 else crops.unsqueeze(1)
            pooled = torch.nn.functional.avg_pool2d(maps.unflatten(2, (16, 16)), 2).flatten(2).transpose(1, 2)
            crops = pooled if crops.ndim == 3 else pooled[..., 0]
        return [[crops[t.crop][t.patches] for t in layout.tiles] for layout in layouts]
    merged = torch.cat([r.flatten() for r in rows]).view(-1, 4).mean(1)
    raster = torch.empty_like(merged)
    raster[window_order(model, pictures)] = merged
    return [[part] for part in raster.split([layout.tokens for layout in layouts])]


def window_order(model, pictures):
    """The merged token at each place of the encoder's sequence, found by what enters the first block. Positions may be
    added there, so both are compared with those of a black picture."""
    if hasattr(model.model.visual, "downsample"):  # GLM: no windows, and a norm between patches and blocks
        return torch.arange(int(pictures["image_grid_thw"].prod(1).sum()) // 4)
    black = dict(pictures, pixel_values=torch.zeros_like(pictures["pixel_values"]))
    seen = zip(patches_of(model, pictures), patches_of(model, black), strict=True)
    embedded, entered = ((x - y).reshape(-1, 4, x.shape[-1])[:, 0] for x, y in seen)
    match = (entered[:, None] - embedded[None]).abs().amax(-1) < 1e-5
    assert bool((match.sum(1) == 1).all())
    return match.int().argmax(1)


def patches_of(model, pictures):
    """What the patch embedding gives, and what enters the first block of the encoder."""
    seen, visual = {}, model.model.visual

    def enters(module, args, options):
        seen["entered"] = args[0] if args else options["hidden_states"]

    handles = [
        visual.patch_embed.register_forward_hook(lambda module, args, out: seen.update(embedded=out)),
        visual.blocks[0].register_forward_pre_hook(enters, with_kwargs=True),
    ]
    with torch.no_grad():
        model.model.get_image_features(**pictures)
    for handle in handles:
        handle.remove()
    return seen["embedded"], seen["entered"]


def observed(model, pictures, **patch):
    """The signals that the patch attaches to the encoder's output."""
    with vtc.patched(model, **patch), torch.no_grad():
        return model.model.get_image_features(**pictures)._vtc_run.signals


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("layers", [(0, 3), (2, 1)], ids=["0-3", "2-1"])
def test_attention_columns(case, reduction, layers):
    """HiPrune's signal in every layer, windowed ones too: head mean, then mean or sum over queries."""
    model, pictures = build(case, torch.float32), pictures_of(inputs_of(case, dtype=torch.float32))
    knobs = dict(object_layer=layers[0], deep_layer=layers[1], query_reduction=reduction)
    found = observed(model, pictures, strategy="hiprune", keep=0.3, **knobs)
    assert set(found) == {AttentionColumns(layer, reduction) for layer in layers}
    model.set_attn_implementation("eager")
    family = find_family(model)
    for layer in layers:
        rows = expected_scores(model, family, pictures, layer, reduction)
        compare(found[AttentionColumns(layer, reduction)], in_tokens(model, family, pictures, rows))


@pytest.mark.parametrize("case", CASES)
def test_cls_attention(case):
    """VTC-CLS's signal: the [CLS] row, or the softmax of the mean query where there is none."""
    model, pictures = build(case, torch.float32), pictures_of(inputs_of(case, dtype=torch.float32))
    found = observed(model, pictures, strategy="vtc_cls", keep=0.3, start_layer=-3, end_layer=-1)
    assert set(found) == {ClsAttention(layer) for layer in ((1, 3) if case == "qwen2_5_vl" else (1, 2, 3))}
    model.set_attn_implementation("eager")
    family = find_family(model)
    for signal, values in found.items():
        rows = expected_scores(model, family, pictures, signal.layer, "cls")
        compare(values, in_tokens(model, family, pictures, rows))


@pytest.mark.parametrize("case", CASES)
def test_patch_attention(case):
    """VisionTrim's signal: what the other patches pay, in windows too, without the diagonal and [CLS]."""
    model, pictures = build(case, torch.float32), pictures_of(inputs_of(case, dtype=torch.float32))
    family = find_family(model)
    for layer in (0, 3):
        signal = PatchAttention(layer)
        found = observed(model, pictures, strategy="visiontrim", keep=0.3, layer=layer)[signal]
        model.set_attn_implementation("eager")
        compare(found, in_tokens(model, family, pictures, expected_scores(model, family, pictures, layer, "others")))
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("case", CASES)
def test_joined_heads(case):
    """Recoverable Compression's signals: attention and keys of a layer as if it had one head."""
    model, pictures = build(case, torch.float32), pictures_of(inputs_of(case, dtype=torch.float32))
    found = observed(model, pictures, strategy="recoverable", keep=0.3, layer=1, text="none")
    score, keys = ClsAttention(1, True), EncoderKeys(1, True)
    assert {score, keys} <= set(found)
    model.set_attn_implementation("eager")
    family = find_family(model)
    compare(found[score], in_tokens(model, family, pictures, expected_scores(model, family, pictures, 1, "joined")))
    with vtc.patched(model, "visionzip", keep=0.3, layer=1), torch.no_grad():
        plain = model.model.get_image_features(**pictures)._vtc_run.signals[EncoderKeys(1)]
    for wide, mean in zip(sum(found[keys], []), sum(plain, []), strict=True):
        assert wide.shape == (len(mean), 2 * mean.shape[1])
        torch.testing.assert_close(wide.unflatten(1, (2, -1)).mean(1), mean)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("t", [1.05, 50.0])
def test_important_attention(case, t):
    """VFlowOpt's signal: from tokens that receive more than t times the mean, or from the one that receives most."""
    model, pictures = build(case, torch.float32), pictures_of(inputs_of(case, dtype=torch.float32))
    with vtc.patched(model, "vflowopt", t=t, layer=2), torch.no_grad():
        found = model.model.get_image_features(**pictures)._vtc_run.signals
    model.set_attn_implementation("eager")
    family = find_family(model)
    rows = expected_scores(model, family, pictures, 2, ("important", t))
    compare(found[ImportantAttention(2, t)], in_tokens(model, family, pictures, rows))


@pytest.mark.parametrize("case", CASES)
def test_pixels_of_each_token(case):
    """The pixels that are scored for a token are those that it was made of: with all others changed it stays."""
    model, pictures = build(case, torch.float32), pictures_of(inputs_of(case, dtype=torch.float32))
    family = find_family(model)
    layouts = family.image_layouts(pictures)
    found = family.pixel_scores(pictures, layouts, lambda x: x.flatten(1).sum(1))
    assert [[len(t) for t in image] for image in found] == [[t.tokens for t in layout.tiles] for layout in layouts]
    pixels = pictures["pixel_values"]
    if "image_grid_thw" in pictures:
        sums = pixels.view(-1, 4, pixels.shape[1]).sum((1, 2))
        expected = [[part] for part in sums.split([i.tokens for i in layouts])]
    elif family.groups_crops:
        crops = pixels if pixels.ndim == 4 else torch.cat([x[x.flatten(1).any(1)] for x in pixels])
        sums = torch.nn.functional.avg_pool2d(crops.sum(1, keepdim=True), 8).flatten(1) * 64
        expected = [[part] for part in sums]
    elif case == "mistral3":
        grids = [layout.tiles[0].grid for layout in layouts]
        sums = [torch.nn.functional.avg_pool2d(x.sum(0, keepdim=True), 8) * 64 for x in pixels]
        expected = [[x[0, :h, :w].flatten()] for x, (h, w) in zip(sums, grids, strict=True)]
    else:
        crops = pixels if pixels.ndim == 4 else torch.cat([x[: len(i.tiles)] for x, i in zip(pixels, layouts)])
        side = 8 if case == "gemma3" else 4
        sums = torch.nn.functional.avg_pool2d(crops.sum(1, keepdim=True), side).flatten(1) * side**2
        expected = [[sums[t.crop][t.patches] for t in layout.tiles] for layout in layouts]
    for image, same in zip(found, expected, strict=True):
        for tile, values in zip(image, same, strict=True):
            torch.testing.assert_close(tile, values, atol=1e-3, rtol=1e-4)


def compare(found, expected):
    """Equal nesting, equal values."""
    assert [[len(tile) for tile in image] for image in found] == [[len(tile) for tile in image] for image in expected]
    for image, same in zip(found, expected, strict=True):
        for tile, values in zip(image, same, strict=True):
            torch.testing.assert_close(tile.double(), values.double(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", ["llava", "llava_next", "llava-siglip"])
def test_output_attentions_agree(case):
    """The same columns from the matrices that the tower itself returns with output_attentions=True."""
    model, inputs = build(case, torch.float32), inputs_of(case, dtype=torch.float32)
    pictures = pictures_of(inputs)
    found = observed(model, pictures, strategy="hiprune", keep=0.3, object_layer=1, deep_layer=3)
    model.set_attn_implementation("eager")
    family = find_family(model)
    pixels = inputs["pixel_values"]
    if pixels.ndim == 5:
        used = [sum(1 for crop in image if bool(crop.any())) for image in pixels]
        pixels = torch.cat([image[:n] for image, n in zip(pixels, used, strict=True)])
    with torch.no_grad():
        matrices = family.tower(pixels, output_attentions=True).attentions
    first = 1 if family.encoder.has_cls else 0
    for layer in (1, 3):
        columns = matrices[layer].mean(1).mean(1)[:, first:]
        compare(found[AttentionColumns(layer, "mean")], in_tokens(model, family, pictures, [columns]))


@pytest.mark.parametrize("case", ["llava", "qwen2_5_vl"])
def test_unobserved_layers_are_untouched(case):
    """Only the layers that a strategy names get another config; the model's own config is the same object."""
    model = model_of(case)
    family = find_family(model)
    configs = [module.config for module in family.attention]
    with vtc.patched(model, "hiprune", keep=0.3, object_layer=0, deep_layer=2):
        changed = [module.config is not config for module, config in zip(family.attention, configs, strict=True)]
    assert changed == [True, False, True, False]
    assert all(module.config is config for module, config in zip(family.attention, configs, strict=True))
