"""The front: accuracy or loss against what a plan costs, measured points apart from the predicted
line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app import charts_base, labels, palette, points, wording
from app.points import Point
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.search.knapsack import Front

N_LINE_POINTS = 400
AXIS_TITLES = {
    "loss": "Loss on held-out text, nats/token (lower is better)",
    "accuracy": "Mean zero-shot accuracy (higher is better)",
}
COST_TITLES = {
    "weight_bytes": "Weights, packed with scales and tables",
    "training_memory": "Memory of LoRA training, estimated",
    "latency": "Latency, ms per generated token",
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
    cost: str = "weight_bytes"
    """What is drawn across, as in `SearchSpec.cost`; points without it are left out."""
    predicted_cost: NDArray[np.float64] | None = None
    """What every predicted point costs, shape ``(n_points,)``; None for its bytes."""
    signal: str = "loss"
    """By which sensitivities the line is predicted."""
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
    best = points.front_of(found, view.objective, view.cost)
    core = [value(point, view.objective) for point in best]
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
    found = [point for point in found if points.across(point, view.cost) is not None]
    frame = _Frame(found, view)
    if view.predicted is not None and view.objective == "loss":
        made.add_trace(_predicted_line(view.predicted, view))
    for position, run_id in enumerate(dict.fromkeys(point.run_id for point in found)):
        for trace in _run_traces([p for p in found if p.run_id == run_id], position, frame):
            made.add_trace(trace)
    if found:
        best = points.front_of(found, view.objective, view.cost)
        made.add_trace(_front_line(best, frame))
    for key, word in ((view.chosen, "chosen"), (view.other, "B")):
        ringed = points.find(found, key)
        if ringed is not None:
            made.add_trace(_ring(ringed, frame, word))
    _axes(made, found, view, frame)
    # Names of one run alone: those of the others would stand on the same spots.
    named = [p for p in found if p.kind != points.PLAN and p.run_id == found[0].run_id]
    spots = [(frame.across(p), frame.place(p)) for p in named]
    others = [(frame.across(p), frame.place(p)) for p in found]
    wall = view.budget_bytes if view.cost == "weight_bytes" else None
    for annotation in labels.place(
        [frame.name(point) for point in named], spots, others, wall=wall
    ):
        made.add_annotation(annotation)
    return made


class _Frame:
    """Where points stand: far ones at the edge, as triangles that name their value."""

    def __init__(self, found: Sequence[Point], view: FrontView) -> None:
        self._objective, self._cost = view.objective, view.cost
        low, high = window(found, view)
        self._low, self._high = low, high
        pad = 0.05 * ((high - low) or 0.1)
        self.range = (low - 2 * pad, high + 2 * pad)
        self._edges = (low - pad, high + pad)

    def across(self, point: Point) -> float:
        """Return where a point is drawn across: bytes, or milliseconds."""
        at = points.across(point, self._cost)
        return drawn(at if at is not None else 0.0, self._cost)

    def value(self, point: Point) -> float:
        """Return what is drawn upwards, wherever it is drawn."""
        return value(point, self._objective)

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
            x=[frame.across(p) for p in shown],
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


def _front_line(best: Sequence[Point], frame: _Frame) -> go.Scatter:
    return go.Scatter(
        x=[frame.across(p) for p in best],
        y=[frame.value(p) for p in best],
        mode="lines",
        line={"color": palette.EMERALD, "width": 2.5, "shape": "hv"},
        name="front (measured)",
        hoverinfo="skip",
    )


def drawn(at: float, cost: str) -> float:
    """Return a cost as the axis has it: bytes, or milliseconds."""
    return 1000.0 * at if cost == "latency" else at


def cost_words(at: float, cost: str) -> str:
    """Return a cost for a person."""
    return f"{1000.0 * at:.3g} ms/token" if cost == "latency" else format_bytes(at)


def _predicted_costs(view: FrontView) -> NDArray[np.float64]:
    """Return what every predicted point costs: bytes, or seconds per generated token."""
    if view.predicted_cost is not None:
        return view.predicted_cost
    found = view.predicted.weight_bytes if view.predicted is not None else np.zeros(0)
    return found.astype(np.float64)


def _predicted_line(predicted: Front, view: FrontView) -> go.Scatter:
    at = np.unique(np.linspace(0, len(predicted) - 1, N_LINE_POINTS).astype(int))
    costs = _predicted_costs(view)[at]
    losses = predicted.loss_increase[at] + view.loss_16_bit
    by = ", by KL" if view.signal == "kl" else ""
    return go.Scatter(
        x=[drawn(float(x), view.cost) for x in costs],
        y=losses,
        mode="lines",
        line={"color": palette.EMERALD, "width": 1.5, "dash": "dot"},
        name=f"predicted front (estimated{by})",
        hovertext=[
            f"predicted: {cost_words(float(x), view.cost)}, loss {y:.3f} nats/token"
            for x, y in zip(costs, losses, strict=True)
        ],
        hoverinfo="text",
    )


def _ring(point: Point, frame: _Frame, word: str) -> go.Scatter:
    return go.Scatter(
        x=[frame.across(point)],
        y=[frame.place(point)],
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
    costs = [frame.across(p) for p in found]
    if view.predicted is not None and len(view.predicted):
        costs += [drawn(float(x), view.cost) for x in _predicted_costs(view)[[0, -1]]]
    if view.budget_bytes is not None and view.cost == "weight_bytes":
        costs.append(float(view.budget_bytes))
        _budget_line(made, view.budget_bytes)
    if costs and view.cost != "latency":
        made.update_xaxes(**charts_base.byte_axis(costs, COST_TITLES[view.cost]))
    made.update_xaxes(title=COST_TITLES[view.cost])
    made.update_yaxes(title=AXIS_TITLES[view.objective], automargin=True)
    if found:
        made.update_yaxes(
            range=frame.range, uirevision=f"{view.objective}/{view.cost}/{view.zoom}"
        )
    if view.objective == "accuracy":
        made.update_yaxes(tickformat=".0%")


def _budget_line(made: go.Figure, budget_bytes: int) -> None:
    made.add_vline(
        x=budget_bytes,
        line={"color": palette.MUTED, "dash": "dash", "width": 1.5},
        annotation={
            "text": f"budget {format_bytes(budget_bytes)}",
            "font": {"size": 11},
            "yanchor": "bottom",
            "xanchor": "left",
            "y": 0.0,
            "yref": "paper",
            "textangle": 0,
        },
    )
