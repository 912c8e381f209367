"""What stages inside the language model are shown, against plain definitions on the oracle's hidden states."""

import pytest
import torch

import vtc
from tests.helpers import CASES, HYBRIDS, forward, inputs_of, model_of, split
from tests.helpers_decoder import drops_of, heads_of, resolved, truth, turned_ones
from tests.helpers_oracle import layouts
from vtc.core.selection import Selection
from vtc.core.signals import DecoderAttention, DecoderKeys, Hidden, Transition, UnturnedAttention
from vtc.kernels.topk import topk_sorted
from vtc.patching import find_family
from vtc.strategies import METHODS

LAYERS = (2, 3, 4)
QUERIES = ("last", "after", "raters", "image")


def signals_at(layer):
    """Every kind of signal that a drop before `layer` may ask for."""
    ahead = [DecoderAttention(layer, queries) for queries in QUERIES]
    running = [DecoderAttention(layer - 1, queries, ahead=False) for queries in QUERIES]
    running += [UnturnedAttention(layer - 1, heads) for heads in (0.2, 0.5)]
    return (*ahead, *running, DecoderKeys(layer), Hidden(), *(Transition(i) for i in range(layer)))


@pytest.fixture
def shown(monkeypatch):
    """What was shown at each step, with pyramiddrop's steps: a list of contexts. The choice itself is pyramiddrop's."""
    contexts, method = [], METHODS["pyramiddrop"]

    def select(self, context, decoder):
        contexts.append(context)
        return Selection(topk_sorted(context[DecoderAttention(LAYERS[context.step], "last")], context.count))

    monkeypatch.setattr(method, "needs", lambda self, decoder, step: signals_at(LAYERS[step]))
    monkeypatch.setattr(method, "select", select)
    return contexts


def by_image(contexts, report) -> dict:
    """(prompt, image, step) -> its signals: images with equal counts are shown together, in their order."""
    rest = [(context, {key: list(x) for key, x in context.signals.items()}) for context in contexts]
    found = {}
    for number in range(len(LAYERS)):
        for image in report.images:
            step = image.steps[number]
            (mine,) = [x for c, x in rest if (c.step, c.tokens, c.count) == (number, step.before, step.after)]
            found[image.prompt, image.image, number] = {key: rows.pop(0) for key, rows in mine.items()}
    return found


