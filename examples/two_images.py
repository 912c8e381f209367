"""One question about two images, asked of a server that prunes images. Needs Python alone.

vtc serve demo --keep 0.25 --max-keep 0.5 --trust-request-mm-kwargs --max-model-len 1024
python examples/two_images.py                                    (two scenes of the bundled model's; needs vtc)
python examples/two_images.py --keep 0.5 --image a.png --image b.png --question "What differs?"
"""

import argparse
import base64
import json
import mimetypes
import sys
import urllib.error
import urllib.request
from pathlib import Path


def data_url(data: bytes, kind: str) -> str:
    """An image as part of the request."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def scenes() -> tuple[list[str], str]:
    """Two pictures as data URLs, and a question that the bundled model can answer."""
    import io

    from vtc.demo.benchmark import sample

    rows, urls = [sample("test", i) for i in (0, 7)], []
    for row in rows:
        file = io.BytesIO()
        row["image"].save(file, "PNG")
        urls.append(data_url(file.getvalue(), "image/png"))
    return urls, rows[1]["question"]


def call(url: str, body: dict | None = None) -> dict:
    """The server's JSON answer; what it refuses ends the program with its reason."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"HTTP {error.code}: {error.read().decode(errors='replace')}")
    except urllib.error.URLError as error:
        sys.exit(f"no server at {url}: {error.reason}")


def ask(url: str, images: list[str], question: str, keep: float | int | None = None) -> dict:
    """The answer to one question about several images, as the server gives it.

    keep: the share (0.5) or number (98) of every image's tokens that this request keeps; None is the server's own. For
    another the server needs --trust-request-mm-kwargs from vLLM 0.31 on, and at least this --max-keep.
    """
    content = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    body = {
        "model": call(f"{url}/models")["data"][0]["id"],
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
        "temperature": 0,
        "max_tokens": 64,
    }
    if keep is not None:
        body["mm_processor_kwargs"] = {"vtc_keep": keep}
    return call(f"{url}/chat/completions", body)


def main() -> None:
    """Asks, and prints the answer and how long the prompt was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--image", action="append", metavar="FILE", help="may be repeated; default: two demo scenes")
    parser.add_argument("--question", help="default: one about the second scene")
    parser.add_argument("--keep", type=json.loads, help="share (0.5) or number (98); default: the server's")
    given = parser.parse_args()
    images, question = scenes() if given.image is None else ([], "What differs between the two images?")
    for name in given.image or []:
        images.append(data_url(Path(name).read_bytes(), mimetypes.guess_type(name)[0] or "image/png"))
    question = given.question or question
    answer = ask(given.url.rstrip("/"), images, question, given.keep)
    print(f"question       {question}")
    print(f"answer         {answer['choices'][0]['message']['content'].strip()}")
    print(f"prompt_tokens  {answer['usage']['prompt_tokens']}")


if __name__ == "__main__":
    main()
