"""What image processors of LLaVA make of a picture: where its pixels end up in what the encoder is given."""

from vtc.core.errors import UnsupportedError


def resizing_of(
    images: object, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[float, float], tuple[float, float]]:
    """What an image processor makes of a picture of `size` (height, width): the size of what the encoder is given, and
    where a pixel p of the picture lies on it, at p * scale + shift (each down, across).

    Padding to a square, resizing to one size or by the shorter edge, and a centre crop are understood; anything else
    raises UnsupportedError.
    """
    now, scale, shift = size, (1.0, 1.0), (0.0, 0.0)
    if getattr(images, "do_pad", None):
        if not hasattr(images, "pad_to_square"):
            raise UnsupportedError(f"{type(images).__name__} pads pictures; possible: do_pad=False")
        now = (max(size), max(size))
        shift = (now[0] - size[0]) // 2, (now[1] - size[1]) // 2
    if images.do_resize:
        new = _resized(images, now)
        scale = new[0] / now[0], new[1] / now[1]
        now, shift = new, (shift[0] * scale[0], shift[1] * scale[1])
    if getattr(images, "do_center_crop", False):
        crop = _side(images.crop_size, "height"), _side(images.crop_size, "width")
        shift = shift[0] - (now[0] - crop[0]) // 2, shift[1] - (now[1] - crop[1]) // 2
        now = crop
    return now, scale, shift


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
