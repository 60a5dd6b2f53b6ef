"""The picture of kept units: layers down, units across, removed ones grey."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import palette
from app.units import Panel

LEAST_ROW, MOST_ROW = 11, 30
"""Pixels of a layer."""
PLANNED_HEIGHT = 360
"""Pixels that the rows share as long as they stay between the two."""
N_TICKS = 5
CHARACTER_SHARE = 0.05
"""Room for one character of the words right of the rows, as a share of the widest layer."""


def kept_units(panels: Sequence[Panel], dropped: Sequence[int], n_layers: int) -> go.Figure:
    """Return one panel per kind of unit; the shade of a cell is the share of its units that
    stays, and layers that leave whole are grey with a word.
    """
    row = int(np.clip(PLANNED_HEIGHT / n_layers, LEAST_ROW, MOST_ROW))
    made = make_subplots(
        rows=1,
        cols=len(panels),
        subplot_titles=[panel.title for panel in panels],
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    made.update_annotations(font_size=13)
    for column, panel in enumerate(panels, start=1):
        made.add_trace(_cells(panel, row), row=1, col=column)
        made.add_trace(_words(panel, row), row=1, col=column)
        _mark_dropped(made, panel, dropped, column)
        longest = max(map(len, panel.words)) + 1
        right = panel.edges[-1] * (1 + CHARACTER_SHARE * longest)
        ticks = _ticks(int(panel.edges[-1]))
        made.update_xaxes(
            title=panel.unit[:1].upper() + panel.unit[1:],
            range=[-0.5, right],
            tickvals=ticks,
            ticktext=[f"{tick:,}" for tick in ticks],
            row=1,
            col=column,
        )
    _legend(made)
    made.update_layout(
        height=96 + row * n_layers,
        margin={"l": 8, "r": 4, "t": 56, "b": 8},
        legend={"orientation": "h", "x": 0.0, "y": 1.0, "yanchor": "top", "yref": "container"},
        uirevision="keep",
    )
    made.update_xaxes(showgrid=False, zeroline=False, tickangle=0)
    made.update_yaxes(range=[n_layers - 0.5, -0.5], showgrid=False, zeroline=False, ticks="")
    made.update_yaxes(title="Layer", dtick=1 if n_layers <= 24 else 4, row=1, col=1)
    return made


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


def _mark_dropped(made: go.Figure, panel: Panel, dropped: Sequence[int], column: int) -> None:
    for layer in dropped:
        made.add_annotation(
            x=(panel.edges[-1] - 1) / 2,  # cells begin at -0.5
            y=layer,
            text="layer leaves",
            showarrow=False,
            font={"size": 10},  # in the theme's colour: no other reads on grey in both
            row=1,
            col=column,
        )


def _legend(made: go.Figure) -> None:
    for name, colour in (("kept", palette.TRIAL), ("removed", palette.REMOVED)):
        made.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=name,
                marker={"symbol": "square", "size": 11, "color": colour},
            ),
            row=1,
            col=1,
        )
