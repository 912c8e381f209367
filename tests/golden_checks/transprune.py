"""TransPrune: module inputs and outputs -> transition variation -> scores -> kept indices, through all drops."""

import torch
from torch import Tensor

from vtc.core.signals import Context, Decoder, DecoderAttention, Transition
from vtc.kernels.attention_reduce import attention_columns
from vtc.kernels.transition import transition_variation
from vtc.strategies.transprune import TransPrune, score_tokens

DECODER = Decoder("llava", 32)
MODULES = ("attn_in", "attn_out", "mlp_in", "mlp_out")


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """The fields are named in tests/golden/transprune/README.md."""
    start, entered = params["visual_start"], params["n_visual"]
    summed, ratios = params["accumulate_layers_1based"], tuple(params["ratios"])
    stage = TransPrune(tuple(params["prune_layers_1based"]), ratios=ratios, accumulate=(summed[0], summed[-1]))
    left, history = torch.arange(entered), {}
    for number, step in enumerate(stage.steps(DECODER)):
        needed = stage.needs(DECODER, number)
        for signal in (s for s in needed if isinstance(s, Transition) and s not in history):
            layer = {key: tensors[f"layer{signal.layer + 1}.{key}"] for key in MODULES}
            ttv = sum(transition_variation(layer[f"{m}_in"][None], layer[f"{m}_out"][None]) for m in ("attn", "mlp"))
            assert_scores(ttv[0], tensors[f"layer{signal.layer + 1}.ttv"])
            history[signal] = ttv[:, start : start + len(left)]
        iga = DecoderAttention(step.layer, "after", ahead=True)
        assert set(needed) == {*history, iga}

        texts, keys = tensors[f"stage{number}.q_text"][None], tensors[f"stage{number}.k_all"][None]
        received = attention_columns(texts, keys, causal=True)[:, start : start + len(left)]
        score = score_tokens(sum(history.values()), received, stage.alpha)
        assert_scores(2 * score[0], tensors[f"stage{number}.score"])

        count = stage.count(entered, step.share)
        assert count == params["keep"][number]
        signals = {**history, iga: received}
        context = Context(len(left), count, None, (0,), torch.device("cpu"), signals, step=number)
        kept = stage.select(context, DECODER).row(0)
        left = left[kept]
        assert kept.tolist() == tensors[f"stage{number}.kept_local"].tolist()
        assert left.tolist() == tensors[f"stage{number}.kept_original"].tolist()
        history = {signal: values[:, kept] for signal, values in history.items()}


def assert_scores(actual: Tensor, expected: Tensor) -> None:
    """Equal within a relative 1e-4."""
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=1e-4, atol=0)
