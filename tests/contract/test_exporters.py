"""Laws of every export format: whole or not at all, listed to the byte, and the same logits
elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig

from qpruner_core.catalog import EXPORTERS, PRECISIONS
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import ModelCard
from qpruner_core.errors import OutputExistsError
from qpruner_core.export import ExportFacts
from qpruner_core.export.card import MANIFEST
from qpruner_core.export.snippets import needs_remote_code
from qpruner_core.export.verify import reference_logits, reload_check
from qpruner_core.models.architectures import llama
from qpruner_core.models.files.modeling_qpruner import model_class
from qpruner_core.models.telling import tell_config_

CONFIG = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
KEPT = {
    "uniform": {f"model.layers.{i}.mlp": tuple(range(128)) for i in (0, 1)},
    # Six query heads in every layer: equal, yet refused by the config of Llama.
    "refused heads": {f"model.layers.{i}.self_attn": (0, 2, 3) for i in (0, 1)},
    "per-layer": {
        "model.layers.0.mlp": tuple(range(64)),
        "model.layers.1.self_attn": (1,),
        "model.layers.1.mlp": tuple(range(64, 192)),
    },
}
IDS = torch.arange(2 * 24).reshape(2, 24)


@dataclass(frozen=True)
class Case:
    model: nn.Module
    """Packed."""
    facts: ExportFacts
    expected: torch.Tensor
    """Logits of the dense fake-quantised reference."""


@pytest.fixture(params=EXPORTERS.names())
def format_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def case(format_name: str, tmp_path: Path) -> Callable[[str], Case]:
    def build(shape: str) -> Case:
        return make_case(format_name, shape, tmp_path)

    return build


def make_case(format_name: str, shape: str, tmp_path: Path) -> Case:
    pruning = PruningPlan(kept=KEPT[shape])
    dense = llama.layout({"model_type": "llama", **CONFIG})
    layout = dense.pruned(pruning)
    mixed = {linear.name: PRECISIONS.names()[i % 4] for i, linear in enumerate(layout.linears)}
    exporter = EXPORTERS.target(format_name)
    plan = exporter.plan_written(layout, PrecisionPlan(precisions=mixed))
    reference = pruned_model(layout)
    packed = pruned_model(layout)
    for name, precision in plan.precisions.items():
        rule = PRECISIONS.target(precision)
        weight = reference.get_submodule(name).weight
        weight.data = rule.fake_quantize(weight.data)
        parent, _, leaf = name.rpartition(".")
        linear = packed.get_submodule(name)
        setattr(packed.get_submodule(parent), leaf, rule.pack(linear, torch.float32))
    adapter = tmp_path / "trained"
    adapter.mkdir()
    save_file({"x": torch.ones(2)}, adapter / "adapter_model.safetensors")
    facts = ExportFacts(
        card=model_card(dense), layout=layout, pruning=pruning, plan=plan, adapter=adapter
    )
    return Case(packed, facts, reference_logits(reference, IDS))


def pruned_model(layout: ModelLayout) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(**CONFIG)
    tell_config_(config, layout)
    model = model_class("QPrunerLlamaForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        # Linears that surgery leaves keep their weights; new ones come empty.
        values = torch.randn(parameter.shape) * 0.1 + (1.0 if "norm" in name else 0.0)
        parameter.data = values.to(torch.float16).float()
    return model


def model_card(dense: ModelLayout) -> ModelCard:
    return ModelCard(
        source="demo",
        revision=None,
        title="Tiny",
        layout=dense,
        parameters=dense.parameters,
        file_bytes=2 * dense.parameters,
        dtype="F16",
        max_positions=256,
    )


@pytest.mark.parametrize("shape", KEPT)
def test_a_process_without_our_package_opens_it_and_gives_the_same_logits(
    case: Callable[[str], Case], format_name: str, shape: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    given, folder = case(shape), tmp_path / "out"
    EXPORTERS.target(format_name).export(given.model, tiny_tokenizer, given.facts, folder)
    trust = needs_remote_code(format_name, uniform=shape == "uniform")
    check = reload_check(folder, IDS, given.expected, trust_remote_code=trust)
    assert check.equal, check.max_difference
    assert check.max_difference == 0.0


def test_the_manifest_lists_every_file_with_its_hash_and_bytes(
    case: Callable[[str], Case], format_name: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    given, folder = case("per-layer"), tmp_path / "out"
    EXPORTERS.target(format_name).export(given.model, tiny_tokenizer, given.facts, folder)
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    found = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    assert listed == found
    assert {"config.json", "tokenizer.json", "README.md"} < set(listed)
    assert "adapter/adapter_model.safetensors" in listed


def test_a_folder_that_exists_is_refused_and_left_as_it_was(
    case: Callable[[str], Case], format_name: str, tmp_path: Path
) -> None:
    given, folder = case("uniform"), tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="nothing is overwritten"):
        EXPORTERS.target(format_name).export(given.model, None, given.facts, folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert (folder / "mine.txt").read_text() == "mine"


def test_only_a_whole_folder_is_ever_left_behind(
    case: Callable[[str], Case],
    format_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = case("uniform")
    home = tmp_path / "home"

    def broken(*_: object) -> str:
        raise RuntimeError("broken")

    monkeypatch.setattr("qpruner_core.export.checkpoint.manifest", broken)
    with pytest.raises(RuntimeError, match="broken"):
        EXPORTERS.target(format_name).export(given.model, None, given.facts, home / "out")
    assert list(home.iterdir()) == []
