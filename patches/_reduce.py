"""Encoder signals computed from the queries, keys and values of one attention call."""

from itertools import pairwise

import torch
from torch import Tensor

from vtc.core.signals import (
    AttentionColumns,
    ClsValueAttention,
    EncoderKeys,
    ImportantAttention,
    PatchAttention,
    Signal,
    ValueNorms,
)
from vtc.kernels.attention_reduce import attention_columns, attention_diagonal, attention_rows
from vtc.kernels.important import important_columns


def reduce_attention(
    has_cls: bool, signal: Signal, query: Tensor, key: Tensor, scale: float | None, cu_seqlens, value: Tensor | None
) -> Tensor:
    """See `Family.reduce`. has_cls: the first token of each sequence is the [CLS]."""
    if isinstance(signal, ClsValueAttention):
        query, key, scale = value, value, 1.0
    if getattr(signal, "joined", False):
        query, key, scale = (*(x.transpose(1, 2).flatten(2).unsqueeze(1) for x in (query, key)), None)
    if isinstance(signal, ValueNorms):
        scores = value.mean(1, dtype=torch.promote_types(value.dtype, torch.float32)).abs().sum(-1)
    elif isinstance(signal, EncoderKeys):
        scores = key.mean(1, dtype=torch.promote_types(key.dtype, torch.float32))
    elif isinstance(signal, ImportantAttention):
        scores = important_columns(query, key, scale, signal.t, cu_seqlens)
    elif isinstance(signal, AttentionColumns):
        scores = attention_columns(query, key, scale=scale, reduce_queries=signal.reduce_queries, cu_seqlens=cu_seqlens)
    elif isinstance(signal, PatchAttention):
        options = dict(scale=scale, cu_seqlens=cu_seqlens)
        scores = attention_columns(query, key, reduce_queries="sum", **options)
        scores = scores - attention_diagonal(query, key, **options)
        if has_cls:
            scores = scores - attention_rows(query[:, :, :1], key, scale=scale)[:, 0]
    elif has_cls:
        scores = attention_rows(query[:, :, :1], key, scale=scale)[:, 0]
    elif cu_seqlens is None:
        scores = attention_rows(query.mean(2, keepdim=True), key, scale=scale)[:, 0]
    else:
        bounds = cu_seqlens if isinstance(cu_seqlens, list) else cu_seqlens.tolist()
        sizes = [stop - start for start, stop in pairwise(bounds)]
        parts = zip(query.split(sizes, 2), key.split(sizes, 2), strict=True)
        scores = torch.cat([attention_rows(q.mean(2, keepdim=True), k, scale=scale)[:, 0] for q, k in parts], 1)
    return scores[:, 1:] if has_cls else scores
