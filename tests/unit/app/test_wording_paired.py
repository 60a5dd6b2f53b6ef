"""What is said of two plans' answers: only an exact test on the same items calls them
different.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from app import tables, wording_paired
from qpruner_core.domain.metrics import Metrics, TaskResult


def metrics(**answers: str) -> Metrics:
    """Return what was measured; answers such as ``"1101"``."""
    tasks = {
        name: TaskResult(
            n_items=len(right),
            accuracy=right.count("1") / len(right),
            accuracy_normalized=0.0,
            correct=tuple(answer == "1" for answer in right),
        )
        for name, right in answers.items()
    }
    mean = sum(task.accuracy for task in tasks.values()) / max(1, len(tasks))
    return Metrics(loss=1.0, accuracy=mean, weight_bytes=1, device="cpu", tasks=tasks)


A = metrics(quiz="1" * 9 + "0" * 12 + "1" * 4)
B = metrics(quiz="0" * 9 + "1" * 12 + "1" * 4)
WORSE = metrics(quiz="0" * 25)


def test_the_items_of_both_sides_and_the_verdict_are_said() -> None:
    assert wording_paired.against("B", B, A) == (
        "**B against A**: B answers 12 items rightly that A does not, A 9 the other way, of 25: "
        "p = 0.66, **not called different by accuracy**."
    )
    said = wording_paired.against("C", WORSE, B)
    assert "C answers 0 items rightly" in said
    assert said.endswith("p < 0.001, **called different by accuracy**.")


def test_tasks_that_cannot_be_paired_are_named() -> None:
    more = metrics(quiz="1" * 25, other="10", third="1")
    fewer = metrics(quiz="1" * 25, other="1")
    said = wording_paired.against("B", more, fewer)
    assert said.endswith("Left out, as not of the same items: other, third.")


def test_answers_to_other_items_of_the_same_name_and_number_are_left_out() -> None:
    def of(items: str, found: Metrics) -> Metrics:
        return replace(found, tasks={"quiz": replace(found.tasks["quiz"], items=items)})

    assert "of 25" in wording_paired.against("B", of("one", B), of("one", A))
    for other in ("two", ""):
        assert "not compared" in wording_paired.against("B", of(other, B), of("one", A))
        assert wording_paired.near_best(of(other, B), [of("one", A)]) == ""
        assert tables.answer_differences({"A": of("one", A), "B": of(other, B)}).empty
    both = replace(B, tasks={"first": B.tasks["quiz"], **of("two", B).tasks})
    said = wording_paired.against(
        "B", both, replace(A, tasks={"first": A.tasks["quiz"], **of("one", A).tasks})
    )
    assert said.endswith("Left out, as not of the same items: quiz.")


def test_without_answers_it_says_that_nothing_is_compared() -> None:
    bare = replace(A, tasks={"quiz": replace(A.tasks["quiz"], correct=())})
    assert "not compared, as no answers" in wording_paired.against("B", bare, A)
    assert wording_paired.near_best(bare, [A]) == ""


def test_the_best_plan_is_told_beside_those_that_answer_no_differently() -> None:
    assert "1 of 2 other plans" in wording_paired.near_best(B, [A, WORSE])
    assert "different from every other plan" in wording_paired.near_best(B, [WORSE])


def test_accuracies_are_told_apart_by_the_exact_test() -> None:
    # 6 of 6 changed items one way: p = 0.03. 5 of 5: p = 0.06, though beyond two standard errors.
    base = metrics(quiz="1" * 40)
    for n_lost, verdict in ((6, "by accuracy"), (5, "no")):
        other = metrics(quiz="0" * n_lost + "1" * (40 - n_lost))
        (row,) = tables.answer_differences({"A": base, "B": other}).to_dict("records")
        assert row["Told apart"] == verdict


@pytest.mark.parametrize(
    ("value", "words"), [(0.0004, "p < 0.001"), (0.0312, "p = 0.031"), (0.664, "p = 0.66")]
)
def test_p_values_have_the_digits_that_matter(value: float, words: str) -> None:
    assert wording_paired.p_words(value) == words
