"""A headless Chromium that tests can drive: commands of the DevTools protocol over a pipe, nothing but the library."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 20  # seconds for an answer
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run",
    "--remote-debugging-pipe",
)  # fmt: skip


def binary() -> str | None:
    """The browser's path, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. events: what the page reported since `open`, by method and parameters."""

    def __init__(self, write: int, read: int):
        self._write, self._read, self._rest = write, read, b""
        self._numbers, self._session = itertools.count(1), None
        self.events: list[tuple[str, dict]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """A command's result; raises RuntimeError for one that fails."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append((answer.get("method", ""), answer.get("params", {})))

    def _receive(self) -> dict:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("the browser has gone")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Shows a file on a screen of so many CSS pixels, and waits until it is loaded."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + PATIENCE
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            if time.monotonic() > until:
                raise TimeoutError("the page does not load")
            self.run("0")

    def run(self, script: str) -> object:
        """The value of a JavaScript expression in the page; raises AssertionError for an exception there."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the screen, or of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **(
            {"clip": {"x": 0, "y": 0, "scale": 1, "width": self.run("innerWidth"),
                      "height": self.run("document.documentElement.scrollHeight")}} if whole else {}
        ))  # fmt: skip
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings on the console since `open`, and exceptions."""
        found = []
        for method, data in self.events:
            if method == "Runtime.exceptionThrown":
                found.append(str(data["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and data["type"] in ("error", "warning", "assert"):
                found.append(str(data["args"]))
            elif method == "Log.entryAdded" and data["entry"]["level"] in ("error", "warning"):
                found.append(str(data["entry"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for since `open`, its own first."""
        return [data["request"]["url"] for method, data in self.events if method == "Network.requestWillBeSent"]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in a folder; it ends with the block."""
    # Out of the way of 3 and 4, where Chromium reads commands and answers.
    (from_tests, to_browser), (from_browser, to_tests) = (map(_high, os.pipe()) for _ in range(2))
    silent = os.open(os.devnull, os.O_RDWR)
    places = {from_tests: 3, to_tests: 4, silent: 0}
    actions = [(os.POSIX_SPAWN_DUP2, fd, place) for fd, place in places.items()]
    actions += [(os.POSIX_SPAWN_DUP2, silent, place) for place in (1, 2)]
    process = os.posix_spawn(binary(), [binary(), *OPTIONS, f"--user-data-dir={profile}", "about:blank"], os.environ,
                             file_actions=actions)  # fmt: skip
    for fd in (from_tests, to_tests, silent):
        os.close(fd)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        os.close(to_browser)  # which ends it
        _end(process)
        os.close(from_browser)


def _high(fd: int) -> int:
    """The same file under a number of 10 or more, not inherited."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return copy


def _end(process: int) -> None:
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            os.kill(process, number)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if os.waitpid(process, os.WNOHANG)[0]:
                return
            time.sleep(0.02)
