from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qpruner_core.export import verify
from qpruner_core.export.verify import reload_check, weight_file_bytes

IDS = torch.arange(8).reshape(1, 8)


def test_code_that_leans_on_our_package_does_not_pass_the_proof(
    tiny_folder: Path,
) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "leaning.Leaning"}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    (tiny_folder / "leaning.py").write_text(
        "import importlib\n"
        "from transformers import LlamaForCausalLM\n"
        "importlib.import_module('qpruner_core.catalog')\n"
        "class Leaning(LlamaForCausalLM):\n"
        "    pass\n"
    )
    with pytest.raises(RuntimeError, match=r"fresh process:[\s\S]*qpruner_core"):
        reload_check(tiny_folder, IDS, torch.zeros(1, 8, 128))


def test_a_difference_in_the_last_bit_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = torch.randn(1, 8, 4)
    found = expected.clone()
    found[0, 3, 2] = torch.nextafter(found[0, 3, 2], torch.tensor(torch.inf))

    def answer(_folder: Path, exchange: Path, _trust: bool) -> None:
        save_file({"logits": found}, exchange / "logits.safetensors")

    monkeypatch.setattr(verify, "_reopen", answer)
    check = reload_check(tmp_path, IDS, expected)
    assert not check.equal
    assert check.max_difference == float((found - expected).abs().max()) > 0.0


def test_the_other_process_gets_no_token_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PYTHONPATH", "QPRUNER_HOME"):
        monkeypatch.setenv(name, "secret")
    environment: dict[str, Any] = verify._environment(tmp_path)
    assert "secret" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_weight_bytes_leave_the_adapter_out(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 50)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x" * 7)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x" * 5)
    assert weight_file_bytes(tmp_path) == 12
