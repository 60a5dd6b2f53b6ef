"""Ratios by hand survive the table, and the best of a comparison is that of least loss."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from app import charts_pruning, tables_pruning, wording_pruning
from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.record import ComparedPruning, Comparison
from qpruner_core.domain.spec import PruningSpec


def measured(loss, parameters=90, criterion="taylor", compensation="none"):
    return ComparedPruning(
        criterion=criterion,
        compensation=compensation,
        parameters=parameters,
        metrics=Metrics(loss=loss, accuracy=0.0, weight_bytes=1, device="cpu"),
        seconds=1.0,
    )


FAR = ((9.0, "none"), (8.5, "bias"))


@pytest.fixture
def comparison():
    return Comparison(
        spec=PruningSpec(),
        dense=Metrics(loss=1.0, accuracy=0.0, weight_bytes=1, device="cpu"),
        rows=(
            measured(1.5),
            measured(1.2, criterion="magnitude"),
            measured(1.2, parameters=80, criterion="random", compensation="bias"),
        ),
    )


@pytest.mark.parametrize("ratios", [{}, {"0": 0.25}, {"1": 0.0, "3": 0.99}])
def test_ratios_survive_the_table(ratios):
    assert tables_pruning.to_ratios(tables_pruning.from_ratios(ratios, 4)) == ratios


def test_an_emptied_field_is_automatic_again():
    table = tables_pruning.from_ratios({"0": 0.3, "2": 0.1}, 3)
    table.loc[0, tables_pruning.RATIO] = None
    assert tables_pruning.to_ratios(pd.DataFrame(table)) == {"2": 0.1}


def test_the_best_has_the_least_loss_and_then_the_fewest_parameters(comparison):
    assert tables_pruning.best_of(comparison).criterion == "random"


def test_without_tasks_there_is_no_column_of_accuracy(comparison):
    table = tables_pruning.compared(comparison)
    assert "Accuracy" not in table.columns
    assert list(table["Against dense"]) == ["+0.2000 nats", "+0.2000 nats", "+0.5000 nats"]


def test_the_picture_rings_the_best_and_draws_the_dense_model(comparison):
    figure = charts_pruning.compared(comparison)
    ring = next(trace for trace in figure.data if trace.name == "best")
    assert (ring.x[0], ring.y[0]) == (1.2, "Random (control)")
    assert figure.layout.shapes[0].x0 == 1.0


def test_what_is_within_noise_of_the_best_is_said_in_a_sentence(comparison):
    assert tables_pruning.too_close(comparison) == [
        "The first 2 differ by less than 0.001 nats per token: too little to call one of them the "
        "best."
    ]
    clear = replace(comparison, rows=(measured(1.5), measured(1.2, criterion="magnitude")))
    assert tables_pruning.too_close(clear) == []


def test_accuracies_within_one_standard_error_are_counted(comparison):
    def with_task(row, share):
        task = TaskResult(n_items=101, accuracy=share, accuracy_normalized=share)
        return replace(row, metrics=replace(row.metrics, accuracy=share, tasks={"one": task}))

    rows = (with_task(measured(1.2), 0.5), with_task(measured(1.4), 0.46))
    (said,) = tables_pruning.too_close(replace(comparison, rows=rows))
    assert said == (
        "The accuracy of all 2 lies within one standard error (5.0 points) of the best one's."
    )
    rows = (*rows, with_task(measured(1.5), 0.3))
    (said,) = tables_pruning.too_close(replace(comparison, rows=rows))
    assert "of 2 of 3 lies" in said


def test_a_control_far_off_stands_at_the_edge_with_its_value(comparison):
    controls = [measured(loss, criterion="random", compensation=how) for loss, how in FAR]
    rows = (measured(1.2), measured(1.3, criterion="magnitude"), *controls)
    figure = charts_pruning.compared(replace(comparison, rows=rows))
    assert max(figure.layout.xaxis.range) < 2.0
    dots = figure.data[0]
    place = list(dots.y).index("Random (control)")
    assert dots.x[place] < 2.0
    assert dots.marker.symbol[place] == "triangle-right"
    (note,) = [each for each in figure.layout.annotations if each.text != "dense"]
    assert (note.y, note.text) == ("Random (control)", "9.000 and 8.500 nats")


def test_every_unit_criterion_says_what_it_needs_and_gradients_do_not_stream():
    for entry in wording_pruning.unit_criteria():
        assert wording_pruning.needs(entry)
        if entry.facts["needs"] == "gradients":
            assert not wording_pruning.streams(entry)
    assert wording_pruning.streams(CRITERIA.entry("magnitude"))


def test_what_is_asked_is_said_in_one_line():
    spec = PruningSpec(ratio=0.3, drop_layers=1, iterations=2, scope="global")
    said = wording_pruning.asked(spec)
    assert said == (
        "30 %, least important of all layers, every layer its own widths, 1 whole layer, 2 rounds"
    )


def test_a_criterion_that_a_newer_version_wrote_keeps_its_name():
    assert wording_pruning.criterion("from_the_future") == "from_the_future"
