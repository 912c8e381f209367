"""Tensor parallelism: a model whose heads are split over two processes does what the whole model does."""

import pytest
import torch
from torch import nn

import vtc
from tests.helpers import CHANGING, IN_ENCODER, INSIDE, refused
from tests.helpers_ranks import OWN, in_two_processes, plain, save
from vtc.core.errors import PatchError, UnsupportedError
from vtc.engine.ranks import WHOLE, Ranks, refuse_spread
from vtc.patches import FAMILIES, available

BY_HEADS = ["fastv", "dart", "transprune", "sparsevlm+", "vscan", "flowcut inside"]
FEW = [*BY_HEADS, "sparsevlm", "autoprune by bits", "var everywhere", "visiondrop inside", "visionzip"]
ASTRAY = ["fastv", "divprune", "tome"]  # inside the language model, at the projector, inside the encoder
TOLERANCE = 1e-5
REFUSALS = {
    "unknown": "PatchError: an attention layer ran with 2 of 4 heads on 1 known processes",
    "split_encoder": "UnsupportedError: the heads of this vision encoder are split over processes",
}
# qwen3_vl has no plan, so its text model is whole in each process; transformers 5.23 cannot load qwen3_vl_moe by one.
SPLIT = [name for name in FAMILIES if available(name) and name not in ("qwen3_vl", "qwen3_vl_moe")]


def same(found: tuple, expected: tuple) -> bool:
    """Whether ids and report are equal, and the logits up to rounding."""
    close = float((found[1] - expected[1]).abs().max()) < TOLERANCE
    return torch.equal(found[0], expected[0]) and found[2] == expected[2] and close


@pytest.mark.full
def test_two_processes_do_what_one_does(tmp_path):
    """Ids, kept tokens, changed rows and logits. Where scores stay on their rank, each keeps other tokens; where a
    rank chooses other tokens, it follows the first; where the split is not seen, the forward is refused."""
    save("llava", tmp_path)
    modes = {
        "plain": FEW, "apart": BY_HEADS, "astray": ASTRAY, "unknown": ["fastv", "uniform"],
        "split_encoder": ["visionzip", "tome", "divprune"], "fsdp": ["fastv", "visionzip"],
    }  # fmt: skip
    ranks = in_two_processes(tmp_path, [(mode, "llava", "float32", names) for mode, names in modes.items()])
    whole = plain("llava", tmp_path, "float32", [*FEW, "divprune", "tome"])
    for mode, names in modes.items():
        for name in names:
            key, (first, second) = ("llava", name), (rank[mode, "llava"]["llava", name] for rank in ranks)
            if mode in ("plain", "astray"):
                assert same(first, whole[key]), (mode, name)
                assert same(second, whole[key]), (mode, name)
            elif mode == "apart":
                assert first[2] != second[2], name
                assert not same(first, whole[key]), name
            elif mode == "fsdp":
                assert max(first, second) < TOLERANCE, name
            else:
                reads_heads = name not in ("uniform", "divprune")
                assert first == second, name
                assert first.startswith(REFUSALS[mode]) if reads_heads else first == "", (name, first)


@pytest.mark.full
def test_methods_that_act_inside_on_every_family(tmp_path):
    """Every third method of each family, other ones in the next; in float64 and float32 by turns."""
    names = [*dict.fromkeys([*INSIDE, *CHANGING, *IN_ENCODER, *FEW])]
    cells = []
    for i, family in enumerate(SPLIT):
        save(family, tmp_path)
        fit = [name for name in names[i % 3 :: 3] if fits(family, name)]
        double = i % 2 and "moe" not in family  # experts run in float32 at most
        cells.append(("plain", family, "float64" if double else "float32", fit))
    ranks = in_two_processes(tmp_path, cells)
    for _, family, dtype, fit in cells:
        whole = plain(family, tmp_path, dtype, fit)
        for name in fit:
            for rank in ranks:
                assert same(rank["plain", family][family, name], whole[family, name]), (family, name, dtype)


def fits(family: str, name: str) -> bool:
    """Whether a family takes a strategy in one process."""
    try:
        vtc.patch(FAMILIES[family].tiny(), OWN.get(name, name))
    except UnsupportedError:
        return False
    return True


class FullyShardedDataParallel(nn.Module):
    """Named as the real one, which needs processes."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


class PipelineIdentityLayer(nn.Identity):
    """Named as transformers' stand-in for the layers of other processes."""


@pytest.mark.parametrize("name", ["FSDP1", "pipeline", "ZeRO-3"])
def test_models_spread_in_other_ways_are_refused_by_name(name):
    model = FAMILIES["llava"].tiny()
    layers = model.model.language_model.layers
    if name == "FSDP1":
        layers[1] = FullyShardedDataParallel(layers[1])
    elif name == "pipeline":
        layers[1] = PipelineIdentityLayer()
    else:
        model.lm_head.weight.ds_id = 0
    refused(lambda: vtc.patch(model, "uniform"), name, "possible", "tp_plan", kind=UnsupportedError)
    assert not hasattr(model, "_vtc_patch")


def test_a_whole_model_has_nothing_to_reduce():
    refuse_spread(FAMILIES["llava"].tiny())
    x = torch.rand(3)
    assert Ranks(None, 8).holding(8) is WHOLE
    assert all(call(x) is x for call in (WHOLE.total, WHOLE.mean, WHOLE.joined, WHOLE.agreed))
    refused(lambda: Ranks(None, 8).holding(4), "4 of 8 heads", "possible", kind=PatchError)


class FSDPModule(nn.Module):
    """Named as the base class of what `fully_shard` has changed."""


class Split:
    """A placement of a weight that is split."""

    def is_shard(self) -> bool:
        """As torch's own."""
        return True


def test_heads_and_fsdp_at_once_are_refused():
    model = FAMILIES["llava"].tiny()
    model.model.language_model.layers[0].self_attn.q_proj.weight.placements = (Split(), Split())
    model.part = FSDPModule()
    refused(lambda: vtc.patch(model, "uniform"), "by heads and by FSDP at once", "possible", kind=UnsupportedError)
