"""Folders that hold no model, a damaged one, or one that would run code: one line that names the folder."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from tests.test_cli import run
from vtc.core.errors import ConfigError, loading
from vtc.demo import MODEL_DIR


class Runs:
    """An object whose unpickling would call something."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def configured(**changed) -> dict[str, bytes]:
    """The model's config with other values."""
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    return {"config.json": json.dumps(config | changed).encode()}


WEIGHTS = "model.safetensors"
OWN_CODE = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}
DAMAGED = {
    "pickled": ({WEIGHTS: None, "pytorch_model.bin": pickle.dumps({"a": Runs()})}, "possible: safetensors"),
    "no-weights": ({WEIGHTS: None}, "cannot be loaded"),
    "cut-weights": ({WEIGHTS: (MODEL_DIR / WEIGHTS).read_bytes()[:1000]}, "cannot be loaded"),
    "empty-weights": ({WEIGHTS: b""}, "cannot be loaded"),
    "no-index": ({WEIGHTS: None, "model.safetensors.index.json": b"[1]"}, "cannot be loaded"),
    "no-config": ({"config.json": None}, "has no config.json"),
    "config-list": ({"config.json": b"[]"}, "cannot be loaded"),
    "config-no-text": ({"config.json": b"\xff\xfe"}, "cannot be loaded"),
    "config-no-type": ({"config.json": b"{}"}, "model_type"),
    "no-vision-config": (configured(vision_config=3), "vision_config"),
    "no-size": (configured(vision_config={"patch_size": 0, "model_type": "clip_vision_model"}), "cannot be loaded"),
    "own-code": (configured(model_type="own", auto_map=OWN_CODE), "custom code"),
    "tokenizer-list": ({"tokenizer_config.json": b"[]"}, "cannot be loaded"),
}  # fmt: skip


def damaged(folder: Path, files: dict[str, bytes | None]) -> Path:
    """A copy of the demo model with other files, None for without."""
    shutil.copytree(MODEL_DIR, folder)
    for name, data in files.items():
        (folder / name).unlink(missing_ok=True)
        if data is not None:
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", DAMAGED)
def test_eval(capsys, tmp_path, name):
    """Nothing of what the libraries say stands around the line, and nothing of a pickle is run."""
    files, part = DAMAGED[name]
    words = ["--strategy", "none", "--limit", "5", "--output", tmp_path / "out"]
    code, out, err = run(capsys, "eval", "--model", damaged(tmp_path / "my_model", files), *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "my_model" in err
    assert part in err
    assert len(err) <= 500


@pytest.mark.parametrize("name", ["config-list", "config-no-type", "no-vision-config", "own-code", "no-config"])
def test_bench_and_serve(capsys, tmp_path, name):
    """Commands that read the config alone."""
    folder = damaged(tmp_path / "my_model", DAMAGED[name][0])
    bench = ["bench", "--model", folder, "--device", "cpu", "--output", tmp_path / "out"]
    for words in (bench, ["serve", folder, "--check"]):
        code, out, err = run(capsys, *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "my_model" in err
        assert len(err) <= 500


def test_loading_lets_own_errors_through():
    """What vtc says of a model stays as it is; a long text is cut, an empty one is its kind."""
    with pytest.raises(ConfigError, match="^mine$"), loading("model"):
        raise ConfigError("mine")
    with pytest.raises(ConfigError, match=r"^model 'a': ZeroDivisionError; possible: "), loading("model 'a'"):
        raise ZeroDivisionError
    with pytest.raises(ConfigError) as caught, loading("model 'a'"):
        raise RuntimeError("x" * 10_000)
    assert len(str(caught.value)) < 400
