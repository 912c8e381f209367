"""How many tokens images of some sizes give to the prompt, without an engine."""

from PIL import Image

from vtc.vllm.settings import Settings

SIZES = ((336, 336), (640, 480), (480, 640), (1280, 720))
"""Width and height of the examples, in pixels."""


def lines(settings: Settings, images: object, arguments: dict | None = None) -> list[str]:
    """Tokens of an image as it is -> kept, one line per example, or one alone where the size makes no difference.

    images: the model's image processor; arguments: what the server gives to it.
    """
    found = {}
    for size in SIZES:
        inputs = images(images=[Image.new("RGB", size)], return_tensors="pt", **(arguments or {}))
        (layout,) = settings.family.image_layouts(dict(inputs))
        kept, most = (settings.count(layout, keep) for keep in (settings.keep, settings.max_keep))
        found[size] = f"{layout.tokens} -> {kept}" + (f", {most} at most" if most != kept else "")
    if len(set(found.values())) == 1:
        return [f"{next(iter(found.values()))}, whatever its size"]
    return [f"{text}  of {width} x {height} pixels" for (width, height), text in found.items()]
