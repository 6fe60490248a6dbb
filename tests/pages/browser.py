"""A headless Chromium, driven through its DevTools protocol over a pipe: no port, no library."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

WAIT_S = 60.0

BETWEEN = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes the browser, with the pipes where it looks for them."""


def installed() -> str | None:
    """The browser that is on PATH, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One tab. `said` has what the console was told since a page was opened, `requests` what it asked for."""

    def __init__(self, write: int, read: int) -> None:
        self.said: list[str] = []
        self.requests: list[str] = []
        self._write, self._read, self._left, self._id, self._session = write, read, b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """What a method of the protocol answers."""
        self._id += 1
        session = {"sessionId": self._session} if self._session else {}
        asked = {"id": self._id, "method": method, "params": params, **session}
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while (message := self._next()).get("id") != self._id:
            pass
        assert "error" not in message, message
        return message["result"]

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Show a page from its beginning, at that width and in that colour scheme."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.said, self.requests = [], []
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + WAIT_S
        while self.ask("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ask(self, expression: str) -> Any:
        """The value of an expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._read], [], [], WAIT_S)[0], "the browser says nothing"
            some = os.read(self._read, 2**16)
            assert some, "the browser has ended"
            self._left += some
        first, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if message.get("method") in {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}:
            self.said.append(json.dumps(message["params"]))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextmanager
def chromium(program: str, folder: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, which keeps what it keeps in `folder`."""
    to_it, its_read = os.pipe()[::-1]
    from_it, its_write = os.pipe()
    argv = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
    browser = subprocess.Popen(
        [sys.executable, "-c", BETWEEN, str(its_read), str(its_write), *argv, f"--user-data-dir={folder}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(its_read, its_write),
        start_new_session=True,
    )
    os.close(its_read)
    os.close(its_write)
    try:
        yield Tab(to_it, from_it)
    finally:
        os.close(to_it)
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
        os.close(from_it)
