"""Pictures of what leaves: kept units per layer, and accuracy before and after."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import palette
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.pruning.remarks import KINDS


def kept_units(dense: ModelLayout, pruned: ModelLayout) -> go.Figure:
    """Return kept and removed units per layer, one panel per kind of unit."""
    made = make_subplots(
        rows=1, cols=len(KINDS), subplot_titles=[f"{word} per layer" for word in KINDS.values()]
    )
    for column, (kind, word) in enumerate(KINDS.items(), start=1):
        before = {g.layer: g.n_units for g in dense.groups if g.kind == kind}
        after = {g.layer: g.n_units for g in pruned.groups if g.kind == kind}
        layers = sorted(before)
        kept = [after.get(layer, 0) for layer in layers]
        gone = [before[layer] - after.get(layer, 0) for layer in layers]
        for name, values, colour in (
            ("kept", kept, palette.TRIAL),
            ("removed", gone, palette.REMOVED),
        ):
            made.add_trace(
                go.Bar(
                    x=layers,
                    y=values,
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    marker={"color": colour, "line": {"width": 0}},
                    hovertemplate=f"layer %{{x}}: %{{y}} {word} {name}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    made.update_layout(
        barmode="stack",
        height=300,
        bargap=0.2,
        margin={"l": 8, "r": 12, "t": 62, "b": 8},
        legend={"orientation": "h", "x": 0.0, "y": 1.14, "yanchor": "bottom"},
        uirevision="keep",
    )
    made.update_xaxes(
        title="Decoder layer",
        dtick=2 if dense.n_layers <= 24 else None,
        tickangle=0,
        showgrid=False,
    )
    made.update_yaxes(rangemode="tozero")
    return made


def before_after(before: Metrics, after: Metrics, words: tuple[str, str]) -> go.Figure:
    """Return measured accuracy per task before and after, with standard errors."""
    made = go.Figure()
    for metrics, word, colour in (
        (before, words[0], palette.SLATE),
        (after, words[1], palette.TRIAL),
    ):
        tasks = sorted(metrics.tasks)
        results = [metrics.tasks[name] for name in tasks]
        made.add_trace(
            go.Bar(
                x=tasks,
                y=[result.accuracy for result in results],
                name=word,
                marker={"color": colour},
                error_y={
                    "type": "data",
                    "array": [result.standard_error for result in results],
                    "thickness": 1,
                    "width": 3,
                    "color": palette.MUTED,
                },
                customdata=[result.n_items for result in results],
                hovertemplate=f"%{{x}}, {word}: %{{y:.1%}} of %{{customdata}} items"
                "<extra></extra>",
            )
        )
    made.update_layout(
        barmode="group",
        height=300,
        margin={"l": 8, "r": 12, "t": 36, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        uirevision="keep",
    )
    made.update_yaxes(title="Accuracy (measured)", tickformat=".0%", range=[0, 1.05])
    made.update_xaxes(tickangle=-20, automargin=True)
    return made
