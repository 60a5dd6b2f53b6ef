"""What config and headers alone can tell, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from qpruner_core.catalog import ARCHITECTURES, precision_formats
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import BadInputError, ModelNotFoundError, UnsupportedModelError
from qpruner_core.inspection import Gpu, demo_folder, gpu_fits, inspect_model, read_headers
from qpruner_core.inspection.headers import DTYPE_BITS, read_header
from qpruner_core.models.device import pick_device
from qpruner_core.models.loader import load
from qpruner_core.models.skeleton import Skeleton


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def inspect(folder):
    return inspect_model(ModelSpec(source=str(folder)))


@pytest.fixture
def sharded(tiny_model, tmp_path):
    folder = tmp_path / "sharded"
    tiny_model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("folder", ["tiny_folder", "sharded"])
def test_a_card_states_what_the_model_holds(folder, request, tiny_model, tiny_layout):
    card = inspect(request.getfixturevalue(folder))
    n_parameters = sum(p.numel() for p in tiny_model.parameters())
    assert card.layout == tiny_layout
    assert card.parameters == card.layout.parameters == n_parameters
    assert card.file_bytes == 4 * n_parameters
    assert (card.dtype, card.max_positions, card.revision) == ("F32", 256, None)


def test_headers_agree_with_the_tensors(tiny_folder, tiny_model):
    headers = read_headers(tiny_folder)
    for name, tensor in tiny_model.state_dict().items():
        assert headers[name].shape == tuple(tensor.shape)
        assert headers[name].size_bytes == tensor.nbytes


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn],
)
def test_every_dtype_that_torch_writes_is_read(tmp_path, dtype):
    file = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(3, 5).to(dtype), "scalar": torch.ones(()).to(dtype)}, file)
    headers = read_header(file)
    assert headers["x"].size_bytes == 15 * dtype.itemsize
    assert headers["scalar"].shape == ()
    assert DTYPE_BITS[headers["x"].dtype] == 8 * dtype.itemsize


def test_a_tied_head_that_is_stored_all_the_same_counts_once(tiny_folder, tiny_layout):
    before = inspect(tiny_folder).parameters
    change_config(tiny_folder, tie_word_embeddings=True)
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tiny_folder / "model.safetensors", {"format": "pt"})
    assert inspect(tiny_folder).parameters == before - 128 * 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_head_with_values_of_its_own_is_refused_on_every_way(tiny_folder, dtype):
    tensors = load_file(tiny_folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    tensors["lm_head.weight"] = head.to(dtype)
    save_file(tensors, tiny_folder / "model.safetensors", {"format": "pt"})
    spec, device = ModelSpec(source=str(tiny_folder)), pick_device("cpu")
    assert inspect_model(spec).parameters
    change_config(tiny_folder, tie_word_embeddings=True)
    for opened in (inspect_model, partial(load, device=device), partial(Skeleton, device=device)):
        with pytest.raises(
            BadInputError, match=r"'lm_head\.weight'.*tie_word_embeddings to false"
        ):
            opened(spec)


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_layers_that_the_config_does_not_count_and_layers_that_lack_are_one_sentence(
    tiny_folder, n_layers, prefix
):
    file = tiny_folder / "model.safetensors"
    tensors = {k.replace("model.", prefix, 1): v for k, v in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    assert inspect(tiny_folder).layout.n_layers == 2
    change_config(tiny_folder, num_hidden_layers=n_layers)
    said = f"hold 2 layers, but config.json says {n_layers}. Correct the number of layers"
    with pytest.raises(BadInputError, match=said):
        inspect(tiny_folder)


def test_layers_of_a_family_with_other_names_are_counted_too(tmp_path):
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert inspect(tmp_path).layout.n_layers == 3
    change_config(tmp_path, n_layer=2)
    with pytest.raises(BadInputError, match="hold 3 layers"):
        inspect(tmp_path)


def test_the_demo_is_found_where_the_environment_says(monkeypatch, tiny_folder, tmp_path):
    monkeypatch.setenv("QPRUNER_DEMO", str(tmp_path))
    tiny_folder.rename(tmp_path / "model")
    card = inspect_model(ModelSpec(source="demo"))
    assert (card.source, card.title) == ("demo", "Demo model")
    assert demo_folder() == tmp_path


def test_a_demo_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("QPRUNER_DEMO", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="QPRUNER_DEMO"):
        inspect_model(ModelSpec(source="demo"))


# Folders that are wrong


@pytest.mark.parametrize("source", ["./nowhere", "/no/where/at/all", "~/no-such-folder-here"])
def test_a_folder_that_is_not_there_is_said(source):
    with pytest.raises(ModelNotFoundError, match="There is no folder"):
        inspect(source)


def test_a_file_in_place_of_a_folder_is_said(tiny_folder):
    with pytest.raises(ModelNotFoundError, match="is a file"):
        inspect(tiny_folder / "model.safetensors")


def test_no_name_at_all_is_said():
    with pytest.raises(BadInputError, match="No model was named"):
        inspect("  ")


def test_a_folder_without_a_config_is_said(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json"):
        inspect(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_damaged_config_is_said(tiny_folder, text):
    (tiny_folder / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(BadInputError, match=r"config\.json"):
        inspect(tiny_folder)


def test_an_unknown_architecture_is_answered_with_the_known_ones(tiny_folder):
    change_config(tiny_folder, model_type="mamba")
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*llama, mistral") as refused:
        inspect(tiny_folder)
    assert all(name in str(refused.value) for name in ARCHITECTURES.names())


def test_a_config_without_a_family_is_refused(tiny_folder):
    change_config(tiny_folder, model_type=None)
    with pytest.raises(UnsupportedModelError, match="architecture None"):
        inspect(tiny_folder)


def test_quantised_weights_are_refused(tiny_folder):
    change_config(tiny_folder, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UnsupportedModelError, match=r"quantised already.*bitsandbytes"):
        inspect(tiny_folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_never_read(tiny_folder, name):
    (tiny_folder / "model.safetensors").rename(tiny_folder / name)
    with pytest.raises(UnsupportedModelError, match="only as pickles"):
        inspect(tiny_folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model.gguf"])
def test_other_weights_are_refused(tiny_folder, name):
    (tiny_folder / "model.safetensors").rename(tiny_folder / name)
    with pytest.raises(UnsupportedModelError, match=name):
        inspect(tiny_folder)


def test_a_folder_without_weights_is_said(tiny_folder):
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="holds no weights"):
        inspect(tiny_folder)


@pytest.mark.parametrize("kept", [0, 5, 8, 200, -1, -1000])
def test_a_truncated_file_is_said_wherever_it_ends(tiny_folder, kept):
    file = tiny_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(BadInputError, match=r"'model\.safetensors'.*truncated"):
        inspect(tiny_folder)


def write_header(file, header, payload=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + payload)


def entry(**changes):
    return {"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2], **changes}}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"not json", "not JSON"),
        ([1, 2], "not a table"),
        ({"x": {"dtype": "U8"}}, "without dtype, shape or offsets"),
        ({"x": 3}, "without dtype, shape or offsets"),
        (entry(dtype="Q3"), "no known dtype"),
        (entry(dtype=["U8"]), "no known dtype"),
        (entry(shape=[-2]), "not counts"),
        (entry(shape=[True, 2]), "not counts"),
        (entry(data_offsets=[0, "2"]), "not counts"),
        (entry(data_offsets=[0, 3]), "3 bytes where U8 of shape"),
        (entry(data_offsets=[7, 9]), "2 bytes of tensors where its header describes 9"),
        ({}, "2 bytes of tensors where its header describes 0"),
    ],
)
def test_a_header_that_does_not_describe_its_file_is_said(tmp_path, header, words):
    file = tmp_path / "x.safetensors"
    write_header(file, header, payload=b"ab")
    with pytest.raises(BadInputError, match=words):
        read_header(file)


def test_an_enormous_header_is_not_even_read(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(BadInputError, match=str(2**60)):
        read_header(file)


def test_a_missing_shard_is_named(sharded):
    gone = sorted(sharded.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelNotFoundError, match=gone.name):
        inspect(sharded)


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_an_index_that_names_tensors_nobody_holds_is_said(sharded):
    change_index(
        sharded, lambda i: i["weight_map"].update(ghost=next(iter(i["weight_map"].values())))
    )
    with pytest.raises(BadInputError, match=r"1 tensors.*'ghost'"):
        inspect(sharded)


def test_an_index_never_leads_out_of_its_folder(sharded):
    change_index(sharded, lambda i: i["weight_map"].update(ghost="../other/model.safetensors"))
    with pytest.raises(BadInputError, match="never followed"):
        inspect(sharded)


def test_an_index_without_a_table_is_said(sharded):
    change_index(sharded, lambda i: i.pop("weight_map"))
    with pytest.raises(BadInputError, match="weight_map"):
        inspect(sharded)


def test_weights_of_another_model_are_said_with_their_shapes(tiny_folder):
    change_config(tiny_folder, intermediate_size=256)
    words = r"6 of 14 .*model\.layers\.0\.mlp\.gate_proj\.weight is 128 x 64 where .* 256 x 64"
    with pytest.raises(BadInputError, match=words):
        inspect(tiny_folder)


def test_widths_that_the_weights_do_not_have_are_said_with_their_shapes(tiny_folder):
    change_config(tiny_folder, qpruner_widths={"model.layers.1.mlp": 96})
    words = r"3 of 14 .*model\.layers\.1\.mlp\.gate_proj\.weight is 128 x 64 where .* 96 x 64"
    with pytest.raises(BadInputError, match=words):
        inspect(tiny_folder)


def test_widths_of_a_fused_family_are_said_with_their_shapes(tiny_folder, tiny_config):
    folder = phi3_folder(tiny_folder, tiny_config)
    assert inspect(folder).layout.model_type == "phi3"
    change_config(folder, qpruner_widths={"model.layers.0.self_attn": 1})
    words = r"2 of 8 .*layers\.0\.self_attn\.qkv_proj\.weight is 128 x 64 where .* 64 x 64"
    with pytest.raises(BadInputError, match=words):
        inspect(folder)


def phi3_folder(folder, config):
    """Return a sibling folder with a random Phi-3 of the same sizes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    heads = ("num_attention_heads", "num_key_value_heads", "pad_token_id")
    values = {key: getattr(config, key) for key in (*sizes, *heads)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi3", **values))
    model.save_pretrained(folder.parent / "phi3")
    return folder.parent / "phi3"


def test_a_bias_that_the_config_does_not_mean_is_said(tiny_folder, tiny_model):
    tensors = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    tensors["model.layers.0.mlp.down_proj.bias"] = torch.ones(64)
    save_file(tensors, tiny_folder / "model.safetensors")
    words = r"1 of 14 .*down_proj\.bias is 64 where the config means absent"
    with pytest.raises(BadInputError, match=words):
        inspect(tiny_folder)
    change_config(tiny_folder, qpruner_biases=["model.layers.0.mlp.down_proj"])
    assert inspect(tiny_folder).layout.added_biases == ("model.layers.0.mlp.down_proj",)


def test_a_bias_that_the_weights_lack_is_said(tiny_folder):
    change_config(tiny_folder, qpruner_biases=["model.layers.1.self_attn.o_proj"])
    words = r"1 of 15 .*layers\.1\.self_attn\.o_proj\.bias is absent where the config means 64"
    with pytest.raises(BadInputError, match=words):
        inspect(tiny_folder)


def test_a_checkpoint_of_the_bare_decoder_is_taken(tiny_folder, tiny_model):
    tensors = {
        name.removeprefix("model."): tensor.clone()
        for name, tensor in tiny_model.state_dict().items()
    }
    save_file(tensors, tiny_folder / "model.safetensors")
    assert inspect(tiny_folder).parameters == sum(p.numel() for p in tiny_model.parameters())


def test_a_weight_that_lacks_is_named(tiny_folder):
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, tiny_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        BadInputError, match=r"1 of 14 .*layers\.0\.mlp\.up_proj.* is absent where"
    ):
        inspect(tiny_folder)


# What the browser side relies on


def test_inspection_is_quick_to_import_and_loads_nothing_heavy(tiny_folder):
    code = (
        "import sys, time; start = time.perf_counter(); import qpruner_core.inspection as i; "
        "seconds = time.perf_counter() - start; from qpruner_core.domain.spec import ModelSpec; "
        f"i.inspect_model(ModelSpec(source={str(tiny_folder)!r})); "
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules); "
        "print(seconds); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


def test_more_memory_never_fits_less(tiny_layout):
    gpus = tuple(Gpu(name=str(n), memory_bytes=n) for n in (10**4, 10**6, 10**9))
    fits = gpu_fits(tiny_layout, precision_formats(), gpus=gpus)
    assert len(fits) == 3 * 4
    for precision in precision_formats():
        mine = [fit for fit in fits if fit.precision == precision]
        assert [fit.runs for fit in mine] == sorted(fit.runs for fit in mine)
        assert mine[-1].runs
        assert mine[-1].trains
        assert not mine[0].runs
        assert all(fit.runs or not fit.trains for fit in mine), "training needs more than running"
