"""A model for tests of what is asked and scored: it looks at nothing, and answers by the prompt alone."""

import zlib
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from PIL import Image

ANSWERS = ("A", "B. two", "yes", "no", "3", "red", "", "The answer is C.", "unanswerable")


class Stub:
    """Takes the place of `vtc.eval.models.Loaded`. seen: of each prompt the text and the modes of its pictures, or
    of the frames of its clips."""

    family = unsupported = None
    identity = {"digest": "stub"}
    record = {"id": "stub", "type": "stub", "family": None, **identity}

    def __init__(self):
        self.seen: list[tuple[str, list[str]]] = []
        self.processor = SimpleNamespace(
            batch_decode=lambda ids, **_: [ANSWERS[one] for one in ids.flatten().tolist()], video_processor=object()
        )

    def encode(
        self, prompts: Sequence, images: Sequence[Sequence[Image.Image]], clips: Sequence = (), **_
    ) -> dict[str, torch.Tensor]:
        """The prompts as numbers of answers."""
        texts = [prompt if isinstance(prompt, str) else "".join(filter(None, prompt)) for prompt in prompts]
        frames = [[frame for clip in mine for frame in clip.frames] for mine in clips or [()] * len(texts)]
        images = [[*mine, *more] for mine, more in zip(images, frames, strict=True)]
        self.seen += [(text, [image.mode for image in mine]) for text, mine in zip(texts, images, strict=True)]
        ids = torch.tensor([[zlib.crc32(text.encode()) % len(ANSWERS)] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def answer(self, inputs: dict[str, torch.Tensor], max_new_tokens: int) -> torch.Tensor:
        """The numbers."""
        return inputs["input_ids"]

    def visual_tokens(self, inputs: dict[str, torch.Tensor]) -> list[int]:
        """One each."""
        return [1] * len(inputs["input_ids"])

    def new_tokens(self, answers: torch.Tensor) -> list[int]:
        """One each."""
        return [1] * len(answers)
