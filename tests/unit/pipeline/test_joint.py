"""Pruning ratio and precision in one search, from the spec to an export that reloads bit for
bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qpruner_core.domain.joint import composed
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import ExportSpec, SearchSpec
from qpruner_core.errors import BadInputError, IncompatibleShapeError, InfeasibleRatioError
from qpruner_core.pipeline.joint import levels_words
from qpruner_core.quantization.level_bank import LevelBank


def joint(spec, kind="per-layer", ratios=(0.1, 0.6), **changes):
    return replace(spec, search=replace(spec.search, joint=kind, ratios=ratios, **changes))


def pruned_by(spec, **changes):
    return replace(spec, pruning=replace(spec.pruning, **changes))


@pytest.fixture
def spec(deep_spec):
    return replace(deep_spec, pruning=replace(deep_spec.pruning, ratio=0.3))


def mixed(record, levels):
    """Return a plan of those levels with int8 in the first half of the Linears."""
    names = [linear.name for linear in record.prune.layout.linears]
    half = len(names) // 2
    chosen = {name: "int8" if i < half else "bf16" for i, name in enumerate(names)}
    return PrecisionPlan(precisions=chosen, levels=levels)


@pytest.mark.parametrize(("kind", "tie"), [("per-layer", "layer"), ("global", "block")])
def test_a_joint_search_goes_down_the_line(start, go, spec, kind, tie):
    spec = joint(spec, kind, tie=tie, n_trials=4)
    record = go(start(spec), spec, *STEPS[:6])
    levels = record.quantize.levels
    assert [level.ratio for level in levels] == [0.3, 0.1, 0.6]
    assert (levels[0].plan, levels[0].layout) == (record.prune.plan, record.prune.layout)
    per_layer = 1 if tie == "layer" else 2
    cells = {(c.unit, c.level, c.precision) for c in record.quantize.sensitivities}
    assert len(cells) == len(record.quantize.sensitivities) == 4 * per_layer * 3 * 2
    dense = record.load.layout
    measured = [t for t in (*record.search.trials, *record.search.baselines) if t.metrics]
    assert len([trial for trial in measured if trial.number >= 0]) == 4
    for trial in measured:
        chosen = trial.plan.levels or (0, 0, 0, 0)
        assert kind == "per-layer" or len(set(chosen)) == 1
        layout = dense.pruned(composed(dense, levels, chosen))
        assert trial.metrics.weight_bytes == bytes_of(layout, trial.plan)


def bytes_of(layout, plan):
    from qpruner_core.catalog import precision_formats
    from qpruner_core.domain.footprint import plan_bytes

    return plan_bytes(layout, plan, precision_formats())


def test_a_plan_of_mixed_levels_is_recovered_generated_from_and_exported_bit_for_bit(
    start, go, spec, tmp_path
):
    spec = joint(spec)
    line = start(spec)
    record = go(line, spec, *STEPS[:6])
    trial = line.measure(mixed(record, (0, 2, 1, 0)))
    assert line.measure(trial.plan) == trial
    assert set(line.generate("ba ca", trial.number)) == {"prompt", "original", "compressed"}
    spec = replace(
        spec,
        recovery=replace(spec.recovery, trial=trial.number),
        export=ExportSpec(out=str(tmp_path / "out"), trial=trial.number),
    )
    record = go(line, spec, "recover", "export")
    assert record.export.reload_logits_equal
    assert record.export.max_logit_difference == 0.0
    assert record.recover.before.loss == pytest.approx(trial.metrics.loss, abs=1e-5)
    adapter_free = record.recover.before.weight_bytes
    assert adapter_free == trial.metrics.weight_bytes == record.export.planned_bytes
    dense, levels = record.load.layout, record.quantize.levels
    layout = dense.pruned(composed(dense, levels, trial.plan.levels))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["qpruner_widths"] == {group.name: group.n_units for group in layout.groups}
    listed = json.loads((tmp_path / "out" / "qpruner.json").read_text())
    assert listed["parameters"]["after"] == layout.parameters
    words = levels_words(dense, layout, levels, trial.plan)
    assert words.endswith(
        "with the layers as ratios of 0.1 in layer 2, 0.3 in layers 0, 3 and 0.6 in layer 1 prune "
        "them."
    )
    assert words in (tmp_path / "out" / "README.md").read_text()
    assert listed["notes"] == [words]


def test_sixteen_bit_exports_are_cut_by_the_levels_too(start, go, spec, tmp_path):
    spec = joint(spec, "global")
    line = start(spec)
    record = go(line, spec, *STEPS[:6])
    trial = line.measure(mixed(record, (2, 2, 2, 2)))
    out = tmp_path / "out"
    wanted = ExportSpec(out=str(out), trial=trial.number, format="hf_16bit")
    record = go(line, replace(spec, export=wanted), "export")
    assert record.export.reload_logits_equal
    listed = json.loads((out / "qpruner.json").read_text())
    assert listed["parameters"]["after"] == record.quantize.levels[2].layout.parameters
    assert "at a ratio of 0.6" in (out / "README.md").read_text()


def test_a_search_taken_up_by_another_process_builds_the_same_levels(start, go, spec, store):
    from qpruner_core.models.device import pick_device
    from qpruner_core.pipeline import Line

    spec = joint(spec)
    first = start(spec)
    record = go(first, spec, *STEPS[:6])
    second = Line(store, record.run_id, pick_device("cpu"))
    trial = second.measure(mixed(record, (1, 1, 2, 0)))
    bank = first._materials.search_bank(spec.search.precisions, record.quantize.levels)
    bank.apply(trial.plan)
    assert isinstance(bank, LevelBank)
    assert first._materials.suite().loss(bank.model) == trial.metrics.loss
    assert torch.equal(
        first._materials.pruned().model.state_dict()["model.layers.0.mlp.up_proj.weight"],
        second._materials.pruned().model.state_dict()["model.layers.0.mlp.up_proj.weight"],
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drop_layers": 1}, "1 of them leave whole"),
        ({"iterations": 2}, "2 rounds score what is left anew"),
        ({"compensation": "bias"}, "the compensation 'bias'"),
        ({"ratio": 0.1}, "name 0.1, the ratio the run is pruned by anyway"),
    ],
)
def test_what_does_not_go_with_a_joint_search_is_refused_before_anything_is_computed(
    start, spec, changes, words
):
    line = start(spec)
    with pytest.raises(BadInputError, match=words):
        line.begin(joint(pruned_by(spec, **changes)), STEPS)
    assert line.record().load is None


def test_a_ratio_that_no_selection_reaches_or_no_precision_carries_is_refused_at_once(start, spec):
    line = start(spec)
    far = joint(pruned_by(spec, protect_first=2), ratios=(0.9,))
    with pytest.raises(InfeasibleRatioError):
        line.begin(far, STEPS)
    with pytest.raises(IncompatibleShapeError, match=r"At a pruning ratio of 0\.6, nf4"):
        line.begin(joint(pruned_by(spec, ratio=0.0), ratios=(0.6,), precisions=("nf4",)), STEPS)
    assert line.record().load is None


def test_ratios_that_round_to_the_same_widths_are_told_apart_by_nobody(start, go, spec):
    spec = joint(spec, ratios=(0.3001,))
    line = start(spec)
    with pytest.raises(BadInputError, match="leave the very same widths"):
        go(line, spec, *STEPS[:4])


def test_other_ratios_than_were_measured_ask_for_the_quantising_step(start, go, spec):
    line = start(spec)
    go(line, joint(spec), *STEPS[:4])
    other = joint(spec, ratios=(0.1, 0.5))
    line.begin(other, ("search",))
    with pytest.raises(BadInputError, match=r"0\.3, 0\.1, 0\.5, but .* for 0\.3, 0\.1, 0\.6"):
        line.search_begin()


def test_levels_have_a_say_in_the_name_of_the_study(start, go, spec):
    line = start(spec)
    record = go(line, joint(spec, ratios=(0.1,)), *STEPS[:4])
    levels = record.quantize.levels
    other = replace(levels[1], plan=replace(levels[1].plan, kept=levels[0].plan.kept))
    changed = replace(record.quantize, levels=(levels[0], other))
    assert replace(record, quantize=changed).study_name != record.study_name
    plain = replace(record, spec=replace(record.spec, search=SearchSpec()))
    assert plain.study_name == replace(plain, quantize=None).study_name


def test_the_line_without_levels_says_nothing_of_them(start, go, spec, tmp_path):
    spec = replace(spec, export=ExportSpec(out=str(tmp_path / "out")))
    line = start(spec)
    record = go(line, spec, *STEPS[:6], "export")
    assert record.quantize.levels == ()
    assert "searched together" not in (Path(record.export.path) / "README.md").read_text()
