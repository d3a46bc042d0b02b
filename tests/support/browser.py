"""A real browser for tests of pages; what it showed is kept as pictures in tests/screenshots."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import debian
import pytest
from live import wait_for

PROGRAM = "chromium"
SCREENSHOTS = Path(__file__).parents[1] / "screenshots"
WIDTHS = (390, 960, 1600)
"""A phone, half a screen and a whole one."""


def missing() -> str | None:
    """What there is not, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return None if shutil.which(PROGRAM) else f"{PROGRAM} is not installed"


@contextmanager
def opened() -> Iterator[Any]:
    """Chromium, which is installed where that can be done; skips the test where it cannot."""
    if problem := debian.install(missing, [PROGRAM, "fonts-dejavu-core"]):
        pytest.skip(problem)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(PROGRAM), args=["--no-sandbox"])
        yield browser
        browser.close()


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait for a condition from outside of a page, whose own policy lets nobody wait inside of it."""
    return wait_for(condition, what, seconds)


def picture(page: Any, name: str) -> None:
    """Keep what a page shows now."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def overflow(page: Any) -> int:
    """By how many pixels a page is wider than its window: what is wider scrolls inside itself."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


NOTE_FIRST = """
window.firstSeen = {};
new MutationObserver(() => {
  for (const [name, what] of Object.entries(%s))
    if (!(name in firstSeen) && document.querySelector(what)) requestAnimationFrame(() => { firstSeen[name] ??= performance.now(); });
}).observe(document, {childList: true, subtree: true});
"""


def note_first(page: Any, **selectors: str) -> None:
    """Have pages note when they show something for the first time: name=selector."""
    page.add_init_script(NOTE_FIRST % json.dumps(selectors))


def first_seen(page: Any, name: str) -> float:
    """Seconds from the request for a page until it showed this, which `note_first` has named."""
    return float(until(lambda: page.evaluate(f"firstSeen.{name}"), name)) / 1000
