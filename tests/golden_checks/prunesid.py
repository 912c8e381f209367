"""PruneSID: features and saliency -> components -> groups, suppression, quotas -> picks in order."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import ClsAttention, Context, Encoder, EncoderFeatures, Features
from vtc.kernels.components import loadings
from vtc.kernels.gram import cosine_matrix
from vtc.strategies.prunesid import picks_of, threshold

CLIP = Encoder("llava", 24, True, tuple(range(24)))
QWEN = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: features [n, d], saliency [n] ("llava" only); components [n, q] of the code's randomised routine with the
    file's seed, components_exact [n, q]; selected_order, selected_order_exact [k], the picks that follow from either;
    quota, nms_counts [q] for the former."""
    variant, tokens, features = params["variant"], params["n"], tensors["features"]
    cls = variant == "llava"
    count, seed = params["k"] + cls, params["seed"]
    similarity, saliency = cosine_matrix(features[None])[0], tensors.get("saliency")
    found = threshold(similarity, count, variant)
    torch.testing.assert_close(float(found), params["threshold"], rtol=1e-4, atol=0)

    drawn, exact = loadings(features, params["groups"], seed), loadings(features, params["groups"])
    torch.testing.assert_close(drawn.float(), tensors["components"], rtol=0, atol=1e-4)
    torch.testing.assert_close(exact.float(), tensors["components_exact"], rtol=0, atol=1e-6)
    given = tensors["components"].double()
    units = None if saliency is None else saliency[None]
    ((_, quota, alive),) = picks_of(given[None], similarity[None], units, count, params["k"], variant)
    assert quota.tolist() == tensors["quota"].tolist()
    assert alive.tolist() == tensors["nms_counts"].tolist()
    for components, expected in ((given, "selected_order"), (exact, "selected_order_exact")):
        ((picks, _, _),) = picks_of(components[None], similarity[None], units, count, params["k"], variant)
        picks = picks.tolist()
        raster = not cls and params["k"] > 150
        assert (sorted(picks) if raster else picks) == tensors[expected].tolist(), expected

    family, encoder = ("llava", CLIP) if cls else ("qwen2_5_vl", QWEN)
    needs = (EncoderFeatures(), ClsAttention(22)) if cls else (Features(),)
    signals = dict(zip(needs, (x[None] for x in (features, saliency) if x is not None), strict=True))
    for factorisation, expected in (("exact", "selected_order_exact"), ("randomised", "selected_order")):
        config = resolve("prunesid", family, keep=count, factorisation=factorisation, seed=seed)
        assert config.allocate().projector.count(tokens) == count
        config = config.projector
        context = Context(tokens, count, (1, tokens), (0,), torch.device("cpu"), signals)
        selection = config.stage.select(context, encoder)
        kept = selection.keep[0]
        if cls:  # its [CLS] comes first, in the lowest free place
            kept = kept[selection.order[0]][1:]
        assert kept.tolist() == tensors[expected].sort().values.tolist(), factorisation
