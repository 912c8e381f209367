"""The question out of prompts of every chat template, its keywords, and what padding covers."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from vtc.core.text import STOP_WORDS, TEMPLATES, keywords_of, padding_patches, question_of, without_instructions
from vtc.demo import MODEL_DIR

ROLES = "A chat between a curious user and an assistant. The assistant answers the user's questions. "
SYSTEM = "<|im_start|>system\nYou are a USER: helpful [INST] assistant.<|im_end|>\n"
SIZES = "Be brief. USER: that is you."


def vicuna(turns, picture):
    """LLaVA-1.5 as published: the end of an answer and the next turn without a space between them."""
    written = [f"USER: {picture if i == 0 else ''}\n{q} ASSISTANT:{a}" for i, (q, a) in enumerate(turns)]
    return ROLES + "</s>".join(written)


def mistral(turns, picture):
    """LLaVA-NeXT on Mistral."""
    written = [f"[INST] {picture if i == 0 else ''}\n{q} [/INST]{a}" for i, (q, a) in enumerate(turns)]
    return "<s>" + "</s>".join(written)


def llama2(turns, picture):
    """Llama 2's chat, whose first message carries a system prompt."""
    return mistral(turns, picture).replace("[INST] ", f"[INST] <<SYS>>\n{SIZES}\n<</SYS>>\n\n", 1)


def chatml(turns, picture, after="\n"):
    """Qwen-VL."""
    written = [
        f"<|im_start|>user{after}{picture if i == 0 else ''}{q}<|im_end|>\n<|im_start|>assistant\n{a}"
        for i, (q, a) in enumerate(turns)
    ]
    return SYSTEM + "<|im_end|>\n".join(written)


def interleaved(turns, picture):
    """LLaVA on Qwen2: a space after the role, no line between messages."""
    return chatml(turns, picture, " ").replace("<|im_end|>\n", "<|im_end|>")


def spaced(turns, picture):
    """LLaVA-NeXT on Yi: some tokenizers put a space after a special token."""
    return interleaved(turns, picture).replace("<|im_start|>user ", "<|im_start|> user\n")


def llava(turns, picture):
    """LLaVA-1.5 as its processor writes it: no system prompt, no end of an answer."""
    return vicuna(turns, picture).replace("</s>", " ").removeprefix(ROLES)


def llama3(turns, picture):
    """LLaVA-NeXT on Llama 3."""
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    written = [
        f"{head.format('user')}{picture if i == 0 else ''}\n{q}<|eot_id|>{head.format('assistant')}{a}"
        for i, (q, a) in enumerate(turns)
    ]
    return "<|begin_of_text|>" + head.format("system") + SIZES + "<|eot_id|>" + "<|eot_id|>".join(written)


def demo(turns, picture):
    """The bundled model, as its tokenizer decodes it."""
    written = [f"<s> USER: {picture if i == 0 else ''} {q} ASSISTANT: {a}" for i, (q, a) in enumerate(turns)]
    return " </s> ".join(written)


WRITERS = {w.__name__: w for w in (vicuna, llava, mistral, llama2, chatml, interleaved, spaced, llama3, demo)}
PICTURES = {
    "none": "",
    "one": "<image>",
    "many": "<image>" * 576,
    "spaced": "<image> <image> <image>",
    "qwen": "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>",
}
writers = pytest.mark.parametrize("writer", WRITERS)
words = st.text(st.characters(exclude_characters="<|>[]:", codec="utf-8"), max_size=40)


@writers
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("filler", ["", "<pad><pad>", "</s></s>", "<|endoftext|>"])
def test_question_of_a_prompt(writer, picture, filler):
    """Whatever the template, the form of the placeholder and the padding."""
    prompt = filler + WRITERS[writer]([("Is there a dog?\nPlease answer.", "")], PICTURES[picture])
    assert question_of(prompt) == "Is there a dog?\nPlease answer."
    assert question_of(prompt + filler) == question_of(prompt.rstrip()) == question_of(prompt)


@writers
@settings(max_examples=40, deadline=None)
@given(first=words, answer=words, last=words)
def test_last_message_counts(writer, first, answer, last):
    """Of a conversation the last message, empty or not; a message that was never closed is one, too."""
    prompt = WRITERS[writer]([(first, answer), (last, "")], "<image>")
    assert question_of(prompt) == last.strip()
    answered = WRITERS[writer]([(first, answer), (last, "It is ")], "<image>")
    assert question_of(answered) == last.strip()
    if last.strip():
        assert question_of(prompt[: prompt.rindex(last.strip()) + len(last.strip())]) == last.strip()


