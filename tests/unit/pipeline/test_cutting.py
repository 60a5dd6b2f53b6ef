"""Rounds, whole layers and compensation, from the scores of a run to its pruned model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qpruner_core.domain.layout import opens_plainly
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import ExportSpec, ImportanceSpec, PruningSpec
from qpruner_core.errors import NotReadyError
from qpruner_core.importance import score
from qpruner_core.models.architectures import llama
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line, cutting
from qpruner_core.pipeline.cutting import in_dense_numbering, round_spec
from qpruner_core.pruning.selection import select


def asked(spec, **changes):
    return replace(spec, pruning=replace(spec.pruning, **changes))


def weights(line):
    return line._materials.pruned().model.state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_all_of_it_together_goes_down_the_line_and_reloads_bit_for_bit(
    start, go, deep_spec, tmp_path
):
    spec = asked(
        deep_spec,
        scope="balanced",
        compensation="bias",
        iterations=2,
        drop_layers=1,
    )
    spec = replace(spec, export=ExportSpec(out=str(tmp_path / "out")))
    record = go(start(spec), spec, *STEPS)
    pruned = record.prune
    assert record.next_step is None
    assert pruned.layout.n_layers == 3
    assert len(pruned.plan.dropped_layers) == 1
    assert pruned.plan.biases
    assert record.export.reload_logits_equal
    assert len(record.quantize.mutual_information) == 3
    whole = sum(record.load.layout.layer_parameters)
    left = sum(replace(pruned.layout, added_biases=()).layer_parameters)
    assert abs((whole - left) / whole - 0.4) < 0.06


def test_a_restarted_worker_builds_the_same_model_from_the_record(start, go, store, deep_spec):
    spec = asked(deep_spec, compensation="bias", iterations=2, drop_layers=1)
    line = start(spec)
    record = go(line, spec, *STEPS[:3])
    values = store.read_arrays(record.run_id, record.prune.biases)
    assert set(values) == set(record.prune.plan.biases)
    assert any(value.any() for value in values.values())
    again = Line(store, record.run_id, pick_device("cpu"))
    assert same(weights(again), weights(line))
    # And doing the step again decides the same.
    go(again, spec, "prune")
    assert again.record().prune == replace(
        record.prune, before=again.record().prune.before, after=again.record().prune.after
    )
    assert same(weights(again), weights(line))


def test_each_round_scores_the_model_as_pruned_so_far(start, go, deep_spec):
    spec = asked(deep_spec, iterations=2)
    line = start(spec)
    plan = go(line, spec, *STEPS[:3]).prune.plan

    dense = line._materials.dense()
    ids = line._materials.corpus().calibration
    half = round_spec(spec.pruning, 0.0, 1)
    assert half.ratio == pytest.approx(0.2)
    scores = score(dense.model, dense.layout, ids, ImportanceSpec(criteria=("wanda",)))
    first = select(dense.layout, scores.unit_scores["wanda"], half).plan
    line._materials.cut(first)
    left = line._materials.current()
    found = score(left.model, dense.layout.pruned(first), ids, ImportanceSpec(criteria=("wanda",)))
    expected = {}
    for group in dense.layout.groups:
        expected[group.name] = np.zeros(group.n_units, dtype=np.float32)
        kept = list(first.kept.get(group.name, range(group.n_units)))
        expected[group.name][kept] = found.unit_scores["wanda"][group.name]
    assert plan == select(dense.layout, expected, spec.pruning, removed=first).plan
    assert all(set(kept) <= set(first.kept.get(name, kept)) for name, kept in plan.kept.items())


def test_what_scoring_says_in_a_later_round_comes_with_the_pruning(
    start, go, deep_spec, monkeypatch
):
    spec = asked(deep_spec, iterations=3)
    line = start(spec)
    go(line, spec, *STEPS[:2])

    def idle(*given):
        return replace(score(*given), warnings=("1 of 8 experts saw no token.",))

    monkeypatch.setattr(cutting, "score", idle)
    assert go(line, spec, "prune").prune.warnings[:2] == (
        "Round 2, by the names of what was left: 1 of 8 experts saw no token.",
        "Round 3, by the names of what was left: 1 of 8 experts saw no token.",
    )


def test_one_round_decides_what_selection_alone_decides(start, go, store, deep_spec):
    line = start(deep_spec)
    record = go(line, deep_spec, *STEPS[:3])
    arrays = store.read_arrays(record.run_id, record.score.unit_scores)
    scores = {name.partition("/")[2]: a for name, a in arrays.items() if name[:6] == "wanda/"}
    assert record.prune.plan == select(record.load.layout, scores, deep_spec.pruning).plan
    assert record.prune.biases == ""


def test_layers_leave_by_block_influence_whether_it_was_scored_or_not(start, go, deep_spec):
    spec = asked(deep_spec, drop_layers=2, ratio=0.5)
    without = go(start(spec), spec, *STEPS[:3]).prune.plan
    known = replace(spec, importance=ImportanceSpec(criteria=("wanda", "block_influence"), seed=0))
    record = go(start(known), known, *STEPS[:3])
    influence = record.score.layer_values("block_influence")
    least = sorted(sorted(influence, key=lambda layer: influence[layer])[:2])
    assert list(record.prune.plan.dropped_layers) == least
    assert without == record.prune.plan


def test_uniform_widths_with_compensation_still_open_in_the_stock_class(start, go, deep_spec):
    spec = asked(deep_spec, shape="uniform", compensation="bias", kinds=("mlp_channels",))
    line = start(spec)
    pruned = go(line, spec, *STEPS[:3]).prune
    assert pruned.plan.biases
    assert opens_plainly(pruned.layout)
    config = line._materials.pruned().model.config
    stock = type(line._materials.pruned().model)(config)
    assert stock.state_dict().keys() == weights(line).keys()
    stock.load_state_dict(weights(line))


def test_pruning_without_scores_says_what_to_do(start, go, deep_spec):
    line = start(deep_spec)
    go(line, deep_spec, "load")
    line.begin(deep_spec, ("prune",))
    with pytest.raises(NotReadyError, match="Score it first"):
        line.step("prune")


def test_rounds_share_what_units_are_to_lose_and_the_last_asks_for_all_of_it():
    spec = PruningSpec(ratio=0.5, iterations=4, layer_ratios={"1": 0.8})
    ratios = [round_spec(spec, 0.1, number).ratio for number in (1, 2, 3, 4)]
    assert ratios == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert round_spec(spec, 0.1, 2).layer_ratios == {"1": 0.4}
    assert round_spec(spec, 0.1, 4) is spec
    deeper = replace(spec, ratio=0.05)
    assert round_spec(deeper, 0.1, 1).ratio == 0.05


def test_scores_of_a_pruned_model_come_back_in_the_numbering_of_the_dense_one(tiny_config):
    tiny_config.num_hidden_layers = 3
    layout = llama.layout(tiny_config.to_dict())
    plan = PruningPlan(
        kept={"model.layers.2.self_attn": (1,), "model.layers.2.mlp": (3, 5)}, dropped_layers=(1,)
    )
    scores = {
        "model.layers.0.self_attn": np.array([1.0, 2.0], dtype=np.float32),
        "model.layers.0.mlp": np.arange(128, dtype=np.float32),
        "model.layers.1.self_attn": np.array([7.0], dtype=np.float32),
        "model.layers.1.mlp": np.array([8.0, 9.0], dtype=np.float32),
    }
    found = in_dense_numbering(layout, plan, scores)
    assert found.keys() == {group.name for group in layout.groups}
    assert found["model.layers.0.mlp"].tolist() == list(range(128))
    assert found["model.layers.2.self_attn"].tolist() == [0.0, 7.0]
    assert np.flatnonzero(found["model.layers.2.mlp"]).tolist() == [3, 5]
    assert found["model.layers.2.mlp"][5] == 9.0
    assert not found["model.layers.1.mlp"].any()
