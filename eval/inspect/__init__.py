"""Pictures of what strategies keep, drop and merge: `vtc inspect` and `vtc.inspect`.

Running the model once per strategy (`look`) gives a record of token positions and answers (`record`), from which the
pictures are drawn (`draw`, `page`); the model is not needed for that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from vtc.config.strategy import Strategy


def inspect(
    model: "nn.Module",
    processor: object,
    image: object,
    question: str,
    strategy: "Strategy" = "hiprune",
    keep: float | int | str | Sequence[Any] | None = None,
    *,
    max_new_tokens: int = 32,
    output: str | Path | None = None,
    **options: Any,
) -> "Figure":
    """A matplotlib Figure of which visual tokens of a picture or clip strategies keep, drop and merge, with the answers
    of the full model and of each pruned one. A notebook displays it; `figure.savefig` writes it to a file.

    model, processor: as transformers loads them; an existing patch is suspended meanwhile and left in place. image: a
    path or a PIL picture; for a clip, a list of them, all of one size. strategy: what `vtc.patch` accepts, or a list of
    these with a row of the figure for each (a composition is "hiprune+transprune"). keep: one budget for all, or a
    list. output: a folder for the files that `vtc inspect` writes. options: those of `vtc.patch`, applied to every
    strategy.
    Raises ConfigError or UnsupportedError in one line.
    """
    from vtc.eval.inspect.draw import draw
    from vtc.eval.inspect.look import configs_of, look, wrap
    from vtc.eval.inspect.opening import open_frames, open_picture
    from vtc.eval.inspect.write import write

    loaded = wrap(model, processor)
    picture, source = open_frames(image) if isinstance(image, list | tuple) else open_picture(image)
    configs = configs_of(loaded.family, _listed(strategy), _listed(keep), options)
    record, shown = look(loaded, picture, question, configs, max_new_tokens, source=source)
    if output is not None:
        write(record, shown, Path(output))
    return draw(record, shown)


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
