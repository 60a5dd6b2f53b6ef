"""Marks that would cover each other are one; whatever is looked for by name has its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import pytest

from app import charts_front, front_traces, points, thinning
from app.charts_front import FrontView
from app.clouds import Cloud
from app.points import Point
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import FIRST_BY_HAND

PLAN = PrecisionPlan(precisions={"a": "nf4"})
N_TRIALS = 6_000


def point(number: int, loss: float, size: int, run: str = "run", kind: str = points.PLAN) -> Point:
    is_trial = kind == points.PLAN and number < FIRST_BY_HAND
    return Point(
        run_id=run,
        run_name=run,
        number=number,
        name=points.trial_name(number) if is_trial else f"named {number}",
        kind=kind,
        metrics=Metrics(loss=loss, accuracy=2.0 - loss, weight_bytes=size, device="cpu"),
        plan=None if kind == points.REFERENCE else PLAN,
        pruned=0.2,
    )


def crowd(n: int, run: str = "run", seed: int = 0) -> list[Point]:
    """Trials so close together that most of them cover others."""
    rng = np.random.default_rng(seed)
    losses, sizes = rng.normal(1.5, 0.02, n), rng.normal(5e6, 2e5, n)
    return [
        point(i, float(loss), int(size), run)
        for i, (loss, size) in enumerate(zip(losses, sizes, strict=True))
    ]


@pytest.fixture(scope="module")
def found() -> Cloud:
    named = [
        point(-1, 1.5, 5_000_000, kind=points.BASELINE),
        point(-2, 1.501, 5_000_100, kind=points.BASELINE),
        point(-9, 1.5, 5_000_050, kind=points.REFERENCE),
        point(FIRST_BY_HAND, 1.5, 5_000_000),
        point(FIRST_BY_HAND + 1, 1.5, 5_000_000),
    ]
    return Cloud([*crowd(N_TRIALS), *named])


def marked(made: go.Figure, runs: tuple[str, ...]) -> set[str | None]:
    return {
        front_traces.key_of(data, runs)
        for trace in made.data
        if trace.customdata is not None
        for data in trace.customdata
    }


def keys(found: Sequence[Point]) -> set[str]:
    return {each.key for each in found}


@pytest.mark.parametrize("objective", ["loss", "accuracy"])
def test_front_and_baselines_and_named_plans_and_newest_trials_are_drawn(found, objective):
    shown = marked(charts_front.front(found, FrontView(objective=objective)), found.run_ids)
    assert len(shown) < len(found) / 2
    assert keys([found[at] for at in found.front(objective)]) <= shown
    assert keys([p for p in found if p.kind == points.BASELINE]) <= shown
    assert keys([p for p in found if p.number is not None and p.number >= FIRST_BY_HAND]) <= shown
    assert keys(list(found)[N_TRIALS - thinning.N_RECENT : N_TRIALS]) <= shown


def test_the_chosen_plan_and_the_compared_ones_are_drawn(found: Cloud) -> None:
    plain = marked(charts_front.front(found, FrontView(objective="loss")), found.run_ids)
    hidden = [each.key for each in found if each.plan and each.key not in plain][:3]
    assert len(hidden) == 3
    view = FrontView(objective="loss", chosen=hidden[0], letters={hidden[1]: "A", hidden[2]: "B"})
    made = charts_front.front(found, view)
    assert set(hidden) <= marked(made, found.run_ids)
    assert sum(trace.marker.symbol == "circle-open" for trace in made.data) == 3


def test_every_point_lies_in_a_cell_with_a_drawn_one_that_is_no_worse(found: Cloud) -> None:
    frame = charts_front._frame(found, FrontView(objective="loss"))
    shown = keys(thinning.drawn(found, frame))
    cells: dict[tuple[float, float], list[Point]] = {}
    across, places = frame.across(found), frame.places(found)
    steps = thinning._steps(across, thinning.N_ACROSS), thinning._steps(places, thinning.N_UP)
    for each, cell in zip(found, zip(*(s.tolist() for s in steps), strict=True), strict=True):
        cells.setdefault(cell, []).append(each)
    for crowded in cells.values():
        trials = [p for p in crowded if p.kind == points.PLAN]
        if trials:
            assert min(trials, key=lambda p: p.metrics.loss).metrics.loss in {
                p.metrics.loss for p in trials if p.key in shown
            }


def test_few_points_are_all_drawn() -> None:
    few = Cloud(crowd(thinning.N_ALL))
    made = charts_front.front(few, FrontView(objective="loss"))
    assert charts_front.n_drawn(made) == len(few)


def test_every_run_is_thinned_for_itself_and_clicks_name_the_right_run() -> None:
    found = Cloud([*crowd(2_000, "first"), *crowd(2_000, "second")])
    shown = marked(charts_front.front(found, FrontView(objective="loss")), found.run_ids)
    numbers = {
        run: {key.split(":")[1] for key in shown if key is not None and key.startswith(run)}
        for run in found.run_ids
    }
    assert len(numbers["first"] & numbers["second"]) > 100
    assert shown <= keys(found)


def test_marks_are_drawn_without_webgl_while_there_are_few(found: Cloud) -> None:
    made = charts_front.front(found, FrontView(objective="loss"))
    assert {trace.type for trace in made.data} == {"scatter"}
