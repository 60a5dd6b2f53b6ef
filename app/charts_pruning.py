"""Pictures of what pruning costs: accuracy before and after, and criteria side by side."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from app import charts_base, palette, tables_pruning, wording, wording_pruning
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.record import ComparedPruning, Comparison

AXIS_PAD = 0.08
"""Room beside the outermost dots, as a share of what they span."""


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


def compared(comparison: Comparison) -> go.Figure:
    """Return the measured loss of every criterion as a dot, worst on top, with and without
    compensation apart; the best is ringed, the dense model a line.

    The axis spans the criteria proper: what the control loses beyond them stands at the edge,
    with its value.
    """
    edges = _edges(comparison)
    order = sorted(comparison.rows, key=lambda row: -row.metrics.loss)
    names = list(dict.fromkeys(wording_pruning.criterion(row.criterion) for row in order))
    made = charts_base.figure(124 + 26 * len(names))
    for compensation, colour in (("none", palette.TRIAL), ("bias", palette.RUNS[1])):
        # The legend shows the mark of the first one, which the control's triangle is not to be.
        rows = [row for row in reversed(order) if row.compensation == compensation]
        if rows:
            made.add_trace(_dots(rows, colour, wording_pruning.COMPENSATED[compensation], edges))
    best = tables_pruning.best_of(comparison)
    made.add_trace(
        go.Scatter(
            x=[best.metrics.loss],
            y=[wording_pruning.criterion(best.criterion)],
            mode="markers",
            name="best",
            marker={
                "size": 19,
                "color": "rgba(0,0,0,0)",
                "line": {"width": 2.5, "color": palette.RING},
            },
            hoverinfo="skip",
        )
    )
    made.add_vline(
        x=comparison.dense.loss,
        line={"color": palette.SLATE, "dash": "dot", "width": 1.5},
        annotation={"text": "dense", "font": {"size": 11, "color": palette.MUTED}},
        annotation_position="bottom right",
    )
    made.update_xaxes(title="Loss, nats/token (measured)", zeroline=False)
    made.update_xaxes(range=[edges[0], edges[1] + AXIS_PAD * (edges[1] - edges[0])])
    made.update_yaxes(categoryorder="array", categoryarray=names, automargin=True, zeroline=False)
    for note in _far_notes(order, edges[1]):
        made.add_annotation(note)
    return made


def _edges(comparison: Comparison) -> tuple[float, float]:
    """Return the ends between which dots stand in their true place."""
    inside = [row.metrics.loss for row in comparison.rows if row.criterion != "random"]
    inside = inside or [row.metrics.loss for row in comparison.rows]
    low, high = min([comparison.dense.loss, *inside]), max([comparison.dense.loss, *inside])
    pad = AXIS_PAD * ((high - low) or 0.1)
    return low - pad, high + pad


def _far_notes(rows: Sequence[ComparedPruning], edge: float) -> list[dict[str, object]]:
    """Return the losses beyond the edge, those of one criterion together, as their marks stand on
    one spot.
    """
    far: dict[str, list[str]] = {}
    for row in rows:
        if row.metrics.loss > edge:
            shown = far.setdefault(wording_pruning.criterion(row.criterion), [])
            shown.append(f"{row.metrics.loss:.3f}")
    return [
        {
            "x": edge,
            "y": name,
            "text": f"{' and '.join(dict.fromkeys(shown))} nats",
            "showarrow": False,
            "xanchor": "right",
            "xshift": -10,
            "font": {"size": 11},
        }
        for name, shown in far.items()
    ]


def _dots(
    rows: Sequence[ComparedPruning], colour: str, name: str, edges: tuple[float, float]
) -> go.Scatter:
    """Return one dot per row; a row beyond the edge is a triangle there."""
    far = [row.metrics.loss > edges[1] for row in rows]
    return go.Scatter(
        x=[min(row.metrics.loss, edges[1]) for row in rows],
        y=[wording_pruning.criterion(row.criterion) for row in rows],
        mode="markers",
        name=name,
        marker={
            "size": 11,
            "color": colour,
            "symbol": ["triangle-right" if beyond else "circle" for beyond in far],
        },
        customdata=[
            f"{wording.nats(row.metrics.loss, 4)}<br>{wording.count(row.parameters)} parameters"
            for row in rows
        ],
        hovertemplate="%{y}: %{customdata}<extra></extra>",
    )
