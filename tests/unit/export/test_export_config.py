from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qpruner_core.domain.layout import opens_plainly
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.errors import BadInputError
from qpruner_core.export.config import config_values, storage_dtype
from qpruner_core.export.hf_16bit import EXPORTER
from qpruner_core.models.architectures import llama

UNIFORM = PruningPlan(
    kept={f"model.layers.{i}.mlp": tuple(range(64)) for i in (0, 1)}
    | {f"model.layers.{i}.self_attn": (1,) for i in (0, 1)},
    shape="uniform",
)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("pruning", [UNIFORM, None])
def test_the_layout_read_from_the_written_config_is_the_pruned_one(
    sample: Callable[..., Any], family: str, pruning: PruningPlan | None
) -> None:
    given = sample(family, **({} if pruning is None else {"pruning": pruning}))
    pruned = given.facts.layout
    values = config_values(given.packed, pruned, torch.bfloat16)
    read = llama.layout(values)
    assert read.linears == pruned.linears
    assert read.groups == pruned.groups
    assert ("qpruner_widths" in values) == (pruning is None)


def test_uniform_widths_stand_under_the_plain_keys(sample: Callable[..., Any]) -> None:
    given = sample(pruning=UNIFORM)
    assert opens_plainly(given.facts.layout)
    values = config_values(given.packed, given.facts.layout, torch.float16)
    assert values["num_key_value_heads"] == 1
    assert values["num_attention_heads"] == 2
    assert values["intermediate_size"] == 64
    assert values["head_dim"] == 32


def test_the_models_own_16_bit_dtype_is_kept() -> None:
    wide = [torch.tensor([1e6])]
    assert storage_dtype("F16", wide) == torch.float16
    assert storage_dtype("BF16", []) == torch.bfloat16
    assert storage_dtype("F32", [torch.tensor([0.5])]) == torch.float16
    assert storage_dtype("F32", wide) == torch.bfloat16


def test_the_16_bit_format_writes_bf16_whatever_was_chosen_and_refuses_packed_weights(
    sample: Callable[..., Any], tmp_path: Any
) -> None:
    given = sample()
    written = EXPORTER.plan_written(given.facts.layout, given.plan)
    assert written == PrecisionPlan.uniform(given.facts.layout, "bf16")
    with pytest.raises(BadInputError, match="fp4, int8, nf4, but 16-bit folders hold bf16"):
        EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
