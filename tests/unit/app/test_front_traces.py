"""What a click sends is read back, in both forms, and ten thousand trials stay light."""

from __future__ import annotations

import numpy as np
import pytest

from app import charts_front, front_traces, points
from app.charts_front import FrontView
from app.points import Point
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan

PLAN = PrecisionPlan(precisions={"a": "nf4"})
RUNS = ("first", "second")


def trial(number: int, run: str = "first", pruned: float = 0.2) -> Point:
    rng = np.random.default_rng(number)
    return Point(
        run_id=run,
        run_name=run,
        number=number,
        name=points.trial_name(number),
        kind=points.PLAN,
        metrics=Metrics(
            loss=float(rng.uniform(1, 2)),
            accuracy=0.5,
            weight_bytes=int(rng.integers(10**6, 10**7)),
            device="cpu",
        ),
        plan=PLAN,
        pruned=pruned,
    )


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ("first:-3", "first:-3"),
        (["first:-3"], "first:-3"),
        ({"0": 1, "1": 7, "2": 0.5}, "second:7"),
        ([0, 1_000_002, 0.5], "first:1000002"),
        ("first:None", None),
        ([9, 1, 0.5], None),
    ],
)
def test_a_click_names_its_plan(sent: object, key: str | None) -> None:
    assert front_traces.key_of(sent, RUNS) == key


def test_runs_and_pruning_ratios_have_marks_of_their_own() -> None:
    found = [trial(i, "first", 0.2) for i in range(4)]
    found += [trial(i, "second", 0.4 if i % 2 else 0.0) for i in range(6)]
    figure = charts_front.front(found, FrontView(objective="loss", zoom=False))
    names = [trace.name for trace in figure.data if "trials" in trace.name]
    assert names == [
        "first: trials, pruned 20 %",
        "second: trials, pruned 0 %",
        "second: trials, pruned 40 %",
    ]
    symbols = {trace.marker.symbol for trace in figure.data if "second" in trace.name}
    assert len(symbols) == 2


def test_letters_ring_the_compared_plans_and_stand_beside_them() -> None:
    found = [trial(i) for i in range(8)]
    letters = {found[2].key: "A", found[5].key: "B"}
    figure = charts_front.front(found, FrontView(objective="loss", letters=letters))
    rings = [trace for trace in figure.data if trace.marker.symbol == "circle-open"]
    assert [ring.name for ring in rings] == ["A: trial 2", "B: trial 5"]
    assert {"<b>A</b>", "<b>B</b>"} <= {note.text for note in figure.layout.annotations}


def test_names_of_points_on_one_spot_stand_together() -> None:
    base = trial(1)
    twins = [
        Point(
            run_id="first",
            run_name="first",
            number=-1 - i,
            name=name,
            kind=points.BASELINE,
            metrics=base.metrics,
            plan=PLAN,
        )
        for i, name in enumerate(("uniform int8", "QPruner-3"))
    ]
    figure = charts_front.front([*twins, trial(2)], FrontView(objective="loss", zoom=False))
    assert "uniform int8 = QPruner-3" in [note.text for note in figure.layout.annotations]


def test_ten_thousand_trials_send_numbers_and_no_texts() -> None:
    figure = charts_front.front(
        [trial(i) for i in range(10_000)], FrontView(objective="loss", zoom=False)
    )
    (trace,) = [t for t in figure.data if "trials" in t.name]
    assert trace.hovertext is None
    assert isinstance(trace.marker.symbol, str)
    assert len(figure.to_json()) < 600_000
