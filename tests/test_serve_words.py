"""Words of `vtc serve` that mean nothing, or that vLLM would understand otherwise: one line each, nothing started."""

import pytest

from tests import test_serve_cli
from tests.test_cli import run
from vtc.vllm import arguments

vllm = test_serve_cli.vllm

WRONG = {
    "--hf-overrid {\"a\":1}": "'--hf-overrid' is an abbreviation; possible: --hf-overrides",
    "--hf_o.architectures 1": "--hf-overrides, in full",
    "--pipeline 2": "--pipeline-parallel-size, in full",
    "-c.cudagraph_mm_encoder true": "possible: -cc, in full",
    "--conf a.yaml": "--config, in full",
    "--kee 0.5": "--keep, in full",
    "-- --keep 0.5": "'--keep' is an option of vtc serve",
    "--model other": "possible: vtc serve MODEL",
    "--port 1 -- --keep": "possible: on the command line, before any --",
    "--port 1 --- 2": "'---' is no option",
    "--x -0.5": "possible: --NAME=VALUE",
    "--= 1": "is no option",
    "--x..y 1": "is no option",
    "--port 1 --x.y": "'--x.y' has 0 values",
    "--config": "'--config' has 0 values",
    "--config a.yaml b.yaml": "'--config' has 2 values",
    "--config a.json": "does not end in .yaml",
    "--config a.yaml --config b.yaml": "--config stands 2 times",
    "--revision": "'--revision' has 0 values",
    "-pp": "True is no whole number",
    "-pp +2": "'+2' is no whole number",
    "-pp 2.5": "2.5 is no whole number",
    "-pp \N{ARABIC-INDIC DIGIT TWO}": "is no whole number",
    "-cc {": "--compilation-config '{' is no object",
    "-cc {} -cc.cudagraph_mm_encoder true": "several forms",
    "-cc.cudagraph_mm_encoder true --compilation-config.x 1": "several forms",
    "--hf-overrides": "--hf-overrides True is no object",
    "--hf-overrides " + '{"a":' * 3000 + "1" + "}" * 3000: "is no object",
    "--keep nan": "keep=nan is out of range",
    "--keep 1e999": "out of range",
    "--keep \N{ARABIC-INDIC DIGIT THREE}": "is not a number",
    "--keep 1_0": "'1_0' is not a number",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(vllm, capsys, words):
    """One line that says what is possible, exit code 2."""
    code, out, err = run(capsys, "serve", "demo", *words.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert WRONG[words] in err
    assert "possible: " in err
    assert len(err) <= 500


CONFIGS = {
    "port: 1\nport: 2": "the key 'port' stands twice", "- a": "is no mapping", "": "is no mapping", "a: [": "YAML",
    "3: 4": "has the key 3", "config: b.yaml": "has the key 'config'", "model: other": "possible: vtc serve MODEL",
    "keep: 0.5": "'--keep' is an option of vtc serve", "hf-overrid: {a: 1}": "--hf-overrides, in full",
    "hf_overrides.vtc: 1": "names vtc", "hf-overrides: [1, 2]": "is no object", "a b: 1": "is no option",
    "compilation_config: {cudagraph_mm_encoder: true}": "cudagraph_mm_encoder",
    "enable-mm-embeds: true": "enable_mm_embeds",
    "port: 2020-01-01": "'timestamp' is no plain value",
}  # fmt: skip


@pytest.mark.parametrize("text", CONFIGS)
def test_wrong_config_files(vllm, capsys, tmp_path, text):
    """What a file says is looked at as if it stood on the command line."""
    (tmp_path / "mine.yaml").write_text(text)
    code, out, err = run(capsys, "serve", "demo", "--config", tmp_path / "mine.yaml")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert CONFIGS[text] in err


def test_config_files_as_vllm_reads_them(vllm, tmp_path):
    """Overrides may be JSON in a text, false is left out, and the file's name is a word of its own."""
    file = tmp_path / "mine.yaml"
    file.write_text("hf-overrides: '{\"a\": 1}'\nenable-mm-embeds: false\nport: 1\nnames: [a, b]\n")
    command, overrides = test_serve_cli.started(f"--config={file}")
    assert command[command.index("--config") + 1] == str(file)
    assert overrides["a"] == 1
    given = arguments.values(["--config", str(file), "--port", "2"])
    assert given == {
        "config": str(file),
        "hf_overrides": {"a": 1},
        "enable_mm_embeds": False,
        "port": 2,
        "names": ["a", "b"],
    }
