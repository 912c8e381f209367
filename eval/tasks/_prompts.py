"""The text around questions that several benchmarks share, by dialect."""

from collections.abc import Mapping, Sequence

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接回答选项字母。"
QWEN_SHORT = "\nPlease try to answer the question with short words or phrases if possible."
QWEN_YES_NO = " Please answer yes or no."
QWEN_CHOICE = "Please select the correct answer from the options above."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def short_answer(question: str, dialect: str, suffix: str = SHORT) -> str:
    """An open question: with `suffix` in the dialects llava and lmms, with Qwen's own sentence in qwen."""
    return question + (QWEN_SHORT if dialect == "qwen" else suffix)


def lettered(options: Sequence[str] | Mapping[str, str]) -> str:
    """`A. one`, `B. two`, ..., one per line; options are a list, or a mapping from letters."""
    pairs = options.items() if isinstance(options, Mapping) else zip(LETTERS, options)
    return "\n".join(f"{letter}. {text}" for letter, text in pairs)


def qwen_choice(question: str, options: Sequence[str] | Mapping[str, str], hint: str | None = None) -> str:
    """A multiple-choice question in VLMEvalKit's form for Qwen2-VL; its last sentence is Chinese if any text is."""
    text = (f"Hint: {hint}\n" if hint else "") + f"Question: {question}\n"
    if not options:
        return text.rstrip()
    text += f"Options:\n{lettered(options)}\n"
    return text + (LETTER_CN.lstrip() if any("\u4e00" <= c <= "\u9fff" for c in text) else QWEN_CHOICE)
