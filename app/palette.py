"""One colour per meaning, the same in every picture and readable on light and dark ground."""

from __future__ import annotations

from qpruner_core.catalog import PRECISIONS

SLATE = "#64748b"
BLUE = "#3b82f6"
AMBER = "#f59e0b"
AMBER_DEEP = "#c2740a"
EMERALD = "#10b981"
REMOVED = "rgba(148, 163, 184, 0.35)"
RING = "#f43f5e"
MUTED = "#8b98a9"
TRIAL = "#8b5cf6"
RUNS = ("#8b5cf6", "#06b6d4", "#ec4899", "#84cc16", "#f97316", "#6366f1", "#14b8a6", "#d946ef")
RISING: tuple[tuple[float, str], ...] = (
    (0.0, "rgba(16, 185, 129, 0.06)"),
    (1.0, "rgba(16, 185, 129, 1.0)"),
)
"""From nothing to all, for values that only grow."""

_BY_BITS = {16: SLATE, 8: BLUE, 4: AMBER}


def precision_colour(name: str) -> str:
    """Return the colour of a precision: slate, blue or amber by its nominal width."""
    if name == "fp4":
        return AMBER_DEEP
    bits = PRECISIONS.entry(name).facts["bits"]
    return _BY_BITS[bits] if isinstance(bits, int) else SLATE


def run_colour(position: int) -> str:
    """Return the colour of the run at that position of a comparison."""
    return RUNS[position % len(RUNS)]
