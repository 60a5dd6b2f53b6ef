from __future__ import annotations

import copy
import errno
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import StorageFullError
from qpruner_core.models.architectures import gpt2
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.adapter import save_adapter
from qpruner_core.recovery.lora import Recovered, recover
from qpruner_core.recovery.wrapping import add_adapters_

SPEC = RecoverySpec(steps=12, batch_size=4, sequence_length=16, learning_rate=1e-2, rank=4)
CYCLE = ("nf4", "int8", "bf16", "fp4")


@pytest.fixture
def plan(tiny_layout: ModelLayout) -> PrecisionPlan:
    names = [linear.name for linear in tiny_layout.linears]
    return PrecisionPlan(precisions={name: CYCLE[i % 4] for i, name in enumerate(names)})


@pytest.fixture
def packed(tiny_model: Any, tiny_layout: ModelLayout, plan: PrecisionPlan) -> Any:
    pack_(tiny_model, tiny_layout, plan, torch.float32)
    return tiny_model


@pytest.fixture
def training() -> TrainingSet:
    """Sequences that count upwards: something to learn."""
    starts = torch.arange(24).unsqueeze(1)
    return TrainingSet.of_text((starts + torch.arange(20)) % 64)


def constant(model: nn.Module, adapter_bytes: int) -> Metrics:
    del model
    return Metrics(loss=1.0, accuracy=0.5, weight_bytes=1000 + adapter_bytes, device="cpu")


