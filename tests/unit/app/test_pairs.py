"""The paired error against the formula, written out."""

from __future__ import annotations

import numpy as np
import pytest

from app import pairs
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
