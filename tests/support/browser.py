"""Headless Chromium over a pipe, by the DevTools protocol: JSON between zero bytes on descriptors 3 and 4."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
disable-component-update disable-sync remote-debugging-pipe"""
# Puts the two pipes where Chromium looks for them, out of each other's way first, and becomes it.
WITH_PIPES = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 20) for number in sys.argv[1:3]]
os.dup2(pipes[0], 3), os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class NeverTrueError(AssertionError):
    """What was waited for has not come."""


class Browser:
    """One tab; everything that it asks a server for is in :attr:`requests`.

    Args:
        folder: for its profile and what it downloads (``folder / "downloads"``).
    """

    def __init__(self, folder: Path):
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = [*(f"--{flag}" for flag in FLAGS.split()), f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", WITH_PIPES, str(to_browser), str(from_browser), CHROMIUM, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser), os.close(from_browser)
        self._buffer, self._count, self._session = b"", 0, None
        self.requests, self.errors = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def close(self):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._out), os.close(self._in)

    def call(self, method, timeout=60.0, **parameters):
        """One command; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            answer = self._read(end)
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self, end):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has gone"
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(raw)
        said = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"])
            case "Runtime.exceptionThrown":
                details = said["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if said["type"] == "error":
                self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in said["args"]))
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                self.errors.append(f"{said['entry']['text']} {said['entry'].get('url')}")
        return message

    def open(self, url, width, height):
        self.resize(width, height)
        self.call("Page.navigate", url=url)

    def resize(self, width, height):
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def js(self, expression):
        """The value of an expression on the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression, timeout=60.0):
        """Wait until an expression is true; returns its value."""
        end = time.monotonic() + timeout
        while not (value := self.js(expression)):
            if time.monotonic() >= end:
                raise NeverTrueError(f"never true: {expression}\n{self.js('document.body.innerText')}")
            time.sleep(0.05)
        return value

    def choose_file(self, selector, path):
        """Put a file into an input, as its dialog does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drag(self, x, y, right, down):
        """Press at a point of the window, move, release."""
        mouse = {"button": "left", "clickCount": 1, "buttons": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + right / 2, y=y + down / 2, **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + right, y=y + down, **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + right, y=y + down, **mouse)

    def screenshot(self, path):
        """The whole page as a PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        Path(path).write_bytes(base64.b64decode(data))
