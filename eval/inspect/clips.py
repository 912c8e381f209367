"""Clips for `vtc inspect`: the model's inputs for a list of frames, and the sheet of them that is stored."""

import importlib.util
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from vtc.core.errors import ConfigError, UnsupportedError, reason
from vtc.core.layout import ImageLayout
from vtc.eval.data.pictures import rgb
from vtc.eval.models import Loaded

RATE = 2.0  # frames per second: what the processors of the Qwen family sample
LARGEST = 320  # pixels: the longer side of a frame on the sheet


def check_clips(loaded: Loaded) -> None:
    """Raises UnsupportedError where the family takes no clips, or its processor cannot build one."""
    if loaded.family.video is None:
        raise UnsupportedError(f"{loaded.family.name} takes no clips; possible: images")
    if getattr(loaded.processor, "video_processor", None) is None:
        without = importlib.util.find_spec("torchvision") is None
        why = "torchvision, which builds clips, is not installed" if without else "its processor has no video part"
        cure = "pip install torchvision" if without else "a folder with the model's own processor"
        raise UnsupportedError(f"{loaded.family.name}: {why}; possible: {cure}")


def clip_inputs(loaded: Loaded, frames: Sequence[Image.Image], question: str) -> tuple[dict[str, Tensor], ImageLayout]:
    """The inputs of one prompt with a clip before its text, on the model's device, and the clip's layout. Raises
    ConfigError for a clip that the processor refuses."""
    processor, family = loaded.processor, loaded.family
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    bos, count = processor.tokenizer.bos_token, len(frames)
    about = {"total_num_frames": count, "fps": RATE, "duration": count / RATE, "frames_indices": list(range(count))}
    try:
        inputs = processor(
            text=[text], videos=[[rgb(frame) for frame in frames]], video_metadata=[about], do_sample_frames=False,
            padding=True, add_special_tokens=not (bos and text.startswith(bos)), return_tensors="pt",
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError) as error:
        kind = type(processor).__name__
        raise ConfigError(f"{kind} refuses a clip of {count} frames: {reason(error)}") from None
    inputs = dict(inputs.to(loaded.model.device, dtype=loaded.model.dtype))
    (layout,) = family.clip_layouts({family.video.get(name, name): value for name, value in inputs.items()})
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}, layout


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
