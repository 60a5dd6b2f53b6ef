"""Numbers as a person reads them: always with a unit, and bytes through one formatter."""

from __future__ import annotations

from datetime import datetime
from math import isfinite

from qpruner_core.domain.footprint import format_bytes

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


def size(size_bytes: float) -> str:
    """Return bytes for a person."""
    return format_bytes(size_bytes)


def size_change(after: float, before: float) -> str:
    """Return the change of a size with its sign, the size as its formatter writes it."""
    return ("-" if after < before else "+") + format_bytes(abs(after - before))


def percent(share: float, digits: int = 1) -> str:
    """Return a fraction as percent, such as ``45.0 %``."""
    return f"{100.0 * share:.{digits}f} %"


def points(difference: float) -> str:
    """Return the difference of two shares in percentage points, with its sign."""
    return f"{100.0 * difference:+.1f} points"


def nats(loss: float, digits: int = 3) -> str:
    """Return a loss; it is per token wherever it is shown."""
    return f"{loss:.{digits}f} nats" if isfinite(loss) else "not finite"


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


def time_left(done: int, total: int, elapsed: float) -> str:
    """Return how long the rest takes at the pace so far; empty until a first piece is done."""
    if done <= 0 or done >= total or elapsed <= 0:
        return ""
    return f"about {seconds(elapsed * (total - done) / done)} left"


def day(iso_time: str) -> str:
    """Return an ISO 8601 time in minutes, such as ``2026-01-31 09:05``."""
    return iso_time[:16].replace("T", " ")


def seconds_between(earlier: str, later: str) -> float:
    """Return the seconds between two ISO 8601 times."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
