"""`vtc inspect`: checks as much as possible before the model is loaded, then inspects."""

from PIL import Image

import vtc
from vtc.core.errors import ConfigError
from vtc.eval.inspect.look import configs_of, look
from vtc.eval.inspect.opening import open_frames, open_picture
from vtc.eval.models import load
from vtc.eval.running.eval_settings import parse_model_args, split_list


def run(
    model: str,
    model_args: str | None,
    image: str | None,
    frames: str | None,
    question: str | None,
    sample: int | None,
    strategy: str,
    keep: str | None,
    options: dict,
    max_new_tokens: int,
    device: str | None,
) -> tuple[dict, Image.Image]:
    """The record of the requested inspection and its picture, see `look`; texts are as on the command line.

    Raises ConfigError or UnsupportedError.
    """
    strategies = split_list("strategy", strategy)
    keeps = [None] if keep is None else list(split_list("keep", keep))
    args = parse_model_args(model_args or {})
    if "keep" in options:
        raise ConfigError("--set keep=... is not possible here; possible: --keep")
    for name in strategies:  # the family may reject more, but nothing that is wrong here is right there
        for budget in keeps:
            if name not in ("none", "downsample"):
                vtc.load_strategy(name, **options, **({} if budget is None else {"keep": budget}))
    reference = None
    if frames is not None:
        other = "--image" if image is not None else "--sample" if sample is not None else None
        if other:
            raise ConfigError(f"{other} is not for --frames; possible: one of them")
        picture, source = open_frames(frames)
    elif image is None:
        if model != "demo":
            raise ConfigError(
                "--image is missing; possible: a picture's file, --frames, or --model demo, which has pictures"
            )
        from vtc.demo import benchmark

        row = benchmark.sample("test", sample or 0)
        picture, source = row["image"], row["id"]
        reference = row["answer"] if question in (None, row["question"]) else None
        question = question or row["question"]
    else:
        if sample is not None:
            raise ConfigError("--sample is not for --image; possible: one of them")
        picture, source = open_picture(image)
    if not (question or "").strip():
        raise ConfigError('--question is missing; possible: --question "What is this?"')
    loaded = load(model, args, device)
    if loaded.unsupported is not None:
        raise loaded.unsupported
    configs = configs_of(loaded.family, strategies, keeps, options)
    return look(loaded, picture, question, configs, max_new_tokens, reference, source)
