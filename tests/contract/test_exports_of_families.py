"""Both formats, for every family: an uneven model of mixed precisions reopens bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, even, logits, reopen, stir_, uneven
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.catalog import ARCHITECTURES, EXPORTERS, precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.layout import ModelLayout, opens_plainly
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import ModelCard
from qpruner_core.export import ExportFacts
from qpruner_core.models.device import Device
from qpruner_core.models.loader import round_to_16_bit_
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.packing import pack_, packed_bytes

CPU = Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.float32)
WIDE: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": 128, "n_inner": 128, "n_head": 2},
    "gpt_neox": {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2},
    "opt": {"hidden_size": 128, "ffn_dim": 128, "num_attention_heads": 2},
}
"""Where all heads have keys of their own, or a family calls its sizes otherwise."""
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "moe_intermediate_size": 128,
}
"""Sizes whose halves carry blocks of 64."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def model(family: str) -> Any:
    """A random model of 16-bit values, computed in float32."""
    made = FAMILIES[family]
    sizes = WIDE.get(family, SIZES)
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**made.base, **made.config, **sizes}),
        attn_implementation=made.attention,
        dtype=torch.float32,
    )
    stir_(built)
    round_to_16_bit_(built)
    return made.in_memory(built).eval()


@pytest.fixture
def layout(family: str, model: Any) -> ModelLayout:
    return ARCHITECTURES.target(family).layout(model.config.to_dict())


def mixed(layout: ModelLayout) -> PrecisionPlan:
    """All four precisions by turns."""
    turns = zip(layout.linears, cycle(("nf4", "int8", "fp4", "bf16", "nf4")), strict=False)
    return PrecisionPlan(precisions={linear.name: name for linear, name in turns})


def in_blocks(layout: ModelLayout) -> PruningPlan:
    """The uneven plan, with 64 channels in the first layer and all in the others."""
    kept = {}
    for name, units in uneven(layout).kept.items():
        group = layout.group(name)
        if not group.kind.endswith("channels"):
            kept[name] = units
        elif group.layer == 0:
            kept[name] = tuple(range(64))
    return PruningPlan(kept=kept)


def through(
    model: Any, dense: ModelLayout, pruning: PruningPlan, format_name: str, folder: Path
) -> tuple[ModelLayout, torch.Tensor]:
    """Prune, pack and export; return the layout and what the bank's dense candidates answer."""
    layout = prune_(
        model, dense, pruning, {name: torch.randn(dense.hidden_size) for name in pruning.biases}
    )
    round_to_16_bit_(model)
    exporter = EXPORTERS.target(format_name)
    plan = exporter.plan_written(layout, mixed(layout))
    bank = Bank(model, layout, tuple(dict.fromkeys(plan.precisions.values())), CPU)
    bank.apply(plan)
    expected = logits(model)
    bank.restore()
    pack_(model, layout, plan, torch.float32)
    assert torch.equal(logits(model), expected), "packed computes what was measured"
    assert packed_bytes(model) == plan_bytes(layout, plan, precision_formats())
    card = ModelCard(
        source="org/tiny",
        revision=None,
        title="Tiny",
        layout=dense,
        parameters=dense.parameters,
        file_bytes=2 * dense.parameters,
        dtype="BF16",
        max_positions=64,
    )
    facts = ExportFacts(card=card, layout=layout, pruning=pruning, plan=plan)
    exporter.export(model, None, facts, folder)
    return layout, expected


@pytest.mark.usefixtures("code_cache")
@pytest.mark.parametrize("format_name", EXPORTERS.names())
def test_uneven_widths_reopen_bit_for_bit(
    family: str, model: Any, layout: ModelLayout, format_name: str, tmp_path: Path
) -> None:
    pruned, expected = through(model, layout, in_blocks(layout), format_name, tmp_path / "out")
    assert not opens_plainly(pruned)
    assert torch.equal(
        logits(reopen(tmp_path / "out", family, remote_code=True, dtype=torch.float32)), expected
    )


@pytest.mark.usefixtures("code_cache")
@pytest.mark.parametrize("format_name", EXPORTERS.names())
def test_dropped_layers_and_added_biases_reopen_bit_for_bit(
    family: str, model: Any, layout: ModelLayout, format_name: str, tmp_path: Path
) -> None:
    ends = {p.tensor for g in layout.groups if g.layer for p in g.slices if p.is_input}
    biases = tuple(x.name for x in layout.linears if f"{x.name}.weight" in ends)
    plan = replace(in_blocks(layout), dropped_layers=(0,), biases=biases)
    plan = replace(plan, kept={n: u for n, u in plan.kept.items() if layout.group(n).layer})
    pruned, expected = through(model, layout, plan, format_name, tmp_path / "out")
    assert pruned.n_layers == layout.n_layers - 1
    assert torch.equal(
        logits(reopen(tmp_path / "out", family, remote_code=True, dtype=torch.float32)), expected
    )


def test_plain_widths_reopen_without_remote_code(
    family: str, model: Any, layout: ModelLayout, tmp_path: Path
) -> None:
    plan = even(layout, layout.plain_kinds)
    pruned, expected = through(model, layout, plan, "hf_16bit", tmp_path / "out")
    assert opens_plainly(pruned)
    assert not list((tmp_path / "out").glob("*.py"))
    assert torch.equal(
        logits(reopen(tmp_path / "out", family, remote_code=False, dtype=torch.float32)), expected
    )
