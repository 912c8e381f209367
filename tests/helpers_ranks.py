"""A tiny model in two processes: each of them loads a part of it, generates, and saves what it saw."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import vtc
from vtc.check.batch import IMAGES
from vtc.engine.ranks import Ranks
from vtc.patches import FAMILIES

RANKS, TOKENS = 2, 8
DTYPE = {"float32": torch.float32, "float64": torch.float64}
OWN = {
    "sparsevlm+": {"stages": [{"method": "sparsevlm", "version": 2}]},
    "visiondrop inside": {"stages": [{"method": "visiondrop"}]},
    "flowcut inside": {"stages": [{"method": "flowcut_decoder", "ratio": 0.5}]},
    "autoprune by bits": {"stages": [{"method": "autoprune", "gamma": 400.0, "x0": 3.0, "k0": 4.0}]},
    "var everywhere": {"stages": [{"method": "var", "tau": 2.5, "min_image_attention": 0.0, "min_nonsink_share": 0.0}]},
}
"""Strategies that read what no shipped one does, or with knobs by which it matters in a tiny model."""


def save(family: str, folder: Path) -> None:
    """The tiny model of a family with its inputs, to be loaded by every process."""
    model = FAMILIES[family].tiny()
    model.save_pretrained(folder / family)
    torch.save((type(model).__name__, FAMILIES[family].tiny_inputs(model, IMAGES)), folder / family / "inputs.pt")


def load(family: str, folder: Path, dtype: torch.dtype, **options) -> tuple:
    """Model and inputs."""
    import transformers

    name, inputs = torch.load(folder / family / "inputs.pt")
    model = getattr(transformers, name).from_pretrained(folder / family, dtype=dtype, **options).eval()
    return model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


@torch.no_grad()
def seen(model, inputs: dict, strategy: str) -> tuple:
    """Ids, logits, and what the report says of tokens and changed rows."""
    with vtc.patched(model, OWN.get(strategy, strategy)):
        options = dict(max_new_tokens=TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True)
        out = model.generate(**inputs, **options)
        report = vtc.report(model)
        kept = [[step.kept.tolist() for step in image.steps] or image.kept.tolist() for image in report.images]
        return out.sequences, torch.stack(out.logits), [kept, [change.to_dict() for change in report.attention]]


def plain(family: str, folder: Path, dtype: str, strategies: list[str], rank: int = 0) -> dict:
    """What a model, or a rank's part of it, does with each strategy."""
    model, inputs = load(family, folder, DTYPE[dtype], **({"tp_plan": "auto"} if dist.is_initialized() else {}))
    return {(family, strategy): seen(model, inputs, strategy) for strategy in strategies}


def apart(family: str, folder: Path, dtype: str, strategies: list[str], rank: int) -> dict:
    """The same with scores that stay on their rank."""
    with pytest.MonkeyPatch.context() as change:
        change.setattr(Ranks, "total", lambda ranks, x: x * ranks.count)
        change.setattr(Ranks, "joined", lambda ranks, x: x)
        change.setattr(Ranks, "agreed", lambda ranks, selection: selection)
        return plain(family, folder, dtype, strategies)


def astray(family: str, folder: Path, dtype: str, strategies: list[str], rank: int) -> dict:
    """The same where stages on the second rank keep the first tokens, whatever they see."""
    with pytest.MonkeyPatch.context() as change:
        for stage in {type(s.stage) for name in strategies for s in vtc.load_strategy(name).stages} if rank else ():
            change.setattr(stage, "select", _first_tokens(stage.select))
        return plain(family, folder, dtype, strategies)


def _first_tokens(select: Callable) -> Callable:
    def other(*args):
        selection = select(*args)
        return replace(selection, keep=torch.arange(selection.keep.shape[1]).expand_as(selection.keep))

    return other


def unknown(family: str, folder: Path, dtype: str, strategies: list[str], rank: int) -> dict:
    """What is said where the heads are split in a way that vtc does not see."""
    with pytest.MonkeyPatch.context() as change:
        change.setattr("vtc.engine.patch.head_group", lambda *args: None)
        model, inputs = load(family, folder, DTYPE[dtype], tp_plan="auto")
        return {(family, strategy): _error(lambda name=strategy: seen(model, inputs, name)) for strategy in strategies}


def split_encoder(family: str, folder: Path, dtype: str, strategies: list[str], rank: int) -> dict:
    """What is said of each strategy where the heads of the vision encoder are split."""
    towers = (re.sub(r"\d+", "*", name) for name, _ in load(family, folder, DTYPE[dtype])[0].model.named_modules())
    kinds = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "out_proj": "rowwise"}
    plan = {f"model.{x}": kinds[x.split(".")[-1]] for x in towers if "tower" in x and x.split(".")[-1] in kinds}
    model, _ = load(family, folder, DTYPE[dtype], tp_plan=plan)
    return {(family, strategy): _error(lambda name=strategy: vtc.patch(model, name)) for strategy in strategies}


def fsdp(family: str, folder: Path, dtype: str, strategies: list[str], rank: int) -> dict:
    """How far the logits of each rank's own prompt are from those of a whole model, its layers under FSDP2."""
    from torch.distributed.fsdp import fully_shard

    found = {}
    for strategy in strategies:
        model, _ = load(family, folder, DTYPE[dtype])
        inputs = FAMILIES[family].tiny_inputs(model, (1, 1), seed=rank)
        inputs = {k: v.to(DTYPE[dtype]) if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad():
            with vtc.patched(model, strategy):
                expected = model(**inputs).logits
            for layer in [*model.model.language_model.layers, model]:
                fully_shard(layer)
            with vtc.patched(model, strategy):
                logits = model(**inputs).logits
        found[family, strategy] = float((logits - expected).abs().max())
    return found


def _error(call: Callable) -> str:
    try:
        call()
    except vtc.VtcError as error:
        return f"{type(error).__name__}: {error}"
    return ""


MODES = {mode.__name__: mode for mode in (plain, apart, astray, unknown, split_encoder, fsdp)}


def _work(rank: int, folder: Path, cells: list[tuple]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found = {(mode, family): MODES[mode](family, folder, dtype, names, rank) for mode, family, dtype, names in cells}
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(folder: Path, cells: list[tuple[str, str, str, list[str]]]) -> list[dict]:
    """What each rank found, by mode and family. cells: mode, family, dtype and strategies; saved by `save`."""
    mp.spawn(_work, (folder, cells), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]
