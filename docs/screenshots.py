"""Takes the screenshots of the README and, with ``--all``, one of every page for a look by eye.

    python docs/screenshots.py --url http://127.0.0.1:8501 --run RUN_ID [--table RUN_ID]
                               [--all FOLDER]

The app has to be running and the run to be finished. Light and dark come from Streamlit's own
theme switch: the browser is told which colour scheme the person prefers.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.navigation import PAGES

IMAGES = Path(__file__).parent / "images"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
THEMES = ("light", "dark")
DRAWN = "[data-testid='stApp'][data-test-script-state='notRunning']"


def wait_until_drawn(page: Page) -> None:
    """Wait until the script has ended, no placeholder is left and every picture has its axes."""
    expect(page.locator(DRAWN)).to_be_visible(timeout=60_000)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=60_000)
    for chart in page.get_by_test_id("stPlotlyChart").all():
        if chart.is_visible():
            expect(chart.locator(".main-svg").first).to_be_visible(timeout=60_000)
    page.wait_for_load_state("networkidle")


def shoot(browser: Browser, address: str, theme: str, width: int, path: Path) -> None:
    """Open an address in one theme and write what is to be seen, from top to bottom."""
    context = browser.new_context(
        color_scheme="dark" if theme == "dark" else "light",
        viewport={"width": width, "height": 1000},
    )
    page = context.new_page()
    page.goto(address)
    wait_until_drawn(page)
    content = page.get_by_test_id("stMain").evaluate("box => box.scrollHeight")
    page.set_viewport_size({"width": width, "height": max(700, int(content))})
    wait_until_drawn(page)
    page.screenshot(path=path)
    context.close()


def main() -> None:
    """Parse arguments and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8501")
    parser.add_argument("--run", required=True, help="id of a finished run")
    parser.add_argument("--all", type=Path, help="folder for pictures of every page and width")
    parser.add_argument("--table", help="id of a run that holds the paper's table, finished")
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS)
        )
        for theme in THEMES:
            address = f"{asked.url}/results?run={asked.run}"
            shoot(browser, address, theme, 1440, IMAGES / f"results-{theme}.png")
            if asked.table is not None:
                address = f"{asked.url}/results?run={asked.table}"
                shoot(browser, address, theme, 1440, IMAGES / f"table-{theme}.png")
            if asked.all is None:
                continue
            asked.all.mkdir(parents=True, exist_ok=True)
            for entry in PAGES:
                for width in (1280, 1600):
                    address = f"{asked.url}/{entry.key}?run={asked.run}"
                    path = asked.all / f"{entry.key}-{theme}-{width}.png"
                    shoot(browser, address, theme, width, path)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
