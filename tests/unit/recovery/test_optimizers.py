from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trained_models import build, texts

from qpruner_core.catalog import OPTIMIZERS
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import BadInputError, DataTooShortError, UnknownNameError
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.lora import recover
from qpruner_core.recovery.optimizers import check_optimizer


def refuse(*_: Any) -> Any:
    raise AssertionError("nothing may be computed before a refusal")


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("paged_adamw", BadInputError, r"runs on cuda, but .* cpu\. Choose one of adamw, adamw_8"),
        ("paged_adamw_8bit", BadInputError, "runs on cuda"),
        ("adamm", UnknownNameError, "adamw"),
    ],
)
def test_an_optimiser_that_cannot_be_is_refused_before_anything_is_computed(
    tmp_path: Path, name: str, error: type[Exception], said: str
) -> None:
    model, layout = build("llama", torch.float32)
    plan = PrecisionPlan.uniform(layout, "bf16")
    pack_(model, layout, plan, torch.float32)
    spec = RecoverySpec(optimizer=name, steps=1)
    with pytest.raises(error, match=said):
        recover(model, layout, plan, spec, texts(), evaluate=refuse, folder=tmp_path / "a")


def test_every_optimiser_runs_on_cuda() -> None:
    for entry in OPTIMIZERS:
        check_optimizer(entry.name, "cuda")
    assert {entry.name for entry in OPTIMIZERS} >= {"adamw", "adamw_8bit"}


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_step_is_that_of_decoupled_weight_decay(name: str) -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(64, 80), torch.randn(64, 80)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = OPTIMIZERS.target(name)([parameter], 1e-2, 0.1)
    parameter.grad = gradient.clone()
    optimizer.step()
    # After one step both moments are the gradient's own, so that its sign is all that counts.
    wanted = start * (1 - 1e-2 * 0.1) - 1e-2 * gradient.sign()
    loose = 1e-6 if name == "adamw" else 5e-3
    torch.testing.assert_close(parameter.detach(), wanted, rtol=0.0, atol=loose)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_the_state_takes_what_the_catalogue_states(name: str) -> None:
    parameter = torch.nn.Parameter(torch.randn(256, 256))
    optimizer = OPTIMIZERS.target(name)([parameter], 1e-2, 0.0)
    parameter.grad = torch.randn(256, 256)
    optimizer.step()
    state = optimizer.state[parameter].values()
    held = sum(v.numel() * v.itemsize for v in state if torch.is_tensor(v) and v.numel() > 256)
    # The levels, 2 KiB, are shared by all parameters.
    stated = float(str(OPTIMIZERS.entry(name).facts["state_bytes"]))
    assert held / parameter.numel() == pytest.approx(stated, rel=0.05)


@pytest.mark.parametrize("spec", [RecoverySpec(targets=("c_fc",)), RecoverySpec()], ids=str)
def test_roles_and_text_that_cannot_be_are_refused_before_anything_is_computed(
    tmp_path: Path, spec: RecoverySpec
) -> None:
    model, layout = build("llama", torch.float32)
    plan = PrecisionPlan.uniform(layout, "bf16")
    nothing = TrainingSet.of_text(torch.empty(0, 16, dtype=torch.int64))
    with pytest.raises(BadInputError if spec.targets else DataTooShortError):
        recover(model, layout, plan, spec, nothing, evaluate=refuse, folder=tmp_path / "a")
    assert all(p.requires_grad for p in model.parameters())
