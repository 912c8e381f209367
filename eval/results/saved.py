"""The shapes of logs, runs, results and sweeps, with which they are checked when they are read again."""

from vtc.core.registry import current
from vtc.io.shapes import anything, flag, list_of, mapping_of, name, number, one_of, or_none, record, text, whole

SUMMARY_SCHEMA, RUN_SCHEMA, LOG_SCHEMA = "vtc.eval.results/3", "vtc.eval.run/3", "vtc.eval.samples/3"
SWEEP_SCHEMA = "vtc.sweep/1"
MOST_TOKENS = 10**9  # of a sample

_unknown_or = or_none(number())
_cost = or_none(number(0))
_tokens = or_none(number(0, MOST_TOKENS))


def _keep(value: object, where: str) -> int | float | None:
    if isinstance(value, float):
        return number(1e-9, 1)(value, where)
    return or_none(whole(1, MOST_TOKENS))(value, where)


FIGURE = record({"value": _unknown_or, "stderr": _cost}, {"ci95": or_none(list_of(number(), 2, 2))})
_flops = record({"before": _cost, "after": _cost, "ratio": _cost})
TASK = record(
    {
        "version": whole(), "dialect": text, "split": text, "data": anything, "prompt": anything,
        "max_new_tokens": whole(), "key": text, "ids": text, "n": whole(), "n_errors": whole(),
        "first_error": or_none(text), "primary": text, "scale": number(1e-9, 1e9), "figures": mapping_of(FIGURE),
        "categories": mapping_of(record({"n": whole(), "value": _unknown_or, "stderr": _cost})),
        "tokens": record(dict.fromkeys(("visual_before", "visual_average", "kept"), _tokens)),
        "prefill_flops": _flops, "paper_flops": _flops, "seconds": mapping_of(record({"median": _cost})),
    }
)  # fmt: skip


def _stage(value: object, where: str) -> dict:
    stage = mapping_of(anything)(value, where)
    return {**stage, "method": current(stage["method"])} if "method" in stage else stage


RESOLVED = or_none(record({}, {"stages": list_of(_stage)}))
METHOD = record(
    {"name": text, "kind": one_of("none", "downsample", "vtc"), "keep": _keep, "budget": or_none(text)},
    {"resolved": RESOLVED, "downsample": record({"mode": text, "meaning": text})},
)
MODEL = record({}, dict.fromkeys(("id", "type", "family", "digest"), or_none(text)))
RUN = record(
    {
        "schema": one_of(RUN_SCHEMA), "name": name, "created": text, "model": MODEL, "method": METHOD,
        "notes": list_of(text), "seeds": mapping_of(or_none(whole(-(2**63), 2**64))),
        "generation": record({"batch_size": whole(1)}), "kernels": or_none(text), "git": or_none(text),
        "versions": mapping_of(or_none(text)), "tasks": mapping_of(TASK, name),
    }
)  # fmt: skip

_gap = or_none(record({"value": _unknown_or}, {"stderr": _cost, "p": or_none(number(0, 1))}))
COMPARED = record(
    {},
    {
        "relative": _unknown_or, "relative_stderr": _cost, "difference": _gap, "loyalty": _cost,
        "differences": or_none(mapping_of(_gap)),
        "sensitive": or_none(record({"value": _unknown_or, "n": whole()})),
    },
)  # fmt: skip
SUMMARY = record(
    {"schema": one_of(SUMMARY_SCHEMA), "runs": list_of(RUN)}, {"comparison": mapping_of(mapping_of(COMPARED))}
)

_settings = {
    "strategy": text, "set": mapping_of(anything), "keep": _keep, "model": text, "tasks": list_of(text),
    "split": or_none(text), "seed": whole(),
}  # fmt: skip
_samples = {"samples": whole(), "fresh": whole(), "seconds": number(0)}
BEGUN = record({"params": record(_settings)}, {"finished": text, **_samples})
FINISHED = record({"params": record(_settings), "finished": text, **_samples})
ERROR = record({"error": text, "start": text})
_values = or_none(mapping_of(_unknown_or))
SWEEP = record(
    {
        "schema": one_of(SWEEP_SCHEMA),
        "cells": list_of(
            record(
                {"id": name, "role": text, "state": text},
                {"params": record({}, _settings), "error": or_none(text), "run": or_none(name)},
            )
        ),
    },
    {
        "name": text, "created": text, "versions": or_none(mapping_of(or_none(text))), "file": or_none(text),
        "objectives": or_none(
            list_of(record({"name": text}, dict.fromkeys(("figure", "task", "direction"), or_none(text))))
        ),
        "best": or_none(list_of(record({"objective": text, "cell": text}, {"yaml": or_none(text), "values": _values}))),
        "search": or_none(
            record(
                {
                    "sampler": text, "seed": anything,
                    "trials": list_of(
                        record({"number": whole(), "state": text}, {"cell": or_none(text), "values": _values})
                    ),
                },
                {"importance": or_none(mapping_of(mapping_of(number(0, 1.01))))},
            )
        ),
        "heldout": or_none(
            record(
                {"split": text},
                {
                    "objective": text, "best": text, "reference": text, "difference": _gap,
                    "search_split": _values, "heldout_split": _values, "holds": or_none(flag),
                },
            )
        ),
    },
)  # fmt: skip

HEADER = record({"schema": one_of(LOG_SCHEMA), "key": text, "identity": mapping_of(anything)})
IDENTITY = record(
    {
        "model": MODEL, "method": METHOD, "seed": whole(),
        "task": record({"name": name, "version": whole(), "dialect": text, "split": text, "data": anything}),
        "generation": record({"max_new_tokens": whole(), "batch_size": whole(1)}),
    }
)  # fmt: skip
_pair = list_of(_cost, 2, 2)
_counts = {
    **dict.fromkeys(("visual_before", "visual_after", "visual_average", "text_in", "tokens_out"), _tokens),
    "prefill_flops": _pair, "paper_flops": _pair,
}  # fmt: skip
_named = {"id": text, "group": text, "category": text}
_score = or_none(record({"correct": number()}))  # old logs may lack it
ANSWERED = record({**_named, "reference": anything, "text": text, "error": or_none(text), **_counts}, {"score": _score})
FAILED = record({**_named, "error": text, **_counts})
TIMES = record({"id": text, "batch": whole(1), "seconds": mapping_of(_cost)})


def row(value: object, where: str) -> dict:
    """A row of a sample log: an answer, or why there is none."""
    answered = isinstance(value, dict) and value.get("error") is None
    return (ANSWERED if answered else FAILED)(value, where)
