"""What all pictures share: margins, a byte axis, and how a value that can be clicked is laid over
a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log2

import plotly.graph_objects as go

from qpruner_core.domain.footprint import format_bytes

N_TICKS = 6

PLAIN = {"displayModeBar": False}
"""Plotly's settings for a picture that needs no zoom: its buttons would cover the upper edge."""


def figure(height: int, legend: bool = True) -> go.Figure:
    """Return an empty figure with our margins; colours and fonts come from the theme."""
    made = go.Figure()
    made.update_layout(
        height=height,
        margin={"l": 8, "r": 12, "t": 44 if legend else 16, "b": 8},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        uirevision="keep",
        hoverlabel={"align": "left"},
    )
    return made


def byte_ticks(low: float, high: float) -> list[float]:
    """Return round positions for a byte axis: steps of 1, 2 or 5 times a power of two of the
    unit.
    """
    span = max(high - low, 1.0)
    unit = 2.0 ** (10 * floor(log2(max(span / 2, 1.0)) / 10))
    rough = span / unit / N_TICKS
    power = 10.0 ** floor(_log10(rough))
    step = unit * power * next(m for m in (1, 2, 5, 10) if m * power >= rough)
    first = ceil(low / step)
    return [step * k for k in range(first, floor(high / step) + 1)]


def byte_axis(
    values: Sequence[float], title: str, *, from_zero: bool = False
) -> dict[str, object]:
    """Return the settings of an axis of bytes, its ticks written by the one byte formatter."""
    low, high = (0.0 if from_zero else min(values)), max(values)
    pad = 0.06 * max(high - low, high * 0.02, 1.0)
    left, right = max(0.0, low - pad) if not from_zero else 0.0, high + pad
    ticks = byte_ticks(left, right)
    return {
        "title": title,
        "range": [left, right],
        "tickvals": ticks,
        "ticktext": [format_bytes(tick) for tick in ticks],
    }


def _log10(value: float) -> float:
    return log2(value) / log2(10.0)


def click_targets(
    x: Sequence[object], y: Sequence[object], names: Sequence[str], size: int
) -> go.Scatter:
    """Return transparent squares that take the clicks a heatmap does not send."""
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="markers",
        marker={"symbol": "square", "size": size, "color": "rgba(0,0,0,0)", "line": {"width": 0}},
        customdata=list(names),
        hoverinfo="none",
        showlegend=False,
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
    )
