"""Pictures of what strategies keep, drop and merge: `vtc inspect` and `vtc.inspect`.

One call of the model per strategy (`look`) gives a record of places and answers (`record`), from which the pictures
are drawn (`draw`, `page`), also long after the model is gone.
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
    """A matplotlib Figure of what strategies keep, drop and merge of a picture, with the answers of the full and of
    each pruned model. A notebook shows it by itself; `figure.savefig` writes it.

    model, processor: as transformers loads them; a patch that is on the model stays on it, but takes no part. image: a
    path or a PIL picture. strategy: what `vtc.patch` takes, or a list with a row of the figure for each (a composition
    is "hiprune+transprune"). keep: one budget for all, or a list. output: a folder that gets what `vtc inspect` writes
    there. options: as `vtc.patch` has them, for every strategy.
    Raises ConfigError or UnsupportedError in one line.
    """
    from vtc.eval.inspect.draw import draw
    from vtc.eval.inspect.look import configs_of, look, open_picture, wrap
    from vtc.eval.inspect.write import write

    loaded = wrap(model, processor)
    picture, source = open_picture(image)
    configs = configs_of(loaded.family, _listed(strategy), _listed(keep), options)
    record, shown = look(loaded, picture, question, configs, max_new_tokens, source=source)
    if output is not None:
        write(record, shown, Path(output))
    return draw(record, shown)


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
