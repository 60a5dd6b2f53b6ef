"""How fast a search got where it is: the area that its measured front covers after every trial.

    share(t) = area(front of the baselines and the first t trials) / area at the end

The area is that between the front and a corner, both coordinates minimised. The corner does not
move while a study runs: cost of the largest baseline, value of the smallest one.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app import charts_base, palette, points
from app.clouds import Cloud, Floats
from qpruner_core.domain.record import FIRST_BY_HAND
from qpruner_core.search.pareto import hypervolume


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """The fixed reference point of an area."""

    cost: float
    """Bytes, or seconds per generated token."""
    badness: float
    """Loss, or accuracy with its sign turned."""
    dearest: str
    """Name of the baseline that the cost is of."""
    cheapest: str
    """Name of the baseline that the value is of."""


def corner_of(found: Cloud, objective: str, cost: str) -> Corner | None:
    """Return the corner that a run's baselines fix; None where fewer than two were measured."""
    baselines = found.where(found.is_kind(points.BASELINE) & ~np.isnan(found.cost(cost)))
    if len(baselines) < 2:
        return None
    costs = baselines.cost(cost)
    high, low = int(np.argmax(costs)), int(np.argmin(costs))
    return Corner(
        cost=float(costs[high]),
        badness=float(baselines.badness(objective)[low]),
        dearest=baselines[high].name,
        cheapest=baselines[low].name,
    )


def areas(found: Cloud, objective: str, cost: str, corner: Corner) -> Floats:
    """Return the area after the baselines, then after each trial of a run in the order of their
    numbers, shape ``(n_trials + 1,)``; plans by hand are not counted.

    Only a trial that moves the front costs anything, so that ten thousand take milliseconds.
    """
    known = ~np.isnan(found.cost(cost))
    own = found.is_kind(points.PLAN) & (np.nan_to_num(found.numbers) < FIRST_BY_HAND) & known
    trials, baselines = found.where(own), found.where(found.is_kind(points.BASELINE) & known)
    front = _Front((corner.cost, corner.badness))
    for pair in _pairs(baselines, objective, cost):
        front.add(pair)
    reached = [front.area]
    order = np.argsort(trials.numbers, kind="stable")
    pairs = list(_pairs(trials, objective, cost))
    for index in order:
        front.add(pairs[index])
        reached.append(front.area)
    return np.array(reached)


def predicted_area(costs: Floats, losses: Floats, corner: Corner) -> float:
    """Return the area of a predicted front.

    Args:
        costs: What its points cost, shape ``(n_points,)``.
        losses: Their predicted losses, shape ``(n_points,)``.
        corner: The corner of the area.
    """
    pairs = zip(costs.tolist(), losses.tolist(), strict=True)
    return hypervolume(pairs, (corner.cost, corner.badness))


def hypervolumes(curves: Mapping[str, Floats], whole: float, predicted: float = 0.0) -> go.Figure:
    """Return one line per run over its trials.

    Args:
        curves: Name of the run -> its areas.
        whole: The area that counts as all; > 0.
        predicted: Area of the predicted front of the first run; 0 for no line.
    """
    made = charts_base.figure(300)
    for position, (name, reached) in enumerate(curves.items()):
        at = _corners(reached)
        made.add_trace(
            go.Scatter(
                x=at.astype(np.int32),
                y=(reached[at] / whole).astype(np.float32),
                mode="lines",
                line={"shape": "hv", "color": palette.run_colour(position), "width": 2.5},
                name=name,
                hovertemplate="trials measured %{x}: %{y:.2%}<extra></extra>",
            )
        )
    if predicted > 0:
        made.add_hline(
            y=predicted / whole,
            line={"color": palette.EMERALD, "dash": "dot", "width": 1.5},
            annotation={"text": "predicted front (estimated)", "font": {"size": 11}},
        )
    made.update_xaxes(title="Trials measured", rangemode="tozero")
    made.update_yaxes(title="Area reached", tickformat=".1%", automargin=True)
    return made


def _corners(reached: Floats) -> NDArray[np.int64]:
    """Return the trials at which a curve of steps turns, with both its ends."""
    rises = np.flatnonzero(np.diff(reached)) + 1
    return np.unique(np.concatenate(([0], rises, [len(reached) - 1])))


class _Front:
    """Non-dominated pairs by ascending first coordinate, and the area that they cover."""

    def __init__(self, corner: tuple[float, float]) -> None:
        self._corner = corner
        self._pairs: list[tuple[float, float]] = []
        self.area = 0.0

    def add(self, pair: tuple[float, float]) -> None:
        """Take a pair in where no other dominates it."""
        if pair[0] >= self._corner[0] or pair[1] >= self._corner[1]:
            return
        at = bisect_right(self._pairs, pair)
        if at and self._pairs[at - 1][1] <= pair[1]:
            return
        self._pairs = [p for p in self._pairs if p[0] < pair[0] or p[1] < pair[1]]
        insort(self._pairs, pair)
        self.area = hypervolume(self._pairs, self._corner)


def _pairs(found: Cloud, objective: str, cost: str) -> Iterable[tuple[float, float]]:
    costs: NDArray[np.float64] = found.cost(cost)
    return zip(costs.tolist(), found.badness(objective).tolist(), strict=True)
