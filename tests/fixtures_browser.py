"""A browser, and what it finds on a page."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from benchmarks.browser import browsing, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; while it is open, no other module's `asyncio.run` works here."""
    if chromium() is None:
        pytest.skip("no Chromium: install it, or set CHROMIUM")
    with browsing() as found:
        yield found
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[[Path], Page]]:
    """Opens a page, and holds at the end that it asked for nothing and complained of nothing."""
    noticed: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.on("console", lambda message: noticed.append(message.text))
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.on("dialog", lambda dialog: noticed.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))

    def go(path: Path) -> Page:
        page.goto(path.as_uri())
        return page

    yield go
    context.close()
    assert not noticed
    assert [url.startswith("data:") for url in asked].count(False) == 1


@pytest.fixture(scope="session")
def shot() -> Callable[..., None]:
    """Keeps what a test saw, to be looked at."""

    def take(page: Page, name: str, *, whole: bool = True) -> None:
        folder = Path(__file__).resolve().parents[1] / "build" / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", full_page=whole)

    return take


@pytest.fixture(scope="session")
def barriers() -> Callable[[Page], list[tuple[str, str]]]:
    """What axe finds on a page that is serious or critical: the rule, and the first place."""

    def found(page: Page) -> list[tuple[str, str]]:
        violations = Axe().run(page).response["violations"]
        serious = [each for each in violations if each["impact"] in ("serious", "critical")]
        return [(each["id"], each["nodes"][0]["html"]) for each in serious]

    return found
