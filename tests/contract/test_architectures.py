"""Layout laws, over every family of the catalogue and the configs that move biases and heads.

The reference is always the real `transformers` model built from the same config.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BASE, CASES, FAMILIES, even, outputs, uneven
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from qpruner_core import catalog
from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import BIASES_KEY, KINDS, WIDTHS_KEY, UnitSlice
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.errors import UnsupportedModelError
from qpruner_core.inspection.folders import layout_of
from qpruner_core.models.coupled import coupled_groups

DERIVED = ("num_key_value_heads", "head_dim", "tie_word_embeddings")
"""Keys of which families have different defaults."""
WIDE = {"num_attention_heads": 32, "hidden_size": 1024}
"""Sizes that all those defaults fit, by the names that have them."""


def stored(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield name and module of every Linear below a prefix."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and name.startswith(prefix):
            yield name, module


def by_axis(parts: tuple[UnitSlice, ...]) -> dict[tuple[str, int], list[UnitSlice]]:
    """Return (tensor, axis) -> its slices by offset."""
    found: dict[tuple[str, int], list[UnitSlice]] = {}
    for part in sorted(parts, key=lambda part: part.offset):
        found.setdefault((part.tensor, part.axis), []).append(part)
    return found


def test_every_architecture_in_the_catalogue_is_tried():
    assert set(FAMILIES) == set(ARCHITECTURES.names())


def test_every_family_has_a_summary_of_its_own():
    summaries = [entry.summary for entry in ARCHITECTURES]
    assert len(set(summaries)) == len(summaries)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(UnsupportedModelError) as refused:
        layout_of({"model_type": "mamba", **BASE})
    assert "'mamba'" in str(refused.value)
    assert all(name in str(refused.value) for name in ARCHITECTURES.names())


def test_the_class_is_the_one_that_transformers_picks(family, model):
    assert ARCHITECTURES.target(family).class_name(family) == type(model).__name__


def test_the_layout_counts_the_parameters_of_the_model(model, layout):
    assert layout.parameters == sum(p.numel() for p in model.parameters())


def test_the_layout_counts_the_parameters_of_every_layer(model, layout):
    layers = model.get_submodule(layout.layer_prefix)
    assert layout.layer_parameters == tuple(
        sum(p.numel() for p in layer.parameters()) for layer in layers
    )


def test_every_linear_has_the_shape_and_bias_of_the_model(model, layout):
    found = {
        name: (tuple(module.weight.shape), module.bias is not None)
        for name, module in stored(model, layout.layer_prefix)
    }
    told = {x.name: (x.weight_shape, x.has_bias) for x in layout.linears}
    assert {name: told.get(name) for name in found} == found
    assert set(told) == set(found)


def test_linears_are_listed_in_forward_order(model, layout):
    called = []
    for linear in layout.linears:
        model.get_submodule(linear.name).register_forward_hook(
            lambda *_, name=linear.name: called.append(name)
        )
    model(input_ids=torch.arange(1, 25)[None])
    at_all = [name for name in dict.fromkeys(called)]
    assert [x.name for x in layout.linears if x.name in at_all] == at_all


def test_slices_cover_their_axis_without_gap_or_overlap(model, layout):
    for group in layout.groups:
        for (tensor, axis), parts in by_axis(group.slices).items():
            entries = [
                range(part.offset, part.offset + group.n_units * part.unit_size) for part in parts
            ]
            covered = [entry for each in entries for entry in each]
            assert covered == list(range(model.get_parameter(tensor).shape[axis])), tensor


def test_every_bias_beside_a_sliced_weight_is_sliced_too(model, layout):
    for group in layout.groups:
        sliced = {part.tensor for part in group.slices}
        for part in group.slices:
            module, _, leaf = part.tensor.rpartition(".")
            has_bias = getattr(model.get_submodule(module), "bias", None) is not None
            if leaf == "weight" and has_bias:
                assert (f"{module}.bias" in sliced) == (not part.is_input), part


def test_units_enter_the_residual_stream_through_inputs_alone(model, layout):
    for group in layout.groups:
        if not group.members:
            ends = [part for part in group.slices if part.is_input]
            assert len(ends) == 1, group.name
            linear = next(x for x in layout.linears if ends[0].tensor == f"{x.name}.weight")
            assert linear.out_features == layout.hidden_size


def test_a_unit_owns_as_many_parameters_as_its_views_hold(model, layout):
    for group in coupled_groups(model, layout):
        if not group.layout.members:
            per_unit = sum(piece.weights[0].numel() for piece in group.pieces())
            assert per_unit == group.layout.unit_parameters


@pytest.mark.parametrize("make", [uneven, even])
def test_pruning_the_layout_equals_the_layout_of_the_pruned_config(family, model, layout, make):
    plan = make(layout)
    pruned = layout.pruned(plan)
    widths = {group.name: group.n_units for group in pruned.groups}
    config = {**model.config.to_dict(), WIDTHS_KEY: widths}
    assert ARCHITECTURES.target(family).layout(config) == pruned


def test_added_biases_are_those_of_the_config(family, model, layout):
    pruned = layout.pruned(PruningPlan(kept={}, biases=tuple(outputs(layout))))
    config = {**model.config.to_dict(), BIASES_KEY: list(pruned.added_biases)}
    assert ARCHITECTURES.target(family).layout(config) == pruned


def test_removed_units_times_their_size_is_what_the_layout_loses(layout):
    for group in layout.groups:
        if group.n_units > 1:
            kept = tuple(range(group.n_units - 1))
            left = layout.pruned(PruningPlan(kept={group.name: kept}))
            assert layout.parameters - left.parameters == group.unit_parameters, group.name


def test_keys_that_a_config_leaves_out_get_the_family_default(family):
    base = FAMILIES[family].base
    values = {**base, **FAMILIES[family].config, **(WIDE if base is BASE else {})}
    sparse = {"model_type": family} | {k: v for k, v in values.items() if k not in DERIVED}
    filled = AutoConfig.for_model(**sparse)
    told = ARCHITECTURES.target(family).layout(sparse)
    complete = ARCHITECTURES.target(family).layout(filled.to_dict())
    assert told == complete


def test_lists_of_layers_that_a_config_leaves_out_are_those_of_transformers(case):
    n_layers = 31
    family, values = CASES[case]
    target = ARCHITECTURES.target(family)
    lists = {key: v for key, v in values.items() if key.endswith(("_types", "_layers"))}
    sparse = {key: v for key, v in values.items() if key not in lists or isinstance(v, int)}
    sparse = {"model_type": family, **sparse, target.keys["layers"]: n_layers}
    filled = AutoConfig.for_model(**sparse).to_dict()
    kept = range(0, n_layers, 2)
    told = target.fewer_layers(sparse, kept)
    for key in ("layer_types", "no_rope_layers"):
        if filled.get(key) and key in told:
            assert told[key] == [filled[key][layer] for layer in kept]
        else:
            assert set(filled.get(key) or [0]) <= {0, "full_attention"}, key


PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
ROW = re.compile(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|([^|]+)\|$", re.MULTILINE)


def test_the_page_names_what_every_config_can_state():
    told = {row[0]: row[1:] for row in ROW.findall(PAGE.read_text())}
    assert set(told) == set(ARCHITECTURES.names())
    for name, (can, cannot, why) in told.items():
        layouts = [
            ARCHITECTURES.target(name).layout({"model_type": name, **values})
            for family, values in CASES.values()
            if family == name
        ]
        first = layouts[0]
        kinds = {group.kind for layout in layouts for group in layout.groups}
        plain = {KINDS[kind] for kind in kinds & set(first.plain_kinds)}
        words = plain | ({"biases"} if first.plain_biases else set())
        assert set(can.strip().split(", ")) == words, name
        lacks_some = not all(linear.has_bias for linear in first.linears)
        rest = {KINDS[kind] for kind in kinds} | ({"biases"} if lacks_some else set())
        assert {word for word in cannot.strip().split(", ") if word} == rest - words, name
        assert ("`hidden_size`" in why) == first.heads_divide_hidden, name


def test_the_page_shows_a_family_as_it_is():
    page = PAGE.read_text()
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    file = Path(inspect.getfile(type(ARCHITECTURES.target("phi3")))).read_text()
    (family,) = (code for code in shown if "class Phi3" in code)
    assert file.endswith(family)
    (entry,) = (code for code in shown if 'name="phi3"' in code)
    flat = "".join(Path(inspect.getfile(catalog)).read_text().split())
    assert "".join(entry.split()) in flat


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "hidden_size as None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers as 0"),
        ({"vocab_size": "many"}, "vocab_size as 'many'"),
        ({"num_key_value_heads": 3}, "8 query heads and 3 KV heads"),
        ({"qpruner_widths": {"model.layers.7.mlp": 4}}, "model.layers.7.mlp"),
        ({"qpruner_widths": {"model.layers.0.mlp": 0}}, "model.layers.0.mlp as 0"),
        ({"qpruner_widths": [4]}, "holds a list"),
        ({"qpruner_biases": {"model.layers.0.mlp.up_proj": True}}, "a list of names"),
        ({"qpruner_biases": [7]}, "a list of names"),
        ({"qpruner_biases": ["model.layers.7.mlp.up_proj"]}, "model.layers.7.mlp.up_proj"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_a_sentence(change, words):
    config = {"model_type": "llama", **BASE, **change}
    with pytest.raises(UnsupportedModelError, match=words):
        ARCHITECTURES.target("llama").layout(config)


def test_layouts_load_no_torch():
    code = (
        "import sys; from qpruner_core.catalog import ARCHITECTURES as A; "
        "[A.target(n) for n in A.names()]; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
