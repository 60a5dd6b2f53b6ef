"""Laws of surgery, in float64, for every family of the catalogue and its variants."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import CASES, FIRST, IDS, build, even, logits, outputs, reopen, save, uneven

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import WIDTHS_KEY, ModelLayout, Renaming, opens_plainly
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import BadInputError, IncompatibleShapeError
from qpruner_core.inspection.folders import check_shapes, layout_of, read_config, read_headers
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_

ONCE = pytest.mark.parametrize("case", FIRST, indirect=True)
PLANS = pytest.mark.parametrize("make", [uneven, even])
Plan = Callable[[ModelLayout], PruningPlan]


def zero_removed_(model: Any, layout: ModelLayout, plan: PruningPlan) -> None:
    """Silence the removed units where they enter the residual stream."""
    for name, kept in plan.kept.items():
        group = layout.group(name)
        gone = torch.from_numpy(np.setdiff1d(np.arange(group.n_units), kept))
        for part in (part for part in group.slices if part.is_input):
            entries = part.offset + gone[:, None] * part.unit_size + torch.arange(part.unit_size)
            with torch.no_grad():
                model.get_parameter(part.tensor).index_fill_(part.axis, entries.flatten(), 0.0)


def silent(plan: PruningPlan, layout: ModelLayout) -> PruningPlan:
    """Return the part of a plan whose units fall silent when their inputs are zero.

    Whole experts do not: without the router's rows the others share their part.
    """
    kept = {
        name: units
        for name, units in plan.kept.items()
        if any(part.is_input for part in layout.group(name).slices)
    }
    return PruningPlan(kept=kept, shape=plan.shape, dropped_layers=plan.dropped_layers)


def count(model: Any) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def test_ratio_zero_changes_nothing(model, layout):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    kept = prune_(model, layout, select(layout, None, PruningSpec(ratio=0.0)).plan)
    assert kept == layout
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == list(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@PLANS
def test_removing_units_is_zeroing_them(model, layout, make):
    plan = silent(make(layout), layout)
    zeroed = copy.deepcopy(model)
    zero_removed_(zeroed, layout, plan)
    expected = logits(zeroed)
    assert (expected - logits(model)).abs().max() > 1e-3
    prune_(model, layout, plan)
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=1e-10)


@PLANS
def test_parameters_are_counted_as_planned_and_every_linear_knows_its_shape(model, layout, make):
    plan = make(layout)
    pruned = prune_(model, layout, plan)
    assert pruned == layout.pruned(plan)
    assert count(model) == pruned.parameters
    for linear in pruned.linears:
        module = model.get_submodule(linear.name)
        assert module.weight.shape == linear.weight_shape
        assert (module.bias is not None) == linear.has_bias
        stated = (module.nf, module.nx) if linear.transposed else shape(module)
        assert stated == (linear.out_features, linear.in_features)
        assert module.weight.is_contiguous()


def shape(linear: Any) -> tuple[int, int]:
    """Return what a Linear says of itself."""
    return linear.out_features, linear.in_features


@PLANS
def test_generation_with_the_cache_agrees_with_the_full_forward(model, layout, make):
    prune_(model, layout, make(layout))
    agrees_with_its_cache(model)


def agrees_with_its_cache(model: Any, n_tokens: int = 6) -> None:
    """Assert that greedy generation says the same with either cache as without."""
    ids = IDS[:1]
    for _ in range(n_tokens):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    for cache in ("dynamic", "static"):
        out = model.generate(
            IDS[:1],
            attention_mask=torch.ones_like(IDS[:1]),
            max_new_tokens=n_tokens,
            do_sample=False,
            cache_implementation=None if cache == "dynamic" else cache,
            disable_compile=True,
        )
        assert torch.equal(out, ids), cache


@PLANS
def test_the_config_describes_the_pruned_model(family, model, layout, make):
    pruned = prune_(model, layout, make(layout))
    described = ARCHITECTURES.target(family).layout(model.config.to_dict())
    assert described.groups == pruned.groups
    assert described.linears == pruned.linears
    assert described.parameters == pruned.parameters
    assert hasattr(model.config, WIDTHS_KEY) == (not opens_plainly(pruned))


# Opening what was saved -----------------------------------------------------------------------


@PLANS
@pytest.mark.usefixtures("code_cache")
def test_any_widths_open_with_the_code_beside_them(family, model, layout, make, tmp_path):
    before = tied(model)
    pruned = prune_(model, layout, make(layout))
    folder = save(model, pruned, tmp_path / "saved", remote_code=True)
    again = reopen(folder, family, remote_code=True)
    torch.testing.assert_close(logits(again), logits(model), rtol=0.0, atol=1e-12)
    assert count(again) == pruned.parameters
    assert tied(again) == tied(model) == before == bool(model.config.tie_word_embeddings)
    agrees_with_its_cache(again)
    is_described_by(folder, pruned)


def is_described_by(folder: Path, pruned: ModelLayout) -> None:
    """Assert that config and headers of a folder say what the model in it has."""
    found = layout_of(read_config(folder))
    check_shapes(found, read_headers(folder))
    assert (found.groups, found.linears) == (pruned.groups, pruned.linears)
    assert found.parameters == pruned.parameters


def tied(model: Any) -> bool:
    """Whether embedding and output head are one tensor."""
    same: bool = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return same


def test_even_widths_open_with_the_plain_class(family, model, layout, tmp_path):
    plan = even(layout, layout.plain_kinds)
    pruned = prune_(model, layout, plan)
    assert opens_plainly(pruned)
    folder = save(model, pruned, tmp_path / "saved", remote_code=False)
    again = reopen(folder, family, remote_code=False)
    torch.testing.assert_close(logits(again), logits(model), rtol=0.0, atol=1e-12)
    assert not type(again).__name__.startswith("QPruner")
    assert count(again) == pruned.parameters
    is_described_by(folder, pruned)


@ONCE
def test_a_live_model_of_even_widths_saves_itself(family, model, layout, tmp_path):
    pruned = prune_(model, layout, even(layout, layout.plain_kinds))
    model.save_pretrained(tmp_path / "saved")
    again = reopen(tmp_path / "saved", family, remote_code=False)
    torch.testing.assert_close(logits(again), logits(model), rtol=0.0, atol=1e-12)
    assert count(again) == pruned.parameters


def test_a_kind_that_the_stock_config_cannot_say_needs_the_code(layout):
    kinds = {group.kind for group in layout.groups}
    for kind in kinds:
        plan = even(layout, (kind,))
        plain = kind in layout.plain_kinds or not plan.kept
        assert opens_plainly(layout.pruned(plan)) == plain, kind


def test_uneven_widths_never_open_plainly(layout):
    assert not opens_plainly(layout.pruned(uneven(layout)))


def test_heads_that_the_stock_config_refuses_are_listed_instead(model, layout):
    heads = [group for group in layout.groups if group.kind == "kv_heads" and group.n_units == 4]
    plan = PruningPlan(kept={group.name: (0, 1, 2) for group in heads})
    if not heads:
        assert plan.is_identity
        return
    prune_(model, layout, plan)
    # Six query heads do not divide a hidden size of 32, which some stock configs refuse.
    refused = layout.heads_divide_hidden or "kv_heads" not in layout.plain_kinds
    assert hasattr(model.config, WIDTHS_KEY) == refused


# Pruning again, and what stays as it was ------------------------------------------------------


@PLANS
def test_pruning_twice_is_pruning_once(model, layout, make):
    last = layout.groups[-1]
    first = PruningPlan(kept={last.name: tuple(range(last.n_units - 1))})
    once = copy.deepcopy(model)
    half = prune_(model, layout, first)
    plan = make(half)
    kept = {name: units for name, units in plan.kept.items() if name != last.name}
    kept[last.name] = tuple(range(max(1, last.n_units // 2)))
    plan = PruningPlan(kept=kept, shape=plan.shape)
    pruned = prune_(model, half, plan)
    assert pruned == prune_(once, layout, plan)
    assert torch.equal(logits(model), logits(once))
    # Where one layer alone has a kind of unit, the first plan already went into the stock keys.
    described = ARCHITECTURES.target(layout.model_type).layout
    assert described(model.config.to_dict()) == described(once.config.to_dict())


@ONCE
def test_a_pruned_model_still_trains_where_it_did_before(model, layout):
    name = f"{layout.linears[-2].name}.weight"
    model.requires_grad_(requires_grad=False)
    model.get_parameter(name).requires_grad_()
    plan = uneven(layout)
    prune_(model, layout, plan)
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert trained == [Renaming(layout, plan)(name)]


@ONCE
def test_a_plan_for_another_model_is_refused_before_anything_changes(model, layout):
    before = logits(model)
    first = layout.groups[0]
    for wrong in ({"model.layers.7.mlp": (0,)}, {first.name: (0, first.n_units)}):
        plan = PruningPlan(kept={**wrong, layout.groups[-1].name: (0,)})
        with pytest.raises(BadInputError, match="another model"):
            prune_(model, layout, plan)
    assert torch.equal(logits(model), before)


@ONCE
def test_a_model_that_is_not_its_layout_is_refused_before_anything_changes(model, layout):
    last = layout.linears[-1]
    parent, _, leaf = last.name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, torch.nn.Identity())
    with pytest.raises(IncompatibleShapeError, match=last.name):
        prune_(model, layout, uneven(layout))
    first = layout.linears[0]
    assert model.get_submodule(first.name).weight.shape == first.weight_shape


# Depth ----------------------------------------------------------------------------------------


def skip_(model: Any, layout: ModelLayout, layer: int) -> None:
    """Let a layer hand on what it is given."""

    def hand_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states

    model.get_submodule(f"{layout.layer_prefix}.{layer}").forward = hand_on


@pytest.mark.parametrize("layer", [0, 1])
def test_dropped_layers_leave_whole_and_the_others_move_up(family, model, layout, layer):
    thin = {k: v for k, v in silent(uneven(layout), layout).kept.items()}
    thin = {name: kept for name, kept in thin.items() if layout.group(name).layer != layer}
    expected = copy.deepcopy(model)
    skip_(expected, layout, layer)
    zero_removed_(expected, layout, PruningPlan(kept=thin))
    pruned = prune_(model, layout, PruningPlan(kept=thin, dropped_layers=(layer,)))
    torch.testing.assert_close(logits(model), logits(expected), rtol=0.0, atol=1e-10)
    assert len(model.get_submodule(layout.layer_prefix)) == pruned.n_layers == 1
    first = f"{layout.layer_prefix}.0."
    assert all(f"{group.name}.".startswith(first) for group in pruned.groups)
    assert count(model) == pruned.parameters
    assert ARCHITECTURES.target(family).layout(model.config.to_dict()).groups == pruned.groups
    agrees_with_its_cache(model)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_model_without_a_layer_opens_with_the_plain_class(
    family, model, layout, layer, tmp_path
):
    pruned = prune_(model, layout, PruningPlan(kept={}, dropped_layers=(layer,)))
    folder = save(model, pruned, tmp_path / "saved", remote_code=False)
    again = reopen(folder, family, remote_code=False)
    torch.testing.assert_close(logits(again), logits(model), rtol=0.0, atol=1e-12)


@ONCE
@pytest.mark.usefixtures("code_cache")
def test_uneven_widths_around_a_dropped_layer_open_with_the_code(case, family, tmp_path):
    architecture = ARCHITECTURES.target(family)
    lists = {key: None for key in CASES[case][1] if key in ("layer_types", "no_rope_layers")}
    model = build(case, **{architecture.keys["layers"]: 4}, **lists)
    layout = architecture.layout(model.config.to_dict())
    plan = PruningPlan(kept=uneven(layout).kept, dropped_layers=(1,))
    pruned = prune_(model, layout, plan)
    assert not opens_plainly(pruned)
    folder = save(model, pruned, tmp_path / "saved", remote_code=True)
    again = reopen(folder, family, remote_code=True)
    torch.testing.assert_close(logits(again), logits(model), rtol=0.0, atol=1e-12)
    assert count(again) == pruned.parameters
    agrees_with_its_cache(again)
    is_described_by(folder, pruned)


# Biases ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("code_cache")
def test_an_added_bias_shifts_the_output_of_its_projection(family, model, layout, tmp_path: Path):
    name = outputs(layout)[-1]
    shift = torch.linspace(-1.0, 1.0, layout.hidden_size, dtype=torch.float64)
    seen = {}
    model.get_submodule(name).register_forward_hook(lambda *given: seen.update(now=given[2]))
    whole = logits(model)
    before = seen["now"]
    pruned = prune_(model, layout, PruningPlan(kept={}, biases=(name,)), {name: shift})
    shifted = logits(model)
    torch.testing.assert_close(seen["now"] - before, shift.expand_as(before))
    assert (shifted - whole).abs().max() > 1e-3
    assert count(model) == pruned.parameters
    folder = save(model, pruned, tmp_path / "saved", remote_code=True)
    again = reopen(folder, family, remote_code=True)
    torch.testing.assert_close(logits(again), shifted, rtol=0.0, atol=1e-12)
