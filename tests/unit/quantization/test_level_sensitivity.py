"""Sensitivities of further pruning levels equal a naive forward pass per cell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.models.device import Device
from qpruner_core.pipeline.joint import with_layers_of_its_own
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization import level_sensitivity
from qpruner_core.quantization.level_bank import LevelBank
from qpruner_core.quantization.level_sensitivity import measure_levels
from qpruner_core.quantization.sensitivity import BROKEN

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from qpruner_core.domain.layout import ModelLayout

CPU = Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.float32)
NAMES = ("int8", "bf16")


def by_layer(layout: ModelLayout) -> dict[str, tuple[str, ...]]:
    return {
        f"layer.{index}": tuple(li.name for li in layout.linears if li.layer == index)
        for index in range(layout.n_layers)
    }


def by_block(layout: ModelLayout) -> dict[str, tuple[str, ...]]:
    return {
        f"layer.{index}.{block}": tuple(
            li.name for li in layout.linears if (li.layer, li.block) == (index, block)
        )
        for index in range(layout.n_layers)
        for block in ("attention", "mlp")
    }


def naive_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.fixture
def bank(tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout) -> LevelBank:
    """Level 0 at a ratio of 0.3, level 1 dense, level 2 at 0.6."""
    spec = PruningSpec(protect_first=0, protect_last=0, scope="per-layer")
    chosen = [select(tiny_layout, None, replace(spec, ratio=r)) for r in (0.3, 0.0, 0.6)]
    models = [with_layers_of_its_own(tiny_model, tiny_layout) for _ in chosen]
    for model, found in zip(models, chosen, strict=True):
        prune_(model, tiny_layout, found.plan)
    return LevelBank(models, [found.layout for found in chosen], NAMES, CPU)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 128, (5, 16), generator=torch.Generator().manual_seed(0))


def layer_of(unit: str) -> int:
    return int(unit.split(".")[1])


def test_a_layer_that_is_one_unit_costs_its_loss_minus_the_reference(
    bank: LevelBank, ids: torch.Tensor
) -> None:
    units = by_layer(bank.layout)
    found = measure_levels(bank, units, ids)
    expected_order = [(lv, u, p) for lv in (1, 2) for u in units for p in NAMES]
    assert [(c.level, c.unit, c.precision) for c in found] == expected_order
    reference = naive_loss(bank.model, ids)
    for cell in found:
        bank.set_level(layer_of(cell.unit), cell.level)
        for name in units[cell.unit]:
            bank.set(name, cell.precision)
        expected = naive_loss(bank.model, ids) - reference
        for name in units[cell.unit]:
            bank.set(name, None)
        bank.restore()
        assert cell.loss_increase == pytest.approx(expected, abs=2e-6)


def test_finer_units_share_out_what_the_pruning_of_their_layer_costs(
    bank: LevelBank, ids: torch.Tensor
) -> None:
    units = by_block(bank.layout)
    found = {
        (c.unit, c.level, c.precision): c.loss_increase for c in measure_levels(bank, units, ids)
    }
    reference = naive_loss(bank.model, ids)
    for layer in range(bank.layout.n_layers):
        for level in (1, 2):
            bank.set_level(layer, level)
            pruned = naive_loss(bank.model, ids)
            alone = 0.0
            blocks = [unit for unit in units if layer_of(unit) == layer]
            for unit in blocks:
                for name in units[unit]:
                    bank.set(name, "int8")
                alone += naive_loss(bank.model, ids) - pruned
                for name in units[unit]:
                    bank.set(name, None)
            bank.restore()
            total = sum(found[unit, level, "int8"] for unit in blocks)
            assert total == pytest.approx(alone + pruned - reference, abs=5e-6)


def test_batches_add_up_to_the_whole_and_progress_to_the_end(
    bank: LevelBank, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_levels(bank, by_block(bank.layout), ids)
    monkeypatch.setattr(level_sensitivity, "TOKENS_PER_BATCH", 32)
    seen: list[Progress] = []
    parts = measure_levels(bank, by_block(bank.layout), ids, seen.append)
    for one, other in zip(parts, whole, strict=True):
        assert one.loss_increase == pytest.approx(other.loss_increase, abs=2e-6)
    # 2 layers, 2 levels: 2 blocks at 2 precisions each and the layer itself; 3 batches.
    assert [p.done for p in seen] == list(range(1, 2 * 2 * 5 * 3 + 1))
    assert {p.total for p in seen} == {60}
    assert seen[1].message == "sensitivity of layer.0.attention at pruning level 1, int8"


def test_the_model_ends_at_level_0_even_when_stopped(bank: LevelBank, ids: torch.Tensor) -> None:
    before = naive_loss(bank.model, ids)

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_levels(bank, by_layer(bank.layout), ids, stop)
    assert naive_loss(bank.model, ids) == before


def test_a_level_that_breaks_the_model_costs_its_cells_not_the_step(
    bank: LevelBank, ids: torch.Tensor
) -> None:
    broken = bank.banks[2].model
    with torch.no_grad():
        broken.model.layers[1].input_layernorm.weight.fill_(float("nan"))  # type: ignore[union-attr,index]
    found = measure_levels(bank, by_block(bank.layout), ids)
    is_broken = {(c.level, layer_of(c.unit)): c.loss_increase == BROKEN for c in found}
    assert is_broken == {(1, 0): False, (1, 1): False, (2, 0): False, (2, 1): True}
