"""Loads and sets up a model's processor, also without torchvision, and prepares chats and pictures for it."""

import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vtc.core.errors import ConfigError


def load_processor(path: str | Path, **args):
    """AutoProcessor.from_pretrained; without torchvision, the same class without its video part if it has one."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(path, **args)
    except Exception:  # its type depends on the version of transformers
        kind = None if importlib.util.find_spec("torchvision") is not None else _class(path, args)
        if kind is None or "video_processor" not in kind.get_attributes():
            raise
        return pictures_only(kind).from_pretrained(path, **args)


def pictures_only(kind: type) -> type:
    """A processor class without its video part, for which transformers needs torchvision."""

    def get_attributes(cls) -> list[str]:
        return [name for name in super(reduced, cls).get_attributes() if name != "video_processor"]

    from transformers import ProcessorMixin

    class PicturesOnly(ProcessorMixin):
        """Between a processor class and its base, to which some classes give their video part first."""

        def __init__(self, *parts, **options):
            super().__init__(*(part for part in parts if part is not None), **options)

    def from_args_and_dict(cls, args: list, settings: dict, **options):
        parts = dict(zip(cls.get_attributes(), args, strict=False))
        args = [parts.get(name) for name in kind.get_attributes()]  # in the order of the class's constructor
        settings = {name: value for name, value in settings.items() if name != "video_processor"}
        return super(reduced, cls).from_args_and_dict(args, settings, **options)

    members = {f.__name__: classmethod(f) for f in (get_attributes, from_args_and_dict)}
    reduced = type(kind.__name__, (kind, PicturesOnly), members)
    return reduced


def _class(path: str | Path, args: dict) -> type | None:
    """The processor class for the model's config; None if it cannot be determined."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    shared = {key: value for key, value in args.items() if key in ("revision", "cache_dir", "token")}
    with contextlib.suppress(Exception):
        return PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(path, trust_remote_code=False, **shared))]
    return None


def prepare(name: str, processor: object) -> None:
    """Sets padding to the left; raises ConfigError for a processor that does not handle pictures and chats."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "apply_chat_template"):
        kind = type(processor).__name__
        raise ConfigError(f"model {name!r} comes with a {kind}; possible: a processor of text and images")
    if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        raise ConfigError(f"model {name!r} has no chat template; possible: an instruction-tuned model's folder")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def chat(prompt: str | Sequence[str | None], kinds: Sequence[str], system: str | None) -> list[dict]:
    """The turns of one prompt. kinds: of its media, in order, "image" or "video"; they come before a text, or in place
    of None in a list of parts."""
    parts = [*[None] * len(kinds), prompt] if isinstance(prompt, str) else list(prompt)
    if parts.count(None) != len(kinds):
        raise ValueError(f"the prompt has {parts.count(None)} places for {len(kinds)} pictures")
    rest = iter(kinds)
    content = [{"type": next(rest)} if part is None else {"type": "text", "text": part} for part in parts]
    turns = [{"role": "user", "content": content}]
    return turns if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}, *turns]


def square(picture: Image.Image, processor: object) -> Image.Image:
    """The picture centred on a square of the processor's mean colour, as in LLaVA-1.5's own code."""
    if picture.width == picture.height:
        return picture
    mean = getattr(processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * part) for part in mean))
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas
