"""Whole experts and their channels: what leaves twice counts once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from shapes_to_prune import experts, rising, share_removed, widths

from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.pruning.selection import largest_ratio, select

layerwise = partial(PruningSpec, scope="per-layer")


BOTH = ("expert_channels", "experts")


def at(ratio: float, **changes: object) -> PruningSpec:
    given = {"kinds": BOTH, "protect_first": 0, "protect_last": 0, "width_multiple": 1}
    return layerwise(ratio=ratio, **(given | changes))


def test_experts_stay_unless_they_are_among_the_kinds():
    layout = experts()
    left = select(layout, None, layerwise(ratio=0.4, protect_first=0, protect_last=0)).layout
    assert widths(left, "experts") == [4, 4, 4]
    assert share_removed(layout, left) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("scope", ["per-layer", "global", "balanced", "standardised"])
@pytest.mark.parametrize("ratio", [0.2, 0.45, 0.7])
def test_channels_of_experts_that_leave_do_not_count_again(scope, ratio):
    layout = experts()
    draw = np.random.default_rng(3)
    scores = {
        g.name: draw.random(g.n_units, np.float32) * g.unit_parameters for g in layout.groups
    }
    selection = select(layout, scores, at(ratio, scope=scope))
    an_expert = next(g for g in layout.groups if g.kind == "experts").unit_parameters
    error = abs(share_removed(layout, selection.layout) - ratio) * sum(layout.layer_parameters)
    assert error <= an_expert / 2
    gone = {f"model.layers.{g.layer}.mlp" for g in layout.groups} & selection.plan.kept.keys()
    for name in gone:
        leaving = set(range(4)) - set(selection.plan.kept[name])
        assert not {f"{name}.experts.{unit}" for unit in leaving} & selection.plan.kept.keys()


def test_at_least_the_experts_of_one_token_stay():
    layout = experts()
    largest = largest_ratio(layout, at(0.0))
    left = select(layout, None, at(largest)).layout
    assert widths(left, "experts") == [2, 2, 2]
    assert widths(left, "expert_channels") == [1] * 6
    only_experts = at(0.0, kinds=("experts",))
    left = select(layout, None, at(largest_ratio(layout, only_experts), kinds=("experts",))).layout
    assert widths(left, "experts") == [2, 2, 2]
    assert widths(left, "expert_channels") == [32] * 6


def test_the_least_important_expert_leaves():
    layout = experts(num_hidden_layers=1)
    scores = {**rising(layout), "model.layers.0.mlp": np.array([3, 1, 2, 4], np.float32)}
    one = 1552 / layout.layer_parameters[0]
    plan = select(layout, scores, at(one, kinds=("experts",))).plan
    assert plan.kept == {"model.layers.0.mlp": (0, 2, 3)}


def test_experts_of_unequal_width_count_as_what_they_own():
    thin = PruningPlan(kept={"model.layers.0.mlp.experts.1": (0, 1)})
    layout = experts(num_hidden_layers=1).pruned(thin)
    scores = {**rising(layout), "model.layers.0.mlp": np.array([3, 1, 2, 4], np.float32)}
    asked = (2 * 48 + 16 + 1552) / sum(layout.layer_parameters)
    selection = select(layout, scores, at(asked, kinds=("experts",)))
    assert selection.plan.kept == {"model.layers.0.mlp": (0, 3)}
    assert share_removed(layout, selection.layout) == pytest.approx(asked)


def test_an_expert_that_left_before_needs_no_scores_for_its_channels():
    layout = experts(num_hidden_layers=1)
    first = PruningPlan(kept={"model.layers.0.mlp": (0, 1, 2)})
    scores = rising(layout)
    del scores["model.layers.0.mlp.experts.3"]
    asked = replace(at(0.4), scope="per-layer")
    selection = select(layout, scores, asked, removed=first)
    assert 3 not in selection.plan.kept["model.layers.0.mlp"]
    assert share_removed(layout, selection.layout) == pytest.approx(0.4, abs=0.01)
