from __future__ import annotations

import pytest

from app import wording


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0.42, "0.4 s"), (42, "42 s"), (80, "1 min 20 s"), (3 * 3600 + 65, "3 h 1 min")],
)
def test_durations_carry_their_units(duration: float, text: str) -> None:
    assert wording.seconds(duration) == text


def test_time_left_goes_by_the_pace_so_far() -> None:
    assert wording.time_left(10, 40, 20.0) == f"about {wording.seconds(60)} left"


@pytest.mark.parametrize(("done", "total"), [(0, 5), (5, 5)])
def test_time_left_is_silent_before_the_first_and_after_the_last_piece(
    done: int, total: int
) -> None:
    assert wording.time_left(done, total, 9.0) == ""


def test_a_loss_that_is_not_finite_is_said_so() -> None:
    assert wording.nats(float("inf")) == "not finite"


def test_sizes_change_with_their_sign() -> None:
    assert wording.size_change(1 << 20, 3 << 20) == "-" + wording.size(2 << 20)
    assert wording.size_change(3 << 20, 1 << 20) == "+" + wording.size(2 << 20)
