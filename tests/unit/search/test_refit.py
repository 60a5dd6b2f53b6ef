"""The default strategy: better than its own first guess, within every budget, in batches."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from qpruner_core.domain.spec import SearchSpec
from qpruner_core.search.asking import Known
from qpruner_core.search.improvement import expected_gain
from qpruner_core.search.pareto import hypervolume
from qpruner_core.search.space import SearchSpace
from qpruner_core.search.study import Study


def _front_of(space, measure, points):
    return [(float(space.bytes(plan)), measure(space, plan).loss) for plan in points]


def _search(space, measure, cells, storage, n_trials=14, budget=None, **changes):
    spec = SearchSpec(**{"strategy": "refit", "n_trials": n_trials, "signal": "loss", **changes})
    ends = [space.decode((0,) * len(space.parameters)), space.decode((1,) * len(space.parameters))]
    known = Known(sensitivities=cells, measured={p.key: measure(space, p) for p in ends})
    plans = list(ends)
    with Study.open(str(storage), "s", space, spec, budget or space.largest_bytes, known) as study:
        while not (proposal := study.claim("one", n_trials)).exhausted:
            study.record(proposal.number, measure(space, proposal.plan))
            plans.append(proposal.plan)
    return plans


def test_a_few_trials_find_the_front_that_measuring_everything_finds(
    make_space, measure, sensitivities, tmp_path
):
    space = make_space(6, precisions=("nf4", "int8"))
    everything = [space.decode(code) for code in itertools.product((0, 1), repeat=6)]
    points = _front_of(space, measure, everything)
    reference = (max(p[0] for p in points) * 1.001, max(p[1] for p in points) * 1.001)
    noise = np.random.default_rng(3)
    rough = tuple(
        type(c)(
            unit=c.unit,
            precision=c.precision,
            loss_increase=c.loss_increase * float(noise.uniform(0.3, 2.0)),
        )
        for c in sensitivities(space)
    )
    found = _front_of(space, measure, _search(space, measure, rough, tmp_path / "a.db"))
    lost = 1.0 - hypervolume(found, reference) / hypervolume(points, reference)
    assert lost < 0.01


@pytest.mark.parametrize("strategy", ["refit", "front", "gp_seeded", "tpe", "nsga2", "random"])
def test_every_proposal_of_every_strategy_holds_the_budget(
    make_space, measure, sensitivities, tmp_path, strategy
):
    space = make_space(4)
    budget = (space.smallest_bytes + space.largest_bytes) // 2
    cells = sensitivities(space)
    plans = _search(space, measure, cells, tmp_path / "b.db", 9, budget, strategy=strategy)
    assert len(plans) == 11
    assert all(space.bytes(plan) <= budget for plan in plans[2:])


def test_plans_claimed_at_the_same_time_are_different_and_good(
    make_space, measure, sensitivities, tmp_path
):
    space = make_space()
    cells = sensitivities(space)
    ends = [space.decode((0,) * 6), space.decode((2,) * 6)]
    known = Known(sensitivities=cells, measured={p.key: measure(space, p) for p in ends})
    spec = SearchSpec(strategy="refit", n_trials=12, signal="loss")
    storage = str(tmp_path / "c.db")
    with Study.open(storage, "s", space, spec, space.largest_bytes, known) as study:
        claimed = [study.claim(f"worker {i}", 12) for i in range(6)]
    sizes = sorted(space.bytes(c.plan) for c in claimed)
    assert len({c.plan.key for c in claimed}) == 6
    assert len(set(sizes)) >= 4


def test_without_sensitivities_and_measurements_it_still_has_a_wish(make_space, tmp_path):
    space = make_space(3)
    spec = SearchSpec(strategy="refit", n_trials=2)
    storage = str(tmp_path / "d.db")
    with Study.open(storage, "s", space, spec, space.smallest_bytes) as study:
        assert study.claim("one", 2).plan == space.decode((0, 0, 0))
        assert study.claim("two", 2).exhausted is True


@pytest.mark.parametrize("joint", ["global", "per-layer"])
def test_joint_spaces_are_searched_too(
    make_layout, narrower, sensitivities_of_levels, tmp_path, joint
):
    layout = make_layout(3)
    space = SearchSpace(layout, ("nf4", "int8"), "layer", levels=[narrower(layout)], joint=joint)
    cells = sensitivities_of_levels(space)
    costs = {(c.unit, c.level, c.precision): c.loss_increase for c in cells}

    def measure(_, plan):
        from qpruner_core.domain.metrics import Metrics

        levels = plan.levels or (0,) * 3
        parts = [
            costs[unit, levels[layer], precision]
            for layer, (unit, precision) in enumerate(space.choices(plan).items())
        ]
        return Metrics(
            loss=2.0 + sum(parts), accuracy=0.0, weight_bytes=space.bytes(plan), device="cpu"
        )

    plans = _search(
        space,
        measure,
        cells,
        tmp_path / "e.db",
        10,
        joint=joint,
        ratios=(0.5,),
        precisions=space.precisions,
    )
    assert len({plan.key for plan in plans}) == 12
    assert {max(plan.levels or (0,)) for plan in plans} == {0, 1}
    assert all(plan in space for plan in plans)


def test_the_expected_gain_is_the_mean_gain_in_hypervolume():
    rng = np.random.default_rng(0)
    measured = [(1.0, 3.0), (2.0, 1.5), (2.5, 2.0), (4.0, 1.0)]
    reference = (5.0, 3.5)
    costs = np.array([0.5, 1.5, 2.0, 4.5, 6.0])
    mean, deviation = np.array([3.2, 1.8, 1.4, 0.9, 0.1]), np.array([0.3, 0.5, 0.1, 0.4, 1.0])
    got = expected_gain(costs, mean, deviation, measured, reference)
    before = hypervolume(measured, reference)
    for i, cost in enumerate(costs):
        drawn = mean[i] + deviation[i] * rng.standard_normal(4000)
        gains = [hypervolume([*measured, (cost, float(y))], reference) - before for y in drawn]
        error = np.std(gains) / np.sqrt(len(gains))
        assert abs(got[i] - np.mean(gains)) <= 5.0 * error + 1e-12


def test_a_search_by_latency_goes_as_one_by_bytes_that_cost_as_much(
    make_space, measure, sensitivities, tmp_path
):
    space = make_space()
    sizes = np.array(space.unit_bytes)
    ends = [space.decode((0,) * 6), space.decode((2,) * 6)]

    def timed(plan):
        tokens_per_second = 1e9 / space.bytes(plan)  # one nanosecond per byte
        return replace(measure(space, plan), decode_tokens_per_second=tokens_per_second)

    def run(cost):
        spec = SearchSpec(strategy="refit", n_trials=8, signal="loss", cost=cost)
        known = Known(
            sensitivities=sensitivities(space),
            measured={plan.key: timed(plan) for plan in ends},
            sizes=sizes,
        )
        storage, keys = str(tmp_path / f"{cost}.db"), []
        with Study.open(storage, "s", space, spec, space.largest_bytes, known) as study:
            while not (proposal := study.claim("one", 8)).exhausted:
                study.record(proposal.number, timed(proposal.plan))
                keys.append(proposal.plan.key)
        return keys

    assert run("latency") == run("weight_bytes")
