"""Numbers as a person reads them: always with a unit, and bytes through one formatter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import median

from qpruner_core.catalog import STRATEGIES
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.spec import DataSpec

MEASURED = "measured"
ESTIMATED = "estimated"

STEP_TITLES = {
    "load": "Load",
    "score": "Score",
    "prune": "Prune",
    "quantize": "Quantise",
    "evaluate": "Evaluate",
    "search": "Search",
    "recover": "Recover",
    "export": "Export",
}
JOB_TITLES = {
    "finish": "Finish the search",
    "trials": "Measure trials",
    "measure": "Measure a plan",
    "generate": "Answer a prompt",
    "compare": "Compare criteria",
    "compress": "Compress layer by layer",
    "reproduce": "The paper's table",
}
"""What a job does that runs no step of the line from its start."""
STATUS_WORDS = {"cancelled": "stopped"}
"""Statuses of jobs that are called otherwise on screen."""
COUNTED_JOBS = ("compare", "compress", "trials", "reproduce")
"""Those of them that report pieces of their own, not of the steps that they call on."""
DEMO_TEXT = (
    "This model reads the demo's invented language, so its scores and losses say little about "
    "real text. Choose WikiText-2 or own files when you make a run."
)
OPTION_TITLES = {
    "draws": "Fronts drawn beside",
    "n_bins": "Bins per dimension",
    "n_components": "Components",
    "n_neighbors": "Neighbours",
    "n_outputs": "Components of the prediction",
    "n_samples": "Token positions",
    "n_startup": "Random trials first",
    "p": "Order p of the norm",
    "population_size": "Population",
    "rounds": "Rounds among neighbours",
}
"""Options whose names do not speak for themselves."""
STRATEGY_TITLES = {"gp_seeded": "Front, then Gaussian process"}
"""Shorter than in the catalogue."""
_LOG_LINE = re.compile(
    r"\d{4}-\d\d-\d\d (?P<time>\d\d:\d\d:\d\d),\d+ (?P<level>\w+) [\w.]+: (?P<message>.*)"
)
"""As the worker writes it: ``2026-01-31 09:05:00,123 INFO name.of.module: message``."""
N_PACE = 5
"""Newest pieces that the pace goes by."""


def job_status(status: str) -> str:
    """Return the status of a job as it is called on screen."""
    return STATUS_WORDS.get(status, status)


def size(size_bytes: float) -> str:
    """Return bytes for a person."""
    return format_bytes(size_bytes)


def size_change(after: float, before: float) -> str:
    """Return the change of a size with its sign, the size as its formatter writes it."""
    return ("-" if after < before else "+") + format_bytes(abs(after - before))


def percent_change(after: float, before: float) -> str | None:
    """Return by which share something changed, such as ``-20.0 %``; None where it did not."""
    return f"{100.0 * (after / before - 1.0):+.1f} %" if after != before else None


def is_nothing(change: str) -> bool:
    """Whether a change is nought to the digits that are shown, such as ``+0.000 nats``."""
    number = change.lstrip("+-").split()[0]
    return not any(digit in number for digit in "123456789")


def option(name: str) -> str:
    """Return an option of a catalogue entry as a label."""
    words = name.replace("_", " ")
    return OPTION_TITLES.get(name, words[:1].upper() + words[1:])


def strategy(name: str) -> str:
    """Return a strategy as a choice; in few words, so that a field shows all of them."""
    return STRATEGY_TITLES.get(name) or STRATEGIES.entry(name).title


def log_line(line: str) -> str:
    """Return a line of the worker's log with what a person needs of its prefix: the time, and the
    level where it is not the usual one.
    """
    found = _LOG_LINE.fullmatch(line)
    if found is None:
        return line
    level = "" if found["level"] == "INFO" else f"{found['level']} "
    return f"{found['time']} {level}{found['message']}"


def correlation(value: float) -> str:
    """Return a correlation to two digits, without a sign before nothing."""
    return f"{round(value, 2) + 0.0:.2f}"


def percent(share: float, digits: int = 1) -> str:
    """Return a fraction as percent, such as ``45.0 %``."""
    return f"{100.0 * share:.{digits}f} %"


def accuracy(share: float, error: float) -> str:
    """Return an accuracy with its standard error, such as ``61.4 ± 2.9 %``."""
    return f"{100.0 * share:.1f} ± {100.0 * error:.1f} %"


def points(difference: float) -> str:
    """Return the difference of two shares in percentage points, with its sign."""
    return f"{100.0 * difference:+.1f} points"


def nats(loss: float, digits: int = 3) -> str:
    """Return a loss; it is per token wherever it is shown."""
    return f"{loss:.{digits}f} nats" if isfinite(loss) else "not finite"


def speed(tokens_per_second: float | None) -> str:
    """Return a speed; ``-`` where it was not timed."""
    return f"{tokens_per_second:,.0f} tokens/s" if tokens_per_second is not None else "-"


def milliseconds(duration: float) -> str:
    """Return a short time given in seconds, such as ``16.4 ms``; ``-`` where it is not known."""
    return f"{1000.0 * duration:.3g} ms" if isfinite(duration) else "-"


def count(number: float) -> str:
    """Return a large count in short form, such as ``5.31 M``."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def seconds(duration: float) -> str:
    """Return a duration, such as ``1 min 20 s``."""
    whole = round(duration)
    if duration < 10:
        return f"{duration:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def seconds_each(reports: Sequence[tuple[str, int]]) -> float:
    """Return the median time of the newest pieces, so that a pause between two does not count.

    Args:
        reports: ISO 8601 time and pieces done by then, oldest first.

    Returns:
        Seconds; 0 until a first piece is done.
    """
    each = [
        seconds_between(earlier, later) / (after - before)
        for (earlier, before), (later, after) in pairwise(reports)
        if after > before
    ]
    return median(each[-N_PACE:]) if each else 0.0


def time_left(done: int, total: int, pace: float) -> str:
    """Return how long the rest takes at so many seconds each; empty until a first piece is
    done.
    """
    if done <= 0 or done >= total or pace <= 0:
        return ""
    return f"about {seconds(pace * (total - done))} left"


def day(iso_time: str) -> str:
    """Return an ISO 8601 time in minutes, such as ``2026-01-31 09:05``."""
    return iso_time[:16].replace("T", " ")


def seconds_between(earlier: str, later: str) -> float:
    """Return the seconds between two ISO 8601 times."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def data(asked: DataSpec) -> str:
    """Return which text and tasks measured numbers rest on, such as ``demo text, up to 12,288
    tokens; no tasks``.
    """
    text = f"{text_source(asked.heldout)}, up to {asked.heldout_tokens:,} tokens"
    if asked.tasks == "none":
        return f"{text}; no tasks"
    items = f"{asked.items_per_task} items each" if asked.items_per_task else "all items"
    tasks = "demo tasks" if asked.tasks == "demo" else f"tasks in {Path(asked.tasks).name}"
    return f"{text}; {tasks}, {items}"


def text_source(source: str) -> str:
    """Return the name of a text on screen."""
    known = {"demo": "demo text", "wikitext2": "WikiText-2"}
    return known.get(source, Path(source).name)
