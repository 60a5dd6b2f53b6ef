"""The signals of a search in one picture: mutual information of every layer over the sensitivities
of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from app import charts_base, palette
from app.tables_signals import SIGNAL_TITLES, SignalRow

ROW, BARS, REST = 28, 96, 104
"""Pixels of a row of sensitivities, of the bars, and of all else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Information:
    """The layer signal that QPruner-2 goes by."""

    title: str
    """As the catalogue has it."""
    axis: str
    """What stands beside the bars, with the unit."""
    values: tuple[float, ...]
    """Per layer; empty where it was not measured."""


def signals(
    information: Information, rows: Sequence[SignalRow], signal: str, n_layers: int
) -> go.Figure:
    """Return layers across; bars of mutual information above, below one row per part and
    precision, all on one scale of colour.

    Args:
        information: The bars.
        rows: As `tables_signals.rows` gives them.
        signal: As in `SearchSpec.signal`.
        n_layers: Layers of the model.
    """
    bars = BARS if information.values else 0
    height = REST + bars + ROW * len(rows)
    made = charts_base.figure(height, legend=False)
    made.add_trace(_sensitivities(rows, signal, n_layers))
    # Heights of the two pictures as shares of what margins and the axis below leave.
    share = bars / (height - REST) if bars else 0.0
    if information.values:
        made.add_trace(_information(information))
    made.update_layout(
        xaxis={
            "title": "Decoder layer",
            "dtick": 1 if n_layers <= 24 else 4,
            "range": [-0.55, n_layers - 0.45],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={
            "domain": [0.0, 1.0 - 1.15 * share],
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        yaxis2={
            "domain": [1.0 - 0.95 * share, 1.0],
            "rangemode": "tozero",
            "title": {"text": information.axis, "font": {"size": 11}},
            "nticks": 3,
            "showgrid": False,
            "automargin": True,
            "anchor": "x",
        },
        bargap=0.1,
    )
    return made


def _information(information: Information) -> go.Bar:
    values = list(information.values)
    return go.Bar(
        x=list(range(len(values))),
        y=values,
        yaxis="y2",
        marker={
            "color": values,
            "colorscale": list(palette.RISING),
            "cmin": 0.0,
            "cmax": max(values) or 1.0,
            "line": {"width": 0},
        },
        hovertemplate=f"layer %{{x}}: {information.title} %{{y:.3g}}<extra></extra>",
    )


def _sensitivities(rows: Sequence[SignalRow], signal: str, n_layers: int) -> go.Heatmap:
    values = [[row.values.get(layer) for layer in range(n_layers)] for row in rows]
    full = max((x for line in values for x in line if x is not None), default=0.0)
    return go.Heatmap(
        z=values,
        x=list(range(n_layers)),
        y=[row.title for row in rows],
        colorscale=list(palette.RISING),
        zmin=0.0,
        zmax=full if full > 0 else 1.0,
        xgap=2,
        ygap=3,
        colorbar={
            "thickness": 10,
            "nticks": 4,
            "exponentformat": "none",
            "title": {"text": "nats/token", "font": {"size": 11}},
        },
        hovertemplate=(
            f"layer %{{x}}, %{{y}}<br>{SIGNAL_TITLES[signal]}: %{{z:.4f}} nats/token"
            "<extra></extra>"
        ),
        hoverongaps=False,
    )
