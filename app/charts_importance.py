"""Pictures of the importance table: heatmap, agreement between criteria, units of one block,
sensitivities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import charts_base, palette, wording
from app.tables_importance import Row
from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.record import SensitivityCell

N_NAMED_UNITS = 40
"""Up to so many units every bar has its number below."""


def heatmap(
    rows: Sequence[Row], n_layers: int, chosen: tuple[str, int] | None = None
) -> go.Figure:
    """Return layers across, one row per criterion and module; each row is coloured against its
    own maximum.

    Clicks arrive as ``"<row key>@<layer>"``.
    """
    height = 70 + 44 * len(rows)
    made = charts_base.figure(height, legend=False)
    titles = [row.title for row in rows]
    shares = [[row.share(layer) for layer in range(n_layers)] for row in rows]
    made.add_trace(
        go.Heatmap(
            z=shares,
            x=list(range(n_layers)),
            y=titles,
            colorscale=list(palette.RISING),
            zmin=0.0,
            zmax=1.0,
            xgap=2,
            ygap=3,
            colorbar={
                "tickformat": ".0%",
                "thickness": 10,
                "len": 1.0,
                "tickvals": [0, 0.5, 1],
            },
            hoverinfo="skip",
        )
    )
    targets = charts_base.click_targets(
        [layer for _ in rows for layer in range(n_layers)],
        [row.title for row in rows for _ in range(n_layers)],
        [f"{row.key}@{layer}" for row in rows for layer in range(n_layers)],
        size=26,
    )
    targets.hoverinfo = "text"
    targets.text = [
        f"<b>{row.title}</b><br>layer {layer}: {row.text(layer)}"
        for row in rows
        for layer in range(n_layers)
    ]
    made.add_trace(targets)
    if chosen is not None:
        _ring_cell(made, rows, *chosen)
    made.update_xaxes(
        title="Decoder layer",
        dtick=1 if n_layers <= 24 else 4,
        range=[-0.55, n_layers - 0.45],
        showgrid=False,
        zeroline=False,
    )
    made.update_yaxes(autorange="reversed", showgrid=False, automargin=True, zeroline=False)
    return made


def _ring_cell(made: go.Figure, rows: Sequence[Row], key: str, layer: int) -> None:
    position = next((index for index, row in enumerate(rows) if row.key == key), None)
    if position is not None:
        made.add_shape(
            type="rect",
            x0=layer - 0.5,
            x1=layer + 0.5,
            y0=position - 0.5,
            y1=position + 0.5,
            line={"color": palette.RING, "width": 2.5},
        )


def agreement(correlation: pd.DataFrame) -> go.Figure:
    """Return Spearman's rank correlation between the rows of the table, in [-1, 1], as numbers on
    colour.
    """
    names = list(correlation.columns)
    values = correlation.to_numpy(dtype=float)
    made = charts_base.figure(110 + 40 * len(names), legend=False)
    made.add_trace(
        go.Heatmap(
            z=values,
            x=names,
            y=names,
            zmin=-1.0,
            zmax=1.0,
            colorscale=list(palette.AGREEING),
            hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
            xgap=2,
            ygap=2,
            showscale=False,
        )
    )
    made.add_trace(_numbers(names, values))
    made.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    made.update_xaxes(tickangle=-35, automargin=True, showgrid=False)
    return made


def _numbers(names: Sequence[str], values: np.ndarray) -> go.Scatter:
    """Return the numbers of a square table, each in the colour that its cell asks for."""
    flat = values.ravel()
    grounds = ("#000000" if np.isnan(v) else _cell(v) for v in flat)
    return go.Scatter(
        x=list(names) * len(names),
        y=[name for name in names for _ in names],
        text=["" if np.isnan(v) else wording.correlation(v) for v in flat],
        textfont={"color": [palette.text_on(ground) for ground in grounds]},
        mode="text",
        hoverinfo="skip",
    )


def _cell(correlation: float) -> str:
    return palette.on_scale(palette.AGREEING, (correlation + 1.0) / 2.0)


def units(scores: np.ndarray, kept: Sequence[int] | None, unit_word: str) -> go.Figure:
    """Return one bar per unit, by descending score; units that leave under the plan are grey."""
    order = np.argsort(-scores, kind="stable")
    stays = set(range(len(scores)) if kept is None else kept)
    made = charts_base.figure(260, legend=kept is not None)
    for name, inside, colour in (
        ("kept", True, palette.TRIAL),
        ("removed", False, palette.REMOVED),
    ):
        at = [place for place, unit in enumerate(order) if (int(unit) in stays) == inside]
        if at:
            made.add_trace(
                go.Bar(
                    x=at,
                    y=scores[order][at],
                    name=name,
                    marker={"color": colour, "line": {"width": 0}},
                    text=[f"{unit_word} {int(order[place])}" for place in at],
                    textposition="none",
                    hovertemplate="%{text}: %{y:.4g}<extra></extra>",
                )
            )
    made.update_layout(bargap=0.15 if len(scores) < 100 else 0)
    made.update_xaxes(showgrid=False, **_places(order, unit_word))
    made.update_yaxes(title="Score", rangemode="tozero")
    return made


def _places(order: np.ndarray, unit_word: str) -> dict[str, object]:
    """Return the axis under the bars: the units themselves where they fit, else their ranks."""
    if len(order) > N_NAMED_UNITS:
        return {"title": f"Rank of the {unit_word}, from the highest score", "tickformat": "d"}
    return {
        "title": f"Number of the {unit_word}, highest score first",
        "tickvals": list(range(len(order))),
        "ticktext": [str(unit) for unit in order],
    }


def sensitivities(cells: Sequence[SensitivityCell], labels: Mapping[str, str]) -> go.Figure:
    """Return the measured loss increase of search units at every precision, one colour per
    precision.
    """
    made = charts_base.figure(260)
    for precision in dict.fromkeys(cell.precision for cell in cells):
        mine = [cell for cell in cells if cell.precision == precision]
        made.add_trace(
            go.Bar(
                x=[labels.get(cell.unit, cell.unit) for cell in mine],
                y=[cell.loss_increase for cell in mine],
                name=PRECISIONS.entry(precision).title,
                marker={"color": palette.precision_colour(precision)},
                hovertemplate="%{x}: %{y:+.4f} nats/token<extra></extra>",
            )
        )
    made.update_layout(barmode="group")
    made.update_xaxes(type="category")
    # Plain decimals: "200µ" of a nat is nobody's unit.
    made.update_yaxes(title="Loss increase, nats/token", automargin=True, exponentformat="none")
    return made
