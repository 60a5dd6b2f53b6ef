"""Numbers of points in arrays say the same as the points one by one."""

from __future__ import annotations

import numpy as np
import pytest

from app import points
from app.clouds import Cloud
from app.points import Point
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan

RNG = np.random.default_rng(3)


def point(number: int | None, run: str = "one", kind: str = points.PLAN) -> Point:
    speed = float(RNG.integers(20, 80)) if number is not None and number % 2 else None
    return Point(
        run_id=run,
        run_name=run,
        number=number,
        name=points.trial_name(number),
        kind=kind,
        metrics=Metrics(
            loss=float(RNG.integers(10, 30)) / 10,
            accuracy=float(RNG.integers(1, 9)) / 10,
            weight_bytes=int(RNG.integers(10, 30)),
            device="cpu",
            decode_tokens_per_second=speed,
        ),
        plan=None if kind == points.REFERENCE else PrecisionPlan(precisions={"a": "nf4"}),
    )


FOUND = [
    *(point(i) for i in range(60)),
    *(point(i, "two") for i in range(40)),
    point(-1, kind=points.BASELINE),
    point(None, kind=points.REFERENCE),
]


@pytest.mark.parametrize("objective", ["loss", "accuracy"])
def test_the_front_is_that_of_the_points_one_by_one(objective: str) -> None:
    cloud = Cloud(FOUND)
    expected = [p.key for p in points.front_of(FOUND, objective)]
    assert [cloud[i].key for i in cloud.front(objective)] == expected


def test_points_without_a_latency_are_not_on_the_front_against_it() -> None:
    cloud = Cloud(FOUND)
    best = cloud.front("loss", "latency")
    assert best
    assert all(cloud[i].metrics.decode_tokens_per_second for i in best)


def test_a_part_and_a_whole_put_together_again_keep_their_numbers() -> None:
    cloud = Cloud(FOUND)
    one, two = cloud.of_run("one"), cloud.of_run("two")
    both = Cloud.joined([one, two])
    assert sorted(p.key for p in both) == sorted(p.key for p in cloud)
    assert both.weight_bytes.tolist() == [p.metrics.weight_bytes for p in both]
    assert len(Cloud.joined([])) == 0


def test_a_point_is_found_by_its_key_in_its_own_run() -> None:
    cloud = Cloud(FOUND)
    assert all(cloud.find(p.key) is p for p in FOUND if p.number is not None)
    assert [cloud.find(key) for key in ("three:1", "one:999", "one:None", "", None)] == [None] * 5
