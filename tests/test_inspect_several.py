"""A token that flows into several slots: in the report, in the record of `vtc inspect`, and in what it draws."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vtc
from tests.helpers import forward, inputs_of, model_of, patched, refused, spy
from vtc.eval.inspect.draw import draw
from vtc.eval.inspect.page import page
from vtc.eval.inspect.paint import enlarge, paint
from vtc.eval.inspect.record import DROPPED, KEPT, MERGED, outcomes, read
from vtc.eval.inspect.style import group_color
from vtc.eval.inspect.write import write
from vtc.patches._tiny import IMAGE_TOKEN
from vtc.strategies.recoverable import Recoverable

WHITE = Image.new("RGB", (40, 20), (255, 255, 255))
STEPS = [
    {"stage": "one", "layer": None, "before": 6, "after": 3, "kept": [0, 1, 5], "merged_into": [0, 1, 0, 1, -1, 5],
     "also_into": [[2, 1], [2, 5], [5, 0]]},
    {"stage": "two", "layer": 2, "before": 3, "after": 2, "kept": [0, 5], "merged_into": [0, 5, -1, -1, -1, 5],
     "also_into": [[1, 0]]},
    {"stage": "three", "layer": 4, "before": 2, "after": 1, "kept": [5], "merged_into": None},
]  # fmt: skip
COPY = json.dumps(STEPS)


def drawn_record() -> dict:
    """Six tokens, three by two, under one run."""
    boxes = [[x * 40 / 3, y * 10, (x + 1) * 40 / 3, (y + 1) * 10] for y in (0, 1) for x in (0, 1, 2)]
    run = {"strategy": "mine", "keep": None, "average": 2.0, "answer": "red", "notes": [], "steps": json.loads(COPY)}
    return {
        "schema": "vtc.inspect/1", "created": "now", "versions": {}, "question": "?", "reference": None, "tokens": 6,
        "model": {"name": None, "family": "llava", "layers": 8}, "full": {"answer": "red"}, "runs": [run],
        "picture": {"source": None, "width": 40, "height": 20},
        "views": [{"name": "picture", "offsets": list(range(6)), "boxes": boxes, "crops": [[0, 0, 40, 20]]}],
    }  # fmt: skip


@pytest.mark.parametrize("case", ["llava", "llava_next"])
def test_a_report_names_every_flow(case, monkeypatch):
    """`merged_into` and `also_into` are the Selection's flows in places of the image, [CLS] and doubles left out."""
    chosen, select = [], Recoverable.select

    def spied(self, context, encoder):
        chosen.append(select(self, context, encoder))
        return chosen[-1]

    monkeypatch.setattr(Recoverable, "select", spied)
    model, inputs = model_of(case), inputs_of(case, (1,))
    with patched(model, {"stages": [{"method": "recoverable"}]}, keep=0.4):
        forward(model, inputs)
        report = vtc.report(model)
    (image,) = report.images
    wanted, first = set(), image.merged_into(0)
    flows = iter(image.steps[0].flows)
    for selection in chosen:
        for b in range(len(selection.keep)):
            flow, keep, extra = next(flows), selection.keep[b].tolist(), selection.merge.unit(b).extra
            for source, slot in zip(extra.source[0].tolist(), extra.target[0].tolist()):
                if slot >= 0 and source >= 1:
                    wanted.add((int(flow.offsets[source - 1]), int(flow.offsets[keep[slot]])))
    wanted = sorted(pair for pair in wanted if int(first[pair[0]]) != pair[1])
    found = image.also_into(0)
    assert found.tolist() == [list(pair) for pair in wanted]
    assert wanted
    assert set(found[:, 1].tolist()) <= set(image.kept.tolist())
    (stage,) = report.to_dict()["images"][0]["stages"]
    assert stage["also_into"] == found.tolist()


