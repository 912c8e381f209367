"""Evenly spaced points of a raster, used by `uniform` and `pool`."""

import math


def strided_grid(rows: int, columns: int, count: int) -> list[int]:
    """`count` distinct flat indices (ascending) of a rows x columns raster, spread evenly.

    The number of rows used follows the raster's aspect ratio; a remainder is spread evenly, one each, over the rows.
    """
    used = min(rows, max(1, round(math.sqrt(count * rows / columns)), math.ceil(count / columns)), count)
    chosen = []
    for i in range(used):
        row = (2 * i + 1) * rows // (2 * used)
        share = count * (i + 1) // used - count * i // used
        chosen += [row * columns + (2 * j + 1) * columns // (2 * share) for j in range(share)]
    return chosen
