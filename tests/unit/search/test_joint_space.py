"""Spaces of a joint search: pruning levels and precisions in one code, and their exact front."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.errors import BadInputError
from qpruner_core.search.knapsack import front, predict, unit_costs
from qpruner_core.search.pareto import non_dominated
from qpruner_core.search.space import LEVEL, SearchSpace


@pytest.fixture
def make_joint(make_layout, narrower):
    def make(joint, n_layers=3, precisions=("nf4", "int8"), tie="layer"):
        layout = make_layout(n_layers)
        return SearchSpace(layout, precisions, tie, levels=[narrower(layout)], joint=joint)

    return make


def _all_codes(space):
    return itertools.product(*(range(n) for n in space.parameters.values()))


@pytest.mark.parametrize("joint", ["global", "per-layer"])
def test_codes_and_plans_turn_into_each_other_and_bytes_agree(make_joint, joint):
    space = make_joint(joint)
    codes = list(_all_codes(space))
    assert len(codes) == space.size == {"global": 2 * 2**3, "per-layer": 4**3}[joint]
    for code in codes:
        plan = space.decode(code)
        assert plan in space
        assert space.code(plan) == code
        assert space.plan_of_key(plan.key) == plan
        expected = plan_bytes(space.layout_of(plan), plan, precision_formats())
        assert space.code_bytes(code) == space.bytes(plan) == expected
    assert len({space.decode(code).key for code in codes}) == len(codes)


def test_a_model_of_one_level_has_the_layout_of_that_level(make_joint, make_layout, narrower):
    space = make_joint("global")
    lower = space.decode((0, 1, 1, 1))
    assert lower.levels == (1, 1, 1)
    assert space.layout_of(lower) == narrower(make_layout(3))
    assert list(space.parameters) == [LEVEL, "layer.0", "layer.1", "layer.2"]
    assert space.decode((1, 1, 1, 1)).levels == ()


def test_one_ratio_for_the_model_refuses_layers_of_different_levels(make_joint):
    mixed = make_joint("per-layer").decode((0, 3, 3))
    assert len(set(mixed.levels)) == 2
    space = make_joint("global")
    assert mixed not in space
    with pytest.raises(BadInputError, match="pruning levels"):
        space.code(mixed)
    assert space.code_of_options((0, 3, 3)) is None


@pytest.mark.parametrize(
    ("joint", "tie"), [("global", "layer"), ("per-layer", "layer"), ("global", "block")]
)
def test_the_front_over_levels_is_as_good_as_every_plan(
    make_joint, sensitivities_of_levels, joint, tie
):
    space = make_joint(joint, n_layers=2, tie=tie)
    cells = sensitivities_of_levels(space)
    points = [
        (float(space.code_bytes(code)), predict(space, cells, space.decode(code)))
        for code in _all_codes(space)
    ]
    best = [points[i] for i in non_dominated(points)]
    found = front(space, cells)
    assert found.weight_bytes.tolist() == [size for size, _ in best]
    assert found.loss_increase.tolist() == pytest.approx([loss for _, loss in best])
    for point in found:
        assert predict(space, cells, point.plan) == pytest.approx(point.loss_increase)


def test_pruning_less_may_be_predicted_to_help_and_a_larger_precision_never_to_hurt(
    make_joint, sensitivities_of_levels
):
    space = make_joint("per-layer")
    cells = [
        replace(c, loss_increase=-0.2 if c.level == 0 else 0.1 if c.precision == "int8" else 0.05)
        for c in sensitivities_of_levels(space)
    ]
    costs = unit_costs(space, cells, "kl")
    by_option = dict(zip(space.options, costs.T, strict=True))
    assert (by_option[0, "int8"] == -0.2).all()
    assert (by_option[1, "nf4"] >= by_option[1, "int8"]).all()


def test_a_layer_that_no_level_touches_has_one_code(make_layout, narrower):
    layout = make_layout(3)
    level = narrower(layout)
    protected = replace(
        level,
        groups=tuple(
            g if g.layer else next(o for o in layout.groups if o.name == g.name)
            for g in level.groups
        ),
        linears=tuple(
            li if li.layer else next(o for o in layout.linears if o.name == li.name)
            for li in level.linears
        ),
    )
    space = SearchSpace(layout, ("nf4", "int8"), "layer", levels=[protected], joint="per-layer")
    assert space.size == 2 * 4 * 4
    plans = {space.decode(code).key for code in _all_codes(space)}
    assert len(plans) == space.size
    assert all(space.plan_of_key(key).levels[:1] in {(), (0,)} for key in plans)


def test_levels_that_lose_whole_layers_are_refused(make_layout):
    layout = make_layout(3)
    with pytest.raises(BadInputError, match="whole layers or experts"):
        SearchSpace(layout, ("nf4",), "layer", levels=[make_layout(2)], joint="global")
