"""How many visual tokens are kept: the grammar of `keep`, and the counts, which depend on shapes alone."""

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vtc.core.errors import ConfigError, shown

SCOPES = ("per_image", "per_request", "per_tile", "per_clip", "per_frame")
ROUNDINGS = ("ceil", "round", "floor")


def parse_keep(value: object) -> float | int:
    """`keep` from Python, YAML or text: a float in (0, 1] is a fraction kept, an int >= 1 a number of tokens.

    1.0 and 1 are told apart by type (from text: "1.0" and "1"). Raises ConfigError for anything else.
    """
    possible = "a fraction in (0, 1] such as 0.25, or a number of tokens >= 1 such as 192"
    if isinstance(value, str):
        try:
            value = _number(value)
        except ValueError:
            raise ConfigError(f"keep={shown(value)} is not a number; possible: {possible}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"keep={shown(value)} has type {type(value).__name__}; possible: {possible}")
    if isinstance(value, float) and not 0.0 < value <= 1.0 or isinstance(value, int) and value < 1:
        raise ConfigError(f"keep={shown(value)} is out of range; possible: {possible}")
    return value


def _number(text: str) -> float | int:
    """Parses an ASCII number; the underscores that Python accepts are refused. Raises ValueError."""
    if not re.fullmatch(r"[-+.\da-z]+", text.strip(), re.ASCII | re.IGNORECASE):
        raise ValueError(text)
    return int(text) if re.fullmatch(r"[-+]?\d{1,20}", text.strip(), re.ASCII) else float(text)


def keep_from_prune_ratio(ratio: object) -> float:
    """`prune_ratio` (fraction removed, in [0, 1)) as the fraction kept; raises ConfigError when out of range."""
    if isinstance(ratio, str):
        with contextlib.suppress(ValueError):
            ratio = _number(ratio)
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ConfigError(f"prune_ratio={shown(ratio)} is out of range; possible: a fraction removed in [0, 1)")
    return float(1 - Fraction(str(ratio)))


@dataclass(frozen=True)
class Budget:
    """How many tokens one stage at the projector keeps, and of which set.

    keep: float in (0, 1] = fraction of the visual tokens kept; int >= 1 = number of tokens kept.
    scope: what a number of tokens is counted over.
        per_image, per_clip: each image and each clip keeps `keep`; an image's tiles, or a clip's frames, compete with
            each other.
        per_request: all images and clips of one prompt share `keep`, each in proportion to its tokens.
        per_tile: each image keeps `keep`, divided evenly over its tiles, which do not compete; a tile with fewer
            tokens than its part keeps them all, and the rest goes to the other tiles. Frames are the tiles of a clip.
        per_frame: clips as in per_tile, images as in per_image.
    rounding: of fraction x tokens, "ceil" unless the strategy's paper rounds otherwise. When a number is divided over
        tiles, "floor" also loses the remainder; otherwise the first tiles get it.
    least: the fewest tokens of a clip of so many frames of so many tokens (an image is one frame), see `Stage.least`;
        None for 1.
    """

    keep: float | int
    scope: str = "per_image"
    rounding: str = "ceil"
    least: Callable[[int, int], int] | None = None

    def __post_init__(self):
        parse_keep(self.keep)
        for name, value, possible in (("scope", self.scope, SCOPES), ("rounding", self.rounding, ROUNDINGS)):
            if value not in possible:
                raise ConfigError(f"{name}={shown(value)} is unknown; possible: {', '.join(possible)}")

    @property
    def keeps_all(self) -> bool:
        """True for keep=1.0: the model is then not changed at all."""
        return isinstance(self.keep, float) and self.keep == 1.0

    def count(self, tokens: int) -> int:
        """Number of tokens kept out of `tokens`; at least 1, at most `tokens`."""
        if isinstance(self.keep, int):
            return min(self.keep, tokens)
        if self.rounding == "ceil":
            count = math.ceil(tokens * Fraction(str(self.keep)))
        elif self.rounding == "round":
            count = round(tokens * self.keep)
        else:
            count = math.floor(tokens * Fraction(str(self.keep)))
        return min(max(1, count), tokens)

    def quotas(
        self, request: Sequence[Sequence[int]], clips: Sequence[bool] = (), raster: bool = False
    ) -> list[list[int]]:
        """Tokens kept in each unit of one request.

        request: per image of one prompt, the tokens of each of its tiles (one entry when the image is one tile). clips:
        which of them are clips, whose tiles are frames; none if empty. raster: the method needs the tokens of a unit as
        one raster, so that frames never compete.
        Returns the same nesting; where tiles compete there is one entry per image.
        """
        clips, totals = clips or [False] * len(request), [sum(tiles) for tiles in request]
        shared = self.scope == "per_request" and isinstance(self.keep, int)
        counts = _split(min(self.keep, sum(totals)), totals) if shared else [self.count(n) for n in totals]
        units = []
        for tiles, clip, count in zip(request, clips, counts, strict=True):
            apart = self.scope == "per_tile" or clip and (raster or self.scope == "per_frame")
            own = count if shared else self.keep
            units.append(self._count_tiles(tiles, own) if apart else [max(count, self._least(tiles, clip))])
        return units

    def _least(self, tiles: Sequence[int], clip: bool) -> int:
        """The fewest tokens that the method keeps where these tiles compete."""
        if self.least is None:
            return 1
        return min(self.least(len(tiles), tiles[0]) if clip else self.least(1, sum(tiles)), sum(tiles))

    def _count_tiles(self, tiles: Sequence[int], keep: float | int) -> list[int]:
        """Tokens kept of each tile; tiles smaller than an even share are kept whole, and the others divide the rest."""
        if not isinstance(keep, int):
            return [max(self.count(n), self._least([n], False)) for n in tiles]
        counts, budget, larger = list(tiles), min(keep, sum(tiles)), list(range(len(tiles)))
        while larger and any(tiles[i] <= budget // len(larger) for i in larger):
            complete = [i for i in larger if tiles[i] <= budget // len(larger)]
            budget -= sum(tiles[i] for i in complete)
            larger = [i for i in larger if i not in complete]
        for rank, i in enumerate(larger):
            share, remainder = divmod(budget, len(larger))
            counts[i] = share + (rank < remainder and (self.rounding != "floor" or share == 0))
        return counts


def _split(total: int, sizes: Sequence[int]) -> list[int]:
    """Splits `total` in proportion to `sizes` by largest remainders; each part is at least 1 and at most its size."""
    exact = [Fraction(total * size, sum(sizes)) for size in sizes]
    parts = [max(1, math.floor(x)) for x in exact]
    while sum(parts) > max(total, len(parts)):
        most = max((i for i, n in enumerate(parts) if n > 1), key=lambda i: (parts[i] - exact[i], i))
        parts[most] -= 1
    while sum(parts) < total:
        least = max((i for i, n in enumerate(parts) if n < sizes[i]), key=lambda i: (exact[i] - parts[i], -i))
        parts[least] += 1
    return parts
