from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from qpruner_core.errors import BadInputError
from qpruner_core.models.sharded_writer import Planned, ShardedWriter
from qpruner_core.models.shards import Shards


@pytest.fixture
def sharded(tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    folder = tmp_path / "sharded"
    tiny_model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_every_tensor_reads_as_the_library_reads_it(sharded: Path) -> None:
    shards = Shards(sharded)
    seen = 0
    for path in sharded.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert torch.equal(shards.read(name), tensor)
            assert shards.read(name).dtype == tensor.dtype
            seen += 1
    assert seen == len(list(shards)) > 0


def test_rows_and_chunks_are_parts_of_the_whole(sharded: Path) -> None:
    shards = Shards(sharded)
    name = "model.embed_tokens.weight"
    whole = shards.read(name)
    assert torch.equal(shards.read_rows(name, [5, 0, 127]), whole[[5, 0, 127]])
    parts = list(shards.chunks(name, most_bytes=1000))
    assert len(parts) > 2
    assert [first for first, _ in parts] == [i * len(parts[0][1]) for i in range(len(parts))]
    assert torch.equal(torch.cat([rows for _, rows in parts]), whole)


def test_a_missing_tensor_is_named(sharded: Path) -> None:
    with pytest.raises(BadInputError, match=r"lack the tensor 'model\.no'"):
        Shards(sharded).read("model.no")


def test_a_file_that_was_cut_later_is_refused(sharded: Path) -> None:
    shards = Shards(sharded)
    for path in sharded.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(BadInputError, match="ends inside the tensor"):
        [shards.read(name) for name in shards]


def samples() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(6, 5).to(torch.bfloat16),
        "a.weight": torch.randint(0, 255, (9, 1), dtype=torch.uint8),
        "c.SCB": torch.randn(7),
        "c.weight": torch.randint(-9, 9, (3, 7), dtype=torch.int8),
        "z": torch.randn(4).to(torch.float16),
        "n": torch.randn(3, dtype=torch.float64),
    }


def test_files_equal_those_of_the_library_byte_for_byte(tmp_path: Path) -> None:
    tensors = samples()
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    planned = {name: Planned(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    writer = ShardedWriter(tmp_path, {"ours": list(tensors)}, planned)
    for name in reversed(tensors):
        writer.write(name, tensors[name])
    writer.finish()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_rows_may_come_in_pieces_and_in_any_order(tmp_path: Path) -> None:
    matrix = torch.randn(10, 4)
    writer = ShardedWriter(tmp_path, {"m": ["w"]}, {"w": Planned((10, 4), torch.float32)})
    writer.write_rows("w", 6, matrix[6:])
    writer.write_rows("w", 0, matrix[:6])
    writer.finish()
    with safe_open(tmp_path / "m", framework="pt") as file:
        assert torch.equal(file.get_tensor("w"), matrix)


def test_what_was_not_planned_is_refused(tmp_path: Path) -> None:
    writer = ShardedWriter(tmp_path, {"m": ["w"]}, {"w": Planned((2, 2), torch.float32)})
    with pytest.raises(ValueError, match="planned"):
        writer.write("w", torch.zeros(2, 3))
    with pytest.raises(ValueError, match="planned"):
        writer.write("w", torch.zeros(2, 2, dtype=torch.float16))
    with pytest.raises(ValueError, match="never written"):
        writer.finish()
    writer.write("w", torch.zeros(2, 2))
    with pytest.raises(ValueError, match="more was written"):
        writer.write("w", torch.zeros(2, 2))
