"""Predicted costs add up to what a plan is said to cost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import NotReadyError
from qpruner_core.search.costs import NANOSECONDS, cost_of, training_load, unit_costs_of
from qpruner_core.search.space import SearchSpace

LOAD = TrainingLoad(rank=4, batch_size=2, sequence_length=32, compute_bytes=4)
SPARING = (
    {"checkpointing": True, "state_bytes": 2.0},
    {"layer_ranks": {"0": 0, "2": 9}},
    {"targets": ("v_proj",), "drops": True},
)


def drawn(space, n=8):
    draw = random.Random(0)
    return [tuple(draw.randrange(k) for k in space.parameters.values()) for _ in range(n)]


def total(costs, space, code):
    rows = zip(costs.matrix, space.option_indices(code), strict=True)
    return costs.constant + int(sum(row[option] for row, option in rows))


@pytest.mark.parametrize("tie", ["layer", "block", "linear"])
@pytest.mark.parametrize("changes", [{}, *SPARING], ids=str)
def test_training_memory_adds_up_to_the_estimate_of_the_whole_plan(make_space, tie, changes):
    space, load = make_space(3, tie=tie), replace(LOAD, **changes)
    costs = unit_costs_of(space, (), "training_memory", load)
    for code in drawn(space):
        plan = space.decode(code)
        whole = training_bytes_estimate(space.layout, plan, precision_formats(), load)
        assert total(costs, space, code) == whole.total


def test_a_level_that_prunes_more_trains_in_less_and_is_never_predicted_too_small(make_layout):
    dense = make_layout(3)
    kept = {g.name: tuple(range(max(1, g.n_units // 2))) for g in dense.groups}
    pruned = dense.pruned(PruningPlan(kept=kept))
    levels = {"levels": (pruned,), "joint": "per-layer"}
    space = SearchSpace(dense, ("int8", "bf16"), "layer", **levels)
    costs = unit_costs_of(space, (), "training_memory", LOAD)
    small, large = space.options.index((1, "int8")), space.options.index((0, "int8"))
    assert (costs.matrix[:, small] < costs.matrix[:, large]).all()
    for code in drawn(space):
        plan = space.decode(code)
        layout = space.layout_of(plan)
        whole = training_bytes_estimate(layout, plan, precision_formats(), LOAD)
        excess = total(costs, space, code) - whole.total
        assert 0 <= excess <= LOAD.compute_bytes * 128 * 64


def test_latency_adds_up_in_nanoseconds(make_space, sensitivities):
    space = make_space(3)
    cells = [replace(c, seconds=1e-6 * i) for i, c in enumerate(sensitivities(space), 1)]
    by_cell = {(c.unit, c.precision): c.seconds for c in cells}
    costs = unit_costs_of(space, cells, "latency", seconds_beside=2e-3)
    for code in drawn(space):
        choices = space.choices(space.decode(code))
        seconds = 2e-3 + sum(by_cell[pair] for pair in choices.items())
        assert total(costs, space, code) == pytest.approx(seconds * NANOSECONDS)


def test_units_that_were_not_timed_are_named(make_space, sensitivities):
    space = make_space(2)
    with pytest.raises(NotReadyError, match=r"6 of 6 times .* layer.0 at nf4"):
        unit_costs_of(space, sensitivities(space), "latency")


def test_weight_bytes_are_those_of_the_space(make_space):
    space = make_space(2)
    costs = unit_costs_of(space, (), "weight_bytes")
    assert total(costs, space, (0, 1)) == space.code_bytes((0, 1))


def test_a_measured_plan_costs_what_the_search_weighs_or_says_what_is_missing():
    metrics = Metrics(
        loss=1.0,
        accuracy=0.5,
        weight_bytes=10,
        device="cpu",
        decode_tokens_per_second=50.0,
        training_bytes=99,
    )
    assert cost_of(metrics, "weight_bytes") == 10.0
    assert cost_of(metrics, "training_memory") == 99.0
    assert cost_of(metrics, "latency") == pytest.approx(0.02)
    with pytest.raises(NotReadyError, match="training memory"):
        cost_of(replace(metrics, training_bytes=None), "training_memory")
    with pytest.raises(NotReadyError, match="latency"):
        cost_of(replace(metrics, decode_tokens_per_second=None), "latency")


def test_the_load_is_that_of_the_recovery():
    spec = RecoverySpec(rank=2, batch_size=3, sequence_length=16)
    wanted = TrainingLoad(rank=2, batch_size=3, sequence_length=16, compute_bytes=2)
    assert training_load(spec, 2) == wanted
    sparing = replace(
        spec,
        batch_size=6,
        micro_batch_size=3,
        optimizer="adamw_8bit",
        layer_ranks={"0": 4},
        targets=("q_proj",),
        dropout=0.1,
        gradient_checkpointing=True,
    )
    assert training_load(sparing, 2) == replace(
        wanted,
        layer_ranks={"0": 4},
        targets=("q_proj",),
        drops=True,
        checkpointing=True,
        state_bytes=2.0,
    )


def test_cells_of_other_levels_are_kept_apart(make_layout):
    space = SearchSpace(
        make_layout(1), ("int8",), "layer", levels=(make_layout(1),), joint="per-layer"
    )
    cells = [
        SensitivityCell(unit="layer.0", precision="int8", loss_increase=0, level=i, seconds=s)
        for i, s in ((0, 3e-9), (1, 1e-9))
    ]
    costs = unit_costs_of(space, cells, "latency")
    by_level = {level: costs.matrix[0, i] for i, (level, _) in enumerate(space.options)}
    assert by_level == {0: 3, 1: 1}
