"""Headless Chromium, spoken to in the DevTools protocol through a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A page that asks for another host gets no answer, and the request is on record.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)


class BrowserError(Exception):
    """What the browser answered instead of a result, or what a page's JavaScript threw."""


def find_browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of one browser. `requests` are the addresses that it and its workers asked for."""

    def __init__(self, program: str, profile: Path) -> None:
        self.requests: list[str] = []
        self.console: list[str] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._buffer = b""
        self._last = 0
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads its file 3 and writes its file 4.
        shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self.call("Target.createTarget", {"url": "about:blank"}, session=None)
        attached = self.call(
            "Target.attachToTarget",
            {"targetId": target["targetId"], "flatten": True},
            session=None,
        )
        self._session: str = attached["sessionId"]
        for method in ("Page.enable", "Runtime.enable"):
            self.call(method)
        self._watch(self._session)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._send("Browser.close", {}, None)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(
        self, method: str, parameters: dict[str, Any] | None = None, session: str | None = ""
    ) -> dict[str, Any]:
        """The result of a command to the page; to the browser itself with ``session=None``."""
        number = self._send(method, parameters or {}, self._session if session == "" else session)
        self._read(lambda: number in self._answers, 60.0, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, address: str) -> None:
        self.call("Page.navigate", {"url": address})

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise's when it is one. Or `BrowserError`."""
        result = self.call(
            "Runtime.evaluate",
            {"expression": expression, "awaitPromise": True, "returnByValue": True},
        )
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 60.0) -> None:
        """Until the expression is true; while a page is being left, it may have no value."""
        end = time.monotonic() + seconds
        while not self._holds(expression):
            assert time.monotonic() < end, (
                f"{expression}: still false after {seconds} s; the page says "
                f"{self.evaluate('document.body.innerText')!r}, its console {self.console}"
            )
            self._read(lambda: False, 0.05)

    def _holds(self, expression: str) -> bool:
        try:
            return bool(self.evaluate(expression))
        except BrowserError:
            return False

    def screenshot(self, path: Path, width: int, height: int, **media: str) -> None:
        """Of a window of ``width x height`` points, with media features such as a colour scheme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": name.replace("_", "-"), "value": value} for name, value in media.items()
        ]
        self.call("Emulation.setEmulatedMedia", {"features": features})
        self._read(lambda: False, 0.3)
        shot = self.call("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def _watch(self, session: str) -> None:
        """Record what a page or worker asks for, and those that it starts, from the beginning."""
        attach = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        for method, parameters in (
            ("Network.enable", {}),
            ("Runtime.enable", {}),
            ("Target.setAutoAttach", attach),
            ("Runtime.runIfWaitingForDebugger", {}),
        ):
            self._send(method, parameters, session)

    def _send(self, method: str, parameters: dict[str, Any], session: str | None) -> int:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        return self._last

    def _read(self, done: Callable[[], bool], seconds: float, what: str = "") -> None:
        """Take what the browser says until ``done``; without ``what``, for so many seconds."""
        end = time.monotonic() + seconds
        while not done():
            left = end - time.monotonic()
            if left <= 0:
                assert not what, f"{what}: no answer from the browser in {seconds} s"
                return
            if not select.select([self._in], [], [], left)[0]:
                continue
            data = os.read(self._in, 1 << 20)
            assert data, "the browser ended"
            *messages, self._buffer = (self._buffer + data).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case None:
                self._answers[message["id"]] = message
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Network.webSocketCreated":
                self.requests.append(parameters["url"])
            case "Target.attachedToTarget":
                self._watch(parameters["sessionId"])
            case "Runtime.exceptionThrown":
                self.console.append(parameters["exceptionDetails"].get("text", ""))
            case "Runtime.consoleAPICalled":
                self.console.append(" ".join(str(a.get("value")) for a in parameters["args"]))
