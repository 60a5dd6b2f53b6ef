"""The picture of kept units: layers down, units across, removed ones grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from app import palette
from app.units import Panel

LEAST_ROW, MOST_ROW = 11, 30
"""Pixels of a layer."""
PLANNED_HEIGHT = 360
"""Pixels that the rows share as long as they stay between the two."""
GAP = 0.04
"""Between two panels, as a share of the picture."""
N_TICKS = 5
CHARACTER_SHARE = 0.05
"""Room for one character of the words right of the rows, as a share of the widest layer."""


def kept_units(panels: Sequence[Panel], dropped: Sequence[int], n_layers: int) -> go.Figure:
    """Return one panel per kind of unit; the shade of a cell is the share of its units that
    stays, and layers that leave whole are grey with a word.
    """
    row = int(np.clip(PLANNED_HEIGHT / n_layers, LEAST_ROW, MOST_ROW))
    layout: dict[str, object] = {
        "height": 96 + row * n_layers,
        "margin": {"l": 8, "r": 4, "t": 56, "b": 8},
        "legend": {
            "orientation": "h",
            "x": 0.0,
            "y": 1.0,
            "yanchor": "top",
            "yref": "container",
        },
        "uirevision": "keep",
    }
    traces: list[object] = []
    notes: list[dict[str, object]] = []
    for place, panel in enumerate(panels):
        axes = {"xaxis": f"x{place + 1}", "yaxis": f"y{place + 1}"}
        traces += [_cells(panel, row).update(axes), _words(panel, row).update(axes)]
        left, right = _ends(place, len(panels))
        layout[f"xaxis{place + 1}"] = _across(panel, (left, right), axes["yaxis"])
        layout[f"yaxis{place + 1}"] = _down(place, n_layers)
        notes += [_title(panel, (left + right) / 2), *_dropped_notes(panel, dropped, axes)]
    # In one piece: the slider redraws at every move, and each update of a figure takes long.
    return go.Figure(data=[*traces, *_legend()], layout={**layout, "annotations": notes})


def _ends(place: int, n_panels: int) -> tuple[float, float]:
    """Return where a panel begins and ends, in shares of the picture."""
    width = (1.0 - GAP * (n_panels - 1)) / n_panels
    left = place * (width + GAP)
    return left, min(1.0, left + width)


def _across(panel: Panel, ends: tuple[float, float], anchor: str) -> dict[str, object]:
    longest = max(map(len, panel.words)) + 1
    ticks = _ticks(int(panel.edges[-1]))
    return {
        "title": {"text": panel.unit[:1].upper() + panel.unit[1:]},
        "domain": ends,
        "anchor": anchor,
        "range": [-0.5, panel.edges[-1] * (1 + CHARACTER_SHARE * longest)],
        "tickvals": ticks,
        "ticktext": [f"{tick:,}" for tick in ticks],
        "showgrid": False,
        "zeroline": False,
        "tickangle": 0,
    }


def _down(place: int, n_layers: int) -> dict[str, object]:
    """Return the axis of the layers, which the first panel names for all."""
    shared = {
        "anchor": f"x{place + 1}",
        "range": [n_layers - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }
    if place:
        return {**shared, "matches": "y", "showticklabels": False}
    return {**shared, "title": {"text": "Layer"}, "dtick": 1 if n_layers <= 24 else 4}


def _title(panel: Panel, middle: float) -> dict[str, object]:
    return {
        "text": panel.title,
        "x": middle,
        "y": 1.0,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 13},
    }


def _ticks(widest: int) -> list[int]:
    """Return round unit numbers for an axis that also has room for words."""
    most = max(widest - 1, 1)
    power = 10 ** int(np.log10(max(most / N_TICKS, 1)))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= most / N_TICKS)
    return list(range(0, widest, step))


def _cells(panel: Panel, row: int) -> go.Heatmap:
    made = go.Heatmap(
        z=np.round(panel.kept, 3).astype(np.float32),
        x=panel.edges - 0.5,
        colorscale=[(0.0, palette.REMOVED), (1.0, palette.TRIAL)],
        zmin=0.0,
        zmax=1.0,
        showscale=False,
        xgap=2 if panel.is_single else 0,
        ygap=2 if row > LEAST_ROW else 1,
        hoverongaps=False,
        hovertemplate=f"layer %{{y}}, {panel.unit} %{{x}}: %{{z:.0%}} kept<extra></extra>",
    )
    if not panel.is_single:
        ends = np.stack([panel.edges[:-1], panel.edges[1:] - 1], axis=1).astype(np.int32)
        # Numbers rather than words: they travel packed, and the slider redraws at every move.
        made.customdata = np.broadcast_to(ends, (*panel.kept.shape, 2))
        span = "%{customdata[0]} to %{customdata[1]}"
        made.hovertemplate = f"layer %{{y}}, {panel.unit}s {span}: %{{z:.0%}} kept<extra></extra>"
    return made


def _words(panel: Panel, row: int) -> go.Scatter:
    return go.Scatter(
        x=[panel.edges[-1]] * len(panel.words),
        y=list(range(len(panel.words))),
        mode="text",
        text=[f" {words}" for words in panel.words],
        textposition="middle right",
        textfont={"size": min(11, row - 2), "color": palette.MUTED},
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
    )


def _dropped_notes(
    panel: Panel, dropped: Sequence[int], axes: Mapping[str, str]
) -> list[dict[str, object]]:
    return [
        {
            "x": (panel.edges[-1] - 1) / 2,  # cells begin at -0.5
            "y": layer,
            "xref": axes["xaxis"],
            "yref": axes["yaxis"],
            "text": "layer leaves",
            "showarrow": False,
            # On a plate of its own: no one colour reads on the cells' grey in both themes.
            "font": {"size": 10, "color": palette.INK},
            "bgcolor": palette.PLATE,
            "borderpad": 1,
        }
        for layer in dropped
    ]


def _legend() -> list[go.Scatter]:
    return [
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=name,
            marker={"symbol": "square", "size": 11, "color": colour},
        )
        for name, colour in (("kept", palette.TRIAL), ("removed", palette.REMOVED))
    ]
