"""SparseVLM: embeddings -> raters; their attention -> kept tokens; recycled tokens -> clusters -> merged tokens."""

import torch
from torch import Tensor

from tests.golden_checks._engine import assert_scores
from vtc.core.signals import Context, Decoder
from vtc.kernels.raters import rater_scores, raters
from vtc.kernels.topk import topk_sorted
from vtc.strategies.sparsevlm import SparseVLM, cluster_count, recycle, split


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """The fields are named in tests/golden/sparsevlm/README.md."""
    scores = rater_scores(tensors["visual_embeds"], tensors["text_embeds"])
    assert_scores(scores, tensors["rater_score"])
    chosen = raters(scores)
    assert chosen.nonzero().flatten().tolist() == tensors["raters"].tolist()

    # The smallest margin of a density is below what float32 tells apart.
    score = tensors["attn_text_to_visual"].double().mean(0)[chosen].mean(0)[None]
    hidden = tensors["layer_output_visual"].double()[None]
    assert_scores(score[0], tensors["visual_score"])
    tokens, plain = score.shape[1], params["keep"]
    assert topk_sorted(score, plain)[0].tolist() == tensors["kept"].tolist()
    clusters = cluster_count(tokens - plain)
    assert split(tokens, plain + clusters) == (plain, clusters)
    order, groups = recycle(score, hidden, tensors["kept"][None], clusters)
    assert order[0].tolist() == tensors["recycled"].tolist()
    assert groups.targets[0].tolist() == tensors["cluster_centers"].tolist()

    stage, decoder = SparseVLM(), Decoder("llava", 32)
    step = [s.layer - 1 for s in stage.steps(decoder)].index(params["layer"])
    signals = dict(zip(stage.needs(decoder, step), (score, hidden), strict=True))
    context = Context(tokens, plain + clusters, None, (0,), torch.device("cpu"), signals, step)
    selection = stage.select(context, decoder)
    order = selection.order[0]
    assert selection.keep[0][order].tolist() == tensors["kept"].tolist() + tensors["cluster_centers"].tolist()
    merged = selection.apply_features(hidden)[0][order]
    expected = torch.cat([hidden[0, tensors["kept"]], tensors["merged"].double()])
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)
