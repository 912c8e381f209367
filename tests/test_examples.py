"""examples/: what the client sends, and what it says when the server refuses."""

import importlib.util
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import vtc
from vtc.drafting import takes_drafts

ROOT = Path(vtc.__file__).resolve().parent.parent


@pytest.fixture
def server():
    """A stand-in for the API: keeps what it was sent, refuses a keep above 0.5."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        """Two routes."""

        def answer(self, code: int, body: dict) -> None:
            """JSON."""
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self):
            """The models."""
            self.answer(200, {"data": [{"id": "demo"}]})

        def do_POST(self):
            """A chat."""
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            if body.get("mm_processor_kwargs", {}).get("vtc_keep", 0) > 0.5:
                self.answer(400, {"error": {"message": "too much"}})
            else:
                message = {"content": " green "}
                self.answer(200, {"choices": [{"message": message}], "usage": {"prompt_tokens": 107}})

        def log_message(self, *args):
            """Quiet."""

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1", seen
    found.shutdown()
    found.server_close()


@pytest.fixture
def client(monkeypatch):
    """The example, run with the given words."""
    spec = importlib.util.spec_from_file_location("two_images", ROOT / "examples" / "two_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["two_images.py", *words])
        module.main()

    return call


def test_two_images(server, client, capsys):
    """Two pictures and the question in one turn, the keep where vLLM hands it to the processor."""
    url, seen = server
    client("--url", url + "/", "--keep", "0.5")
    assert "answer         green\nprompt_tokens  107" in capsys.readouterr().out
    parts = seen[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert parts[0]["image_url"] != parts[1]["image_url"]
    assert seen[0]["mm_processor_kwargs"] == {"vtc_keep": 0.5}
    assert seen[0]["model"] == "demo"


def test_own_images(server, client, tmp_path):
    """Files of one's own; without --keep nothing is said about it."""
    file = tmp_path / "a.jpg"
    file.write_bytes(b"abc")
    client("--url", server[0], "--image", str(file), "--question", "What?")
    (body,) = server[1]
    assert body["messages"][0]["content"][0]["image_url"]["url"] == "data:image/jpeg;base64,YWJj"
    assert body["messages"][0]["content"][1]["text"] == "What?"
    assert "mm_processor_kwargs" not in body


def test_refused(server, client):
    """The server's reason ends the program."""
    with pytest.raises(SystemExit, match="HTTP 400.*too much"):
        client("--url", server[0], "--keep", "0.9")
    with pytest.raises(SystemExit, match="no server at"):
        client("--url", "http://127.0.0.1:9/v1")


def run(name: str, monkeypatch, capsys, *words: str) -> str:
    """What an example prints."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
    module.main()
    return capsys.readouterr().out


def test_chat(monkeypatch, capsys):
    """Three turns on one cache: two pictures, each pruned when it comes, and a question about text alone."""
    out = run("chat", monkeypatch, capsys)
    assert out.splitlines()[0].split() == ["with", "a", "picture", "What", "color", "is", "the", "cross?", "purple"]
    assert "holds 59 of 207 tokens" in out
    assert "holds 130 of 425 tokens" in out
    assert "turn 1 had           196 -> 49 visual tokens" in out


@pytest.mark.skipif(not takes_drafts(), reason="this transformers begins assisted generation otherwise")
def test_draft(monkeypatch, capsys):
    """Answers of the full model in fewer of its forwards."""
    out = run("draft", monkeypatch, capsys, "--limit", "10")
    found = re.fullmatch(
        r"10 answers with hiprune at 0.1 as the draft: (\d+) forwards .* instead of (\d+)", out.strip()
    )
    assert int(found[1]) < 0.7 * int(found[2])
