"""Ways of generating on a patched model: sampling, beams, streamers, embeddings, budgets' scopes."""

import inspect

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import vtc
from tests.helpers import by_hand, family_of, forward, generate, inputs_of, model_of, split, spy
from tests.helpers_decoder import on
from vtc.engine.prefill import Tokens, move
from vtc.patches import FAMILIES

pytestmark = pytest.mark.product

families = pytest.mark.parametrize("case", vtc.families())
renumbered = pytest.mark.parametrize("positions", ["keep", "compact"])


class Collector(BaseStreamer):
    """Remembers what a streamer is given."""

    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        """One prompt, or one step."""
        self.values.append(value.clone())

    def end(self):
        """The generation is over."""
        self.ended = True


@pytest.mark.parametrize("strategy", ["hiprune", "fastv", "transprune", "visiondrop"])
@families
@renumbered
def test_sampling_equals_a_manual_loop(strategy, case, positions):
    """With one seed, generate(do_sample=True) and a loop over forward() draw the same tokens."""
    model, inputs = model_of(case), inputs_of(case)

    def draw(logits):
        logits = logits.float().clone()
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        return torch.multinomial(logits.softmax(-1), 1)

    with on(model, strategy, positions=positions):
        torch.manual_seed(3)
        sampled = generate(model, inputs, 8, do_sample=True, top_k=0, top_p=1.0, temperature=1.0).tokens
        torch.manual_seed(3)
        looped = by_hand(model, inputs, 8, draw)
        torch.manual_seed(4)
        other = generate(model, inputs, 8, do_sample=True, top_k=0, top_p=1.0, temperature=1.0).tokens
    assert torch.equal(sampled, looped)
    assert not torch.equal(sampled, other)


def beams(model, inputs, **options):
    """Beam search over three beams."""
    return generate(model, inputs, 6, num_beams=3, **options).tokens


def beams_see_their_images(model, inputs):
    """Whether the first step of each beam has the logits that its prompt has without beams."""
    greedy = generate(model, inputs, 1).logits[0].repeat_interleave(3, 0)
    return torch.allclose(generate(model, inputs, 1, num_beams=3).logits[0], greedy, atol=1e-9, rtol=0)


@families
@renumbered
def test_beam_search_equals_each_prompt_alone(case, positions):
    """Beams of a batch are the beams of each prompt, also when several are returned."""
    model, inputs = model_of(case), inputs_of(case)
    if not beams_see_their_images(model, inputs):
        pytest.skip("this transformers repeats the images of a prompt one by one: the stock model's beams mix them up")
    with vtc.patched(model, "hiprune", keep=0.3, positions=positions):
        together = beams(model, inputs, num_return_sequences=2)
        alone = [beams(model, one, num_return_sequences=2) for one in split(inputs)]
    assert together.shape == (6, 6)
    assert torch.equal(together, torch.cat(alone))


@families
def test_beam_search_with_one_image_each(case):
    """As above where every supported transformers can do it."""
    model, images = model_of(case), (1, 1)
    inputs = inputs_of(case, images=images)
    with vtc.patched(model, "hiprune", keep=0.3):
        together = beams(model, inputs)
        alone = [beams(model, one) for one in split(inputs, images)]
    assert torch.equal(together, torch.cat(alone))


@families
def test_return_sequences_of_sampling(case):
    """num_return_sequences without beams: each copy draws from the same distribution as the prompt itself."""
    model, inputs = model_of(case), inputs_of(case, images=(1,))
    if not beams_see_their_images(model, inputs):
        pytest.skip("this transformers repeats the crops of a prompt one by one: the stock model's copies mix them up")
    with vtc.patched(model, "hiprune", keep=0.3):
        one = generate(model, inputs, 1)
        many = generate(model, inputs, 1, do_sample=True, num_return_sequences=4)
    torch.testing.assert_close(many.logits, one.logits.expand(-1, 4, -1), atol=1e-9, rtol=0)


