"""Text that methods choose by: the question of a prompt, its keywords; and what a picture's padding covers."""

import re

# Chat templates: what tells one apart, and how it opens and closes a message of the user.
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
    """The last message of the user in a decoded prompt: no roles, special tokens or image placeholders.

    Known are the templates of the supported families: Vicuna's "USER: .. ASSISTANT:", ChatML, Llama 2 and Mistral's
    "[INST] .. [/INST]", Llama 3's headers. Which it is, the first mark of any in the prompt decides. A prompt
    without any is a question as a whole. A message may lack its end, and may be empty.
    """
    found = [(first.start(), *turn) for mark, *turn in TEMPLATES if (first := re.search(mark, prompt))]
    if found:
        _, start, end = min(found)
        messages = re.findall(rf"{start}(.*?)(?:{end}|\Z)", prompt, re.DOTALL)
        prompt = messages[-1] if messages else ""
    return MARKERS.sub("", prompt).strip()


def without_instructions(question: str) -> str:
    """A question without the two sentences that benchmarks append: how short to answer, and with an option's letter."""
    return SUFFIXES.sub("", question).strip()


def keywords_of(question: str) -> str:
    """The words of a question that may name something to look for, joined by spaces, as MMTok chooses them.

    Words are runs of letters, digits and underscores; stop words are left out, whatever their case ("in", "on" and
    "of" are none), and so are the benchmarks' instructions. If no word is left, all of the question but these.
    """
    question = without_instructions(question)
    stop = frozenset(STOP_WORDS.split())
    words = [word for word in re.findall(r"\w+", question) if word.lower() not in stop]
    return " ".join(words) or question


def padding_patches(width: int, height: int, side: int = 336, patch: int = 14) -> list[int]:
    """Patches (raster indices) that show nothing of a picture of width x height that was padded to a square and scaled
    to `side` pixels: those fully inside the two bands, the first band's first; of upright pictures column by column.
    """
    if width == height:
        return []
    across = width > height  # bands above and below, else left and right
    shown = max(1, round(min(width, height) * side / max(width, height)))
    before, count = (side - shown) // 2, side // patch
    after = -(-(before + shown) // patch)
    lines = [*range(before // patch), *range(after, count)]
    return [line * count + i if across else i * count + line for line in lines for i in range(count)]
