"""A headless Chromium for tests and benchmarks: the machine's own, driven by playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Where Chromium is: what CHROMIUM names, or what is on the path; None where it is not."""
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
    return next((path for path in found if path), None)


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser, until the block ends. Raises RuntimeError where there is none."""
    path = chromium()
    if path is None:
        raise RuntimeError(f"no {', '.join(NAMES)} on the path: install Chromium, or set CHROMIUM")
    with sync_playwright() as playwright:
        # Chromium as root has no sandbox; it opens our own pages alone.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
