"""How many tokens images of several sizes give to the prompt, without an engine."""

from PIL import Image

from vtc.core.errors import ConfigError
from vtc.vllm.settings import ServedStrategy

SIZES = ((336, 336), (640, 480), (480, 640), (1280, 720))
"""Width and height of the examples, in pixels."""


def lines(settings: ServedStrategy, images: object, arguments: dict | None = None) -> list[str]:
    """Tokens of an image without pruning -> kept, one line per example, or a single one where all sizes are the same.

    images: the model's image processor; arguments: what the server passes to it. Raises ConfigError where it does
    not accept them.
    """
    texts, given = {}, arguments or {}
    for size in SIZES:
        try:
            inputs = images(images=[Image.new("RGB", size)], return_tensors="pt", **given)
        except Exception as error:  # its kind depends on the processor and the version of transformers
            raise ConfigError(f"the image processor refuses {given}: {error}; possible: its own arguments") from None
        (layout,) = settings.family.image_layouts(dict(inputs))
        kept, max_kept = (settings.count(layout, keep) for keep in (settings.keep, settings.max_keep))
        texts[size] = f"{layout.tokens} -> {kept}" + (f", {max_kept} at most" if max_kept != kept else "")
    if len(set(texts.values())) == 1:
        return [f"{next(iter(texts.values()))}, whatever its size"]
    return [f"{text}  of {width} x {height} pixels" for (width, height), text in texts.items()]
