"""A real Chromium for the tests of the page: Debian's package, driven by Playwright; neither is needed otherwise."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The browser's path: HOWLOW_CHROMIUM, or the first one found on the PATH."""
    return os.environ.get("HOWLOW_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str | None:
    """Why no test can run in a browser; None where they can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install playwright)"
    return None if chromium() else f"no Chromium on this machine ({', '.join(NAMES)}, or HOWLOW_CHROMIUM)"


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@dataclass
class Heard:
    """What a page said on its console, and what it asked for."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def opened(browser: Any, path: Path, width: int = 1400, **context: Any) -> tuple[Any, Heard]:
    """A page of its own, with what it says and asks for; no request reaches a network."""
    made = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **context)
    page, heard = made.new_page(), Heard()
    page.on("console", lambda said: heard.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: heard.complaints.append(str(error)))
    page.on("request", lambda asked: heard.requests.append(asked.url))
    page.goto(path.resolve().as_uri())
    assert page.get_attribute("html", "data-ready") is not None, heard.complaints
    return page, heard
