"""Conversations on one cache: later turns with and without images, prefixes, taken-back tokens, other ways to go on."""

import copy
import pickle
import threading

import pytest
import torch
from transformers import DynamicCache, StaticCache, TextIteratorStreamer

import vtc
from tests.helpers import (
    CHANGING,
    CLIPS,
    HYBRIDS,
    INSIDE,
    READERS,
    build,
    forward,
    generate,
    grow,
    inputs_of,
    kept_of,
    model_of,
    patched,
    proceed,
    refused,
    split,
    spy,
)
from tests.helpers_decoder import exact, on
from tests.helpers_oracle import unpruned
from tests.helpers_turns import Talk, parted, turns_of
from vtc.patches import FAMILIES

pytestmark = pytest.mark.product

NO_TURNS = [*HYBRIDS, *(name for name in FAMILIES if FAMILIES[name].block_types)]  # images of later turns are refused
families = pytest.mark.parametrize("case", [name for name in FAMILIES if name not in NO_TURNS])
every = pytest.mark.parametrize("strategy", [n for n in vtc.strategies() if n not in (*CHANGING, *CLIPS)])
everywhere = pytest.mark.parametrize("strategy", ["hiprune", "fastv", "transprune", "visiondrop"])
renumbered = pytest.mark.parametrize("positions", ["keep", "compact"])


@every
@families
@renumbered
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_conversation_equals_the_oracle(strategy, case, positions, kind):
    """Three turns of a padded batch, images in the first two, as one sequence of what is left."""
    talk = Talk(case, strategy, positions=positions).run(kind)
    assert talk.difference() < max(1e-9, exact(strategy))
    assert [len(report.earlier) for report in talk.reports] == [0, 1]
    assert talk.reports[1].tokens_before < sum(image.before for report in talk.reports for image in report.images)


@pytest.mark.parametrize("strategy", [name for name in INSIDE if name not in READERS])
@families
def test_a_cached_prefix_changes_nothing(strategy, case):
    """The text before an image, cached beforehand: the same tokens are chosen, although their queries now look back at
    keys from the cache, and the same logits follow."""
    model, inputs = model_of(case), split(inputs_of(case, images=(2,)), (2,))[0]
    first, rest = parted(inputs, 3)
    where = unpruned(model, inputs)[1].unsqueeze(-2)[..., 3:]
    with patched(model, strategy), torch.no_grad():
        expected = forward(model, inputs, use_cache=True)
        kept = kept_of(vtc.report(model), 0)
        cache = model(**first, use_cache=True).past_key_values
        out = model(**rest, position_ids=where, past_key_values=cache, use_cache=True)
        assert all(map(torch.equal, kept_of(vtc.report(model), 0), kept))
    torch.testing.assert_close(out.logits[:, -1], expected.logits[:, -1], atol=max(1e-9, exact(strategy)), rtol=0)


@everywhere
@families
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generate_goes_on_with_a_cache(strategy, case, kind):
    """The whole conversation's ids and the cache of the first turn: only what is new is read, as by hand."""
    model, inputs, text = model_of(case), inputs_of(case), model_of(case).config.get_text_config()
    cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(config=text, max_cache_len=400)
    words = torch.randint(3, 90, (3, 7), generator=torch.Generator().manual_seed(1))
    with on(model, strategy):
        first = generate(model, inputs, 5, past_key_values=cache)
        ids = torch.cat([inputs["input_ids"], first.tokens, words], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, : 5 + 7])], 1)
        second = generate(model, {"input_ids": ids, "attention_mask": mask}, 4, past_key_values=cache)
        filled = forward(model, inputs, use_cache=True).past_key_values
        out, mask = proceed(model, filled, inputs["attention_mask"], torch.cat([first.tokens, words], 1))
        torch.testing.assert_close(second.logits[0], out.logits[:, -1], atol=1e-9, rtol=0)
        for step in range(3):
            out, mask = proceed(model, filled, mask, second.tokens[:, step : step + 1])
            torch.testing.assert_close(second.logits[step + 1], out.logits[:, -1], atol=1e-9, rtol=0)


