"""Which steps a button or a command asks for, by what a record already holds."""

from __future__ import annotations

from dataclasses import replace

from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import ModelSpec, RunSpec

EMPTY = RunRecord(run_id="r", created_at="", spec=RunSpec(model=ModelSpec(source="demo")))


def filled(*steps: str) -> RunRecord:
    """Return a record whose slots hold something; what, nobody here asks."""
    made = replace(EMPTY)
    for step in steps:
        object.__setattr__(made, step, object())
    return made


def test_all_that_is_missing_runs_before_the_goal() -> None:
    assert EMPTY.steps_to("prune") == ("load", "score", "prune")
    assert filled("load", "score").steps_to("quantize") == ("prune", "quantize")


def test_a_search_that_was_finished_without_evaluation_is_not_made_again() -> None:
    record = filled("load", "score", "prune", "quantize", "search")
    assert record.steps_to("recover") == ("recover",)
    assert record.missing_before("export") == ("recover",)


def test_evaluation_comes_before_a_search_that_is_still_to_be_made() -> None:
    record = filled("load", "score", "prune", "quantize")
    assert record.steps_to("recover") == ("evaluate", "search", "recover")


def test_a_step_that_no_longer_fits_is_done_again_with_all_after_it() -> None:
    record = filled("load", "score", "prune", "quantize", "evaluate", "search")
    assert record.steps_to("search", "quantize") == (
        "quantize", "evaluate", "search",
    )  # fmt: skip
