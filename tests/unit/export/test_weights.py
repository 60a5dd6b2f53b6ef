from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qpruner_core.export import weights
from qpruner_core.export.config import config_values
from qpruner_core.export.hf_mixed import EXPORTER
from qpruner_core.export.verify import reference_logits
from qpruner_core.export.weights import shards, stored_tensors, total_bytes, write_weights

IDS = torch.arange(16).reshape(1, 16)


def test_tied_weights_are_stored_once(sample: Callable[..., Any]) -> None:
    tied = stored_tensors(*model_and_plan(sample(tie_word_embeddings=True)), torch.bfloat16)
    apart = stored_tensors(*model_and_plan(sample(tie_word_embeddings=False)), torch.bfloat16)
    assert "lm_head.weight" not in tied
    assert set(apart) - set(tied) == {"lm_head.weight"}


def model_and_plan(given: Any) -> tuple[Any, Any]:
    return given.packed, given.plan


def test_what_no_plan_names_lies_at_16_bit(sample: Callable[..., Any], tmp_path: Path) -> None:
    given = sample("qwen2", dtype=torch.float16)
    write_weights(stored_tensors(given.packed, given.plan, torch.float16), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.float16
    assert tensors["model.layers.0.input_layernorm.weight"].dtype == torch.float16
    biases = [tensor for name, tensor in tensors.items() if name.endswith("q_proj.bias")]
    assert len(biases) == 2
    assert all(tensor.dtype == torch.float16 for tensor in biases)


def test_shards_stay_below_their_limit_and_hold_every_tensor_once(
    sample: Callable[..., Any],
) -> None:
    given = sample()
    stored = stored_tensors(given.packed, given.plan, torch.bfloat16)
    limit = 10_000
    files = shards(stored, limit)
    assert [name for names in files for name in names] == list(stored)
    for names in files:
        size = sum(stored[name].nbytes for name in names)
        assert size <= limit or len(names) == 1


def test_a_sharded_checkpoint_reopens_through_its_index(
    sample: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    given = sample()
    monkeypatch.setattr(weights.write_weights, "__defaults__", (20_000,))
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    stored = stored_tensors(given.packed, given.plan, torch.bfloat16)
    assert len(files) > 2
    assert files == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert index["metadata"]["total_size"] == total_bytes(stored)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=torch.float32
    )
    expected = reference_logits(given.reference, IDS)
    assert torch.equal(reference_logits(model, IDS), expected)


def test_files_can_be_read_by_whoever_may_read_the_folder(
    sample: Callable[..., Any], tmp_path: Path
) -> None:
    given = sample()
    EXPORTER.export(given.packed, None, given.facts, tmp_path / "out")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "out").stat().st_mode & 0o666}


def test_the_config_carries_no_path_and_no_foreign_code(sample: Callable[..., Any]) -> None:
    given = sample()
    given.packed.config._name_or_path = "/private/model"
    given.packed.config.auto_map = {"AutoModel": "foreign.Code"}
    values = config_values(given.packed, given.facts.layout, torch.bfloat16)
    assert "/private" not in json.dumps(values)
    assert "auto_map" not in values
    assert values["dtype"] == "bfloat16"
