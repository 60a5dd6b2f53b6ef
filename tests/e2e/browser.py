"""What every story does in the browser."""

from playwright.sync_api import Page, expect

MINUTES = 60_000
STEP_LIMIT = 5 * MINUTES
"""Longest that a step of the line may take on a busy machine; milliseconds."""


def settled(page: Page) -> None:
    """Wait until the script has run to its end."""
    expect(
        page.locator("[data-testid='stApp'][data-test-script-state='notRunning']")
    ).to_be_visible()


def visit(page: Page, title: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=title).click()
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    settled(page)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()
    settled(page)
