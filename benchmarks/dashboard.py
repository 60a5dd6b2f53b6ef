"""Whether the pages stay quick with 10,000 trials: reruns in one process, and as a browser sees
them.

A run with a study of that many trials is written to a temporary home. `AppTest` runs the pages
in this process, which is what a rerun costs the server; then Chromium, where there is one, moves
widgets of the real server in a process of its own, whose memory is read too. Every step changes
something on the page, or the benchmark stops: a rerun that changes nothing would measure nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).resolve().parent))

import dashboard_browser
import form
from dashboard_home import deep_card, demo_card, make_home
from streamlit.testing.v1 import AppTest

from qpruner_core.domain.record import RunRecord

ROOT = Path(__file__).resolve().parents[1]
N_TRIALS = 10_000
FEW_TRIALS = 24
N_RERUNS = 9
N_QUICK = 7
RERUN_TARGET = 0.5
"""Seconds of one rerun."""
BUDGET_TARGET = 0.1
"""Seconds that a move of the budget takes the server."""
MEMORY_TARGET = 400.0
"""Megabytes that the browser side holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """What one step took."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Processor time of the process that runs the page; others on the machine hardly change it."""


def measure(arguments: argparse.Namespace) -> form.Report:
    """Measure all steps and return the report."""
    n_reruns = N_QUICK if arguments.quick else N_RERUNS
    rows: list[dict[str, form.Cell]] = []
    with TemporaryDirectory() as folder:
        homes = [Path(folder) / name for name in ("many", "demo", "deep")]
        many = make_home(homes[0], arguments.trials, demo_card(), "layer")
        demo = make_home(homes[1], FEW_TRIALS, demo_card(), "layer")
        deep = make_home(homes[2], FEW_TRIALS, deep_card(), "linear")
        with _home(homes[0]):
            for page, (what, change) in STEPS.items():
                rows.append(_row("AppTest", what, _reruns(page, many, change, n_reruns)))
        for home, record, words in (
            (homes[1], demo, "12 layers, tied by layer"),
            (homes[2], deep, "26 layers, tied by Linear"),
        ):
            with _home(home):
                timed = _reruns("search", record, _move_budget, n_reruns)
            rows.append(_row("AppTest", f"Search: budget moved, {words}", timed))
        rows += _browser_rows(homes[0], many, n_reruns)
    return form.Report(name="dashboard", rows=rows, targets=_targets(rows))


def _browser_rows(home: Path, record: RunRecord, n_reruns: int) -> list[dict[str, form.Cell]]:
    """Return the rows of Chromium; one that says why, where it is missing."""
    missing = dashboard_browser.missing()
    if missing:
        return [_row("Chromium", f"left out: {missing}", [])]
    seen = dashboard_browser.watch(home, record.run_id, n_reruns)
    if seen.holds_torch or "torch" in sys.modules:
        raise RuntimeError("the browser side has loaded torch")
    rows = [
        _row("Chromium", what, [Timed(seconds=s, cpu_seconds=c) for s, c in pairs])
        for what, pairs in seen.steps.items()
    ]
    held = {"Server: memory, resident": seen.resident_bytes, "Server: memory, peak": seen.peak}
    return rows + [{**_row("Chromium", what, []), "MB": b / 1e6} for what, b in held.items()]


def _row(where: str, what: str, timed: list[Timed]) -> dict[str, form.Cell]:
    return {
        "where": where,
        "what": what,
        "seconds": median(t.seconds for t in timed) if timed else None,
        "cpu_seconds": median(t.cpu_seconds for t in timed) if timed else None,
        "n": len(timed),
        "MB": None,
    }


def _targets(rows: list[dict[str, form.Cell]]) -> list[form.Target]:
    found = []
    for row in rows:
        what, seconds, held = str(row["what"]), row["seconds"], row["MB"]
        name = f"{what} ({row['where']})"
        if isinstance(held, float) and "peak" in what:
            found.append(form.Target(name=f"{name}, MB", value=held, target=MEMORY_TARGET))
        elif isinstance(seconds, float) and "layers" in what:
            found.append(form.Target(name=f"{name}, s", value=seconds, target=BUDGET_TARGET))
        elif isinstance(seconds, float) and "page" not in what:
            found.append(form.Target(name=f"{name}, s", value=seconds, target=RERUN_TARGET))
    return found


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    before = os.environ.get("QPRUNER_HOME")
    os.environ["QPRUNER_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("QPRUNER_HOME")
        if before is not None:
            os.environ["QPRUNER_HOME"] = before


def _reruns(
    page: str, record: RunRecord, change: Callable[[AppTest, int], None], n_reruns: int
) -> list[Timed]:
    """Return what every rerun after the first took, each after a change of a widget."""
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=120)
    at.query_params["run"] = record.run_id
    at.run()
    if page != "runs":
        at.query_params["run"] = record.run_id
        at.switch_page(f"../pages/{page}.py").run()
    timed = []
    for number in range(n_reruns + 1):
        before = _words(at)
        change(at, number)
        start, cpu = perf_counter(), process_time()
        at.run()
        timed.append(Timed(seconds=perf_counter() - start, cpu_seconds=process_time() - cpu))
        if at.exception or at.error:
            raise RuntimeError(f"page {page}: {[*at.exception, *at.error][0].value}")
        if _words(at) == before:
            raise RuntimeError(f"page {page}: nothing on it changed with its widget")
    return timed[1:]


def _words(at: AppTest) -> list[str]:
    """Return what a page says, and which buttons can be pressed."""
    said = [str(each.value) for each in (*at.markdown, *at.caption, *at.metric)]
    return said + [f"{button.label}: {button.disabled}" for button in at.button]


def _choose_plan(at: AppTest, number: int) -> None:
    box = next(box for box in at.selectbox if box.label == "Plan A")
    box.select_index(2 + number % 2)


def _move_budget(at: AppTest, number: int) -> None:
    slider = next(slider for slider in at.slider if slider.label.startswith("Memory budget"))
    share = 0.55 + 0.03 * (number % 5)
    slider.set_value(round(slider.min + share * (slider.max - slider.min), 1))


def _pick_run(at: AppTest, number: int) -> None:
    field = next(field for field in at.multiselect if field.label == "Picked runs")
    if field.value:
        field.set_value([])
    else:
        field.select(field.options[0])


STEPS: dict[str, tuple[str, Callable[[AppTest, int], None]]] = {
    "results": ("Results: another plan A", _choose_plan),
    "search": ("Search: budget moved", _move_budget),
    "runs": ("Runs: a run picked", _pick_run),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, default=N_TRIALS, help="trials in the study")


if __name__ == "__main__":
    sys.exit(form.main(measure, __doc__.partition("\n\n")[0], _add_arguments))
