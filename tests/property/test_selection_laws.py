"""What must hold of a selection for any model, any scores and any request."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout, opens_plainly
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import SCOPES, SHAPES, PruningSpec
from qpruner_core.errors import InfeasibleRatioError
from qpruner_core.pruning.selection import Selection, largest_ratio, protected_layers, select
from qpruner_core.pruning.widths import group_ladder, least_units

Scores = dict[str, np.ndarray]
Units = dict[str, set[int]]


@dataclass(frozen=True, kw_only=True)
class Case:
    layout: ModelLayout
    scores: Scores
    spec: PruningSpec
    influence: tuple[float, ...]

    def select(self, share: float = 0.5, removed: PruningPlan | None = None) -> Selection:
        """Select at a share of the largest ratio."""
        spec = self.at(share)
        return select(self.layout, self.scores, spec, layer_scores=self.influence, removed=removed)

    def at(self, share: float) -> PruningSpec:
        return replace(self.spec, ratio=share * largest_ratio(self.layout, self.spec))


@st.composite
def layouts(draw: st.DrawFn) -> ModelLayout:
    kv_heads = draw(st.integers(1, 6))
    heads = kv_heads * draw(st.integers(1, 3))
    family = draw(st.sampled_from(("llama", "mistral", "qwen3", "mixtral")))
    n_experts = draw(st.integers(1, 4))
    config = {
        "model_type": family,
        "hidden_size": heads * draw(st.integers(1, 4)) * 2,
        "head_dim": 4,
        "num_hidden_layers": draw(st.integers(1, 8)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": draw(st.integers(1, 40 if family == "mixtral" else 200)),
        "num_local_experts": n_experts,
        "num_experts_per_tok": draw(st.integers(1, n_experts)),
        "vocab_size": 16,
    }
    return ARCHITECTURES.target(family).layout(config)


@st.composite
def cases(draw: st.DrawFn, shape: str | None = None, scope: str | None = None) -> Case:
    layout = draw(layouts())
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    levels = draw(st.sampled_from((2, 1000)))  # few levels make many ties
    scores = {
        group.name: rng.integers(0, levels, group.n_units).astype(np.float32) / 7
        for group in layout.groups
    }
    spec = PruningSpec(
        scope=scope or draw(st.sampled_from(SCOPES)),
        shape=shape or draw(st.sampled_from(SHAPES)),
        kinds=draw(
            st.sampled_from(
                (
                    ("kv_heads", "mlp_channels", "expert_channels"),
                    ("kv_heads", "mlp_channels", "expert_channels", "experts"),
                    ("mlp_channels", "experts"),
                )
            )
        ),
        protect_first=draw(st.sampled_from((None, 0, 1))),
        protect_last=draw(st.sampled_from((None, 0, 1))),
        width_multiple=draw(st.sampled_from((1, 8, 48, 64))),
    )
    influence = tuple(rng.integers(0, 4, layout.n_layers) / 4)
    return Case(layout=layout, scores=scores, spec=spec, influence=influence)


shares = st.floats(0.0, 1.0)


def gone(layout: ModelLayout, plan: PruningPlan) -> Units:
    """Every unit that leaves, those of dropped layers and experts too."""
    units = {
        g.name: set(range(g.n_units)) - set(plan.kept.get(g.name, range(g.n_units)))
        for g in layout.groups
    }
    for group in layout.groups:
        if group.layer in plan.dropped_layers:
            units[group.name] = set(range(group.n_units))
    for group in layout.groups:
        for unit in units[group.name] if group.members else ():
            name = group.members[unit]
            units[name] = set(range(layout.group(name).n_units))
    return units


def removed_by(layout: ModelLayout, plan: PruningPlan) -> int:
    if plan.is_identity:
        return 0
    return sum(layout.layer_parameters) - sum(layout.pruned(plan).layer_parameters)


def largest_steps(case: Case) -> dict[int, int]:
    """Layer -> the most parameters that one step in it removes."""
    found = dict.fromkeys(range(case.layout.n_layers), 0)
    for group in case.layout.groups:
        rungs = group_ladder(case.layout, group, case.spec)
        step = int((-np.diff(rungs)).max(initial=0)) * group.unit_parameters
        found[group.layer] = max(found[group.layer], step)
    return found


@given(cases(), shares)
def test_kept_units_are_ascending_in_range_and_never_none(case, share):
    for name, kept in case.select(share).plan.kept.items():
        group = case.layout.group(name)
        assert least_units(case.layout, group) <= len(kept) < group.n_units
        assert list(kept) == sorted(set(kept))
        assert kept[-1] < group.n_units


@given(cases(), shares)
def test_every_kept_unit_is_worth_at_least_as_much_as_every_removed_one_of_its_group(case, share):
    for name, kept in case.select(share).plan.kept.items():
        values = case.scores[name]
        left = np.setdiff1d(np.arange(len(values)), kept)
        assert values[list(kept)].min() >= values[left].max()


@given(cases(shape="per-layer"), shares)
def test_protected_layers_lose_nothing(case, share):
    touched = {case.layout.group(name).layer for name in case.select(share).plan.kept}
    assert not touched & protected_layers(case.layout.n_layers, case.spec)


@given(cases(shape="uniform"), shares)
def test_uniform_models_open_in_the_stock_class(case, share):
    assert opens_plainly(case.select(share).layout)


@given(cases(shape="per-layer"), shares, shares)
def test_a_larger_ratio_removes_what_a_smaller_one_removes_and_more(case, one, other):
    less, more = (gone(case.layout, case.select(share).plan) for share in sorted((one, other)))
    assert all(less[name] <= more[name] for name in less)


@given(cases(), shares)
def test_widths_are_rungs_of_the_ladder(case, share):
    for name, kept in case.select(share).plan.kept.items():
        assert len(kept) in group_ladder(case.layout, case.layout.group(name), case.spec)


@given(cases(), shares)
def test_parameters_removed_are_the_ratio_within_one_step_of_every_layer(case, share):
    spec, layout = case.at(share), case.layout
    asked = spec.ratio * sum(layout.layer_parameters)
    found = removed_by(layout, case.select(share).plan)
    steps = largest_steps(case)
    # Layers go down one after the other, so that one step is the most by which all of them miss;
    # in uniform shape they all go down together.
    allowed = sum(steps.values()) if spec.shape == "uniform" else max(steps.values())
    assert abs(found - asked) <= allowed / 2 + 1e-6 or spec.shape == "uniform"
    assert abs(found - asked) <= allowed + 1e-6


@given(cases(), shares)
def test_the_layout_is_the_one_that_the_plan_leaves(case, share):
    selection = case.select(share)
    assert selection.layout.parameters == case.layout.parameters - removed_by(
        case.layout, selection.plan
    )


@given(cases(shape="per-layer", scope="per-layer"), shares)
def test_per_layer_scope_takes_the_same_share_of_every_layer_within_one_step(case, share):
    layout = case.layout
    plan = case.select(share).plan
    after = layout.pruned(plan) if not plan.is_identity else layout
    steps = largest_steps(case)
    lost = {
        layer: (before - left) / before
        for layer, (before, left) in enumerate(
            zip(layout.layer_parameters, after.layer_parameters, strict=True)
        )
        if layer not in protected_layers(layout.n_layers, case.spec)
    }
    step = max(steps[layer] / layout.layer_parameters[layer] for layer in steps)
    assert max(lost.values(), default=0.0) - min(lost.values(), default=0.0) <= step + 1e-12


@given(cases(scope="per-layer"), shares)
def test_sizes_in_per_layer_scope_do_not_depend_on_scores(case, share):
    assume("experts" not in case.spec.kinds)
    spec = case.at(share)
    without = select(case.layout, None, spec)
    assert case.select(share).layout.parameters == without.layout.parameters
    assert case.select(share).warnings == without.warnings


@given(cases(), shares, st.randoms(use_true_random=False))
def test_renumbered_units_give_a_renumbered_plan(case, share, random):
    draw = np.random.default_rng(random.randrange(2**32))
    layout = case.layout
    assume("experts" not in case.spec.kinds)
    # Without ties, which are broken by number.
    scores = {g.name: draw.permutation(g.n_units).astype(np.float32) for g in layout.groups}
    moved = {g.name: draw.permutation(g.n_units) for g in layout.groups}
    there = {name: scores[name][places] for name, places in moved.items()}
    spec = case.at(share)
    here = gone(layout, select(layout, scores, spec).plan)
    after = gone(layout, select(layout, there, spec).plan)
    assert here == {name: {int(moved[name][u]) for u in units} for name, units in after.items()}


@given(cases(), shares, shares)
def test_what_left_before_leaves_again(case, one, other):
    first = case.select(min(one, other)).plan
    # Scores of what is left may have changed, and those of what left are anything.
    rng = np.random.default_rng(1)
    left = gone(case.layout, first)
    anew = {
        name: rng.random(len(values)).astype(np.float32) for name, values in case.scores.items()
    }
    for name, units in left.items():
        anew[name][list(units)] = np.nan
    second = replace(case, scores=anew).select(max(one, other), removed=first)
    now = gone(case.layout, second.plan)
    assert all(left[name] <= now[name] for name in left)
    asked = case.at(max(one, other)).ratio * sum(case.layout.layer_parameters)
    if case.spec.shape == "per-layer":
        error = abs(removed_by(case.layout, second.plan) - asked)
        assert error <= max(largest_steps(case).values()) + 1e-6


@given(cases(), shares)
def test_a_second_round_with_the_same_scores_changes_nothing(case, share):
    assume(case.spec.shape == "per-layer" and case.spec.scope not in ("balanced", "standardised"))
    assume("experts" not in case.spec.kinds)
    once = case.select(share).plan
    assert case.select(share, removed=once).plan == once


@given(cases(), shares, st.integers(1, 8))
def test_the_least_influential_layers_are_dropped(case, share, n_dropped):
    layout = case.layout
    spare = set(range(layout.n_layers)) - protected_layers(layout.n_layers, case.spec)
    case = replace(case, spec=replace(case.spec, drop_layers=n_dropped))
    most = min(len(spare), layout.n_layers - 1)
    if n_dropped > most:
        with pytest.raises(InfeasibleRatioError, match=f"at most {most} "):
            case.select(share)
        return
    selection = case.select(share)
    dropped = set(selection.plan.dropped_layers)
    assert len(dropped) == n_dropped
    assert dropped <= spare
    stay = [case.influence[layer] for layer in spare - dropped]
    assert max(case.influence[layer] for layer in dropped) <= min(stay, default=1.0)
    assert selection.layout.n_layers == layout.n_layers - n_dropped
    assert not any(layout.group(name).layer in dropped for name in selection.plan.kept)


@given(cases(shape="per-layer"), st.data())
def test_layers_by_hand_lose_their_share_within_one_step(case, data):
    layout = case.layout
    by_hand = data.draw(
        st.dictionaries(st.integers(0, layout.n_layers - 1).map(str), st.floats(0.0, 0.3))
    )
    case = replace(case, spec=replace(case.spec, layer_ratios=by_hand))
    steps = largest_steps(case)
    try:
        spec = case.at(1.0)
        low = sum(r * layout.layer_parameters[int(i)] for i, r in by_hand.items())
        low /= sum(layout.layer_parameters)
        between = low + data.draw(shares) * max(0.0, spec.ratio - low)
        spec = replace(spec, ratio=between)
    except InfeasibleRatioError:
        return  # more by hand than a narrow layer can give
    left = select(layout, case.scores, spec).layout.layer_parameters
    for layer, ratio in by_hand.items():
        whole = layout.layer_parameters[int(layer)]
        assert abs(whole - left[int(layer)] - ratio * whole) <= steps[int(layer)] / 2 + 1e-6


@given(cases(), shares)
def test_the_same_request_gives_the_same_selection(case, share):
    assert case.select(share) == case.select(share)


@given(layouts(), st.sampled_from(SHAPES), st.sampled_from(SCOPES))
def test_ratio_zero_is_the_identity(layout, shape, scope):
    selection = select(layout, None, PruningSpec(ratio=0.0, shape=shape, scope=scope))
    assert selection.plan.is_identity
    assert selection.layout == layout
    assert selection.warnings == ()
