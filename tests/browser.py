"""A real headless Chromium, driven over the W3C WebDriver protocol with the standard library."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
needs_chromium = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not installed: {', '.join(MISSING)}; apt-get install chromium chromium-driver",
)

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
FLAGS += ("--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync")
FLAGS += ("--disable-component-update", "--force-color-profile=srgb")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FRAME = "const r = window.frameElement?.getBoundingClientRect(); return r ? [r.x, r.y] : [0, 0]"
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004"}
KEYS |= {"Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015"}


class Browser:
    """One window of Chromium.

    Args:
        driver: Where chromedriver listens.
        size: Width and height of the window.
        dark: Whether the system asks for dark pages.
        scale: Device pixels to a CSS pixel.
    """

    def __init__(
        self, driver: str, size: tuple[int, int] = (1300, 850), dark: bool = False, scale: float = 1
    ) -> None:
        self._driver, self.size = driver, size
        flags = [
            *FLAGS,
            f"--window-size={size[0]},{size[1]}",
            f"--force-device-scale-factor={scale}",
        ]
        options = {"args": flags + ["--force-dark-mode"] * dark}
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "unhandledPromptBehavior": "ignore",
        }
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{made['sessionId']}"
        if dark:
            media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
            self.devtools("Emulation.setEmulatedMedia", media)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            told = json.load(error)["value"]
            raise RuntimeError(f"{told['error']}: {told['message']}") from None

    def command(self, name: str, body: Any = None, method: str = "POST") -> Any:
        """Any command of the session."""
        return self._ask(method, f"{self._session}/{name}", {} if body is None else body)

    def devtools(self, name: str, parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.command("goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url: str) -> None:
        """Load a page."""
        self.command("url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """What a script returns; promises are waited for."""
        return self.command("execute/sync", {"script": script, "args": list(args)})

    def wait(self, script: str, *args: Any, seconds: float = 30) -> Any:
        """What a script returns as soon as that is true; it may fail until then."""
        deadline, told = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                told = self.run(script, *args)
                if told:
                    return told
            except RuntimeError as error:
                told = error
            time.sleep(0.05)
        raise TimeoutError(f"{script!r} was not true within {seconds} s, but {told!r}")

    def enter(self, selector: str) -> None:
        """Go into a frame, once it is there."""
        frame = self.wait("return document.querySelector(arguments[0])", selector)
        self.command("frame", {"id": frame})

    def element(self, selector: str) -> str:
        """An element, for clicks and typing."""
        found = self.command("element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def click(self, selector: str) -> None:
        """Click on an element."""
        self.command(f"element/{self.element(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        self.command(f"element/{self.element(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self._act({"type": "key", "id": "keys", "actions": actions})

    def point(self, x: float, y: float, *, click: bool = False, drag: float = 0) -> None:
        """Move the pointer within the frame; then click there, or drag downwards."""
        left, top = self.run(FRAME)  # chromedriver counts from the corner of the whole page
        x, y = x + left, y + top
        at = {"duration": 0, "origin": "viewport"}
        actions: list[Any] = [{"type": "pointerMove", "x": round(x), "y": round(y), **at}]
        if click or drag:
            actions.append({"type": "pointerDown", "button": 0})
            if drag:
                below = {"type": "pointerMove", "x": round(x), "y": round(y + drag), **at}
                actions += [below | {"y": round(y + drag / 2)}, below]
            actions.append({"type": "pointerUp", "button": 0})
        self._act({"type": "pointer", "id": "mouse", "actions": actions})

    def _act(self, source: Any) -> None:
        self.command("actions", {"actions": [source]})

    def errors(self) -> list[str]:
        """What the console has called an error since last asked."""
        entries = self.command("se/log", {"type": "browser"})
        told = [entry["message"] for entry in entries if entry["level"] == "SEVERE"]
        return [line for line in told if "/favicon.ico " not in line]  # Chromium looks for one

    def requests(self) -> list[str]:
        """The addresses that were asked for since last asked."""
        found = []
        for entry in self.command("se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(str(message["params"]["request"]["url"]))
        return found

    def screenshot(self, path: Path, tall: int) -> None:
        """Save the upper part of the window as a PNG."""
        area = {"x": 0, "y": 0, "width": self.size[0], "height": tall, "scale": 1}
        found = self.devtools("Page.captureScreenshot", {"clip": area})
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the session."""
        self._ask("DELETE", self._session)


@contextmanager
def driver() -> Iterator[str]:
    """A running chromedriver, and where it listens."""
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                port = re.search(rb"on port (\d+)", line)
                if port and int(port[1]):
                    break
            yield f"http://127.0.0.1:{int(port[1])}" if port else ""
        finally:
            process.terminate()


@contextmanager
def browser(address: str, **options: Any) -> Iterator[Browser]:
    """A window of a running chromedriver's."""
    opened = Browser(address, **options)
    try:
        yield opened
    finally:
        opened.close()
