"""Asks a model one question about one picture or clip, unpruned and under each strategy, and records whether each
visual token was kept, merged or dropped."""

import contextlib
import datetime
import platform
from collections.abc import Iterator, Mapping, Sequence

import torch
from PIL import Image
from torch import nn

import vtc
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.eval.clip_inputs import check_clips
from vtc.eval.inspect.filmstrip import clip_prompt, sheet_of, shown_frames
from vtc.eval.inspect.record import IN_ENCODER, SCHEMA
from vtc.eval.models import Loaded
from vtc.eval.processors import prepare
from vtc.eval.results.versions import PACKAGES, version
from vtc.patching import find_family

LARGEST = 1024  # pixels: the longer side of the picture stored with a record


def wrap(model: nn.Module, processor: object) -> Loaded:
    """A model that is already loaded, in the form `look` expects; raises UnsupportedError for an unknown family."""
    return Loaded(model, processor, find_family(model), None, {}, {"id": model.config.name_or_path or None})


def configs_of(family: object, strategies: Sequence, keeps: Sequence, options: Mapping) -> list:
    """Every strategy with every budget (None: the strategy's own), resolved for a family; raises ConfigError."""
    configs = []
    for strategy in strategies:
        if strategy in ("none", "downsample"):
            raise ConfigError(
                f"strategy {strategy!r} has no tokens to show; possible: {', '.join(vtc.strategies())} (the full "
                "model is always asked too)"
            )
        for keep in keeps:
            settings = dict(options) if keep is None else {**options, "keep": keep}
            configs.append(vtc.load_strategy(strategy, family.name, **settings))
    return configs


def look(
    loaded: Loaded,
    picture: Image.Image | Sequence[Image.Image],
    question: str,
    configs: Sequence,
    max_new_tokens: int = 32,
    reference: str | None = None,
    source: str | None = None,
) -> tuple[dict, Image.Image]:
    """Asks the full model and the model under each strategy; returns the record (see `vtc.eval.inspect.record`) and
    its picture, shrunk if it is large. The model is left as it was.

    picture: one in RGB, or the frames of a clip, all of one size; what is returned is then the sheet of its frames.
    reference: the right answer, if known. source: the picture's name.
    """
    if loaded.unsupported is not None:
        raise loaded.unsupported
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise ConfigError(f"max-new-tokens {max_new_tokens!r} is out of range; possible: a whole number >= 1")
    family, model = loaded.family, loaded.model
    for config in configs:  # refuse whatever can be refused before anything takes time
        with vtc.patched(model, config.dump(), processor=loaded.processor):
            pass
    inputs, layout, views, stored = _prepared(loaded, picture, question)

    def answer() -> str:
        with torch.inference_mode():
            new = loaded.answer(inputs, max_new_tokens)
        return loaded.processor.batch_decode(new, skip_special_tokens=True)[0].strip()

    with vtc.patched(model, "uniform", keep=1.0):  # suspends any patch that is on the model
        full = answer()
    runs = []
    for config in configs:
        with vtc.patched(model, config.dump(), processor=loaded.processor):
            text = answer()
            runs.append(_run(config, text, None if config.keeps_all else vtc.report(model), layout.tokens))
    first = picture if isinstance(picture, Image.Image) else picture[0]
    clip = {} if first is picture else {"frames": layout.frames, "pictures": len(picture)}
    record = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"vtc": vtc.__version__, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "model": {
            "name": loaded.record["id"],
            "family": family.name,
            "layers": family.language_shape().layers,
        },
        "question": question,
        "reference": reference,
        "max_new_tokens": max_new_tokens,
        "picture": {"source": source, "width": first.width, "height": first.height, **clip},
        "tokens": layout.tokens,
        "views": [
            {
                "name": view.name,
                "offsets": view.offsets.tolist(),
                "boxes": [[round(x, 3) for x in box] for box in view.boxes.tolist()],
                "crops": [[round(x, 3) for x in box] for box in view.crops.tolist()],
            }
            for view in views
        ],
        "full": {"answer": full},
        "runs": runs,
    }
    return record, stored


def _prepared(
    loaded: Loaded, picture: Image.Image | Sequence[Image.Image], question: str
) -> tuple[dict, object, tuple, Image.Image]:
    """The inputs, the layout, its views, and the picture to store."""
    family, processor = loaded.family, loaded.processor
    if isinstance(picture, Image.Image):
        with _padding_side(loaded):
            inputs = loaded.encode([question], [[picture]])
        (layout,) = family.layouts(inputs)
        stored = picture.copy()
        stored.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        return inputs, layout, family.views(processor.image_processor, picture.size[::-1], layout), stored
    check_clips(loaded)
    with _padding_side(loaded):
        inputs, layout = clip_prompt(loaded, picture, question)
    views = family.views(processor.video_processor, picture[0].size[::-1], layout)
    if len(views) != layout.frames:
        raise UnsupportedError(f"{family.name} does not say what the frames of a clip show; possible: images")
    return inputs, layout, views, sheet_of(shown_frames(picture, layout.frames))


def _run(config: object, answer: str, report: object, tokens: int) -> dict:
    image = None if report is None else report.images[0]
    steps = []
    for number, step in enumerate([] if image is None else image.steps):
        layer = IN_ENCODER if step.site == "encoder" else step.layer
        steps.append(step.to_dict() | {"layer": layer, "merged_into": None} | image.flow_dict(number))
    return {
        "strategy": config.name,
        "keep": config.keep,
        "average": float(tokens) if report is None else report.average_tokens,
        "last": tokens if image is None else image.after,
        "answer": answer,
        "notes": [] if report is None else list(report.notes),
        "resolved": {key: value for key, value in config.dump().items() if key != "description"},
        "steps": steps,
    }


@contextlib.contextmanager
def _padding_side(loaded: Loaded) -> Iterator[None]:
    """Checks the processor and sets it up for one prompt; restores it afterwards."""
    tokenizer = getattr(loaded.processor, "tokenizer", None)
    names = ("padding_side", "pad_token")
    before = {name: getattr(tokenizer, name, None) for name in names}
    prepare(str(loaded.record["id"]), loaded.processor)
    try:
        yield
    finally:
        for name, value in before.items():
            if getattr(tokenizer, name) != value:
                setattr(tokenizer, name, value)