def test_several_flows_give_what_the_language_model_receives():
    """apet on projected features: each merged slot lies in the span of the tokens that the report names for it."""
    model, inputs = model_of("llava"), inputs_of("llava", (1,))
    strategy = {"stages": [{"method": "apet_projector", "projected": True, "own_share": 0.5}]}
    with spy(model) as plain:
        forward(model, inputs)
    with patched(model, strategy, keep=0.4), spy(model) as seen:
        forward(model, inputs)
        image = vtc.report(model).images[0]
    first = int((inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[0])
    full, pruned = plain[0]["inputs_embeds"][0][first:], seen[0]["inputs_embeds"][0][first:]
    into, also = image.merged_into(0), image.also_into(0)
    assert len(also)
    for slot, place in enumerate(image.kept.tolist()):
        parts = {*(into == place).nonzero().flatten().tolist(), *also[also[:, 1] == place, 0].tolist()}
        basis = full[sorted(parts)].T
        near = basis @ torch.linalg.lstsq(basis, pruned[slot][:, None]).solution
        torch.testing.assert_close(near[:, 0], pruned[slot], rtol=0, atol=1e-9)


def test_methods_of_one_flow_say_nothing_more():
    """Empty, and not in plain data."""
    model, inputs = model_of("llava"), inputs_of("llava", (1,))
    for strategy in ("pool", "hiprune"):
        with patched(model, strategy, keep=0.25):
            forward(model, inputs)
            report = vtc.report(model)
        assert report.images[0].also_into(0).shape == (0, 2)
        assert "also_into" not in report.to_dict()["images"][0]["stages"][0]


def test_outcomes_follow_every_flow():
    """By hand: a token in three survivors, a survivor in another one, and what becomes of them later."""
    first, second, third = outcomes({"steps": STEPS}, 6)
    assert first.also == {2: (1, 5), 5: (0,)}
    assert first.state.tolist() == [KEPT, KEPT, MERGED, MERGED, DROPPED, KEPT]
    assert (first.merged, first.dropped, first.targets, first.several) == (2, 1, 3, 2)
    assert set(first.ranks) == {0, 1, 5}
    # 1 goes into 5 and 0 now, and takes along what it holds: 2 (also in 0 and 5 itself) and 3.
    assert second.into.tolist() == [0, 5, 0, 5, -1, 5]
    assert second.also == {1: (0,), 2: (5,), 3: (0,), 5: (0,)}
    assert (second.merged, second.targets, second.several) == (1, 2, 1)
    assert third.into.tolist() == [-1, 5, -1, 5, -1, 5]
    assert third.also == {2: (5,)}
    assert third.several == 0


def test_each_further_flow_is_an_inner_line():
    """In the colour of the token that it flows into, within the token's own box; nowhere else."""
    record = drawn_record()
    (view,), (first, _, _) = record["views"], outcomes(record["runs"][0], 6)
    large = enlarge(WHITE, 520)  # a line is two pixels
    canvas = paint(large, record, view, first)
    left, top, right, _ = np.rint(np.array(view["boxes"][2]) * 13).astype(int)
    middle = (left + right) // 2
    colors = [np.array(group_color(first.ranks[place])) for place in (1, 5)]
    assert (canvas[top + 5, middle] == colors[0]).all()
    assert (canvas[top + 9, middle] == colors[1]).all()
    plain = paint(large, record, view, outcomes({"steps": [{**STEPS[0], "also_into": []}]}, 6)[0])
    left, top, right, bottom = np.rint(np.array(view["boxes"][3]) * 13).astype(int)
    assert (canvas[top:bottom, left:right] == plain[top:bottom, left:right]).all()
    text = page(record, WHITE)
    assert "2 into several" in text
    assert "thin inner line" in text
    assert text.count('stroke-width="1"') == 3 + 4 + 1 + 1  # those of the three steps, and the legend's
    words = [word.get_text() for word in draw(record, WHITE).texts]
    assert "thin inner line: flows into that one, too" in words


def test_records_with_and_without_further_flows(tmp_path):
    """What is written is read again; places beyond the picture are refused; older records lack the key."""
    record = drawn_record()
    write(record, WHITE, tmp_path)
    assert read(tmp_path)[0] == record
    del record["runs"][0]["steps"][0]["also_into"]
    write(record, WHITE, tmp_path)
    assert read(tmp_path)[0] == record
    for pairs in ([[2, 6]], [[2]], [2], None):
        record["runs"][0]["steps"][0]["also_into"] = pairs
        (tmp_path / "selection.json").write_text(json.dumps(record))
        refused(lambda: read(tmp_path), "also_into")
