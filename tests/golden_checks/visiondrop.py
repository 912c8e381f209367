"""VisionDrop: the stage before the projector and the stages inside the language model, from scores to merged tokens."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, Encoder, Unprojected
from vtc.kernels.attention_reduce import attention_columns

ENCODER = Encoder("llava", 24, True, tuple(range(24)), tokens=576)
DECODER = Decoder("llava", 32)


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """The fields of each kind of file are named in the two functions below."""
    {"vision": check_vision, "llm": check_llm}[params["stage"]](tensors, params)


def check_vision(tensors: dict[str, Tensor], params: dict) -> None:
    """cls_attn [H, 1 + N], key_metric [1 + N, e], hidden [1 + N, D] with [CLS] first; dominant_idx, context_target_idx,
    merged_idx, merged_assign; tokens_out [count, D]: [CLS], dominant, contextual."""
    count, contextual = params["n_out"], params["contextual"]
    tokens = tensors["cls_attn"].shape[1] - 1
    knobs = {"contextual": contextual / count, "keep": count, "layer": params["layer_0based"]}
    config = resolve("visiondrop", "llava", **{f"visiondrop_projector.{key}": knobs[key] for key in knobs})
    score, keys, unprojected = config.projector.stage.needs(ENCODER)
    assert (score.layer, keys.layer, unprojected) == (params["layer_0based"], params["layer_0based"], Unprojected())
    assert config.allocate(DECODER).projector.count(tokens) == count
    signals = {score: tensors["cls_attn"].float().mean(0)[None, 1:], keys: tensors["key_metric"][None, 1:]}
    context = Context(tokens, count, (24, 24), (0,), torch.device("cpu"), signals)
    selection = config.projector.stage.select(context, ENCODER)
    merged = assert_groups(selection, tensors, cls=True)
    torch.testing.assert_close(merged, tensors["tokens_out"], rtol=0, atol=2e-4)


def check_llm(tensors: dict[str, Tensor], params: dict) -> None:
    """query, key [H, S, D] after RoPE, hidden [S, D], importance [n]; dominant_idx, context_target_idx, merged_idx,
    merged_assign, relative to the image; sequence_out [S', D], position_ids_out [S']."""
    start, tokens, contextual = params["image_start"], params["image_tokens"], params["contextual"]
    count, layer = params["dominant"] + contextual, params["qk_from_layer_0based"]
    knobs = {"layers": [layer], "ratios": [count / tokens], "visiondrop.contextual": [contextual / count]}
    config = resolve("visiondrop", "llava", **knobs).decoder[0]
    (step,) = config.stage.steps(DECODER)
    assert (step.layer, config.stage.count(tokens, step.share)) == (layer, count)
    end = start + tokens
    query, key = tensors["query"].float()[None], tensors["key"].float()[None]
    importance = attention_columns(query[:, :, start:end], key[:, :, :end], causal=True)[:, start:]
    torch.testing.assert_close(importance[0], tensors["importance"], rtol=1e-4, atol=0)

    score, keys = config.stage.needs(DECODER, 0)
    signals = {score: importance, keys: key.mean(1)[:, start:end]}
    selection = config.stage.select(Context(tokens, count, None, (0,), torch.device("cpu"), signals), DECODER)
    hidden = tensors["hidden"].float()
    merged = assert_groups(selection, {**tensors, "hidden": hidden[start:end]}, cls=False)
    sequence = torch.cat([hidden[:start], merged, hidden[end:]])
    torch.testing.assert_close(sequence, tensors["sequence_out"], rtol=0, atol=2e-4)
    assert config.positions == "compact"
    assert torch.arange(len(sequence)).tolist() == tensors["position_ids_out"].tolist()


def assert_groups(selection: Selection, tensors: dict[str, Tensor], cls: bool) -> Tensor:
    """Dominant tokens, targets and who joins which, exactly; returns the new tokens in sequence order."""
    dominant, targets = tensors["dominant_idx"].tolist(), tensors["context_target_idx"].tolist()
    order, target = selection.order[0], selection.merge.target[0]
    place = order.argsort()[target].masked_fill(target < 0, -1)  # where in the sequence each token flows to
    if cls:
        assert place[0] == 0
        place = place[1:] - 1
        free = set(range(len(place))) - set(dominant) - set(targets)
        assert selection.keep[0, order[0]] == min(free)
    assert selection.keep[0][order].tolist()[int(cls) :] == dominant + targets
    assert place[dominant + targets].tolist() == list(range(len(dominant + targets)))
    rest = [i for i in range(len(place)) if i not in set(dominant + targets)]
    assert rest == tensors["merged_idx"].tolist()
    assert (place[rest] - len(dominant)).tolist() == tensors["merged_assign"].tolist()
    return selection.apply_features(tensors["hidden"].float()[None])[0][order]
