from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qpruner_core.catalog import precision_formats
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.export.hf_mixed import EXPORTER
from qpruner_core.export.verify import reference_logits, weight_file_bytes
from qpruner_core.recovery.lora import recover

IDS = torch.arange(2 * 16).reshape(2, 16)
WHOLE = PruningPlan(kept={})


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=dtype)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_family_reopens_with_equal_logits(
    sample: Callable[..., Any], family: str, tied: bool, tmp_path: Path
) -> None:
    given = sample(family, tie_word_embeddings=tied)
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    model = opened(tmp_path / "out")
    assert torch.equal(reference_logits(model, IDS), reference_logits(given.reference, IDS))


def test_packed_weights_stay_packed_in_memory(sample: Callable[..., Any], tmp_path: Path) -> None:
    given = sample()
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    model = opened(tmp_path / "out")
    for name, precision in given.plan.precisions.items():
        module, source = model.get_submodule(name), given.packed.get_submodule(name)
        if precision == "bf16":
            continue
        assert torch.equal(module.weight.data, source.weight.data)
        assert isinstance(module, Linear4bit) == (precision in ("nf4", "fp4"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_also_computes_at_16_bit(
    sample: Callable[..., Any], tmp_path: Path, dtype: torch.dtype
) -> None:
    given = sample()
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    model = opened(tmp_path / "out", dtype)
    found = reference_logits(model, IDS)
    expected = reference_logits(given.reference, IDS)
    assert model.dtype == dtype
    assert torch.allclose(found, expected, atol=0.1 * float(expected.std()))


def test_the_dtype_is_the_models_own_when_the_person_names_none(
    sample: Callable[..., Any], tmp_path: Path
) -> None:
    given = sample(dtype=torch.bfloat16)
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.dtype == torch.bfloat16


def test_generation_with_a_cache_agrees_with_the_reference(
    sample: Callable[..., Any], tmp_path: Path
) -> None:
    given = sample()
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    found = opened(tmp_path / "out").generate(IDS, **settings)
    assert torch.equal(found, given.reference.generate(IDS, **settings))


def test_two_exports_open_in_one_process(sample: Callable[..., Any], tmp_path: Path) -> None:
    for name, precisions in (("a", ("nf4",)), ("b", ("int8",))):
        given = sample(precisions=precisions)
        EXPORTER.export(given.packed, None, given.facts, tmp_path / name)
        expected = reference_logits(given.reference, IDS)
        assert torch.equal(reference_logits(opened(tmp_path / name), IDS), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_recovery_adapter_goes_onto_the_reopened_model(
    sample: Callable[..., Any], tmp_path: Path
) -> None:
    given = sample()
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    recovered = recover(
        given.packed,
        given.facts.layout,
        given.plan,
        RecoverySpec(steps=3, batch_size=2, sequence_length=16, learning_rate=0.05),
        TrainingSet.of_text(IDS),
        evaluate=lambda *_: Metrics(loss=1.0, accuracy=0.0, weight_bytes=1, device="cpu"),
        folder=tmp_path / "adapter",
    )
    model = PeftModel.from_pretrained(opened(tmp_path / "out"), recovered.adapter).eval()
    expected = reference_logits(recovered.model, IDS)
    assert torch.equal(reference_logits(model, IDS), expected)
    assert not torch.equal(expected, reference_logits(given.reference, IDS))


@pytest.mark.parametrize("precision", ["nf4", "fp4", "int8", "bf16"])
def test_files_hold_no_more_than_planned_on_the_shape_of_the_demo(
    sample: Callable[..., Any], precision: str, tmp_path: Path
) -> None:
    given = sample(
        pruning=WHOLE,
        precisions=(precision,),
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    planned = plan_bytes(given.facts.layout, given.plan, precision_formats())
    assert weight_file_bytes(tmp_path / "out") / planned <= 1.02


def test_a_model_packed_by_another_plan_is_refused(
    sample: Callable[..., Any], tmp_path: Path
) -> None:
    given, other = sample(), sample(precisions=("bf16",))
    with pytest.raises(ValueError, match="is to be nf4"):
        EXPORTER.export(other.packed, None, given.facts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_plan_written_is_the_plan_given(sample: Callable[..., Any]) -> None:
    given = sample()
    assert EXPORTER.plan_written(given.facts.layout, given.plan) == given.plan
    assert isinstance(given.plan, PrecisionPlan)
