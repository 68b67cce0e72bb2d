"""Pages in a real browser: what the console says, what axe finds, and pictures.

Needs Playwright and the axe engine (the extra ``browser``) and a Chromium of the system; nothing is
downloaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoprune.errors import ExportError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: What Chromium is called, the first that is there.
NAMES = ("chromium", "chromium-browser", "google-chrome")

Scheme = Literal["light", "dark"]


@dataclasses.dataclass
class Opened:
    """A page in the browser.

    Attributes:
        page: Playwright's page.
        seconds: Time from the start of the navigation until the page was loaded.
        console: What the page's console said, one line each; empty for a sound page.
        requested: Addresses that were asked for beside the page itself.
    """

    page: Page
    seconds: float
    console: list[str]
    requested: list[str]

    def violations(self) -> list[str]:
        """Return what the axe engine objects to, one line per rule with its first element."""
        engine = resources.files("axe_playwright_python").joinpath("axe.min.js")
        self.page.evaluate(engine.read_text(encoding="utf-8"))
        found: dict[str, Any] = self.page.evaluate("axe.run()")
        return [
            f"{rule['id']}: {rule['help']}, {len(rule['nodes'])}x, {rule['nodes'][0]['html']}"
            for rule in found["violations"]
        ]


def missing() -> str:
    """Return what this machine lacks for a browser, and how to get it; empty if nothing."""
    try:
        import axe_playwright_python  # noqa: F401 - only whether it is there
        import playwright  # noqa: F401 - only whether it is there
    except ImportError as error:
        return f"{error.name} is not installed: pip install 'autoprune[browser]'"
    if not any(map(shutil.which, NAMES)):
        return f"none of {', '.join(NAMES)} is installed; on Debian: apt install chromium"
    return ""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Yield the system's Chromium, without a window.

    Raises:
        ExportError: It, or what drives it, is not there.
    """
    lacking = missing()
    if lacking:
        raise ExportError(lacking)
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)))
    # In containers, where tests run, there is no sandbox to be had.
    arguments = ["--no-sandbox", "--hide-scrollbars"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser,
    file: Path,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Scheme = "light",
    scripts: bool = True,
    scale: float = 1.0,
) -> Iterator[Opened]:
    """Yield a file opened in a context of its own.

    Args:
        browser: The browser.
        file: The page.
        width: Of the window, in CSS pixels.
        height: Of the window.
        scheme: Colours that the reader prefers.
        scripts: Whether the page's scripts may run.
        scale: Device pixels per CSS pixel.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        java_script_enabled=scripts,
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    try:
        page = context.new_page()
        console: list[str] = []
        requested: list[str] = []
        page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: console.append(f"error: {error}"))
        page.on("request", lambda request: requested.append(request.url))
        address = file.absolute().as_uri()
        started = time.perf_counter()
        page.goto(address)
        seconds = time.perf_counter() - started
        yield Opened(page, seconds, console, [url for url in requested if url != address])
    finally:
        context.close()
