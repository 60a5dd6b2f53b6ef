from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional
from trained_models import build, examples, texts

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import NonFiniteLossError
from qpruner_core.recovery.batches import Batch, batches
from qpruner_core.recovery.objective import batch_loss
from qpruner_core.recovery.schedule import rate_factor
from qpruner_core.recovery.training import Steering, Trainer
from qpruner_core.recovery.wrapping import add_adapters_

SPEC = RecoverySpec(steps=4, batch_size=6, sequence_length=12, rank=2, learning_rate=1e-2)


def test_the_rate_rises_then_falls_and_never_stands_still() -> None:
    rates = [rate_factor(step, 20) for step in range(20)]
    assert rates[1] == 1.0
    assert rates[0] < rates[1]
    assert all(later < sooner for sooner, later in pairwise(rates[1:]))
    assert min(rates) > 0.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warm_up", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 60])
def test_the_rate_is_a_share_of_its_peak_for_any_number_of_steps(
    n_steps: int, warm_up: float, schedule: str
) -> None:
    rates = [rate_factor(step, n_steps, schedule, warm_up) for step in range(n_steps)]
    assert max(rates) == 1.0
    assert min(rates) > 0.0
    peak = rates.index(1.0)
    assert peak == max(1, round(warm_up * n_steps)) - 1
    if schedule == "constant":
        assert set(rates[peak:]) == {1.0}


def test_a_cosine_is_at_half_its_peak_half_way_down() -> None:
    assert rate_factor(10, 20, "cosine", 0.0) == pytest.approx(0.5)
    straight = [rate_factor(step, 20, "linear", 0.0) for step in range(20)]
    curved = [rate_factor(step, 20, "cosine", 0.0) for step in range(20)]
    assert curved[2] > straight[2]
    assert curved[-2] < straight[-2]


def gradients(model: Any, parts: list[Batch], n_learned: int) -> dict[str, torch.Tensor]:
    for part in parts:
        batch_loss(model, part, n_learned).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(n_rows: int) -> None:
    model, layout = build("llama")
    add_adapters_(model, layout, SPEC)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.double().normal_(std=0.1)
    (batch,) = batches(examples(), replace(SPEC, steps=1))
    uneven = {part.n_learned for part in batch.parts(n_rows)}
    assert len(uneven) > 1
    whole = gradients(model, [batch], batch.n_learned)
    added = gradients(model, list(batch.parts(n_rows)), batch.n_learned)
    for name, gradient in whole.items():
        torch.testing.assert_close(added[name], gradient, rtol=1e-10, atol=1e-12)


def test_the_loss_is_the_mean_over_the_learned_tokens() -> None:
    model, _ = build("llama")
    (batch,) = batches(examples(), replace(SPEC, steps=1))
    with torch.no_grad():
        kwargs = {"position_ids": batch.positions, "use_cache": False}
        logits = model(input_ids=batch.ids, **kwargs).logits
        loss = batch_loss(model, batch, batch.n_learned)
    wanted = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0.0)


def trained(family: str, spec: RecoverySpec, **steering: Any) -> tuple[Any, tuple[float, ...]]:
    model, layout = build(family, torch.float32)
    torch.manual_seed(0)
    add_adapters_(model, layout, spec)
    standing = Trainer(model, layout, spec).run(texts(), Steering(**steering))
    return model, standing.losses


def test_a_training_in_micro_batches_is_that_of_whole_batches() -> None:
    _, whole = trained("llama", SPEC)
    _, parts = trained("llama", replace(SPEC, micro_batch_size=2))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_weight_decay_pulls_adapters_towards_zero() -> None:
    def size(decay: float) -> float:
        model, _ = trained("llama", replace(SPEC, weight_decay=decay))
        return sum(float(p.detach().norm()) for n, p in model.named_parameters() if "lora_A" in n)

    assert size(20.0) < 0.9 * size(0.0)


def test_every_report_carries_the_loss_and_the_rate_of_its_step() -> None:
    seen: list[Progress] = []
    spec = replace(SPEC, schedule="cosine", warm_up=0.5)
    _, losses = trained("llama", spec, on_progress=seen.append)
    assert tuple(report.values["loss"] for report in seen) == losses
    rates = [1e-2 * rate_factor(step, 4, "cosine", 0.5) for step in range(4)]
    assert [report.values["learning_rate"] for report in seen] == rates


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_loss_that_is_no_number_names_its_step_and_leaves_eval_mode(
    tiny_model: Any, tiny_layout: ModelLayout, checkpointing: bool
) -> None:
    spec = replace(SPEC, gradient_checkpointing=checkpointing)
    add_adapters_(tiny_model, tiny_layout, spec)
    trainer = Trainer(tiny_model, tiny_layout, spec)
    told: list[Progress] = []

    def spoil(report: Progress) -> None:
        told.append(report)
        if report.done == 2:
            tiny_model.lm_head.weight.data.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match="step 3 of 4 is nan"):
        trainer.run(texts(), Steering(on_progress=spoil))
    assert not tiny_model.training
    assert len(told) == 2


def test_a_gradient_that_is_no_number_leaves_the_adapter_as_it_was(
    tiny_model: Any, tiny_layout: ModelLayout
) -> None:
    add_adapters_(tiny_model, tiny_layout, SPEC)
    down = next(m for n, m in tiny_model.named_modules() if n.endswith("down_proj.lora_B.default"))
    down.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = copy.deepcopy(tiny_model.state_dict())
    with pytest.raises(NonFiniteLossError, match="gradient of recovery step 1"):
        Trainer(tiny_model, tiny_layout, SPEC).run(texts(), Steering())
    after = tiny_model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
