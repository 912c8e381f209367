"""The baseline that every method must beat: a smaller picture."""

import math
from collections.abc import Sequence

from PIL import Image

from vtc.core.errors import UnsupportedError
from vtc.eval.data.pictures import rgb
from vtc.eval.models import Loaded


class Downsample:
    """Resizes pictures to a budget, in the one of two ways that the model allows; see
    `vtc.eval.results.meanings.MODES`.

    mode: "grid" for encoders whose grid follows the picture (Qwen-VL), "blur" for one fixed grid (LLaVA-1.5). Raises
    UnsupportedError for models that are neither, such as LLaVA-NeXT with its tiles.
    """

    def __init__(self, loaded: Loaded, budget: object):
        self.budget, self.images = budget, loaded.processor.image_processor
        picture = Image.new("RGB", (448, 448))
        probe = self.images(images=[picture], return_tensors="pt")
        if "image_grid_thw" in probe:
            self.mode = "grid"
        elif "image_sizes" not in probe and probe["pixel_values"].ndim == 4 and len(probe["pixel_values"]) == 1:
            self.mode = "blur"
            tokens = loaded.visual_tokens(loaded.encode(["?"], [[picture]]))[0]
            self.keep = budget.count(tokens) / tokens if isinstance(budget.keep, int) else budget.keep
            self.side = min(probe["pixel_values"].shape[-2:])
        else:
            raise UnsupportedError(
                f"downsample does not know how {loaded.model.config.model_type} cuts pictures; possible: models with "
                "one fixed grid, or with a grid that follows the picture"
            )

    def apply(self, pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], int | None]:
        """The pictures of one prompt, resized, and their visual tokens at full size (None: the same as resized)."""
        if self.mode == "blur":
            return [self._blur(rgb(picture)) for picture in pictures], None
        shrunk = [self._shrink(rgb(picture)) for picture in pictures]
        return [picture for picture, _ in shrunk], sum(tokens for _, tokens in shrunk)

    def _shrink(self, picture: Image.Image) -> tuple[Image.Image, int]:
        merge, patch = self.images.merge_size, self.images.patch_size
        _, rows, columns = self.images(images=[picture], return_tensors="pt")["image_grid_thw"][0].tolist()
        rows, columns = rows // merge, columns // merge
        target = self.budget.count(rows * columns)
        fewer = max(1, round(rows * math.sqrt(target / (rows * columns))))
        narrow = max(1, min(round(columns * fewer / rows), target // fewer))
        size = (narrow * merge * patch, fewer * merge * patch)
        return picture.resize(size, Image.Resampling.BICUBIC), rows * columns

    def _blur(self, picture: Image.Image) -> Image.Image:
        """The short side falls to sqrt(keep) of what the encoder sees, and back to that."""
        scale = self.side * math.sqrt(self.keep) / min(picture.size)
        if scale >= 1:
            return picture
        small = picture.resize([max(1, round(x * scale)) for x in picture.size], Image.Resampling.BICUBIC)
        back = self.side / min(picture.size)
        return small.resize([max(1, round(x * back)) for x in picture.size], Image.Resampling.BICUBIC)