def test_other_templates_in_a_message():
    """Only the template that comes first is taken for one."""
    for text in ("What does USER: bob mean?", "Is [INST] shown?", "SUPERUSER: yes or no?"):
        for writer in ("mistral", "chatml", "llama3", "vicuna"):
            if (writer, text[:2]) != ("mistral", "Is"):
                assert question_of(WRITERS[writer]([(text, "")], "<image>")) == text
    assert question_of("SUPERUSER: yes or no?") == "SUPERUSER: yes or no?"


def test_prompts_without_a_template_or_a_question():
    """All of it, or nothing."""
    assert question_of("<s><image>\n How many cups? ") == "How many cups?"
    assert question_of("") == question_of("<image>") == question_of("<|im_start|>system\nBe kind.<|im_end|>") == ""
    assert len(TEMPLATES) == 4


@functools.cache
def demo_processor():
    return AutoProcessor.from_pretrained(MODEL_DIR, local_files_only=True)


def test_question_of_the_demo_model():
    """Through the shipped chat template and tokenizer: one turn and three."""
    processor, turns = demo_processor(), []
    for question in ("Is there a red circle?", "How many green squares are there?", "What number is written?"):
        pictures = [] if turns else [{"type": "image"}]
        turns.append({"role": "user", "content": [*pictures, {"type": "text", "text": question}]})
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        given = processor(
            text=[text], images=[Image.new("RGB", (112, 112))], add_special_tokens=False, return_tensors="pt"
        )
        decoded = processor.tokenizer.decode(given["input_ids"][0])
        assert question_of(decoded) == question.lower().replace("?", " ?")
        turns.append({"role": "assistant", "content": "yes"})


@pytest.mark.parametrize("ending", ["", "\n", " ", "\n\n"])
@pytest.mark.parametrize("quote", ["'", "\N{RIGHT SINGLE QUOTATION MARK}"])
def test_instructions_are_left_out(ending, quote):
    """One, the other, both; nothing else is."""
    short = "Answer the question using a single word or phrase."
    option = f"Answer with the option{quote}s letter from the given choices directly."
    for instructions in (short, option, f"{short}\n{option}", short[:-1], ""):
        assert without_instructions(f"What is it?{ending}{instructions}") == "What is it?"
    assert without_instructions(short) == without_instructions("") == ""
    assert without_instructions("Answer in one word.") == "Answer in one word."


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Is the cat ON top of THE box?", "cat ON top of box"),
        ("What colour is the man's T-shirt?", "colour man s T shirt"),
        ("Who?", "Who?"),
        ("Where is it?\nAnswer the question using a single word or phrase.", "Where is it?"),
        ("?!", "?!"),
        ("Wo ist der Löwe mit 2_b?", "Wo ist der Löwe mit 2_b"),
        ("What is the 3rd option? A. dog B. cat", "3rd option dog B cat"),
    ],
)
def test_keywords(question, found):
    """Stop words go whatever their case; a question of nothing else stays."""
    assert keywords_of(question) == found


@given(st.lists(st.sampled_from([*STOP_WORDS.split(), "cat", "in", "on", "of", "7"]), min_size=1))
def test_keywords_are_the_words_that_are_no_stop_words(listed):
    """In their order, each as often as it stands there."""
    left = [word for word in listed if word not in STOP_WORDS.split()]
    assert keywords_of(" ".join(listed).title()).lower().split() == (left or listed)


@pytest.mark.parametrize("side, patch", [(336, 14), (224, 16), (10, 3)])
@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 1200), height=st.integers(1, 1200))
def test_padding_is_what_lies_in_the_bands(side, patch, width, height):
    """Pixel by pixel: a line of patches is left out when none of its pixels shows the picture."""
    inner, count = max(1, round(min(width, height) * side / max(width, height))), side // patch
    first = (side - inner) // 2
    shown = {pixel // patch for pixel in range(first, first + inner)}
    lines = [line for line in range(count) if line not in shown and width != height]
    found = padding_patches(width, height, side, patch)
    expected = {row * count + column for row in range(count) for column in range(count)
                if (row if width > height else column) in lines}  # fmt: skip
    assert len(found) == len(expected)
    assert set(found) == expected
    assert sorted(padding_patches(height, width, side, patch)) == sorted(i % count * count + i // count for i in found)