@everywhere
@families
@pytest.mark.parametrize("how", ["lookup", "assistant"])
def test_assisted_generation_equals_greedy(strategy, case, how):
    """Rejected candidates are taken back from every layer, and none of them is taken for the end of the question."""
    model, text = model_of(case), torch.tensor([[7, 8, 9, 7, 8, 30, 7, 8]])
    inputs, ends = grow(inputs_of(case, images=(2,)), text), {"eos_token_id": 2}
    lookup = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    with on(model, strategy):
        expected = generate(model, inputs, 16, **ends)
        try:
            found = generate(
                model, inputs, 16, **ends, **(lookup if how == "lookup" else {"assistant_model": build(case)})
            )
        except ValueError as error:  # sliding windows in transformers 5.0.0
            if "Cannot `crop`" not in str(error):
                raise
            pytest.skip(f"transformers itself cannot: {error}")
    assert torch.equal(found.tokens, expected.tokens)


@everywhere
@families
def test_chunked_prefill(strategy, case):
    """A prompt with images, and a later turn behind them, are read in one piece; text alone in chunks."""
    model, inputs = model_of(case), inputs_of(case, images=(1,))
    words = torch.arange(30, 50)[None]
    with on(model, strategy):
        found = []
        for chunks in ({}, {"prefill_chunk_size": 8}):
            cache = DynamicCache(config=model.config.get_text_config())
            first = generate(model, inputs, 4, past_key_values=cache, **chunks)
            ids = torch.cat([inputs["input_ids"], first.tokens, words], 1)
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            found.append((first.tokens, generate(model, given, 4, past_key_values=cache, **chunks).tokens))
        assert all(map(torch.equal, *found))
        with spy(model) as seen:
            cache = DynamicCache(config=model.config.get_text_config())
            generate(model, {"input_ids": words}, 1, past_key_values=cache, prefill_chunk_size=8)
        assert [given["inputs_embeds"].shape[1] for given in seen] == [8, 8, 4]


@everywhere
@families
def test_a_cropped_cache_goes_on(strategy, case):
    """Three of five written tokens taken back and written again, and a crop into the text of the prompt."""
    model, inputs = model_of(case), inputs_of(case)
    with on(model, strategy):
        written = generate(model, inputs, 8)
        cache, mask = forward(model, inputs, use_cache=True).past_key_values, inputs["attention_mask"]
        _, mask = proceed(model, cache, mask, written.tokens[:, :5])
        cache.crop(-3)
        out, mask = proceed(model, cache, mask[:, :-3], written.tokens[:, 2:7])
        torch.testing.assert_close(out.logits.transpose(0, 1), written.logits[3:], atol=1e-9, rtol=0)
        cache.crop(-8)  # the seven, and the last token of the prompts
        out, _ = proceed(model, cache, mask[:, :-8], torch.cat([inputs["input_ids"][:, -1:], written.tokens[:, :3]], 1))
        torch.testing.assert_close(out.logits[:, -1], written.logits[3], atol=1e-9, rtol=0)
        refused(lambda: cache.crop(-cache.get_seq_length()), "into an image", kind=vtc.PatchError)


