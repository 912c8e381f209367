"""`vtc serve --check` with vLLM: its own reading of the options, in this process, without an engine."""

import pytest

from vtc.cli import main
from vtc.vllm import arguments


def checked(capfd, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `vtc serve demo --keep 0.25 --check WORDS`."""
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "demo", "--keep", "0.25", "--check", *words])
    return stopped.value.code, *capfd.readouterr()


def test_accepted(capfd):
    """vLLM makes an engine's configuration of it, the pruned architecture and other overrides included."""
    words = ["--port", "8001", "--max-model-len", "512", "--hf-overrides", '{"text_config": {"rms_norm_eps": 1e-6}}']
    code, out, err = checked(capfd, *words)
    assert code == 0, err
    assert out.endswith("options   accepted by vLLM\n")


WRONG = {
    "--prot 8001": "--port",
    "--max-model-len many": "--max-model-len",
    "--max-model-len 100000": "100000",
    "--kv-cache-dtype int3": "int3",
}


@pytest.mark.parametrize("words", WRONG)
def test_refused(capfd, words):
    """What vLLM does not know or accept, in one line."""
    code, out, err = checked(capfd, *words.split())
    lines = [line for line in err.splitlines() if line.startswith("vtc: error: ")]
    assert (code, len(lines)) == (2, 1)
    assert WRONG[words] in lines[0]
    assert "accepted" not in out


def test_refused_on_vllms_own_configuration(monkeypatch, capfd):
    """An option that the quick reading does not see is found in what vLLM makes of it."""
    monkeypatch.setattr(arguments, "refuse", lambda given, settings: None)
    code, _, err = checked(capfd, "-cc", '{"cudagraph_mm_encoder": true}')
    assert code == 2
    assert "cudagraph_mm_encoder" in err
