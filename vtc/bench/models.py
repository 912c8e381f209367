"""The model that is measured: a preset or a local folder, on its device, with the best attention there is."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vtc.bench.presets import build, config_of, count
from vtc.bench.prompts import special_ids
from vtc.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROOM = 0.9  # share of the free memory that weights may take; the rest is for activations and the KV cache


@dataclass(frozen=True)
class Subject:
    """What is measured. native: patches along a crop of a preset's tower, None where the tower must stay as it is;
    identity: what names the model in a result."""

    model: nn.Module
    native: int | None
    identity: dict


def device_of(name: str | None) -> torch.device:
    """The device of this name, or the best there is; raises ConfigError when it is not there."""
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


def best_attention(device: torch.device, dtype: torch.dtype) -> str:
    """flash_attention_2 where it is installed and works, else sdpa."""
    from transformers.utils import is_flash_attn_2_available

    flash = device.type == "cuda" and dtype.itemsize == 2 and is_flash_attn_2_available()
    return "flash_attention_2" if flash else "sdpa"


def load(
    preset: str | None, folder: str | None, device: torch.device, dtype: torch.dtype, attention: str | None, seed: int
) -> Subject:
    """The preset with random weights, or the model in a folder; ready for generate().

    Raises ConfigError for both or neither of them, weights beyond the free memory, a folder that cannot be loaded, and
    eager attention (which no baseline should have).
    """
    if (preset is None) == (folder is None):
        raise ConfigError("one of --preset and --model is needed; possible: --preset tiny, or --model DIR")
    attention = attention or best_attention(device, dtype)
    if preset is not None:
        config = config_of(preset)
        parameters = count(config)
        check_fits(f"preset {preset!r}", parameters * dtype.itemsize, device)
        shapes = json.dumps(config.to_diff_dict(), sort_keys=True, default=str)
        model = build(config, device, dtype, attention, seed)
        vision = config.vision_config
        native = vision.image_size // vision.patch_size if config.model_type == "llava" else None
        name, digest = preset, hashlib.sha256(f"{seed}:{shapes}".encode()).hexdigest()[:16]
    else:
        path = _folder(folder)
        check_fits(f"model {folder!r}", sum(f.stat().st_size for f in path.glob("*.safetensors")), device)
        model, native = _from_folder(path, device, dtype, attention), None
        name, digest = path.resolve().name, _digest(path)
    check_attention(model)
    _prepare(model)
    identity = {
        "model": name, "digest": digest, "parameters": sum(p.numel() for p in model.parameters()),
        "random_weights": preset is not None, "dtype": str(dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation, "device": device.type,
    }  # fmt: skip
    return Subject(model, native, identity)


def check_fits(what: str, size: int, device: torch.device) -> None:
    """Raises ConfigError when weights of `size` bytes do not fit into the free memory of a device."""
    free = _free(device)
    if free is not None and size > ROOM * free:
        raise ConfigError(
            f"{what} needs {size / 1e9:.1f} GB for its weights, {device} has {free / 1e9:.1f} GB free; possible: a "
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
                "possible: --attention sdpa or flash_attention_2"
            )


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(f"--model {name!r} is no folder with a config.json; possible: one made by save_pretrained")
    return path


def _from_folder(path: Path, device: torch.device, dtype: torch.dtype, attention: str) -> nn.Module:
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, dtype=dtype, attn_implementation=attention
        )
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"--model {str(path)!r} cannot be loaded: {reason}") from None
    finally:
        if shown:
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
    """Greedy, never ending early, and no placeholder of an image is ever written."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0, suppress_tokens=special_ids(model.config),
        return_dict_in_generate=True,
    )  # fmt: skip
