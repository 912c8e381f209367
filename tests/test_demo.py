"""The bundled demo model and its benchmark: loads offline, answers, and its pictures are the same bytes everywhere."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from vtc.demo import MODEL_DIR, benchmark, load, questions, scenes
from vtc.demo.architecture import prompt
from vtc.demo.model_card import answer, shares
from vtc.demo.train_language import answer_logits
from vtc.demo.training_data import IGNORE, Packer, choose_patches, pixel_values


@pytest.fixture(scope="module")
def loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return load()


@pytest.fixture(scope="module")
def rows():
    return list(benchmark.samples("test", 63))


def test_fingerprint_of_the_benchmark():
    assert benchmark.fingerprint() == benchmark.FINGERPRINT


def test_splits_are_disjoint_and_deterministic():
    drawn = {split: {scenes.draw(scenes.scene(split, i)).tobytes() for i in range(20)} for split in scenes.SPLITS}
    assert all(len(images) == 20 for images in drawn.values())
    assert all(a.isdisjoint(b) for a, b in pairwise([*drawn.values(), drawn["train"]]))
    again = scenes.draw(scenes.scene("tune", 3))
    assert again.tobytes() in drawn["tune"]
    assert (again.shape, again.dtype) == ((112, 112, 3), np.uint8)


def test_prefixes_are_balanced_over_types(rows):
    types = [row["type"] for row in rows]
    assert types == list(questions.TYPES) * 9
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("bad", [{"split": "validation"}, {"limit": -1}])
def test_samples_refuses(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        benchmark.samples(**bad)


def test_questions_have_one_answer():
    for index in range(50):
        layout = scenes.scene("train", index)
        for kind in questions.TYPES:
            answers = {}
            for question in questions.candidates(layout, kind):
                assert answers.setdefault(question.text, question.answer) == question.answer
                assert question.answer in questions.ANSWERS[kind]


def test_labels_mark_every_object():
    for index in range(50):
        layout = scenes.scene("tune", index)
        labels = scenes.patch_labels(layout)
        assert labels.shape == (196, 6)
        assert {item.shape + 1 for item in layout.items} | {6} == set(labels[:, 0].tolist()) - {0}
        assert labels[:, 3].sum() <= len(layout.items) + 2


def test_no_word_of_the_benchmark_is_unknown(loaded):
    tokenizer = loaded[1].tokenizer
    for index in range(30):
        for kind in questions.TYPES:
            for question in questions.candidates(scenes.scene("train", index), kind):
                ids = tokenizer(prompt(question.text) + " " + question.answer)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(tokenizer(question.answer)["input_ids"]) == question.answer
    assert tokenizer.unk_token_id in tokenizer("a zebra")["input_ids"]


def test_processor_makes_the_training_prompt(loaded, rows):
    content = [{"type": "image"}, {"type": "text", "text": rows[0]["question"]}]
    text = loaded[1].apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == prompt(rows[0]["question"])
    inputs = loaded[1](images=rows[0]["image"], text=text, return_tensors="pt")
    assert (inputs["input_ids"] == loaded[0].config.image_token_id).sum() == 196
    assert torch.equal(inputs["pixel_values"], pixel_values(np.array(rows[0]["image"])[None]))


def test_answers_held_out_questions(loaded, rows):
    assert shares(rows, answer(*loaded, rows))["macro"] >= 0.85


def test_left_padded_batch_equals_one_by_one(loaded, rows):
    some = rows[:7]
    assert len({len(loaded[1].tokenizer(row["question"])["input_ids"]) for row in some}) > 1
    assert answer(*loaded, some) == [answer(*loaded, [row])[0] for row in some]


def test_two_images_in_a_prompt(loaded, rows):
    inputs = loaded[1](
        images=[row["image"] for row in rows[:2]], text=prompt(rows[0]["question"], images=2), return_tensors="pt"
    )
    assert (inputs["input_ids"] == loaded[0].config.image_token_id).sum() == 392
    assert loaded[0].generate(**inputs).shape[1] > inputs["input_ids"].shape[1]


def test_packed_training_equals_the_plain_forward(loaded):
    model, packer = loaded[0], Packer()
    layout = scenes.scene("tune", 0)
    pixels = pixel_values(scenes.draw(layout)[None])
    packed, asked = packer.pack([layout], np.random.default_rng(0))
    with torch.no_grad():
        features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        everything = torch.arange(196)[None]
        together = answer_logits(model, features, everything, packed, packer.prefix(), renumber=True)
        alone = []
        for _, segment, _ in asked:
            mine = packed.segment[0] == segment
            image = torch.full((196,), model.config.image_token_id)
            ids = torch.cat((packer.prefix(), image, packed.ids[0][mine]))[None]
            answers = (packed.targets[0][mine] != IGNORE).sum()
            alone.append(model(input_ids=ids, pixel_values=pixels).logits[0, -answers:])
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_training_keeps_the_centres_first():
    labels = scenes.patch_labels(scenes.scene("train", 0))[None]
    keep = choose_patches(labels, 32, np.random.default_rng(0), sparse=True)[0]
    assert keep.tolist() == sorted(set(keep.tolist()))
    assert len(keep) == 32
    assert set(labels[0, :, 3].nonzero()[0].tolist()) <= set(keep.tolist())


def test_card_names_the_weights():
    weights = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    assert weights in card
    assert card.index("<!-- budgets -->") < card.index("<!-- /budgets -->")


def test_checkpoint_is_small_and_complete():
    files = {path.name for path in MODEL_DIR.iterdir()}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert wanted | {"processor_config.json", "tokenizer_config.json", "chat_template.jinja"} <= files
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 15e6
