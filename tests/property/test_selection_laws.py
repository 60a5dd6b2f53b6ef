"""What must hold of a selection for any model, any scores and any request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.models.architectures import llama
from qpruner_core.pruning.selection import largest_ratio, protected_layers, select
from qpruner_core.pruning.widths import group_ladder

Scores = dict[str, np.ndarray]


@st.composite
def layouts(draw: st.DrawFn) -> ModelLayout:
    kv_heads = draw(st.integers(1, 6))
    heads = kv_heads * draw(st.integers(1, 3))
    return llama.layout(
        {
            "model_type": draw(st.sampled_from(("llama", "mistral", "qwen2", "qwen3"))),
            "hidden_size": heads * draw(st.integers(1, 4)) * 2,
            "head_dim": 4,
            "num_hidden_layers": draw(st.integers(1, 12)),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": draw(st.integers(1, 200)),
            "vocab_size": 16,
        }
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelLayout, Scores, PruningSpec]:
    layout = draw(layouts())
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    levels = draw(st.sampled_from((2, 1000)))  # few levels make many ties
    scores = {
        group.name: rng.integers(0, levels, group.n_units).astype(np.float32) / 7
        for group in layout.groups
    }
    spec = PruningSpec(
        scope=draw(st.sampled_from(("per-layer", "global"))),
        shape=draw(st.sampled_from(("per-layer", "uniform"))),
        protect_first=draw(st.sampled_from((None, 0, 1))),
        protect_last=draw(st.sampled_from((None, 0, 1))),
        width_multiple=draw(st.sampled_from((1, 8, 48, 64))),
    )
    return layout, scores, spec


def at(spec: PruningSpec, layout: ModelLayout, share: float) -> PruningSpec:
    """The spec with a ratio somewhere between nothing and the largest possible."""
    return replace(spec, ratio=share * largest_ratio(layout, spec))


shares = st.floats(0.0, 1.0)


@given(cases(), shares)
def test_kept_units_are_ascending_in_range_and_never_none(case, share):
    layout, scores, spec = case
    selection = select(layout, scores, at(spec, layout, share))
    for name, kept in selection.plan.kept.items():
        n_units = layout.group(name).n_units
        assert 1 <= len(kept) < n_units
        assert list(kept) == sorted(set(kept))
        assert kept[-1] < n_units


@given(cases(), shares)
def test_every_kept_unit_is_worth_at_least_as_much_as_every_removed_one_of_its_group(case, share):
    layout, scores, spec = case
    for name, kept in select(layout, scores, at(spec, layout, share)).plan.kept.items():
        values = scores[name]
        gone = np.setdiff1d(np.arange(len(values)), kept)
        assert values[list(kept)].min() >= values[gone].max()


@given(cases(), shares)
def test_protected_layers_lose_nothing_unless_widths_are_uniform(case, share):
    layout, scores, spec = case
    selection = select(layout, scores, at(spec, layout, share))
    touched = {layout.group(name).layer for name in selection.plan.kept}
    if spec.shape == "per-layer":
        assert not touched & protected_layers(layout.n_layers, spec)
    else:
        for kind in ("kv_heads", "mlp_channels"):
            assert len({g.n_units for g in selection.layout.groups if g.kind == kind}) == 1


@given(cases(), shares, shares)
def test_a_larger_ratio_removes_what_a_smaller_one_removes_and_more(case, one, other):
    layout, scores, spec = case
    less, more = (
        select(layout, scores, at(spec, layout, share)).plan.kept for share in sorted((one, other))
    )
    for name in less:
        assert set(more[name]) <= set(less[name])


@given(cases(), shares)
def test_widths_are_rungs_of_the_ladder(case, share):
    layout, scores, spec = case
    selection = select(layout, scores, at(spec, layout, share))
    for name, kept in selection.plan.kept.items():
        assert len(kept) in group_ladder(layout, layout.group(name), spec)


@given(cases(), shares)
def test_the_share_removed_is_the_ratio_within_one_step_of_the_model(case, share):
    layout, scores, spec = case
    assume(spec.shape == "per-layer")
    spec = at(spec, layout, share)
    selection = select(layout, scores, spec)
    shielded = protected_layers(layout.n_layers, spec)
    for kind in ("kv_heads", "mlp_channels"):
        groups = [
            g
            for g in layout.groups
            if g.kind == kind and g.layer not in shielded and g.n_units > 1
        ]
        if not groups:
            continue
        removed = sum(g.n_units - selection.layout.group(g.name).n_units for g in groups)
        largest_step = (-np.diff(group_ladder(layout, groups[0], spec))).max()
        asked = spec.ratio * sum(g.n_units for g in groups)
        assert abs(removed - asked) <= largest_step / 2 + 1e-6


@given(cases(), shares)
def test_per_layer_scope_takes_layers_down_together(case, share):
    layout, scores, spec = case
    assume(spec.shape == "per-layer" and spec.scope == "per-layer")
    spec = at(spec, layout, share)
    selection = select(layout, scores, spec)
    shielded = protected_layers(layout.n_layers, spec)
    for kind in ("kv_heads", "mlp_channels"):
        groups = [g for g in layout.groups if g.kind == kind and g.layer not in shielded]
        rungs = [
            group_ladder(layout, g, spec).index(selection.layout.group(g.name).n_units)
            for g in groups
        ]
        assert max(rungs, default=0) - min(rungs, default=0) <= 1


@given(cases(), shares)
def test_sizes_in_per_layer_scope_do_not_depend_on_scores(case, share):
    layout, scores, spec = case
    assume(spec.scope == "per-layer")
    spec = at(spec, layout, share)
    with_scores, without = select(layout, scores, spec), select(layout, None, spec)
    assert with_scores.layout.parameters == without.layout.parameters
    assert with_scores.warnings == without.warnings


@given(cases(), shares)
def test_the_same_request_gives_the_same_selection(case, share):
    layout, scores, spec = case
    spec = at(spec, layout, share)
    assert select(layout, scores, spec) == select(layout, scores, spec)
