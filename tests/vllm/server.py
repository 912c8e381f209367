"""`vtc serve` in a process of its own, and requests to its OpenAI-compatible API."""

import base64
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vllm.engines import ROOT, environment

READY = 300  # seconds until a server must answer


@dataclass(frozen=True)
class Server:
    """A running server. url: of the API, with /v1; model: the name that it serves under."""

    url: str
    model: str

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        """(HTTP status, JSON answer), also of a refusal."""
        data = json.dumps({"model": self.model, **body}).encode()
        sent = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(sent, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read())

    def chat(self, question: str, images: tuple[Path, ...] = (), keep: object = None, **more) -> tuple[int, dict]:
        """One question about images as a chat of one turn; keep: for this request, None for the server's own."""
        pictures = [{"type": "image_url", "image_url": {"url": data_url(file)}} for file in images]
        content = [*pictures, {"type": "text", "text": question}]
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8, **more}
        if keep is not None:
            body["mm_processor_kwargs"] = {"vtc_keep": keep}
        return self.post("chat/completions", body)


def data_url(file: Path) -> str:
    """A picture file as part of a request."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Server]:
    """`vtc serve WORDS` on a free port until the block ends; fails with the end of its log if it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"server{port}.log"
    command = [sys.executable, "-m", "vtc", "serve", *words, "--host", "127.0.0.1", "--port", str(port)]
    env = environment(folder, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=stream, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        yield Server(url, _model(process, url, log))
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def _model(process: subprocess.Popen, url: str, log: Path) -> str:
    """The served model's name, once the server answers."""
    until = time.monotonic() + READY
    while time.monotonic() < until:
        assert process.poll() is None, f"the server died, code {process.returncode}:\n{log.read_text()[-6000:]}"
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5) as answer:
                return json.load(answer)["data"][0]["id"]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"no answer after {READY} s:\n{log.read_text()[-6000:]}")
