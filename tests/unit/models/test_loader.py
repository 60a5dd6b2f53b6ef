"""From a folder to a model in memory, and every way in which that is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import BadInputError, ModelNotFoundError, UnsupportedModelError
from qpruner_core.models import loader
from qpruner_core.models.device import Device, pick_device
from qpruner_core.models.loader import load

CPU = pick_device("cpu")


def load_folder(folder, **changes):
    return load(ModelSpec(source=str(folder), **changes), CPU)


def test_a_folder_of_32_bit_gives_the_model_that_was_saved_at_16_bit(
    tiny_folder, tiny_model, tiny_layout
):
    loaded = load_folder(tiny_folder)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.copy_(parameter.bfloat16())
        assert torch.equal(loaded.model(ids).logits, tiny_model(ids).logits)
    assert not loaded.model.training
    assert loaded.layout == loaded.card.layout == tiny_layout
    assert loaded.device is CPU
    assert loaded.tokenizer("ba ca")["input_ids"] == [4, 5]


def test_half_precision_files_are_computed_in_the_dtype_of_the_device(tiny_folder, tiny_model):
    tiny_model.half().save_pretrained(tiny_folder)
    assert {p.dtype for p in load_folder(tiny_folder).model.parameters()} == {torch.float32}
    bf16 = Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.bfloat16)
    model = load(ModelSpec(source=str(tiny_folder)), bf16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tiny_folder, value):
    path = tiny_folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    tensors["model.layers.0.self_attn.k_proj.weight"][:2, 7] = value
    save_file(tensors, path, metadata={"format": "pt"})
    words = r"2 tensors of .* infinite in float32, 'model\.layers\.0\.self_attn\.k_proj\.weight' "
    with pytest.raises(BadInputError, match=words + r"first \(2 of 2048 values\)"):
        load_folder(tiny_folder)


def test_finite_weights_whose_sum_overflows_are_no_reason_to_refuse(tiny_model):
    with torch.no_grad():
        tiny_model.lm_head.weight.fill_(3e38)
    assert not torch.isfinite(tiny_model.lm_head.weight.sum())
    loader.check_finite(tiny_model, "large")
    with torch.no_grad():
        tiny_model.lm_head.weight[0, 0] = torch.inf
    with pytest.raises(BadInputError, match=r"'lm_head\.weight' first \(1 of 8192 values"):
        loader.check_finite(tiny_model, "large")


def test_the_demo_loads_as_its_card_says():
    loaded = load(ModelSpec(source="demo"), CPU)
    assert loaded.card.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert loaded.layout.parameters == loaded.card.parameters


def test_a_pickle_beside_safetensors_is_not_opened(tiny_folder):
    (tiny_folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load_folder(tiny_folder).card.dtype == "F32"


def test_a_pickle_alone_is_refused_before_anything_is_opened(tiny_folder):
    (tiny_folder / "model.safetensors").rename(tiny_folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="never read"):
        load_folder(tiny_folder)


def test_a_truncated_file_is_refused(tiny_folder):
    file = tiny_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInputError, match="truncated"):
        load_folder(tiny_folder)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_a_missing_tensor_is_never_made_up(tiny_folder, name):
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=f"lack 1 tensors.*'{name}'"):
        load_folder(tiny_folder)


def test_a_folder_without_a_tokenizer_is_refused(tiny_folder):
    (tiny_folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match="holds no tokenizer"):
        load_folder(tiny_folder)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "none"}}'])
def test_a_damaged_tokenizer_is_refused(tiny_folder, content):
    (tiny_folder / "tokenizer.json").write_text(content)
    with pytest.raises(BadInputError, match="cannot be opened"):
        load_folder(tiny_folder)


def test_a_tokenizer_that_is_too_large_for_the_model_is_refused(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens(["surplus"])
    tokenizer.save_pretrained(tiny_folder)
    with pytest.raises(BadInputError, match=r"129 tokens with ids up to 128.* 0 to 127"):
        load_folder(tiny_folder)


def test_a_smaller_tokenizer_fits_a_padded_embedding(tiny_tokenizer, tiny_layout):
    from dataclasses import replace

    loader.check_tokenizer(tiny_tokenizer, replace(tiny_layout, vocab_size=192))
    with pytest.raises(BadInputError, match="Put the tokenizer"):
        loader.check_tokenizer(tiny_tokenizer, replace(tiny_layout, vocab_size=64))


def test_unequal_widths_need_the_code_that_builds_them(tiny_folder):
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    for role, axis in (("gate", 0), ("up", 0), ("down", 1)):
        name = f"model.layers.1.mlp.{role}_proj.weight"
        tensors[name] = tensors[name].narrow(axis, 0, 64).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((tiny_folder / "config.json").read_text())
    config["qpruner_widths"] = {"model.layers.1.mlp": 64}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInputError, match="differ in width"):
        load_folder(tiny_folder)


CODE = """
from transformers import LlamaForCausalLM

class Loud(LlamaForCausalLM):
    ran = True
"""


def test_code_of_a_model_runs_only_when_it_is_trusted(tiny_folder):
    (tiny_folder / "modeling_loud.py").write_text(CODE)
    config = json.loads((tiny_folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_loud.Loud"}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    assert not hasattr(load_folder(tiny_folder).model, "ran")
    assert load_folder(tiny_folder, trust_remote_code=True).model.ran


def test_a_card_that_is_too_small_is_said_in_bytes(tiny_folder, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loader.AutoModelForCausalLM, "from_pretrained", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3 * 2**20, 2**30))
    card = Device(kind="cuda", index=0, name="Small Card", compute_dtype=torch.bfloat16)
    with pytest.raises(BadInputError, match=r"KiB.*Small Card has 3\.00 MiB free"):
        load(ModelSpec(source=str(tiny_folder)), card)


def test_a_model_larger_than_the_memory_is_refused_with_the_way_that_fits(
    tiny_folder, monkeypatch
):
    monkeypatch.setattr("qpruner_core.models.loader.available_bytes", lambda: 1000)
    with pytest.raises(BadInputError, match=r"does not fit.*1000 B free.*'qpruner compress'"):
        load(ModelSpec(source=str(tiny_folder)), pick_device("cpu"))
