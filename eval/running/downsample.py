"""The baseline that every method must beat: smaller pictures."""

import math
from collections.abc import Sequence

from PIL import Image

from vtc.core.errors import UnsupportedError
from vtc.eval.data.pictures import rgb
from vtc.eval.models import Loaded


class Downsample:
    """Resizes pictures to a budget, in whichever of two ways fits the model; see `vtc.eval.results.meanings.MODES`.

    mode: "grid" for encoders whose grid depends on the picture's size (Qwen-VL), "blur" for a single fixed grid
    (LLaVA-1.5). Raises UnsupportedError for other models, such as LLaVA-NeXT with its tiles.
    """

    def __init__(self, loaded: Loaded, budget: object):
        self.budget, self.images, self.family = budget, loaded.processor.image_processor, loaded.family
        if self.family is not None and self.family.token_side() is not None:
            self.mode = "grid"
            return
        picture = Image.new("RGB", (448, 448))
        pixels = self.images(images=[picture], return_tensors="pt")["pixel_values"]
        if self.family is None:  # a model that vtc does not prune
            whole = len(pixels.shape) == 4 and len(pixels) == 1
            fixed = loaded.visual_tokens(loaded.encode(["?"], [[picture]]))[0] if whole else None
        else:
            fixed = self.family.encoder.tokens
        if fixed is None:
            raise UnsupportedError(
                f"downsample does not know how {loaded.model.config.model_type} cuts pictures; possible: models with "
                "one fixed grid, or of a family whose grid follows the picture"
            )
        self.mode = "blur"
        self.keep = budget.count(fixed) / fixed if isinstance(budget.keep, int) else budget.keep
        self.side = min(pixels.shape[-2:])

    def apply(self, pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], int | None]:
        """The resized pictures of one prompt, and their number of visual tokens at full size (None: unchanged)."""
        if self.mode == "blur":
            return [self._blur(rgb(picture)) for picture in pictures], None
        shrunk = [self._shrink(rgb(picture)) for picture in pictures]
        return [picture for picture, _ in shrunk], sum(tokens for _, tokens in shrunk)

    def _shrink(self, picture: Image.Image) -> tuple[Image.Image, int]:
        ((tile,),) = (image.tiles for image in self.family.image_layouts(self.images([picture], return_tensors="pt")))
        (rows, columns), side = tile.grid, self.family.token_side()
        target = self.budget.count(rows * columns)
        fewer = max(1, round(rows * math.sqrt(target / (rows * columns))))
        narrow = max(1, min(round(columns * fewer / rows), target // fewer))
        size = (narrow * side, fewer * side)
        return picture.resize(size, Image.Resampling.BICUBIC), rows * columns

    def _blur(self, picture: Image.Image) -> Image.Image:
        """Shrinks the short side to sqrt(keep) of the encoder's input size, and enlarges it to that size again."""
        scale = self.side * math.sqrt(self.keep) / min(picture.size)
        if scale >= 1:
            return picture
        small = picture.resize([max(1, round(x * scale)) for x in picture.size], Image.Resampling.BICUBIC)
        back = self.side / min(picture.size)
        return small.resize([max(1, round(x * back)) for x in picture.size], Image.Resampling.BICUBIC)
