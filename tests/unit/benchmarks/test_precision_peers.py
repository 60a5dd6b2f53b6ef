"""What the comparison of precision allocations rests on: equal bytes, fair rules, whose answer
is whose.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.spec import DataSpec
from qpruner_core.inspection import demo_folder

FOLDER = Path(__file__).parents[3] / "benchmarks"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setattr(sys, "path", [*sys.path])

    def module(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"benchmark_{name}", found)
        spec.loader.exec_module(found)
        return found

    return module


def test_bits_and_bytes_say_the_same(load: Load, tiny_layout: ModelLayout) -> None:
    scale = load("peer_plans").Scale(tiny_layout)
    plan = PrecisionPlan.uniform(tiny_layout, "int8")
    assert scale.of("bf16") == 16.0
    assert 4.0 < scale.of("nf4") < scale.of("int8")
    assert abs(scale.size_at(scale.bits(plan)) - scale.size(plan)) <= 1


def test_targets_lie_around_the_points_and_within_reach(load: Load) -> None:
    targets = load("peer_plans").targets_around((4.5, 6.0), 4.3, 8.1)
    assert targets == sorted(set(targets))
    assert targets[0] >= 4.36
    assert {4.5, 6.0, 6.25} <= set(targets)
    assert 5.2 not in targets


def test_trials_see_the_calibration_tokens_or_held_out_text_and_never_what_losses_are_of(
    load: Load, tmp_path: Path
) -> None:
    texts = load("precision_peers").texts
    same = texts(tmp_path, "calibration", quick=False)
    source = demo_folder() / "data" / "calibration.txt"
    assert Path(same.heldout).read_bytes() == source.read_bytes()
    assert same.heldout_tokens == same.calibration_tokens
    assert texts(tmp_path, "heldout", quick=False) == DataSpec(tasks="none")


@pytest.mark.parametrize("k", range(1, 13))
def test_every_rule_names_as_many_layers_as_asked(load: Load, k: int) -> None:
    for chosen in load("peer_plans").layer_orders(12, k).values():
        assert len(set(chosen)) == k
        assert set(chosen) <= set(range(12))


def test_uniform_plans_fill_the_budget_and_hold_it(load: Load, tiny_layout: ModelLayout) -> None:
    peers = load("peer_plans")
    scale = peers.Scale(tiny_layout)
    one = PrecisionPlan.by_layer(tiny_layout, ["int8"] + ["nf4"] * (tiny_layout.n_layers - 1))
    found = {plan.method: plan.plan for plan in peers.uniform_plans(scale, tiny_layout, 10**12)}
    assert found["int8 in the first layers"] == PrecisionPlan.uniform(tiny_layout, "int8")
    tight = [*peers.uniform_plans(scale, tiny_layout, scale.size(one))]
    assert {plan.method for plan in tight} >= {"nf4 everywhere", "int8 in the first layers"}
    assert max(scale.size(plan.plan) for plan in tight) == scale.size(one)


def test_of_a_sweep_the_largest_plan_that_fits_is_taken(
    load: Load, tiny_layout: ModelLayout
) -> None:
    peers = load("peer_plans")
    scale = peers.Scale(tiny_layout)
    plans = [PrecisionPlan.uniform(tiny_layout, name) for name in ("nf4", "int8", "bf16")]
    answer = [
        {"seconds": 1.0 + index, "precisions": {**plan.precisions, "lm_head": "bf16"}}
        for index, plan in enumerate(plans)
    ]
    found = peers.nearest_below("A", answer, tiny_layout, scale, scale.size(plans[1]))
    assert found is not None
    assert (found.plan, found.seconds) == (plans[1], 2.0)
    assert peers.nearest_below("A", answer, tiny_layout, scale, 10) is None


def test_both_peers_tie_the_linears_that_our_search_ties(
    load: Load, tiny_layout: ModelLayout
) -> None:
    names = [linear.name for linear in tiny_layout.linears]
    autoround, modelopt = load("autoround_peer"), load("modelopt_peer")
    assert autoround.shared_layers(names, "linear") is None
    assert [len(group) for group in autoround.shared_layers(names, "layer")] == [
        7
    ] * tiny_layout.n_layers
    sizes = {len(group) for group in autoround.shared_layers(names, "fused")}
    assert sizes == {2, 3}
    for tie in ("fused", "layer"):
        groups: dict[str, set[str]] = {}
        for rule in modelopt.GROUPS[tie]:
            for name in names:
                if (match := re.match(rule, name)) is not None:
                    groups.setdefault(f"{rule}{match[1]}", set()).add(name)
        asked = {frozenset(group) for group in autoround.shared_layers(names, tie)}
        assert {frozenset(group) for group in groups.values()} == asked


def test_a_recipe_is_told_apart_by_its_bits_and_the_head_left_out(load: Load) -> None:
    modelopt = load("modelopt_peer")
    bits = {"nf4": 4.3, "int8": 8.15}
    state = {
        "candidate_stats": {
            "a": {"module_names": ["model.layers.0.mlp.up_proj"]},
            "b": {"module_names": ["model.layers.1.mlp.up_proj"]},
            "head": {"module_names": ["lm_head"]},
        }
    }
    recipes = {
        name: SimpleNamespace(compression=value / 16)
        for name, value in (("a", 4.3), ("b", 8.15), ("head", 16.0))
    }
    assert modelopt.chosen(state, recipes, bits) == {
        "model.layers.0.mlp.up_proj": "nf4",
        "model.layers.1.mlp.up_proj": "int8",
    }
    assert [*modelopt.formats({"nf4": 4.3})] == ["nf4"]
    assert modelopt.formats(bits)["int8"]["effective_bits"] == 8.15


def test_without_the_environment_of_the_peers_their_rows_say_so(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, peers = load("peer_plans"), load("precision_peers")
    monkeypatch.setattr(plans, "PYTHON", tmp_path / "python")
    words = plans.ask_peer(tmp_path, "AutoScheme", {"threads": 1}, tmp_path)
    assert "peers-venv is missing" in words
    row = peers._empty(SimpleNamespace(name="demo"), "layer", 5.0, words)
    assert (row["method"], row["loss"], row["seconds"]) == (words, None, None)
