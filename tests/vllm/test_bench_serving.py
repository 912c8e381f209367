"""Measuring serving, for real and as small as it gets."""

import pytest

from vtc.bench.serving.ratios import STOCK
from vtc.bench.serving.throughput import ServingOptions, run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What was wanted, and the cells of the stock class and of hiprune, one and two requests at once."""
    wanted = ServingOptions(
        tmp_path_factory.mktemp("serving"), ("hiprune",), concurrency=(1, 2), preset="tiny", requests=2, rounds=1,
        new_tokens=4,
    )  # fmt: skip
    return wanted, run(wanted)


def test_blocks_and_tokens(measured):
    """Exactly the KV blocks that the kept tokens need; every request was answered, none lost its blocks."""
    _, store = measured
    found = {(c["system"], c["concurrency"]): c for c in store.rows}
    assert len(found) == len(store.rows) == 4
    for (system, concurrency), row in found.items():
        visual = 576 if system == STOCK else 144
        assert row["prompt_tokens"] == 64 + visual
        assert row["blocks"] == concurrency * -(-(64 + visual + 3) // 32)  # the last token is never read again
        assert row["requests"] == 2 * concurrency
        assert not row["preempted"]
        assert 0 < row["encoder"] < row["cpu"]
        assert 0 < row["first"] <= row["whole"] <= row["seconds"]


def test_nothing_is_measured_twice(measured, monkeypatch):
    """The same command finds its cells and starts no engine."""
    wanted, store = measured
    monkeypatch.setattr("vtc.bench.serving.throughput._engines", None)
    assert run(wanted).rows == store.rows
