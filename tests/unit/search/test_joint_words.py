"""Pruning against precision in one sentence: what was measured, and nothing more."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.search.joint_words import JointPoint, compared, joint_points, joint_sentence

MEBI = 2**20


def point(size: float, badness: float, removed: float = 0.0, bits: float = 4.0) -> JointPoint:
    return JointPoint(weight_bytes=int(size * MEBI), badness=badness, removed=removed, bits=bits)


def spread(found: JointPoint, noise: float, seed: int) -> JointPoint:
    """Give a point sequences around its loss whose noise is its own."""
    signs = [1.0 if (i * (seed + 2) + i // 3) % 2 else -1.0 for i in range(64)]
    return replace(found, sequence_losses=tuple(found.badness + noise * s for s in signs))


def test_nothing_measured_says_nothing():
    assert joint_sentence(()) == ""


def test_one_ratio_says_that_there_is_nothing_to_compare():
    assert joint_sentence([point(3, 2.0), point(4, 1.9)]) == (
        "Only plans without pruning were measured, so the data do not say whether pruning or "
        "precision saves a byte better."
    )
    pruned = [point(3, 2.0, 0.2), point(4, 1.9, 0.203)]
    assert "Only plans with 20% of the parameters pruned were measured" in joint_sentence(pruned)


def test_pruning_that_wins_by_more_than_two_standard_errors_is_named_with_all_its_numbers():
    unpruned = spread(point(3.1, 2.012, 0.0, 4.1), 0.001, 0)
    pruned = spread(point(3.1, 2.0, 0.2, 5.1), 0.001, 1)
    assert joint_sentence([unpruned, pruned]) == (
        "At 3.10 MiB the best plan prunes 20% at 5.1 bits and beats the best without pruning (4.1 "
        "bits) by 0.012 nats (standard error 0.000)."
    )


def test_bits_that_win_are_named_too_and_the_least_pruned_may_be_pruned():
    least = spread(point(3.0, 2.0, 0.05, 4.1), 0.001, 0)
    more = spread(point(3.0, 2.3, 0.3, 6.0), 0.001, 1)
    words = joint_sentence([more, least])
    assert "the best plan prunes 5.0% at 4.1 bits and beats the best with 30% of the" in words
    assert "by 0.300 nats" in words


def test_a_difference_below_two_standard_errors_cannot_be_told():
    unpruned = spread(point(3.0, 2.001, 0.0, 4.1), 0.5, 0)
    pruned = spread(point(3.0, 2.0, 0.2, 5.1), 0.5, 1)
    words = joint_sentence([unpruned, pruned])
    assert "the data cannot tell" in words
    assert "beats" not in words
    assert words.endswith("differ by 0.001 nats, no more than two standard errors.")


def test_without_errors_the_difference_stands_and_the_sentence_says_so():
    words = joint_sentence([point(3, 2.1), point(3, 2.0, 0.2)])
    assert "by 0.100 nats; no standard error of these differences is known." in words


def test_equal_plans_are_told_apart_by_nobody():
    assert "the data cannot tell" in joint_sentence([point(3, 2.0), point(3, 2.0, 0.2)])


def test_the_winner_may_change_with_the_budget_and_what_one_kind_alone_reaches_is_said():
    points = [
        point(3.0, 2.6, 0.0),
        point(6.0, 1.7, 0.0, 8.0),
        point(2.0, 2.7, 0.3),
        point(3.0, 2.2, 0.3),
        point(4.0, 2.0, 0.3, 7.0),
    ]
    words = joint_sentence(points)
    assert words.startswith("At 3.00 MiB the best plan prunes 30%")
    assert "; at 6.00 MiB the best plan prunes nothing at 8.0 bits and beats" in words
    assert words.endswith("below 3.00 MiB only plans that are pruned more were measured.")
    swapped = [replace(p, removed=0.3 - p.removed) for p in points]
    assert joint_sentence(swapped).endswith(
        "below 3.00 MiB only plans without pruning were measured."
    )


def test_accuracy_counts_in_points_and_adds_errors_as_if_items_were_others():
    better = replace(point(3, 0.30, 0.2), error=0.01)
    worse = replace(point(3, 0.40), error=0.01)
    words = joint_sentence([better, worse], "accuracy")
    assert "by 10.0 points of accuracy (standard error 1.4)" in words
    near = replace(worse, badness=0.32)
    assert "the data cannot tell" in joint_sentence([better, near], "accuracy")


@given(
    st.lists(
        st.builds(
            point,
            st.floats(1, 9),
            st.floats(0.5, 5),
            st.sampled_from((0.0, 0.1, 0.25, 0.5)),
            st.floats(2, 16),
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_it_is_one_sentence_whatever_was_measured_and_in_whatever_order(points, random):
    words = joint_sentence(points)
    assert words.endswith(".")
    assert ". " not in words
    assert words.count(" the best plan ") <= 3
    shuffled = list(points)
    random.shuffle(shuffled)
    assert joint_sentence(shuffled) == words


@given(
    st.lists(
        st.builds(
            point,
            st.floats(1, 9),
            st.floats(0.5, 5),
            st.sampled_from((0.0, 0.1, 0.25, 0.5)),
            st.floats(2, 16),
        ),
        max_size=12,
    )
)
def test_losses_of_the_compared_plans_alone_change_what_is_said(points):
    wanted = compared(points)
    assert len(wanted) <= 6
    losses = [replace(p, sequence_losses=(p.badness, p.badness + 1.0)) for p in points]
    few = [full if p in wanted else p for p, full in zip(points, losses, strict=True)]
    assert joint_sentence(few) == joint_sentence(losses)


def test_points_are_the_complete_trials_of_a_run(tiny_layout):
    plan = PrecisionPlan.uniform(tiny_layout, "int8")
    found = Metrics(loss=2.0, accuracy=0.5, weight_bytes=100_000, device="cpu")
    trials = [
        Trial(number=0, name="", plan=plan, metrics=found),
        Trial(number=1, name="", plan=plan, metrics=None, state="failed"),
        Trial(number=2, name="", plan=plan, metrics=found, state="stopped"),
    ]
    (one,) = joint_points(
        trials, tiny_layout, lambda plan: tiny_layout, sequence_losses={plan.key: (1.0, 3.0)}
    )
    assert (one.badness, one.removed, one.sequence_losses) == (2.0, 0.0, (1.0, 3.0))
    assert one.bits == pytest.approx(800_000 / tiny_layout.parameters)
    (other,) = joint_points(trials, tiny_layout, lambda plan: tiny_layout, "accuracy")
    assert (other.badness, other.sequence_losses, other.error) == (0.5, (), 0.0)


def test_it_needs_no_torch():
    code = "import sys, qpruner_core.search.joint_words; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