@families
def test_streamer_sees_the_whole_prompt_and_every_token(case):
    """The ids given to a streamer and returned by generate() are not shortened."""
    model, inputs, streamer = model_of(case), inputs_of(case, images=(2,)), Collector()
    with vtc.patched(model, "uniform", keep=0.3):
        out = generate(model, inputs, 5, streamer=streamer)
    assert torch.equal(streamer.values[0], inputs["input_ids"])
    assert torch.equal(torch.cat(streamer.values[1:])[None], out.tokens)
    assert torch.equal(out.output.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert streamer.ended


@families
@renumbered
def test_inputs_embeds(case, positions):
    """Embeddings with placeholders in place of ids, forward and generate, give what the ids give with the same
    positions; where generate() numbers both alike, to the last token."""
    model, inputs = model_of(case), inputs_of(case)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    bare = {k: v for k, v in inputs.items() if k != "input_ids"}
    written_too = "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters
    with spy(model) as seen:
        forward(model, inputs)
        if written_too:
            generate(model, {**bare, "inputs_embeds": embeds}, 1)
    where, counted = ({"position_ids": one["position_ids"]} for one in (seen[0], seen[-1]))
    with vtc.patched(model, "hiprune", keep=0.3, positions=positions), torch.no_grad():
        by_ids = model(**inputs, **where).logits
        assert torch.equal(model(inputs_embeds=embeds, **bare, **where).logits, by_ids)
        if not written_too:
            pytest.skip("the forward holds; the stock generate() of this family takes no inputs_embeds")
        written = generate(model, inputs, 6)
        same = generate(model, {**bare, "inputs_embeds": embeds}, 6)
        torch.testing.assert_close(same.logits[0], model(**inputs, **counted).logits[:, -1], rtol=0, atol=1e-9)
    if not FAMILIES[family_of(case)].mrope:
        assert torch.equal(same.tokens, written.tokens)


@families
@renumbered
def test_forward_of_many_last_tokens(case, positions):
    """logits_to_keep as a number takes the last columns of the pruned prompt; as places, in any order, the text that
    stands there in the unpruned one."""
    model, inputs = model_of(case), inputs_of(case)
    length = inputs["input_ids"].shape[1]
    with vtc.patched(model, "uniform", keep=0.3, positions=positions):
        every = forward(model, inputs).logits
        for places in (torch.tensor([length - 1, length - 3]), torch.tensor([-1, length - 3])):
            found = forward(model, inputs, logits_to_keep=places).logits
            torch.testing.assert_close(found, every[:, [-1, -3]], atol=1e-12, rtol=0)
        torch.testing.assert_close(forward(model, inputs, logits_to_keep=3).logits, every[:, -3:], atol=1e-12, rtol=0)


SCOPES = ["per_image", "per_request", "per_tile"]


@families
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("keep", [0.37, 24])
def test_scopes(case, scope, keep):
    """Every scope with several images of different sizes: the counts by hand, and generation goes on."""
    model, inputs = model_of(case), inputs_of(case, images=(3, 1))
    with vtc.patched(model, "uniform", keep=keep, scope=scope, rounding="ceil"):
        generate(model, inputs, 3)
        images = vtc.report(model).images
    after = [[i.after for i in images if i.prompt == b] for b in (0, 1)]
    if keep == 24 and scope == "per_request":
        assert [sum(counts) for counts in after] == [24, 24]
    elif keep == 24:
        # LLaVA-NeXT: crops of 36 tokens, of which an image has 5 or 3; the first ones have the remainder.
        assert after == [[min(24, i.before) for i in images if i.prompt == b] for b in (0, 1)]
    elif not FAMILIES[family_of(case)].tiled:
        assert after == [[-(-37 * i.before // 100) for i in images if i.prompt == b] for b in (0, 1)]
    else:
        # The tiles' tokens without the padding of their crop.
        assert all(0.37 * (i.before - 12) <= i.after < 0.37 * i.before + 5 for i in images)


@pytest.mark.parametrize("rows", [(), (3,), (4,)], ids=["one", "axes", "text-and-axes"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_compact_positions(side, rows):
    """Every row counts on from the first kept token's number, padding is 0 and is followed by nothing."""
    given = torch.stack([torch.arange(5, 25), torch.arange(7, 27)]).expand(*rows, 2, 20)
    index, valid = torch.tensor([[1, 4, 9, 12], [2, 6, 8, 8]]), torch.tensor([[True] * 4, [True] * 3 + [False]])
    expected = torch.tensor([[6, 7, 8, 9], [9, 10, 11, 0]])
    if side == "left":
        index[1], valid[1] = torch.tensor([2, 2, 6, 8]), valid[1].flip(0)
        expected[1] = expected[1].roll(1)
    moved = move(Tokens(given, None, torch.tensor([25, 27])), index, valid, "compact")
    assert torch.equal(moved.positions, expected.expand(*rows, -1, -1))
    assert moved.following.tolist() == [10, 12]
    assert torch.equal(moved.valid, valid)
