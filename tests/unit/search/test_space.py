"""Units, codes and bytes of a search space."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import dense_bytes, parse_budget, plan_bytes
from qpruner_core.domain.layout import LinearLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.errors import BadInputError, InfeasibleBudgetError, UnknownNameError
from qpruner_core.search.space import SearchSpace


def test_units_are_named_by_their_tie_and_come_in_forward_order(make_space):
    assert list(make_space(2, tie="layer").units) == ["layer.0", "layer.1"]
    assert list(make_space(1, tie="block").units) == ["layer.0.attention", "layer.0.mlp"]
    fused = make_space(1, tie="fused").units
    assert list(fused) == [
        "layer.0.qkv",
        "layer.0.o_proj",
        "layer.0.gate_up",
        "layer.0.down_proj",
    ]
    assert [name.rpartition(".")[2] for name in fused["layer.0.qkv"]] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
    linear = make_space(2, tie="linear")
    assert [names for (names,) in linear.units.values()] == [
        linear_.name for linear_ in linear.layout.linears
    ]


def named(*names: str) -> list[LinearLayout]:
    """Linears of one layer of that name; those of attention have it in their name."""
    return [
        LinearLayout(
            name=name,
            layer=7,
            role=name.rpartition(".")[2],
            block="attention" if "att" in name else "mlp",
            out_features=64,
            in_features=64,
        )
        for name in names
    ]


@pytest.mark.parametrize(
    ("names", "fused", "linear"),
    [
        (
            ["model.layers.7.self_attn.qkv_proj", "model.layers.7.mlp.gate_up_proj"],
            ["layer.7.qkv_proj", "layer.7.gate_up_proj"],
            ["layer.7.qkv_proj", "layer.7.gate_up_proj"],
        ),
        (
            ["model.decoder.layers.7.self_attn.out_proj", "model.decoder.layers.7.fc1"],
            ["layer.7.out_proj", "layer.7.fc1"],
            ["layer.7.out_proj", "layer.7.fc1"],
        ),
        (
            ["transformer.h.7.attn.c_proj", "transformer.h.7.mlp.c_proj"],
            ["layer.7.attention.c_proj", "layer.7.mlp.c_proj"],
            ["layer.7.attention.c_proj", "layer.7.mlp.c_proj"],
        ),
        (
            [
                f"model.layers.7.mlp.experts.{e}.{role}"
                for e in (0, 11)
                for role in ("gate_proj", "up_proj", "down_proj")
            ],
            [
                f"layer.7.experts.{e}.{part}"
                for e in (0, 11)
                for part in ("gate_up", "gate_up", "down_proj")
            ],
            [
                f"layer.7.experts.{e}.{role}"
                for e in (0, 11)
                for role in ("gate_proj", "up_proj", "down_proj")
            ],
        ),
    ],
    ids=["fused", "beside the layer", "shared role", "experts"],
)
def test_linears_of_other_families_are_tied_as_gate_and_up_or_stand_alone(
    make_layout, names, fused, linear
):
    layout = replace(make_layout(1), linears=tuple(named(*names)), n_layers=8)
    for tie, expected in (("fused", fused), ("linear", linear)):
        units = SearchSpace(layout, ("nf4", "bf16"), tie).units
        assert list(units) == list(dict.fromkeys(expected))
        found = {name: unit for unit, members in units.items() for name in members}
        assert [found[name] for name in names] == expected


@pytest.mark.parametrize("tie", ["layer", "block", "fused", "linear"])
def test_every_linear_belongs_to_exactly_one_unit(make_space, tie):
    space = make_space(3, tie=tie)
    members = [name for names in space.units.values() for name in names]
    assert sorted(members) == sorted(linear.name for linear in space.layout.linears)


def test_precisions_are_sorted_by_bytes_whatever_order_they_are_given_in(make_space):
    space = make_space(precisions=("bf16", "nf4", "int8"))
    assert space.precisions == ("nf4", "int8", "bf16")
    uniform = [space.code_bytes((c,) * len(space.units)) for c in range(3)]
    assert uniform == sorted(uniform)


@pytest.mark.parametrize("tie", ["layer", "fused"])
def test_plan_choices_code_and_key_say_the_same(make_space, tie):
    space = make_space(3, tie=tie)
    code = tuple(i % 3 for i in range(len(space.units)))
    plan = space.decode(code)
    assert space.code(plan) == code
    assert space.plan(space.choices(plan)) == plan
    assert space.plan_of_key(plan.key) == plan
    assert list(plan.precisions) == [linear.name for linear in space.layout.linears]


def test_bytes_are_those_of_the_footprint(make_space):
    space = make_space(4)
    code = (0, 1, 2, 1)
    expected = plan_bytes(space.layout, space.decode(code), precision_formats())
    assert space.code_bytes(code) == space.bytes(space.decode(code)) == expected


def test_a_plan_outside_the_space_is_recognised_and_refused_as_a_code(make_space):
    space = make_space(2, precisions=("nf4", "int8"))
    bf16 = PrecisionPlan.uniform(space.layout, "bf16")
    mixed = {linear.name: "nf4" for linear in space.layout.linears}
    mixed[space.layout.linears[0].name] = "int8"
    torn = PrecisionPlan(precisions=mixed)
    assert bf16 not in space
    assert torn not in space
    assert PrecisionPlan.uniform(space.layout, "int8") in space
    with pytest.raises(BadInputError, match="bf16"):
        space.code(bf16)
    with pytest.raises(BadInputError, match=r"layer\.0"):
        space.code(torn)


def test_missing_and_unknown_units_are_all_named(make_space):
    with pytest.raises(BadInputError, match=r"layer\.1.*layer\.9"):
        make_space(2).plan({"layer.0": "nf4", "layer.9": "nf4"})


def test_a_budget_below_the_smallest_plan_is_told_one_that_works(make_space):
    space = make_space(4)
    with pytest.raises(InfeasibleBudgetError, match=f"{space.smallest_bytes} B") as error:
        space.check_budget(space.smallest_bytes - 1)
    fraction = str(error.value).partition("a fraction of ")[2][:6]
    assert parse_budget(fraction, dense_bytes(space.layout)) >= space.smallest_bytes
    space.check_budget(parse_budget(f"{space.smallest_bytes} B", 1))


def test_a_fraction_refers_to_the_unpruned_model_when_it_is_known(make_layout):
    dense = 10 * dense_bytes(make_layout(2))
    space = SearchSpace(make_layout(2), ("nf4",), "layer", reference_bytes=dense)
    with pytest.raises(InfeasibleBudgetError, match=f"{space.smallest_bytes / dense:.2f}"):
        space.check_budget(1)


@pytest.mark.parametrize(
    ("precisions", "tie", "error"),
    [
        (("nf4",), "row", BadInputError),
        ((), "layer", BadInputError),
        (("nf5",), "layer", UnknownNameError),
    ],
)
def test_unknown_choices_are_refused(make_layout, precisions, tie, error):
    with pytest.raises(error):
        SearchSpace(make_layout(2), precisions, tie)


def test_fingerprints_differ_with_shape_tie_and_precisions(make_space):
    prints = [
        tuple(space.fingerprint.values())
        for space in (
            make_space(2),
            make_space(3),
            make_space(2, tie="block"),
            make_space(2, precisions=("nf4", "int8")),
        )
    ]
    assert len(set(prints)) == 4
    assert make_space(2).fingerprint == make_space(2).fingerprint


def test_the_search_room_is_imported_without_torch():
    names = ("gp", "knapsack", "pareto", "presets", "reading", "seeding", "space", "study", "tpe")
    code = "; ".join(f"import qpruner_core.search.{name}" for name in names)
    code += "; import sys; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_reading_and_predicting_do_not_even_need_optuna():
    names = ("knapsack", "pareto", "presets", "reading")
    code = "; ".join(f"import qpruner_core.search.{name}" for name in names)
    code += "; import sys; print('optuna' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
