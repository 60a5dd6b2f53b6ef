"""The area after every trial is that of all pairs until then."""

from __future__ import annotations

import numpy as np
import pytest

from app import charts_hypervolume, points
from app.clouds import Cloud
from app.points import Point
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import FIRST_BY_HAND
from qpruner_core.search.pareto import hypervolume

PLAN = PrecisionPlan(precisions={"a": "nf4"})


def point(number: int, loss: float, size: int) -> Point:
    return Point(
        run_id="run",
        run_name="Run",
        number=number,
        name=f"plan {number}" if number < 0 else points.trial_name(number),
        kind=points.BASELINE if number < 0 else points.PLAN,
        metrics=Metrics(loss=loss, accuracy=0.0, weight_bytes=size, device="cpu"),
        plan=PLAN,
    )


BASELINES = [point(-1, 2.0, 10), point(-2, 1.0, 100), point(-3, 1.5, 50)]


@pytest.fixture
def found() -> Cloud:
    rng = np.random.default_rng(0)
    pairs = zip(rng.uniform(0.9, 2.4, 80), rng.integers(5, 120, 80), strict=True)
    trials = [point(i, float(loss), int(size)) for i, (loss, size) in enumerate(pairs)]
    return Cloud([*BASELINES, *trials, point(FIRST_BY_HAND, 0.1, 11)])


def test_the_corner_is_the_dearest_baselines_cost_and_the_cheapest_ones_loss(found: Cloud) -> None:
    corner = charts_hypervolume.corner_of(found, "loss", "weight_bytes")
    assert corner is not None
    assert (corner.cost, corner.badness) == (100, 2.0)
    assert (corner.dearest, corner.cheapest) == ("plan -2", "plan -1")
    assert charts_hypervolume.corner_of(Cloud(BASELINES[:1]), "loss", "weight_bytes") is None


def test_areas_are_those_of_all_that_was_measured_until_then(found: Cloud) -> None:
    corner = charts_hypervolume.corner_of(found, "loss", "weight_bytes")
    assert corner is not None
    reached = charts_hypervolume.areas(found, "loss", "weight_bytes", corner)
    known = [p for p in found if p.number is not None and p.number < FIRST_BY_HAND]
    expected = [
        hypervolume(
            [
                (float(p.metrics.weight_bytes), p.metrics.loss)
                for p in known
                if p.number is not None and p.number < n
            ],
            (100.0, 2.0),
        )
        for n in range(81)
    ]
    assert reached == pytest.approx(expected)


def test_the_picture_shows_shares_and_the_predicted_line() -> None:
    figure = charts_hypervolume.hypervolumes({"Run": np.array([1.0, 2.0, 4.0])}, 4.0, 3.0)
    assert list(figure.data[0].y) == [0.25, 0.5, 1.0]
    assert figure.layout.shapes[0].y0 == 0.75


def test_the_curve_is_drawn_at_its_steps_and_its_ends_alone() -> None:
    reached = np.repeat([1.0, 2.0, 4.0], 50)
    (curve,) = charts_hypervolume.hypervolumes({"Run": reached}, 4.0).data
    assert list(curve.x) == [0, 50, 100, 149]
    assert list(curve.y) == [0.25, 0.5, 1.0, 1.0]
