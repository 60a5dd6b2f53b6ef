"""A training that was stopped or killed ends as one that never was, bit for bit."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trained_models import build, texts

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import NonFiniteLossError, StorageFullError
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.checkpoints import remove_checkpoint
from qpruner_core.recovery.lora import Recovered, recover

SPEC = RecoverySpec(
    steps=7,
    batch_size=4,
    micro_batch_size=2,
    sequence_length=12,
    rank=4,
    dropout=0.2,
    learning_rate=1e-2,
    checkpoint_steps=2,
)
WIDE = {"hidden_size": 64, "intermediate_size": 1088, "num_attention_heads": 4}
"""Adapters of the MLP have more than 4096 entries, so that 8-bit optimisers work on 8 bits."""


class Killed(BaseException):
    """What a test ends a training with."""


class Training:
    """The same training as often as it is asked for, each time on a fresh model."""

    def __init__(self, folder: Path, spec: RecoverySpec) -> None:
        self.model, self.layout = build("llama", torch.float32, **WIDE)
        self.plan = PrecisionPlan.uniform(self.layout, "int8")
        pack_(self.model, self.layout, self.plan, torch.float32)
        self.folder, self.spec = folder, spec

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def run(self, **changes: Any) -> Recovered:
        torch.manual_seed(
            hash(str(self.folder)) % 1000
        )  # what the process drew before is no matter
        arguments = {
            "evaluate": lambda *_: Metrics(loss=1.0, accuracy=0.0, weight_bytes=1, device="cpu"),
            "folder": self.folder / "adapter",
            "checkpoint": self.checkpoint,
            "identity": "these weights",
        }
        model = copy.deepcopy(self.model)
        given = {**arguments, **changes}
        return recover(model, self.layout, self.plan, self.spec, texts(), **given)

    def adapter(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "adapter" / "adapter_model.safetensors")


def stop_after(n_steps: int) -> Callable[[], bool]:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > n_steps

    return should_stop


def kill_after(n_steps: int) -> Callable[[Progress], None]:
    def tell(report: Progress) -> None:
        if report.done == n_steps:
            raise Killed

    return tell


def same(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> bool:
    return these.keys() == those.keys() and all(torch.equal(these[k], those[k]) for k in these)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("killed_at", [1, 3, 4, 7])
def test_a_killed_training_ends_with_the_very_losses_and_adapter(
    tmp_path: Path, optimizer: str, checkpointing: bool, killed_at: int
) -> None:
    spec = replace(SPEC, optimizer=optimizer, gradient_checkpointing=checkpointing)
    whole, broken = Training(tmp_path / "a", spec), Training(tmp_path / "b", spec)
    expected = whole.run()
    with pytest.raises(Killed):
        broken.run(on_progress=kill_after(killed_at))
    seen: list[Progress] = []
    found = broken.run(on_progress=seen.append)
    assert found.losses == expected.losses
    assert same(broken.adapter(), whole.adapter())
    # A kill at 7 comes after the last checkpoint: only saving is left to do.
    resumed_at = killed_at if killed_at == spec.steps else 2 * (killed_at // 2)
    assert [report.done for report in seen] == list(range(resumed_at + 1, spec.steps + 1))
    assert found.peak_memory_bytes == expected.peak_memory_bytes


@pytest.mark.parametrize("stopped_at", [0, 3, 5])
def test_a_stopped_training_keeps_its_adapter_and_goes_on_at_that_very_step(
    tmp_path: Path, stopped_at: int
) -> None:
    whole, broken = Training(tmp_path / "a", SPEC), Training(tmp_path / "b", SPEC)
    expected = whole.run()
    stopped = broken.run(should_stop=stop_after(stopped_at))
    assert stopped.losses == expected.losses[:stopped_at]
    assert broken.adapter()
    assert broken.checkpoint.exists()
    seen: list[Progress] = []
    found = broken.run(on_progress=seen.append)
    assert found.losses == expected.losses
    assert [report.done for report in seen] == list(range(stopped_at + 1, SPEC.steps + 1))
    assert same(broken.adapter(), whole.adapter())


def test_a_training_that_has_ended_is_read_again_until_its_checkpoint_is_removed(
    tmp_path: Path,
) -> None:
    training = Training(tmp_path, SPEC)
    first, seen = training.run(), []
    assert training.run(on_progress=seen.append).losses == first.losses
    assert seen == []
    remove_checkpoint(training.checkpoint)
    assert not training.checkpoint.exists()
    remove_checkpoint(training.checkpoint)  # one that is not there is no matter
    assert training.run(on_progress=seen.append).losses == first.losses
    assert len(seen) == SPEC.steps


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "other weights"},
        {"spec": replace(SPEC, rank=2)},
        {"spec": replace(SPEC, learning_rate=2e-2)},
    ],
    ids=["weights", "rank", "rate"],
)
def test_a_checkpoint_of_another_training_is_not_taken_up(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    broken = Training(tmp_path, SPEC)
    broken.run(should_stop=stop_after(3))
    broken.spec = change.pop("spec", broken.spec)
    seen: list[Progress] = []
    broken.run(on_progress=seen.append, **change)
    assert seen[0].done == 1


def test_without_checkpoints_a_stopped_training_leaves_none(tmp_path: Path) -> None:
    training = Training(tmp_path, replace(SPEC, checkpoint_steps=0))
    stopped = training.run(should_stop=stop_after(3))
    assert len(stopped.losses) == 3
    assert not training.checkpoint.exists()


def test_a_loss_that_is_no_number_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    training = Training(tmp_path, SPEC)
    spoilt: list[Any] = []

    def spoil(report: Progress) -> None:
        if report.done == 5:
            spoilt[0].lm_head.weight.data.fill_(float("nan"))

    def remember(model: Any, _: int) -> Metrics:
        spoilt.append(model)
        return Metrics(loss=1.0, accuracy=0.0, weight_bytes=1, device="cpu")

    with pytest.raises(NonFiniteLossError, match="step 6 of 7"):
        training.run(on_progress=spoil, evaluate=remember)
    state = json.loads((training.checkpoint / "checkpoint.json").read_text())
    assert len(state["losses"]) == 4
    assert len(training.run().losses) == SPEC.steps


def test_a_checkpoint_holds_safe_files_alone_and_one_of_them(tmp_path: Path) -> None:
    training = Training(tmp_path, replace(SPEC, optimizer="adamw_8bit"))
    training.run(should_stop=stop_after(5))
    names = sorted(path.name for path in training.checkpoint.iterdir())
    assert len(names) == 2
    assert names[1] == "checkpoint.json"
    assert names[0].endswith("-step-5.safetensors")
    tensors = load_file(training.checkpoint / names[0])
    assert any(tensor.dtype == torch.uint8 and "state1" in k for k, tensor in tensors.items())
    assert sum("qmap1" in name for name in tensors) == 1


def test_a_full_disk_is_a_sentence_and_leaves_the_checkpoint_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, SPEC)
    training.run(should_stop=stop_after(3))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qpruner_core.models.tensor_file.save_file", full)
        with pytest.raises(StorageFullError, match="checkpoint of the training could not be"):
            training.run()
    seen: list[Progress] = []
    training.run(on_progress=seen.append)
    assert seen[0].done == 4


def test_a_folder_that_was_half_removed_or_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    training = Training(tmp_path, SPEC)
    expected = training.run(should_stop=stop_after(3)).losses
    left, broken = sorted(training.checkpoint.iterdir(), reverse=True), tmp_path / "broken"
    shutil.copytree(training.checkpoint, broken)
    (broken / left[0].name).unlink()
    found = training.run(checkpoint=broken, should_stop=stop_after(1))
    assert found.losses == expected[:1], "a checkpoint without its tensors is none"
    (training.checkpoint / "checkpoint.json").unlink()
    (training.checkpoint / ".step-4.safetensors").write_bytes(b"half")
    seen: list[Progress] = []
    found = training.run(on_progress=seen.append, should_stop=stop_after(3))
    assert seen[0].done == 1
    assert found.losses == expected
    names = sorted(path.name for path in training.checkpoint.iterdir())
    assert len(names) == 2
    assert names[1] == "checkpoint.json"
    assert names[0].endswith("-step-3.safetensors")


def test_a_training_that_is_killed_while_it_saves_leaves_the_checkpoint_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first = Training(tmp_path / "a", SPEC), Training(tmp_path / "b", SPEC)
    expected = whole.run()
    first.run(should_stop=stop_after(2))
    real = os.replace

    def replace_tensors_alone(source: Path, target: Path) -> None:
        if target.name == "checkpoint.json":
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("qpruner_core.recovery.checkpoints.os.replace", replace_tensors_alone)
        with pytest.raises(Killed):
            first.run(identity="other weights")
    found = first.run()
    assert found.losses == expected.losses
    assert same(first.adapter(), whole.adapter())
