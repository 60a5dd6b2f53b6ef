"""The front: accuracy or loss against memory, measured points apart from the predicted line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from app import charts_base, labels, palette, points, wording
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
    zoom: bool = True
    """Whether far points stand at the edge, so that those near the front fill the picture."""


def value(point: Point, objective: str) -> float:
    """Return what is drawn upwards."""
    return point.metrics.loss if objective == "loss" else point.metrics.accuracy


def window(found: Sequence[Point], view: FrontView) -> tuple[float, float]:
    """Return the lowest and the highest value that the picture shows in their true place.

    They hold the front and nine of ten trials; whatever lies within the same height above or below
    widens them, and what lies farther stands at the edge. Without zoom they hold everything.
    """
    values = [value(point, view.objective) for point in found]
    trials = [value(p, view.objective) for p in found if p.kind == points.PLAN]
    core = [value(point, view.objective) for point in points.front_of(found, view.objective)]
    if view.predicted is not None and len(view.predicted) and view.objective == "loss":
        core += [view.loss_16_bit + float(x) for x in view.predicted.loss_increase[[0, -1]]]
    if not core or not view.zoom:
        return min(values, default=0.0), max(values, default=1.0)
    if trials:
        core += [float(x) for x in np.quantile(trials, (0.05, 0.95))]
    low, high = min(core), max(core)
    reach = max(high - low, 0.02 * abs(high))
    near = [x for x in values if low - reach <= x <= high + reach]
    return min([low, *near]), max([high, *near])


def n_outside(found: Sequence[Point], view: FrontView) -> int:
    """Return how many points stand at the edge rather than in their true place."""
    low, high = window(found, view)
    return sum(not low <= value(point, view.objective) <= high for point in found)


def front(found: Sequence[Point], view: FrontView) -> go.Figure:
    """Return the front of one or several runs; a click sends the point's key."""
    made = charts_base.figure(500)
    frame = _Frame(found, view)
    if view.predicted is not None and view.objective == "loss":
        made.add_trace(_predicted_line(view.predicted, view.loss_16_bit))
    for position, run_id in enumerate(dict.fromkeys(point.run_id for point in found)):
        for trace in _run_traces([p for p in found if p.run_id == run_id], position, frame):
            made.add_trace(trace)
    if found:
        made.add_trace(_front_line(points.front_of(found, view.objective), view.objective))
    for key, word in ((view.chosen, "chosen"), (view.other, "B")):
        ringed = points.find(found, key)
        if ringed is not None:
            made.add_trace(_ring(ringed, frame.place(ringed), word))
    _axes(made, found, view, frame)
    # Names of one run alone: those of the others would stand on the same spots.
    named = [p for p in found if p.kind != points.PLAN and p.run_id == found[0].run_id]
    spots = [(float(p.metrics.weight_bytes), frame.place(p)) for p in named]
    others = [(float(p.metrics.weight_bytes), frame.place(p)) for p in found]
    for annotation in labels.place(
        [frame.name(point) for point in named], spots, others, wall=view.budget_bytes
    ):
        made.add_annotation(annotation)
    return made


class _Frame:
    """Where points stand: far ones at the edge, as triangles that name their value."""

    def __init__(self, found: Sequence[Point], view: FrontView) -> None:
        self._objective = view.objective
        low, high = window(found, view)
        self._low, self._high = low, high
        pad = 0.05 * ((high - low) or 0.1)
        self.range = (low - 2 * pad, high + 2 * pad)
        self._edges = (low - pad, high + pad)

    def place(self, point: Point) -> float:
        """Return the height at which a point is drawn."""
        at = value(point, self._objective)
        if at < self._low:
            return self._edges[0]
        return self._edges[1] if at > self._high else at

    def symbol(self, point: Point, usual: str) -> str:
        """Return the usual mark, or the triangle of a point that lies beyond an edge."""
        at = value(point, self._objective)
        if at < self._low:
            return "triangle-down"
        return "triangle-up" if at > self._high else usual

    def name(self, point: Point) -> str:
        """Return the point's name, with its value where its place does not tell it."""
        at = value(point, self._objective)
        if self._low <= at <= self._high:
            return point.name
        return f"{point.name}: " + (
            wording.nats(at) if self._objective == "loss" else wording.percent(at)
        )


def _run_traces(mine: list[Point], position: int, frame: _Frame) -> Iterable[go.Scatter]:
    colour = palette.run_colour(position)
    looks = {
        points.PLAN: ("trials", go.Scattergl, "circle", 8),
        points.BASELINE: ("baselines", go.Scatter, "diamond", 11),
        points.REFERENCE: ("reference", go.Scatter, "star", 13),
    }
    for kind, (word, trace, symbol, size) in looks.items():
        # The legend shows the mark of the first one.
        shown = sorted(
            (point for point in mine if point.kind == kind),
            key=lambda point: frame.symbol(point, symbol) != symbol,
        )
        if not shown:
            continue
        yield trace(
            x=[p.metrics.weight_bytes for p in shown],
            y=[frame.place(p) for p in shown],
            mode="markers",
            name=f"{shown[0].run_name}: {word}",
            marker={
                "symbol": [frame.symbol(p, symbol) for p in shown],
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


def _ring(point: Point, height: float, word: str) -> go.Scatter:
    return go.Scatter(
        x=[point.metrics.weight_bytes],
        y=[height],
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


def _axes(made: go.Figure, found: Sequence[Point], view: FrontView, frame: _Frame) -> None:
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
    if found:
        made.update_yaxes(range=frame.range, uirevision=f"{view.objective}/{view.zoom}")
    if view.objective == "accuracy":
        made.update_yaxes(tickformat=".0%")
