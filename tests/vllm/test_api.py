"""`vtc serve` as its users meet it: answers over HTTP, a keep of the request's own, and refusals that it survives."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.vllm.pictures import questions, scene_file
from tests.vllm.reference import Ask, reference, written_text
from tests.vllm.server import Server, serving
from vtc.demo.architecture import prompt


@pytest.fixture(scope="module")
def server(folder):
    """The bundled model at a quarter; requests may ask for half."""
    words = ["demo", "--strategy", "hiprune", "--keep", "0.25", "--max-keep", "0.5", "--trust-request-mm-kwargs"]
    with serving(folder, *words, "--enforce-eager", "--max-model-len", "1024") as found:
        yield found


def chats(folder) -> list[tuple[str, tuple, float | None]]:
    """Eight different (question, pictures, keep)."""
    single = [(questions(i, 2)[i % 2], (scene_file(folder, i),), None) for i in range(4)]
    pairs = [(questions(i, 3)[2], (scene_file(folder, i), scene_file(folder, i + 4)), None) for i in range(2)]
    own = [(questions(i, 1)[0], (scene_file(folder, i),), keep) for i, keep in ((0, 0.5), (5, 20))]
    return [*single, *pairs, *own]


def seen(answer: tuple[int, dict]) -> tuple[str, int]:
    """(text, prompt tokens) of an answer; fails unless it is one."""
    status, body = answer
    assert status == 200, body
    return body["choices"][0]["message"]["content"].strip(), body["usage"]["prompt_tokens"]


def expected(demo, question: str, images: tuple, keep: float | int | None) -> tuple[str, int]:
    """The same from the Hugging Face path."""
    (found,) = reference(demo, [Ask(prompt(question, len(images)), images)], "hiprune", keep or 0.25)
    return written_text(demo, found.ids), found.prompt_tokens


def alive(server: Server, demo, folder) -> bool:
    """Whether the server still answers as it should."""
    question, images, keep = chats(folder)[0]
    return seen(server.chat(question, images, keep)) == expected(demo, question, images, keep)


def test_eight_at_once(server, demo, folder):
    """Eight chats at the same time, two with two pictures, two with a keep of their own."""
    asked = chats(folder)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda chat: seen(server.chat(*chat)), asked))
    want = [expected(demo, *chat) for chat in asked]
    assert got == want
    assert len({text for text, _ in want}) >= 4
    assert len({length for _, length in want}) >= 4


def test_text_only(server, demo):
    """A chat without a picture."""
    (found,) = reference(demo, [Ask(prompt("What number is written?", 0))])
    text, length = seen(server.chat("What number is written?"))
    assert (text, length) == (written_text(demo, found.ids), found.prompt_tokens)


@pytest.mark.parametrize(
    "keep, line", [(0.75, "keep=0.75"), (0, "keep=0"), (1.5, "keep=1.5"), ("much", "keep='much'"), (197, "keep=197")]
)
def test_bad_keep(server, demo, folder, keep, line):
    """A keep above the server's limit, out of range or no number: refused in one line that says what is possible."""
    status, body = server.chat("What number is written?", (scene_file(folder, 0),), keep)
    assert status == 400, body
    message = body["error"]["message"]
    assert line in message
    assert "possible: " in message
    assert "\n" not in message.strip()
    assert alive(server, demo, folder)


def test_image_embeds(server, demo, folder):
    """Embeddings made elsewhere carry no attention: refused."""
    raw = io.BytesIO()
    torch.save(torch.zeros(196, 128), raw)
    part = {"type": "image_embeds", "image_embeds": base64.b64encode(raw.getvalue()).decode()}
    content = [part, {"type": "text", "text": "What number is written?"}]
    status, body = server.post("chat/completions", {"messages": [{"role": "user", "content": content}]})
    assert status == 400, body
    assert alive(server, demo, folder)
