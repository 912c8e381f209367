"""The inputs of prompts with clips: by the model's processor, or by its image processor where torchvision is missing.

transformers needs torchvision for the video part of a processor. Without it, a family may make a clip's patches with
the image processor (`vtc.patches._family.Family.clip_arguments`), frame by frame with the limits of size for pictures.
Compared with the video processor on torchvision 0.28, these values were equal (to 3e-7) where nothing was resized, and
else within one step of 8 bits, as Pillow rounds differently.
"""

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtc.core.errors import ConfigError, UnsupportedError
from vtc.eval.data.clips import Clip

POSSIBLE = "possible: a model whose processor takes videos, with torchvision installed"


def check_clips(loaded: object) -> None:
    """Raises UnsupportedError in one line for a model whose clips cannot be prepared here."""
    if _has_video_part(loaded.processor):
        return
    kind = loaded.model.config.model_type
    if loaded.family is None or loaded.family.video is None:
        raise UnsupportedError(f"{kind} takes no clips here: its processor has no video part; {POSSIBLE}")
    frame = Image.new("RGB", (224, 224))
    loaded.family.clip_arguments(loaded.processor.image_processor, [frame, frame], 1.0)


def clip_inputs(
    loaded: object, texts: Sequence[str], clips: Sequence[Clip], add_special_tokens: bool
) -> dict[str, Tensor]:
    """Arguments of generate() for B prompts on the model's device, padded on the left: `input_ids` [B, L], the patches
    or pixels of all clips, ...

    loaded: a `vtc.eval.models.Loaded`. texts: of the chat template. clips: of all prompts, in their order. Raises
    ConfigError if the template has not one place for each.
    """
    processor, model = loaded.processor, loaded.model
    token = getattr(processor, "video_token", None)
    if token is not None and (places := sum(text.count(token) for text in texts)) != len(clips):
        raise ConfigError(
            f"the chat template has {places} places for {len(clips)} clips; possible: a template that takes videos"
        )
    tokens = {"padding": True, "add_special_tokens": add_special_tokens, "return_tensors": "pt"}
    if _has_video_part(processor):
        videos = [np.stack([np.asarray(frame) for frame in clip.frames]) for clip in clips]
        known = [_metadata(clip) for clip in clips]
        inputs = processor(text=list(texts), videos=videos, video_metadata=known, do_sample_frames=False, **tokens)
    else:
        inputs = _by_family(loaded, texts, clips, tokens)
    return {
        name: value.to(model.device, model.dtype if name.startswith("pixel_values") else value.dtype)
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    }


def _has_video_part(processor: object) -> bool:
    return getattr(processor, "video_processor", None) is not None


def _metadata(clip: Clip) -> dict:
    """What transformers' `VideoMetadata` is made of: times follow from the frames' numbers."""
    width, height = clip.frames[0].size
    return {
        "total_num_frames": clip.total, "fps": clip.fps, "frames_indices": list(clip.indices), "width": width,
        "height": height, "duration": clip.total / clip.fps,
    }  # fmt: skip


def _by_family(loaded: object, texts: Sequence[str], clips: Sequence[Clip], tokens: dict) -> dict[str, Tensor]:
    """As the processor with its video part: each place is repeated for all tokens of its clip."""
    processor, family = loaded.processor, loaded.family
    made = [family.clip_arguments(processor.image_processor, clip.frames, clip.sampled_fps) for clip in clips]
    counts, written = iter([count for _, count in made]), []
    for text in texts:
        first, *later = text.split(processor.video_token)
        written.append(first + "".join(processor.video_token * next(counts) + part for part in later))
    inputs = dict(processor.tokenizer(written, **tokens))
    if "mm_token_type_ids" in inspect.signature(type(loaded.model).forward).parameters:
        inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == family.token_ids()["video"]).long()
    names = made[0][0]
    return inputs | {name: torch.cat([arguments[name] for arguments, _ in made]) for name in names}
