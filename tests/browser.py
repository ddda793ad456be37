"""Chromium, headless, spoken to over a pipe: pages as a reader sees and uses them. One start for many pages."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe"),
)
OFFLINE = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # a request elsewhere would fail, and say so
)
PATIENCE_SECONDS = 90


class Browser:
    """One tab. ``said`` collects what the console and the network log say, ``asked`` every address fetched."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, writing: int) -> None:
        self.process, self.reading, self.writing = process, reading, writing
        self.rest, self.number = b"", 0
        self.session: str | None = None
        self.said: list[str] = []
        self.asked: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what happens meanwhile is noted."""
        self.number += 1
        wanted = self.number
        message = {"id": wanted, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == wanted:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser did not answer"
            content = os.read(self.reading, 1 << 20)
            assert content, "the browser has ended"
            self.rest += content
        message, _, self.rest = self.rest.partition(b"\0")
        value: dict[str, Any] = json.loads(message)
        return value

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                self.said.append(" ".join(str(each.get("value")) for each in told["args"]))
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.said.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded":
                self.said.append(told["entry"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; raises what it throws."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, address: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Show a page at a size, and wait until it is complete."""
        self.said.clear()
        self.asked.clear()
        phone = width < 500
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=address)
        self.wait(
            f"location.href.startsWith({json.dumps(address[:40])}) && document.readyState === 'complete'"
        )

    def wait(self, condition: str) -> None:
        """Poll until an expression is true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"waited in vain for {condition}"
            time.sleep(0.02)

    def key(self, name: str) -> None:
        """Press and let go."""
        text = {"text": name} if len(name) == 1 else {}
        if name == "Enter":
            text = {"text": "\r", "windowsVirtualKeyCode": 13}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """mouseMoved, mousePressed or mouseReleased at a place of the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def place(self, selector: str) -> dict[str, float]:
        """Where an element stands in the window, after scrolling to it."""
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect();"
            "return {x: r.x, y: r.y, width: r.width, height: r.height}; })()"
        )
        assert found, selector
        return dict(found)

    def picture(self, target: Path, whole: bool = True, clip: dict[str, float] | None = None) -> None:
        """A screenshot as PNG."""
        options: dict[str, Any] = {"captureBeyondViewport": whole}
        if clip:
            options["clip"] = {**clip, "scale": 1}
        elif whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        target.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A browser with a profile of its own, ended with all its processes afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        their_read, writing = os.pipe()
        reading, their_write = os.pipe()
        # The browser reads descriptor 3 and writes descriptor 4; a shell puts ours there.
        script = f'exec "$@" 3<&{their_read} 4>&{their_write}'
        command = [str(CHROMIUM), *OPTIONS, OFFLINE, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(their_read, their_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_read)
        os.close(their_write)
        try:
            browser = Browser(process, reading, writing)
            yield browser
            browser.session = None
            with contextlib.suppress(AssertionError, OSError):
                browser.call("Browser.close")
        finally:
            os.close(reading)
            os.close(writing)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