def run(
    packed: Any, layout: ModelLayout, plan: PrecisionPlan, training: TrainingSet, folder: Path
) -> Recovered:
    return recover(packed, layout, plan, SPEC, training, evaluate=constant, folder=folder)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def test_the_loss_falls_on_a_model_of_mixed_precisions(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    recovered = run(packed, tiny_layout, plan, training, tmp_path / "adapter")
    assert len(recovered.losses) == SPEC.steps
    assert recovered.losses[-1] < 0.8 * recovered.losses[0]
    assert recovered.estimated_memory_bytes > 0
    assert recovered.peak_memory_bytes is not None
    assert 0.5 < recovered.peak_memory_bytes / recovered.estimated_memory_bytes < 2.0


@pytest.mark.parametrize("precision", CYCLE)
def test_the_gradient_reaches_the_adapters_of_every_precision(
    precision: str, tiny_model: Any, tiny_layout: ModelLayout, training: TrainingSet
) -> None:
    plan = PrecisionPlan.uniform(tiny_layout, precision)
    pack_(tiny_model, tiny_layout, plan, torch.float32)
    logits(tiny_model, training.ids[:2])  # an evaluating forward before training is the trap
    wrapped = add_adapters_(tiny_model, tiny_layout, SPEC).train()
    wrapped(input_ids=training.ids[:2], labels=training.ids[:2]).loss.backward()
    reached = {
        name: parameter.grad for name, parameter in wrapped.named_parameters() if "lora_B" in name
    }
    assert len(reached) == len(tiny_layout.linears)
    for name, gradient in reached.items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_adapters_learn_on_conv1d_modules_and_what_they_are_packed_into(
    training: TrainingSet, tmp_path: Path
) -> None:
    config = GPT2Config(
        vocab_size=128, n_embd=64, n_layer=2, n_head=2, n_positions=32, bos_token_id=0
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    layout = gpt2.FAMILY.layout(config.to_dict())
    turns = zip(layout.linears, CYCLE * len(layout.linears), strict=False)
    plan = PrecisionPlan(precisions={linear.name: name for linear, name in turns})
    pack_(model, layout, plan, torch.float32)
    twin = copy.deepcopy(model)
    recovered = run(model, layout, plan, training, tmp_path / "adapter")
    assert recovered.losses[-1] < 0.9 * recovered.losses[0]
    rank, sizes = SPEC.rank, [x.in_features + x.out_features for x in layout.linears]
    assert recovered.trainable_parameters == rank * sum(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells of every weight that lies the other way round
        twin.is_loaded_in_4bit = True
        again = PeftModel.from_pretrained(twin, recovered.adapter).eval()
    assert torch.equal(logits(again, training.ids[:2]), logits(recovered.model, training.ids[:2]))


def test_base_weights_stay_bit_for_bit(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    before = {name: copy.deepcopy(p.data) for name, p in packed.named_parameters()}
    states = {
        name: copy.deepcopy(packed.get_submodule(name).weight.quant_state)
        for name, precision in plan.precisions.items()
        if precision in ("nf4", "fp4")
    }
    run(packed, tiny_layout, plan, training, tmp_path / "adapter")
    after = {
        name.replace(".base_layer", ""): p.data
        for name, p in packed.named_parameters()
        if "lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    for name, state in states.items():
        kept = packed.get_submodule(name).base_layer.weight.quant_state
        assert torch.equal(kept.absmax, state.absmax)
        assert torch.equal(kept.state2.absmax, state.state2.absmax)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_saved_adapter_reloads_with_equal_logits(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    fresh = copy.deepcopy(packed)
    fresh.is_loaded_in_4bit = True
    recovered = run(packed, tiny_layout, plan, training, tmp_path / "adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    reloaded = PeftModel.from_pretrained(fresh, recovered.adapter).eval()
    expected = logits(recovered.model, training.ids[:3])
    assert torch.equal(logits(reloaded, training.ids[:3]), expected)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_a_sentence_and_leaves_the_adapter_that_was_there(
    packed: Any,
    tiny_layout: ModelLayout,
    failure: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapped, folder = add_adapters_(packed, tiny_layout, SPEC), tmp_path / "adapter"
    save_adapter(wrapped, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("qpruner_core.models.tensor_file.save_file", full)
    with pytest.raises(StorageFullError, match="adapter could not be saved"):
        save_adapter(wrapped, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_adapter_names_no_path_of_this_machine(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    packed.name_or_path = "/private/models/base"
    packed.config._name_or_path = "/private/models/base"
    run(packed, tiny_layout, plan, training, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "/private" not in json.dumps(written)
    assert written["r"] == SPEC.rank


def test_the_same_seed_trains_the_same_adapter_and_leaves_the_random_state_alone(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    twin = copy.deepcopy(packed)
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first = run(packed, tiny_layout, plan, training, tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(8)
    second = run(twin, tiny_layout, plan, training, tmp_path / "b")
    assert first.losses == second.losses


def test_metrics_after_count_the_adapter_file(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    recovered = run(packed, tiny_layout, plan, training, tmp_path / "adapter")
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert recovered.before.weight_bytes == 1000
    assert recovered.after.weight_bytes == 1000 + size
    wide = sum(x.in_features + x.out_features for x in tiny_layout.linears)
    assert recovered.trainable_parameters == SPEC.rank * wide


def test_progress_tells_loss_and_tokens_per_second_of_every_step(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    seen: list[Progress] = []
    recovered = recover(
        packed,
        tiny_layout,
        plan,
        SPEC,
        training,
        evaluate=constant,
        folder=tmp_path / "adapter",
        on_progress=seen.append,
    )
    assert [report.done for report in seen] == list(range(1, SPEC.steps + 1))
    assert tuple(report.values["loss"] for report in seen) == recovered.losses
    assert all(report.values["tokens_per_second"] > 0 for report in seen)
    assert {report.total for report in seen} == {SPEC.steps}


def test_stopping_keeps_the_adapter_as_it_is_then(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    asked: list[int] = []

    def after_three() -> bool:
        asked.append(1)
        return len(asked) > 3

    recovered = recover(
        packed,
        tiny_layout,
        plan,
        SPEC,
        training,
        evaluate=constant,
        folder=tmp_path / "adapter",
        should_stop=after_three,
    )
    assert len(recovered.losses) == 3
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_no_steps_leave_the_model_as_it_is(
    packed: Any,
    tiny_layout: ModelLayout,
    plan: PrecisionPlan,
    training: TrainingSet,
    tmp_path: Path,
) -> None:
    recovered = recover(
        packed,
        tiny_layout,
        plan,
        RecoverySpec(steps=0),
        training,
        evaluate=constant,
        folder=tmp_path / "adapter",
    )
    assert recovered.model is packed
    assert recovered.adapter == ""
    assert recovered.after == recovered.before
    assert list(tmp_path.iterdir()) == []
