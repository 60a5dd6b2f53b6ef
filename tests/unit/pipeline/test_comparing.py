"""Criteria side by side: every row is what pruning by it alone gives, and is measured once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import ImportanceSpec
from qpruner_core.errors import InfeasibleRatioError, NotReadyError
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line, comparing, cutting, materials
from qpruner_core.pipeline.cutting import Cutting


@pytest.fixture
def line(start, go, deep_spec):
    made = start(deep_spec)
    go(made, deep_spec, "load", "score")
    return made


def rows(line):
    return [(row.criterion, row.compensation) for row in line.record().comparison.rows]


def numbers(metrics):
    """What does not depend on the clock."""
    return (metrics.loss, metrics.accuracy, metrics.weight_bytes)


def test_every_scored_unit_criterion_is_measured_and_equals_pruning_by_it(line, go, deep_spec):
    line.compare(deep_spec.pruning)
    found = line.record().comparison
    assert rows(line) == [("magnitude", "none"), ("wanda", "none")]
    assert all(row.seconds > 0 for row in found.rows)
    pruned = go(line, deep_spec, "prune").prune
    row = found.rows[1]
    assert numbers(row.metrics) == numbers(pruned.after)
    assert numbers(found.dense) == numbers(pruned.before)
    assert row.parameters == pruned.parameters_after


def test_with_compensation_each_criterion_stands_without_and_with_it(line, deep_spec):
    spec = replace(deep_spec.pruning, compensation="bias", criterion="magnitude")
    line.compare(spec)
    found = line.record().comparison
    ways = ("none", "bias")
    assert rows(line) == [(name, way) for name in ("magnitude", "wanda") for way in ways]
    without, having = found.rows[:2]
    assert having.parameters > without.parameters
    assert having.metrics.loss != without.metrics.loss


def test_what_was_measured_is_kept_when_another_process_goes_on(
    line, store, deep_spec, monkeypatch
):
    spec = replace(deep_spec.pruning, compensation="bias")
    pairs = line.compare_begin(spec)
    first = [line.compare_one(*pair, spec) for pair in pairs[:3]]
    decided = []
    real = Cutting.decide

    def decide(self, asked, *told):
        decided.append((asked.criterion, asked.compensation))
        return real(self, asked, *told)

    monkeypatch.setattr(Cutting, "decide", decide)
    other = Line(store, line.record().run_id, pick_device("cpu"))
    other.compare(spec)
    assert decided == [pairs[3]]
    assert other.record().comparison.rows[:3] == tuple(first)
    other.compare(replace(spec, ratio=0.2))
    assert decided[1:] == list(pairs)


def test_a_row_is_refused_under_a_comparison_at_another_ratio(line, deep_spec):
    asked, other = deep_spec.pruning, replace(deep_spec.pruning, ratio=0.2)
    first, second = line.compare_begin(asked)
    line.compare_one(*first, asked)
    line.compare(other)
    found = line.record().comparison
    with pytest.raises(NotReadyError, match=r"ratio of 0\.2, while 0\.4 was asked"):
        line.compare_one(*second, asked)
    assert line.record().comparison == found
    assert line.compare_one(*second, replace(other, criterion="magnitude")) == found.rows[1]


def test_layers_are_measured_once_and_seconds_are_those_of_the_row_alone(
    line, deep_spec, monkeypatch
):
    """Loading and Block Influence take a thousand seconds here, scoring in a round seven."""
    clock, told = [0.0], []

    def taking(module, name, seconds):
        real = getattr(module, name)

        def slow(*given, **named):
            clock[0] += seconds
            told.append(name)
            return real(*given, **named)

        monkeypatch.setattr(module, name, slow)

    for module in (comparing, materials):
        monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    taking(materials, "load", 1000.0)
    taking(cutting, "layer_signal", 1000.0)
    taking(cutting, "score", 7.0)
    other = Line(line._store, line.record().run_id, pick_device("cpu"))
    other.compare(replace(deep_spec.pruning, drop_layers=1, iterations=2, compensation="bias"))
    found = other.record().comparison.rows
    assert [row.seconds for row in found] == [7.0] * 4
    assert told.count("layer_signal") == 1
    assert told.count("score") == 4


def test_a_stop_between_rows_leaves_those_that_are_measured(line, deep_spec):
    line.should_stop = lambda: bool(line.record().comparison.rows)
    line.compare(deep_spec.pruning)
    assert rows(line) == [("magnitude", "none")]


def test_scoring_again_empties_the_comparison_and_pruning_does_not(line, deep_spec):
    line.compare(deep_spec.pruning)
    line.begin(deep_spec, ("prune",))
    assert line.record().comparison is not None
    line.begin(deep_spec, ("score",))
    assert line.record().comparison is None
    with pytest.raises(NotReadyError, match="Score it"):
        line.compare(deep_spec.pruning)


def test_a_ratio_that_cannot_be_reached_is_refused_before_anything_is_measured(line, deep_spec):
    with pytest.raises(InfeasibleRatioError, match="largest"):
        line.compare(replace(deep_spec.pruning, ratio=0.999))
    assert line.record().comparison is None


def test_it_says_how_many_rows_are_done(line, deep_spec):
    told = []
    line.on_progress = told.append
    line.compare(deep_spec.pruning)
    said = [(p.step, p.done, p.total) for p in told if p.message.startswith("compared")]
    assert said == [("prune", 1, 2), ("prune", 2, 2)]
    assert "wanda" in told[-1].message


def test_signals_of_layers_are_no_rows(start, go, deep_spec):
    criteria = ("magnitude", "block_influence")
    spec = replace(
        deep_spec,
        importance=ImportanceSpec(criteria=criteria),
        pruning=replace(deep_spec.pruning, criterion="magnitude"),
    )
    line = start(spec)
    go(line, spec, *STEPS[:2])
    assert line.compare_begin(spec.pruning) == (("magnitude", "none"),)
