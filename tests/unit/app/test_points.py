from __future__ import annotations

from app import points
from app.points import BASELINE, PLAN, Point
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan


def point(number: int, kind: str, loss: float, size: int) -> Point:
    return Point(
        run_id="run",
        run_name="run",
        number=number,
        name=str(number),
        kind=kind,
        plan=PrecisionPlan(precisions={"q_proj": "nf4"}),
        metrics=Metrics(loss=loss, accuracy=0.5, weight_bytes=size, device="cpu"),
    )


def test_of_equally_good_plans_a_trial_gives_the_name() -> None:
    found = [point(-6, BASELINE, 1.0, 10), point(4, PLAN, 1.0, 10)]
    best = points.best_under(found, 20, "loss")
    assert best is not None
    assert best.number == 4


def test_of_equally_good_plans_the_smaller_is_best_and_the_budget_holds() -> None:
    found = [point(0, PLAN, 1.0, 12), point(1, PLAN, 1.0, 11), point(2, PLAN, 0.5, 30)]
    best = points.best_under(found, 20, "loss")
    assert best is not None
    assert best.number == 1
    assert points.best_under(found, 5, "loss") is None
