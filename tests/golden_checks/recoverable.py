"""Recoverable Compression: queries, keys and the text's similarity -> three budgets -> what the projector receives."""

import torch
from torch import Tensor

from vtc.kernels.attention_reduce import attention_rows
from vtc.kernels.outliers import local_outliers
from vtc.strategies.recoverable import Recoverable


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """query, key [1 + n, C], [CLS] first; features [n, C], text_similarity [n]; idx_vision, idx_text, main, centers;
    ratios [3], the shares of outliers; output [m, C]."""
    stage = Recoverable(text="none", **{k: v for k, v in params.items() if k not in ("min_gap", "seed")})
    query, key = tensors["query"][None, None], tensors["key"][None, None]
    attention = attention_rows(query[:, :, :1], key)[:, 0, 1:]
    similarity, features = tensors["text_similarity"][None], tensors["features"][None]
    tokens, width = features.shape[1:]

    parts = stage.parts(attention, similarity, width, tokens - 1)
    assert parts.vision[0].nonzero().flatten().tolist() == tensors["idx_vision"].tolist()
    assert parts.text[0].nonzero().flatten().tolist() == tensors["idx_text"].tolist()
    main = parts.vision | parts.text
    assert main[0].nonzero().flatten().tolist() == tensors["main"].tolist()
    seen = torch.where(parts.vision, similarity.min(), similarity)
    shares = [
        local_outliers(attention, stage.lof_k_vision),
        local_outliers(seen, stage.lof_k_text),
        local_outliers(attention, stage.lof_k_center, ~main)[~main],
    ]
    torch.testing.assert_close(torch.stack([x.double().mean() for x in shares]), tensors["ratios"], rtol=1e-9, atol=0)

    selection = stage.choose(attention, key[:, 0, 1:], similarity, width, tokens - 1)
    kept = int(selection.valid.sum())
    order = selection.order[0, :kept]
    expected = tensors["main"].tolist() + tensors["centers"].tolist()
    assert selection.keep[0][order].tolist()[: len(expected)] == expected
    assert kept == len(tensors["output"])
    torch.testing.assert_close(selection.apply_features(features)[0][order], tensors["output"], rtol=0, atol=1e-5)
