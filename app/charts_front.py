"""The front: accuracy or loss against memory, measured points apart from the predicted line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from app import charts_base, labels, palette, points
from app.points import Point
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.search.knapsack import Front

N_LINE_POINTS = 400
AXIS_TITLES = {
    "loss": "Loss on held-out text, nats/token (lower is better)",
    "accuracy": "Mean zero-shot accuracy (higher is better)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontView:
    """What the picture of a front shows."""

    objective: str
    """``"loss"`` or ``"accuracy"``."""
    budget_bytes: int | None = None
    """Where the budget line stands."""
    chosen: str | None = None
    """Key of the ringed point."""
    other: str | None = None
    """Key of the point it is compared with."""
    predicted: Front | None = None
    loss_16_bit: float = 0.0
    """Loss at which the predicted line starts; nats per token."""


def value(point: Point, objective: str) -> float:
    """Return what is drawn upwards."""
    return point.metrics.loss if objective == "loss" else point.metrics.accuracy


def front(found: Sequence[Point], view: FrontView) -> go.Figure:
    """Return the front of one or several runs; a click sends the point's key."""
    made = charts_base.figure(500)
    if view.predicted is not None and view.objective == "loss":
        made.add_trace(_predicted_line(view.predicted, view.loss_16_bit))
    for position, run_id in enumerate(dict.fromkeys(point.run_id for point in found)):
        for trace in _run_traces(
            [p for p in found if p.run_id == run_id], position, view.objective
        ):
            made.add_trace(trace)
    if found:
        made.add_trace(_front_line(points.front_of(found, view.objective), view.objective))
    for key, word in ((view.chosen, "chosen"), (view.other, "B")):
        ringed = points.find(found, key)
        if ringed is not None:
            made.add_trace(_ring(ringed, view.objective, word))
    _axes(made, found, view)
    # Names of one run alone: those of the others would stand on the same spots.
    named = [p for p in found if p.kind != points.PLAN and p.run_id == found[0].run_id]
    spots = [(float(p.metrics.weight_bytes), value(p, view.objective)) for p in named]
    others = [(float(p.metrics.weight_bytes), value(p, view.objective)) for p in found]
    for annotation in labels.place(
        [point.name for point in named], spots, others, wall=view.budget_bytes
    ):
        made.add_annotation(annotation)
    return made


def _run_traces(mine: list[Point], position: int, objective: str) -> Iterable[go.Scatter]:
    colour = palette.run_colour(position)
    looks = {
        points.PLAN: ("trials", go.Scattergl, "circle", 8),
        points.BASELINE: ("baselines", go.Scatter, "diamond", 11),
        points.REFERENCE: ("reference", go.Scatter, "star", 13),
    }
    for kind, (word, trace, symbol, size) in looks.items():
        shown = [point for point in mine if point.kind == kind]
        if not shown:
            continue
        yield trace(
            x=[p.metrics.weight_bytes for p in shown],
            y=[value(p, objective) for p in shown],
            mode="markers",
            name=f"{shown[0].run_name}: {word}",
            marker={
                "symbol": symbol,
                "size": size,
                "color": colour,
                "opacity": 0.85,
                "line": {"width": 0},
            },
            customdata=[p.key for p in shown],
            hovertext=[points.hover(p) for p in shown],
            hoverinfo="text",
            selected={"marker": {"opacity": 0.95}},
            unselected={"marker": {"opacity": 0.85}},
        )


def _front_line(best: Sequence[Point], objective: str) -> go.Scatter:
    return go.Scatter(
        x=[p.metrics.weight_bytes for p in best],
        y=[value(p, objective) for p in best],
        mode="lines",
        line={"color": palette.EMERALD, "width": 2.5, "shape": "hv"},
        name="front (measured)",
        hoverinfo="skip",
    )


def _predicted_line(predicted: Front, loss_16_bit: float) -> go.Scatter:
    at = np.unique(np.linspace(0, len(predicted) - 1, N_LINE_POINTS).astype(int))
    sizes, losses = predicted.weight_bytes[at], predicted.loss_increase[at] + loss_16_bit
    return go.Scatter(
        x=sizes,
        y=losses,
        mode="lines",
        line={"color": palette.EMERALD, "width": 1.5, "dash": "dot"},
        name="predicted front (estimated)",
        hovertext=[
            f"predicted: {format_bytes(s)}, loss {x:.3f} nats/token"
            for s, x in zip(sizes, losses, strict=True)
        ],
        hoverinfo="text",
    )


def _ring(point: Point, objective: str, word: str) -> go.Scatter:
    return go.Scatter(
        x=[point.metrics.weight_bytes],
        y=[value(point, objective)],
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 20,
            "color": palette.RING,
            "line": {"width": 3 if word == "chosen" else 1.5},
        },
        name=f"{word}: {point.name}",
        hoverinfo="skip",
    )


def _axes(made: go.Figure, found: Sequence[Point], view: FrontView) -> None:
    sizes = [float(p.metrics.weight_bytes) for p in found]
    if view.predicted is not None and len(view.predicted):
        sizes += [float(view.predicted.weight_bytes[0]), float(view.predicted.weight_bytes[-1])]
    if view.budget_bytes is not None:
        sizes.append(float(view.budget_bytes))
        made.add_vline(
            x=view.budget_bytes,
            line={"color": palette.MUTED, "dash": "dash", "width": 1.5},
            annotation={
                "text": f"budget {format_bytes(view.budget_bytes)}",
                "font": {"size": 11},
                "yanchor": "bottom",
                "xanchor": "left",
                "y": 0.0,
                "yref": "paper",
                "textangle": 0,
            },
        )
    if sizes:
        made.update_xaxes(**charts_base.byte_axis(sizes, "Weights, packed with scales and tables"))
    made.update_yaxes(title=AXIS_TITLES[view.objective], automargin=True)
    if view.objective == "accuracy":
        made.update_yaxes(tickformat=".0%")
