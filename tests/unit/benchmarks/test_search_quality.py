"""Searches against a table: what is lost is counted from the true front, for every strategy."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import search_quality

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.search.space import SearchSpace

N_LAYERS = 6


@pytest.fixture
def known():
    """An additive table of 64 plans, and sensitivities that tell it exactly."""
    layout = search_quality.wide_layout(N_LAYERS)
    space = SearchSpace(layout, ("nf4", "int8"), "layer")
    costs = np.linspace(0.01, 0.06, N_LAYERS)
    codes = list(itertools.product((0, 1), repeat=N_LAYERS))
    losses = np.array(
        [1.0 + sum(c for c, x in zip(costs, code, strict=False) if x == 0) for code in codes]
    )
    return search_quality.Subject(
        space=space,
        losses=losses,
        weight_bytes=np.array([space.code_bytes(code) for code in codes]),
        cells=[
            SensitivityCell(unit=u, precision=p, loss_increase=float(x), kl=float(x))
            for u, c in zip(space.units, costs, strict=False)
            for p, x in (("nf4", c), ("int8", 0.0))
        ],
        baselines={p: PrecisionPlan.uniform(layout, p) for p in space.precisions},
    )


def test_a_table_is_read_by_the_code_of_a_plan(known):
    plan = known.space.decode((0, 1, 1, 0, 1, 1))
    metrics = known.metrics(plan)
    assert metrics.loss == pytest.approx(1.0 + 0.01 + 0.04)
    assert metrics.weight_bytes == known.space.bytes(plan)


def test_with_exact_sensitivities_the_default_loses_nothing_and_random_something(
    known, tmp_path, monkeypatch
):
    monkeypatch.setattr(search_quality, "CHECKPOINTS", (3, 8))
    ours, drawn = (
        search_quality.course(known, SearchSpec(strategy=name, n_trials=8), tmp_path)
        for name in (SearchSpec().strategy, "random")
    )
    assert ours.lost[8] < 1.0
    assert ours.lost[8] <= ours.lost[3]
    assert drawn.lost[8] > ours.lost[8]
    assert len(ours.seconds) == 8


def test_a_ratio_of_two_that_lost_nothing_is_one():
    assert search_quality._ratio(0.0, 0.0) == 1.0
    assert search_quality._ratio(0.1, 0.0) == float("inf")
    assert search_quality._ratio(0.1, 0.2) == 0.5
