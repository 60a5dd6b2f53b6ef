"""Gradient checkpointing changes what is kept, and not a bit of what is learned."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from trained_models import FAMILIES, build, examples, texts

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.batches import Batch, batches
from qpruner_core.recovery.objective import batch_loss
from qpruner_core.recovery.recomputing import recomputed_layers
from qpruner_core.recovery.training import Steering, Trainer
from qpruner_core.recovery.wrapping import add_adapters_

SPEC = RecoverySpec(steps=1, batch_size=6, sequence_length=12, rank=2, dropout=0.3)


WIDE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}


def first_batch() -> Batch:
    return next(batches(examples(), SPEC))


def gradients(
    model: Any, layout: ModelLayout, *, checkpointing: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients with dropout on, which draws the same numbers every time."""
    batch = first_batch()
    torch.manual_seed(5)
    with ExitStack() as stack:
        if checkpointing:
            stack.enter_context(recomputed_layers(model, layout))
        loss = batch_loss(model.train(), batch, batch.n_learned, in_pieces=checkpointing)
        loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), found


def doubled_(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.double().normal_(std=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_a_training_that_keeps_all(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layout = build(family)
    add_adapters_(model, layout, SPEC)
    doubled_(model)
    loss, kept = gradients(model, layout, checkpointing=False)
    assert len(kept) == 2 * len(layout.linears)
    # Seven tokens at a time, so that there are several pieces and a shorter last one.
    monkeypatch.setattr("qpruner_core.recovery.objective.LOGITS_AT_ONCE", 7 * 128)
    again, recomputed = gradients(model, layout, checkpointing=True)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0.0)
    assert recomputed.keys() == kept.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-9, atol=1e-12)


def test_layers_below_the_first_adapter_and_uneven_ones_work_too() -> None:
    model, dense = build("llama", torch.float32, **WIDE)
    kept = {"model.layers.0.mlp": tuple(range(192)), "model.layers.1.mlp": tuple(range(64))}
    layout = prune_(model, dense, PruningPlan(kept=kept))
    pack_(model, layout, PrecisionPlan.uniform(layout, "nf4"), torch.float32)
    add_adapters_(model, layout, replace(SPEC, layer_ranks={"0": 0}))
    loss, kept_gradients = gradients(model, layout, checkpointing=False)
    again, recomputed = gradients(model, layout, checkpointing=True)
    torch.testing.assert_close(again, loss)
    assert recomputed.keys() == kept_gradients.keys()
    for name, gradient in kept_gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


def test_layers_are_given_back_as_they_were_even_after_an_error() -> None:
    model, layout = build("llama")

    def broken() -> None:
        with recomputed_layers(model, layout):
            assert "forward" in vars(model.model.layers[1])
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        broken()
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_without_gradients_nothing_is_computed_twice() -> None:
    model, layout = build("llama")
    ids = texts(2, 6).ids
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), recomputed_layers(model, layout):
        model(input_ids=ids, use_cache=False)
    assert len(calls) == 1


def test_a_training_that_recomputes_takes_less_memory_and_learns_the_same() -> None:
    def run(checkpointing: bool) -> tuple[int, tuple[float, ...]]:
        spec = replace(SPEC, steps=3, gradient_checkpointing=checkpointing)
        model, layout = build("llama", torch.float32, num_hidden_layers=6)
        torch.manual_seed(0)
        add_adapters_(model, layout, spec)
        standing = Trainer(model, layout, spec).run(texts(), Steering())
        return standing.peak_bytes, standing.losses

    (plain, losses), (less, again) = run(checkpointing=False), run(checkpointing=True)
    assert again == pytest.approx(losses, rel=1e-5)
    assert less < 0.8 * plain
