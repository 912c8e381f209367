"""How LLaVA's image processors resize an image: where its pixels end up in the encoder's input."""

from vtc.core.errors import UnsupportedError


def resizing_of(
    images: object, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[float, float], tuple[float, float]]:
    """How an image processor maps an image of `size` (height, width) to the encoder's input: the size of that input,
    and the scale and shift by which a pixel p of the image moves to p * scale + shift (each vertical, horizontal).

    Padding to a square, resizing to one size or by the shorter edge, and a centre crop are supported; anything else
    raises UnsupportedError.
    """
    current, scale, shift = size, (1.0, 1.0), (0.0, 0.0)
    if getattr(images, "do_pad", None):
        if not hasattr(images, "pad_to_square"):
            raise UnsupportedError(f"{type(images).__name__} pads pictures; possible: do_pad=False")
        current = (max(size), max(size))
        shift = (current[0] - size[0]) // 2, (current[1] - size[1]) // 2
    if images.do_resize:
        new = _resized(images, current)
        scale = new[0] / current[0], new[1] / current[1]
        current, shift = new, (shift[0] * scale[0], shift[1] * scale[1])
    if getattr(images, "do_center_crop", False):
        crop = _side(images.crop_size, "height"), _side(images.crop_size, "width")
        shift = shift[0] - (current[0] - crop[0]) // 2, shift[1] - (current[1] - crop[1]) // 2
        current = crop
    return current, scale, shift


def _resized(images: object, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that the processor resizes `size` to."""
    names = ("shortest_edge", "longest_edge", "height", "width")
    short, long, high, wide = (_side(images.size, name) for name in names)
    if short and not long:
        if size[0] <= size[1]:
            return short, int(short * size[1] / size[0])
        return int(short * size[0] / size[1]), short
    if high and wide:
        return high, wide
    raise UnsupportedError(
        f"size={images.size} of {type(images).__name__} is not understood; possible: shortest_edge, or height and width"
    )


def _side(size: object, name: str) -> int | None:
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)
