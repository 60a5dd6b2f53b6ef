"""Sensitivities equal a naive forward pass per cell, and cost about half of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.domain.spec import TIES
from qpruner_core.errors import DataTooShortError, NonFiniteLossError
from qpruner_core.models.device import Device
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.reference import Reference
from qpruner_core.quantization.sensitivity import BROKEN, measure
from qpruner_core.search.space import SearchSpace
from qpruner_core.store.codec import from_json, to_json

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


def naive_logs(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of every predicted position in float64, (B, T - 1, V)."""
    with torch.no_grad():
        return model(input_ids=ids).logits[:, :-1].double().log_softmax(dim=-1)


def naive_divergence(reference: torch.Tensor, model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    other = naive_logs(model, ids)
    return float((reference.exp() * (reference - other)).sum(dim=-1).mean())


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("held_bytes", [0, 2 * 15 * 128 * 4, 2**28])
def test_every_cell_equals_a_whole_forward_pass(
    bank: Bank,
    tiny_model: LlamaForCausalLM,
    ids: torch.Tensor,
    tie: str,
    held_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def some_held(model: object, hidden: torch.Tensor, ids: torch.Tensor) -> Reference:
        return Reference(model, hidden, ids, held_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr("qpruner_core.quantization.sensitivity.Reference", some_held)
    units = SearchSpace(bank.layout, NAMES, tie).units
    found = measure(bank, units, ids)
    reference, logs = naive_loss(tiny_model, ids), naive_logs(tiny_model, ids)
    assert found.loss_16_bit == pytest.approx(reference, abs=1e-6)
    assert [(c.unit, c.precision) for c in found.cells] == [(u, p) for u in units for p in NAMES]
    for cell in found.cells:
        for name in units[cell.unit]:
            bank.set(name, cell.precision)
        expected = naive_loss(tiny_model, ids) - reference
        divergence = naive_divergence(logs, tiny_model, ids)
        bank.restore()
        assert cell.loss_increase == pytest.approx(expected, abs=2e-6)
        assert cell.kl == pytest.approx(divergence, rel=1e-3, abs=3e-7)
        assert cell.kl > 0.0


def test_in_double_precision_cells_are_exact(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout, ids: torch.Tensor
) -> None:
    tiny_model.double()
    bank = Bank(tiny_model, tiny_layout, ("int8",), CPU)
    logs = naive_logs(tiny_model, ids)
    for cell in measure(bank, by_layer(tiny_layout), ids).cells:
        for name in by_layer(tiny_layout)[cell.unit]:
            bank.set(name, "int8")
        assert cell.kl == pytest.approx(naive_divergence(logs, tiny_model, ids), rel=1e-9)
        bank.restore()


def test_a_precision_that_changes_no_weight_costs_nothing(
    tiny_model: LlamaForCausalLM, tiny_layout: ModelLayout, ids: torch.Tensor
) -> None:
    tiny_model.bfloat16().float()  # weights that bf16 holds as they are
    bank = Bank(tiny_model, tiny_layout, ("nf4", "bf16"), CPU)
    calls = []
    tiny_model.model.layers[1].register_forward_pre_hook(lambda *_: calls.append(1))
    cells = measure(bank, by_layer(tiny_layout), ids).cells
    unchanged = [cell for cell in cells if cell.precision == "bf16"]
    assert [(cell.loss_increase, cell.kl) for cell in unchanged] == [(0.0, 0.0)] * 2
    # Bypassed once, once for the reference, and once for every nf4 cell.
    assert len(calls) == 4


def test_a_precision_that_overflows_makes_its_cell_costly_and_no_other(
    bank: Bank, tiny_model: LlamaForCausalLM, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(bank, by_linear(bank.layout), ids)
    broken, show = "model.layers.1.mlp.up_proj", bank.set

    def overflowing(name: str, precision: str | None) -> None:
        show(name, precision)
        if (name, precision) == (broken, "int8"):
            tiny_model.get_parameter(f"{name}.weight").data = torch.full((128, 64), torch.inf)

    monkeypatch.setattr(bank, "set", overflowing)
    cells = measure(bank, by_linear(bank.layout), ids).cells
    for cell, sound in zip(cells, whole.cells, strict=True):
        if (cell.unit, cell.precision) == ("layer.1.up_proj", "int8"):
            assert (cell.loss_increase, cell.kl) == (BROKEN, BROKEN)
        else:
            assert cell == sound
    assert from_json(SensitivityCell, to_json(cells[0])) == cells[0]


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
        assert one.kl == pytest.approx(other.kl, rel=1e-3, abs=3e-7)


@pytest.mark.parametrize("held", [True, False])
def test_layers_before_the_changed_one_run_once_or_twice_where_states_are_not_held(
    bank: Bank,
    tiny_model: LlamaForCausalLM,
    ids: torch.Tensor,
    held: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qpruner_core.quantization import sensitivity

    whole = measure(bank, by_layer(bank.layout), ids)
    if not held:
        monkeypatch.setattr(sensitivity, "_STATE_BYTES", 0)
    calls = [0, 0]
    for index, layer in enumerate(tiny_model.model.layers):

        def count(*_: object, index: int = index) -> None:
            calls[index] += 1

        layer.register_forward_pre_hook(count)
    assert measure(bank, by_layer(bank.layout), ids) == whole
    bypassed = 1  # the pass that collects masks and positions touches each layer without work
    cells = len(NAMES)
    reference = 1
    again = 0 if held else 1  # the last layer is never walked past: nothing begins behind it
    assert calls == [bypassed + reference + cells + again, bypassed + reference + 2 * cells]


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


def test_a_token_that_is_ruled_out_adds_nothing_to_the_divergence(
    tiny_model: LlamaForCausalLM, ids: torch.Tensor
) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, other = torch.randn(2, *ids.shape, 64, generator=generator)

    def rule_out(_module: object, _given: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([7]), -torch.inf)

    tiny_model.lm_head.register_forward_hook(rule_out)
    allowed = ids.masked_fill(ids == 7, 8)
    with torch.no_grad():
        reference = Reference(tiny_model, hidden, allowed)
        loss, divergence = reference.compare(other)
        assert reference.compare(hidden) == (reference.loss, 0.0)
    assert 0.0 < divergence < 100.0
    assert loss < 100.0
