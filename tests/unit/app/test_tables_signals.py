"""Sensitivities as rows of a picture, by loss and by KL divergence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app import charts_signals, tables_signals
from app.charts_signals import Information
from qpruner_core.domain.joint import Level
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.record import QuantizationOutcome, SensitivityCell
from qpruner_core.domain.spec import SearchSpec

UNITS = ("layer.0.attention", "layer.0.mlp", "layer.1.attention", "layer.1.mlp")


def cell(unit: str, precision: str, loss: float, **facts: object) -> SensitivityCell:
    return SensitivityCell(unit=unit, precision=precision, loss_increase=loss, **facts)


def outcome(cells: list[SensitivityCell], **facts: object) -> QuantizationOutcome:
    return QuantizationOutcome(
        tie="block",
        precisions=("nf4", "int8"),
        sensitivities=tuple(cells),
        loss_16_bit=1.0,
        mutual_information=(0.4, 0.2),
        device="cpu",
        **facts,
    )


@pytest.fixture
def measured() -> QuantizationOutcome:
    return outcome(
        [
            cell(unit, name, loss=base * (i + 1), kl=base * (4 - i))
            for i, unit in enumerate(UNITS)
            for name, base in (("nf4", 0.1), ("int8", 0.01))
        ]
    )


def test_parts_stand_together_and_precisions_within_them(measured):
    rows = tables_signals.rows(measured, "loss")
    assert [row.title for row in rows] == [
        "Attention · NF4",
        "Attention · INT8",
        "MLP · NF4",
        "MLP · INT8",
    ]
    assert rows[0].values == pytest.approx({0: 0.1, 1: 0.3})


def test_the_signal_chooses_the_numbers(measured):
    assert tables_signals.rows(measured, "kl")[0].values == pytest.approx({0: 0.4, 1: 0.2})
    assert "most in layer 0" in tables_signals.hardest_words(measured, "kl")
    assert "most in layer 1" in tables_signals.hardest_words(measured, "loss")


def test_a_record_without_divergences_has_losses_alone(measured):
    older = replace(
        measured, sensitivities=tuple(replace(c, kl=None) for c in measured.sensitivities)
    )
    assert tables_signals.signals(older) == ("loss",)
    assert tables_signals.used(older, SearchSpec(signal="kl")) == "loss"
    assert tables_signals.rows(older, "kl") == []
    assert tables_signals.signals(measured) == ("loss", "kl")
    assert tables_signals.used(measured, SearchSpec(signal="kl")) == "kl"


def test_levels_measured_by_loss_alone_leave_the_divergences_of_the_run_itself(measured):
    deeper = [cell(unit, "nf4", 0.1, level=1) for unit in UNITS]
    joint = replace(measured, sensitivities=(*measured.sensitivities, *deeper))
    assert tables_signals.signals(joint) == ("loss", "kl")
    assert len(tables_signals.rows(joint, "kl")) == 4


def test_experts_of_a_layer_share_a_row_as_their_sum():
    cells = [cell(f"layer.0.experts.{i}.gate_up", "nf4", 0.1) for i in range(3)]
    (row,) = tables_signals.rows(outcome(cells), "loss")
    assert row.values == pytest.approx({0: 0.3})


def test_pruning_levels_have_rows_of_their_own_that_name_the_ratio(tiny_layout):
    levels = [
        Level(ratio=ratio, plan=PruningPlan(kept={}), layout=tiny_layout) for ratio in (0.2, 0.4)
    ]
    cells = [cell("layer.0", "nf4", 0.1 * (i + 1), level=i) for i in range(2)]
    rows = tables_signals.rows(outcome(cells, levels=tuple(levels)), "loss")
    assert [row.title for row in rows] == ["pruned 20 % · NF4", "pruned 40 % · NF4"]


def test_one_scale_of_colour_for_all_rows_and_bars_on_their_own(measured):
    information = Information(title="Mutual information", axis="nats", values=(0.4, 0.2))
    rows = tables_signals.rows(measured, "loss")
    heatmap, bars = charts_signals.signals(information, rows, "loss", 2).data
    assert (heatmap.zmin, heatmap.zmax) == (0.0, pytest.approx(0.4))
    assert list(bars.y) == [0.4, 0.2]
    assert bars.yaxis == "y2"


def test_without_the_layer_signal_the_picture_is_the_heatmap_alone(measured):
    rows = tables_signals.rows(measured, "loss")
    nothing = Information(title="", axis="", values=())
    (only,) = charts_signals.signals(nothing, rows, "loss", 2).data
    assert only.type == "heatmap"


def test_stability_is_said_where_it_is_on_record():
    assert tables_signals.stability_words(None) == ""
    assert "0.87" in tables_signals.stability_words(0.871)
