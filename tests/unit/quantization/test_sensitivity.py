"""Sensitivities equal a naive forward pass per cell, and cost about half of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from qpruner_core.domain.progress import Progress
from qpruner_core.errors import DataTooShortError, NonFiniteLossError
from qpruner_core.models.device import Device
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.sensitivity import measure

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from qpruner_core.domain.layout import ModelLayout

CPU = Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.float32)
NAMES = ("nf4", "int8")


def by_layer(layout: ModelLayout) -> dict[str, tuple[str, ...]]:
    return {
        f"layer.{index}": tuple(li.name for li in layout.linears if li.layer == index)
        for index in range(layout.n_layers)
    }


def by_linear(layout: ModelLayout) -> dict[str, tuple[str, ...]]:
    return {f"layer.{li.layer}.{li.role}": (li.name,) for li in layout.linears}


def naive_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.fixture
def bank(tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout) -> Bank:
    return Bank(tiny_model, tiny_layout, NAMES, CPU)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 128, (5, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tie", [by_layer, by_linear])
def test_every_cell_equals_a_whole_forward_pass(
    bank: Bank, tiny_model: LlamaForCausalLM, ids: torch.Tensor, tie: object
) -> None:
    units = tie(bank.layout)  # type: ignore[operator]
    found = measure(bank, units, ids)
    reference = naive_loss(tiny_model, ids)
    assert found.loss_16_bit == pytest.approx(reference, abs=1e-6)
    assert [(c.unit, c.precision) for c in found.cells] == [(u, p) for u in units for p in NAMES]
    for cell in found.cells:
        for name in units[cell.unit]:
            bank.set(name, cell.precision)
        expected = naive_loss(tiny_model, ids) - reference
        bank.restore()
        assert cell.loss_increase == pytest.approx(expected, abs=2e-6)


def test_batches_add_up_to_the_whole(
    bank: Bank, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpruner_core.quantization import sensitivity

    whole = measure(bank, by_layer(bank.layout), ids)
    monkeypatch.setattr(sensitivity, "_TOKENS_PER_BATCH", 32)
    parts = measure(bank, by_layer(bank.layout), ids)
    assert parts.loss_16_bit == pytest.approx(whole.loss_16_bit, abs=1e-6)
    for one, other in zip(parts.cells, whole.cells, strict=True):
        assert one.loss_increase == pytest.approx(other.loss_increase, abs=2e-6)


def test_layers_before_the_changed_one_run_once(
    bank: Bank, tiny_model: LlamaForCausalLM, ids: torch.Tensor
) -> None:
    calls = [0, 0]
    for index, layer in enumerate(tiny_model.model.layers):

        def count(*_: object, index: int = index) -> None:
            calls[index] += 1

        layer.register_forward_pre_hook(count)
    measure(bank, by_layer(bank.layout), ids)
    bypassed = 1  # the pass that collects masks and positions touches each layer without work
    cells = len(NAMES)
    assert calls == [bypassed + cells + 1, bypassed + 2 * cells + 1]


def test_the_model_ends_as_it_was_even_when_stopped(
    bank: Bank, tiny_model: LlamaForCausalLM, ids: torch.Tensor
) -> None:
    before = naive_loss(tiny_model, ids)

    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(bank, by_layer(bank.layout), ids, stop)
    assert naive_loss(tiny_model, ids) == before


def test_progress_counts_to_the_end(bank: Bank, ids: torch.Tensor) -> None:
    seen: list[Progress] = []
    measure(bank, by_layer(bank.layout), ids, seen.append)
    assert [p.done for p in seen] == list(range(1, 5))
    assert {p.total for p in seen} == {4}
    assert seen[0].message == "sensitivity of layer.0 at nf4"


def test_too_little_text_is_answered_with_a_sentence(bank: Bank) -> None:
    with pytest.raises(DataTooShortError, match="one sequence of 2 tokens is needed"):
        measure(bank, by_layer(bank.layout), torch.zeros(0, 16, dtype=torch.long))


def test_a_loss_that_is_not_a_number_is_answered_with_a_sentence(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout, ids: torch.Tensor
) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    bank = Bank(tiny_model, tiny_layout, ("int8",), CPU)
    with pytest.raises(NonFiniteLossError, match="pruning ratio"):
        measure(bank, by_layer(tiny_layout), ids)
