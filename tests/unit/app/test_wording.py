from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app import wording
from qpruner_core.catalog import CRITERIA, STRATEGIES
from qpruner_core.domain.spec import DataSpec


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0.42, "0.4 s"), (42, "42 s"), (80, "1 min 20 s"), (3 * 3600 + 65, "3 h 1 min")],
)
def test_durations_carry_their_units(duration: float, text: str) -> None:
    assert wording.seconds(duration) == text


def test_time_left_goes_by_the_pace() -> None:
    assert wording.time_left(10, 40, 2.0) == f"about {wording.seconds(60)} left"


def reports(*moments: tuple[int, int]) -> list[tuple[str, int]]:
    """Return reports made so many seconds after the start."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [((start + timedelta(seconds=at)).isoformat(), done) for at, done in moments]


def test_a_pause_does_not_slow_the_pace() -> None:
    told = reports((0, 0), (4, 1), (8, 2), (3608, 3), (3612, 4))
    assert wording.seconds_each(told) == 4.0


def test_pieces_that_were_only_read_again_are_soon_forgotten() -> None:
    told = reports(*((0, done) for done in range(20)), (6, 20), (12, 21), (18, 22))
    assert wording.seconds_each(told) == 6.0


def test_a_report_over_several_pieces_counts_each_of_them() -> None:
    assert wording.seconds_each(reports((0, 0), (9, 3))) == 3.0


@pytest.mark.parametrize("told", [(), ((0, 0),), ((0, 0), (5, 0))])
def test_without_a_finished_piece_there_is_no_pace(told: tuple[tuple[int, int], ...]) -> None:
    assert wording.seconds_each(reports(*told)) == 0.0


@pytest.mark.parametrize(
    ("change", "nothing"),
    [("+0.000 nats/token", True), ("-0.0 points", True), ("+0.001 nats", False), ("-4 B", False)],
)
def test_a_change_of_nothing_is_told_by_its_digits(change: str, nothing: bool) -> None:
    assert wording.is_nothing(change) is nothing


def test_a_log_line_keeps_time_and_message() -> None:
    line = "2026-01-31 09:05:00,123 INFO qpruner_core.worker.bench: Run begins: now"
    assert wording.log_line(line) == "09:05:00 Run begins: now"
    assert wording.log_line(line.replace("INFO", "ERROR")) == "09:05:00 ERROR Run begins: now"
    assert wording.log_line("  File of a traceback") == "  File of a traceback"


def test_no_option_is_called_by_its_parameter() -> None:
    for registry in (CRITERIA, STRATEGIES):
        for entry in registry:
            for option in entry.options:
                label = wording.option(option.name)
                assert label[:1].isupper()
                assert "_" not in label
                assert not label.startswith("N ")


def test_options_of_strategies_say_what_they_count() -> None:
    assert wording.option("draws") != "Draws"
    assert wording.option("rounds") != "Rounds"


def test_data_is_named_with_its_amounts() -> None:
    data = DataSpec(heldout="/data/own.txt", tasks="/data/quiz", items_per_task=0)
    assert wording.data(data) == "own.txt, up to 12,288 tokens; tasks in quiz, all items"
    assert wording.data(DataSpec(tasks="none")).endswith("; no tasks")


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
