"""Reruns as a browser sees them: Chromium moves widgets of the real server in a child process.

A step lasts from the key that changes the widget to the moment at which the page says that its
script is not running any more, by the browser's own clock; what the browser waits before it tells
the server is part of it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
TIMEOUT_MS = 60_000
QUIET_MS = 400
"""How long no script may start again before a step counts as done."""
WATCH = """
window.benchmark = {keys: [], states: []};
document.addEventListener('keydown', () => benchmark.keys.push(performance.now()), true);
new MutationObserver(() => {
    const app = document.querySelector("[data-testid='stApp']");
    const state = app && app.getAttribute('data-test-script-state');
    const last = benchmark.states.at(-1);
    if (state && (!last || last[0] !== state)) benchmark.states.push([state, performance.now()]);
}).observe(document, {subtree: true, childList: true, attributes: true,
                      attributeFilter: ['data-test-script-state']});
"""
DONE = f"""
() => {{
    const {{states}} = benchmark;
    const last = states.at(-1);
    return states.some(s => s[0] === 'running') && last[0] === 'notRunning'
        && performance.now() - last[1] > {QUIET_MS};
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of a server."""

    steps: dict[str, list[tuple[float, float]]]
    """Step -> wall and processor seconds of every repetition, the latter of the server."""
    resident_bytes: int
    """Resident memory of the server at the end."""
    peak: int
    """The most it held; bytes."""
    holds_torch: bool
    """Whether torch's library is mapped into it."""


def missing() -> str:
    """Return what a browser is missing for; empty where all is there."""
    if find_spec("playwright") is None:
        return "playwright is not installed"
    return "" if shutil.which("chromium") else "no chromium on this machine"


def watch(home: Path, run_id: str, n_reruns: int) -> Seen:
    """Open the pages of a run in Chromium, move their widgets, and look at the server.

    Args:
        home: The home folder of the server.
        run_id: The run.
        n_reruns: Repetitions of every step after the first.
    """
    with _server(home) as (process, address), _page() as page:
        known = process.pid
        steps = {"First page, cold server": [_visit(page, known, f"{address}/?run={run_id}")]}
        url = f"{address}/results?run={run_id}"
        steps["Results: first page"] = [_visit(page, known, url)]
        steps["Results: page again"] = [_visit(page, known, url) for _ in range(3)]
        steps["Results: another plan A"] = _repeat(page, known, n_reruns, _choose_plan)
        url = f"{address}/search?run={run_id}"
        steps["Search: first page"] = [_visit(page, known, url)]
        steps["Search: budget moved"] = _repeat(page, known, n_reruns, _move_budget)
        return Seen(
            steps=steps,
            resident_bytes=_status(known, "VmRSS"),
            peak=_status(known, "VmHWM"),
            holds_torch="libtorch" in Path(f"/proc/{known}/maps").read_text(encoding="utf-8"),
        )


@contextmanager
def _server(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run the server on a free port for as long as the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.server", "--port", str(port), "--address", "127.0.0.1"]
    environment = {**os.environ, "QPRUNER_HOME": str(home), "STREAMLIT_SERVER_HEADLESS": "true"}
    with subprocess.Popen(  # noqa: S603 - our own server
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def _page() -> Iterator[Page]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where it is installed

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS)
        )
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(TIMEOUT_MS)
        page.add_init_script(WATCH)
        yield page
        browser.close()


def _visit(page: Page, process_id: int, url: str) -> tuple[float, float]:
    """Open an address; return the seconds until its script has ended."""
    cpu = _cpu_seconds(process_id)
    _reach(page, url)
    page.wait_for_function(DONE)
    end: float = page.evaluate("benchmark.states.at(-1)[1]")
    return end / 1000, _cpu_seconds(process_id) - cpu


def _reach(page: Page, url: str) -> None:
    """Go to an address; a server that is just starting is asked again."""
    from playwright.sync_api import Error  # noqa: PLC0415 - only where it is installed

    for _ in range(240):
        try:
            page.goto(url)
        except Error as error:
            if "ERR_CONNECTION_REFUSED" not in str(error):
                raise
            page.wait_for_timeout(250)
        else:
            return
    raise RuntimeError(f"no server answers at {url}")


def _repeat(
    page: Page, process_id: int, n_reruns: int, change: Callable[[Page, int], None]
) -> list[tuple[float, float]]:
    """Return what every step but the first took."""
    return [_step(page, process_id, number, change) for number in range(n_reruns + 1)][1:]


def _step(
    page: Page, process_id: int, number: int, change: Callable[[Page, int], None]
) -> tuple[float, float]:
    """Change a widget; return the seconds from its last key to the end of the script."""
    before, cpu = page.get_by_test_id("stMain").inner_text(), _cpu_seconds(process_id)
    page.evaluate("benchmark.keys = []; benchmark.states = []")
    change(page, number)
    page.wait_for_function(DONE)
    start, end = page.evaluate("[benchmark.keys.at(-1), benchmark.states.at(-1)[1]]")
    if page.get_by_test_id("stMain").inner_text() == before:
        raise RuntimeError("nothing on the page changed with its widget")
    return (end - start) / 1000, _cpu_seconds(process_id) - cpu


def _choose_plan(page: Page, number: int) -> None:
    box = page.get_by_role("combobox", name="Plan A")
    box.click()
    page.get_by_role("listbox").wait_for()
    page.keyboard.press("ArrowUp" if number % 2 else "ArrowDown")
    page.keyboard.press("Enter")


def _move_budget(page: Page, number: int) -> None:
    slider = page.get_by_role("slider", name="Memory budget")
    slider.focus()
    page.keyboard.press("ArrowRight" if number % 4 < 2 else "ArrowLeft")


def _status(process_id: int, field: str) -> int:
    """Return a size from the kernel's account of a process; bytes."""
    text = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _cpu_seconds(process_id: int) -> float:
    """Return the processor time of a process so far."""
    fields = (
        Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    )
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
