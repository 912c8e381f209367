"""Ways of running a model, each tried on a patched one: what it gives is compared with plain generation, or the reason
why it gives nothing is noted. The table in docs/running.md is made of that (`python -m tests.test_ways`)."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import CompileConfig, DynamicCache, StaticCache

import vtc
from tests.helpers import build, forward, generate, inputs_of, patched
from vtc.core.errors import VtcError

FILE = Path(__file__).parent / "fixtures" / "ways.json"
SITES = {  # a strategy for each site, and one that changes attention
    "projector": "hiprune", "inside the language model": "transprune", "inside the encoder": "tome",
    "changing attention": "var",
}  # fmt: skip
STEPS, END = 6, {"eos_token_id": 2}
YES, STOCK, NONE = "yes", "stock", "none"  # the same ids; the stock model itself cannot; the family has no such site


def of(model, inputs: dict, **options) -> Tensor:
    """The ids [B, T] that generate() writes, greedy unless the options say otherwise."""
    return generate(model, inputs, STEPS, **END, **options).tokens


def beams(model, inputs: dict) -> Tensor:
    """One prompt with three beams, found again by beams over a cache that grows and one that does not."""
    first = of(model, inputs, num_beams=3)
    assert torch.equal(first, of(model, inputs, num_beams=3, cache_implementation="static"))
    return of(model, inputs)


def compiled(model, inputs: dict) -> Tensor:
    """Steps compiled by generate() itself."""
    config = CompileConfig(backend="eager")
    config.mode, config._compile_all_devices = None, True
    try:
        return of(model, inputs, cache_implementation="static", compile_config=config)
    finally:
        torch.compiler.reset()


def turn(model, inputs: dict, cache, more: dict) -> Tensor:
    """What is written after a first answer on one cache, `more` behind it."""
    first = of(model, inputs, past_key_values=cache)
    ids = torch.cat([inputs["input_ids"], first, more["input_ids"]], 1)
    mask = torch.cat([inputs["attention_mask"], ids.new_ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1])], 1)
    rest = {k: x for k, x in more.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **rest,
            past_key_values=cache,
            max_new_tokens=STEPS,
            do_sample=False,
            **END,
        )
    return out[:, ids.shape[1] :]


def cache_of(model, kind: str):
    text = model.config.get_text_config()
    return DynamicCache(config=text) if kind == "dynamic" else StaticCache(config=text, max_cache_len=600)


def later_text(model, inputs: dict) -> tuple[Tensor, Tensor]:
    """A second turn of text, on a cache that grows and on one that does not."""
    words = {"input_ids": torch.arange(30, 37).expand(len(inputs["input_ids"]), -1)}
    return tuple(turn(model, inputs, cache_of(model, kind), words) for kind in ("static", "dynamic"))


def later_image(model, inputs: dict) -> tuple[Tensor, Tensor]:
    """A second turn with a picture."""
    return tuple(turn(model, inputs, cache_of(model, kind), inputs) for kind in ("static", "dynamic"))


def lookup(model, inputs: dict) -> Tensor:
    return of(model, inputs, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)


def assisted(model, inputs: dict) -> Tensor:
    plain = build(_case(model))
    return of(model, inputs, assistant_model=plain)


def chunked(model, inputs: dict) -> Tensor:
    return of(model, inputs, prefill_chunk_size=16)


def backend(name: str) -> Callable:
    def run(model, inputs: dict) -> Tensor:
        before = model.config._attn_implementation
        model.set_attn_implementation(name)
        try:
            return of(model, inputs)
        finally:
            model.set_attn_implementation(before)

    return run


def labels(model, inputs: dict) -> Tensor:
    """The loss of a forward with labels, and its gradient, which reaches the encoder's features."""
    with torch.enable_grad():
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
    model.zero_grad(set_to_none=True)
    assert torch.isfinite(loss)
    return of(model, inputs)


def logits_to_keep(model, inputs: dict) -> tuple[Tensor, Tensor]:
    """The last two rows by number and by a tensor of places."""
    whole = forward(model, inputs).logits
    number = forward(model, inputs, logits_to_keep=2).logits
    length = inputs["input_ids"].shape[1]
    places = torch.arange(length - 2, length)
    torch.testing.assert_close(number, whole[:, -2:], rtol=0, atol=1e-9)
    return forward(model, inputs, logits_to_keep=places).logits, number


def drafted(model, inputs: dict) -> tuple[Tensor, Tensor]:
    """vtc.draft of the model, patched as it is."""
    draft = vtc.draft(model, "divprune", keep=0.2)
    out = draft.generate(**inputs, max_new_tokens=STEPS, do_sample=False, **END)
    return out[:, inputs["input_ids"].shape[1] :], of(model, inputs)


WAYS: dict[str, Callable] = {
    "beams": beams,
    "static cache": functools.partial(of, cache_implementation="static"),
    "static cache, steps compiled by `generate`": compiled,
    "a later turn of text on one cache, dynamic or static": later_text,
    "a later turn with an image": later_image,
    "prompt lookup": lookup,
    "assisted generation": assisted,
    "`vtc.draft`": drafted,
    "chunked prefill (`prefill_chunk_size`)": chunked,
    "labels and gradients": labels,
    "`logits_to_keep` as a number and as a tensor": logits_to_keep,
    "eager attention": backend("eager"),
}


def _case(model) -> str:
    from vtc.patching import find_family

    return find_family(model).name


def verdict(case: str, way: str, site: str) -> str:
    """YES; NONE; STOCK and the stock model's error; or the line that refuses. Anything else is a failure, and is
    raised."""
    model, inputs, run = build(case), inputs_of(case, images=(1,)), WAYS[way]
    try:
        with patched(model, SITES[site]):
            pass
    except VtcError:
        return NONE
    try:
        run(model, inputs)
    except VtcError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{STOCK}: {type(error).__name__}: {str(error).splitlines()[0]}"[:200]
    finally:
        torch.compiler.reset()
    try:
        with patched(model, SITES[site]):
            expected = of(model, inputs)
            found = run(model, inputs)
    except VtcError as error:
        return f"refused: {error}"
    found, expected = found if isinstance(found, tuple) else (found, expected)
    if found.is_floating_point():
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert torch.equal(
        found.argmax(-1) if found.is_floating_point() else found,
        expected.argmax(-1) if found.is_floating_point() else expected,
    )
    return YES


def read() -> dict[str, dict[str, dict[str, str]]]:
    """The verdicts of the last whole run: way, site, family."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def table() -> str:
    """A row for each way, a column for each site; families that have the site. Numbers lead to the notes below."""
    notes: dict[str, int] = {}
    rows = [f"| | {' | '.join(SITES)} |", "|---|" + "---|" * len(SITES)]
    for way, sites in read().items():
        cells = []
        for families in sites.values():
            reasons: dict[str, list[str]] = {}
            for family, said in families.items():
                if said != NONE:
                    reasons.setdefault(said.split(", such as")[0], []).append(family)
            marks = [
                f"{', '.join(names) if len(reasons) > 1 else 'none'} [{notes.setdefault(said, len(notes) + 1)}]"
                for said, names in reasons.items() if said != YES
            ]  # fmt: skip
            yes = ["yes"] if YES in reasons else []
            cells.append("; not ".join([*yes, *marks]) if yes else "; ".join(marks))
        rows.append(f"| {way} | {' | '.join(cells)} |")
    said = [f"{number}. {_escaped(text)}" for text, number in notes.items()]
    return "\n".join([*rows, "", *said])


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*").replace("|", r"\|")
