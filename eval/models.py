"""A model with its processor, loaded once for all runs, and methods to ask it a batch of questions."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vtc import families
from vtc.core.errors import ConfigError, UnsupportedError, cut, loading, reason, shown
from vtc.eval.clip_inputs import clip_inputs
from vtc.eval.data.clips import Clip
from vtc.eval.data.digest import digest
from vtc.eval.data.pictures import rgb
from vtc.eval.processors import chat, load_processor, prepare, square
from vtc.patching import find_family

MODEL_FILES = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin")
BUNDLED = ("demo", "demo-video")
PROCESSOR_ARGS = ("min_pixels", "max_pixels", "use_fast")


@dataclass(frozen=True)
class Loaded:
    """A loaded model. family: vtc's view of it, or None with the reason in `unsupported`. identity: identifies it in
    run keys. record: its description in results."""

    model: nn.Module
    processor: object
    family: object | None
    unsupported: UnsupportedError | None
    identity: dict = field(repr=False)
    record: dict = field(repr=False)

    @property
    def visual_ids(self) -> list[int]:
        """The ids of the placeholders of images and clips in `input_ids`, as far as the model's config has them."""
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        return [i for name in names if isinstance(i := getattr(self.model.config, name, None), int)]

    def encode(
        self, prompts: Sequence, images: Sequence[Sequence], system: str | None = None, pad_square: bool = False,
        clips: Sequence[Sequence[Clip]] = (),
    ) -> dict[str, Tensor]:  # fmt: skip
        """The inputs of B prompts on the model's device, padded on the left: `input_ids` [B, L], `pixel_values`, ...

        prompts: texts, or lists of texts with None in place of each picture. images: the PIL pictures of each prompt,
        put before a prompt that is a plain text. system: the text of a system turn. pad_square: see
        `vtc.eval.processors.square`. clips: of each prompt, for prompts without pictures; see `vtc.eval.clip_inputs`.
        """
        clips = clips or [()] * len(prompts)
        media = [["image"] * len(pictures) + ["video"] * len(of_prompt) for pictures, of_prompt in zip(images, clips)]
        turns = [chat(prompt, kinds, system) for prompt, kinds in zip(prompts, media)]
        texts = [self.processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
        bos = self.processor.tokenizer.bos_token
        special = not (bos and texts[0].startswith(bos))
        if any(clips) and any(images):
            raise ValueError("the prompts have pictures and clips; possible: batches with one of the two")
        if any(clips):
            return clip_inputs(self, texts, [clip for of_prompt in clips for clip in of_prompt], special)
        pictures = [[rgb(picture) for picture in prompt_images] for prompt_images in images]
        if pad_square:
            pictures = [[square(picture, self.processor) for picture in prompt_images] for prompt_images in pictures]
        # Prompts without pictures get no entry: some processors refuse an empty list.
        image_args = {"images": [prompt_images for prompt_images in pictures if prompt_images]} if any(pictures) else {}
        inputs = self.processor(text=texts, **image_args, padding=True, add_special_tokens=special, return_tensors="pt")
        return dict(inputs.to(self.model.device, dtype=self.model.dtype))

    def answer(self, inputs: dict[str, Tensor], max_new_tokens: int) -> Tensor:
        """The new token ids [B, new] of a greedy generate() call."""
        out = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        return out[:, inputs["input_ids"].shape[1] :]

    def visual_tokens(self, inputs: dict[str, Tensor]) -> list[int | None]:
        """The number of placeholders of images and clips in each prompt; None if the config does not define them."""
        ids, visual = inputs["input_ids"], self.visual_ids
        return torch.isin(ids, torch.tensor(visual, device=ids.device)).sum(1).tolist() if visual else [None] * len(ids)

    def new_tokens(self, answers: Tensor) -> list[int]:
        """The number of tokens of each answer [B, new], including the end token but not padding."""
        end = self.model.generation_config.eos_token_id
        ends = torch.tensor([] if end is None else end, dtype=torch.long, device=answers.device).flatten()
        stopped = torch.isin(answers, ends)
        first = torch.where(stopped.any(1), stopped.int().argmax(1) + 1, answers.shape[1])
        return first.tolist()


def load(name: str, args: dict, device: str | None) -> Loaded:
    """A bundled model, or one from a local directory or a hub id; `args` are passed to from_pretrained.

    Code from a hub repository runs only with `trust_remote_code=True` in `args`. Raises ConfigError in one line if
    the model does not exist or cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText

    families()  # importing a package with a family may register its classes with transformers
    path = _path(name)
    explicit = {key: str(value) for key, value in sorted(args.items()) if key not in ("token", "cache_dir")}
    args = {"trust_remote_code": False, **args}
    shared = {key: args[key] for key in ("revision", "trust_remote_code", "cache_dir", "token") if key in args}
    shared |= {"local_files_only": True} if isinstance(path, Path) else {}
    for_processor = {key: args.pop(key) for key in PROCESSOR_ARGS if key in args}
    device = _device(device)
    if isinstance(path, str):
        _reachable(path, shared)
    with loading(f"model {shown(name)} cannot be loaded"), _quiet():
        folder_digest = _digest(path) if isinstance(path, Path) else None
        processor = load_processor(path, **shared, **for_processor)
        model = AutoModelForImageTextToText.from_pretrained(path, **{**shared, **args})
        if "device_map" not in args:
            model = model.to(device)
    prepare(name, processor)
    family, unsupported = None, None
    try:
        family = find_family(model)
    except UnsupportedError as error:
        unsupported = error
    model.eval()
    commit = getattr(model.config, "_commit_hash", None)
    identity = {
        "digest": folder_digest or f"{name}@{commit}",
        "args": explicit,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config, "_attn_implementation", None),
        "device": model.device.type,
    }
    record = {
        "id": name if not isinstance(path, Path) or name in BUNDLED else path.resolve().name,
        "type": model.config.model_type,
        "family": None if family is None else family.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "generation_config": {k: v for k, v in model.generation_config.to_diff_dict().items() if _plain(v)},
        **identity,
    }
    return Loaded(model, processor, family, unsupported, identity, record)


def _path(name: str) -> Path | str:
    """A Path for a local directory, a string for a hub id."""
    if name in BUNDLED:
        from vtc.demo import MODEL_DIR
        from vtc.demo.video import VIDEO_MODEL_DIR

        return VIDEO_MODEL_DIR if name == "demo-video" else MODEL_DIR
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise ConfigError(f"model folder {shown(name)} has no config.json; possible: one made by save_pretrained")
        return path
    if name.count("/") != 1 or name[0] in "/.~" or name.endswith("/"):
        possible = "demo, demo-video, a local directory, or a hub id OWNER/NAME"
        raise ConfigError(f"model {shown(name)} does not exist; possible: {possible}")
    return name


def _reachable(name: str, args: dict) -> None:
    """Asks the hub once, so that a wrong name fails at once instead of after the many retries of transformers."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    revision = args.get("revision")
    try:
        if isinstance(try_to_load_from_cache(name, "config.json", args.get("cache_dir"), revision), str):
            return
        HfApi().model_info(name, revision=revision, timeout=20, token=args.get("token"))
    except Exception as error:
        problem = f"model {shown(name)} is no local directory, and the hub does not give it"
        raise ConfigError(f"{problem}: {reason(error)}") from None


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"--device {shown(name)} cannot be used: {cut(why, 250)}") from None
    return device


def _digest(folder: Path) -> str:
    """A digest of config, tokenizer, processor and weights."""
    return digest(folder, lambda file: file.parent == folder and file.suffix in MODEL_FILES)


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool | list)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns off the progress bars of transformers meanwhile."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()
