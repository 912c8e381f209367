"""CDPruner: projected tokens, and patches and question in CLIP's space -> relevance -> kept indices."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Encoder, Features, TextRelevance
from vtc.kernels.dpp import dpp_greedy
from vtc.strategies.cdpruner import quality

CLIP = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """Fields: features [B, N, D], image_embeds [B, N, E], text_embeds [M, E], one for each segment; kept [B, T].

    Of several crops the released code takes minimum and maximum of the relevance together; one crop goes through the
    stage itself.
    """
    features, kept = tensors["features"], tensors["kept"].tolist()
    crops, tokens, count = features.shape[0], features.shape[1], params["visual_token_num"]
    image, text = (normalize(tensors[name].float(), dim=-1) for name in ("image_embeds", "text_embeds"))
    relevance = (image @ text.T).mean(-1)
    assert dpp_greedy(features, quality(-relevance, joint=True), count).sort().values.tolist() == kept
    if crops == 1:
        config = resolve("cdpruner", "llava", relevance="clip", keep=count)
        assert config.allocate().projector.count(tokens) == count
        assert config.projector.stage.needs(CLIP) == (Features(), TextRelevance())
        seen = {Features(): features, TextRelevance(): relevance}
        context = Context(tokens, count, (1, tokens), (0,), torch.device("cpu"), seen)
        assert config.projector.stage.select(context, CLIP).keep.tolist() == kept
