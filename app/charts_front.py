"""The front: accuracy or loss against what a plan costs, measured points apart from the predicted
line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app import charts_base, front_traces, labels, palette, points, thinning
from app.clouds import Cloud
from app.front_traces import Frame, drawn
from app.points import Point
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.search.knapsack import Front

HEIGHT, LEGEND_LINE, N_ON_A_LINE = 500, 22, 3
"""Pixels of the picture, and of every line of names below it."""
LEFT = 70
"""Pixels for the numbers and the title at the left; a margin that fits itself draws all twice."""
N_LINE_POINTS = 400
N_ALONG, N_STEPS_IN_THE_WAY = 12, 100
"""Points along each step of the front, and steps, that names are kept away from."""
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
    letters: Mapping[str, str] = field(default_factory=dict)
    """Key -> letter of the plans that are compared; each is ringed and lettered."""
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


def window(found: Sequence[Point], view: FrontView) -> tuple[float, float]:
    """Return the lowest and the highest value that the picture shows in their true place.

    They hold the front and nine of ten trials; whatever lies within the same height above or below
    widens them, and what lies farther stands at the edge. Without zoom they hold everything.
    """
    cloud = Cloud.of(found)
    values = cloud.value(view.objective)
    trials = values[cloud.is_kind(points.PLAN)]
    core = list(values[cloud.front(view.objective, view.cost)])
    if view.predicted is not None and len(view.predicted) and view.objective == "loss":
        core += list(view.loss_16_bit + view.predicted.loss_increase[[0, -1]])
    if not core or not view.zoom:
        return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if len(trials):
        core += list(np.quantile(trials, (0.05, 0.95)))
    low, high = float(min(core)), float(max(core))
    reach = max(high - low, 0.02 * abs(high))
    near = values[(values >= low - reach) & (values <= high + reach)]
    return min([low, *_ends(near)]), max([high, *_ends(near)])


def n_outside(found: Sequence[Point], view: FrontView) -> int:
    """Return how many points stand at the edge rather than in their true place."""
    cloud = Cloud.of(found)
    return int(_frame(cloud, view).outside(cloud).sum())


def n_drawn(made: go.Figure) -> int:
    """Return how many points have a mark of their own in a picture of a front."""
    return sum(len(trace.customdata) for trace in made.data if trace.customdata is not None)


def front(found: Sequence[Point], view: FrontView) -> go.Figure:
    """Return the front of one or several runs; a click sends what `front_traces.key_of` reads."""
    made = charts_base.figure(HEIGHT)
    cloud = _with_cost(Cloud.of(found), view.cost)
    frame = _frame(cloud, view)
    cloud = _thinned(cloud, view, frame)
    if view.predicted is not None and view.objective == "loss":
        made.add_trace(_predicted_line(view.predicted, view))
    for trace in front_traces.marks(cloud, frame):
        made.add_trace(trace)
    best = cloud.front(view.objective, view.cost)
    if best:
        made.add_trace(_front_line(cloud, best, view))
    for trace in _rings(cloud, view, frame):
        made.add_trace(trace)
    _axes(made, cloud, view, frame)
    for annotation in _names(cloud, view, frame):
        made.add_annotation(annotation)
    # Below the picture: above it, the buttons that zoom and select would cover the names.
    n_lines = ceil(sum(bool(trace.name) for trace in made.data) / N_ON_A_LINE)
    made.update_layout(
        height=HEIGHT + LEGEND_LINE * n_lines,
        legend={"y": -0.16, "yanchor": "top", "yref": "paper"},
        margin={"l": LEFT, "t": 40, "b": 8},
    )
    return made


def cost_words(at: float, cost: str) -> str:
    """Return a cost for a person."""
    return f"{1000.0 * at:.3g} ms/token" if cost == "latency" else format_bytes(at)


def _frame(cloud: Cloud, view: FrontView) -> Frame:
    low, high = window(cloud, view)
    return Frame(objective=view.objective, cost=view.cost, low=low, high=high)


def _with_cost(cloud: Cloud, cost: str) -> Cloud:
    return cloud.where(~np.isnan(cloud.cost(cost)))


def _thinned(cloud: Cloud, view: FrontView, frame: Frame) -> Cloud:
    return thinning.drawn(cloud, frame, (view.chosen, *view.letters))


def _ends(values: NDArray[np.float64]) -> list[float]:
    return [float(values.min()), float(values.max())] if len(values) else []


def _front_line(cloud: Cloud, best: Sequence[int], view: FrontView) -> go.Scatter:
    return go.Scatter(
        x=drawn(cloud.cost(view.cost)[best], view.cost),
        y=cloud.value(view.objective)[best],
        mode="lines",
        line={"color": palette.EMERALD, "width": 2.5, "shape": "hv"},
        name="front (measured)",
        hoverinfo="skip",
    )


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
        x=drawn(costs, view.cost),
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


def _rings(cloud: Cloud, view: FrontView, frame: Frame) -> list[go.Scatter]:
    """Return the rings around the chosen point and the compared ones; the first is thick."""
    words = {key: f"{letter}: " for key, letter in view.letters.items()}
    if view.chosen is not None:
        words.setdefault(view.chosen, "chosen: ")
    made: list[go.Scatter] = []
    for key, word in words.items():
        ringed = cloud.find(key)
        if ringed is not None:
            one = Cloud.of([ringed])
            made.append(_ring(frame.across(one), frame.places(one), word + ringed.name, not made))
    return made


def _ring(x: NDArray[np.float64], y: NDArray[np.float64], name: str, thick: bool) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=y,
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 20,
            "color": palette.RING,
            "line": {"width": 3 if thick else 1.5},
        },
        name=name,
        hoverinfo="skip",
    )


def _names(cloud: Cloud, view: FrontView, frame: Frame) -> list[dict[str, object]]:
    """Return the names beside points: of what is compared, then of the first run's baselines and
    references. Those of other runs would stand on the same spots; the words over a point say them.
    """
    if not len(cloud):
        return []
    few = cloud.where(~cloud.is_kind(points.PLAN))
    lettered = [p for p in (cloud.find(key) for key in view.letters) if p is not None]
    first = cloud[0].run_id
    rest = [p for p in few if p.run_id == first and p.key not in view.letters]
    named = [*lettered, *rest]
    words = [
        f"<b>{view.letters[p.key]}</b>" + (f" {frame.name(p)}" if p.kind != points.PLAN else "")
        if p.key in view.letters
        else frame.name(p)
        for p in named
    ]
    at = Cloud.of(named)
    spots = list(zip(frame.across(at).tolist(), frame.places(at).tolist(), strict=True))
    names, spots = _merged(words, spots)
    taken = (np.column_stack((frame.across(cloud), frame.places(cloud))), _along(cloud, view))
    wall = view.budget_bytes if view.cost == "weight_bytes" else None
    return labels.place(names, spots, np.vstack(taken), wall=wall)


def _along(cloud: Cloud, view: FrontView) -> NDArray[np.float64]:
    """Return points along the steps of the front, which names should not cross; ``(n, 2)``."""
    best = cloud.front(view.objective, view.cost)[:N_STEPS_IN_THE_WAY]
    x = drawn(cloud.cost(view.cost)[best], view.cost)
    y = cloud.value(view.objective)[best]
    shares = np.linspace(0.0, 1.0, N_ALONG, endpoint=False)[:, None]
    across = np.column_stack(((x[:-1] + shares * np.diff(x)).ravel(), np.tile(y[:-1], N_ALONG)))
    down = np.column_stack((np.tile(x[1:], N_ALONG), (y[:-1] + shares * np.diff(y)).ravel()))
    return np.vstack((across, down))


def _merged(
    words: Sequence[str], spots: Sequence[labels.Spot]
) -> tuple[list[str], list[labels.Spot]]:
    """Return one name per spot: names of points on the same spot stand together."""
    at: dict[labels.Spot, list[str]] = {}
    for word, spot in zip(words, spots, strict=True):
        at.setdefault(spot, []).append(word)
    return [" = ".join(dict.fromkeys(each)) for each in at.values()], list(at)


def _axes(made: go.Figure, cloud: Cloud, view: FrontView, frame: Frame) -> None:
    costs = [float(at) for at in _ends(frame.across(cloud))]
    if view.predicted is not None and len(view.predicted):
        costs += [float(at) for at in drawn(_predicted_costs(view)[[0, -1]], view.cost)]
    if view.budget_bytes is not None and view.cost == "weight_bytes":
        costs.append(float(view.budget_bytes))
        _budget_line(made, view.budget_bytes)
    if costs and view.cost != "latency":
        made.update_xaxes(**charts_base.byte_axis(costs, COST_TITLES[view.cost]))
    made.update_xaxes(title=COST_TITLES[view.cost])
    made.update_yaxes(title=AXIS_TITLES[view.objective])
    if len(cloud):
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
