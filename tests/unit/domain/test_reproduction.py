"""What a table is asked for, and how far it has come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qpruner_core.catalog import check_recovery
from qpruner_core.domain.recovery import PRESETS, RecoverySpec
from qpruner_core.domain.reproduction import (
    SETTINGS,
    SMALL_MODEL_BYTES,
    VARIANTS,
    Reproduction,
    ReproductionSpec,
    ratio_key,
    usual_recover_steps,
    usual_recovery,
    usual_startup,
)
from qpruner_core.errors import BadInputError
from qpruner_core.search import presets
from qpruner_core.store.codec import from_json, to_json


@pytest.mark.parametrize(
    "asked",
    [
        {"setting": "theirs"},
        {"ratios": ()},
        {"ratios": (0.3, 0.2)},
        {"ratios": (0.2, 0.2)},
        {"ratios": (1.0,)},
        {"n_trials": 0},
        {"n_startup": -1},
        {"recover_steps": -1},
        {"items_per_task": -1},
        {"int8_share": 1.5},
    ],
)
def test_a_table_that_cannot_be_made_is_refused_with_what_is_needed(asked):
    with pytest.raises(BadInputError, match=r"Give|Choose|choose"):
        ReproductionSpec(**asked)


def test_a_table_survives_the_way_to_json_and_back():
    table = Reproduction(spec=ReproductionSpec(setting="ours"), runs={"0.2": "a"}, model="m")
    assert from_json(Reproduction, to_json(table)) == table


def test_the_rows_are_those_that_the_search_names():
    named = (presets.LLM_PRUNER, presets.QPRUNER_1, presets.QPRUNER_2, presets.QPRUNER_3)
    assert named == VARIANTS


def test_what_is_missing_is_told_by_ratio_and_then_by_row():
    table = Reproduction(spec=ReproductionSpec(ratios=(0.2, 0.5)))
    assert table.missing == tuple((ratio, name) for ratio in (0.2, 0.5) for name in VARIANTS)
    assert table.n_rows == len(table.missing)
    assert not table.is_complete


def test_ratios_are_named_by_a_text_that_reads_as_the_ratio():
    assert [float(ratio_key(ratio)) for ratio in (0.0, 0.2, 0.333)] == [0.0, 0.2, 0.333]


def test_a_large_model_is_recovered_as_the_paper_does_and_a_small_one_alike():
    large, small = usual_recovery(SMALL_MODEL_BYTES), usual_recovery(SMALL_MODEL_BYTES - 1)
    paper = PRESETS["paper"]
    assert replace(large, initialization="default", targets=paper.targets) == paper
    assert small.alpha / small.rank == paper.alpha / paper.rank
    assert small.dropout == paper.dropout
    for spec in (large, small):
        check_recovery(spec)


@pytest.mark.parametrize("setting", SETTINGS)
def test_only_the_papers_trials_are_recovered_and_never_without_recovery(setting):
    steps = usual_recover_steps(setting, usual_recovery(0))
    assert (steps > 0) == (setting == "paper")
    assert usual_recover_steps(setting, RecoverySpec(steps=0)) == 0
    assert usual_recover_steps("paper", RecoverySpec(steps=1)) == 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_gaussian_process_that_would_choose_nothing_is_refused_by_both_its_options(setting):
    asked = ReproductionSpec(setting=setting, n_trials=5, n_startup=10)
    if setting == "ours":
        asked.check_startup()
        assert not asked.has_startup
        return
    with pytest.raises(BadInputError, match=r"--startup.*--trials"):
        asked.check_startup()
    replace(asked, n_startup=4).check_startup()


@pytest.mark.parametrize(("n_trials", "startup"), [(1, 0), (5, 1), (20, 4), (50, 10), (500, 10)])
def test_of_few_plans_at_most_a_fifth_are_first_ones(n_trials, startup):
    assert usual_startup(n_trials) == startup
    ReproductionSpec(n_trials=n_trials, n_startup=startup).check_startup()


def test_a_table_from_before_startup_was_refused_is_still_read():
    old = ReproductionSpec(n_trials=5, n_startup=10)
    assert from_json(ReproductionSpec, to_json(old)) == old
