from __future__ import annotations

import numpy as np
import pytest

from app import charts_front, front_traces, points
from app.charts_front import FrontView
from app.points import Point
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan


def point(number: int, loss: float, size: int, kind: str = points.PLAN) -> Point:
    plan = PrecisionPlan(precisions={"model.layers.0.mlp.up_proj": "nf4"})
    return Point(
        run_id="run",
        run_name="Run",
        number=number,
        name=f"trial {number}" if kind == points.PLAN else f"point {number}",
        kind=kind,
        metrics=Metrics(loss=loss, accuracy=0.0, weight_bytes=size, device="cpu"),
        plan=None if kind == points.REFERENCE else plan,
    )


TRIALS = [point(i, 2.5 - 0.01 * i, 100 + i) for i in range(20)]
DENSE = point(-9, 1.2, 400, points.REFERENCE)
NEAR = point(-1, 2.55, 130, points.BASELINE)
FAR = point(-2, 7.0, 140, points.BASELINE)
VIEW = FrontView(objective="loss")


def test_far_points_leave_the_trials_most_of_the_picture() -> None:
    low, high = charts_front.window([*TRIALS, DENSE, NEAR, FAR], VIEW)
    assert (low, high) == pytest.approx((2.31, 2.55))
    assert charts_front.n_outside([*TRIALS, DENSE, NEAR, FAR], VIEW) == 2


def test_without_zoom_everything_stands_in_its_true_place() -> None:
    found = [*TRIALS, DENSE, FAR]
    view = FrontView(objective="loss", zoom=False)
    assert charts_front.window(found, view) == (1.2, 7.0)
    assert charts_front.n_outside(found, view) == 0


def test_far_points_stand_at_the_edge_as_triangles_that_name_their_value() -> None:
    figure = charts_front.front([*TRIALS, DENSE, FAR], VIEW)
    bottom, top = figure.layout.yaxis.range
    drawn = {}
    for trace in figure.data:
        if trace.customdata is not None:
            keys = [front_traces.key_of(data, ("run",)) for data in trace.customdata]
            symbols = np.broadcast_to(trace.marker.symbol, len(keys))
            drawn |= dict(zip(keys, zip(trace.y, symbols, strict=True), strict=True))
    assert all(bottom < y < top for y, _ in drawn.values())
    assert drawn[DENSE.key][1] == "triangle-down"
    assert drawn[FAR.key][1] == "triangle-up"
    assert "point -2: 7.000 nats" in [note.text for note in figure.layout.annotations]


def test_the_whole_front_is_always_in_the_picture() -> None:
    cheapest = point(50, 9.0, 10)
    _, high = charts_front.window([*TRIALS, cheapest], VIEW)
    assert high == 9.0


@pytest.mark.parametrize("found", [[], [DENSE], [TRIALS[0]]])
def test_few_points_make_a_picture_too(found: list[Point]) -> None:
    assert charts_front.n_outside(found, VIEW) == 0
    assert charts_front.front(found, VIEW).layout.height > 0
