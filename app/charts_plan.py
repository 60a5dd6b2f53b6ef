"""The layer map: which precision every Linear of every layer has under a plan."""

from __future__ import annotations

import plotly.graph_objects as go

from app import charts_base, palette
from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan

N_NAMED_LAYERS = 16
"""Up to so many layers every cell also spells its precision."""


def layer_map(layout: ModelLayout, plan: PrecisionPlan) -> go.Figure:
    """Return layers across and Linears down, one colour per precision; names in the cells where
    they fit.
    """
    roles = list(dict.fromkeys(linear.role for linear in layout.linears))
    names = [name for name in PRECISIONS.names() if name in set(plan.precisions.values())]
    formats = precision_formats()
    made = charts_base.figure(64 + 30 * len(roles))
    cells = {(linear.layer, linear.role): linear for linear in layout.linears}
    for name in names:
        mine = [linear for linear in cells.values() if plan.precisions.get(linear.name) == name]
        title = PRECISIONS.entry(name).title
        made.add_trace(
            go.Bar(
                x=[linear.layer for linear in mine],
                y=[0.86] * len(mine),
                base=[roles.index(linear.role) - 0.43 for linear in mine],
                width=0.9,
                name=title,
                marker={"color": palette.precision_colour(name), "line": {"width": 0}},
                text=[title if layout.n_layers <= N_NAMED_LAYERS else "" for _ in mine],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": "white", "size": 11},
                hovertext=[
                    f"layer {linear.layer}, {linear.role}: {title}<br>{linear.out_features} x "
                    f"{linear.in_features}, {format_bytes(formats[name].linear_bytes(linear))}"
                    for linear in mine
                ],
                hoverinfo="text",
            )
        )
    made.update_layout(barmode="overlay", bargap=0)
    made.update_xaxes(
        title="Decoder layer",
        dtick=1 if layout.n_layers <= 24 else 4,
        range=[-0.55, layout.n_layers - 0.45],
        showgrid=False,
        zeroline=False,
    )
    made.update_yaxes(
        tickvals=list(range(len(roles))),
        ticktext=roles,
        range=[len(roles) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        automargin=True,
    )
    return made
