"""One colour per meaning, the same in every picture and readable on light and dark ground."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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

AGREEING: tuple[tuple[float, str], ...] = ((0.0, "#f43f5e"), (0.5, "#cbd5e1"), (1.0, "#10b981"))
"""From -1 over 0 to 1; opaque, so that a number on it has the same ground in both themes."""
INK, WHITE = "#0f172a", "#ffffff"
"""Text on a coloured ground."""
PLATE = "#cbd5e1"
"""Ground of words that stand on a picture."""

_BY_BITS = {16: SLATE, 8: BLUE, 4: AMBER}


def precision_colour(name: str) -> str:
    """Return the colour of a precision: slate, blue or amber by its nominal width."""
    if name == "fp4":
        return AMBER_DEEP
    bits = PRECISIONS.entry(name).facts["bits"]
    return _BY_BITS[bits] if isinstance(bits, int) else SLATE


def contrast(one: str, other: str) -> float:
    """Return the contrast of two opaque ``#rrggbb`` colours as WCAG 2 defines it; in [1, 21]."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def text_on(ground: str) -> str:
    """Return the text colour that stands out more on an opaque ground."""
    return max((INK, WHITE), key=lambda text: contrast(text, ground))


def on_scale(scale: Sequence[tuple[float, str]], share: float) -> str:
    """Return the colour that a picture draws for a share in [0, 1] of an opaque scale."""
    at = min(max(share, 0.0), 1.0)
    pairs = pairwise(scale)
    (low, first), (high, second) = next(pair for pair in pairs if at <= pair[1][0])
    weight = (at - low) / (high - low)
    mixed = (round(a + weight * (b - a)) for a, b in zip(_rgb(first), _rgb(second), strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _luminance(colour: str) -> float:
    """Return the relative luminance of an sRGB colour; in [0, 1]."""
    shares = (channel / 255 for channel in _rgb(colour))
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def run_colour(position: int) -> str:
    """Return the colour of the run at that position of a comparison."""
    return RUNS[position % len(RUNS)]