@everywhere
@families
def test_chosen_rows_go_on(strategy, case):
    """Prompts reordered, dropped and repeated in a copy of the cache continue as what they are."""
    model, inputs = model_of(case), inputs_of(case)
    with on(model, strategy):
        written = generate(model, inputs, 4)
        for name, argument, rows in (
            ("reorder_cache", torch.tensor([2, 0, 1]), [2, 0, 1]),
            ("batch_select_indices", torch.tensor([2, 1]), [2, 1]),
            ("batch_repeat_interleave", 2, [0, 0, 1, 1, 2, 2]),
        ):
            cache, mask = forward(model, inputs, use_cache=True).past_key_values, inputs["attention_mask"]
            _, mask = proceed(model, cache, mask, written.tokens[:, :1])
            cache = pickle.loads(pickle.dumps(copy.deepcopy(cache)))
            getattr(cache, name)(argument)
            out, _ = proceed(model, cache, mask[rows], written.tokens[rows, 1:2])
            torch.testing.assert_close(out.logits[:, -1], written.logits[2][rows], atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", NO_TURNS)
def test_families_without_later_images(case):
    """Text goes on; an image is refused by name and leaves the cache as it was."""
    model, turns = model_of(case), turns_of(case, ((1, 1, 1), (1, 1, 1)))
    inputs, later = turns[0].inputs, turns[1].inputs
    with patched(model, "uniform", keep=0.3), torch.no_grad():
        written = generate(model, inputs, 3)
        cache = forward(model, inputs, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"], later["attention_mask"]], 1)
        given = {**later, "attention_mask": mask}
        refused(
            lambda: model(**given, past_key_values=cache), "cached prefix", "fresh cache", kind=vtc.UnsupportedError
        )
        out, _ = proceed(model, cache, inputs["attention_mask"], written.tokens[:, :2])
        torch.testing.assert_close(out.logits[:, -1], written.logits[2], atol=1e-9, rtol=0)


def test_what_does_not_follow_is_refused():
    """Masks that do not cover the conversation, a stage that changes attention, another number of prompts."""
    model, (first, later, _) = model_of("llava"), turns_of("llava")
    with patched(model, "hiprune"), torch.no_grad():
        cache = forward(model, first.inputs, use_cache=True).past_key_values
        refused(lambda: model(**later.inputs, past_key_values=cache), "columns", "whole conversation")
        one = split(later.inputs, later.images)[1]
        one["attention_mask"] = torch.ones(1, first.inputs["input_ids"].shape[1] + one["input_ids"].shape[1])
        refused(lambda: model(**one, past_key_values=cache), "a batch of 1", "same prompts")
    with patched(model, "var"), torch.no_grad():
        cache = forward(model, first.inputs, use_cache=True).past_key_values
        given = {**later.inputs, "attention_mask": torch.cat([t.inputs["attention_mask"] for t in (first, later)], 1)}
        refused(lambda: model(**given, past_key_values=cache), "changes attention", "fresh cache")


def test_the_report_covers_the_turns():
    """The last turn's, with the earlier ones in it, as text and as data."""
    report = Talk("llava", "hiprune").run().reports[1]
    assert "turn 1 had" in str(report)
    assert [turn["tokens"]["before"] for turn in report.to_dict()["earlier"]] == [report.earlier[0].tokens_before]
    assert report.kv_lengths[0] > sum(report.prompt_lengths[0][:1])


@pytest.mark.full
@pytest.mark.parametrize("strategy", ["hiprune", "transprune"])
def test_a_streamed_turn(strategy):
    """TextIteratorStreamer: generation in a thread of its own, two turns on one cache; text, cache and report are there
    as if it had run here."""
    model, inputs = model_of("llava"), inputs_of("llava", images=(1,))
    words = torch.arange(30, 36)[None]

    def talk(write) -> list:
        cache, ids, said = DynamicCache(config=model.config.get_text_config()), inputs["input_ids"], []
        for number in range(2):
            given = {**inputs} if number == 0 else {}
            mask = torch.ones_like(ids)
            written = write({**given, "input_ids": ids, "attention_mask": mask, "past_key_values": cache})
            said.append((written, cache.get_seq_length(), vtc.report(model).average_share))
            ids = torch.cat([ids, torch.tensor([written]), words], 1)
        return said

    def here(given: dict) -> list[int]:
        out = model.generate(**given, max_new_tokens=6, do_sample=False)
        return out[0, given["input_ids"].shape[1] :].tolist()

    def streamed(given: dict) -> list[int]:
        streamer = TextIteratorStreamer(Numbers(), skip_prompt=True)
        thread = threading.Thread(
            target=model.generate, kwargs=dict(**given, max_new_tokens=6, do_sample=False, streamer=streamer)
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
        return [int(word) for word in text.split()]

    with on(model, strategy):
        assert talk(streamed) == talk(here)


class Numbers:
    """A tokenizer whose text is the numbers of its tokens."""

    def decode(self, ids, **options) -> str:
        """The numbers, with a space behind each."""
        return "".join(f"{int(i)} " for i in ids)
