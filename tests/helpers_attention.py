"""The eager oracle for a stage that changes attention (var): whole matrices of every layer, row by row."""

from contextlib import contextmanager

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.helpers import IMAGE_TOKEN
from tests.helpers_decoder import truth
from tests.helpers_oracle import layouts
from vtc.patching import find_family

ORACLE, STEPS = "tests_whole_matrices", 4
LOW = {"tau": 1.5, "min_image_attention": 0.05, "min_nonsink_share": 0.3}


class Whole:
    """An attention function of whole matrices. stage: the knobs; ids [L]: the prompt's; end: the last place of its
    first image; hidden, order: of each layer, what enters it and the places that are left, as the oracle's `watch`
    tells them."""

    def __init__(self, stage, ids, end):
        self.stage, self.ids, self.end, self.hidden, self.order, self.changed = stage, ids, end, {}, {}, 0

    def watch(self, layer, before, view_before, hidden, view):
        self.hidden[layer], self.order[layer] = hidden[0], view.order

    def sinks(self, layer):
        """Sinks and visual tokens among the places that a layer holds."""
        hidden, order, n = self.hidden[layer], self.order[layer], len(self.ids)
        start = hidden[order[0]].abs()
        dims = start.sort(descending=True).indices[: self.stage.discovered]
        here = torch.zeros(len(hidden), dtype=torch.bool)
        here[order] = True
        rms = ((hidden**2).mean(-1) + 1e-6).sqrt()
        image = torch.zeros_like(here)
        image[:n] = self.ids == IMAGE_TOKEN
        return here & ((hidden[:, dims].abs() / rms[:, None]).max(-1).values >= self.stage.tau), here & image

    def __call__(self, module, query, key, value, attention_mask, scaling, **kwargs):
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        logits = query @ key.transpose(2, 3) * scaling
        if attention_mask is None:  # the stock pass that only gives the embeddings
            return value.transpose(1, 2), None
        attention, layer = (logits + attention_mask).softmax(-1), module.layer_idx
        if 2 <= layer < module.config.num_hidden_layers - 1:
            self.change(attention[0], *self.sinks(layer))
        return (attention @ value).transpose(1, 2), None

    def change(self, attention, sinks, visual):
        places = visual.nonzero().flatten()
        if not len(places):
            return
        whole = torch.arange(len(visual))
        image = torch.zeros_like(visual)
        image[: len(self.ids)] = self.ids == IMAGE_TOKEN
        rows = whole[(whole > self.end) & ~image]
        for head in attention:
            for row in rows.tolist():
                a = head[row].clone()
                bad, good = a[visual & sinks].sum(), a[visual & ~sinks].sum()
                share = bad / (bad + good + 1e-6 * visual.sum())
                if share > 1 - 0.3 or bad + good < 0.05 or good == 0:
                    continue
                self.changed += 1
                budget = 0.6 * a[sinks].sum()
                head[row, sinks] = 0.4 * a[sinks]
                head[row, visual & ~sinks] = a[visual & ~sinks] * (1 + budget / good)


@contextmanager
def whole_matrices(model, oracle):
    """The unpatched model's text layers with the oracle's attention."""
    config = find_family(model).language_model.config
    before, config._attn_implementation = config._attn_implementation, ORACLE
    ALL_ATTENTION_FUNCTIONS.register(ORACLE, oracle)
    try:
        yield
    finally:
        config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(ORACLE)


def expected(model, single, drops, config, entered, draft):
    """The oracle's answer for one prompt, and how many rows of heads it changed in the end."""
    ids = single["input_ids"][0]
    places = (ids == IMAGE_TOKEN).nonzero().flatten()
    end = int(places[layouts(model, single)[0].tokens - 1]) if len(places) else -1
    oracle = Whole(config.attention.stage, ids, end)
    with whole_matrices(model, oracle):
        return truth(model, single, drops, STEPS, entered, draft, oracle.watch), oracle.changed
