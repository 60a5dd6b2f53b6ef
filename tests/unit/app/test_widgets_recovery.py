from __future__ import annotations

from dataclasses import replace

import pytest

from app import forms_recovery, widgets_recovery
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.paired import Paired
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.recovery import PRESETS, RecoverySpec

AT = Metrics(loss=1.0, accuracy=0.5, weight_bytes=10, device="cpu")


def outcome(before: float, after: float) -> RecoveryOutcome:
    return RecoveryOutcome(
        spec=RecoverySpec(),
        before=replace(AT, loss=before),
        after=replace(AT, loss=after),
        losses=(1.0,),
        adapter="",
        trainable_parameters=1,
        estimated_memory_bytes=1,
        peak_memory_bytes=1,
    )


def test_half_of_what_compression_cost_came_back():
    assert widgets_recovery.recovered_share(AT, outcome(2.0, 1.5)) == 0.5


def test_a_model_better_than_the_dense_one_has_more_than_all_of_it_back():
    assert widgets_recovery.recovered_share(AT, outcome(2.0, 0.5)) == 1.5


def test_where_compression_cost_nothing_nothing_can_come_back():
    assert widgets_recovery.recovered_share(AT, outcome(0.9, 0.8)) is None


@pytest.mark.parametrize(("p_value", "words"), [(0.04, ", called different"), (0.2, "not called")])
def test_the_paired_test_says_what_it_found(p_value, words):
    found = Paired(n_items=40, first_only=9, second_only=1, p_value=p_value)
    said = widgets_recovery.paired_words(found)
    assert "9 items are right that were not before, and 1 the other way, of 40" in said
    assert words in said


def test_without_common_items_nothing_is_said():
    assert widgets_recovery.paired_words(None) == ""


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_keeps_plan_text_and_seed_of_the_run(preset):
    spec = RecoverySpec(trial=7, training="/data/mine.jsonl", seed=3, rank=99)
    kept = {"trial": 7, "training": "/data/mine.jsonl", "seed": 3}
    assert forms_recovery.filled(spec, preset) == replace(PRESETS[preset], **kept)


@pytest.mark.parametrize(
    ("optimizer", "device", "runs"),
    [
        ("adamw", "cpu", True),
        ("paged_adamw", "cpu", False),
        ("paged_adamw", "NVIDIA H100", True),
        ("paged_adamw", "", True),
    ],
)
def test_an_optimiser_runs_where_its_entry_says(optimizer, device, runs):
    assert forms_recovery.runs_on(optimizer, device) is runs
