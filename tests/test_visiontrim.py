"""VisionTrim: rounds and local importance as plain loops, its Selection, and its words and patches in CLIP's space."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel

import vtc
from tests.helpers import IMAGE_TOKEN, Words, forward, inputs_of, kept_of, model_of, split
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import (
    AttentionColumns,
    ClipPatches,
    ClipWords,
    ClsAttention,
    Encoder,
    EncoderFeatures,
    Features,
    PatchAttention,
    TextEmbeddings,
    Unprojected,
)
from vtc.kernels.affinity import local_importance
from vtc.kernels.attention_reduce import attention_diagonal
from vtc.kernels.complement import complement
from vtc.patching import find_family
from vtc.strategies.visiontrim import VisionTrim, merged

CLIP = Encoder("llava", 24, True, tuple(range(24)), tokens=576)
QWEN = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31))


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(x, y):
    return float(torch.nn.functional.cosine_similarity(x, y, dim=0))


@settings(max_examples=40)
@given(
    n=st.integers(2, 14), words=st.integers(0, 4), rounds=st.integers(1, 4), seed=st.integers(0, 10**6), data=st.data()
)
def test_rounds_are_the_plain_loop(n, words, rounds, seed, data):
    """Anchors and, in each round, who goes where and with what share."""
    chosen = data.draw(st.integers(0, n - 1))
    count = data.draw(st.integers(1, n - chosen))
    x, t = draw(seed, n, 5), draw(seed + 1, words, 5)
    dominant = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:chosen].sort().values
    found = complement(x, t, dominant, count, rounds)
    others = [i for i in range(n) if i not in dominant.tolist()]
    ranked = sorted(others, key=lambda i: (-round(sum(cosine(x[i], w) for w in t), 9), i))
    anchors = sorted(ranked[:count])
    assert found.anchors.tolist() == anchors
    target, rest = x[anchors].clone(), [i for i in others if i not in anchors]
    for group, weight in found.rounds:
        goes = {}
        for i in rest:
            worth = [round(sum(cosine(x[i], w) * cosine(w, a) for w in t), 9) for a in target]
            goes[i] = worth.index(max(worth))
        assert group.tolist() == [goes.get(i, -1) for i in range(n)]
        for c in range(count):
            mine = [i for i in rest if goes[i] == c]
            if mine:
                target[c] += x[mine].mean(0)
                torch.testing.assert_close(weight[mine], torch.full((len(mine),), 1 / len(mine)))
    selection = merged(dominant[None], [found], n, True, True)
    features = torch.cat([torch.full((1, 5), 1e6), x])[None].double()
    sequence = selection.apply_features(features)[0][selection.order[0]]
    torch.testing.assert_close(sequence, torch.cat([x[dominant], target]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 3)])
def test_local_importance_is_the_plain_loop(grid):
    rows, columns = grid
    x = draw(3, rows * columns, 4)
    place = [(i // columns, i % columns) for i in range(rows * columns)]
    spread = float(x.var())
    wide = float(torch.tensor(place, dtype=torch.float64).var()) if len(place) > 1 else 1
    total = [
        -sum(
            float((x[i] - x[j]).square().sum()) / spread + 0.5 * ((a - c) ** 2 + (b - d) ** 2) / wide
            for j, (c, d) in enumerate(place)
            if abs(a - c) < 2 and abs(b - d) < 2
        )
        / 9
        for i, (a, b) in enumerate(place)
    ]
    torch.testing.assert_close(local_importance(x, grid), torch.tensor(total, dtype=torch.float64).softmax(0))
    assert local_importance(torch.ones(6, 2), (2, 3)).isfinite().all()


def test_diagonal():
    """Against the whole matrix, blocks and packed sequences included."""
    q, k = draw(0, 2, 4, 700, 8), draw(1, 2, 4, 700, 8)
    matrix = (q @ k.transpose(2, 3) * 0.3).softmax(-1)
    found = attention_diagonal(q, k, scale=0.3)
    torch.testing.assert_close(found, matrix.diagonal(0, 2, 3).mean(1))
    packed = attention_diagonal(q[:1], k[:1], scale=0.3, cu_seqlens=[0, 100, 700])
    apart = [attention_diagonal(q[:1, :, a:b], k[:1, :, a:b], scale=0.3) for a, b in ((0, 100), (100, 700))]
    torch.testing.assert_close(packed, torch.cat(apart, 1))


def clip_of(model):
    """A CLIP model with the width of a model's vision tower, and a tokenizer whose words are numbers."""
    width = model.config.vision_config.hidden_size
    text = dict(vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    vision = dict(hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).double().eval()

    def tokenizer(question):
        return {"input_ids": [97, *(3 + sum(map(ord, word)) % 90 for word in question.split()), 98]}

    return clip, tokenizer


@pytest.mark.parametrize("case", ["llava", "llava_next"])
def test_words_and_patches_in_clips_space(case):
    """What the method is given is CLIP's, question by question; a batch changes nothing."""
    model, inputs = model_of(case), inputs_of(case)
    clip, tokenizer = clip_of(model)
    options = dict(keep=0.3, relevance="clip", tgvc=0.5, processor=Words(), clip=(clip, tokenizer))
    seen = []
    with pytest.MonkeyPatch.context() as spied:
        original = VisionTrim.select
        spied.setattr(VisionTrim, "select", lambda self, c, e: (seen.append(c), original(self, c, e))[1])
        with vtc.patched(model, "visiontrim", **options):
            together = forward(model, inputs).logits
            batch, contexts = vtc.report(model), list(seen)
            for b, single in enumerate(split(inputs)):
                alone = forward(model, single).logits
                assert all(map(torch.equal, kept_of(batch, b), kept_of(vtc.report(model), 0)))
                torch.testing.assert_close(together[b, -1], alone[0, -1], atol=1e-9, rtol=0)
    words, patches = contexts[0][ClipWords()], contexts[0][ClipPatches()]
    assert words.shape[2] == patches.shape[2] == 8
    question = " ".join(f"word{i}" for i in split(inputs)[0]["input_ids"][0].tolist() if i != IMAGE_TOKEN)
    with torch.no_grad():
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        ids = ids if ids.shape[1] <= 77 else torch.cat([ids[:, :76], ids[:, -1:]], 1)
        expected = clip.text_projection(clip.text_model(input_ids=ids).last_hidden_state[0])
        hidden = find_family(model).tower(inputs["pixel_values"].flatten(0, -4)[:1], output_hidden_states=True)
        layer = model.config.vision_feature_layer
        torch.testing.assert_close(words[0], expected)
        torch.testing.assert_close(patches[0], clip.visual_projection(hidden.hidden_states[layer][0, 1:]))


def test_what_it_reads():
    assert resolve("visiontrim", "llava").projector.stage == VisionTrim()
    attention = ClsAttention(22), PatchAttention(22)
    assert VisionTrim().needs(CLIP) == (Features(), TextEmbeddings(), *attention)
    assert not VisionTrim().needs_text
    assert VisionTrim(relevance="clip").needs(CLIP) == (ClipPatches(), ClipWords(), *attention, Unprojected())
    assert VisionTrim(relevance="clip").needs_text
    assert VisionTrim(metric="paper").needs(CLIP)[2:] == (ClsAttention(22), EncoderFeatures())
    needs = resolve("visiontrim", "qwen2_vl").projector.stage.needs(QWEN)
    assert needs[2:] == (AttentionColumns(31, "mean"), PatchAttention(31))
    for knobs, message in (({"tgvc": 1.0}, "tgvc=1.0 is out of range"), ({"iterations": 0}, "iterations=0 is out of")):
        with pytest.raises(ConfigError, match=message):
            resolve("visiontrim", "llava", **knobs)
