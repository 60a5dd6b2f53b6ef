"""The training estimate against the largest bytes of tensors alive at a time, temporary ones too:
what the allocator of a card would count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from weakref import ref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from qpruner_core.catalog import precision_formats, state_bytes_of
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.models.architectures import llama
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.memory import _scales
from qpruner_core.recovery.training import Steering, Trainer
from qpruner_core.recovery.wrapping import add_adapters_

SPEC = RecoverySpec(steps=2, batch_size=4, sequence_length=64, rank=8)
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches": {"micro_batch_size": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "low memory": {
        "micro_batch_size": 1,
        "gradient_checkpointing": True,
        "optimizer": "adamw_8bit",
    },
    "targets": {"targets": ("q_proj", "v_proj")},
}


class Alive(TorchDispatchMode):
    """Adds up the storages that operations return for as long as they live."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._refs: dict[int, ref[torch.UntypedStorage]] = {}
        self._now = self.highest = 0
        for tensor in there:
            self._note(tensor)

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return

        def gone(_: object) -> None:
            self._now -= self._sizes.pop(key, 0)

        self._sizes[key] = storage.nbytes()
        self._refs[key] = ref(storage, gone)
        self._now += storage.nbytes()
        self.highest = max(self.highest, self._now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("change", "precision"),
    [*((change, "nf4") for change in CHANGES), ("plain", "int8"), ("low memory", "bf16")],
)
def test_the_estimate_is_near_the_peak_of_all_tensors(
    change: str, precision: str, dtype: torch.dtype
) -> None:
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).eval().to(dtype)
    layout = llama.layout(config.to_dict())
    plan = PrecisionPlan.uniform(layout, precision)
    pack_(model, layout, plan, dtype)
    spec = replace(SPEC, **CHANGES[change])
    add_adapters_(model, layout, spec)
    trainer = Trainer(model, layout, spec)
    ids = torch.randint(0, 1024, (4, 64))
    with Alive((*(p.data for p in model.parameters()), *_scales(model))) as alive:
        trainer.run(TrainingSet.of_text(ids), Steering())
    load = TrainingLoad.of(spec, dtype.itemsize, state_bytes_of(spec.optimizer))
    estimate = training_bytes_estimate(layout, plan, precision_formats(), load).total
    assert alive.highest == pytest.approx(estimate, rel=0.1)
