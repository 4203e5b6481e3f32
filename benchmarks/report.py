"""What a report costs: seconds to write, bytes, and how soon a browser shows it.

    python benchmarks/report.py [--classes N] [--images N] [--shortcuts N] [--folder DIR]

Makes a finished, audited run (benchmarks/report_run.py), writes its page with the command, and
opens that in Chromium, which must be installed: first paint, and how long a search, a sort and
opening a class take until the next frame, medians of five.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# In place of this script's folder, whose explainer.py would hide the package.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Page
from rich.console import Console

from benchmarks.browser import browsing
from benchmarks.machine import describe
from benchmarks.report_run import make_run
from storage.locations import Location

ROUNDS, MEGABYTE = 5, 1e6
out = Console(soft_wrap=True, highlight=False)
# Runs an action and waits until what it changed was drawn.
UNTIL_DRAWN = """(action) => new Promise((done) => {
  const started = performance.now();
  new Function(action)();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
})"""
ACTIONS = {
    "search": (
        "const s = document.getElementById('search'); s.value = s.value ? '' : '7';"
        "s.dispatchEvent(new Event('input'))"
    ),
    "sort": "document.querySelector('[data-key=accuracy] button').click()",
    "open a class": "document.querySelector('.open[aria-expanded=false]').click()",
}


def main() -> None:
    """Make the run, write the page, open it, print what each took."""
    parser = argparse.ArgumentParser(description="What a report costs.")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=100, help="of each class")
    parser.add_argument("--shortcuts", type=int, default=60)
    parser.add_argument("--folder", help="where the run lies meanwhile")
    options = parser.parse_args()
    out.print(describe("pyarrow", "pillow", "playwright"))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        names = [f"class {number:04d}" for number in range(options.classes)]
        make_run(Location(folder), names, options.images, options.shortcuts)
        _write(Path(folder))
        _open(Path(folder, "report.html"))


def _write(run: Path) -> None:
    started = time.perf_counter()
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-m", "jobs.cli", "report", str(run)], cwd=root, check=True)
    seconds = time.perf_counter() - started
    size = Path(run, "report.html").stat().st_size / MEGABYTE
    out.print(f"written in {seconds:.1f} s, Python's start included; {size:.1f} MB")


def _open(page: Path) -> None:
    with browsing() as browser:
        paints = [_first_paint(browser.new_page(), page) for _ in range(ROUNDS)]
        out.print(f"first paint after {statistics.median(paints):.0f} ms")
        shown = browser.new_page()
        shown.goto(page.as_uri())
        for name, action in ACTIONS.items():
            times = [shown.evaluate(UNTIL_DRAWN, action) for _ in range(ROUNDS)]
            out.print(f"{name}: {statistics.median(times):.0f} ms")


def _first_paint(shown: Page, page: Path) -> float:
    shown.goto(page.as_uri())
    shown.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    script = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    paint = float(shown.evaluate(script))
    shown.close()
    return paint


if __name__ == "__main__":
    main()
