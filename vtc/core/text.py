"""Text that methods select by: the question of a prompt and its keywords; also the patches of an image's padding."""

import re

# Chat templates: the mark that identifies one, and how it opens and closes a user message.
TEMPLATES = (
    (r"<\|im_start\|>", r"<\|im_start\|>\s*user\s", r"<\|im_end\|>"),
    (r"<\|start_header_id\|>", r"<\|start_header_id\|>\s*user\s*<\|end_header_id\|>", r"<\|eot_id\|>"),
    (r"\[INST\]", r"\[INST\](?:\s*<<SYS>>.*?<</SYS>>)?", r"\[/INST\]"),
    (r"(?<!\w)USER:", r"(?<!\w)USER:", r"(?<!\w)ASSISTANT:"),
)
MARKERS = re.compile(r"<(?:\|[\w ]+\||s|/s|pad|unk|bos|eos|image|video)>")
SUFFIXES = re.compile(
    r"\s*(?:Answer the question using a single word or phrase"
    r"|Answer with the option['\N{RIGHT SINGLE QUOTATION MARK}]s letter from the given choices directly)\.?"
)
STOP_WORDS = (
    "a an the is are was were be been being have has had do does did it they he she we you i what where when why how "
    "who which and or but so if then question answer to for with by from at into onto upon"
)


def question_of(prompt: str) -> str:
    """The last user message in a decoded prompt, without roles, special tokens and image placeholders.

    The templates of the supported families are recognised: Vicuna's "USER: .. ASSISTANT:", ChatML, Llama 2 and
    Mistral's "[INST] .. [/INST]", Llama 3's headers. The first mark in the prompt decides which one it is. A prompt
    without a mark is taken as the question. A message may be unterminated or empty.
    """
    templates = [(first.start(), *turn) for mark, *turn in TEMPLATES if (first := re.search(mark, prompt))]
    if templates:
        _, start, end = min(templates)
        messages = re.findall(rf"{start}(.*?)(?:{end}|\Z)", prompt, re.DOTALL)
        prompt = messages[-1] if messages else ""
    return MARKERS.sub("", prompt).strip()


def without_instructions(question: str) -> str:
    """A question without the two benchmark instructions: to answer in a word or phrase, or with an option's letter."""
    return SUFFIXES.sub("", question).strip()


def keywords_of(question: str) -> str:
    """The words of a question that may name something to look for, joined by spaces, as selected by MMTok.

    Words are runs of letters, digits and underscores. Stop words in any case ("in", "on" and "of" are not among
    them) and the benchmarks' instructions are removed. If no word remains, the whole question without
    the instructions is returned.
    """
    question = without_instructions(question)
    stop = frozenset(STOP_WORDS.split())
    words = [word for word in re.findall(r"\w+", question) if word.lower() not in stop]
    return " ".join(words) or question


def padding_patches(width: int, height: int, side: int = 336, patch: int = 14) -> list[int]:
    """Patches (raster indices) that show only padding, for an image that was padded to a square and resized to `side`
    pixels. They lie entirely within one of the two padding bands; the first band comes first, and portrait images are
    read column by column. width, height, side, patch: in pixels.
    """
    if width == height:
        return []
    across = width > height  # bands above and below, else left and right
    picture = max(1, round(min(width, height) * side / max(width, height)))
    before, count = (side - picture) // 2, side // patch
    after = -(-(before + picture) // patch)
    lines = [*range(before // patch), *range(after, count)]
    return [line * count + i if across else i * count + line for line in lines for i in range(count)]
