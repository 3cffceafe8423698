"""A page in headless Chromium, and what it did that it should not."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from playwright.sync_api import Browser, Error, Page, sync_playwright

from tests.support import HANGS

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 60_000
"""Milliseconds until something is taken not to happen; usually it takes a tenth of a second."""


@cache
def obstacle() -> str | None:
    """Return why no page can be looked at here; None if one can."""
    if not Path(CHROMIUM).exists():
        return f"no {CHROMIUM}"
    try:
        with chromium() as browser:
            browser.new_page().close()
    except Error as error:
        return f"chromium does not start: {str(error).splitlines()[0]}"
    return None


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium with a fresh profile."""
    profile = tempfile.mkdtemp(prefix="flagshim-chromium-")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=list(FLAGS),
                env={"HOME": profile},
                timeout=HANGS * 1000,
            )
            yield browser
            browser.close()
    finally:
        shutil.rmtree(profile, ignore_errors=True)


@dataclass
class Seen:
    """A page, and what happened beside it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Of the console, of uncaught errors, of dialogs."""


@contextmanager
def opened(browser: Browser, file: Path, scheme: str = "light") -> Iterator[Seen]:
    """Open a page of flagshim's and wait until it is ready."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900},
        color_scheme=scheme,  # type: ignore[arg-type]
        timezone_id="Asia/Kolkata",
    )
    context.set_default_timeout(PATIENCE)
    seen = Seen(context.new_page())
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.on("console", lambda message: seen.complaints.append(message.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("dialog", lambda dialog: (seen.complaints.append("dialog"), dialog.dismiss()))
    seen.page.goto(file.as_uri())
    seen.page.wait_for_selector("html[data-ready]")
    try:
        yield seen
    finally:
        context.close()