class Definitions:
    """The signals of one prompt by their definitions, recorded while the oracle runs."""

    def __init__(self, model, single, drops):
        self.entering, self.inside, self.modules = {}, {}, {}
        self.language = find_family(model).language_model
        self.is_image = single["input_ids"][0] == model.config.image_token_id
        self.runs = self.is_image.nonzero().flatten().split([layout.tokens for layout in layouts(model, single)])
        hooks = [
            module.register_forward_hook(self._module(index, name), with_kwargs=True)
            for index, layer in enumerate(self.language.layers)
            for name, module in (("attention", layer.self_attn), ("mlp", layer.mlp))
        ]
        for index, layer in enumerate(self.language.layers):
            if hasattr(layer, "post_mlp_layernorm"):  # GLM: what is added comes from norms behind the modules
                hooks.append(layer.post_self_attn_layernorm.register_forward_hook(self._added(index, "attention")))
                hooks.append(layer.post_mlp_layernorm.register_forward_hook(self._added(index, "mlp")))
        truth(model, single, drops, watch=self._watch)
        for hook in hooks:
            hook.remove()

    def _watch(self, index, hidden, view, hidden_after, view_after):
        self.entering[index], self.inside[index] = (hidden, view), (hidden_after, view_after)

    def _added(self, index, name):
        def hook(module, args, output):
            self.modules[index, name] = self.modules[index, name][0], output[0]

        return hook

    def _module(self, index, name):
        def hook(module, args, kwargs, output):
            given = args[0] if args else kwargs["hidden_states"]
            self.modules[index, name] = given[0], (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    def places(self, image, layer):
        """Places of an image's tokens that are about to enter a layer, as they stand in the sequence."""
        mine = set(self.runs[image].tolist())
        return [place for place in self.entering[layer][1].order.tolist() if place in mine]

    def signal(self, signal, image, layer):
        """The signal as the drop before `layer` is to see it, for the tokens left of an image."""
        places = self.places(image, layer)
        if isinstance(signal, Transition):
            return self.transition(signal.layer)[places]
        if isinstance(signal, Hidden):
            return self.entering[layer][0][0, places]
        block = self.language.layers[signal.layer]
        if isinstance(signal, UnturnedAttention):
            return self.unturned(block, *self.inside[signal.layer], image, signal.heads)[places]
        hidden, view = self.entering[layer] if getattr(signal, "ahead", True) else self.inside[signal.layer]
        if isinstance(signal, DecoderKeys):
            return heads_of(self.language, block, "k_proj", hidden, view).mean(1)[places]
        return self.attention(block, hidden, view, signal.queries, image)[places]

    def unturned(self, block, hidden, view, image, share):
        """Attention of raters over what two turned vectors of ones give, of the heads with the largest sums [L]."""
        whole = self.attention(block, hidden, view, None, image).detach()
        ones = turned_ones(self.language, hidden, view).detach()
        own = [place for place in view.order.tolist() if place in set(self.runs[image].tolist())]
        rows, at = self.rows("raters", view.order, image), {p: i for i, p in enumerate(view.order.tolist())}
        rows = [place for place, chosen in zip(view.order.tolist(), rows.tolist(), strict=True) if chosen]
        found = []
        for head in whole:
            received = dict.fromkeys(own, 0.0)
            for row in rows:
                for place in own:
                    bias = float(ones[row] @ ones[place]) / ones.shape[1] ** 0.5
                    received[place] += float(head[at[row], at[place]]) / bias / len(rows)
            found.append(received)
        best = sorted(found, key=lambda one: -sum(one.values()))[: max(1, round(share * len(found)))]
        out = torch.full((len(self.is_image),), torch.nan, dtype=torch.float64)
        for place in own:
            out[place] = sum(one[place] for one in best) / len(best)
        return out

    def rows(self, queries, order, image):
        """Which columns are the chosen queries."""
        text, own = ~self.is_image[order], torch.isin(order, self.runs[image])
        behind = text & (order > self.runs[image].max())
        last = torch.arange(len(text)) == len(text) - 1
        rows = {"last": last, "after": behind if behind.any() else last, "image": own}
        return self.raters(rows["after"], order, image) if queries == "raters" else rows[queries]

    def attention(self, block, hidden, view, queries, image):
        """Received attention [L] from the whole softmax matrix of every head; without queries that itself [H, K, K]."""
        q, k = (heads_of(self.language, block, name, hidden, view)[view.order] for name in ("q_proj", "k_proj"))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[-1] ** 0.5
        ahead = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(ahead, -torch.inf).softmax(-1)
        if queries is None:
            return weights
        weights, rows = weights.mean(0), self.rows(queries, view.order, image)
        out = torch.full((len(self.is_image),), torch.nan, dtype=torch.float64)
        out[view.order] = weights[rows].mean(0)
        return out

    def raters(self, after, order, image):
        """Of the rows `after`, those of text tokens that the image's tokens agree with above average at layer 0."""
        entered = self.entering[0][0][0]
        text = order[after]
        agree = (entered[self.runs[image]] @ entered[text].T).softmax(1).mean(0)
        chosen = text[agree > agree.mean()] if len(text) > 1 else text
        return torch.isin(order, chosen)

    def transition(self, layer):
        """Length ratio times softmax of one minus cosine, of the attention plus of the MLP [L]."""
        order = self.inside[layer][1].order
        out = torch.full((len(self.is_image),), torch.nan, dtype=torch.float64)
        out[order] = 0
        for name in ("attention", "mlp"):
            x, y = (states[order] for states in self.modules[layer, name])
            ratio = y.norm(dim=-1) / x.norm(dim=-1)
            out[order] += ratio * (1 - torch.cosine_similarity(x, y, dim=-1, eps=1e-8)).softmax(-1)
        return out


def compare(model, inputs, images, case, contexts, **options):
    """Each signal of each image at each step is what its definition gives."""
    contexts.clear()
    with vtc.patched(model, "pyramiddrop", **options):
        forward(model, inputs)
        report = vtc.report(model)
    found, config = by_image(contexts, report), resolved("pyramiddrop", case, **options)
    assert {step.layer for image in report.images for step in image.steps} == set(LAYERS)
    for b, single in enumerate(split(inputs, images)):
        if not images[b]:
            continue
        expected = Definitions(model, single, drops_of(report, b, config))
        for image in range(images[b]):
            for number, layer in enumerate(LAYERS):
                for signal, value in found[b, image, number].items():
                    plain = expected.signal(signal, image, layer)
                    torch.testing.assert_close(
                        value.double(), plain, atol=1e-8, rtol=1e-5, msg=lambda m, s=signal: f"{s}: {m}"
                    )


@pytest.mark.parametrize("case", [case for case in CASES if case not in HYBRIDS])  # where steps move
@pytest.mark.parametrize("padding", ["left", "right"])
def test_signals_in_a_padded_batch(shown, case, padding):
    """Three prompts with one, two and one image, padded."""
    compare(model_of(case), inputs_of(case, padding=padding), (1, 2, 1), case, shown)


@pytest.mark.full
@pytest.mark.parametrize("case", [case for case in vtc.families() if case not in HYBRIDS])
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_signals_in_a_mixed_batch(shown, case, positions):
    """A prompt without images between others, and both ways of numbering."""
    inputs = inputs_of(case, images=(3, 0, 1))
    compare(model_of(case), inputs, (3, 0, 1), case, shown, positions=positions)


@pytest.mark.parametrize("case", ["llava", "qwen2_vl"])
def test_signals_where_no_text_follows_the_image(shown, case):
    """The prompt ends with its image: the last token then stands for the text after it."""
    model, inputs = model_of(case), inputs_of(case, images=(1,))
    end = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero().max()) + 1
    cut = {
        key: x[:, :end] if key in ("input_ids", "attention_mask", "mm_token_type_ids") else x
        for key, x in inputs.items()
    }
    compare(model, cut, (1,), case, shown)
