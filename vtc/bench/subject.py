"""The model that is measured: a preset or a local folder, on its device, with the best attention available."""

import copy
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vtc.bench.presets import build, config_of
from vtc.core.errors import ConfigError, loading, shown
from vtc.patches import FAMILIES
from vtc.patching import find_family

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROOM = 0.9  # share of the free memory that weights may take; the rest is for activations and the KV cache


@dataclass(frozen=True)
class Subject:
    """A model that is measured. native: patches along a crop of a preset's tower, None where the tower must stay as it
    is."""

    model: nn.Module
    native: int | None


@dataclass(frozen=True)
class Chosen:
    """A model by name, before its weights are loaded. folder: None for a preset; identity: describes it in a result;
    skeleton: the model on the meta device, on which everything can be checked first."""

    config: object
    folder: Path | None
    device: torch.device
    dtype: torch.dtype
    seed: int
    identity: dict
    skeleton: Subject

    def load(self) -> Subject:
        """Loads the weights, ready for generate(). Raises ConfigError when they do not fit or cannot be loaded."""
        name, attention = f"model {self.identity['model']!r}", self.identity["attention"]
        if self.folder is None:
            check_fits(name, self.identity["parameters"] * self.dtype.itemsize, self.device)
            model = build(self.config, self.device, self.dtype, attention, self.seed)
        else:
            check_fits(name, sum(f.stat().st_size for f in self.folder.glob("*.safetensors")), self.device)
            model = _from_folder(self.folder, self.device, self.dtype, attention)
        check_attention(model)
        _prepare(model)
        return Subject(model, self.skeleton.native)


def device_of(name: str | None) -> torch.device:
    """The device of this name, or the best available; raises ConfigError for one that is not available."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    possible = ["cpu", *(["cuda", *(f"cuda:{i}" for i in range(gpus))] if gpus else [])]
    name = name or ("cuda" if gpus else "cpu")
    if name not in possible:
        raise ConfigError(f"--device {name!r} is not there; possible: {', '.join(possible)}")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def dtype_of(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of this name; bfloat16 on a GPU and float32 on a CPU if none is given."""
    name = name or ("bfloat16" if device.type == "cuda" else "float32")
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name!r} is unknown; possible: {', '.join(DTYPES)}")
    return DTYPES[name]


def attention_of(name: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The attention of this name, or the best available: flash_attention_2 where it is installed and works, else sdpa.

    Raises ConfigError for one that is not available, and for eager attention, which no baseline should have.
    """
    from transformers.utils import is_flash_attn_2_available

    flash = device.type == "cuda" and dtype.itemsize == 2 and is_flash_attn_2_available()
    possible = [*["flash_attention_2"] * flash, "sdpa"]
    if name == "eager":
        raise ConfigError(
            f"--attention 'eager' is a slow baseline that would flatter every strategy; possible: {', '.join(possible)}"
        )
    if name is not None and name not in possible:
        raise ConfigError(f"--attention {name!r} is not there; possible: {', '.join(possible)}")
    return name or possible[0]


def choose(
    preset: str | None, folder: str | None, device: torch.device, dtype: torch.dtype, attention: str, seed: int
) -> Chosen:
    """The preset, or the model in a folder. Raises ConfigError for both or neither, and for an unknown one."""
    if (preset is None) == (folder is None):
        raise ConfigError("one of --preset and --model is needed; possible: --preset tiny, or --model DIR")
    if preset is not None:
        config, path, name = config_of(preset), None, preset
        shapes = json.dumps(config.to_diff_dict(), sort_keys=True, default=str)
        digest = hashlib.sha256(f"{seed}:{shapes}".encode()).hexdigest()[:16]
    else:
        path = _folder(folder)
        config, name, digest = _config(path), path.resolve().name, _digest(path)
    with loading(f"{shown(name)} cannot be measured", "a preset, or a folder with a vision-language model"):
        model = build(config, torch.device("meta"), dtype, attention)
    _prepare(model)
    identity = {
        "model": name, "digest": digest, "parameters": sum(p.numel() for p in model.parameters()),
        "random weights": preset is not None, "dtype": str(dtype).removeprefix("torch."), "attention": attention,
        "device": device.type,
    }  # fmt: skip
    native = None if preset is None else find_family(model).native_side()
    return Chosen(copy.deepcopy(config), path, device, dtype, seed, identity, Subject(model, native))


def check_fits(name: str, size: int, device: torch.device) -> None:
    """Raises ConfigError when weights of `size` bytes do not fit into the free memory of a device."""
    free = _free(device)
    if free is not None and size > ROOM * free:
        raise ConfigError(
            f"{name} needs {size / 1e9:.1f} GB for its weights, {device} has {free / 1e9:.1f} GB free; possible: a "
            "smaller one, --dtype bfloat16, or another --device"
        )


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: nothing is known of it
        return None


def check_attention(model: nn.Module) -> None:
    """Raises ConfigError for a model that computes any of its attention in eager mode."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == "eager":
            raise ConfigError(
                f"{type(module).__name__} has eager attention, a slow baseline that would flatter every strategy; "
                "possible: --attention sdpa"
            )


def _folder(name: str) -> Path:
    path = Path(os.path.expanduser(name))
    if not os.path.isfile(path / "config.json"):
        raise ConfigError(
            f"--model {shown(name)} is no folder with a config.json; possible: one made by save_pretrained"
        )
    return path


def _config(path: Path) -> object:
    from transformers import AutoConfig

    FAMILIES.outside()  # a package that brings one may tell transformers of its classes when it is imported
    with loading(f"--model {shown(str(path))} has no config that can be read"):
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _from_folder(path: Path, device: torch.device, dtype: torch.dtype, attention: str) -> nn.Module:
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with loading(f"--model {shown(str(path))} cannot be loaded"):
            model = AutoModelForImageTextToText.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, dtype=dtype, attn_implementation=attention
            )
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.to(device).eval()


def _digest(folder: Path) -> str:
    """sha256 over the config and the names, sizes and first bytes of the weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{file.stat().st_size}:".encode() + stream.read(2**20))
    return digest.hexdigest()[:16]


def _prepare(model: nn.Module) -> None:
    """Makes generate() greedy, without early end and without image placeholders in its output."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
        suppress_tokens=find_family(model).special_ids(),
    )  # fmt: skip
