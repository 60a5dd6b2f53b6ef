"""What GPT-2, OPT and GPT-NeoX have that no other family has."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import opens_plainly
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import UnsupportedModelError
from qpruner_core.inspection import inspect_model
from qpruner_core.models.device import pick_device
from qpruner_core.models.loader import load
from qpruner_core.pruning.surgery import prune_

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 48,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
NEOX = {"model_type": "gpt_neox", "intermediate_size": 64, **SIZES}
OPT = {"model_type": "opt", "ffn_dim": 64, **SIZES}
IDS = torch.arange(24).reshape(2, 12)


def layout_of(config):
    return ARCHITECTURES.target(config["model_type"]).layout(config)


def test_the_heads_of_gpt2_own_a_part_of_every_third():
    group = layout_of(GPT2).group("transformer.h.0.attn")
    thirds = [part for part in group.slices if part.tensor.endswith("c_attn.weight")]
    assert [(part.axis, part.unit_size, part.offset) for part in thirds] == [
        (1, 8, 0),
        (1, 8, 32),
        (1, 8, 64),
    ]


def test_the_heads_of_gpt_neox_own_consecutive_rows():
    group = layout_of(NEOX).group("gpt_neox.layers.0.attention")
    fused = next(x for x in group.slices if x.tensor.endswith("query_key_value.weight"))
    assert (fused.axis, fused.unit_size, fused.offset) == (0, 24, 0)


def test_the_mlp_of_opt_belongs_to_the_layer_itself():
    group = layout_of(OPT).group("model.decoder.layers.1")
    assert {part.tensor for part in group.slices} == {
        f"model.decoder.layers.1.{leaf}" for leaf in ("fc1.weight", "fc1.bias", "fc2.weight")
    }


@pytest.mark.parametrize("config", [GPT2, NEOX, OPT], ids=lambda x: x["model_type"])
def test_fewer_heads_are_listed_and_fewer_channels_are_stated(config):
    layout = layout_of(config)
    heads = {g.name: (0, 1) for g in layout.groups if g.kind == "kv_heads"}
    channels = {g.name: tuple(range(32)) for g in layout.groups if g.kind == "mlp_channels"}
    assert not opens_plainly(layout.pruned(PruningPlan(kept=heads)))
    assert opens_plainly(layout.pruned(PruningPlan(kept=channels)))


def test_a_gpt2_that_attends_to_an_encoder_is_refused():
    with pytest.raises(UnsupportedModelError, match="add_cross_attention"):
        layout_of({**GPT2, "add_cross_attention": True})


def test_attention_scaled_by_its_layer_keeps_its_scale_or_its_layer():
    config = GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).double().eval()
    layout = layout_of(config.to_dict())
    family = ARCHITECTURES.target("gpt2")
    with pytest.raises(UnsupportedModelError, match="only the last layers"):
        family.fewer_layers(config.to_dict(), [0, 2])
    plan = PruningPlan(kept={"transformer.h.1.attn": (1, 3)}, dropped_layers=(2,))
    pruned = prune_(model, layout, plan)
    assert (pruned.n_layers, config.n_layer) == (2, 2)
    scales = [block.attn.scaling * (index + 1) for index, block in enumerate(model.transformer.h)]
    assert scales == [8**-0.5] * 2
    assert bool(torch.isfinite(model(input_ids=IDS).logits).all())


def rewrite(folder, change):
    """Write the weights of a folder again under other names, with what else `change` adds."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.fixture
def first_gpt2(tmp_path, tiny_tokenizer):
    """A folder as the first GPT-2 files are: names of the bare decoder, causal masks beside."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**GPT2, "vocab_size": 128, "n_positions": 24}))
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)

    def bare(tensors):
        named = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril() for i in range(3)}
        return named | masks

    rewrite(tmp_path, bare)
    return tmp_path, model


def test_the_first_files_of_gpt2_are_read_as_transformers_reads_them(first_gpt2):
    folder, model = first_gpt2
    loaded = load(ModelSpec(source=str(folder)), pick_device("cpu"))
    assert loaded.card.parameters == loaded.layout.parameters
    assert loaded.card.parameters == sum(p.numel() for p in model.parameters())
    assert loaded.card.max_positions == 24
    found = loaded.model.get_parameter("transformer.h.1.attn.c_attn.weight")
    wanted = model.get_parameter("transformer.h.1.attn.c_attn.weight")
    assert torch.equal(found, wanted.to(torch.bfloat16).float())


def test_a_bare_opt_and_the_head_of_pythia_are_counted_right(tmp_path):
    opt = OPTForCausalLM(OPTConfig(**{k: v for k, v in OPT.items() if k != "model_type"}))
    neox = GPTNeoXForCausalLM(
        GPTNeoXConfig(**{k: v for k, v in NEOX.items() if k != "model_type"})
    )
    opt.save_pretrained(tmp_path / "opt")
    neox.save_pretrained(tmp_path / "neox")
    rewrite(
        tmp_path / "opt", lambda found: {n.removeprefix("model."): t for n, t in found.items()}
    )
    assert "embed_out.weight" in load_file(tmp_path / "neox" / "model.safetensors")
    for name, model in (("opt", opt), ("neox", neox)):
        card = inspect_model(ModelSpec(source=str(tmp_path / name)))
        assert card.parameters == card.layout.parameters
        assert card.parameters == sum(p.numel() for p in model.parameters())
        assert card.max_positions == 32


@pytest.mark.parametrize("config", [GPT2, NEOX, OPT], ids=lambda x: x["model_type"])
def test_positions_and_tied_heads_are_those_of_transformers(config):
    family, name = ARCHITECTURES.target(config["model_type"]), config["model_type"]
    silent = AutoConfig.for_model(name)
    assert family.is_tied(config) == silent.tie_word_embeddings
    assert family.max_positions(config) == 32
    if name != "gpt_neox":  # positions of GPT-NeoX are computed, so that any length will do
        assert family.max_positions({"model_type": name}) == silent.max_position_embeddings
