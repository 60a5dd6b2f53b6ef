"""A short training in a trial helps while it is asked for, and is gone afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from trained_models import build, texts

from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import BadInputError, NonFiniteLossError, StoppedError
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.trial import recovered

SPEC = RecoverySpec(steps=6, batch_size=4, sequence_length=12, rank=4, learning_rate=1e-2)
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
KINDS = ("dense", "nf4", "int8", "bf16")


def made(kind: str) -> tuple[Any, ModelLayout]:
    """A model whose Linears are dense and quantised in place, or packed."""
    model, layout = build("llama", torch.float32, **WIDE)
    if kind != "dense":
        pack_(model, layout, PrecisionPlan.uniform(layout, kind), torch.float32)
        return model, layout
    for linear in layout.linears:
        weight = model.get_submodule(linear.name).weight
        weight.data.copy_(PRECISIONS.target("nf4").fake_quantize(weight.data))
    return model, layout


def loss(model: Any) -> float:
    ids = texts().ids
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids, use_cache=False).loss)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_better_inside_and_the_very_same_afterwards(kind: str) -> None:
    model, layout = made(kind)
    before, modules = loss(model), dict(model.named_modules())
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.numel()}
    state = torch.random.get_rng_state()
    with recovered(model, layout, SPEC, texts()) as better:
        assert not better.training
        assert loss(better) < 0.9 * before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert dict(model.named_modules()) == modules
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in bits.items())
    assert loss(model) == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_gone_when_an_error_passes_and_the_next_one_learns_the_same(kind: str) -> None:
    model, layout = made(kind)
    before = loss(model)

    def broken() -> None:
        with recovered(model, layout, SPEC, texts()) as better:
            raise ValueError(str(loss(better)))

    with pytest.raises(ValueError, match=r"\d") as error:
        broken()
    assert loss(model) == before
    with recovered(model, layout, SPEC, texts()) as again:
        assert str(loss(again)) == str(error.value)


def test_it_is_gone_when_training_fails() -> None:
    model, layout = made("dense")
    norm, modules = model.model.norm.weight, dict(model.named_modules())
    kept = norm.data.clone()
    norm.data.fill_(float("nan"))
    with (
        pytest.raises(NonFiniteLossError, match="step 1"),
        recovered(model, layout, SPEC, texts()),
    ):
        pass
    norm.data.copy_(kept)
    assert dict(model.named_modules()) == modules
    assert all(p.requires_grad for p in model.parameters())


def test_what_cannot_be_is_refused_and_leaves_the_model_alone() -> None:
    model, layout = made("dense")
    modules = dict(model.named_modules())
    for change in ({"optimizer": "paged_adamw"}, {"targets": ("c_fc",)}):
        with (
            pytest.raises(BadInputError),
            recovered(model, layout, replace(SPEC, **change), texts()),
        ):
            pass
    assert dict(model.named_modules()) == modules
    assert "is_loaded_in_4bit" not in vars(model)


def test_asked_to_stop_it_yields_nothing_half_trained_and_leaves_the_model_as_it_was() -> None:
    model, layout = made("dense")
    before, asked = loss(model), iter([False, True])
    with (
        pytest.raises(StoppedError, match=f"after 1 of {SPEC.steps} steps"),
        recovered(model, layout, SPEC, texts(), should_stop=lambda: next(asked)),
    ):
        raise AssertionError("a plan that is half trained was yielded")
    assert loss(model) == before
