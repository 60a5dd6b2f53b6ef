"""What each setting asks of the run of a ratio: from layouts alone, nothing is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app import wording
from qpruner_core.catalog import check_spec, precision_formats
from qpruner_core.domain.footprint import parse_budget, plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import (
    SETTINGS,
    VARIANTS,
    Reproduction,
    ReproductionSpec,
)
from qpruner_core.domain.spec import DataSpec, ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.models.architectures import llama
from qpruner_core.pipeline.reproduction_pace import BEFORE, Pace, n_pieces, step_words
from qpruner_core.pipeline.reproduction_settings import (
    cut_spec,
    fixed_layers,
    held_at_16_bit,
    row_recovery,
    search_spec,
)

PARENT = RunSpec(model=ModelSpec(source="demo"))


def layout(n_layers: int = 32, head_dim: int = 64) -> ModelLayout:
    return llama.layout(
        {
            "model_type": "llama",
            "num_hidden_layers": n_layers,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": head_dim,
            "intermediate_size": 256,
            "vocab_size": 128,
        }
    )


def search(setting: str, data: DataSpec | None = None, **asked: object) -> SearchSpec:
    spec = ReproductionSpec(setting=setting, **asked)  # type: ignore[arg-type]
    return search_spec(spec, data or DataSpec(), PruningSpec(), layout())


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_asks_for_what_the_catalogue_knows(setting: str) -> None:
    spec = ReproductionSpec(setting=setting)
    asked = cut_spec(spec, PARENT, layout(), 0.3)
    found = search_spec(spec, asked.data, asked.pruning, layout())
    check_spec(replace(asked, search=found))
    assert asked.pruning.ratio == 0.3
    assert asked.pruning.criterion in asked.importance.criteria
    assert found.information in asked.importance.criteria


def test_the_papers_pruning_is_taylor_layer_by_layer_with_ends_protected() -> None:
    pruning = cut_spec(ReproductionSpec(), PARENT, layout(), 0.2).pruning
    assert (pruning.criterion, pruning.scope) == ("taylor", "per-layer")
    assert (pruning.protect_first, pruning.protect_last) == (None, None)


def test_our_pruning_is_that_of_a_new_run() -> None:
    asked = cut_spec(ReproductionSpec(setting="ours"), PARENT, layout(), PARENT.pruning.ratio)
    assert asked.pruning == PARENT.pruning


@pytest.mark.parametrize(("head_dim", "may_leave"), [(64, True), (32, False)])
def test_heads_leave_where_any_number_of_them_fits_the_blocks_of_4_bit(
    head_dim: int, may_leave: bool
) -> None:
    found = cut_spec(ReproductionSpec(), PARENT, layout(head_dim=head_dim), 0.2)
    assert ("kv_heads" in found.pruning.kinds) == may_leave


def test_the_script_leaves_the_first_four_and_the_last_two_layers_at_16_bit() -> None:
    spec = ReproductionSpec(setting="script")
    assert fixed_layers(spec, PruningSpec(), layout()) == dict.fromkeys(
        (0, 1, 2, 3, 30, 31), "bf16"
    )
    assert search("script").fixed == dict.fromkeys(("0", "1", "2", "3", "30", "31"), "bf16")
    assert held_at_16_bit("script") == ("int8",)


@pytest.mark.parametrize("setting", ["paper", "ours"])
def test_the_other_settings_fix_nothing_and_pack_every_layer(setting: str) -> None:
    assert search(setting).fixed == {}
    assert held_at_16_bit(setting) == ()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_budget_is_a_share_of_the_way_from_4_bit_to_8_bit(setting: str, share: float) -> None:
    asked, model = search(setting, int8_share=share), layout()
    budget = parse_budget(asked.memory_budget, 1)

    def size(name: str) -> int:
        chosen = [asked.fixed.get(str(layer), name) for layer in range(model.n_layers)]
        return plan_bytes(model, PrecisionPlan.by_layer(model, chosen), precision_formats())

    low, high = size("nf4"), size("int8")
    assert budget == pytest.approx(low + share * (high - low), abs=1)


def test_the_papers_search_is_a_gaussian_process_for_accuracy_after_ten_first_plans() -> None:
    asked = search("paper", n_trials=50, n_startup=10, recover_steps=7)
    assert (asked.strategy, asked.objective, asked.tie) == ("gp", "accuracy", "layer")
    assert asked.precisions == ("nf4", "int8")
    # Four of the five named plans lie in its space and count as first ones for the strategy.
    assert asked.options == {"n_startup": 14}
    assert (asked.n_trials, asked.recover_steps) == (50, 7)


def test_without_tasks_the_search_goes_by_the_loss() -> None:
    assert search("paper", DataSpec(tasks="none")).objective == "loss"


def test_all_rows_are_recovered_alike_but_16_bit_starts_as_lora_does() -> None:
    spec = RecoverySpec(initialization="loftq", initialization_options={"iterations": 2})
    assert [row_recovery(name, spec) == spec for name in VARIANTS] == [False, True, True, True]
    plain = row_recovery(VARIANTS[0], spec)
    assert replace(plain, initialization="loftq", initialization_options={"iterations": 2}) == spec


def test_the_time_left_counts_what_was_measured_for_what_is_to_come() -> None:
    spec = ReproductionSpec(ratios=(0.2, 0.5), n_trials=5)
    pace, table = Pace(), Reproduction(spec=spec)
    assert pace.left(table, 0.2, 0, {}, (0.0, 0.0)) is None
    for _ in range(3):
        pace.measured(2.0)
    assert pace.left(table, 0.2, 8, {}, (0.0, 0.0)) is None
    # Ten plans of 2 s and 4 s of steps at either ratio; a row of 10 s, half of it done.
    left = pace.left(table, 0.2, 14, {"score": 4.0}, (5.0, 0.5))
    assert left == pytest.approx(4 * 10.0 - 5.0 + 24.0 + 4 * 10.0)
    assert n_pieces(spec) == 4 + 10 + 4


def test_steps_are_told_by_the_words_of_the_screen() -> None:
    for name in BEFORE:
        assert step_words(name) == wording.STEP_TITLES[name].lower()
