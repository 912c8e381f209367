"""Clips for `vtc inspect`: the model's inputs for a list of frames, and the sheet of them that is stored."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from vtc.core.errors import ConfigError, reason
from vtc.eval.clip_inputs import clip_inputs
from vtc.eval.data.clips import Clip
from vtc.eval.data.pictures import rgb
from vtc.eval.models import Loaded

RATE = 2.0  # frames per second: what the processors of the Qwen family sample
LARGEST = 320  # pixels: the longer side of a frame on the sheet


def clip_prompt(loaded: Loaded, frames: Sequence[Image.Image], question: str) -> tuple[dict[str, Tensor], object]:
    """The inputs of one prompt with a clip before its text, on the model's device, and the clip's layout. Raises
    ConfigError for a clip that the processor refuses."""
    processor, family = loaded.processor, loaded.family
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    bos, count = processor.tokenizer.bos_token, len(frames)
    clip = Clip(tuple(rgb(frame) for frame in frames), tuple(range(count)), count, RATE)
    try:
        inputs = clip_inputs(loaded, [text], [clip], add_special_tokens=not (bos and text.startswith(bos)))
    except (ValueError, TypeError, RuntimeError) as error:
        kind = type(processor).__name__
        raise ConfigError(f"{kind} refuses a clip of {count} frames: {reason(error)}") from None
    (layout,) = family.clip_layouts({family.video.get(name, name): value for name, value in inputs.items()})
    return inputs, layout


def shown_frames(frames: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """The first picture of each of the `count` frames that the encoder made of them, as many of one frame as of the
    next."""
    each = -(-len(frames) // count)
    return [frames[min(i * each, len(frames) - 1)] for i in range(count)]


def sheet_of(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames one under another, shrunk if they are large."""
    small = []
    for frame in frames:
        small.append(frame.copy())
        small[-1].thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    wide, high = small[0].size
    sheet = Image.new("RGB", (wide, high * len(small)))
    for i, frame in enumerate(small):
        sheet.paste(frame, (0, i * high))
    return sheet
