"""The paired error against the formula, written out."""

from __future__ import annotations

import numpy as np
import pytest

from app import pairs, tables
from qpruner_core.domain.metrics import Metrics, TaskResult


def metrics(**answers: list[bool]) -> Metrics:
    tasks = {
        name: TaskResult(
            n_items=len(right),
            accuracy=float(np.mean(right)),
            accuracy_normalized=0.5,
            correct=tuple(right),
        )
        for name, right in answers.items()
    }
    mean = float(np.mean([task.accuracy for task in tasks.values()]))
    return Metrics(loss=1.0, accuracy=mean, weight_bytes=1, device="cpu", tasks=tasks)


def draw(seed: int, n: int) -> list[bool]:
    return [bool(x) for x in np.random.default_rng(seed).random(n) < 0.6]


def test_difference_and_error_are_those_of_the_items() -> None:
    a = metrics(one=draw(0, 40), two=draw(1, 60))
    b = metrics(one=draw(2, 40), two=draw(3, 60))
    found = pairs.answers(a, b)
    assert found is not None
    errors = []
    for name in a.tasks:
        d = np.subtract(a.tasks[name].correct, b.tasks[name].correct, dtype=np.float64)
        errors.append(d.std(ddof=1) / np.sqrt(len(d)))
    assert found.mean == pytest.approx(a.accuracy - b.accuracy)
    assert found.error == pytest.approx(np.sqrt(np.sum(np.square(errors))) / 2)
    assert found.n_items == 100


def test_the_same_hard_items_leave_less_error_than_each_plan_has_alone() -> None:
    right = draw(5, 80)
    other = [*right[:-2], not right[-2], not right[-1]]
    a, b = metrics(one=right), metrics(one=other)
    found = pairs.answers(a, b)
    assert found is not None
    assert found.n_changed == 2
    assert found.error < 0.5 * np.hypot(a.standard_error, b.standard_error)


def test_without_answers_or_on_other_items_nothing_is_said() -> None:
    bare = Metrics(loss=1.0, accuracy=0.5, weight_bytes=1, device="cpu")
    assert pairs.answers(bare, metrics(one=draw(0, 9))) is None
    assert pairs.answers(metrics(one=draw(0, 8)), metrics(one=draw(0, 9))) is None


def test_losses_pair_on_as_many_sequences_alone() -> None:
    a, b = (np.random.default_rng(seed).random(12) for seed in (0, 1))
    found = pairs.losses(a.tolist(), b.tolist())
    assert found is not None
    assert found.error == pytest.approx((a - b).std(ddof=1) / np.sqrt(12))
    assert pairs.losses(a.tolist(), b[:-1].tolist()) is None
    assert pairs.losses([1.0], [2.0]) is None
    assert pairs.losses(None, b.tolist()) is None


def test_two_plans_are_told_apart_by_what_differs_more_than_its_error() -> None:
    right = draw(5, 80)
    compared = {"A": metrics(one=right), "B": metrics(one=right)}
    losses = {"A": [1.0, 1.1, 1.2, 0.9], "B": [1.5, 1.6, 1.71, 1.4]}
    (row,) = tables.answer_differences(compared, losses).to_dict("records")
    assert row["Told apart"] == "by loss"
    assert "± 0.00" in row["Loss, nats"]
    (row,) = tables.answer_differences(compared).to_dict("records")
    assert row["Told apart"] == "no"
    assert "±" not in row["Loss, nats"]


def test_plans_without_answers_are_paired_by_their_losses() -> None:
    bare = Metrics(loss=1.0, accuracy=0.0, weight_bytes=1, device="cpu")
    assert len(tables.answer_differences({"A": bare, "B": bare})) == 0
    losses = {"A": [1.0, 1.1, 1.2], "B": [1.1, 1.0, 1.3]}
    assert list(tables.answer_differences({"A": bare, "B": bare}, losses)["Told apart"]) == ["no"]
